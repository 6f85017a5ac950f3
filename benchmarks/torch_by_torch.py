"""Folds a PyTorch module with what PyTorch brings along, inductor apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import fusion

from benchmarks.torch_made import Made, of_module


def by_fx(module: nn.Module, _x: Tensor, _pair: tuple[str, str] = ("", "")) -> Made:
    """`torch.fx.experimental.optimization.fuse`."""
    from torch.fx.experimental.optimization import fuse  # noqa: PLC0415

    return of_module(fuse(module))


def by_freeze(module: nn.Module, x: Tensor, _pair: tuple[str, str] = ("", "")) -> Made:
    """`torch.jit.freeze` of the module traced with the example."""
    frozen = torch.jit.freeze(torch.jit.trace(module, x, check_trace=False))  # type: ignore[no-untyped-call]
    return Made(frozen, lambda _: len(frozen.inlined_graph.findAllNodes("aten::batch_norm")))


def by_fuse_modules(module: nn.Module, _x: Tensor, pair: tuple[str, str]) -> Made:
    """`torch.ao.quantization.fuse_modules` of the pair that the caller names."""
    return of_module(torch.ao.quantization.fuse_modules(module, [[*pair]]))  # type: ignore[no-untyped-call]


def by_hand(module: nn.Module, _x: Tensor, pair: tuple[str, str]) -> Made:
    """`torch.nn.utils.fusion` on the pair that the caller names, put back into the module."""
    first, second = (module.get_submodule(name) for name in pair)
    if isinstance(first, nn.Linear):
        fused: nn.Module = fusion.fuse_linear_bn_eval(first, second)  # type: ignore[arg-type]
    else:
        is_transposed = isinstance(first, nn.ConvTranspose2d)
        fused = fusion.fuse_conv_bn_eval(first, second, transpose=is_transposed)  # type: ignore[arg-type, type-var]
    module.set_submodule(pair[0], fused)
    module.set_submodule(pair[1], nn.Identity())
    return of_module(module)
