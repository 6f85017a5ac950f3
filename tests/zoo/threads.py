"""Torch on one thread for a while: the number of threads of the machine has no say in the order of the sums.

It costs little on images this small (ResNet-50, two images in float64: 0.10 s on one thread, 0.06 s on two), and
several test workers do not compete for the same cores.
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
