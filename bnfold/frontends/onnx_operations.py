"""How many floating-point operations each standard ONNX operator is, from the shapes that it reads and writes.

With n elements in the output, k taps in a window and r rows of a matrix, by the operators' own definitions:
`Conv: n * C_in/groups * k` multiply-adds, `ConvTranspose` the same with the input's elements and `C_out/groups`,
`Gemm, MatMul: n * r`; a bias is n more operations, a BatchNorm in inference 2n (`y = s*x + t`), LayerNormalization and
its kin the seven steps of their definition, a pooling n*k, a linear Resize 2 taps and a cubic one 4 per resized axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TypeAlias

import onnx_ir as ir

from bnfold.flops import Work

#: The shape of a value; None if it is absent, or a size is not known.
Sizes: TypeAlias = "tuple[int, ...] | None"

_Known: TypeAlias = "Sequence[tuple[int, ...]]"
_Formula: TypeAlias = "Callable[[ir.Node, _Known, int], Work]"

#: Multiply-adds in the first place; a model of which these are not known has no figure at all.
LINEAR = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))

#: Operations for each element of the output.
_PER_OUTPUT = dict.fromkeys(
    """
    Abs Acos Acosh Add Asin Asinh Atan Atanh BitShift Ceil Celu Clip Cos Cosh Div Elu Erf Exp Floor Gelu HardSigmoid
    HardSwish LeakyRelu Log Mish Mod Mul Neg PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus
    Softsign Sqrt Sub Swish Tan Tanh ThresholdedRelu
    """.split(),
    1,
) | {
    "BatchNormalization": 2,
    "DequantizeLinear": 2,
    "InstanceNormalization": 7,
    "GroupNormalization": 7,
    "LayerNormalization": 7,
    "LogSoftmax": 3,
    "LpNormalization": 3,
    "MeanVarianceNormalization": 5,
    "QuantizeLinear": 2,
    "RMSNormalization": 4,
    "Softmax": 3,
}

#: Operations for each element of the input, and for each of the output.
_REDUCTIONS = {
    "CumSum": (1, 0),
    "GlobalAveragePool": (1, 1),
    "GlobalMaxPool": (1, 0),
    "ReduceL1": (2, 0),
    "ReduceL2": (2, 1),
    "ReduceLogSum": (1, 1),
    "ReduceLogSumExp": (2, 1),
    "ReduceMax": (1, 0),
    "ReduceMean": (1, 1),
    "ReduceMin": (1, 0),
    "ReduceProd": (1, 0),
    "ReduceSum": (1, 0),
    "ReduceSumSquare": (2, 0),
}

#: Operators that move, pick, cast or compare numbers, or make them from nothing.
FREE = frozenset(
    """
    And ArgMax ArgMin Cast CastLike Compress Concat ConcatFromSequence Constant ConstantOfShape DepthToSpace Dropout
    Equal Expand EyeLike Flatten Gather GatherElements GatherND Greater GreaterOrEqual Hardmax Identity IsInf IsNaN
    Less LessOrEqual NonMaxSuppression NonZero Not OneHot Or Pad Range Reshape ReverseSequence ScatterElements
    ScatterND SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength Shape Size
    Slice SpaceToDepth Split SplitToSequence Squeeze Tile TopK Transpose Trilu Unique Unsqueeze Where Xor
    """.split()
)


def work_of(node: ir.Node, inputs: Sequence[Sizes], outputs: Sequence[Sizes]) -> Work | None:
    """What a node of a type in `ARITHMETIC` does; None where a size that it takes is not known.

    Args:
        node: The node.
        inputs: The shapes of its inputs.
        outputs: The shapes of its outputs.
    """
    if outputs[0] is None or inputs[0] is None:
        return None
    name, n = node.op_type, prod(outputs[0])
    if name in _PER_OUTPUT:
        return Work(others=_PER_OUTPUT[name] * n)
    if name in _REDUCTIONS:
        taken, made = _REDUCTIONS[name]
        return Work(others=taken * prod(inputs[0]) + made * n)
    needed = 2 if name in LINEAR else 1
    known = [shape for shape in inputs[:needed] if shape is not None]
    return _FORMULAS[name](node, [*known, outputs[0]], n) if len(known) == needed else None


def _has(node: ir.Node, place: int) -> bool:
    return len(node.inputs) > place and node.inputs[place] is not None


def _conv(node: ir.Node, shapes: _Known, n: int) -> Work:
    """The weight is (C_out, C_in/groups, *kernel)."""
    return Work(n * prod(shapes[1][1:]), n if _has(node, 2) else 0)


def _conv_transpose(node: ir.Node, shapes: _Known, n: int) -> Work:
    """The weight is (C_in, C_out/groups, *kernel); every element of the input meets all of its part."""
    return Work(prod(shapes[0]) * prod(shapes[1][1:]), n if _has(node, 2) else 0)


def _gemm(node: ir.Node, shapes: _Known, n: int) -> Work:
    rows = shapes[0][0 if node.attributes.get_int("transA", 0) else 1]
    return Work(n * rows, n if _has(node, 2) else 0)


def _matmul(_node: ir.Node, shapes: _Known, n: int) -> Work:
    return Work(n * shapes[0][-1])


def _pool(node: ir.Node, _shapes: _Known, n: int) -> Work:
    return Work(others=n * prod(node.attributes["kernel_shape"].as_ints()))


def _variadic(node: ir.Node, _shapes: _Known, n: int) -> Work:
    """One operation for each operand but the first; Mean divides as well."""
    return Work(others=n * (len(node.inputs) - (node.op_type != "Mean")))


def _resize(node: ir.Node, shapes: _Known, n: int) -> Work:
    """A weighted sum of the taps; an axis whose size stays has none."""
    taps = {"linear": 2, "bilinear": 2, "trilinear": 2, "cubic": 4}.get(node.attributes.get_string("mode", "nearest"))
    axes = sum(old != new for old, new in zip(shapes[0], shapes[1], strict=True))
    return Work(others=2 * n * taps**axes if taps and axes else 0)


_FORMULAS: dict[str, _Formula] = {
    "AveragePool": _pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "LpPool": _pool,
    "MatMul": _matmul,
    "Max": _variadic,
    "MaxPool": _pool,
    "Mean": _variadic,
    "Min": _variadic,
    "Resize": _resize,
    "Sum": _variadic,
    "Upsample": _resize,
}

#: The operators that have a formula.
ARITHMETIC = frozenset((*_PER_OUTPUT, *_REDUCTIONS, *_FORMULAS))
