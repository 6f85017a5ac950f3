"""Sliding windows of Conv and pooling: where they start, how many there are, how the padding is split.

`out = floor_or_ceil((in + pad_begin + pad_end - (dilation*(kernel - 1) + 1)) / stride) + 1` on every spatial axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from bnfold.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Array: TypeAlias = np.ndarray[Any, Any]

_AUTO_PADS = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows over the spatial axes of an (N, C, *spatial) tensor; every tuple has one entry per spatial axis.

    Attributes:
        kernel: Taps.
        strides: Step between windows.
        dilations: Step between taps.
        begins: Padding before the first element.
        ends: Padding after the last element.
        output: Number of windows.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    output: tuple[int, ...]

    def padded(self, x: Array, fill: float) -> Array:
        """`x` with `fill` on every element that a window can see, and cut where no window reaches.

        Args:
            x: (N, C, *spatial), any dtype that holds `fill`.
            fill: The value of the padding.
        """
        reach = tuple(
            (o - 1) * s + d * (k - 1) + 1
            for o, s, d, k in zip(self.output, self.strides, self.dilations, self.kernel, strict=True)
        )
        shape = x.shape[:2] + reach
        if not any(self.begins) and shape == x.shape:
            return x
        out = np.full(shape, fill, dtype=x.dtype)
        seen = tuple(min(n, r - b) for n, r, b in zip(x.shape[2:], reach, self.begins, strict=True))
        in_front: tuple[Any, ...] = (...,)
        inner = tuple(slice(b, b + n) for b, n in zip(self.begins, seen, strict=True))
        out[in_front + inner] = x[in_front + tuple(slice(n) for n in seen)]
        return out

    def taps(self, padded: Array) -> Iterator[Array]:
        """The view of `padded` under each kernel tap in row-major order: (N, C, *output) each."""
        for tap in product(*(range(k) for k in self.kernel)):
            yield padded[self.under(tap)]

    def under(self, tap: Sequence[int]) -> tuple[Any, ...]:
        """The index of the padded elements that lie under one tap: an Ellipsis and one slice per spatial axis."""
        axes = zip(tap, self.strides, self.dilations, self.output, strict=True)
        return (..., *(slice(t * d, t * d + s * (o - 1) + 1, s) for t, s, d, o in axes))


def resolve_windows(  # noqa: PLR0913 (the attributes of the operator)
    spatial: Sequence[int],
    kernel: Sequence[int],
    *,
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str,
    ceil_mode: bool = False,
    where: str = "",
) -> Windows:
    """The windows that the attributes of a Conv or pooling node mean for an input of this spatial size.

    Raises:
        ModelError: The attributes have the wrong length, are negative, or leave no window.
    """
    rank = len(spatial)
    steps = tuple(strides or (1,) * rank)
    spread = tuple(dilations or (1,) * rank)
    given = tuple(pads or (0,) * (2 * rank))
    if auto_pad not in _AUTO_PADS:
        raise ModelError(f"auto_pad '{auto_pad}' is not an ONNX value", where=where)
    if not len(kernel) == len(steps) == len(spread) == rank or len(given) != 2 * rank:
        raise ModelError(f"kernel_shape, strides, dilations or pads do not fit {rank} spatial axes", where=where)
    if min(given, default=0) < 0:
        raise ModelError("negative pads are not supported", where=where)
    sides = [
        _sides(n, d * (k - 1) + 1, s, auto_pad, (given[i], given[rank + i]))
        for i, (n, k, s, d) in enumerate(zip(spatial, kernel, steps, spread, strict=True))
    ]
    output = tuple(
        _count(n, d * (k - 1) + 1, s, side, ceil_mode)
        for n, k, s, d, side in zip(spatial, kernel, steps, spread, sides, strict=True)
    )
    if min(output, default=1) < 1:
        raise ModelError(f"no window fits an input of spatial size {tuple(spatial)}", where=where)
    begins, ends = tuple(b for b, _ in sides), tuple(e for _, e in sides)
    return Windows(tuple(kernel), steps, spread, begins, ends, output)


def split_padding(total: int, auto_pad: str) -> tuple[int, int]:
    """(begin, end) of `total` padding: the odd one at the end for SAME_UPPER, at the beginning otherwise."""
    small = total // 2
    return (small, total - small) if auto_pad == "SAME_UPPER" else (total - small, small)


def _sides(size: int, extent: int, stride: int, auto_pad: str, given: tuple[int, int]) -> tuple[int, int]:
    if auto_pad == "NOTSET":
        return given
    if auto_pad == "VALID":
        return 0, 0
    wanted = -(-size // stride)
    return split_padding(max(0, (wanted - 1) * stride + extent - size), auto_pad)


def _count(size: int, extent: int, stride: int, side: tuple[int, int], ceil_mode: bool) -> int:
    room = size + sum(side) - extent
    if not ceil_mode:
        return room // stride + 1
    count = -(-room // stride) + 1
    # A window that would start in the padding at the end does not exist (onnxruntime and PyTorch agree).
    return count - 1 if (count - 1) * stride >= size + side[0] else count
