"""Tensors as arrays and back, without a copy where both can share their memory; moments of a tensor on its own device.

`mean = sum(x) / n`, `m2 = sum((x - mean)^2)`, in float64, part by part of the batch (Chan's merge joins the parts).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bnfold.moments import ChannelMoments

if TYPE_CHECKING:
    from torch import Tensor

#: Numbers that are in float64 at one time: 64 MiB.
_PART = 1 << 23


def to_array(value: Any) -> Any:
    """A tensor, or each tensor of a list, as an array; anything else, and what NumPy has no type for, as it is."""
    import torch  # noqa: PLC0415

    if isinstance(value, list | tuple):
        return [to_array(entry) for entry in value]
    if not isinstance(value, torch.Tensor):
        return value
    plain = value.detach().resolve_conj().resolve_neg()
    if plain.dtype == torch.bfloat16:
        import ml_dtypes  # noqa: PLC0415  # comes with onnx

        return plain.cpu().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    try:
        return plain.cpu().numpy()
    except (RuntimeError, TypeError):  # 8-bit floating point, sparse and quantised tensors
        return value


def to_tensor(value: Any, like: Any) -> Any:
    """What `to_array` gave, or an array of the user's, on the device of `like`: a tensor, or a list of them."""
    import torch  # noqa: PLC0415

    if isinstance(value, list | tuple):
        likes = like if isinstance(like, list | tuple) else [like] * len(value)
        return [to_tensor(entry, other) for entry, other in zip(value, likes, strict=True)]
    if not isinstance(value, np.ndarray):
        return value
    array = value if value.flags.writeable and min(value.strides, default=1) >= 0 else value.copy()
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(like.device)
    return torch.from_numpy(array).to(like.device)


def moments_of(values: Tensor) -> ChannelMoments:
    """The moments of a tensor with its channels on axis 1; only C numbers leave its device."""
    import torch  # noqa: PLC0415

    channels = values.shape[1]
    found = ChannelMoments.none(channels)
    if not values.numel():
        return found
    if values.device.type not in ("cpu", "cuda"):  # others have no float64
        values = values.cpu()
    rows = max(1, _PART * len(values) // values.numel())
    for part in torch.split(values.detach(), rows):
        found = found + _moments_of_part(part)
    return found


def _moments_of_part(part: Tensor) -> ChannelMoments:
    import torch  # noqa: PLC0415

    axes = [axis for axis in range(part.ndim) if axis != 1]
    wide, count = part.to(torch.float64), part.numel() // part.shape[1]
    near = wide.mean(axes, keepdim=True)
    away = wide - near
    offset = away.mean(axes, keepdim=True)  # what rounding has left out of `near`
    m2 = away.square_().sum(axes, keepdim=True) - count * offset * offset
    both: npt.NDArray[Any] = torch.stack([near + offset, m2.clamp_(min=0)]).reshape(2, -1).cpu().numpy()
    return ChannelMoments(count, both[0].copy(), both[1].copy())
