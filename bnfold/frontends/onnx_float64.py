"""An ONNX model in float64, evaluated node by node in NumPy: what the numbers in the file mean, without rounding noise.

`in_float64` keeps every stored number and makes its type double (float32 0.1 stays 0.100000001490116); `evaluate` runs
the result with the ONNX reference evaluator and the kernels of `bnfold.frontends.onnx_kernels`. No optimisation.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto

from bnfold.errors import ModelError
from bnfold.frontends.onnx_kernels_run import evaluate, inlined

__all__ = ["evaluate", "in_float64"]

Array: TypeAlias = np.ndarray[Any, Any]

_NARROW = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
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
    _rewrite_graph(copy.graph)
    return copy


def _rewrite_graph(graph: GraphProto) -> None:
    if graph.sparse_initializer:
        raise ModelError("sparse initializers are not supported", where=graph.sparse_initializer[0].values.name)
    for tensor in graph.initializer:
        _widen(tensor, tensor.name)
    for info in (*graph.input, *graph.output, *graph.value_info):
        _widen_type(info.type, info.name)
    for node in graph.node:
        _rewrite_node(node)


def _rewrite_node(node: NodeProto) -> None:
    where = node.name or ", ".join(node.output)
    if node.domain in {"", "ai.onnx"} and node.op_type in _NOT_IN_FLOAT64:
        raise ModelError(f"{node.op_type} cannot be computed in float64", where=where)
    if node.op_type in _TYPE_ATTRIBUTE:
        _widen_type_attribute(node, *_TYPE_ATTRIBUTE[node.op_type])
    if node.op_type == "ConstantOfShape" and not node.attribute:
        node.attribute.append(onnx.helper.make_attribute("value", _tensor(np.zeros(1))))
    for attribute in node.attribute:
        _rewrite_attribute(node.op_type, attribute, where)


def _rewrite_attribute(op_type: str, attribute: AttributeProto, where: str) -> None:
    if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
        raise ModelError("sparse tensors are not supported", where=where)
    for tensor in [attribute.t, *attribute.tensors] if attribute.HasField("t") else attribute.tensors:
        _widen(tensor, where)
    if attribute.HasField("tp"):
        _widen_type(attribute.tp, where)
    if attribute.HasField("g"):
        _rewrite_graph(attribute.g)
    for body in attribute.graphs:
        _rewrite_graph(body)
    if op_type == "Constant" and attribute.name in {"value_float", "value_floats"}:
        stored = attribute.f if attribute.name == "value_float" else list(attribute.floats)
        attribute.CopyFrom(onnx.helper.make_attribute("value", _tensor(np.asarray(stored, dtype=np.float64))))


def _widen_type_attribute(node: NodeProto, name: str, float_by_default: bool) -> None:
    found = [a for a in node.attribute if a.name == name]
    if not found and float_by_default:
        node.attribute.append(onnx.helper.make_attribute(name, int(TensorProto.DOUBLE)))
    for attribute in found:
        if attribute.i in _NARROW:
            attribute.i = TensorProto.DOUBLE


def _widen(tensor: TensorProto, where: str) -> None:
    """Makes a float tensor double in place; its values stay."""
    if tensor.data_location == TensorProto.EXTERNAL:
        raise ModelError("the weights are in another file", where=where, remedy="load the model with its external data")
    if tensor.data_type in _COMPLEX:
        raise ModelError("complex tensors are not supported", where=where)
    if tensor.data_type not in _NARROW:
        return
    wide = _tensor(onnx.numpy_helper.to_array(tensor).astype(np.float64))
    wide.name, wide.doc_string = tensor.name, tensor.doc_string
    tensor.CopyFrom(wide)


def _tensor(values: Array) -> TensorProto:
    return onnx.numpy_helper.from_array(values)


def _widen_type(declared: TypeProto, where: str) -> None:
    match declared.WhichOneof("value"):
        case "tensor_type":
            if declared.tensor_type.elem_type in _COMPLEX:
                raise ModelError("complex tensors are not supported", where=where)
            if declared.tensor_type.elem_type in _NARROW:
                declared.tensor_type.elem_type = TensorProto.DOUBLE
        case "sequence_type":
            _widen_type(declared.sequence_type.elem_type, where)
        case "optional_type":
            _widen_type(declared.optional_type.elem_type, where)
        case "map_type":
            _widen_type(declared.map_type.value_type, where)
        case "sparse_tensor_type":
            raise ModelError("sparse tensors are not supported", where=where)
        case _:  # no type declared, or one without numbers
            return
