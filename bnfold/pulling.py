"""The search backward: *pull* asks the producers of a value for an affine, until every end absorbs it.

A pulled value must be asked for by every one of its uses, with the same affine. As a last resort another use may undo
the change, `W*x = (W*A^-1)*A(x)`, if that costs no operator.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bnfold import carriers
from bnfold.bench import Bench
from bnfold.decision import Reason, Refusal
from bnfold.graph import Operator, PlacedAffine, Step, Use, Value
from bnfold.routes import Route, excluded
from bnfold.sources import Source
from bnfold.undoing import Request, is_untouched, undo

#: How many values a pull looks at before it gives up; only nested sums of variables come near.
MAX_STEPS = 1024


@dataclass
class _Search:
    """A pull that is under way: what is asked of which value, by which edges, and the route so far."""

    route: Route
    wanted: dict[Value, list[PlacedAffine]]
    edges: dict[Value, set[tuple[int, int]]]
    requests: list[Request] = field(default_factory=list)

    def fork(self) -> _Search:
        """The same search, to be continued in another way."""
        wanted = {value: list(placed) for value, placed in self.wanted.items()}
        edges = {value: set(edges) for value, edges in self.edges.items()}
        return _Search(self.route.fork(), wanted, edges, [*self.requests])

    def went(self, bench: Bench, value: Value, producer: Operator, step: Step) -> _Search:
        """The search after the producer of `value` took `step`."""
        self.route.took(producer, step)
        self.route.values.add(value)
        for position, placed in step.placed.items():
            if not placed.affine.is_identity:
                read = bench.root(producer.inputs[position])
                self.wanted.setdefault(read, []).append(placed)
                self.edges.setdefault(read, set()).add((producer.index, position))
        return self


def pull(bench: Bench, source: Source, *, undoes: bool = False) -> Route | Refusal:
    """The route from `source` to the producers of its input; where there are several ways, the first that is legal.

    Args:
        bench: The model.
        source: What is to move.
        undoes: Whether other readers of a value that changes may undo the change.
    """
    start = bench.root(source.input)
    edges = {(source.operators[0].index, 0)}
    searches = [_Search(Route("pull"), {start: [source.placed]}, {start: edges})]
    refusals: list[Refusal] = []
    steps = 0
    while searches and steps < MAX_STEPS:
        search, steps = searches.pop(), steps + 1
        ways = _ways(bench, search, undoes) if search.wanted else undo(bench, source, search.route, search.requests)
        if isinstance(ways, Route):
            return ways
        if isinstance(ways, Refusal):
            refusals.append(ways)
        else:
            searches += reversed(ways)
    return Refusal(Reason.TOO_MANY_WAYS, start) if searches else refusals[0]


def _ways(bench: Bench, search: _Search, undoes: bool) -> list[_Search] | Refusal:
    """How the search can go on at the last value that is asked for anything."""
    value = max(search.wanted, key=lambda v: -1 if (p := bench.producer(v)) is None else p.index)
    wanted = search.wanted.pop(value)
    if (refusal := bench.visible(value)) is not None:
        return refusal
    if not all(placed.equals(wanted[0]) for placed in wanted):
        return Refusal(Reason.READERS_DISAGREE, value)
    if (refusal := _ask_others(bench, search, value, wanted[0], undoes)) is not None:
        return refusal
    producer = bench.producer(value)
    if producer is None:
        return Refusal(Reason.READS_MODEL_INPUT, value)
    answer = excluded(bench, producer) or carriers.pull(producer, wanted[0], bench, producer.outputs.index(value))
    if isinstance(answer, Refusal):
        return answer
    steps = answer if isinstance(answer, tuple) else (answer,)
    return [search.fork().went(bench, value, producer, step) for step in steps]


def _ask_others(bench: Bench, search: _Search, value: Value, placed: PlacedAffine, undoes: bool) -> Refusal | None:
    """The readers that are not on the way: they must see no difference, or be asked to undo it."""
    edges = search.edges[value]
    others = [use for use in bench.uses(value) if (use.operator.index, use.position) not in edges]
    touched = [use for use in others if not is_untouched(bench, use, placed)]
    if touched and not undoes:
        return Refusal(Reason.VALUE_HAS_OTHER_READERS, value, f"read by {_names(touched)}")
    search.route.beside += [use.operator for use in others if use not in touched]
    if touched:
        search.requests.append(Request(value, placed, touched))
    return None


def _names(uses: list[Use]) -> str:
    return f"{uses[0].operator.name}{f' and {len(uses) - 1} more' if len(uses) > 1 else ''}"
