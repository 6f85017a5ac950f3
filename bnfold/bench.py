"""The model as the folds so far have left it: pending constants over a read-only graph, and the BatchNorms taken out.

Nothing is written before the end. Constants are kept as the affines that an operator has absorbed, in order, and
multiplied out in float64 on demand, so that the stored number is rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.changes import Change, Fold, Merge
from bnfold.decision import Direction, Refusal
from bnfold.graph import (
    AbsorbInput,
    AbsorbOutput,
    Bounds,
    Edit,
    FoldGraph,
    Operator,
    PlacedAffine,
    SetAffine,
    SetBounds,
    SetConstant,
    Use,
    Value,
)
from bnfold.linear import LinearParams


class Bench:
    """Mutable; the engine's only state.

    Attributes:
        graph: The model, read-only.
        wanted: Which BatchNorms may change, by name.
        absorbed: What each linear operator has absorbed, in order.
        constants: New constant operands.
        affines: New affines of BatchNorms that stay.
        clamps: New bounds of clamps.
        budget: How much of what a BatchNorm costs the clamps on one route may cost more; see `bnfold.costs`.
        removed: The operators that were taken out, and the way their affine went.
        passes: Which input the output of a removed operator is equal to, where that is not the first; None for one
            whose output is gone as well.
        merged: Linear operators that took in parallel branches.
        reduced: What is left of BatchNorms that became an Add.
        folds: Each fold and each merge, in order.
    """

    def __init__(self, graph: FoldGraph, wanted: Callable[[str], bool] = lambda _name: True) -> None:
        self.graph = graph
        self.wanted = wanted
        self.absorbed: dict[int, tuple[AbsorbInput | AbsorbOutput, ...]] = {}
        self.constants: dict[int, Float64Array] = {}
        self.affines: dict[int, ChannelAffine] = {}
        self.clamps: dict[int, Bounds] = {}
        self.budget = 0.0
        self.removed: dict[int, Direction] = {}
        self.passes: dict[int, int | None] = {}
        self.merged: dict[int, Merge] = {}
        self.reduced: dict[int, PlacedAffine] = {}
        self.folds: list[Change] = []

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

    def bounds(self, operator: Operator) -> Bounds:
        """The bounds of a clamp as they stand."""
        pending = self.clamps.get(operator.index)
        return self.graph.bounds(operator) if pending is None else pending

    @property
    def spends(self) -> bool:
        """Whether a clamp may become dearer."""
        return self.budget > 0

    def linear_params(self, operator: Operator, further: tuple[AbsorbInput | AbsorbOutput, ...] = ()) -> LinearParams:
        """The constants of a linear operator after all that it has absorbed, and `further`."""
        merge = self.merged.get(operator.index)
        params = self.graph.linear_params(operator) if merge is None else merge.params
        return multiplied_out(params, (*self.absorbed.get(operator.index, ()), *further))

    def operator(self, index: int) -> Operator:
        """The operator as it stands."""
        merge = self.merged.get(index)
        return self.graph.operators[index] if merge is None else merge.into

    def root(self, value: Value) -> Value:
        """The value that `value` is equal to now that operators are taken out."""
        while (producer := self.graph.producer(value)) is not None and producer.index in self.removed:
            position = self.passes.get(producer.index, 0)
            assert position is not None
            value = producer.inputs[position]
        return value

    def producer(self, value: Value) -> Operator | None:
        """The operator that computes `value`."""
        found = self.graph.producer(self.root(value))
        return None if found is None else self.operator(found.index)

    def uses(self, value: Value) -> Iterator[Use]:
        """The edges from `value` to operators that are still there; those of a removed reader's output in its place."""
        for use in self.graph.uses(value):
            if use.operator.index not in self.removed:
                yield Use(self.operator(use.operator.index), use.position)
            elif self._passes_on(use):
                yield from self.uses(_first_output(use.operator))

    def _passes_on(self, use: Use) -> bool:
        """Whether the output of the removed reader is the value that it reads there."""
        return use.operator.index in self.removed and self.passes.get(use.operator.index, 0) == use.position

    def visible(self, value: Value) -> Refusal | None:
        """Why `value`, or what is now the same value, cannot change its meaning."""
        if (refusal := self.graph.visible(value)) is not None:
            return refusal
        readers = (use.operator for use in self.graph.uses(value) if self._passes_on(use))
        return next((r for op in readers if (r := self.visible(_first_output(op))) is not None), None)

    def is_measured(self, value: Value) -> bool:
        """Whether anything reads the shape of `value`, or of what is now the same value."""
        readers = (use.operator for use in self.graph.uses(value) if self._passes_on(use))
        return self.graph.is_measured(value) or any(self.is_measured(_first_output(op)) for op in readers)

    def is_settled(self, operator: Operator) -> bool:
        """Whether the operator is gone, or an Add is all that is left of it."""
        return operator.index in self.removed or operator.index in self.reduced

    def removed_below(self, value: Value) -> Iterator[int]:
        """The removed operators between `value` and the uses that `uses` names."""
        for use in self.graph.uses(value):
            if self._passes_on(use):
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
                case SetBounds(bounds=bounds):
                    self.clamps[index] = bounds
        if fold.left is None:
            self.removed.update((op.index, fold.direction) for op in fold.source.operators)
        else:
            self.reduced[fold.source.operators[0].index] = fold.left
        self.folds.append(fold)

    def merge(self, merge: Merge) -> None:
        """Let one branch take in the others."""
        self.merged[merge.into.index] = merge
        self.absorbed.pop(merge.into.index, None)
        self.removed.update((op.index, "merge") for op in (*merge.gone, *(op for op, _ in merge.sums)))
        self.passes.update((op.index, None) for op in merge.gone)
        self.passes.update((op.index, position) for op, position in merge.sums)
        self.folds.append(merge)


#: A bias that is this small beside what cancelled in it is what float64 lost there.
_LOST = 2.0**-50


def multiplied_out(params: LinearParams, absorbed: tuple[AbsorbInput | AbsorbOutput, ...]) -> LinearParams:
    """`params` after each of `absorbed`, in order, in float64; a bias that several cancel is 0, and not its noise."""
    found = _absorbing(params, absorbed)
    if len(absorbed) < 2:
        return found
    sizes = _absorbing(params.absolute(), tuple(replace(edit, affine=edit.affine.absolute()) for edit in absorbed))
    return LinearParams(found.weight, np.where(np.abs(found.bias) <= _LOST * sizes.bias, 0.0, found.bias))


def _absorbing(params: LinearParams, absorbed: tuple[AbsorbInput | AbsorbOutput, ...]) -> LinearParams:
    for edit in absorbed:
        at_output = isinstance(edit, AbsorbOutput)
        params = params.absorb_output(edit.affine) if at_output else params.absorb_input(edit.affine)
    return params


def _first_output(operator: Operator) -> Value:
    value = operator.outputs[0]
    assert value is not None
    return value
