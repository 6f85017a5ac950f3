"""Finds the way of one affine: *pull* asks the producers for it, *push* hands it to the readers.

All or nothing: a `Route` says what every operator on the way would do; a `Refusal` says where the way ends. A pulled
value must be asked for by every one of its uses, with the same affine; a pushed value must be taken by every use.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bnfold import carriers
from bnfold.bench import Bench
from bnfold.decision import Direction, Reason, Refusal
from bnfold.graph import Edit, Operator, PlacedAffine, Step, Use, Value
from bnfold.sources import Source
from bnfold.views import BatchNorm
from bnfold.window_views import Select

#: How many values a pull looks at before it gives up; only nested sums of variables come near.
MAX_STEPS = 1024


@dataclass
class Route:
    """What would happen if the affine went this way.

    Attributes:
        direction: "pull" or "push".
        into: The operators that absorb, in the order in which they were reached.
        through: The operators that pass it on.
        beside: Further readers of a value that changes, which pick none of what changes in it.
        edits: What they would change.
        values: The values whose meaning would change.
    """

    direction: Direction
    into: list[Operator] = field(default_factory=list)
    through: list[Operator] = field(default_factory=list)
    beside: list[Operator] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    values: set[Value] = field(default_factory=set)

    def took(self, operator: Operator, step: Step) -> None:
        """Note what `operator` would do."""
        (self.through if step.placed else self.into).append(operator)
        self.edits.extend(step.edits)


@dataclass
class _Search:
    """A pull that is under way: what is asked of which value, by which edges, and the route so far."""

    route: Route
    wanted: dict[Value, list[PlacedAffine]]
    edges: dict[Value, set[tuple[int, int]]]

    def fork(self) -> _Search:
        """The same search, to be continued in another way."""
        old = self.route
        route = Route("pull", [*old.into], [*old.through], [*old.beside], [*old.edits], {*old.values})
        wanted = {value: list(placed) for value, placed in self.wanted.items()}
        return _Search(route, wanted, {value: set(edges) for value, edges in self.edges.items()})

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


def pull(bench: Bench, source: Source) -> Route | Refusal:
    """The route from `source` to the producers of its input; where there are several ways, the first that is legal."""
    start = bench.root(source.input)
    edges = {(source.operators[0].index, 0)}
    searches = [_Search(Route("pull"), {start: [source.placed]}, {start: edges})]
    refusals: list[Refusal] = []
    steps = 0
    while searches and steps < MAX_STEPS:
        search, steps = searches.pop(), steps + 1
        if not search.wanted:
            return search.route
        ways = _ways(bench, search)
        if isinstance(ways, Refusal):
            refusals.append(ways)
        else:
            searches += reversed(ways)
    return Refusal(Reason.TOO_MANY_WAYS, start) if searches else refusals[0]


def _ways(bench: Bench, search: _Search) -> list[_Search] | Refusal:
    """How the search can go on at the last value that is asked for anything."""
    value = max(search.wanted, key=lambda v: -1 if (p := bench.producer(v)) is None else p.index)
    wanted = search.wanted.pop(value)
    beside = _beside(bench, value, wanted, search.edges[value])
    if isinstance(beside, Refusal):
        return beside
    search.route.beside += beside
    producer = bench.producer(value)
    if producer is None:
        return Refusal(Reason.READS_MODEL_INPUT, value)
    answer = _excluded(bench, producer) or carriers.pull(producer, wanted[0], bench, producer.outputs.index(value))
    if isinstance(answer, Refusal):
        return answer
    steps = answer if isinstance(answer, tuple) else (answer,)
    return [search.fork().went(bench, value, producer, step) for step in steps]


def _beside(
    bench: Bench, value: Value, wanted: list[PlacedAffine], edges: set[tuple[int, int]]
) -> list[Operator] | Refusal:
    """The readers that are not on the way and see no difference, if `value` may change at all."""
    if (refusal := bench.visible(value)) is not None:
        return refusal
    if not all(placed.equals(wanted[0]) for placed in wanted):
        return Refusal(Reason.READERS_DISAGREE, value)
    others = [use for use in bench.uses(value) if (use.operator.index, use.position) not in edges]
    names = [use.operator.name for use in others if not _is_untouched(bench, use, wanted[0])]
    if names:
        return Refusal(Reason.VALUE_HAS_OTHER_READERS, value, f"read by {names[0]}{_more(names)}")
    return [use.operator for use in others]


def _is_untouched(bench: Bench, use: Use, placed: PlacedAffine) -> bool:
    """Whether the reader picks only channels on which the affine is the identity."""
    if not isinstance(use.operator.view, Select):
        return False
    step = carriers.push(use.operator, {use.position: placed}, bench)
    return isinstance(step, Step) and all(p.affine.is_identity for p in step.placed.values())


def _excluded(bench: Bench, operator: Operator) -> Refusal | None:
    """What takes in nothing: a BatchNorm that the caller wants to keep, and an Add that is left of one."""
    if operator.index in bench.reduced:
        return Refusal(Reason.OPERATOR_HAS_NO_RULE, operator.name, "an Add that is left of a BatchNorm")
    if isinstance(operator.view, BatchNorm) and not bench.wanted(operator.name):
        return Refusal(Reason.EXCLUDED_BY_CALLER, operator.name)
    return None


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def push(bench: Bench, source: Source) -> Route | Refusal:
    """The route from `source` to the readers of its output."""
    route = Route("push")
    seen: dict[int, dict[int, PlacedAffine]] = {}
    if (refusal := _hand_on(bench, source.output, source.placed, seen)) is not None:
        return refusal
    if not seen:
        return Refusal(Reason.NOTHING_READS_IT, source.output)
    while seen:
        index = min(seen)
        operator = bench.graph.operators[index]
        step = _excluded(bench, operator) or carriers.push(operator, seen.pop(index), bench)
        if isinstance(step, Refusal):
            return step
        route.took(operator, step)
        for position, placed in step.placed.items():
            value = operator.outputs[position]
            assert value is not None
            route.values.add(value)
            if (refusal := _hand_on(bench, value, placed, seen)) is not None:
                return refusal
    return route


def _hand_on(
    bench: Bench, value: Value, placed: PlacedAffine, seen: dict[int, dict[int, PlacedAffine]]
) -> Refusal | None:
    """Every use of `value` sees `placed`; a value that the caller or a body sees cannot be pushed past."""
    if (refusal := bench.visible(value)) is not None:
        return refusal
    for use in bench.uses(value):
        seen.setdefault(use.operator.index, {})[use.position] = placed
    return None
