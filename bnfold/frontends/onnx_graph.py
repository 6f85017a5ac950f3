"""The graphs of an ONNX model, each as a `FoldGraph`: operators as views, values by their names, uses as edges.

A value that a control-flow body reads, and an output of the model, are uses that no rule can serve. In a body, what
comes in and what goes out is such a value as well: nothing moves across the border of a body.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from bnfold.affine import Float64Array
from bnfold.decision import Kept, Reason, Refusal, Subject
from bnfold.errors import ModelError
from bnfold.frontends.onnx_constants import Constants
from bnfold.frontends.onnx_context import (
    LEFT,
    Context,
    asks_for_shape,
    barrier,
    input_at,
    is_standard,
    marked,
    name_of,
)
from bnfold.frontends.onnx_linear import ConvSite, LinearSite
from bnfold.frontends.onnx_read_clamp import Stored, stored_bounds
from bnfold.frontends.onnx_read_linear import ReadLinear
from bnfold.frontends.onnx_read_pointwise import constant_position
from bnfold.frontends.onnx_readers import Reader, read
from bnfold.frontends.onnx_scopes import Path, graph_at, values_of
from bnfold.frontends.onnx_shapes import Shapes
from bnfold.graph import Bounds, Operator, Use, Value
from bnfold.linear import LinearParams
from bnfold.views import Clamp, ConstantOperand, View
from bnfold.window_views import Pad

#: The oldest version of the standard operators that the rules were checked against.
OLDEST_OPSET = 7

#: Operators whose further inputs say what shape the output has.
_SHAPED_BY_INPUTS = frozenset("Expand Pad Reshape Resize Slice Split Squeeze Tile Unsqueeze".split())

#: Longer lists are no shapes.
_MOST_BOUNDS = 64


def open_context(model: ir.Model, *, keep_overridable: bool = False) -> Context:
    """What all graphs of a model share.

    Raises:
        ModelError: The model's operator set is older than 7, or a node lacks an input.
    """
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", OLDEST_OPSET))
    if opset < OLDEST_OPSET:
        raise ModelError(
            f"operator set {opset} is too old, the oldest that bnfold reads is {OLDEST_OPSET}",
            remedy="convert the model with onnx.version_converter",
        )
    for graph in model.graphs():
        _check_inputs(graph, opset)
    shapes = Shapes(model)
    constants = Constants(model, shapes, keep_overridable=keep_overridable)
    bounds, known = dict(_bounds(model, constants)), 0
    while len(bounds) > known:  # sizes that are proven now may make further bounds constant
        known = len(bounds)
        shapes = Shapes(model, constants=bounds)
        constants = Constants(model, shapes, keep_overridable=keep_overridable)
        bounds = dict(_bounds(model, constants))
    return Context(shapes, constants, opset, frozenset(model.functions))


def _bounds(model: ir.Model, constants: Constants) -> Iterator[tuple[ir.Value, npt.NDArray[Any]]]:
    """The constant integers, computed by nodes, on which the shape of an operator's output hangs."""
    for node in model.graph.all_nodes():
        if node.op_type not in _SHAPED_BY_INPUTS or not is_standard(node):
            continue
        for value in node.inputs[1:]:
            made = None if value is None else value.producer()
            array = None if made is None or made.op_type == "Constant" else constants.array(value)
            if value is not None and array is not None and array.dtype.kind == "i" and array.size <= _MOST_BOUNDS:
                yield value, array


class OnnxGraph:
    """One graph of a model, read-only.

    Attributes:
        model: The model.
        path: The way from the main graph, which is () itself, to this one.
        graph: The graph.
        operators: All operators in topological order; a bias Add is part of its MatMul.
        unreachable: Of the main graph: BatchNorms in functions.
        sites: Where the constants of each linear operator stand.
        nodes: The node of each operator (the first, for a MatMul with its Add).

    Args:
        path: Which graph.
        keep_overridable: Whether initializers that are also graph inputs count as variable.
        readers: The caller's own readers, by domain ("" for the standard operators) and operator type.
        context: What the graphs of the model share, if it is known already.

    Raises:
        ModelError: The model's operator set is older than 7, or a node lacks an input.
    """

    def __init__(
        self,
        model: ir.Model,
        path: Path = (),
        *,
        keep_overridable: bool = False,
        readers: Mapping[tuple[str, str], Reader] | None = None,
        context: Context | None = None,
    ) -> None:
        self.model = model
        self.path = path
        self.graph = graph_at(model, path)
        self._readers = readers or {}
        self.context = context or open_context(model, keep_overridable=keep_overridable)
        self.sites: dict[int, LinearSite] = {}
        self.nodes: list[ir.Node] = []
        self.operators: list[Operator] = []
        self._read_all()
        self._producers = {v: op for op in self.operators for v in op.outputs if v is not None}
        self._uses: dict[Value, list[Use]] = {}
        self._measured: set[Value] = set()
        for operator in self.operators:
            if asks_for_shape(self.nodes[operator.index]):
                self._measured.update(operator.inputs)
                continue  # no affine changes a shape
            for position, value in enumerate(operator.inputs):
                self._uses.setdefault(value, []).append(Use(operator, position))
        self._visible = dict(self._visible_values())
        self.unreachable: Sequence[Kept] = () if path else tuple(_unreachable(model))

    def producer(self, value: Value) -> Operator | None:
        """The operator that computes `value`; None for an input of the model."""
        return self._producers.get(value)

    def uses(self, value: Value) -> Sequence[Use]:
        """Every edge from `value` to an operator that reads its numbers."""
        return self._uses.get(value, ())

    def visible(self, value: Value) -> Refusal | None:
        """Why `value` must keep its meaning: an output, captured by a body, or a constant."""
        return self._visible.get(value)

    def is_measured(self, value: Value) -> bool:
        """Whether a Shape or Size of this graph reads `value`; in the graphs of bodies it is captured."""
        return value in self._measured

    def linear_params(self, operator: Operator) -> LinearParams:
        """The stored constants of a linear operator, in float64."""
        return self.sites[operator.index].read()

    def spans(self) -> dict[int, tuple[int, int]]:
        """For each convolution that takes any image size: `2*k + s` of its largest axis, and how many axes it has."""
        sites = {i: site for i, site in self.sites.items() if isinstance(site, ConvSite)}
        return {i: (site.span, site.weight.ndim - 2) for i, site in sites.items() if site.span}

    def constant(self, operator: Operator) -> Float64Array:
        """The stored constant of an operator with a constant operand, or of a Pad."""
        if isinstance(operator.view, Pad):
            return np.asarray(operator.view.value, np.float64)
        node = self.nodes[operator.index]
        array = self.context.constants.array(node.inputs[self.constant_position(operator)])
        return np.asarray(array, np.float64)

    def bounds(self, operator: Operator) -> Bounds:
        """The stored bounds of a clamp."""
        return self.stored_bounds(operator).bounds

    def stored_bounds(self, operator: Operator) -> Stored:
        """The bounds of a clamp, and how they are stored."""
        return stored_bounds(self.nodes[operator.index], self.context)

    def constant_position(self, operator: Operator) -> int:
        """Which input of the node is the constant operand."""
        position = constant_position(self.nodes[operator.index], self.context)
        assert position is not None
        return position

    def _read_all(self) -> None:
        biases: set[int] = set()
        left = {name for name in marked(self.model, LEFT) if isinstance(name, str)}
        for node in self.graph:
            if id(node) in biases:
                continue
            what = read(node, self.context, self._readers)
            if any(value.name in left for value in node.outputs):
                what = barrier(node, Reason.OPERATOR_HAS_NO_RULE, "an earlier fold left it of a BatchNorm")
            if isinstance(what, ReadLinear):
                biases.update(id(n) for n in what.site.nodes[1:])
                self.sites[len(self.operators)] = what.site
                self._append(node, what.view, [what.data], what.site.nodes[-1])
            else:
                self._append(node, what, self._inputs(node, what), node)

    def _append(self, node: ir.Node, view: View, inputs: list[ir.Value], last: ir.Node) -> None:
        shapes = self.context.shapes
        operator = Operator(
            len(self.operators),
            name_of(node),
            node.op_type,
            view,
            tuple(v.name or "" for v in inputs),
            tuple(v.name or None for v in last.outputs),
            tuple(shapes.shape(v) for v in inputs),
            tuple(shapes.shape(v) for v in last.outputs),
            shapes.dtype(last.outputs[0]),
        )
        self.operators.append(operator)
        self.nodes.append(node)

    def _inputs(self, node: ir.Node, view: View) -> list[ir.Value]:
        """The data first, then whatever else is no constant."""
        present = [v for v in node.inputs if v is not None]
        if isinstance(view, ConstantOperand | Clamp):
            return [v for v in present if self.context.constants.array(v) is None]
        first = input_at(node, 0)
        rest = [v for v in node.inputs[1:] if v is not None]
        if node.op_type == "Concat" or first is None:
            return present
        return [first, *(v for v in rest if self.context.constants.array(v) is None)]

    def _visible_values(self) -> Iterator[tuple[Value, Refusal]]:
        for name, value in values_of(self.graph).items():
            if (reason := self._why_visible(value)) is not None:
                yield name, Refusal(reason, name)

    def _why_visible(self, value: ir.Value) -> Reason | None:
        fixed = value.is_initializer() and not value.is_graph_input()
        if value.graph is not self.graph or (self.path and value.is_graph_input()):
            return (
                Reason.IS_CONSTANT if fixed or self.context.constants.array(value) is not None else Reason.ENTERS_BODY
            )
        if value.is_graph_output():
            return Reason.LEAVES_BODY if self.path else Reason.IS_MODEL_OUTPUT
        if any(use.node.graph is not self.graph for use in value.uses()):
            return Reason.CAPTURED_BY_SUBGRAPH
        return Reason.IS_CONSTANT if fixed else None


def _check_inputs(graph: ir.Graph, opset: int) -> None:
    """Standard operators must have their inputs; nothing else about a node is promised to the readers."""
    for node in graph:
        if not is_standard(node) or not onnx.defs.has(node.op_type):
            continue
        try:
            needed = onnx.defs.get_schema(node.op_type, opset).min_input
        except onnx.defs.SchemaError:  # not in this operator set; onnxruntime will say so
            continue
        if len(node.inputs) < needed:
            what = f"{node.op_type} has {len(node.inputs)} inputs and needs {needed}"
            raise ModelError(what, where=name_of(node), remedy="export the model again")


def _unreachable(model: ir.Model) -> Iterator[Kept]:
    for function in model.functions.values():
        for inner in (function.graph, *function.graph.subgraphs()):
            yield from _kept_in(inner, Reason.INSIDE_FUNCTION, f"{function.domain}.{function.name}")


def _kept_in(graph: ir.Graph, reason: Reason, where: str) -> Iterator[Kept]:
    for node in graph:
        if node.op_type == "BatchNormalization" and is_standard(node):
            gamma = node.inputs[1]
            known = gamma is not None and gamma.const_value is not None
            channels = gamma.const_value.size if known and gamma is not None and gamma.const_value is not None else 0
            yield Kept(Subject(name_of(node), node.op_type, channels, True), (Refusal(reason, where),))
