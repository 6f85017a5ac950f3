"""Torch on one thread for a while: the same sums in the same order everywhere, and no waiting beside busy neighbours.

A grouped float64 convolution is thousands of tiny parallel loops: on two cores shared with another process, one forward
pass of ShuffleNet was measured at 24 s on two threads, against 0.02 s on one.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch's operators on one thread; the former number comes back afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
