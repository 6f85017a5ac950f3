"""Modules on a GPU: what is folded stays there, the check runs there, and nothing is moved for good."""

from __future__ import annotations

import pytest
import torch
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
