"""One engine, two front ends: the same network as a PyTorch module and as an ONNX file is folded in the same way."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch_models import alive, sample
from zoo import load
from zoo.exporting import export_torchscript
from zoo.lively import batchnorms

from bnfold.decision import Decision, Kept
from bnfold.folding import FoldPlan, plan
from bnfold.frontends.onnx_graph import OnnxGraph
from bnfold.frontends.torch_arguments import Arguments
from bnfold.frontends.torch_capture import capture
from bnfold.frontends.torch_graph import TorchGraph


class RepVgg(nn.Module):
    """Three branches of one value, which the merge would join."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.wide = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.thin = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.same = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).relu()
        y = (self.wide(y) + self.thin(y) + self.same(y)).relu()
        scores: Tensor = self.head(y.mean((2, 3)))
        return scores


def planned_onnx(model: ir.Model) -> tuple[OnnxGraph, FoldPlan]:
    graph = OnnxGraph(model)
    return graph, plan(graph, merges=False)


def planned_torch(module: nn.Module, x: Tensor) -> tuple[TorchGraph, FoldPlan]:
    graph = TorchGraph(module, capture(module, Arguments((x,), {})))
    return graph, plan(graph, merges=False)


def onnx_names(graph: OnnxGraph) -> dict[str, str]:
    """By the name of a node with a weight: the path of the module that the weight is of."""
    found = {}
    for node in graph.nodes:
        value = node.inputs[1] if len(node.inputs) > 1 else None
        if value is not None and (value.name or "").endswith(".weight"):
            found[node.name] = str(value.name).removesuffix(".weight")
    return found


def rows(decisions: tuple[Decision, ...], called: dict[str, str]) -> list[tuple[Any, ...]]:
    """Kind, BatchNorm, direction and absorbers, by the paths of modules."""
    found = []
    for decision in decisions:
        if decision.subject.is_batchnorm:
            name = called.get(decision.subject.name, decision.subject.name)
            moved = (decision.direction, *sorted(called.get(n, n) for n in decision.into)) if not isinstance(
                decision, Kept
            ) else ()  # fmt: skip
            found.append((type(decision).__name__, name, *moved))
    return sorted(found)


def assert_agree(model: ir.Model, module: nn.Module, x: Tensor, count: int) -> None:
    for norm in batchnorms(module):
        norm.eps = float(np.float32(norm.eps))  # as the exporter writes it: 1e-5 becomes 9.99999975e-6
    onnx_graph, onnx_plan = planned_onnx(model)
    torch_graph, torch_plan = planned_torch(module, x)
    expected = rows(onnx_plan.decisions, onnx_names(onnx_graph))
    assert rows(torch_plan.decisions, {}) == expected
    assert len(expected) == count
    ours = {site.weight: index for index, site in torch_graph.linears.items()}
    compared = 0
    for index in onnx_plan.bench.absorbed:
        name = str(onnx_graph.nodes[index].inputs[1].name)  # type: ignore[union-attr]
        old = onnx_plan.bench.linear_params(onnx_graph.operators[index])
        new = torch_plan.bench.linear_params(torch_graph.operators[ours[name]])
        for a, b in ((old.weight, new.weight), (old.bias, new.bias)):
            assert np.array_equal(a, b), name
        compared += 1
    assert compared == len(torch_plan.bench.absorbed) > 0


@pytest.mark.parametrize("name", ["resnet50", "shufflenet_v2", "efficientnet_b0", "inception_v3", "densenet121"])
def test_a_network_of_the_zoo_is_folded_alike(name: str) -> None:
    network = load(name)
    model = ir.from_proto(network.proto)
    assert_agree(model, network.module(), torch.from_numpy(network.sample(3)), network.batchnorms)


def test_parallel_branches_are_folded_alike_where_nothing_is_merged() -> None:
    module = alive(RepVgg()).float()
    proto = export_torchscript(module, sample(dtype=torch.float32))
    assert_agree(ir.from_proto(proto), module, sample(dtype=torch.float32), 4)


def test_where_everything_may_change_parallel_branches_are_merged_alike() -> None:
    module = alive(RepVgg()).float()
    onnx_graph = OnnxGraph(ir.from_proto(export_torchscript(module, sample(dtype=torch.float32))))
    torch_graph = TorchGraph(None, capture(module, Arguments((sample(dtype=torch.float32),), {})))
    expected = rows(plan(onnx_graph).decisions, onnx_names(onnx_graph))
    assert rows(plan(torch_graph).decisions, {}) == expected
    assert [row[2] for row in expected].count("merge") == 1
