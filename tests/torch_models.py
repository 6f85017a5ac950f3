"""Small live PyTorch networks for the tests of the front end, and what must hold for each fold of them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from zoo.functional import conv
from zoo.lively import batchnorms, enliven

import bnfold
from bnfold import TorchFoldResult
from bnfold.decision import Decision, Folded, Kept, Reason

SHAPE = (2, 3, 9, 9)


class Counting(nn.Module):
    """Its forward pass writes the buffer that it multiplies by, before a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = conv(), nn.BatchNorm2d(4)
        self.register_buffer("scale", torch.ones(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        self.scale.add_(1.0)
        result: Tensor = self.bn(self.conv(x) * self.scale)
        return result


def alive(module: nn.Module, *shape: int, seed: int = 0) -> nn.Module:
    """`module` in float64 and eval mode, with parameters and statistics of no special form."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    norms = [norm for norm in batchnorms(module) if not norm.affine]
    for norm in norms:  # the zoo's networks have none of these
        norm.affine, norm.weight, norm.bias = (
            True,
            nn.Parameter(torch.ones(norm.num_features)),
            nn.Parameter(torch.zeros(norm.num_features)),
        )
    module.double()
    enliven(module, torch.randn(8, *(shape or SHAPE)[1:], generator=generator, dtype=torch.float64), seed=seed)
    for norm in norms:
        norm.affine, norm.weight, norm.bias = False, None, None
    return module


def sample(*shape: int, seed: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*(shape or SHAPE), generator=generator, dtype=torch.float64).to(dtype)


def fold(module: nn.Module, *shape: int, **options: Any) -> TorchFoldResult:
    """Fold with example inputs of `shape`; the result is checked here too, at other sizes of batch and numbers."""
    dtype = next(module.parameters()).dtype
    result = bnfold.fold(module, example_inputs=(sample(*shape, dtype=dtype),), **options)
    if dtype == torch.float64:
        assert_same(module, result.module, *shape)
    return result


def assert_same(before: nn.Module, after: nn.Module, *shape: int) -> None:
    """Equal to 1e-11 of the scale, on new numbers and another batch size."""
    first, *rest = shape or SHAPE
    for batch in (first, first + 3):
        x = sample(batch, *rest, seed=11)
        with torch.no_grad():
            old, new = copy.deepcopy(before)(x.clone()), copy.deepcopy(after)(x.clone())
        assert (old - new).abs().max() <= 1e-11 * old.abs().max(), "the folded module differs"


def names(decisions: tuple[Decision, ...], kind: type[Folded] | type[Kept]) -> list[str]:
    """The BatchNorms of which that became."""
    return [decision.subject.name for decision in decisions if isinstance(decision, kind)]


def reasons(result: TorchFoldResult) -> list[Reason]:
    """Why BatchNorms were kept: the first reason of each."""
    return [kept.refusals[0].reason for kept in result.report.kept]
