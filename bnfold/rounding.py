"""One correct rounding of float64 to a stored dtype, and whether the numbers survive it.

float64 -> bfloat16 by way of float32 rounds twice; rounding to odd first makes the second rounding right
(Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums", theorem on double rounding).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.affine import Float64Array


def unit_roundoff(dtype: np.dtype[Any]) -> float:
    """u, half the distance from 1 to the next number: 2^-24 for float32, 2^-11 for float16, 2^-8 for bfloat16."""
    return float(_finfo(dtype).eps) / 2


def largest(dtype: np.dtype[Any]) -> float:
    """The largest finite number."""
    return float(_finfo(dtype).max)


def smallest_subnormal(dtype: np.dtype[Any]) -> float:
    """The smallest number above zero."""
    return float(_finfo(dtype).smallest_subnormal)


def smallest_normal(dtype: np.dtype[Any]) -> float:
    """The smallest number from which on every number has all its digits."""
    return smallest_subnormal(dtype) / (2 * unit_roundoff(dtype))


def integer_range(dtype: np.dtype[Any]) -> tuple[int, int] | None:
    """The smallest and the largest number of an integer dtype, of 4 and 2 bits as well; None for any other."""
    if dtype.kind in "iu":
        return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    if not dtype.name.startswith(("int", "uint")):
        return None
    import ml_dtypes  # noqa: PLC0415  # comes with onnx; needed for the narrow integers only

    narrow = ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]
    return int(narrow.min), int(narrow.max)


def widens(source: np.dtype[Any], target: np.dtype[Any]) -> bool:
    """Every number of `source` is a number of `target`, so that the conversion is exact."""
    narrow, wide = _finfo(source), _finfo(target)
    fits = float(narrow.max) <= float(wide.max)
    tiny = float(narrow.smallest_subnormal) >= float(wide.smallest_subnormal)
    return bool(narrow.nmant <= wide.nmant and fits and tiny)


def round_once(values: npt.ArrayLike, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """float64 `values` to `dtype`, to nearest and ties to even, with one rounding; beyond the range gives inf."""
    exact: Float64Array = np.asarray(values, np.float64)
    with np.errstate(over="ignore", under="ignore"):
        if dtype.name == "bfloat16":
            return np.asarray(_to_odd_float32(exact).astype(dtype))
        return np.asarray(exact.astype(dtype))


def _to_odd_float32(exact: Float64Array) -> npt.NDArray[np.float32]:
    """float32 with its last bit set wherever the conversion was inexact (truncated towards zero)."""
    near = exact.astype(np.float32)
    past = np.abs(near.astype(np.float64)) > np.abs(exact)
    truncated = np.where(past, np.nextafter(near, np.float32(0)), near)
    inexact = np.isfinite(exact) & (truncated.astype(np.float64) != exact)
    bits = np.atleast_1d(truncated).view(np.uint32) | np.atleast_1d(inexact).astype(np.uint32)
    return bits.view(np.float32).reshape(exact.shape)


def _finfo(dtype: np.dtype[Any]) -> Any:
    if dtype.name in ("float16", "float32", "float64"):
        return np.finfo(dtype)
    import ml_dtypes  # noqa: PLC0415  # comes with onnx; needed for bfloat16 only

    return ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]


def fits(dtype: np.dtype[Any], *arrays: npt.NDArray[np.float64]) -> bool:
    """Whether every number is within the range of `dtype`; NaN is not."""
    return all(bool((np.abs(array) <= largest(dtype)).all()) for array in arrays)
