"""Finds the way of one affine: *pull* asks the producers for it, *push* hands it to the readers.

All or nothing: a `Route` says what every operator on the way would do; a `Refusal` says where the way ends. A pulled
value must be asked for by every one of its uses, with the same affine; a pushed value must be taken by every use.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bnfold import carriers
from bnfold.bench import Bench
from bnfold.decision import Direction, Reason, Refusal
from bnfold.graph import Edit, Operator, PlacedAffine, Step, Value
from bnfold.sources import Source
from bnfold.views import BatchNorm


@dataclass
class Route:
    """What would happen if the affine went this way.

    Attributes:
        direction: "pull" or "push".
        into: The operators that absorb, in the order in which they were reached.
        through: The operators that pass it on.
        edits: What they would change.
        values: The values whose meaning would change.
    """

    direction: Direction
    into: list[Operator] = field(default_factory=list)
    through: list[Operator] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    values: set[Value] = field(default_factory=set)

    def took(self, operator: Operator, step: Step) -> None:
        """Note what `operator` would do."""
        (self.through if step.placed else self.into).append(operator)
        self.edits.extend(step.edits)


def pull(bench: Bench, source: Source) -> Route | Refusal:
    """The route from `source` to the producers of its input."""
    route = Route("pull")
    wanted: dict[Value, list[PlacedAffine]] = {bench.root(source.input): [source.placed]}
    edges = {bench.root(source.input): {(source.operators[0].index, 0)}}
    while wanted:
        value = max(wanted, key=lambda v: -1 if (p := bench.producer(v)) is None else p.index)
        step = _pull_through(bench, value, wanted.pop(value), edges[value])
        if isinstance(step, Refusal):
            return step
        producer = bench.producer(value)
        assert producer is not None
        route.took(producer, step)
        route.values.add(value)
        for position, placed in step.placed.items():
            if not placed.affine.is_identity:
                read = bench.root(producer.inputs[position])
                wanted.setdefault(read, []).append(placed)
                edges.setdefault(read, set()).add((producer.index, position))
    return route


def _pull_through(
    bench: Bench, value: Value, wanted: list[PlacedAffine], edges: set[tuple[int, int]]
) -> Step | Refusal:
    """What the producer of `value` answers, if the value may change at all."""
    if (refusal := bench.visible(value)) is not None:
        return refusal
    others = [u.operator.name for u in bench.uses(value) if (u.operator.index, u.position) not in edges]
    if others:
        return Refusal(Reason.VALUE_HAS_OTHER_READERS, value, f"read by {others[0]}{_more(others)}")
    if not all(placed.equals(wanted[0]) for placed in wanted):
        return Refusal(Reason.READERS_DISAGREE, value)
    producer = bench.producer(value)
    if producer is None:
        return Refusal(Reason.READS_MODEL_INPUT, value)
    if producer.outputs[0] != value:
        return Refusal(Reason.OPERATOR_IS_NOT_LINEAR, producer.name)
    return _excluded(bench, producer) or carriers.pull(producer, wanted[0], bench)


def _excluded(bench: Bench, operator: Operator) -> Refusal | None:
    """A BatchNorm that the caller wants to keep does not take in another one either."""
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
