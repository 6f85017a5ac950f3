"""Small modules on each of which some folder of PyTorch modules is wrong, or that a fold must leave as they are.

Each is in float64 and eval mode, with parameters and statistics of no special form (`tests/zoo/lively.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.zoo.functional import Net, conv
from tests.zoo.lively import enliven

_IMAGE, _LARGER = (2, 3, 9, 9), (3, 3, 13, 12)


@dataclass(frozen=True)
class Case:
    """One small module.

    Attributes:
        key: Its name in a command line.
        title: What it is.
        make: Builds it, its parameters as PyTorch draws them.
        pair: The layer and the BatchNorm that a caller would name to a tool that asks for them.
        change: Done to the module once it has its statistics.
        shape: Of the example input.
        other: Of another input, which the module takes as well.
    """

    key: str
    title: str
    make: Callable[[], nn.Module]
    pair: tuple[str, str] = ("conv", "bn")
    change: Callable[[nn.Module], None] = lambda _: None
    shape: tuple[int, ...] = _IMAGE
    other: tuple[int, ...] = _LARGER

    def module(self) -> nn.Module:
        """The module, the same each time."""
        torch.manual_seed(7)
        module = self.make().double().requires_grad_(False)
        enliven(module, _numbers((8, *self.shape[1:]), 0), seed=0)
        self.change(module)
        return module

    def example(self) -> Tensor:
        """What a tool is told to fold with."""
        return _numbers(self.shape, 5)

    def inputs(self) -> tuple[Tensor, Tensor]:
        """What the results are compared on: other numbers, and other sizes."""
        return _numbers(self.shape, 6), _numbers(self.other, 7)


def _numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _plain() -> Net:
    return Net(lambda s, x: s.bn(s.conv(x)), conv=conv(), bn=nn.BatchNorm2d(4))


def _called_twice() -> Net:
    return Net(lambda s, x: s.bn(s.conv(x)) + s.conv(x), conv=conv(), bn=nn.BatchNorm2d(4))


def _two_batchnorms() -> Net:
    parts = {"conv": conv(), "bn": nn.BatchNorm2d(4), "other": nn.BatchNorm2d(4)}
    return Net(lambda s, x: s.bn(s.conv(x)) + s.other(s.conv(x)), **parts)


def _two_names() -> Net:
    layer = conv()
    return Net(lambda s, x: s.bn(s.conv(x)) + s.other(x), conv=layer, bn=nn.BatchNorm2d(4), other=layer)


def _tied() -> Net:
    encoder, decoder = conv(), nn.ConvTranspose2d(4, 3, 3)
    decoder.weight = encoder.weight  # as in an autoencoder
    return Net(lambda s, x: s.last(s.bn(s.conv(x))), conv=encoder, bn=nn.BatchNorm2d(4), last=decoder)


def _read_twice() -> Net:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = s.conv(x)
        result: Tensor = s.bn(y) + y.sigmoid()
        return result

    return Net(forward, conv=conv(), bn=nn.BatchNorm2d(4))


def _linear() -> Net:
    return Net(lambda s, x: s.bn(s.conv(x)), conv=nn.Linear(4, 4), bn=nn.BatchNorm1d(4))


def _wider_linear() -> Net:
    return Net(lambda s, x: s.bn(s.conv(x)), conv=nn.Linear(7, 5), bn=nn.BatchNorm1d(4))


def _transposed(groups: int, outputs: int) -> Net:
    layer = nn.ConvTranspose2d(4, outputs, 3, stride=2, groups=groups)
    parts = {"stem": conv(), "conv": layer, "bn": nn.BatchNorm2d(outputs)}
    return Net(lambda s, x: s.bn(s.conv(s.stem(x))), **parts)


def _fixed_sizes() -> Net:
    def forward(s: Any, x: Tensor) -> Tensor:
        mean = s.bn(s.conv(x)).sum((2, 3)) / (int(x.shape[2]) * int(x.shape[3]))
        result: Tensor = s.last(mean)
        return result

    return Net(forward, conv=conv(), bn=nn.BatchNorm2d(4), last=nn.Linear(4, 5))


def _train(module: nn.Module) -> None:
    norm = module.get_submodule("bn")
    norm.momentum = 0.1  # type: ignore[assignment]
    norm.train()


def _forget(module: nn.Module) -> None:
    norm = module.get_submodule("bn")
    norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None  # type: ignore[assignment]


def _clamp(name: str) -> Callable[[nn.Module], None]:
    def hooked(module: nn.Module) -> None:
        module.get_submodule(name).register_forward_hook(lambda _module, _inputs, output: output.clamp(min=0.3))

    return hooked


def _wrapped(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], None]:
    def change(module: nn.Module) -> None:
        wrap(module.get_submodule("conv")).eval().requires_grad_(False)

    return change


CASES: tuple[Case, ...] = (
    Case("plain", "Conv → BN", _plain),
    Case("called-twice", "the Conv is called again without the BN", _called_twice),
    Case("two-batchnorms", "the Conv is called twice, by two BNs", _two_batchnorms),
    Case("two-names", "the Conv has two names in the module tree", _two_names),
    Case("tied", "the Conv's weights are those of another layer too", _tied),
    Case("read-twice", "the Conv's output is read beside the BN", _read_twice),
    Case("linear", "Linear → BatchNorm1d on (N, C, L)", _linear, shape=(2, 4, 4), other=(5, 4, 4)),
    Case("wider-linear", "the same, L not C", _wider_linear, shape=(2, 4, 7), other=(5, 4, 7)),
    Case("training", "BN in training mode", _plain, change=_train),
    Case("no-statistics", "BN without running statistics", _plain, change=_forget),
    Case("weight-norm", "weight_norm (a parametrisation)", _plain, change=_wrapped(parametrizations.weight_norm)),
    Case("spectral-norm", "spectral_norm (a hook)", _plain, change=_wrapped(nn.utils.spectral_norm)),
    Case("hook-on-bn", "a forward hook changes the BN's output", _plain, change=_clamp("bn")),
    Case("hook-on-conv", "a forward hook changes the Conv's output", _plain, change=_clamp("conv")),
    Case("transposed", "ConvTranspose, 2 groups → BN", lambda: _transposed(2, 8)),
    Case("depthwise-transposed", "depthwise ConvTranspose → BN", lambda: _transposed(4, 4)),
    Case("fixed-sizes", "the forward pass divides by int(x.shape[2])", _fixed_sizes),
)
BY_KEY = {case.key: case for case in CASES}
