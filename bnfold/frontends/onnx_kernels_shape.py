"""Pad, Squeeze, Unsqueeze and DequantizeLinear, whose reference versions fail for some opsets or leave float64.

`DequantizeLinear: Y = (X - zero_point) * scale`, per tensor, per axis or per block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx.reference.op_run import OpRun

from bnfold.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bnfold.frontends.onnx_kernels_window import Array

_PAD_MODES = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}


class Pad(OpRun):
    """ONNX Pad, opsets 2 (attributes), 11 (inputs), 18 (axes) and 19 (wrap); negative pads crop."""

    op_domain = ""

    def _run(  # noqa: PLR0913 (the operator's inputs and attributes)
        self,
        x: Array,
        pads_input: Array | None = None,
        constant_value: Array | None = None,
        axes: Array | None = None,
        *,
        mode: str = "constant",
        pads: Sequence[int] | None = None,
        value: float = 0.0,
    ) -> tuple[Array]:
        amounts = [int(p) for p in (pads_input if pads_input is not None else pads or ())]
        chosen = [int(a) % x.ndim for a in axes] if axes is not None else list(range(x.ndim))
        if len(amounts) != 2 * len(chosen):
            raise ModelError(f"pads {amounts} do not fit {len(chosen)} axes", where=self.onnx_node.name)
        begins, ends = [0] * x.ndim, [0] * x.ndim
        for i, axis in enumerate(chosen):
            begins[axis], ends[axis] = amounts[i], amounts[len(chosen) + i]
        fill = float(value) if constant_value is None else np.asarray(constant_value).reshape(-1)[0]
        return (padded(x, begins, ends, mode, fill),)


class Squeeze(OpRun):
    """ONNX Squeeze, opsets 1 (attribute) and 13 (input); axes in any order, negative or not."""

    op_domain = ""

    def _run(self, x: Array, axes_input: Array | None = None, axes: Sequence[int] | None = None) -> tuple[Array]:
        chosen = axes_input if axes_input is not None else axes
        if chosen is None:
            return (np.squeeze(x),)
        return (np.squeeze(x, axis=tuple(int(a) for a in np.ravel(chosen))),)


class Unsqueeze(OpRun):
    """ONNX Unsqueeze, opsets 1 (attribute) and 13 (input); axes count in the output."""

    op_domain = ""

    def _run(self, x: Array, axes_input: Array | None = None, axes: Sequence[int] | None = None) -> tuple[Array]:
        chosen = axes_input if axes_input is not None else axes
        if chosen is None:
            raise ModelError("Unsqueeze has no axes", where=self.onnx_node.name)
        return (np.expand_dims(x, tuple(int(a) for a in np.ravel(chosen))),)


class DequantizeLinear(OpRun):
    """ONNX DequantizeLinear, opset 10 and later, in the type of the scale (the reference detours through float32)."""

    op_domain = ""

    def _run(  # noqa: PLR0913 (the operator's inputs and attributes)
        self,
        x: Array,
        scale: Array,
        zero_point: Array | None = None,
        *,
        axis: int = 1,
        block_size: int = 0,
        output_dtype: int = 0,
    ) -> tuple[Array]:
        del output_dtype  # The float64 rewrite makes it double, which is what the scale is too.
        integers = x.astype(scale.dtype)
        if zero_point is not None:
            integers = integers - _along(zero_point.astype(scale.dtype), x.shape, axis, block_size)
        return (integers * _along(scale, x.shape, axis, block_size),)


def padded(x: Array, begins: Sequence[int], ends: Sequence[int], mode: str, fill: float) -> Array:
    """`x` cropped by its negative pads, then padded by the positive ones.

    Raises:
        ModelError: The mode is not one that ONNX defines.
    """
    crop = tuple(slice(max(0, -b), n - max(0, -e)) for n, b, e in zip(x.shape, begins, ends, strict=True))
    width = [(max(0, b), max(0, e)) for b, e in zip(begins, ends, strict=True)]
    if mode == "constant":
        return np.pad(x[crop], width, mode="constant", constant_values=fill)
    if mode not in _PAD_MODES:
        raise ModelError(f"Pad mode '{mode}' is not an ONNX value")
    return np.asarray(np.pad(x[crop], width, mode=_PAD_MODES[mode]))  # type: ignore[call-overload]


def _along(value: Array, shape: Sequence[int], axis: int, block_size: int) -> Array:
    """`value` so that it broadcasts over `shape`: one number, one per index of `axis`, or one per block."""
    if value.size == 1 and block_size == 0:
        return value.reshape(())
    if block_size:
        repeated = np.repeat(value, block_size, axis=axis)
        return repeated[tuple(slice(n) for n in shape)]
    return value.reshape([-1 if a == axis % len(shape) else 1 for a in range(len(shape))])
