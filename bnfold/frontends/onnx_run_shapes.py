"""The shapes of all values at given input sizes, node by node, with sizes that the model computes from its inputs'.

onnx's own inference over a whole graph loses a size that goes through Shape, Gather and Concat into a Reshape. Here
what is computed from known shapes is computed in passing (`Constants`), and given to its inference of the next node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from bnfold.frontends.onnx_constants import Constants
from bnfold.frontends.onnx_scopes import bodies
from bnfold.frontends.onnx_shapes import Shapes
from bnfold.graph import Shape

#: Longer lists than this are no sizes.
_LONGEST = 1024


class RunShapes:
    """What is known about the values of the main graph of one model in a run at these input sizes."""

    def __init__(self, model: ir.Model, sizes: Mapping[str, tuple[int, ...]]) -> None:
        """Infer.

        Args:
            model: The model, its functions written out; not changed.
            sizes: The shapes of all its inputs, by name.
        """
        self._base = Shapes(model, sizes)
        self._types: dict[ir.Value, onnx.TypeProto] = {}
        self._opsets = dict(model.opset_imports)
        constants = Constants(model, self, keep_overridable=False)
        for node in model.graph:
            if self._is_lost(node):
                self._infer(node, constants)

    def shape(self, value: ir.Value | None) -> Shape | None:
        """As `Shapes.shape`."""
        known = None if value is None else self._types.get(value)
        if known is None or not known.tensor_type.HasField("shape"):
            return self._base.shape(value)
        dims = known.tensor_type.shape.dim
        return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)

    def dtype(self, value: ir.Value | None) -> np.dtype[Any] | None:
        """As `Shapes.dtype`."""
        return self._base.dtype(value)

    def _is_lost(self, node: ir.Node) -> bool:
        """Whether the inference of the whole graph has not got the sizes of what the node computes."""
        shapes = [self._base.shape(value) for value in node.outputs]
        return any(shape is None or not all(isinstance(size, int) for size in shape) for shape in shapes)

    def _infer(self, node: ir.Node, constants: Constants) -> None:
        if any(True for _ in bodies(node)):
            return
        version = self._opsets.get(node.domain, 1) if node.version is None else node.version
        given = {value.name: value for value in node.inputs if value is not None and value.name}
        types = {name: kind for name, value in given.items() if (kind := self._type(value)) is not None}
        lists = {name: array for name, value in given.items() if (array := self._list(value, constants)) is not None}
        data = {name: onnx.numpy_helper.from_array(array, name) for name, array in lists.items()}
        imports = [onnx.helper.make_opsetid(domain, number) for domain, number in self._opsets.items()]
        try:
            schema = onnx.defs.get_schema(node.op_type, version, node.domain)
            found = onnx.shape_inference.infer_node_outputs(
                schema, ir.to_proto(node), types, data, opset_imports=imports
            )
        except Exception:  # onnx raises anything for what it cannot infer; then the size is simply not known
            return
        self._types |= {value: found[value.name] for value in node.outputs if value.name in found}

    def _type(self, value: ir.Value) -> onnx.TypeProto | None:
        if value in self._types:
            return self._types[value]
        dtype = self._base.dtype(value)
        if dtype is None:
            return None
        return onnx.helper.make_tensor_type_proto(onnx.helper.np_dtype_to_tensor_dtype(dtype), self.shape(value))

    def _list(self, value: ir.Value, constants: Constants) -> np.ndarray[Any, np.dtype[Any]] | None:
        """The numbers, where it is a list of constant ones, as sizes, scales and places are."""
        shape = self.shape(value)
        if shape is None or len(shape) > 1 or any(not isinstance(n, int) or n > _LONGEST for n in shape):
            return None
        array = constants.array(value)
        return None if array is None else np.asarray(array)
