"""Conv and ConvTranspose for any rank, in the dtype given: one matrix product per group.

`Y[n, o, p] = b[o] + sum over c, k of W[o, c, k] * X[n, c, p*stride + k*dilation - pad]`; ConvTranspose is its adjoint.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx.reference.op_run import OpRun

from bnfold.errors import ModelError
from bnfold.frontends.onnx_kernels_window import Windows, resolve_windows, split_padding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bnfold.frontends.onnx_kernels_window import Array

# Elements of one slab of the unfolded input: 32 MiB in float64, so that a large image does not fill the memory.
_SLAB = 1 << 22


class Conv(OpRun):
    """ONNX Conv, opset 1 and later."""

    op_domain = ""

    def _run(  # noqa: PLR0913 (the operator's inputs and attributes)
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        *,
        auto_pad: str = "NOTSET",
        dilations: Sequence[int] | None = None,
        group: int = 1,
        kernel_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        where = self.onnx_node.name
        if kernel_shape is not None and tuple(kernel_shape) != w.shape[2:]:
            raise ModelError(f"kernel_shape {tuple(kernel_shape)} differs from the weights {w.shape}", where=where)
        if x.shape[1] != w.shape[1] * group or w.shape[0] % group:
            raise ModelError(f"weights {w.shape} and group {group} do not fit an input {x.shape}", where=where)
        windows = resolve_windows(
            x.shape[2:], w.shape[2:], strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad, where=where
        )
        y = _depthwise(x, w, windows) if w.shape[1] == 1 else _by_matrix_product(x, w, group, windows)
        return (y if b is None else y + b.reshape(-1, *(1,) * (x.ndim - 2)),)


class ConvTranspose(OpRun):
    """ONNX ConvTranspose, opset 1 and later; pads are distributed as onnxruntime does."""

    op_domain = ""

    def _run(  # noqa: PLR0913 (the operator's inputs and attributes)
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        *,
        auto_pad: str = "NOTSET",
        dilations: Sequence[int] | None = None,
        group: int = 1,
        kernel_shape: Sequence[int] | None = None,
        output_padding: Sequence[int] | None = None,
        output_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        rank, where = x.ndim - 2, self.onnx_node.name
        if kernel_shape is not None and tuple(kernel_shape) != w.shape[2:]:
            raise ModelError(f"kernel_shape {tuple(kernel_shape)} differs from the weights {w.shape}", where=where)
        if x.shape[1] != w.shape[0] or w.shape[0] % group:
            raise ModelError(f"weights {w.shape} and group {group} do not fit an input {x.shape}", where=where)
        steps, spread = tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank)
        extra, given = tuple(output_padding or (0,) * rank), tuple(pads or (0,) * (2 * rank))
        frame = tuple(
            (n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(x.shape[2:], steps, spread, w.shape[2:], strict=True)
        )
        full = tuple(f + e for f, e in zip(frame, extra, strict=True))
        wanted = None if output_shape is None else tuple(output_shape)[-rank:]
        if auto_pad in {"SAME_UPPER", "SAME_LOWER"} and wanted is None:
            given = _pads_for(full, tuple(n * s for n, s in zip(x.shape[2:], steps, strict=True)), auto_pad)
        elif wanted is not None:
            given = _pads_for(full, wanted, auto_pad)
        elif auto_pad == "VALID":
            given = (0,) * (2 * rank)
        sizes = wanted or tuple(f - given[i] - given[rank + i] for i, f in enumerate(full))
        windows = Windows(w.shape[2:], steps, spread, (0,) * rank, (0,) * rank, x.shape[2:])
        y = _cropped(_scattered(x, w, group, windows, frame), given[:rank], sizes)
        return (y if b is None else y + b.reshape(-1, *(1,) * rank),)


def _depthwise(x: Array, w: Array, windows: Windows) -> Array:
    """Groups of one input channel: a product per tap costs less than unfolding. w: (group*m, 1, *kernel)."""
    batch, groups = x.shape[:2]
    padded = windows.padded(x, 0.0)
    weights = w.reshape(groups, -1, prod(windows.kernel))
    y = np.zeros((batch, groups, weights.shape[1], *windows.output), dtype=x.dtype)
    for i, view in enumerate(windows.taps(padded)):
        y += view[:, :, None] * weights[:, :, i].reshape(groups, -1, *(1,) * len(windows.output))
    return y.reshape(batch, -1, *windows.output)


def _by_matrix_product(x: Array, w: Array, group: int, windows: Windows) -> Array:
    """Unfolds a slab of output rows at a time to (N, group, in*taps, positions) and multiplies by the weights."""
    batch, channels = x.shape[:2]
    padded, taps = windows.padded(x, 0.0), prod(windows.kernel)
    weights = w.reshape(group, w.shape[0] // group, -1)
    y = np.empty((batch, w.shape[0], *windows.output), dtype=x.dtype)
    row = batch * channels * taps * prod(windows.output[1:])
    rows = max(1, _SLAB // max(row, 1))
    for start in range(0, windows.output[0], rows):
        part = slice(start, min(start + rows, windows.output[0]))
        shape = (part.stop - start, *windows.output[1:])
        slab = np.empty((batch, channels, taps, *shape), dtype=x.dtype)
        for i, view in enumerate(windows.taps(padded)):
            slab[:, :, i] = view[:, :, part]
        product_ = weights @ slab.reshape(batch, group, weights.shape[2], -1)
        y[:, :, part] = product_.reshape(batch, -1, *shape)
    return y


def _scattered(x: Array, w: Array, group: int, windows: Windows, frame: tuple[int, ...]) -> Array:
    """The uncropped result, (N, out, *frame): every input element adds its multiple of the kernel."""
    batch, channels = x.shape[:2]
    weights = w.reshape(group, channels // group, -1, prod(windows.kernel))
    data = x.reshape(batch, group, channels // group, -1)
    y = np.zeros((batch, group * weights.shape[2], *frame), dtype=x.dtype)
    for i, tap in enumerate(product(*(range(k) for k in windows.kernel))):
        part = weights[..., i].transpose(0, 2, 1) @ data
        y[windows.under(tap)] += part.reshape(batch, -1, *x.shape[2:])
    return y


def _cropped(y: Array, begins: Sequence[int], sizes: Sequence[int]) -> Array:
    """`y` from `begins` on, in `sizes`; what lies beyond the scattered frame (output_padding) is zero."""
    if min(sizes, default=1) < 0:
        raise ModelError(f"the pads of ConvTranspose exceed its output {y.shape[2:]}")
    inner: tuple[Any, ...] = (..., *(slice(b, b + n) for b, n in zip(begins, sizes, strict=True)))
    kept = y[inner]
    missing = [(0, n - k) for n, k in zip(sizes, kept.shape[2:], strict=True)]
    return np.pad(kept, [(0, 0), (0, 0), *missing]) if any(m for _, m in missing) else kept


def _pads_for(full: Sequence[int], wanted: Sequence[int], auto_pad: str) -> tuple[int, ...]:
    sides = [split_padding(max(0, f - n), auto_pad) for f, n in zip(full, wanted, strict=True)]
    return (*(b for b, _ in sides), *(e for _, e in sides))
