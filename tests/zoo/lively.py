"""Makes an untrained network alive: statistics of one random batch, moved a little, and scales of both signs.

With random statistics a network of fifty layers is dead: its output is constant to 1e-8, and no end-to-end figure on it
proves anything. With gamma' = +-gamma, gamma in [0.5, 1.5], beta' = 0.2 + 0.2 * e, and (mean, var) those of one batch,
every BatchNorm passes on about as much variation as it gets. The positive mean of beta calms the deep networks: with
beta' = 0.1 * e the float32 error of Inception v3 was 6.8e-5 of its scale, with this it is 3.5e-5. The statistics are
then moved,

    mean' = mean + 0.03 * sqrt(var) * e,    var' = var * exp(0.03 * e),    e ~ N(0, 1),

because no user's statistics are exactly those of the batch at hand.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_NEGATIVE = 0.3  # share of the channels whose scale is negative
_MOVE = 0.03


def batchnorms(network: nn.Module) -> list[_BatchNorm]:
    """Every BatchNorm module of a network, in registration order."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def enliven(network: nn.Module, batch: Tensor, *, seed: int, gain: float = 1.0) -> None:
    """Set affine parameters, biases and statistics of a network, in place; leave it in eval mode.

    Args:
        network: An untrained network; only its BatchNorms and its all-zero biases change.
        batch: The calibration batch, (N, C, H, W).
        seed: Of the generator behind every number drawn here.
        gain: Factor of every gamma. Below 1 a network is calmer: its activations bend less often beside their betas.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in batchnorms(network):
            _draw_affine(norm, generator, gain)
        _fill_zero_biases(network, generator)
        _calibrate(network, batch)
        for norm in batchnorms(network):
            _move_statistics(norm, generator)


def _draw_affine(norm: _BatchNorm, generator: torch.Generator, gain: float) -> None:
    size = norm.weight.shape
    norm.weight.copy_(gain * (0.5 + torch.rand(size, generator=generator)))
    norm.weight[torch.rand(size, generator=generator) < _NEGATIVE] *= -1
    norm.bias.copy_(0.2 + 0.2 * torch.randn(size, generator=generator))


def _fill_zero_biases(network: nn.Module, generator: torch.Generator) -> None:
    # some networks start their biases at zero, where a fold that loses a bias would go unseen
    for name, value in network.named_parameters():
        if name.endswith("bias") and not value.any():
            value.copy_(0.1 * torch.randn(value.shape, generator=generator))


def _calibrate(network: nn.Module, batch: Tensor) -> None:
    network.eval()  # dropout and stochastic depth stay off
    for norm in batchnorms(network):
        norm.train()
        norm.momentum = 1.0
    network(batch)
    network.eval()


def _move_statistics(norm: _BatchNorm, generator: torch.Generator) -> None:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    mean += _MOVE * variance.sqrt() * torch.randn(mean.shape, generator=generator)
    variance *= torch.exp(_MOVE * torch.randn(variance.shape, generator=generator))
