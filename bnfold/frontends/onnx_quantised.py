"""Constants that stand behind a DequantizeLinear, `scale * (codes - zero_point)`, read without losing the integers.

Identity, Transpose, Reshape, Squeeze, Unsqueeze and Flatten in between only move the numbers, so that each can be
followed back to its code. Codes that a QuantizeLinear makes of float32 weights are known as well; the folded weights,
`scale * (codes - zero_point)`, lie on the grid, so that it makes the same codes of them: `|k| * 2u < 1/2`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bnfold.affine import Float64Array
from bnfold.decision import Reason, Refusal
from bnfold.frontends.onnx_context import Context, input_at, int_attr, is_float, is_standard, name_of
from bnfold.linear import WeightLayout
from bnfold.quantised import QuantisedBias, QuantisedWeight
from bnfold.rounding import integer_range

_MOVES = frozenset(("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"))
_FLOAT_CODES = frozenset(("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float4_e2m1fn"))

#: The first operator set in which a DequantizeLinear may have one scale for each channel.
_PER_CHANNEL = 13


@dataclass(frozen=True, eq=False)
class Dequantised:
    """A constant behind a DequantizeLinear.

    Attributes:
        nodes: The QuantizeLinear, if there is one, the DequantizeLinear, and what moves its numbers, in order.
        codes: The quantised numbers in their own dtype.
        scale: As stored: one number, one for each index of `axis`, or one for each block.
        zero_point: As `scale`; zeros where it is left out.
        axis: The axis of the codes along which the scales differ; not negative.
        block: How many indices of `axis` share a scale; 0 where it is all or one.
        order: The flat index of the code of each number; None where nothing moves.
        may_split: Whether the operator set knows one scale for each channel.
    """

    nodes: tuple[ir.Node, ...]
    codes: npt.NDArray[Any]
    scale: npt.NDArray[Any]
    zero_point: npt.NDArray[np.int64]
    axis: int
    block: int
    order: npt.NDArray[np.intp] | None
    may_split: bool

    @property
    def is_rounded_in_the_model(self) -> bool:
        """Whether floating-point weights are stored, and a QuantizeLinear makes the codes."""
        return self.nodes[0].op_type == "QuantizeLinear"

    @property
    def has_zero_point(self) -> bool:
        """Whether a zero point is stored."""
        return input_at(self.nodes[0], 2) is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the constant."""
        return self.codes.shape if self.order is None else self.order.shape

    @property
    def ndim(self) -> int:
        """The rank of the constant."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The floating-point dtype of the constant, which is that of the scale."""
        return self.scale.dtype

    def weight(self, layout: WeightLayout) -> QuantisedWeight:
        """As the weight of a linear operator."""
        step, zero_point = np.asarray(self.scale, np.float64), self.zero_point
        if step.size == 1 and not self.block:
            step, zero_point = step.reshape(()), zero_point.reshape(())
        axis, block, order = self.axis, self.block, self.order
        return QuantisedWeight(self.codes, step, zero_point, axis, block, self.dtype, layout, order, self.may_split)

    def bias(self, input_step: float | None) -> QuantisedBias:
        """As the bias of a linear operator whose data has the scale `input_step`."""
        step = np.asarray(self.scale, np.float64)
        return QuantisedBias(self.codes, step.reshape(()) if step.size == 1 else step, input_step, self.dtype)

    def is_bias(self, outputs: int) -> bool:
        """Whether it is the bias that runtimes know: 32 bits, one for each output, about zero."""
        plain = self.codes.dtype == np.int32 and self.order is None and self.codes.shape == (outputs,)
        return plain and not self.zero_point.any() and not self.block


#: A constant as it is stored: its numbers, or its codes and scales.
Stored: TypeAlias = "npt.NDArray[Any] | Dequantised"


def stored(value: ir.Value | None, context: Context) -> Stored | None:
    """The constant; None if the value is absent or not known to be one, for which `why_not_stored` has the reason."""
    array = context.constants.array(value)
    if array is not None or value is None:
        return array
    found = _dequantised(value, context)
    return found if isinstance(found, Dequantised) else None


def why_not_stored(value: ir.Value, where: str, context: Context) -> Refusal:
    """Why `stored(value)` is None."""
    found = _dequantised(value, context)
    return found if isinstance(found, Refusal) else context.constants.why_not(value, where, Reason.WEIGHTS_NOT_CONSTANT)


def input_step(data: ir.Value | None, context: Context) -> float | None:
    """The scale of a value that a DequantizeLinear computes, if that is one constant."""
    node = None if data is None else data.producer()
    if node is None or node.op_type != "DequantizeLinear" or not is_standard(node):
        return None
    scale = context.constants.array(input_at(node, 1))
    return float(scale.reshape(-1)[0]) if scale is not None and scale.size == 1 else None


def _dequantised(value: ir.Value, context: Context) -> Dequantised | Refusal | None:
    """What stands behind the DequantizeLinear; why it is not read; None where there is none."""
    nodes = _chain(value, context)
    if not nodes:
        return None
    node, *moves = nodes
    codes, scale = (context.constants.array(input_at(node, i)) for i in (0, 1))
    zeros_value = input_at(node, 2)
    zeros = context.constants.array(zeros_value)
    if codes is None or scale is None or (zeros is None and zeros_value is not None):
        return _variable(node, context)
    rank = codes.ndim
    axis, block = int_attr(node, "axis", 1), int_attr(node, "block_size", 0)
    axis = axis % rank if rank and -rank <= axis < rank else 0
    if (wrong := next(_wrong(node, (codes, scale, zeros), axis, block), None)) is not None:
        return Refusal(Reason.WEIGHTS_ARE_QUANTISED, name_of(node), wrong)
    order = _order(moves, codes, context)
    if isinstance(order, Refusal):
        return order
    before = _quantize(node, context)
    if isinstance(before, Refusal):
        return before
    zero_point = np.zeros(scale.shape, np.int64) if zeros is None else zeros.astype(np.int64).reshape(scale.shape)
    nodes = nodes if before is None else (before, *nodes)
    return Dequantised(nodes, codes, scale, zero_point, axis, block, order, context.version(node) >= _PER_CHANNEL)


def _chain(value: ir.Value, context: Context) -> tuple[ir.Node, ...]:
    """The DequantizeLinear and what moves its numbers; empty where there is none."""
    found: list[ir.Node] = []
    node = value.producer()
    while node is not None and is_standard(node):
        found.append(node)
        if node.op_type == "DequantizeLinear":
            return tuple(reversed(found))
        fixed = all(context.constants.array(v) is not None for v in node.inputs[1:] if v is not None)
        data = node.inputs[0] if node.op_type in _MOVES and fixed else None
        node = None if data is None else data.producer()
    return ()


def _quantize(node: ir.Node, context: Context) -> ir.Node | Refusal | None:
    """The QuantizeLinear of constants before a DequantizeLinear; why its grid cannot be moved; None without one."""
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    if before is None or before.op_type != "QuantizeLinear" or not is_standard(before):
        return None
    weight, scale = (context.constants.array(value) for value in before.inputs[:2])
    plain = all(array is not None and array.dtype == np.float32 for array in (weight, scale))
    codes = context.constants.array(node.inputs[0])
    whole = codes is not None and codes.dtype.itemsize <= 2 and integer_range(codes.dtype) is not None
    if plain and whole and not int_attr(before, "precision", 0) and _have_one_grid(before, node, context):
        return before
    return Refusal(Reason.ROUNDED_TO_A_GRID, name_of(before), "the weights pass through a QuantizeLinear")


def _have_one_grid(quantize: ir.Node, dequantize: ir.Node, context: Context) -> bool:
    """Whether both nodes have the same scale, zero point, axis and blocks."""
    for i in (1, 2):
        pair = [input_at(node, i) for node in (quantize, dequantize)]
        first, second = (context.constants.array(value) for value in pair)
        if pair.count(None) == 1 or (first is not None and (second is None or not np.array_equal(first, second))):
            return False
    names = (("axis", 1), ("block_size", 0))
    return all(int_attr(quantize, name, default) == int_attr(dequantize, name, default) for name, default in names)


def _variable(node: ir.Node, context: Context) -> Refusal:
    """The codes or scales are computed: by a QuantizeLinear, or at run time, or a caller may feed them."""
    source = node.inputs[0]
    before = None if source is None else source.producer()
    if before is not None and before.op_type == "QuantizeLinear" and is_standard(before):
        if context.constants.array(before.inputs[0]) is not None:  # and the codes are too many, or of an unknown type
            return Refusal(Reason.ROUNDED_TO_A_GRID, name_of(before), "the weights pass through a QuantizeLinear")
        return Refusal(Reason.WEIGHTS_NOT_CONSTANT, name_of(node))
    value = next(v for v in node.inputs if v is not None and context.constants.array(v) is None)
    return context.constants.why_not(value, name_of(node), Reason.WEIGHTS_NOT_CONSTANT)


def _wrong(
    node: ir.Node, arrays: tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any] | None], axis: int, block: int
) -> Iterator[str]:
    """What about the DequantizeLinear the rules do not know, or contradicts the specification."""
    codes, scale, zeros = arrays
    if integer_range(codes.dtype) is None and codes.dtype.name not in _FLOAT_CODES:
        yield f"numbers of {codes.dtype.name}"
    elif zeros is not None and zeros.any() and codes.dtype.name in _FLOAT_CODES:
        yield "floating-point numbers with a zero point"
    if not is_float(scale.dtype) or ir.DataType(int_attr(node, "output_dtype", 0)) not in _plain(scale.dtype):
        yield f"a scale of {scale.dtype.name}"
    elif not (np.isfinite(scale) & (scale > 0)).all():
        yield "a scale that is not positive"
    if zeros is not None and zeros.size != scale.size:
        yield "as many zero points as scales it has not"
    if block:
        wanted = tuple(-(-n // block) if a == axis else n for a, n in enumerate(codes.shape))
    else:
        wanted = scale.shape if scale.size == 1 else codes.shape[axis : axis + 1]
    if scale.shape != wanted:
        yield f"scales of shape {scale.shape} for numbers of shape {codes.shape}"


def _plain(dtype: np.dtype[Any]) -> tuple[ir.DataType, ir.DataType]:
    """The `output_dtype`s with which the output has the dtype of the scale."""
    return ir.DataType.UNDEFINED, ir.DataType.from_numpy(dtype)


def _order(
    moves: Sequence[ir.Node], codes: npt.NDArray[Any], context: Context
) -> npt.NDArray[np.intp] | Refusal | None:
    """The flat index of the code of each number behind `moves`; None where nothing moves."""
    if all(node.op_type == "Identity" for node in moves):
        return None
    order = np.arange(codes.size).reshape(codes.shape)
    for node in moves:
        moved = context.constants.moved(node, order)
        if moved is None or moved.size != order.size:
            return Refusal(Reason.WEIGHTS_ARE_QUANTISED, name_of(node), f"behind a {node.op_type} that is not followed")
        order = moved
    return order


def dequantised_values(constant: Stored, layout: WeightLayout) -> npt.NDArray[Any]:
    """The numbers of a weight, those behind a DequantizeLinear in float64."""
    return constant.weight(layout).dequantised() if isinstance(constant, Dequantised) else constant


def bias_values(constant: Stored) -> Float64Array:
    """The numbers of a bias in float64."""
    return constant.bias(None).dequantised() if isinstance(constant, Dequantised) else np.asarray(constant, np.float64)
