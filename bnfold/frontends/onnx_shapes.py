"""Shapes and dtypes of every value, inferred afresh: recorded value_info may be stale, and proves nothing.

Sizes that the model leaves anonymous at its inputs get a symbol each, so that inference can follow them; what enters a
body gets symbols of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from bnfold.frontends.onnx_body_shapes import anonymous, bring_in_constants, doubt, enter_bodies
from bnfold.frontends.onnx_scopes import own_values, rename_alone, values_of
from bnfold.graph import Shape

#: Bodies nested deeper than this are not followed.
_DEPTH = 8


class KnownShapes(Protocol):
    """Whoever knows shapes and dtypes: `Shapes`, or `RunShapes` at given input sizes."""

    def shape(self, value: ir.Value | None) -> Shape | None:
        """Sizes, symbols and unknowns; None if the rank is unknown."""

    def dtype(self, value: ir.Value | None) -> np.dtype[Any] | None:
        """The NumPy (or ml_dtypes) dtype; None if unknown or not a tensor's."""


class Shapes:
    """What is known about the values of one model, in its main graph and in the bodies of its control flow."""

    def __init__(
        self,
        model: ir.Model,
        sizes: Mapping[str, tuple[int, ...]] | None = None,
        constants: Mapping[ir.Value, npt.NDArray[Any]] | None = None,
    ) -> None:
        """Infer.

        Args:
            model: The model; not changed.
            sizes: Shapes to assume for inputs, by name, and then for what enters a body first.
            constants: What is known to be constant though nodes compute it; onnx's inference follows few of them.
        """
        probe = model.clone()
        self._values = dict(_pairs(model, probe))
        for i, (value, array) in enumerate((constants or {}).items()):
            self._values[value].replace_all_uses_with(_initializer(probe.graph, f"bnfold_constant{i}", array))
        bring_in_constants(probe)
        _tell_apart(probe)
        for i, value in enumerate(probe.graph.inputs):
            given = (sizes or {}).get(value.name or "")
            value.shape = _named(value.shape, f"input{i}") if given is None else ir.Shape(given)
        for k, body in enumerate(probe.graph.subgraphs()):
            for i, value in enumerate(body.inputs):
                # One round of a loop may see another size than the next, or than a symbol means outside.
                value.shape = None if value.shape is None else anonymous(value.shape, f"body{k}_input{i}")
        _infer(probe)
        for _ in range(_DEPTH):
            if not enter_bodies(probe, fixed=sizes is not None):
                break
            _infer(probe)
        while sizes is None and doubt(probe):
            _infer(probe)
        self._main = values_of(model.graph)

    def shape(self, value: ir.Value | None) -> Shape | None:
        """Sizes, symbols (equal symbols are equal sizes) and unknowns; None if the rank is unknown."""
        known = None if value is None else self._values.get(value)
        return None if known is None else _shape(known)

    def by_name(self, name: str) -> Shape | None:
        """As `shape`, for the value of the main graph called `name`."""
        return self.shape(self._main.get(name))

    def named(self, graph: ir.Graph) -> dict[str, Shape]:
        """The shapes that are known of the values that `graph` computes or reads, by name."""
        found = ((name, self.shape(value)) for name, value in values_of(graph).items())
        return {name: shape for name, shape in found if shape is not None}

    def rank(self, value: ir.Value | None) -> int | None:
        """The number of axes; None if unknown."""
        shape = self.shape(value)
        return None if shape is None else len(shape)

    def dtype(self, value: ir.Value | None) -> np.dtype[Any] | None:
        """The NumPy (or ml_dtypes) dtype; None if unknown or not a tensor's."""
        known = None if value is None else self._values.get(value)
        if known is None or known.dtype is None:
            return None
        return known.dtype.numpy() if known.dtype in _NUMERIC else None


_NUMERIC = frozenset(
    (
        ir.DataType.FLOAT,
        ir.DataType.DOUBLE,
        ir.DataType.FLOAT16,
        ir.DataType.BFLOAT16,
        ir.DataType.INT8,
        ir.DataType.UINT8,
        ir.DataType.INT16,
        ir.DataType.UINT16,
        ir.DataType.INT32,
        ir.DataType.INT64,
        ir.DataType.UINT32,
        ir.DataType.UINT64,
        ir.DataType.BOOL,
    )
)


def _initializer(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    tensor = ir.Tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _infer(model: ir.Model) -> None:
    """Infer afresh, again after each ConvTranspose at which onnx stops half-way.

    Where `output_shape` is smaller than the input it lists the axes before that one only, and claims a wrong rank.
    """
    stopped = True
    while stopped:
        _forget(model)
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
        stopped = False
        for node in model.graph.all_nodes():
            if node.op_type == "ConvTranspose" and "output_shape" in node.attributes and not stopped:
                stopped = _spelt_out(node, *(None if v is None else v.shape for v in (*node.inputs[:2], *node.outputs)))


def _spelt_out(node: ir.Node, data: ir.Shape | None, weight: ir.Shape | None, out: ir.Shape | None) -> bool:
    """Whether onnx stopped here; if so `output_shape` becomes pads: `output = size - 1 + kernel - pads + extra`."""
    if data is None or weight is None or out is None or len(out) == len(data):
        return False
    axes = zip(data[2:], weight[2:], node.attributes["output_shape"].as_ints()[2 - len(data) :], strict=True)
    total = [n - 1 + k - o if isinstance(n, int) and isinstance(k, int) else 0 for n, k, o in axes]
    for name in ("output_shape", "auto_pad", "strides", "dilations"):
        node.attributes.pop(name, None)
    node.attributes["pads"] = ir.AttrInt64s("pads", [max(t, 0) for t in total] + [0] * len(total))
    node.attributes["output_padding"] = ir.AttrInt64s("output_padding", [max(-t, 0) for t in total])
    return True


def _forget(model: ir.Model) -> None:
    """Drop every inner shape and type; keep those of inputs and initializers, and the outputs' types."""
    for graph in model.graphs():
        outputs = {id(v) for v in graph.outputs}
        for node in graph:
            for value in node.outputs:
                value.shape = None
                if id(value) not in outputs:
                    value.type = None


def _named(shape: ir.Shape | None, stem: str) -> ir.Shape | None:
    if shape is None:
        return None
    return ir.Shape([d if _is_known(d) else f"bnfold_{stem}_axis{k}" for k, d in enumerate(shape)])


def _pairs(model: ir.Model, clone: ir.Model) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Every value of the model with the one that stands in its place in the clone."""
    for graph, twin in zip(model.graphs(), clone.graphs(), strict=True):
        yield from zip(graph.inputs, twin.inputs, strict=True)
        yield from zip(graph.initializers.values(), twin.initializers.values(), strict=True)
        for node, other in zip(graph, twin, strict=True):
            yield from zip(node.outputs, other.outputs, strict=True)


def _tell_apart(model: ir.Model) -> None:
    """Give every value of a body a name of its own: bodies beside each other may use the same ones."""
    taken: set[str] = set()
    for k, graph in enumerate(model.graphs()):
        for value in own_values(graph):
            if value.name in taken:
                rename_alone(value, f"bnfold_body{k}_{value.name}")
            taken.update([value.name] if value.name else [])


def _is_known(dim: int | ir.SymbolicDim) -> bool:
    return isinstance(dim, int) or dim.value is not None


def _shape(value: ir.Value) -> Shape | None:
    if value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)
