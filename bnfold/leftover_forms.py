"""What is written for a BatchNorm that stays, so that no BatchNorm is left: `y = s*x + t` as constant operators.

`s*x + t = s*(x - m) + (t + s*m)` for any m. Without the Sub, `s*x` and `t` cancel where |mean| is many standard
deviations; with m = mean, rounded first, nothing does. Measured on onnxruntime 1.31 (CPU), root mean square error in
u = 2^-24 or 2^-11 times the standard deviation of y, at |mean| / sqrt(var + epsilon) = 1, 8, 10, 100, 1000:

    float32  BatchNormalization 1.6, 6.5, 7.6, 74, 795  Mul-Add 1.4, 6.5, 7.8, 78, 801  Sub-Mul-Add 1.0 to 1.1
    float16  BatchNormalization 0.76 (in float32)       Mul-Add 1.2, 5.1, 6.3, 60, 612  Sub-Mul-Add 0.87

So a Sub comes first where that ratio is above 8, and in float16 and bfloat16 wherever a mean is not zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.decision import Reason, Refusal
from bnfold.graph import Operator
from bnfold.limits import FLOAT16_SHARE, MAX_OFFSET, MIN_SUBNORMALS
from bnfold.rounding import largest, round_once, smallest_subnormal
from bnfold.sources import Source
from bnfold.views import BatchNorm

#: What is wanted: the BatchNorm as it is; Mul and Add; a depthwise 1x1 Conv where the value has a spatial axis.
Form: TypeAlias = Literal["keep", "affine", "depthwise"]

#: The rank from which on a Conv takes a value.
_CONV_RANK = 3


@dataclass(frozen=True, eq=False)
class Part:
    """One operator, of the value before it and constants.

    Attributes:
        kind: Sub, Mul, Add, Conv (depthwise, kernel 1) or Identity.
        constants: float64, as they broadcast; of a Conv the weight (C, 1, 1, ...) and, unless all zero, the bias (C,).
    """

    kind: Literal["Sub", "Mul", "Add", "Conv", "Identity"]
    constants: tuple[Float64Array, ...] = ()


@dataclass(frozen=True, eq=False)
class Leftover:
    """What takes the place of a BatchNorm and of the affine operators that run into it or out of it.

    Attributes:
        source: The BatchNorm and those beside it.
        parts: What is written, in order.
    """

    source: Source
    parts: tuple[Part, ...]

    @property
    def place(self) -> int:
        """Which of the source's operators is the BatchNorm in whose place the parts come."""
        return next(i for i, op in enumerate(self.source.operators) if isinstance(op.view, BatchNorm))

    @property
    def kind(self) -> str:
        """The operators, joined by "-"."""
        return "-".join(part.kind for part in self.parts)


def leftover(source: Source, form: Form, *, is_stored: bool) -> Leftover | Refusal:
    """`source`, which has a BatchNorm, in `form`, or why it must stay.

    Args:
        source: A finite affine on axis 1.
        form: "affine" or "depthwise".
        is_stored: Whether the first operator computes what the model stores; its statistics are of no use otherwise.
    """
    operator = source.operators[0]
    shape, dtype = operator.input_shapes[0], source.operators[-1].dtype
    if shape is None or dtype is None:
        return Refusal(Reason.AXIS_NOT_PROVEN, operator.name, "its rank or type is not known")
    total = source.placed.affine
    centre = _centre(source, dtype, is_stored=is_stored)
    shift = total.shift + total.scale * centre
    parts = _parts(ChannelAffine(total.scale, shift), centre, len(shape), _is_conv(form, len(shape), dtype))
    refusal = _range(source, parts, dtype)
    return Leftover(source, parts) if refusal is None else refusal


def _is_conv(form: Form, rank: int, dtype: np.dtype[Any]) -> bool:
    """ONNX's Conv takes bfloat16 from operator set 22 on only, which is too new to count on."""
    return form == "depthwise" and rank >= _CONV_RANK and dtype.name != "bfloat16"


def _centre(source: Source, dtype: np.dtype[Any], *, is_stored: bool) -> Float64Array:
    """What to subtract first, numbers of `dtype`: the means, or where x yields zero if there are none; or zeros."""
    operator, total = source.operators[0], source.placed.affine
    zeros = np.zeros(total.channels)
    if isinstance(operator.view, BatchNorm) and is_stored:
        if source.offset <= (MAX_OFFSET if dtype.name in ("float32", "float64") else 0.0):
            return zeros
        centre, top = operator.view.mean, largest(dtype)
    else:
        centre = np.divide(-total.shift, total.scale, out=zeros.copy(), where=total.scale != 0)
        top = FLOAT16_SHARE * largest(dtype)
    return np.asarray(round_once(np.where(np.abs(centre) <= top, centre, 0.0), dtype), np.float64)


def _parts(affine: ChannelAffine, centre: Float64Array, rank: int, is_conv: bool) -> tuple[Part, ...]:
    """`affine` of `x - centre`; what changes nothing is left out."""
    column = (affine.channels, *(1,) * (rank - 2))
    scale, shift = affine.scale, affine.shift
    parts = [Part("Sub", (centre.reshape(column),))] if centre.any() else []
    if is_conv and (scale != 1).any():
        biases = (shift,) if shift.any() else ()
        return (*parts, Part("Conv", (scale.reshape(affine.channels, 1, *column[1:]), *biases)))
    parts += [Part("Mul", (scale.reshape(column),))] if (scale != 1).any() else []
    parts += [Part("Add", (shift.reshape(column),))] if shift.any() else []
    return tuple(parts) or (Part("Identity"),)


def _range(source: Source, parts: tuple[Part, ...], dtype: np.dtype[Any]) -> Refusal | None:
    """A number that does not fit, or a scale that loses precision which gamma has."""
    name = _batchnorm(source).name
    constants = [constant for part in parts for constant in part.constants]
    top = max((float(np.abs(constant).max()) for constant in constants), default=0.0)
    if top > largest(dtype):
        return Refusal(Reason.OVERFLOWS_DTYPE, name, f"{top:.3g} in {dtype.name}")
    scale = np.abs(source.placed.affine.scale)
    lost = (scale > 0) & (scale < MIN_SUBNORMALS * smallest_subnormal(dtype)) & _shrinks(source)
    if lost.any():
        return Refusal(Reason.UNDERFLOWS_DTYPE, name, f"{scale[lost].min():.3g} in {dtype.name}")
    return None


def _shrinks(source: Source) -> npt.NDArray[np.bool_]:
    """Where the scale is smaller than the gamma that it stands for; of several operators, anywhere."""
    view = source.operators[0].view
    alone = len(source.operators) == 1 and isinstance(view, BatchNorm)
    return np.asarray(view.deviation > 1 if alone and isinstance(view, BatchNorm) else True)


def _batchnorm(source: Source) -> Operator:
    return next(op for op in source.operators if isinstance(op.view, BatchNorm))
