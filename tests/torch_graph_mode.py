"""What must hold for every fold of a module as a graph, for the tests of that."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule
from torch_models import assert_same, sample

import bnfold
from bnfold import TorchFoldResult


def fold_graph(module: nn.Module, *shape: int, **options: Any) -> TorchFoldResult:
    """Fold as a graph; what holds for every result is checked here too, at other sizes of batch and numbers."""
    dtype = next(module.parameters()).dtype
    before = copy.deepcopy(module.state_dict())
    result = bnfold.fold(module, example_inputs=(sample(*shape, dtype=dtype),), as_graph=True, **options)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert_tidy(graph_of(result))
    if dtype == torch.float64 and not options.get("static_shapes"):
        assert_same(module, result.module, *shape)
    return result


def graph_of(result: TorchFoldResult) -> GraphModule:
    """The module, which is a graph."""
    assert isinstance(result.module, GraphModule)
    return result.module


def assert_tidy(module: GraphModule) -> None:
    """The graph is well-formed, computes nothing that is not read, and holds no tensor that is not read."""
    module.graph.lint()
    for node in module.graph.nodes:
        writes = node.op == "call_function" and getattr(node.target, "_schema", None) and node.target._schema.is_mutable
        silent = (
            node.op in ("output", "placeholder", "get_attr")
            or node.target == "_guards_fn"
            or node.name.startswith("_assert")
        )
        assert node.users or writes or silent, node
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr" and node.users}
    held = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    read |= {name for name in held if name.endswith("num_batches_tracked")}  # of a BatchNorm that stays
    assert held <= read, "a tensor is left that nothing reads"


def operators(result: TorchFoldResult) -> list[str]:
    """The aten operators of the graph, in order: "conv2d", "relu"."""
    calls = [node for node in graph_of(result).graph.nodes if node.op == "call_function"]
    return [str(node.target).removeprefix("aten.").split(".", maxsplit=1)[0] for node in calls]


def assert_settled(result: TorchFoldResult, *shape: int, **options: Any) -> None:
    """Folding again changes nothing, bit for bit."""
    again = bnfold.fold(result.module, example_inputs=(sample(*shape),), as_graph=True, verify=False, **options)
    old, new = graph_of(result).state_dict(), graph_of(again).state_dict()
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert operators(again) == operators(result)
    assert not again.report.folded
