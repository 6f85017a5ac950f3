"""Our own NumPy kernels for the ONNX reference evaluator: where it is wrong, slow, raises, or leaves the given dtype.

Of onnx 1.23, by reading its code and by the project's design: BatchNormalization before opset 14 mixes in batch
statistics; MaxPool with ceil_mode and pads, GlobalMaxPool of rank 3 and 5, LRN, Softmax before opset 13, Squeeze with
unsorted negative axes are wrong; Erf, DequantizeLinear and GroupNormalization detour through float32; grouped
ConvTranspose, linear Upsample, Resize 10 and negative Pad raise; Conv is slow. `Y = op(X)` in the dtype of X for every
kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bnfold.frontends.onnx_kernels_conv import Conv, ConvTranspose
from bnfold.frontends.onnx_kernels_norm import (
    LRN,
    BatchNormalization,
    Erf,
    GroupNormalization,
    Hardmax,
    LogSoftmax,
    Softmax,
)
from bnfold.frontends.onnx_kernels_pool import AveragePool, GlobalMaxPool, LpPool, MaxPool
from bnfold.frontends.onnx_kernels_resize import AbsoluteResize, Resize, Upsample
from bnfold.frontends.onnx_kernels_shape import DequantizeLinear, Pad, Squeeze, Unsqueeze

if TYPE_CHECKING:
    from onnx.reference.op_run import OpRun

KERNELS: Final[tuple[type[OpRun], ...]] = (
    AbsoluteResize,
    AveragePool,
    BatchNormalization,
    Conv,
    ConvTranspose,
    DequantizeLinear,
    Erf,
    GlobalMaxPool,
    GroupNormalization,
    Hardmax,
    LRN,
    LogSoftmax,
    LpPool,
    MaxPool,
    Pad,
    Resize,
    Softmax,
    Squeeze,
    Unsqueeze,
    Upsample,
)
