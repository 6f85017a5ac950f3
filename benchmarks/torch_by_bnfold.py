"""Folds a PyTorch module with bnfold: into its own class, and into a graph."""

from __future__ import annotations

from torch import Tensor, nn

import bnfold
from benchmarks.torch_made import Made, of_module


def by_bnfold(module: nn.Module, x: Tensor, _pair: tuple[str, str] = ("", "")) -> Made:
    """`bnfold.fold`, which verifies its result; the module's own class comes back."""
    result = bnfold.fold(module, example_inputs=(x[:2],))
    return of_module(result.module, result.report)


def by_bnfold_as_graph(module: nn.Module, x: Tensor, _pair: tuple[str, str] = ("", "")) -> Made:
    """`bnfold.fold` into a `torch.fx.GraphModule`, where every change has a place; it is verified as well."""
    result = bnfold.fold(module, example_inputs=(x[:2],), as_graph=True)
    return of_module(result.module, result.report)
