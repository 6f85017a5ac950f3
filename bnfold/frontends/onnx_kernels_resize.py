"""Resize and Upsample for every mode and opset: per axis a few taps and their weights.

`Y[.., i, ..] = sum over j of weight[i, j] * X[.., index[i, j], ..]`, one axis after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx.reference.op_run import OpRun

from bnfold.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bnfold.frontends.onnx_kernels_window import Array


@dataclass(frozen=True, slots=True)
class Sampling:
    """The attributes of a Resize node that decide which elements it reads.

    `simple` is the nearest_mode before opset 11, which onnxruntime rounds up when it shrinks and down when it grows.
    """

    mode: str
    coordinates: str
    nearest_mode: str = "round_prefer_floor"
    cubic_a: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False
    extrapolation: float = 0.0
    absolute: bool = False


@dataclass(frozen=True, slots=True)
class _Axis:
    size: int
    output: int
    scale: float
    start: float
    end: float


class Resize(OpRun):
    """ONNX Resize, opset 10 (`X, scales`) and later (`X, roi, scales, sizes`)."""

    op_domain = ""
    absolute = False

    def _run(  # noqa: PLR0913 (the operator's inputs and attributes)
        self,
        x: Array,
        *inputs: Array | None,
        antialias: int = 0,
        axes: Sequence[int] | None = None,
        coordinate_transformation_mode: str = "half_pixel",
        cubic_coeff_a: float = -0.75,
        exclude_outside: int = 0,
        extrapolation_value: float = 0.0,
        keep_aspect_ratio_policy: str = "stretch",
        mode: str = "nearest",
        nearest_mode: str = "round_prefer_floor",
    ) -> tuple[Array]:
        old = self.run_params["opsets"].get("", 11) < 11
        roi, scales, sizes = (None, *inputs, None)[:3] if old else (*inputs, None, None, None)[:3]
        sampling = Sampling(
            mode=mode,
            coordinates="asymmetric" if old else coordinate_transformation_mode,
            nearest_mode="simple" if old else nearest_mode,
            cubic_a=float(cubic_coeff_a),
            exclude_outside=bool(exclude_outside),
            antialias=bool(antialias),
            extrapolation=float(extrapolation_value),
            absolute=self.absolute,
        )
        chosen = [a % x.ndim for a in axes] if axes is not None else list(range(x.ndim))
        layout = _layout(x.shape, chosen, roi, scales, sizes, policy=keep_aspect_ratio_policy)
        return (resample(x, layout, sampling),)


class AbsoluteResize(Resize):
    """Resize with the absolute value of every weight: `sum |weight| * X`, the bound on a cubic Resize of |X|."""

    op_domain = "bnfold"
    absolute = True


class Upsample(OpRun):
    """ONNX Upsample, opsets 7 (attribute `scales`) and 9 (input `scales`), which onnxruntime computes as Resize 10."""

    op_domain = ""

    def _run(
        self, x: Array, scales_input: Array | None = None, mode: str = "nearest", scales: Sequence[float] | None = None
    ) -> tuple[Array]:
        factors = scales_input if scales_input is not None else np.asarray(scales, dtype=np.float64)
        layout = _layout(x.shape, list(range(x.ndim)), None, factors, None)
        # Opset 1 said 'bilinear', and some exporters still do.
        kind = "linear" if mode in {"linear", "bilinear"} else mode
        return (resample(x, layout, Sampling(kind, "asymmetric", "simple")),)


def resample(x: Array, layout: Sequence[_Axis], sampling: Sampling) -> Array:
    """`x` sampled along every axis whose size or scale changes.

    Raises:
        ModelError: The mode, coordinate mode or nearest mode is not one that ONNX defines, or a region is cropped
            without a change of size.
    """
    outside: list[tuple[int, Array]] = []
    y = x
    for number, axis in enumerate(layout):
        cropped = sampling.coordinates == "tf_crop_and_resize" and (axis.start, axis.end) != (0.0, 1.0)
        if axis.size == axis.output and axis.scale == 1.0:
            if cropped:
                # The ONNX text crops here, onnxruntime returns the axis as it is.
                raise ModelError("tf_crop_and_resize with a region and scale 1 has no agreed meaning")
            continue
        position = _positions(axis, sampling)
        index, weight = _taps(position, axis, sampling)
        y = _apply(y, number, index, np.abs(weight) if sampling.absolute else weight)
        if sampling.coordinates == "tf_crop_and_resize":
            outside.append((number, (position < 0) | (position > axis.size - 1)))
    for number, mask in outside:
        y = np.where(mask.reshape([-1 if a == number else 1 for a in range(x.ndim)]), sampling.extrapolation, y)
    return y.astype(x.dtype, copy=False)


def _apply(x: Array, axis: int, index: Array, weight: Array) -> Array:
    shape = [-1 if a == axis else 1 for a in range(x.ndim)]
    if weight.shape[1] == 1:
        return np.take(x, index[:, 0], axis=axis)
    total = np.zeros((*x.shape[:axis], index.shape[0], *x.shape[axis + 1 :]), dtype=np.float64)
    for j in range(index.shape[1]):
        total += np.take(x, index[:, j], axis=axis) * weight[:, j].reshape(shape)
    return total


def _positions(axis: _Axis, sampling: Sampling) -> Array:
    """Where each output element lies on the input axis, float64 (output,)."""
    # onnxruntime works these out in float32, and a nearest pixel flips with the last bit; the weights of the others
    # are continuous, so they get the exact value.
    kind = np.float32 if sampling.mode == "nearest" else np.float64
    i, half = np.arange(axis.output, dtype=kind), kind(0.5)
    scale, size, output = kind(axis.scale), kind(axis.size), kind(axis.output)
    start, end = kind(axis.start), kind(axis.end)
    match sampling.coordinates:
        case "asymmetric":
            found = i / scale
        case "half_pixel":
            found = (i + half) / scale - half
        case "tf_half_pixel_for_nn":  # opsets 11 and 12
            found = (i + half) / scale
        case "pytorch_half_pixel":
            found = (i + half) / scale - half if axis.output > 1 else np.zeros_like(i)
        case "half_pixel_symmetric":
            shift = size / kind(2) * (kind(1) - output / (scale * size))
            found = shift + (i + half) / scale - half
        case "align_corners":
            found = i * (size - kind(1)) / (output - kind(1)) if axis.output > 1 else np.zeros_like(i)
        case "tf_crop_and_resize" if axis.output > 1:
            found = start * (size - kind(1)) + i * (end - start) * (size - kind(1)) / (output - kind(1))
        case "tf_crop_and_resize":
            found = np.full_like(i, half * (start + end) * (size - kind(1)))
        case other:
            raise ModelError(f"coordinate_transformation_mode '{other}' is not an ONNX value")
    return np.asarray(found, dtype=np.float64)


def _taps(position: Array, axis: _Axis, sampling: Sampling) -> tuple[Array, Array]:
    """The elements that each output reads and their weights: int64 and float64, (output, taps) each."""
    match sampling.mode:
        case "nearest":
            index = _nearest(position, sampling.nearest_mode, axis.scale)
            return np.clip(index, 0, axis.size - 1)[:, None], np.ones((len(position), 1))
        case "linear":
            reach = 1
        case "cubic":
            reach = 2
        case other:
            raise ModelError(f"Resize mode '{other}' is not an ONNX value")
    shrink = min(axis.scale, 1.0) if sampling.antialias else 1.0
    span = int(np.ceil(reach / shrink))
    index = np.floor(position).astype(np.int64)[:, None] + np.arange(1 - span, span + 1)
    distance = np.abs(index - position[:, None]) * shrink
    weight = np.maximum(0.0, 1.0 - distance) if reach == 1 else _cubic(distance, sampling.cubic_a)
    if sampling.exclude_outside:
        weight = np.where((index < 0) | (index >= axis.size), 0.0, weight)
    if sampling.exclude_outside or sampling.antialias:
        weight = weight / weight.sum(axis=1, keepdims=True)
    return np.clip(index, 0, axis.size - 1), weight


def _cubic(distance: Array, a: float) -> Array:
    """Keys' cubic convolution kernel."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def _nearest(position: Array, mode: str, scale: float) -> Array:
    match mode:
        case "simple":
            chosen = np.ceil(position) if scale < 1 else np.trunc(position)
        case "round_prefer_floor":
            chosen = np.ceil(position - 0.5)
        case "round_prefer_ceil":
            chosen = np.floor(position + 0.5)
        case "floor":
            chosen = np.floor(position)
        case "ceil":
            chosen = np.ceil(position)
        case other:
            raise ModelError(f"nearest_mode '{other}' is not an ONNX value")
    return chosen.astype(np.int64)


def _layout(  # noqa: PLR0913 (the inputs of the operator)
    shape: Sequence[int],
    axes: Sequence[int],
    roi: Array | None,
    scales: Array | None,
    sizes: Array | None,
    *,
    policy: str = "stretch",
) -> list[_Axis]:
    """What happens on each axis; those not in `axes` stay as they are."""
    layout = [_Axis(n, n, 1.0, 0.0, 1.0) for n in shape]
    region = roi if roi is not None and roi.size else [*(0.0 for _ in axes), *(1.0 for _ in axes)]
    by_size = sizes is not None and sizes.size > 0
    if not by_size and (scales is None or not scales.size):
        raise ModelError("Resize has neither scales nor sizes")
    common = _common_scale([shape[a] for a in axes], sizes, policy) if by_size else None
    for i, a in enumerate(axes):
        if not by_size:
            scale = float(scales[i])  # type: ignore[index]  # one of the two is there, checked above
            # float32, as onnxruntime does it: 3 * 0.33333334 may or may not reach the next integer.
            output = int(np.floor(np.float32(scale) * np.float32(shape[a])))
        elif common is None:
            output = int(sizes[i])  # type: ignore[index]
            scale = output / shape[a]
        else:
            output, scale = int(np.floor(common * shape[a] + 0.5)), common
        layout[a] = _Axis(shape[a], output, scale, float(region[i]), float(region[len(axes) + i]))
    return layout


def _common_scale(shape: Sequence[int], sizes: Array | None, policy: str) -> float | None:
    if policy == "stretch" or sizes is None:
        return None
    ratios = [int(s) / n for s, n in zip(sizes, shape, strict=True)]
    return min(ratios) if policy == "not_larger" else max(ratios)
