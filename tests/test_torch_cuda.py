"""Modules on a GPU: what is folded stays there, the check runs there, and nothing is moved for good."""

from __future__ import annotations

import copy

import pytest
import torch
from test_torch_kwargs import Masked, live
from test_torch_observed import Block, Net, folded, lively
from torch import Tensor, nn
from torch_models import sample

import bnfold

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


def on_gpu(module: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    return module.to("cuda", dtype)


def devices(module: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in (*module.parameters(), *module.buffers())}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_module_on_the_gpu_is_folded_there(dtype: torch.dtype) -> None:
    net = on_gpu(lively(nn.Sequential(Block(3), nn.ReLU(), Block())), dtype).to(memory_format=torch.channels_last)
    result = bnfold.fold(net, example_inputs=(sample(2, 3, 16, 16).to("cuda", dtype),))
    assert folded(result) == ["0.bn", "2.bn"]
    assert devices(result.module) == {"cuda"}
    assert result.module[0].conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert result.report.verification is not None
    assert result.report.verification.passed


def test_weights_are_written_where_they_are() -> None:
    net = on_gpu(lively(nn.Sequential(Block(3))))
    weight, place = net[0].conv.weight, net[0].conv.weight.data_ptr()
    bnfold.fold(net, example_inputs=(sample(2, 3, 16, 16).to("cuda", torch.float32),), inplace=True)
    assert net[0].conv.weight is weight
    assert weight.data_ptr() == place


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_graph_of_a_module_on_the_gpu_is_folded_there(dtype: torch.dtype) -> None:
    net = on_gpu(lively(nn.Sequential(Block(3), nn.ReLU(), Block())), dtype)
    x = sample(2, 3, 16, 16).to("cuda", dtype)
    result = bnfold.fold(net, example_inputs=(x,), as_graph=True)
    assert len(result.report.folded) == 2
    assert devices(result.module) == {"cuda"}
    assert result.report.verification is not None
    assert result.report.verification.passed
    with torch.no_grad():
        assert result.module(x).device.type == "cuda"


@pytest.mark.parametrize("method", ["sequential", "batch", "ema"])
def test_a_module_on_the_gpu_is_recalibrated_there(method: str) -> None:
    net = on_gpu(lively(nn.Sequential(Block(3), nn.ReLU(), Block())), torch.float64)
    data = [sample(8, 3, 16, 16, seed=k) for k in range(3)]
    result = bnfold.recalibrate(net, [x.to("cuda") for x in data], example_inputs=(data[0].to("cuda"),), method=method)
    host = bnfold.recalibrate(copy.deepcopy(net).cpu(), data, example_inputs=(data[0],), method=method)
    assert devices(result.model) == {"cuda"}
    assert len(result.report.recalibrated) == 2
    for (name, here), (_, there) in zip(result.model.named_buffers(), host.model.named_buffers(), strict=True):
        assert torch.allclose(here.cpu().double(), there.double(), rtol=1e-9), name


def test_a_module_without_a_graph_is_recalibrated_on_the_gpu() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y: Tensor = s.a(x)
        return y if x.sum() > 0 else -y

    net = on_gpu(lively(Net(forward, a=Block(3))), torch.float64)
    x = sample(8, 3, 16, 16).to("cuda")
    result = bnfold.recalibrate(net, [x], example_inputs=(x,))
    assert "the module was run once for each BatchNorm" in result.report.notes[0]
    assert devices(result.model) == {"cuda"}


def test_calibration_and_fold_stay_on_the_gpu() -> None:
    net = on_gpu(lively(nn.Sequential(Block(3))))
    x = sample(8, 3, 16, 16).to("cuda", torch.float32)
    result = bnfold.fold(net, example_inputs=(x,), calibrate=[x])
    assert folded(result) == ["0.bn"]
    assert devices(result.module) == {"cuda"}


def test_inputs_by_keyword_are_on_the_gpu_too() -> None:
    net = on_gpu(live(Masked()), torch.float32)
    image, mask = (sample(2, channels, size, size).to("cuda", torch.float32) for channels, size in ((3, 9), (1, 7)))
    for as_graph in (False, True):
        result = bnfold.fold(net, example_inputs=(image,), example_kwargs={"mask": mask}, as_graph=as_graph)
        assert len(result.report.folded) == 1
        assert devices(result.module) == {"cuda"}


def test_lazy_modules_on_the_gpu_are_kept_and_not_initialised() -> None:
    net = on_gpu(nn.Sequential(Block(3), nn.LazyBatchNorm2d()).eval())
    result = bnfold.fold(net, example_inputs=(sample(2, 3, 16, 16).to("cuda", torch.float32),))
    assert folded(result) == ["0.bn"]
    assert [kept.subject.name for kept in result.report.kept] == ["1"]
    assert {tensor.device.type for tensor in (*result.module.parameters(), *result.module.buffers())} == {"cuda"}


def test_parts_are_observed_and_folded_on_the_gpu() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        result: Tensor = s.a(x) if x.sum() > 0 else s.b(x)
        return result

    net = on_gpu(lively(Net(forward, a=Block(3), b=Block(3))))
    result = bnfold.fold(net, example_inputs=(sample(2, 3, 16, 16).to("cuda", torch.float32),))
    assert folded(result) == ["a.bn", "b.bn"]
    assert devices(result.module) == {"cuda"}


def test_inputs_are_made_up_on_the_gpu() -> None:
    result = bnfold.fold(on_gpu(lively(nn.Sequential(Block(3)))))
    assert folded(result) == ["0.bn"]
    assert devices(result.module) == {"cuda"}


def test_a_folded_module_on_the_gpu_passes_the_comparison() -> None:
    net = lively(nn.Sequential(Block(3))).float()
    result = bnfold.fold(on_gpu(net), example_inputs=(sample(2, 3, 16, 16).to("cuda", torch.float32),))
    assert bnfold.verify(net, result.module, example_inputs=(sample(2, 3, 16, 16).to("cuda", torch.float32),)).passed
