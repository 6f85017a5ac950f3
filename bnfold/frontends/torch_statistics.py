"""Stores new statistics in a module: each number rounded once to the buffer's type; everything else stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bnfold.drift import Statistics
from bnfold.errors import InternalError
from bnfold.frontends.torch_calls import tensor_in
from bnfold.frontends.torch_write import store

if TYPE_CHECKING:
    from torch import nn


def write_statistics(target: nn.Module, new: Sequence[tuple[tuple[str, str], Statistics]]) -> None:
    """Change `target`, the module that was observed or a copy of it.

    Args:
        target: The module.
        new: The names of mean and variance, and what they become.
    """
    import torch  # noqa: PLC0415

    with torch.no_grad():
        for names, statistics in new:
            for name, values in zip(names, (statistics.mean, statistics.variance), strict=True):
                tensor = tensor_in(target, name)
                if tensor is None:
                    raise InternalError("the statistics have no place in the module", where=name)
                store(tensor, values)
