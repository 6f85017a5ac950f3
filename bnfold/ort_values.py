"""Arrays into onnxruntime and out of it, bfloat16 among them: NumPy has no such type, so its bits travel as uint16."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from bnfold.errors import ProviderError
from bnfold.placement import REMEDY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[np.generic]]

#: ONNX's number of the type, and its name.
_BFLOAT16, _NAME = 16, "bfloat16"


def run(
    handle: Any, types: Mapping[str, str], names: Sequence[str], feeds: Mapping[str, NDArray[np.generic]]
) -> Arrays:
    """The named outputs of an `onnxruntime.InferenceSession`.

    Args:
        handle: The session.
        types: The element type of every input and output by NumPy's name.
        names: Of the outputs; at least one.
        feeds: The inputs; those of bfloat16 in the type of `ml_dtypes`.

    Raises:
        ProviderError: This onnxruntime cannot be handed bfloat16.
    """
    if _NAME not in {types.get(name) for name in (*names, *feeds)}:
        return dict(zip(names, handle.run(list(names), dict(feeds)), strict=True))
    values = {name: _value(array) for name, array in feeds.items()}
    return {
        name: _array(value, types[name])
        for name, value in zip(names, handle.run_with_ort_values(list(names), values), strict=True)
    }


def _value(array: NDArray[np.generic]) -> Any:
    import numpy as np  # noqa: PLC0415  # --help names providers, and need not wait for NumPy
    import onnxruntime  # type: ignore[import-untyped]  # noqa: PLC0415

    if array.dtype.name != _NAME:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)
    make = getattr(onnxruntime.OrtValue, "ortvalue_from_numpy_with_onnx_type", None)
    if make is None:
        raise ProviderError("this onnxruntime takes no bfloat16 from Python", remedy=f"use a newer one, or {REMEDY}")
    return make(np.ascontiguousarray(array).view(np.uint16), _BFLOAT16)


def _array(value: Any, kind: str) -> NDArray[np.generic]:
    """A copy of what onnxruntime computed, which it leaves in the memory of the host."""
    import numpy as np  # noqa: PLC0415  # as above

    if kind != _NAME:
        return np.array(value.numpy())
    import ml_dtypes  # noqa: PLC0415

    shape = tuple(value.shape())
    bits = (ctypes.c_uint16 * int(np.prod(shape))).from_address(value.data_ptr()) if 0 not in shape else ()
    return np.array(bits, np.uint16).reshape(shape).view(ml_dtypes.bfloat16)
