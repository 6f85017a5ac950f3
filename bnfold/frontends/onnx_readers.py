"""The reader table: which reader turns which ONNX operator into a view; any other operator is a barrier, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import onnx_ir as ir

from bnfold.decision import Reason
from bnfold.frontends import onnx_read_clamp as clamp
from bnfold.frontends import onnx_read_pointwise as pointwise
from bnfold.frontends import onnx_read_quantised as quantised
from bnfold.frontends import onnx_read_select as select
from bnfold.frontends import onnx_read_shape as shape
from bnfold.frontends import onnx_read_windows as windows
from bnfold.frontends.onnx_context import Context, barrier, is_standard
from bnfold.frontends.onnx_read_batchnorm import read_batchnorm
from bnfold.frontends.onnx_read_linear import ReadLinear, read_conv, read_gemm, read_matmul
from bnfold.frontends.onnx_scopes import bodies
from bnfold.views import Barrier, View

#: Turns a node into a view; it may look around, and changes nothing.
Reader: TypeAlias = Callable[[ir.Node, Context], View]

LINEAR: dict[str, Callable[[ir.Node, Context], ReadLinear | Barrier]] = {
    "Conv": read_conv,
    "ConvTranspose": read_conv,
    "Gemm": read_gemm,
    "MatMul": read_matmul,
}

READERS: dict[str, Reader] = {
    "Abs": pointwise.read_abs,
    "Add": pointwise.read_arithmetic,
    "AveragePool": windows.read_pool,
    "BatchNormalization": read_batchnorm,
    "Cast": shape.read_cast,
    "CastLike": shape.read_cast,
    "Clip": clamp.read_clip,
    "Concat": shape.read_concat,
    "ConvInteger": quantised.read_integer_operator,
    "DepthToSpace": select.read_depth_to_space,
    "DequantizeLinear": quantised.read_dequantize,
    "Div": pointwise.read_arithmetic,
    "Dropout": shape.read_dropout,
    "DynamicQuantizeLinear": quantised.read_quantize,
    "Flatten": shape.read_reshape,
    "Gather": select.read_gather,
    "GlobalAveragePool": windows.read_global_pool,
    "GlobalMaxPool": windows.read_global_pool,
    "Identity": shape.read_same,
    "LeakyRelu": pointwise.read_homogeneous,
    "MatMulInteger": quantised.read_integer_operator,
    "Max": clamp.read_extremum,
    "MaxPool": windows.read_pool,
    "Min": clamp.read_extremum,
    "Mul": pointwise.read_arithmetic,
    "Neg": pointwise.read_negate,
    "PRelu": pointwise.read_homogeneous,
    "Pad": windows.read_pad,
    "QLinearConv": quantised.read_integer_operator,
    "QLinearMatMul": quantised.read_integer_operator,
    "QuantizeLinear": quantised.read_quantize,
    "ReduceMax": windows.read_reduce,
    "ReduceMean": windows.read_reduce,
    "ReduceSum": windows.read_reduce,
    "Relu": clamp.read_relu,
    "Reshape": shape.read_reshape,
    "Resize": windows.read_resize,
    "Slice": select.read_slice,
    "SpaceToDepth": select.read_space_to_depth,
    "Split": select.read_split,
    "Squeeze": shape.read_reshape,
    "Sub": pointwise.read_arithmetic,
    "Transpose": shape.read_transpose,
    "Unsqueeze": shape.read_reshape,
    "Upsample": windows.read_resize,
}

#: Standard operators through which no affine can pass, so that "no rule" would promise too much.
_NOT_LINEAR = frozenset(
    """
    ArgMax ArgMin Celu Elu Erf Exp Gelu GroupNormalization HardSigmoid HardSwish InstanceNormalization LRN
    LayerNormalization Log LogSoftmax LpNormalization LpPool MeanVarianceNormalization Mish NonMaxSuppression
    Pow RMSNormalization Reciprocal Round Selu Sigmoid Softmax Softplus Softsign Sqrt Swish Tanh
    ThresholdedRelu TopK
    """.split()
)


def read(node: ir.Node, context: Context, own: Mapping[tuple[str, str], Reader]) -> ReadLinear | View:
    """What `node` computes; `own` are the caller's readers by domain ("" for the standard operators) and operator."""
    key = ("" if is_standard(node) else node.domain, node.op_type)
    if key in own:
        return own[key](node, context)
    if (node.domain, node.op_type, node.overload) in context.functions:
        return barrier(node, Reason.OPERATOR_IS_UNKNOWN, "a model-local function")
    if not is_standard(node):
        return barrier(node, Reason.OPERATOR_IS_UNKNOWN, f"{node.domain}.{node.op_type}")
    if node.op_type in LINEAR:
        return LINEAR[node.op_type](node, context)
    if node.op_type in READERS:
        return READERS[node.op_type](node, context)
    return barrier(node, _why_no_rule(node), node.op_type)


def _why_no_rule(node: ir.Node) -> Reason:
    if any(True for _ in bodies(node)):
        return Reason.OPERATOR_HOLDS_BODIES
    return Reason.OPERATOR_IS_NOT_LINEAR if node.op_type in _NOT_LINEAR else Reason.OPERATOR_HAS_NO_RULE
