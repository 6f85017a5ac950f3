"""How far recalibrated statistics are from the truth, and what that does to the output: bnfold beside its peers.

    python -m benchmarks.recalibration_errors [--network digits darknet53 resnet50] [--samples 203]

The truth is one pass of all samples at once through the network in float64, each BatchNorm taking over the mean and
variance of what it sees before it normalises by them: what a network in use has to have on exactly these data. Peers:
`torch.optim.swa_utils.update_bn` (the mean of the variances of the batches), fvcore's `update_bn_stats` ("precise BN";
`pip install fvcore`, else its row is bnfold's `batch`, which computes the same), and the running average of training
with PyTorch's momentum of 0.1.

Mean: in standard deviations; variance: relative to itself plus epsilon; root mean square over the channels of the
BatchNorm where it is largest. Output: root mean square of the difference over that of the output's variation, both in
float64, so that the statistics alone make the difference.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn

import bnfold
from tests.zoo import NETWORKS, load
from tests.zoo.lively import batchnorms
from tests.zoo.weights import module_with_weights_of

ROOT = Path(__file__).parents[1]

Images = NDArray[np.float32]
Case = tuple[onnx.ModelProto, Callable[[], nn.Module], Images]
Recalibrate = Callable[[onnx.ModelProto, nn.Module, Sequence[Images]], nn.Module]


def digits(samples: int) -> Case:
    """The shipped classifier, trained, and held-out digits of another brightness and contrast."""
    from examples.train_digits import build_network  # noqa: PLC0415

    with np.load(ROOT / "models" / "digits-heldout.npz") as archive:
        images = archive["images"][:samples, None].astype(np.float32) / 16
    return onnx.load(ROOT / "models" / "digits-darknet.onnx"), build_network, 0.4 * images + np.float32(0.3)


def random_network(name: str, samples: int) -> Case:
    """A network of the zoo, weights random and alive, and images whose contrast varies."""
    network = load(name)
    contrast = np.exp(0.5 * np.random.default_rng(0).standard_normal((samples, 1, 1, 1)))
    images = 0.5 + contrast * network.sample(5, batch=samples)
    return network.proto, NETWORKS[name].build, images.astype(np.float32)


def exact(module: nn.Module, images: Images) -> tuple[nn.Module, torch.Tensor]:
    """The module in float64 with the true statistics, and its output."""
    wide = copy.deepcopy(module).double().eval()

    def take_over(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        rows = inputs[0].movedim(1, 0).flatten(1)
        norm.running_mean = rows.mean(dim=1)
        norm.running_var = rows.var(dim=1, correction=0)

    hooks = [norm.register_forward_pre_hook(take_over) for norm in batchnorms(wide)]
    with torch.no_grad():
        output = wide(torch.from_numpy(images).double())
    for hook in hooks:
        hook.remove()
    return wide, output


def by_bnfold(method: str) -> Recalibrate:
    """`bnfold.recalibrate` on the ONNX file, the statistics put into the module."""

    def run(proto: onnx.ModelProto, module: nn.Module, batches: Sequence[Images]) -> nn.Module:
        result = ir.to_proto(bnfold.recalibrate(ir.from_proto(proto), list(batches), method=method).model)
        stored = {t.name: onnx.numpy_helper.to_array(t).copy() for t in result.graph.initializer}
        state = module.state_dict()
        state |= {name: torch.from_numpy(stored[name]) for name in state if name in stored}
        module.load_state_dict(state)
        return module

    return run


def by_update_bn(_proto: onnx.ModelProto, module: nn.Module, batches: Sequence[Images]) -> nn.Module:
    """What follows stochastic weight averaging in PyTorch."""
    torch.optim.swa_utils.update_bn([torch.from_numpy(batch) for batch in batches], module)
    return module


def by_fvcore(_proto: onnx.ModelProto, module: nn.Module, batches: Sequence[Images]) -> nn.Module:
    """Precise BN."""
    from fvcore.nn.precise_bn import update_bn_stats  # type: ignore[import-untyped]  # noqa: PLC0415

    update_bn_stats(module.train(), [torch.from_numpy(batch) for batch in batches], len(batches))
    return module


def by_running_average(_proto: onnx.ModelProto, module: nn.Module, batches: Sequence[Images]) -> nn.Module:
    """Training without training: momentum 0.1, from the old statistics on."""
    module.train()
    with torch.no_grad():
        for batch in batches:
            module(torch.from_numpy(batch))
    return module


def methods() -> dict[str, Recalibrate]:
    """By what they are called in the table."""
    precise = importlib.util.find_spec("fvcore") is not None
    return {
        "running average, momentum 0.1": by_running_average,
        "torch `update_bn`": by_update_bn,
        "fvcore `update_bn_stats`" if precise else "precise BN": by_fvcore if precise else by_bnfold("batch"),
        "bnfold `batch`": by_bnfold("batch"),
        "bnfold `sequential`": by_bnfold("sequential"),
    }


def errors(found: nn.Module, truth: nn.Module, wanted: torch.Tensor, images: Images) -> tuple[float, float, float]:
    """Of mean, variance and output."""
    found = found.double().eval()
    means, variances = [], []
    for ours, right in zip(batchnorms(found), batchnorms(truth), strict=True):
        spread = right.running_var + right.eps
        means.append(((ours.running_mean - right.running_mean) / spread.sqrt()).square().mean().sqrt())
        variances.append(((ours.running_var - right.running_var) / spread).square().mean().sqrt())
    with torch.no_grad():
        y = found(torch.from_numpy(images).double())
    off, varies = (y - wanted).square().mean().sqrt(), (wanted - wanted.mean(dim=0)).square().mean().sqrt()
    return float(max(means)), float(max(variances)), float(off / varies)


def rows(network: str, samples: int, sizes: Sequence[int]) -> Iterator[str]:
    """One row for each method and batch size."""
    proto, build, images = digits(samples) if network == "digits" else random_network(network, samples)
    truth, wanted = exact(module_with_weights_of(proto, build), images)
    for name, method in methods().items():
        for size in sizes:
            batches = [images[i : i + size] for i in range(0, len(images), size)]
            figures = errors(method(proto, module_with_weights_of(proto, build), batches), truth, wanted, images)
            yield f"| {network} | {name} | {size} | " + " | ".join(f"{figure:.1e}" for figure in figures) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", nargs="+", default=["digits", "darknet53", "resnet50"])
    parser.add_argument("--samples", type=int, default=203)
    parser.add_argument("--batch-size", nargs="+", type=int, default=[4, 32])
    options = parser.parse_args()
    torch.manual_seed(0)
    print("| network | method | batch | mean | variance | output |\n|---|---|--:|--:|--:|--:|")
    for network in options.network:
        for row in rows(network, options.samples, options.batch_size):
            print(row, flush=True)


if __name__ == "__main__":
    main()
