"""Packed numbers come back bit by bit, whatever they are and whatever was predicted; damage is found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.packing import pack, unpack

WIDTHS = st.sampled_from([1, 2, 4, 8])


@given(width=WIDTHS, count=st.integers(0, 40), data=st.data())
def test_any_bytes_come_back_whatever_was_predicted(width: int, count: int, data: st.DataObject) -> None:
    size = width * count
    numbers, told = (data.draw(st.binary(min_size=size, max_size=size)) for _ in range(2))
    assert unpack(pack(numbers, width), size, width) == numbers
    assert unpack(pack(numbers, width, told), size, width, told) == numbers


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_predicted_to_the_last_place_takes_two_bits_a_number(dtype: type) -> None:
    generator = np.random.default_rng(0)
    numbers = generator.standard_normal(20_000).astype(dtype)
    near = np.nextafter(numbers, generator.choice([-9, 0, 9], numbers.size).astype(dtype))
    told = np.where(generator.random(numbers.size) < 0.5, numbers, near).astype(dtype)
    text = pack(numbers.tobytes(), numbers.itemsize, told.tobytes())
    assert len(text) < 20_000 * 2.5 / 6  # six bits a character
    assert unpack(text, numbers.nbytes, numbers.itemsize, told.tobytes()) == numbers.tobytes()


@pytest.mark.parametrize("text", ["", "?", "AAAA", pack(b"abcd", 4)[:-4], pack(bytes(8), 4), pack(b"", 4)])
def test_text_that_does_not_hold_so_many_bytes_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="packed numbers"):
        unpack(text, 4, 4)


def test_a_text_that_claims_too_much_is_not_unpacked_whole() -> None:
    with pytest.raises(ValueError, match="take 5 bytes where 4"):
        unpack(pack(bytes(1 << 24), 1), 4, 4)
