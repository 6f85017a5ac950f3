"""The way of one affine, and the search onward: *push* hands it to the readers.

All or nothing: a `Route` says what every operator on the way would do; a `Refusal` says where the way ends. A pushed
value must be taken by every use.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from bnfold import carriers
from bnfold.bench import Bench
from bnfold.decision import Direction, Reason, Refusal
from bnfold.graph import Edit, Operator, PlacedAffine, Step, Use, Value
from bnfold.sources import Source
from bnfold.views import BatchNorm

#: What is seen at the inputs of operators: by the operator's index and the input's position.
Seen: TypeAlias = dict[int, dict[int, PlacedAffine]]


@dataclass
class Route:
    """What would happen if the affine went this way.

    Attributes:
        direction: "pull" or "push".
        into: The operators that absorb, in the order in which they were reached.
        through: The operators that pass it on.
        beside: Further readers of values that change: they pick none of what changes in it, or undo it.
        undone: What is sent to readers that undo a change of their value; empty where none has to.
        edits: What they would change.
        values: The values whose meaning would change.
    """

    direction: Direction
    into: list[Operator] = field(default_factory=list)
    through: list[Operator] = field(default_factory=list)
    beside: list[Operator] = field(default_factory=list)
    undone: list[PlacedAffine] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    values: set[Value] = field(default_factory=set)

    def took(self, operator: Operator, step: Step) -> None:
        """Note what `operator` would do."""
        (self.through if step.placed else self.into).append(operator)
        self.edits.extend(step.edits)

    def fork(self) -> Route:
        """A copy, to be continued in another way."""
        return self.joined(Route(self.direction))

    def joined(self, other: Route) -> Route:
        """This route and then `other`, in this one's direction."""
        return Route(
            self.direction,
            [*self.into, *other.into],
            [*self.through, *other.through],
            [*self.beside, *other.beside],
            [*self.undone, *other.undone],
            [*self.edits, *other.edits],
            self.values | other.values,
        )


def drop(bench: Bench, source: Source) -> Route | Refusal:
    """The route of an affine that is the identity: its readers read its input, under a name that the caller knows."""
    if bench.visible(source.output) is None:
        return Route("push")
    if bench.producer(source.input) is None:  # both names are the caller's
        return Refusal(Reason.READS_MODEL_INPUT, source.input)
    return bench.visible(source.input) or Route("pull")


def push(bench: Bench, source: Source) -> Route | Refusal:
    """The route from `source` to the readers of its output."""
    seen: Seen = {}
    if (refusal := hand_on(bench, source.output, source.placed, seen)) is not None:
        return refusal
    return send(bench, seen) if seen else Refusal(Reason.NOTHING_READS_IT, source.output)


def send(bench: Bench, seen: Seen) -> Route | Refusal:
    """The route of affines that are on their way already."""
    route, seen = Route("push"), dict(seen)
    while seen:
        index = min(seen)
        operator = bench.operator(index)
        step = excluded(bench, operator) or carriers.push(operator, seen.pop(index), bench)
        if isinstance(step, Refusal):
            return step
        route.took(operator, step)
        for position, placed in step.placed.items():
            if placed.affine.is_identity:
                continue
            value = operator.outputs[position]
            assert value is not None
            route.values.add(value)
            if (refusal := hand_on(bench, value, placed, seen)) is not None:
                return refusal
    return route


def hand_on(bench: Bench, value: Value, placed: PlacedAffine, seen: Seen) -> Refusal | None:
    """Every use of `value` sees `placed`; a value that the caller or a body sees cannot be pushed past."""
    if (refusal := bench.visible(value)) is not None:
        return refusal
    see(bench.uses(value), placed, seen)
    return None


def see(uses: Iterable[Use], placed: PlacedAffine, seen: Seen) -> None:
    """Each of `uses` sees `placed`."""
    for use in uses:
        seen.setdefault(use.operator.index, {})[use.position] = placed


def excluded(bench: Bench, operator: Operator) -> Refusal | None:
    """What takes in nothing: a BatchNorm that the caller wants to keep, and an Add that is left of one."""
    if operator.index in bench.reduced:
        return Refusal(Reason.OPERATOR_HAS_NO_RULE, operator.name, "an Add that is left of a BatchNorm")
    if isinstance(operator.view, BatchNorm) and not bench.wanted(operator.name):
        return Refusal(Reason.EXCLUDED_BY_CALLER, operator.name)
    return None
