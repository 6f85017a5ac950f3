"""The test networks are alive, calm, whole and equal to their float64 reference: all end-to-end figures rest on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch
from onnx import helper
from torch import nn

from tests.zoo import NETWORKS, Network, load, storage
from tests.zoo.exporting import check_batchnorms_kept, export_torchscript
from tests.zoo.lively import batchnorms, enliven
from tests.zoo.threads import one_thread

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALIVE = 1e-2  # least change between two images, of the output's scale
CALM = 1e-4  # largest change after a move of 1e-7
FELT = 3e-4  # least change of the output's norm per unit of a BatchNorm's parameters; float32 noise is 3e-5 at most
AGREES = 1e-4  # float32 at onnxruntime against float64


@pytest.fixture(params=NETWORKS, scope="module")
def network(request: pytest.FixtureRequest) -> Network:
    return load(request.param)


def change(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Largest difference of two outputs, of the scale of the first."""
    return float(np.max(np.abs(a - b)) / np.max(np.abs(a)))


def change_per_channel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same for every channel by its own scale, (C,)."""
    others = tuple(axis for axis in range(a.ndim) if axis != 1)
    ratio: NDArray[np.float64] = np.max(np.abs(a - b), axis=others) / np.max(np.abs(a), axis=others)
    return ratio


def test_the_output_follows_the_input(network: Network) -> None:
    first, second = (network.reference(network.sample(seed, batch=4)) for seed in (1, 2))
    assert change(first, second) > ALIVE
    assert np.min(change_per_channel(first, second)) > ALIVE


def test_a_tiny_move_of_the_input_stays_tiny_at_the_output(network: Network) -> None:
    x = network.sample(1).astype(np.float64)
    noise = np.random.default_rng(3).standard_normal(x.shape)
    moved = change(network.reference(x), network.reference(x + 1e-7 * noise))
    assert 0 < moved < CALM


def test_every_batchnorm_is_felt_at_the_output(network: Network) -> None:
    # else a wrong fold of that BatchNorm would pass every end-to-end check
    module = network.module().double().requires_grad_(True)
    with one_thread():
        y = module(torch.from_numpy(network.sample(1).astype(np.float64)))
        direction = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(4))
        (y * direction / direction.norm()).sum().backward()
    scale = y.detach().norm()
    for norm in batchnorms(module):
        assert norm.weight.grad is not None
        assert norm.bias.grad is not None
        assert float((norm.weight.detach() * norm.weight.grad).norm() / scale) > FELT
        assert float(norm.bias.grad.norm() / scale) > FELT


def test_the_file_keeps_every_batchnorm_in_inference_mode(network: Network) -> None:
    nodes = [node for node in network.proto.graph.node if node.op_type == "BatchNormalization"]
    assert len(nodes) == network.batchnorms == len(batchnorms(network.module()))
    for node in nodes:
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert attributes.get("training_mode", 0) == 0
        assert len(node.output) == 1


def test_the_scales_have_both_signs(network: Network) -> None:
    for norm in batchnorms(network.module()):
        magnitudes = norm.weight.detach().abs()
        assert float(magnitudes.min()) >= 0.5
        assert float(magnitudes.max()) <= 1.5
    scales = torch.cat([norm.weight.detach() for norm in batchnorms(network.module())])
    assert 0.2 < float((scales < 0).float().mean()) < 0.4


def test_the_file_is_valid_onnx(network: Network) -> None:
    onnx.checker.check_model(network.proto, full_check=True)


def test_onnxruntime_agrees_with_the_float64_reference_at_two_sizes(network: Network) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(network.path, options, providers=["CPUExecutionProvider"])
    for x in (network.sample(5), network.sample(6, batch=3, larger=32)):
        (y,) = session.run(None, {network.input_name: x})
        reference = network.reference(x)
        assert y.shape == reference.shape
        assert change(reference, y.astype(np.float64)) < AGREES


def test_an_export_that_folds_is_refused() -> None:
    network = load("unet")
    module = network.module()
    folded = export_torchscript(module, torch.from_numpy(network.sample(1)), fold=True)
    # torch folds behind the 10 convolutions and leaves the 2 behind transposed ones
    with pytest.raises(RuntimeError, match="2 BatchNormalization nodes, 12 BatchNorm modules, 12 expected"):
        check_batchnorms_kept(folded, module, network.batchnorms)


def test_a_network_with_random_statistics_is_not_alive() -> None:
    # the reason why the zoo calibrates, and the proof that the test above can fail
    network = load("darknet53")
    module = network.module().double()
    generator = torch.Generator().manual_seed(8)
    for norm in batchnorms(module):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(torch.randn(norm.running_mean.shape, generator=generator))
        norm.running_var.copy_(0.5 + torch.rand(norm.running_var.shape, generator=generator))
    with torch.no_grad(), one_thread():
        first, second = (module(torch.from_numpy(network.sample(seed)).double()).numpy() for seed in (1, 2))
    assert change(first, second) < ALIVE


def test_a_plain_chain_of_a_hundred_layers_is_chaotic() -> None:
    # the proof that the test of tiny moves can fail: without shortcuts each layer enlarges a small difference
    generator = torch.Generator().manual_seed(9)
    layers: list[nn.Module] = []
    for channels in [3] + 99 * [32]:
        convolution = nn.Conv2d(channels, 32, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, generator=generator)
        layers += [convolution, nn.BatchNorm2d(32), nn.ReLU()]
    chain = nn.Sequential(*layers)
    enliven(chain, torch.randn(16, 3, 8, 8, generator=generator), seed=10)
    x, noise = torch.randn(2, 1, 3, 8, 8, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        first, second = (chain.double()(image).numpy() for image in (x, x + 1e-7 * noise))
    assert change(first, second) > CALM


def test_a_network_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    load("unet")

    def refuse(recipe: object) -> onnx.ModelProto:
        raise AssertionError(f"built again: {recipe}")

    monkeypatch.setattr(storage, "build", refuse)
    assert load.__wrapped__("unet") == load("unet")
