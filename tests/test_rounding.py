"""`round_once` is the correctly rounded conversion; checked against exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bnfold.rounding import (
    integer_range,
    largest,
    round_once,
    smallest_normal,
    smallest_subnormal,
    unit_roundoff,
    widens,
)

FLOAT16, BFLOAT16, FLOAT32 = (np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32))
FLOAT64 = np.dtype(np.float64)
#: Bits of the significand, and the smallest and the largest exponent of a normal number (IEEE 754; bfloat16: 8 bits).
FORMATS = {FLOAT16: (11, -14, 15), BFLOAT16: (8, -126, 127), FLOAT32: (24, -126, 127)}


def nearest_even(value: float, dtype: np.dtype[Any]) -> float:
    """The nearest number of the format, ties to even, by rational arithmetic."""
    bits, lowest, highest = FORMATS[dtype]
    exact = abs(Fraction(value))
    if exact == 0:
        return 0.0
    exponent = exact.numerator.bit_length() - exact.denominator.bit_length()
    if Fraction(2) ** exponent > exact:
        exponent -= 1
    step = Fraction(2) ** (max(exponent, lowest) - bits + 1)
    rounded = round(exact / step) * step  # Fraction rounds ties to even
    if rounded >= Fraction(2) ** (highest + 1):
        return float("inf") if value > 0 else -float("inf")
    return float(rounded) if value > 0 else -float(rounded)


def halfway(value: float, dtype: np.dtype[Any], nudge: int) -> float:
    """The middle between a number of the format and the next one, moved by `nudge` units of float64."""
    low = float(round_once(value, dtype))
    bits, lowest, _ = FORMATS[dtype]
    exponent = max(int(np.floor(np.log2(abs(low)))), lowest) if low else lowest
    middle = low + np.copysign(2.0 ** (exponent - bits), low)
    for _ in range(abs(nudge)):
        middle = np.nextafter(middle, np.inf if nudge > 0 else -np.inf)
    return float(middle)


ANY = st.floats(allow_nan=False, allow_infinity=False)
ORDINARY = st.floats(-1e5, 1e5)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(FORMATS)), st.one_of(ANY, ORDINARY))
@example(BFLOAT16, 1 + 2.0**-8 + 2.0**-40)  # by way of float32 this is a tie, and rounds down
@example(BFLOAT16, 1 + 3 * 2.0**-8 - 2.0**-40)  # by way of float32 this is a tie, and rounds up
@example(BFLOAT16, 3.3961775292304e38)  # between the largest number and the tie
@example(BFLOAT16, 3.4e38)
@example(BFLOAT16, 1e39)
@example(FLOAT16, 1 + 2.0**-11 + 2.0**-40)
@example(FLOAT16, 65519.99999999999)
@example(FLOAT16, 65520.0)
@example(FLOAT32, 2.0**-150)
def test_it_is_the_nearest_number_and_ties_go_to_even(dtype: np.dtype[Any], value: float) -> None:
    result = round_once(value, dtype)
    assert (result.dtype, result.shape) == (dtype, ())
    assert float(result) == nearest_even(value, dtype)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(FORMATS)), st.floats(-6e4, 6e4), st.integers(-2, 2))
def test_it_is_right_next_to_a_tie(dtype: np.dtype[Any], value: float, nudge: int) -> None:
    middle = halfway(value, dtype, nudge)
    assert float(round_once(middle, dtype)) == nearest_even(middle, dtype)


@pytest.mark.parametrize("dtype", list(FORMATS))
def test_subnormal_numbers_are_rounded_right(dtype: np.dtype[Any]) -> None:
    tiny = smallest_subnormal(dtype)
    values = tiny * np.array([0.25, 0.5, 0.5 + 2**-30, 1, 1.5, 2.5, 3.49, 17.5, -0.5, -1.5])
    assert [float(v) for v in round_once(values, dtype)] == [nearest_even(v, dtype) for v in values]


def test_converting_by_way_of_float32_would_be_wrong() -> None:
    trap = 1 + 2.0**-8 + 2.0**-40
    twice = float(np.float32(trap).astype(ml_dtypes.bfloat16))
    assert twice != nearest_even(trap, BFLOAT16) == float(round_once(trap, BFLOAT16))


@pytest.mark.parametrize("dtype", [*FORMATS, FLOAT64])
def test_infinities_nan_zeros_and_shapes_are_kept(dtype: np.dtype[Any]) -> None:
    values = np.array([[np.inf, -np.inf, np.nan], [0.0, -0.0, 1.0]])
    result = round_once(values, dtype)
    assert result.shape == (2, 3)
    wide = result.astype(np.float64)
    np.testing.assert_array_equal(wide, values)
    np.testing.assert_array_equal(np.signbit(wide[1]), [False, True, False])
    assert round_once(np.zeros((0, 3)), dtype).shape == (0, 3)


def test_float64_is_left_as_it_is() -> None:
    values = np.array([1 / 3, 1e300, 5e-324])
    np.testing.assert_array_equal(round_once(values, FLOAT64), values)


@pytest.mark.parametrize("dtype", list(FORMATS))
def test_the_formats_limits_are_those_of_the_standard(dtype: np.dtype[Any]) -> None:
    bits, lowest, highest = FORMATS[dtype]
    assert unit_roundoff(dtype) == 2.0**-bits
    assert largest(dtype) == (2 - 2.0 ** (1 - bits)) * 2.0**highest
    assert smallest_subnormal(dtype) == 2.0 ** (lowest - bits + 1)
    assert smallest_normal(dtype) == 2.0**lowest


@pytest.mark.parametrize(
    ("name", "limits"),
    [("int8", (-128, 127)), ("uint16", (0, 65535)), ("int4", (-8, 7)), ("uint4", (0, 15)), ("int2", (-2, 1)),
     ("uint2", (0, 3)), ("int32", (-(2**31), 2**31 - 1)), ("float32", None), ("float8_e5m2", None), ("bfloat16", None)],
)  # fmt: skip
def test_integers_have_a_range_and_nothing_else_has(name: str, limits: tuple[int, int] | None) -> None:
    assert integer_range(np.dtype(getattr(ml_dtypes, name, name))) == limits


@pytest.mark.parametrize(
    ("source", "wider"),
    [(FLOAT16, {FLOAT16, FLOAT32, FLOAT64}), (BFLOAT16, {BFLOAT16, FLOAT32, FLOAT64}), (FLOAT32, {FLOAT32, FLOAT64}),
     (FLOAT64, {FLOAT64})],
)  # fmt: skip
def test_a_conversion_widens_exactly_where_every_number_survives(
    source: np.dtype[Any], wider: set[np.dtype[Any]]
) -> None:
    assert {target for target in (*FORMATS, FLOAT64) if widens(source, target)} == wider
