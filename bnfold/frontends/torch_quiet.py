"""Silence around calls of torch that warn about themselves, or whose failure bnfold tells in a sentence of its own."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silent() -> Iterator[None]:
    """No warning and no log entry of torch or its exporter."""
    disabled = logging.root.manager.disable
    try:
        logging.disable(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
