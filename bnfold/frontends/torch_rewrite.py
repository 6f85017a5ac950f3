"""Writes a fold plan into the graph of an exported program, where every kind of change has a place.

Constants keep their names where nothing else reads them. What was taken out is gone, and so is what only it read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.bench import Bench
from bnfold.changes import Change, Merge
from bnfold.folding import FoldPlan
from bnfold.frontends.torch_aliases import unshare
from bnfold.frontends.torch_context import LEFT, base_name, path_of
from bnfold.frontends.torch_graph import TorchGraph
from bnfold.frontends.torch_program import ProgramEditor
from bnfold.frontends.torch_program_constants import Numbers
from bnfold.frontends.torch_read_batchnorm import BATCHNORMS
from bnfold.frontends.torch_read_linear import PLACES
from bnfold.frontends.torch_read_pointwise import constant_argument
from bnfold.frontends.torch_rewrite_nodes import add_parts, set_bounds, set_geometry, set_operand
from bnfold.graph import Operator
from bnfold.leftover_forms import Leftover, Part
from bnfold.linear import LinearParams
from bnfold.sources import Source
from bnfold.views import BatchNorm, Clamp, ConstantOperand
from bnfold.window_views import Pad

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node


def rewrite(program: ExportedProgram, graph: TorchGraph, plan: FoldPlan, *, is_wide: bool = False) -> ExportedProgram:
    """The program as `plan` leaves it; `program` stays as it is, and nothing of it is shared with the result.

    Args:
        program: The program that `graph` was read from.
        graph: What was planned for: `TorchGraph(None, captured)`.
        plan: The plan.
        is_wide: Whether new numbers are stored in float64, not rounded.
    """
    return rewritten(program, graph, plan, is_wide=is_wide)[0]


def rewritten(
    program: ExportedProgram, graph: TorchGraph, plan: FoldPlan, *, is_wide: bool = False
) -> tuple[ExportedProgram, dict[str, str]]:
    """As `rewrite`; and the values that have the same meaning in both programs, by name."""
    writer = _Writer(graph, plan.bench, ProgramEditor(program, is_wide=is_wide))
    writer.store(plan.leftovers)
    writer.take_out()
    for leftover in plan.leftovers:
        writer.leave(leftover)
    writer.editor.erase(writer.dead)
    unshare(writer.editor.graph, {writer.editor.nodes[node] for node in graph.aliases.writers})
    changed = {value for change in plan.bench.folds for value in _changed(change)}
    changed |= {value for left in plan.leftovers for value in _inner(left.source)}
    result, left = writer.editor.finish(), set(writer.editor.graph.nodes)
    values = writer.editor.values
    return result, {old: new.name for old, new in values.items() if old not in changed and new in left}


@dataclass(eq=False)
class _Writer:
    graph: TorchGraph
    bench: Bench
    editor: ProgramEditor
    dead: list[Node] = field(default_factory=list)

    def store(self, leftovers: tuple[Leftover, ...]) -> None:
        """Every constant that changed, and windows; what is about to go is left as it is."""
        bench = self.bench
        gone = {*bench.removed, *(op.index for left in leftovers for op in left.source.operators)}
        for index, merge in bench.merged.items():
            self._widen(index, merge)
        for index in sorted({*bench.absorbed, *bench.merged} - set(bench.removed)):
            self._set_linear(index, bench.linear_params(self.graph.operators[index]))
        for index, left in sorted(bench.reduced.items()):
            operator = self.graph.operators[index]
            assert operator.input_shapes[0] is not None
            shift = left.arrays(len(operator.input_shapes[0]))[1]
            part = Part("Add", (shift.reshape(shift.shape[left.axes[0] :]),))
            self._replace(operator, (part,), self._stem(index, ""))
        for index in sorted(set(bench.constants) - gone):
            self._set_constant(index, bench.constants[index])
        for index in sorted(set(bench.affines) - gone - set(bench.reduced)):
            self._set_batchnorm(index, bench.affines[index])
        for index in sorted(set(bench.clamps) - gone):
            self._set_clamp(index)

    def leave(self, leftover: Leftover) -> None:
        """The leftover takes the BatchNorm's place, and the rest of its source is in it."""
        for place, operator in enumerate(leftover.source.operators):
            if place == leftover.place:
                self._replace(operator, leftover.parts, self._stem(operator.index, LEFT))
            else:
                self._bypass(operator, 0)

    def take_out(self) -> None:
        """What was taken out goes; what is left of branches that went with a merge as well."""
        for index in sorted(self.bench.removed):
            position = self.bench.passes.get(index, 0)
            if position is not None:
                self._bypass(self.graph.operators[index], position)
            else:
                self.dead += [self._first(index), self._last(index)]

    def _bypass(self, operator: Operator, position: int) -> None:
        data, values = self.editor.values[operator.inputs[position]], self.editor.values
        self.editor.hand_over(self._last(operator.index), data)
        self.dead += [self._first(operator.index), self._last(operator.index)]
        values[_output(operator)] = data

    def _first(self, index: int) -> Node:
        return self.editor.nodes[self.graph.nodes[index][0]]

    def _last(self, index: int) -> Node:
        return self.editor.nodes[self.graph.nodes[index][1]]

    def _stem(self, index: int, name: str) -> str:
        """What a new constant is called: after the module, or else after the node."""
        node = self.graph.nodes[index][0]
        path = path_of(node)
        return f"{path}.{name}" if path else f"{node.name}_{name}"

    def _replace(self, operator: Operator, parts: tuple[Part, ...], stem: str) -> None:
        """Put `parts` in the place of a BatchNorm."""
        last, data = self._last(operator.index), self.editor.values[operator.inputs[0]]
        assert operator.dtype is not None
        new = add_parts(self.editor, parts, (data, last), Numbers(np.zeros(()), operator.dtype, stem))
        self.editor.hand_over(last, new)
        self.editor.values[_output(operator)] = new

    def _widen(self, index: int, merge: Merge) -> None:
        """A merged operator gets its window; what it computes has the shape of what it takes the place of."""
        node = self._first(index)
        set_geometry(self.editor, node, merge.geometry, merge.params.weight.shape[0])
        node.meta["val"] = self._last(merge.sums[-1][0].index).meta["val"]

    def _set_linear(self, index: int, params: LinearParams) -> None:
        site, node = self.graph.linears[index], self._first(index)
        dtype = self.graph.operators[index].view.dtype  # type: ignore[union-attr]
        weight, bias = PLACES.get(base_name(self.graph.nodes[index][0]), ("weight", "bias"))
        like, editor = self.editor.argument(node, weight), self.editor
        editor.set_constant(
            node, weight, Numbers(site.layout.stored(params.weight), dtype, self._stem(index, "weight"))
        )
        if bias and (site.tensors[1] is not None or params.bias.any()):
            editor.set_constant(node, bias, Numbers(params.bias, dtype, self._stem(index, "bias")), like)
        elif params.bias.any():
            part = Part("Add", (params.bias,))
            new = add_parts(editor, (part,), (node, node), Numbers(params.bias, dtype, self._stem(index, "")))
            editor.hand_over(node, new)
            editor.values[self.graph.nodes[index][0].name] = new

    def _set_batchnorm(self, index: int, affine: ChannelAffine) -> None:
        """Gamma and beta with which the statistics, that stay, give `affine`; or the factor and the summand."""
        view = self.graph.operators[index].view
        assert isinstance(view, BatchNorm)
        node, last = self._first(index), self._last(index)
        if base_name(node) not in BATCHNORMS:
            column = (affine.channels, *(1,) * (len(self.graph.operators[index].input_shapes[0] or ()) - 2))
            for place, values, name in ((node, affine.scale, "scale"), (last, affine.shift, "shift")):
                numbers = Numbers(values.reshape(column), view.dtype, self._stem(index, name))
                set_operand(self.editor, place, "other", numbers)
            return
        for name, values in zip(("weight", "bias"), view.stored(affine), strict=True):
            self.editor.set_constant(node, name, Numbers(values, view.dtype, self._stem(index, name)))

    def _set_constant(self, index: int, values: Float64Array) -> None:
        node, old, view = self._first(index), self.graph.nodes[index][0], self.graph.operators[index].view
        match view:
            case ConstantOperand(dtype=dtype):
                place = constant_argument(old, self.graph.context)
                set_operand(self.editor, node, place, Numbers(values, dtype, self._stem(index, "constant")))
            case Pad(dtype=dtype):
                self.editor.set_argument(node, "value", self.editor.constants.number(values, dtype))

    def _set_clamp(self, index: int) -> None:
        operator = self.graph.operators[index]
        bounds, view = self.bench.clamps[index], operator.view
        assert isinstance(view, Clamp)
        if not bounds.equals(self.graph.bounds(operator)):
            set_bounds(self.editor, self._first(index), bounds, view.dtype, self._stem(index, ""))


def _changed(change: Change) -> set[str]:
    """The values that are something else than before, or nothing."""
    if isinstance(change, Merge):
        return {*change.values, *(value for op in change.gone for value in op.outputs if value)}
    last = {change.source.output} if change.direction == "push" and not change.is_drop else set()
    return {*change.values, *_inner(change.source), *last}


def _inner(source: Source) -> set[str]:
    """What is between the operators of a source."""
    return {value for operator in source.operators[:-1] for value in operator.outputs if value}


def _output(operator: Operator) -> str:
    value = operator.outputs[0]
    assert value is not None
    return value
