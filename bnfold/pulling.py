"""The search backward: *pull* asks the producers of a value for an affine, until every end absorbs it.

A pulled value must be asked for by every one of its uses, with the same affine. As a last resort another use may undo
the change, `W*x = (W*A^-1)*A(x)`, if that costs no operator.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from bnfold import carriers
from bnfold.agreeing import Wish, agreed
from bnfold.bench import Bench
from bnfold.decision import Reason, Refusal
from bnfold.graph import Operator, Step, Use, Value
from bnfold.routes import Route, excluded
from bnfold.sources import Source
from bnfold.undoing import Request, is_untouched, undo

#: How many values a pull looks at before it gives up; only nested sums of variables come near.
MAX_STEPS = 1024


@dataclass
class _Search:
    """A pull that is under way: what is asked of which value, by which edges, and the route so far."""

    route: Route
    wishes: dict[Value, list[Wish]]
    requests: list[Request] = field(default_factory=list)

    def fork(self) -> _Search:
        """The same search, to be continued in another way."""
        wishes = {value: [*wishes] for value, wishes in self.wishes.items()}
        return _Search(self.route.fork(), wishes, [*self.requests])

    def went(self, bench: Bench, value: Value, producer: Operator, step: Step) -> _Search:
        """The search after the producer of `value` took `step`."""
        self.route.took(producer, step)
        self.route.values.add(value)
        for position, placed in step.placed.items():
            if not placed.affine.is_identity:
                read = bench.root(producer.inputs[position])
                self.wishes.setdefault(read, []).append(Wish(placed, producer.index, position))
        return self


def pull(bench: Bench, source: Source, *, undoes: bool = False) -> Route | Refusal:
    """The route from `source` to the producers of its input; where there are several ways, the first that is legal.

    Args:
        bench: The model.
        source: What is to move.
        undoes: Whether other readers of a value that changes may undo the change.
    """
    start = bench.root(source.input)
    searches = [_Search(Route("pull"), {start: [Wish(source.placed, source.operators[0].index, 0)]})]
    refusals: list[Refusal] = []
    steps = 0
    while searches and steps < MAX_STEPS:
        search, steps = searches.pop(), steps + 1
        ways = _ways(bench, search, undoes) if search.wishes else undo(bench, source, search.route, search.requests)
        if isinstance(ways, Route):
            return ways
        if isinstance(ways, Refusal):
            refusals.append(ways)
        else:
            searches += reversed(ways)
    return Refusal(Reason.TOO_MANY_WAYS, start) if searches else refusals[0]


def _ways(bench: Bench, search: _Search, undoes: bool) -> list[_Search] | Refusal:
    """How the search can go on at the last value that is asked for anything."""
    value = max(search.wishes, key=lambda v: -1 if (p := bench.producer(v)) is None else p.index)
    wishes = search.wishes.pop(value)
    if (refusal := bench.visible(value)) is not None:
        return refusal
    wanted = agreed(bench, wishes)
    if wanted is None:
        return Refusal(Reason.READERS_DISAGREE, value)
    edges = {(wish.reader, wish.position) for wish in wishes}
    others = [use for use in bench.uses(value) if (use.operator.index, use.position) not in edges]
    if (refusal := _ask(bench, search, Request(value, wanted, others), undoes)) is not None:
        return refusal
    producer = bench.producer(value)
    if producer is None:
        return Refusal(Reason.READS_MODEL_INPUT, value)
    answer = excluded(bench, producer) or carriers.pull(producer, wanted, bench, producer.outputs.index(value))
    if isinstance(answer, Refusal):
        return answer
    steps = answer if isinstance(answer, tuple) else (answer,)
    return [search.fork().went(bench, value, producer, step) for step in steps]


def _ask(bench: Bench, search: _Search, request: Request, undoes: bool) -> Refusal | None:
    """The readers that are not on the way must see no difference, or be asked to undo it."""
    touched = [use for use in request.uses if not is_untouched(bench, use, request.placed)]
    if touched and not undoes:
        return Refusal(Reason.VALUE_HAS_OTHER_READERS, request.value, f"read by {_names(touched)}")
    search.route.beside += [use.operator for use in request.uses if use not in touched]
    if touched:
        search.requests.append(replace(request, uses=touched))
    return None


def _names(uses: list[Use]) -> str:
    return f"{uses[0].operator.name}{f' and {len(uses) - 1} more' if len(uses) > 1 else ''}"
