"""The model as the folds so far have left it: pending constants over a read-only graph, and the BatchNorms taken out.

Nothing is written before the end. Constants are kept as the affines that an operator has absorbed, in order, and
multiplied out in float64 on demand, so that the stored number is rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.decision import Direction, Refusal
from bnfold.graph import (
    AbsorbInput,
    AbsorbOutput,
    Edit,
    FoldGraph,
    Operator,
    PlacedAffine,
    SetAffine,
    SetConstant,
    Use,
    Value,
)
from bnfold.linear import LinearParams
from bnfold.sources import Source


@dataclass(frozen=True, eq=False)
class Fold:
    """One source that was taken out.

    Attributes:
        source: What was taken out.
        direction: The way its affine went.
        into: The operators that absorbed it.
        through: The operators that passed it on.
        values: The values whose meaning it changed.
        beside: Further readers of values that changed, which see no difference.
        left: What stays in the source's place, a pure shift; None if nothing does.
        refusals: Why it stays.
    """

    source: Source
    direction: Direction
    into: tuple[Operator, ...]
    through: tuple[Operator, ...]
    values: frozenset[Value]
    beside: tuple[Operator, ...] = ()
    left: PlacedAffine | None = None
    refusals: tuple[Refusal, ...] = ()


class Bench:
    """Mutable; the engine's only state.

    Attributes:
        graph: The model, read-only.
        wanted: Which BatchNorms may change, by name.
        absorbed: What each linear operator has absorbed, in order.
        constants: New constant operands.
        affines: New affines of BatchNorms that stay.
        removed: The operators that were taken out, and the way their affine went.
        reduced: What is left of BatchNorms that became an Add.
        folds: Each fold that was taken, in order.
    """

    def __init__(self, graph: FoldGraph, wanted: Callable[[str], bool] = lambda _name: True) -> None:
        self.graph = graph
        self.wanted = wanted
        self.absorbed: dict[int, tuple[AbsorbInput | AbsorbOutput, ...]] = {}
        self.constants: dict[int, Float64Array] = {}
        self.affines: dict[int, ChannelAffine] = {}
        self.removed: dict[int, Direction] = {}
        self.reduced: dict[int, PlacedAffine] = {}
        self.folds: list[Fold] = []

    def constant(self, operator: Operator) -> Float64Array:
        """The constant operand as it stands."""
        pending = self.constants.get(operator.index)
        return self.graph.constant(operator) if pending is None else pending

    def affine(self, operator: Operator) -> ChannelAffine:
        """What a BatchNorm computes as it stands."""
        if operator.index in self.reduced:
            return self.reduced[operator.index].affine
        pending = self.affines.get(operator.index)
        return operator.view.affine if pending is None else pending  # type: ignore[union-attr]

    def linear_params(self, operator: Operator, further: tuple[AbsorbInput | AbsorbOutput, ...] = ()) -> LinearParams:
        """The constants of a linear operator after all that it has absorbed, and `further`."""
        return multiplied_out(self.graph.linear_params(operator), (*self.absorbed.get(operator.index, ()), *further))

    def root(self, value: Value) -> Value:
        """The value that `value` is equal to now that operators are taken out."""
        while (producer := self.graph.producer(value)) is not None and producer.index in self.removed:
            value = producer.inputs[0]
        return value

    def producer(self, value: Value) -> Operator | None:
        """The operator that computes `value`."""
        return self.graph.producer(self.root(value))

    def uses(self, value: Value) -> Iterator[Use]:
        """The edges from `value` to operators that are still there; those of a removed reader's output in its place."""
        for use in self.graph.uses(value):
            if use.operator.index in self.removed:
                yield from self.uses(_first_output(use.operator))
            else:
                yield use

    def visible(self, value: Value) -> Refusal | None:
        """Why `value`, or what is now the same value, cannot change its meaning."""
        if (refusal := self.graph.visible(value)) is not None:
            return refusal
        readers = (use.operator for use in self.graph.uses(value) if use.operator.index in self.removed)
        return next((r for op in readers if (r := self.visible(_first_output(op))) is not None), None)

    def is_settled(self, operator: Operator) -> bool:
        """Whether the operator is gone, or an Add is all that is left of it."""
        return operator.index in self.removed or operator.index in self.reduced

    def removed_below(self, value: Value) -> Iterator[int]:
        """The removed operators between `value` and the uses that `uses` names."""
        for use in self.graph.uses(value):
            if use.operator.index in self.removed:
                yield use.operator.index
                yield from self.removed_below(_first_output(use.operator))

    def apply(self, fold: Fold, edits: Iterable[Edit]) -> None:
        """Take the fold's source out, and make `edits`."""
        for edit in edits:
            index = edit.operator.index
            match edit:
                case AbsorbInput() | AbsorbOutput():
                    self.absorbed[index] = (*self.absorbed.get(index, ()), edit)
                case SetConstant(value=value):
                    self.constants[index] = np.asarray(value)
                case SetAffine(affine=affine):
                    self.affines[index] = affine
        if fold.left is None:
            self.removed.update((op.index, fold.direction) for op in fold.source.operators)
        else:
            self.reduced[fold.source.operators[0].index] = fold.left
        self.folds.append(fold)


def multiplied_out(params: LinearParams, absorbed: tuple[AbsorbInput | AbsorbOutput, ...]) -> LinearParams:
    """`params` after each of `absorbed`, in order, in float64."""
    for edit in absorbed:
        at_output = isinstance(edit, AbsorbOutput)
        params = params.absorb_output(edit.affine) if at_output else params.absorb_input(edit.affine)
    return params


def _first_output(operator: Operator) -> Value:
    value = operator.outputs[0]
    assert value is not None
    return value
