"""A random graph in a branch, in a loop or in a function folds as it does by itself, and computes the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper

import bnfold
from bnfold.decision import Folded
from bnfold.frontends.onnx_float64 import evaluate, in_float64
from tests.random_graphs import random_graph

EXACT = 1e-9  # of the scale of an output, in float64


def _around(model: ModelProto, nodes: list[onnx.NodeProto], inputs: list[ValueInfoProto]) -> ModelProto:
    """A model that reads the inputs and initializers of `model`, with outputs called as its own and "_out"."""
    old = model.graph
    outputs = [helper.make_tensor_value_info(f"{o.name}_out", o.type.tensor_type.elem_type, None) for o in old.output]
    graph = helper.make_graph(nodes, "around", [*old.input, *inputs], outputs, old.initializer)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _outs(model: ModelProto) -> list[str]:
    return [f"{o.name}_out" for o in model.graph.output]


def _body(model: ModelProto, name: str, before: list[onnx.NodeProto], *more: ValueInfoProto) -> GraphProto:
    bare = [helper.make_tensor_value_info(o.name, o.type.tensor_type.elem_type, None) for o in model.graph.output]
    inputs, outputs = list(more[:2]), list(more[2:])
    return helper.make_graph([*before, *model.graph.node], name, inputs, [*outputs, *bare])


def in_branches(model: ModelProto) -> ModelProto:
    """The graph in both branches of an If: all names twice."""
    branches = {name: _body(model, name, []) for name in ("then_branch", "else_branch")}
    node = helper.make_node("If", ["which"], _outs(model), **branches)
    return _around(model, [node], [helper.make_tensor_value_info("which", TensorProto.BOOL, [])])


def in_loop(model: ModelProto) -> ModelProto:
    """The graph in every round of a Loop, which stacks the outputs."""
    kinds = (("round", TensorProto.INT64), ("go_on", TensorProto.BOOL), ("goes_on", TensorProto.BOOL))
    copied = helper.make_node("Identity", ["go_on"], ["goes_on"])
    body = _body(model, "body", [copied], *(helper.make_tensor_value_info(name, kind, []) for name, kind in kinds))
    node = helper.make_node("Loop", ["rounds", "start"], _outs(model), body=body)
    fed = (("rounds", TensorProto.INT64), ("start", TensorProto.BOOL))
    return _around(model, [node], [helper.make_tensor_value_info(name, kind, []) for name, kind in fed])


def in_function(model: ModelProto) -> ModelProto:
    """The graph as a function to which the weights are handed."""
    names = [v.name for v in model.graph.input]
    names += [t.name for t in model.graph.initializer if t.name not in names]
    outputs = [o.name for o in model.graph.output]
    function = helper.make_function("local", "net", names, outputs, model.graph.node, model.opset_import)
    around = _around(model, [helper.make_node("net", names, _outs(model), domain="local")], [])
    around.functions.append(function)
    around.opset_import.append(helper.make_opsetid("local", 1))
    return around


def _fits(model: ModelProto) -> bool:
    """Whether the graph can be wrapped, and ONNX's inference goes through it in a body as well.

    A Loop without carried values came with operator set 11. Where inference stops at a node, which it does at some
    ConvTranspose with output_shape, it knows nothing of the whole body, and less is folded.
    """
    stops = any(a.name == "output_shape" for node in model.graph.node for a in node.attribute)
    return model.opset_import[0].version >= 11 and not stops


WRAPS: dict[str, tuple[Callable[[ModelProto], ModelProto], int, dict[str, list[object]]]] = {
    "branches": (in_branches, 2, {"which": [True, False]}),
    "loop": (in_loop, 1, {"rounds": [2], "start": [True]}),
    "function": (in_function, 1, {}),
}


def _folds(model: ModelProto) -> tuple[Counter[str], ModelProto]:
    result = bnfold.fold(ir.from_proto(model), verify=False)
    names = (d.subject.name.removeprefix("call/") for d in result.decisions if isinstance(d, Folded))
    return Counter(name.removesuffix("_2").removesuffix("_3") for name in names), ir.to_proto(result.model)


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("first", range(0, 30, 10))
def test_a_wrapped_graph_folds_as_it_does_by_itself(first: int, wrap: str) -> None:
    around, times, choices = WRAPS[wrap]
    seen = 0
    for seed in range(first, first + 10):
        graph = random_graph(seed)
        wide = in_float64(graph.model)
        if not _fits(wide):
            continue
        wrapped = around(wide)
        if wrapped.graph.node[0].op_type == "net":
            wrapped.graph.node[0].name = "call"
        alone, _ = _folds(wide)
        folds, after = _folds(wrapped)
        assert folds == Counter({name: times * count for name, count in alone.items()}), seed
        seen += sum(folds.values())
        truth = evaluate(wide, graph.feeds)
        names = list(choices)
        for values in zip(*choices.values(), strict=True) if names else [()]:
            fed = graph.feeds | {name: np.asarray(value) for name, value in zip(names, values, strict=True)}
            found = evaluate(after, fed)
            for name, exact in truth.items():
                value = found[f"{name}_out"]
                value = value[-len(exact) :] if wrap == "loop" else value  # the evaluator joins, it does not stack
                scale = np.abs(exact, where=np.isfinite(exact), out=np.zeros(exact.shape)).max(initial=1e-300)
                same = (value == exact) | (np.isnan(value) & np.isnan(exact))
                assert (same | (np.abs(value - exact) <= EXACT * scale)).all(), (seed, name)
    assert seen
