"""Normalisations and activations that the reference evaluator gets wrong, or computes in float32.

`Y = scale * (X - mean) / sqrt(var + epsilon) + bias`, with the given or the sample's mean and variance.
"""

from __future__ import annotations

from math import erf, prod
from typing import TYPE_CHECKING

import numpy as np
from onnx.reference.op_run import OpRun

from bnfold.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bnfold.frontends.onnx_kernels_window import Array


class BatchNormalization(OpRun):
    """ONNX BatchNormalization, opset 6 and later.

    It normalises by the statistics of the batch only where the node says so: training_mode (opset 14), or more than
    one output read (opsets 7 to 13), or is_test = 0 (opset 6).
    """

    op_domain = ""

    def _run(  # noqa: PLR0913 (the operator's inputs and attributes)
        self,
        x: Array,
        scale: Array,
        bias: Array,
        mean: Array,
        var: Array,
        *,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        training_mode: int = 0,
        spatial: int = 1,
        is_test: int = 0,
        consumed_inputs: Sequence[int] | None = None,
    ) -> tuple[Array, ...]:
        del consumed_inputs
        version, outputs = self.run_params["opsets"].get("", 14), sum(bool(o) for o in self.onnx_node.output)
        shape = (-1, *(1,) * (x.ndim - 2)) if spatial else x.shape[1:]
        training = bool(training_mode) if version >= 14 else outputs > 1 if version >= 7 else not is_test
        if not training:
            return (_normalised(x, scale, bias, mean, var, epsilon=epsilon, shape=shape),)
        axes = (0, *range(2, x.ndim)) if spatial else (0,)
        batch_mean, batch_var = x.mean(axis=axes).reshape(mean.shape), x.var(axis=axes).reshape(var.shape)
        y = _normalised(x, scale, bias, batch_mean, batch_var, epsilon=epsilon, shape=shape)
        kept = float(momentum)
        running = (mean * kept + batch_mean * (1 - kept), var * kept + batch_var * (1 - kept))
        return (y, *running, batch_mean, batch_var)[: max(1, len(self.onnx_node.output))]


class GroupNormalization(OpRun):
    """ONNX GroupNormalization, opsets 18 (scale per group) and 21 (per channel); no detour through stash_type."""

    op_domain = ""

    def _run(  # noqa: PLR0913 (the operator's inputs and attributes)
        self,
        x: Array,
        scale: Array,
        bias: Array,
        *,
        epsilon: float = 1e-5,
        num_groups: int = 1,
        stash_type: int = 1,
    ) -> tuple[Array]:
        del stash_type
        groups = x.reshape(x.shape[0], num_groups, -1)
        unit = (groups - groups.mean(axis=2, keepdims=True)) / np.sqrt(groups.var(axis=2, keepdims=True) + epsilon)
        repeat = x.shape[1] // scale.size
        shape = (-1, *(1,) * (x.ndim - 2))
        factor, offset = (np.repeat(v, repeat).reshape(shape) for v in (scale, bias))
        return (unit.reshape(x.shape) * factor + offset,)


class LRN(OpRun):
    """ONNX LRN: the reference implementation loops over the batch where it means the channels."""

    op_domain = ""

    def _run(self, x: Array, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0, size: int = 1) -> tuple[Array]:
        before, after = (size - 1) // 2, size // 2
        padded = np.pad(np.square(x), [(0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)])
        total = np.zeros_like(x)
        for i in range(size):
            total += padded[:, i : i + x.shape[1]]
        return (x / (float(bias) + float(alpha) / size * total) ** float(beta),)


class Erf(OpRun):
    """ONNX Erf: the reference implementation returns float32."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        values = np.fromiter((erf(v) for v in x.ravel().tolist()), dtype=np.float64, count=x.size)
        return (values.reshape(x.shape).astype(x.dtype),)


class Softmax(OpRun):
    """ONNX Softmax: along one axis from opset 13, over all axes from `axis` on (default 1) before."""

    op_domain = ""

    def _run(self, x: Array, axis: int = -1) -> tuple[Array]:
        flat, along = _softmax_view(self, x, axis)
        raised = np.exp(flat - flat.max(axis=along, keepdims=True))
        return ((raised / raised.sum(axis=along, keepdims=True)).reshape(x.shape),)


class LogSoftmax(OpRun):
    """ONNX LogSoftmax, without the underflow of the logarithm of a Softmax."""

    op_domain = ""

    def _run(self, x: Array, axis: int = -1) -> tuple[Array]:
        flat, along = _softmax_view(self, x, axis)
        shifted = flat - flat.max(axis=along, keepdims=True)
        return ((shifted - np.log(np.exp(shifted).sum(axis=along, keepdims=True))).reshape(x.shape),)


class Hardmax(OpRun):
    """ONNX Hardmax: one at the first largest element, with the axes of Softmax."""

    op_domain = ""

    def _run(self, x: Array, axis: int = -1) -> tuple[Array]:
        flat, along = _softmax_view(self, x, axis)
        y = np.zeros_like(flat)
        np.put_along_axis(y, np.expand_dims(flat.argmax(axis=along), along), 1, axis=along)
        return (y.reshape(x.shape),)


def _normalised(  # noqa: PLR0913 (the inputs of the operator)
    x: Array, scale: Array, bias: Array, mean: Array, var: Array, *, epsilon: float, shape: Sequence[int]
) -> Array:
    per_channel = [np.asarray(v).reshape(shape) for v in (scale, bias, mean, var)]
    factor = per_channel[0] / np.sqrt(per_channel[3] + float(epsilon))
    y: Array = (x - per_channel[2]) * factor + per_channel[1]
    return y.astype(x.dtype, copy=False)


def _softmax_view(kernel: OpRun, x: Array, axis: int) -> tuple[Array, int]:
    """`x` in the shape, and the axis of it, that this opset means."""
    if kernel.run_params["opsets"].get("", 13) >= 13:
        return x, axis
    # The evaluator fills in the newest default, -1; before opset 13 it was 1.
    written = any(a.name == "axis" for a in kernel.onnx_node.attribute)
    first = (axis if written else 1) % max(x.ndim, 1)
    if x.size == 0:
        raise ModelError("Softmax of an empty tensor", where=kernel.onnx_node.name)
    return x.reshape(prod(x.shape[:first]), -1), 1
