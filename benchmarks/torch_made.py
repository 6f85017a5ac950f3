"""What a folder of PyTorch modules made: how it is run, and how many BatchNorms one run goes through.

BatchNorms left are counted in what the result runs: the aten operators of one run for modules, and each tool for what
is no module.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import bnfold


class NothingToDoError(Exception):
    """The module's package brings no fold of its own for it."""


@dataclass(frozen=True, eq=False)
class Made:
    """What a tool made.

    Attributes:
        run: Computes what the module computes.
        left: How many BatchNorms one run goes through, given an input.
        report: bnfold's.
    """

    run: Callable[[Tensor], Any]
    left: Callable[[Tensor], int]
    report: bnfold.Report | None = None


#: Folds a module, given an example input and the layer and BatchNorm that a caller would name.
Tool: TypeAlias = Callable[[nn.Module, Tensor, tuple[str, str]], Made]


class _Counting(TorchDispatchMode):
    """Counts the BatchNorm operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found += "batch_norm" in str(func)
        return func(*args, **(kwargs or {}))


def calls(run: Callable[[Tensor], Any], x: Tensor) -> int:
    """How many BatchNorm operators a run on x goes through."""
    counting = _Counting()
    with torch.no_grad(), counting:
        run(x)
    return counting.found


def of_module(module: nn.Module, report: bnfold.Report | None = None) -> Made:
    """A tool's result that is a module, maybe with bnfold's report on it."""
    return Made(module, lambda x: calls(copy.deepcopy(module), x), report)
