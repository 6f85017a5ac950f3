"""Stored numbers as text: what is left of their bits after a prediction, `bits(number) - bits(predicted) mod 2^k`.

A right prediction leaves -1, 0 or 1 (in units in the last place), which takes about a bit a number; a prediction of
zero leaves the number itself. Either way the numbers come back bit by bit, whatever the prediction was.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import Any

import numpy as np

Unsigned = np.ndarray[Any, np.dtype[np.unsignedinteger[Any]]]


def pack(data: bytes, width: int, predicted: bytes | None = None) -> str:
    """Text from which `unpack` makes `data` again.

    Args:
        data: Numbers of `width` bytes each, little-endian.
        width: 1, 2, 4 or 8.
        predicted: What the reader will be able to predict, of the same length; zeros when left out.
    """
    words = _words(data, width)
    difference = words if predicted is None else words - _words(predicted, width)
    planes = _zigzag(difference).view(np.uint8).reshape(-1, width).T  # the upper ones are zeros after a prediction
    return base64.b64encode(_deflated(planes.tobytes())).decode("ascii")


def _deflated(data: bytes) -> bytes:
    """Runs and frequencies alone: digits do not repeat, and a search for repetitions takes a hundred times as long."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    return deflater.compress(data) + deflater.flush()


def unpack(text: str, size: int, width: int, predicted: bytes | None = None) -> bytes:
    """The `size` bytes that were packed.

    Raises:
        ValueError: `text` was not made by `pack` of so many bytes.
    """
    planes = np.frombuffer(_inflated(text, size), np.uint8).reshape(width, -1)
    difference = _unzigzag(np.ascontiguousarray(planes.T).reshape(-1).view(f"<u{width}"))
    words = difference if predicted is None else difference + _words(predicted, width)
    return words.astype(f"<u{width}").tobytes()


def _inflated(text: str, size: int) -> bytes:
    """`size` bytes, and never more than that, whatever the text claims."""
    try:
        inflater = zlib.decompressobj()
        data = inflater.decompress(base64.b64decode(text, validate=True), size + 1)
    except (binascii.Error, zlib.error) as error:
        raise ValueError("packed numbers are damaged") from error
    if len(data) != size or not inflater.eof:
        raise ValueError(f"packed numbers take {len(data)} bytes where {size} were expected")
    return data


def _words(data: bytes, width: int) -> Unsigned:
    return np.frombuffer(data, f"<u{width}")


def _zigzag(words: Unsigned) -> Unsigned:
    """0, -1, 1, -2, ... to 0, 1, 2, 3, ...: small numbers of either sign have zeros in their upper bytes."""
    bits = words.dtype.itemsize * 8
    return np.asarray((words << 1) ^ -(words >> (bits - 1)), words.dtype)


def _unzigzag(words: Unsigned) -> Unsigned:
    return np.asarray((words >> 1) ^ -(words & 1), words.dtype)
