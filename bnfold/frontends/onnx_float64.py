"""An ONNX model in float64, evaluated node by node in NumPy: what the numbers in the file mean, without rounding noise.

`in_float64` keeps every stored number and makes its type double (float32 0.1 stays 0.100000001490116); `evaluate` runs
the result with the ONNX reference evaluator and the kernels of `bnfold.frontends.onnx_kernels`. No optimisation.
`without_bfloat16` does the same to bfloat16 alone, and makes it float32, for a runtime that cannot compute in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto

from bnfold.errors import ModelError
from bnfold.frontends.onnx_kernels_run import evaluate, inlined

__all__ = ["evaluate", "in_float64", "without_bfloat16"]

Array: TypeAlias = np.ndarray[Any, Any]

_COMPLEX = frozenset({TensorProto.COMPLEX64, TensorProto.COMPLEX128})
# Where an operator names the type of its output, and whether it means float when it does not.
_TYPE_ATTRIBUTE = {
    "Bernoulli": ("dtype", False),
    "BlackmanWindow": ("output_datatype", True),
    "Cast": ("to", False),
    "DequantizeLinear": ("output_dtype", False),
    "EyeLike": ("dtype", False),
    "HammingWindow": ("output_datatype", True),
    "HannWindow": ("output_datatype", True),
    "MelWeightMatrix": ("output_datatype", True),
    "Multinomial": ("dtype", False),
    "RandomNormal": ("dtype", True),
    "RandomNormalLike": ("dtype", False),
    "RandomUniform": ("dtype", True),
    "RandomUniformLike": ("dtype", False),
    "SequenceEmpty": ("dtype", True),
}
# Operators that round to a type which the rewrite would take away, or whose reference version computes in float32.
_NOT_IN_FLOAT64 = frozenset(
    {
        "AffineGrid",
        "CausalConvWithState",
        "DynamicQuantizeLinear",
        "LinearAttention",
        "QLinearConv",
        "QLinearMatMul",
        "TfIdfVectorizer",
    }
)


def in_float64(model: ModelProto) -> ModelProto:
    """A copy of `model` in which every float16, bfloat16 and float32 tensor is double, with the same values.

    Initializers, Constant nodes, ConstantOfShape, Cast targets, declared types and the bodies of If, Loop and Scan are
    rewritten; model-local functions are inlined. Integer types, and float8 or float4 codes, stay. Attributes stay, as
    ONNX stores them in float32: the evaluator reads the exact double of that.

    Args:
        model: The model, with its external data loaded. It is not changed.

    Raises:
        ModelError: Something cannot be rewritten truthfully: complex or sparse tensors, fused quantised operators.
    """
    copy = inlined(model)
    narrow = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
    _Widening(narrow, TensorProto.DOUBLE).graph(copy.graph)
    return copy


def without_bfloat16(model: ModelProto) -> ModelProto:
    """A copy of `model` in which every bfloat16 tensor is float32, with the same values; `model` if it stores none.

    Its nodes are those of `model`, one by one, and model-local functions stay functions.

    Args:
        model: The model, with its external data loaded. It is not changed.

    Raises:
        ModelError: There are complex or sparse tensors beside it.
    """
    types = [t.data_type for t in model.graph.initializer]
    types += [value.type.tensor_type.elem_type for value in model.graph.input]
    if TensorProto.BFLOAT16 not in types:
        return model
    copy, widening = ModelProto(), _Widening(frozenset({TensorProto.BFLOAT16}), TensorProto.FLOAT)
    copy.CopyFrom(model)
    widening.graph(copy.graph)
    for node in (node for function in copy.functions for node in function.node):
        widening.node(node)
    return copy


@dataclass(frozen=True)
class _Widening:
    """Rewrites in place.

    Attributes:
        narrow: The types that go.
        wide: The type that comes in their place.
    """

    narrow: frozenset[int]
    wide: int

    def graph(self, graph: GraphProto) -> None:
        """All that a graph declares, stores and computes."""
        if graph.sparse_initializer:
            raise ModelError("sparse initializers are not supported", where=graph.sparse_initializer[0].values.name)
        for tensor in graph.initializer:
            self._tensor(tensor, tensor.name)
        for info in (*graph.input, *graph.output, *graph.value_info):
            self._type(info.type, info.name)
        for node in graph.node:
            self.node(node)

    def node(self, node: NodeProto) -> None:
        """The attributes of a node, and its bodies."""
        where = node.name or ", ".join(node.output)
        if self._takes_float and node.domain in {"", "ai.onnx"} and node.op_type in _NOT_IN_FLOAT64:
            raise ModelError(f"{node.op_type} cannot be computed in float64", where=where)
        if node.op_type in _TYPE_ATTRIBUTE:
            self._type_attribute(node, *_TYPE_ATTRIBUTE[node.op_type])
        if self._takes_float and node.op_type == "ConstantOfShape" and not node.attribute:
            node.attribute.append(onnx.helper.make_attribute("value", self._stored(np.zeros(1))))
        for attribute in node.attribute:
            self._attribute(node.op_type, attribute, where)

    @property
    def _takes_float(self) -> bool:
        """Whether float32 goes, which is what operators mean that name no type."""
        return TensorProto.FLOAT in self.narrow

    def _attribute(self, op_type: str, attribute: AttributeProto, where: str) -> None:
        if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            raise ModelError("sparse tensors are not supported", where=where)
        for tensor in [attribute.t, *attribute.tensors] if attribute.HasField("t") else attribute.tensors:
            self._tensor(tensor, where)
        if attribute.HasField("tp"):
            self._type(attribute.tp, where)
        if attribute.HasField("g"):
            self.graph(attribute.g)
        for body in attribute.graphs:
            self.graph(body)
        if self._takes_float and op_type == "Constant" and attribute.name in {"value_float", "value_floats"}:
            stored = attribute.f if attribute.name == "value_float" else list(attribute.floats)
            attribute.CopyFrom(onnx.helper.make_attribute("value", self._stored(np.asarray(stored))))

    def _type_attribute(self, node: NodeProto, name: str, float_by_default: bool) -> None:
        found = [a for a in node.attribute if a.name == name]
        if not found and float_by_default and self._takes_float:
            node.attribute.append(onnx.helper.make_attribute(name, int(self.wide)))
        for attribute in found:
            if attribute.i in self.narrow:
                attribute.i = self.wide

    def _tensor(self, tensor: TensorProto, where: str) -> None:
        """Its values stay."""
        if tensor.data_location == TensorProto.EXTERNAL:
            remedy = "load the model with its external data"
            raise ModelError("the weights are in another file", where=where, remedy=remedy)
        if tensor.data_type in _COMPLEX:
            raise ModelError("complex tensors are not supported", where=where)
        if tensor.data_type not in self.narrow:
            return
        wide = self._stored(onnx.numpy_helper.to_array(tensor))
        wide.name, wide.doc_string = tensor.name, tensor.doc_string
        tensor.CopyFrom(wide)

    def _stored(self, values: Array) -> TensorProto:
        return onnx.numpy_helper.from_array(values.astype(onnx.helper.tensor_dtype_to_np_dtype(self.wide)))

    def _type(self, declared: TypeProto, where: str) -> None:
        match declared.WhichOneof("value"):
            case "tensor_type":
                if declared.tensor_type.elem_type in _COMPLEX:
                    raise ModelError("complex tensors are not supported", where=where)
                if declared.tensor_type.elem_type in self.narrow:
                    declared.tensor_type.elem_type = self.wide
            case "sequence_type":
                self._type(declared.sequence_type.elem_type, where)
            case "optional_type":
                self._type(declared.optional_type.elem_type, where)
            case "map_type":
                self._type(declared.map_type.value_type, where)
            case "sparse_tensor_type":
                raise ModelError("sparse tensors are not supported", where=where)
            case _:  # no type declared, or one without numbers
                return
