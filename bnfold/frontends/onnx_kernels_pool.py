"""MaxPool, AveragePool, LpPool and GlobalMaxPool for any rank, in the dtype given, with the counts of onnxruntime.

`Y[p] = max`, or `sum / count`, over the taps k of `X[p*stride + k*dilation - pad]`; padding is -inf, or zero.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np
from onnx.reference.op_run import OpRun

from bnfold.errors import ModelError
from bnfold.frontends.onnx_kernels_window import Windows, resolve_windows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bnfold.frontends.onnx_kernels_window import Array


class MaxPool(OpRun):
    """ONNX MaxPool, opset 1 and later; Indices only in row-major order (storage_order 0)."""

    op_domain = ""

    def _run(  # noqa: PLR0913 (the operator's inputs and attributes)
        self,
        x: Array,
        *,
        auto_pad: str = "NOTSET",
        ceil_mode: int = 0,
        dilations: Sequence[int] | None = None,
        kernel_shape: Sequence[int] = (),
        pads: Sequence[int] | None = None,
        storage_order: int = 0,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array, ...]:
        windows = _windows(
            self,
            x,
            kernel_shape,
            strides=strides,
            dilations=dilations,
            pads=pads,
            auto_pad=auto_pad,
            ceil_mode=ceil_mode,
        )
        if len(self.onnx_node.output) < 2 or not self.onnx_node.output[1]:
            return (_maximum(x, windows),)
        if storage_order:
            raise ModelError(
                "MaxPool indices in column-major order (storage_order 1) are not supported", where=self.onnx_node.name
            )
        return _maximum(x, windows), _argmax(x, windows)


class AveragePool(OpRun):
    """ONNX AveragePool, opset 1 and later: a ceil_mode overhang beyond the pads is never counted."""

    op_domain = ""

    def _run(  # noqa: PLR0913 (the operator's inputs and attributes)
        self,
        x: Array,
        *,
        auto_pad: str = "NOTSET",
        ceil_mode: int = 0,
        count_include_pad: int = 0,
        dilations: Sequence[int] | None = None,
        kernel_shape: Sequence[int] = (),
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        windows = _windows(
            self,
            x,
            kernel_shape,
            strides=strides,
            dilations=dilations,
            pads=pads,
            auto_pad=auto_pad,
            ceil_mode=ceil_mode,
        )
        return (_total(x, windows) / _count(x, windows, bool(count_include_pad)),)


class LpPool(OpRun):
    """ONNX LpPool, opset 2 and later: the p-norm of every window."""

    op_domain = ""

    def _run(  # noqa: PLR0913 (the operator's inputs and attributes)
        self,
        x: Array,
        *,
        auto_pad: str = "NOTSET",
        ceil_mode: int = 0,
        dilations: Sequence[int] | None = None,
        kernel_shape: Sequence[int] = (),
        p: int = 2,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        windows = _windows(
            self,
            x,
            kernel_shape,
            strides=strides,
            dilations=dilations,
            pads=pads,
            auto_pad=auto_pad,
            ceil_mode=ceil_mode,
        )
        return (_total(np.abs(x) ** p, windows) ** (1.0 / p),)


class GlobalMaxPool(OpRun):
    """ONNX GlobalMaxPool: the reference implementation takes two axes whatever the rank."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


def _windows(  # noqa: PLR0913 (the attributes of the operator)
    kernel: OpRun,
    x: Array,
    kernel_shape: Sequence[int],
    *,
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str,
    ceil_mode: int,
) -> Windows:
    where = kernel.onnx_node.name
    if auto_pad.startswith("SAME") and max(dilations or (1,)) > 1:
        # onnxruntime leaves the dilation out of the padding, the ONNX text counts it in: nobody knows what is meant.
        raise ModelError("pooling with auto_pad SAME and dilations has no agreed meaning", where=where)
    return resolve_windows(
        x.shape[2:],
        kernel_shape,
        strides=strides,
        dilations=dilations,
        pads=pads,
        auto_pad=auto_pad,
        ceil_mode=bool(ceil_mode),
        where=where,
    )


def _lowest(x: Array) -> float:
    return -np.inf if x.dtype.kind == "f" else int(np.iinfo(x.dtype).min)


def _maximum(x: Array, windows: Windows) -> Array:
    y = np.full((*x.shape[:2], *windows.output), _lowest(x), dtype=x.dtype)
    for view in windows.taps(windows.padded(x, _lowest(x))):
        np.maximum(y, view, out=y)
    return y


def _argmax(x: Array, windows: Windows) -> Array:
    """The flat index into `x` of the first largest element of every window, int64."""
    best = np.full((*x.shape[:2], *windows.output), _lowest(x), dtype=x.dtype)
    index = np.full(best.shape, -1, dtype=np.int64)
    positions = windows.padded(np.arange(x.size, dtype=np.int64).reshape(x.shape), -1)
    for view, place in zip(windows.taps(windows.padded(x, _lowest(x))), windows.taps(positions), strict=True):
        better = (place >= 0) & ((index < 0) | (view > best))
        best, index = np.where(better, view, best), np.where(better, place, index)
    return index


def _total(x: Array, windows: Windows) -> Array:
    y = np.zeros((*x.shape[:2], *windows.output), dtype=x.dtype)
    for view in windows.taps(windows.padded(x, 0)):
        y += view
    return y


def _count(x: Array, windows: Windows, include_pad: bool) -> Array:
    """How many taps of each window count, (1, 1, *output): those on elements, or on elements and pads."""
    if not include_pad:
        counted = _total(np.ones((1, 1, *x.shape[2:]), dtype=x.dtype), windows)
        # A window wholly in padding sums to zero; dividing by one keeps the zero.
        return np.maximum(counted, 1)
    framed = tuple(n + b + e for n, b, e in zip(x.shape[2:], windows.begins, windows.ends, strict=True))
    none = (0,) * len(framed)
    frame = Windows(windows.kernel, windows.strides, windows.dilations, none, none, windows.output)
    if not prod(framed):
        raise ModelError("AveragePool of an empty tensor")
    return np.maximum(_total(np.ones((1, 1, *framed), dtype=x.dtype), frame), 1)
