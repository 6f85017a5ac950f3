"""What recalibration of a module must give, computed another way: plain hooks, one BatchNorm at a time, in float64."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import bnfold

Array = np.ndarray[Any, Any]


def expected(
    module: nn.Module, data: tuple[Tensor, ...], order: Sequence[str], *, bessel: bool = False
) -> dict[str, tuple[Array, Array]]:
    """Mean and variance by the path of the module; a shared one pools all its inputs.

    Args:
        module: In eval mode; not changed.
        data: All samples of each input.
        order: The paths of the BatchNorms in an order in which they can be computed.
        bessel: Whether to divide by n - 1.
    """
    wide = copy.deepcopy(module).double()
    inputs = [x.double() if x.is_floating_point() else x for x in data]
    found = {}
    for path in order:
        norm, seen = wide.get_submodule(path), list[Tensor]()
        handle = norm.register_forward_pre_hook(lambda _m, args, into=seen: into.append(args[0]))
        with torch.no_grad():
            wide(*[x.clone() for x in inputs])
        handle.remove()
        rows = torch.cat([x.movedim(1, -1).reshape(-1, x.shape[1]) for x in seen])
        mean, variance = rows.mean(0), rows.var(0, correction=int(bessel))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        found[path] = mean.numpy(), variance.numpy()
    return found


def batches(data: tuple[Tensor, ...], size: int) -> list[tuple[Tensor, ...]]:
    """Batches of `size` samples; the last one may be smaller."""
    return list(zip(*(x.split(size) for x in data), strict=True))


def assert_expected(
    result: bnfold.RecalibrationResult[nn.Module], wanted: dict[str, tuple[Array, Array]], tolerance: float
) -> None:
    """Every BatchNorm has these statistics, in the module and in the report, and no other one has new ones."""
    found = {entry.name: entry for entry in result.report.recalibrated}
    assert set(found) == set(wanted)
    for path, (mean, variance) in wanted.items():
        norm, deviation = result.model.get_submodule(path), np.sqrt(variance + found[path].epsilon)
        stored = [t.double().numpy() for t in (norm.running_mean, norm.running_var)]
        assert (stored[0] == found[path].new.mean).all()
        assert (stored[1] == found[path].new.variance).all()
        assert (np.abs(stored[0] - mean) <= tolerance * deviation).all(), path
        assert (np.abs(stored[1] - variance) <= tolerance * deviation**2).all(), path
