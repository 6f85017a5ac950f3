"""One engine, two front ends: as a graph a module is folded like the ONNX file of it, merges and clamps included."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from test_torch_agreement import RepVgg, onnx_names, rows
from torch import Tensor, nn
from torch.nn import functional
from torch_graph_mode import fold_graph
from torch_models import alive, sample
from zoo.exporting import export_torchscript
from zoo.functional import Net, conv
from zoo.lively import batchnorms, enliven
from zoo.vision import timm_network, torchvision_network

import bnfold
from bnfold.folding import plan
from bnfold.frontends.onnx_graph import OnnxGraph
from bnfold.frontends.torch_arguments import Arguments
from bnfold.frontends.torch_capture import capture_graph
from bnfold.frontends.torch_graph import TorchGraph

#: torch's own specifications of inputs and outputs warn when they are copied.
pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")


def assert_agree(module: nn.Module, x: Tensor, **options: Any) -> tuple[TorchGraph, Any]:
    """The same decisions and, bit for bit, the same constants before they are rounded."""
    for norm in batchnorms(module):
        norm.eps = float(np.float32(norm.eps))  # as the exporter writes it: 1e-5 becomes 9.99999975e-6
    onnx_graph = OnnxGraph(ir.from_proto(export_torchscript(module, x)))
    torch_graph = TorchGraph(None, capture_graph(module, Arguments((x,), {}), static_shapes=False))
    expected, made = plan(onnx_graph, **options), plan(torch_graph, **options)
    assert rows(made.decisions, {}) == rows(expected.decisions, onnx_names(onnx_graph))
    ours = {site.weight: index for index, site in torch_graph.linears.items()}
    changed = {*expected.bench.absorbed, *expected.bench.merged} - set(expected.bench.removed)
    for index in changed:
        name = str(onnx_graph.nodes[index].inputs[1].name)  # type: ignore[union-attr]
        old = expected.bench.linear_params(onnx_graph.operators[index])
        new = made.bench.linear_params(torch_graph.operators[ours[name]])
        assert np.array_equal(old.weight, new.weight), name
        assert np.array_equal(old.bias, new.bias), name
    assert len(changed) == len({*made.bench.absorbed, *made.bench.merged} - set(made.bench.removed)) > 0
    assert len(expected.bench.clamps) == len(made.bench.clamps)
    assert len(expected.bench.constants) == len(made.bench.constants)
    assert len(expected.bench.reduced) == len(made.bench.reduced)
    return torch_graph, made


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0"])
def test_branches_of_a_network_of_the_zoo_are_merged_alike(name: str) -> None:
    module, x = timm_network(name).eval(), torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    enliven(module, torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)), seed=0)
    _, made = assert_agree(module, x)
    assert made.merges
    assert not [d for d in made.decisions if type(d).__name__ != "Folded"]


def test_a_network_with_clamps_and_adds_is_reduced_alike() -> None:
    module, x = torchvision_network("densenet121").eval(), torch.randn(2, 3, 64, 64)
    enliven(module, torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)), seed=0)
    _, made = assert_agree(module, x, reduces=True)
    assert made.bench.clamps


def parts() -> dict[str, nn.Module]:
    return {"a": conv(), "b": conv(), "bn": nn.BatchNorm2d(4), "other": nn.BatchNorm2d(4), "last": conv(4, 5)}


def constant(s: Net, x: Tensor) -> Tensor:
    return s.last(s.bn(1.5 - s.a(x) * 0.5).relu()) * 2.0


def subtracted(s: Net, x: Tensor) -> Tensor:
    return s.last(functional.relu6(s.bn(s.a(x)) - s.other(s.b(x))))


def clamped(s: Net, x: Tensor) -> Tensor:
    return s.last(s.bn(s.a(x).clamp(-0.5, 0.75)) + s.other(s.b(x)))


@pytest.mark.parametrize("options", [{}, {"merges": False}, {"reduces": True}])
@pytest.mark.parametrize("code", [constant, subtracted, clamped])
def test_constants_sums_and_clamps_are_changed_alike(code: Any, options: dict[str, bool]) -> None:
    module = alive(Net(code, **parts())).float()
    assert_agree(module, sample(dtype=torch.float32), **options)


def test_parallel_branches_are_merged_alike() -> None:
    assert_agree(alive(RepVgg()).float(), sample(dtype=torch.float32))


def test_the_graph_can_be_exported_to_onnx() -> None:
    net = alive(RepVgg()).float()
    result = fold_graph(net)
    x = sample(dtype=torch.float32)
    program = torch.onnx.export(result.module, (x,), dynamo=True, verbose=False, optimize=False)
    assert program is not None
    kinds = [node.op_type for node in program.model.graph]
    assert kinds.count("Conv") == 2
    assert "BatchNormalization" not in kinds
    assert not bnfold.inspect(program.model).decisions
