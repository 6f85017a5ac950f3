"""Nodes out of order: a file is sorted, a model in memory is refused and not changed, and a circle is no model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cli_run import Run
from onnx import helper
from onnx_models import PARAMETERS, STATS, parse

import bnfold
from bnfold.frontends.onnx_files import load
from bnfold.reproduction import reproduce
from bnfold.runtime import open_session

NODES = f"c = Conv(x, w) b = BatchNormalization(c, {STATS}) r = Relu(b) y = Add(r, c2) c2 = Conv(x, w)"
HEAD = f"(float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w, {PARAMETERS}>"


def in_order() -> onnx.ModelProto:
    return parse(f"{HEAD} {{ {NODES.replace('y = Add(r, c2) c2 = Conv(x, w)', 'c2 = Conv(x, w) y = Add(r, c2)')} }}")


def in_memory(scale: float = 1.0) -> ir.Model:
    """The model, or one whose weights are so many times as large."""
    model = in_order()
    tensor = model.graph.initializer[0]
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.float32(scale) * onnx.numpy_helper.to_array(tensor), tensor.name))
    return ir.from_proto(model)


def backwards(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.ClearField("node")
    copy.graph.node.extend(reversed(model.graph.node))
    return copy


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def test_a_file_is_sorted_and_folds_as_it_would_in_order(tmp_path: Path) -> None:
    path = saved(backwards(in_order()), tmp_path / "m.onnx")
    onnx.checker.check_model(ir.to_proto(load(path)))
    results = [bnfold.fold(model) for model in (path, in_memory())]
    for result in results:
        assert [fold.subject.name for fold in result.report.folded] == ["b"]
        assert result.report.verification is not None
        assert result.report.verification.passed
    constants = [
        {
            name: value.const_value.numpy()
            for name, value in result.model.graph.initializers.items()
            if value.const_value
        }
        for result in results
    ]
    assert constants[0].keys() == constants[1].keys()
    assert all((constants[0][name] == constants[1][name]).all() for name in constants[0])
    assert bnfold.verify(path, in_memory()).passed


def test_a_file_in_order_keeps_it(tmp_path: Path) -> None:
    model = in_order()
    kept = ir.to_proto(load(saved(model, tmp_path / "m.onnx")))
    assert [node.op_type for node in kept.graph.node] == [node.op_type for node in model.graph.node]


def inside(late: bool) -> onnx.ModelProto:
    """An If whose bodies read a value of the main graph, which is computed after it if `late`."""
    body = helper.make_graph(
        [helper.make_node("Neg", ["a"], ["n"])], "body", [], [helper.make_tensor_value_info("n", 1, None)]
    )
    nodes = [helper.make_node("Relu", ["x"], ["a"]),
             helper.make_node("If", ["p"], ["y"], name="choice", then_branch=body, else_branch=body)]  # fmt: skip
    inputs = [helper.make_tensor_value_info("x", 1, [2]), helper.make_tensor_value_info("p", 9, [])]
    graph = helper.make_graph(nodes[::-1] if late else nodes, "g", inputs, [helper.make_tensor_value_info("y", 1, [2])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def body_backwards() -> onnx.ModelProto:
    model = inside(late=False)
    for attribute in model.graph.node[1].attribute:
        attribute.g.node.insert(0, helper.make_node("Abs", ["m"], ["n"]))
        attribute.g.node[1].output[0] = "m"
    return model


def test_a_body_that_hands_out_what_it_does_not_compute_is_refused(tmp_path: Path) -> None:
    model = inside(late=False)
    for attribute in model.graph.node[1].attribute:
        attribute.g.ClearField("node")
        attribute.g.output[0].name = "a"
    says = "node choice has a body that hands out a, which it does not compute; put an Identity into the body"
    with pytest.raises(bnfold.ModelError, match=says):
        bnfold.fold(ir.from_proto(model))
    with pytest.raises(bnfold.ModelError, match=rf"m\.onnx: {says}"):
        load(saved(model, tmp_path / "m.onnx"))
    with pytest.raises(bnfold.ProviderError):
        open_session(model)


def test_a_body_may_hand_out_its_input_or_a_constant() -> None:
    loop = parse(
        "(float[2] x, int64 n, bool p) => (float[2] y, float[K,2] z) { y, z = Loop <body = body (int64 i, bool c,"
        " float[2] s) => (bool c, float[2] s, float[2] k) <float[2] k = {1, 2}> { u = Abs(s) }> (n, p, x) }"
    )
    assert bnfold.inspect(ir.from_proto(loop)).decisions == ()


def function_backwards() -> onnx.ModelProto:
    model = parse(
        "(float[N] x) => (float[N] y) { y = local.f(x) }",
        functions='<opset_import: ["": 17], domain: "local"> f (u) => (w) { v = Abs(u) w = Neg(v) }',
        domains=["local"],
    )
    nodes = list(model.functions[0].node)
    model.functions[0].ClearField("node")
    model.functions[0].node.extend(reversed(nodes))
    return model


@pytest.mark.parametrize(
    "made", [lambda: inside(late=True), body_backwards, function_backwards],
    ids=["read in a body", "in a body", "in a function"],
)  # fmt: skip
def test_bodies_and_functions_are_sorted_too(tmp_path: Path, made: Callable[[], onnx.ModelProto]) -> None:
    model = made()
    with pytest.raises(bnfold.ModelError, match="reads a value before it is computed"):
        bnfold.inspect(ir.from_proto(model))
    onnx.checker.check_model(ir.to_proto(load(saved(model, tmp_path / "m.onnx"))))


def test_bodies_and_functions_in_order_are_none(tmp_path: Path) -> None:
    bnfold.inspect(ir.from_proto(inside(late=False)))
    nodes = ir.to_proto(load(saved(inside(late=False), tmp_path / "m.onnx"))).graph.node
    assert [node.op_type for node in nodes] == ["Relu", "If"]


@pytest.mark.parametrize("nodes", ["a = Abs(b) b = Neg(a) y = Add(a, x)", "a = Add(a, x) y = Abs(a)"])
def test_nodes_in_a_circle_are_a_model_error(tmp_path: Path, nodes: str) -> None:
    path = saved(parse(f"(float[N] x) => (float[N] y) {{ {nodes} }}"), tmp_path / "m.onnx")
    with pytest.raises(bnfold.ModelError, match=r"m\.onnx: its nodes read each other in a circle.*export it again"):
        load(path)


DATA = [np.zeros((40, 3, 8, 8), np.float32)]
CALLS: dict[str, Callable[[ir.Model], object]] = {
    "fold": bnfold.fold,
    "inspect": bnfold.inspect,
    "verify": lambda model: bnfold.verify(in_memory(), model),
    "recalibrate": lambda model: bnfold.recalibrate(model, DATA),
    "benchmark": lambda model: bnfold.benchmark(model, model),
    "unfold": bnfold.unfold,
    "pass": bnfold.FoldBatchNormPass().call,
    "reproduce": lambda model: reproduce(model, model, bnfold.verify(in_memory(), in_memory(2.0)), "unused"),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_model_in_memory_is_refused_with_the_node_and_not_changed(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ir.from_proto(backwards(in_order()))
    before = ir.to_proto(model)
    with pytest.raises(bnfold.ModelError) as caught:
        CALLS[call](model)
    assert str(caught.value).endswith(
        "node Add reads a value before it is computed; sort the nodes of its graph, graph.sort(), as the ONNX"
        " specification demands"
    )
    assert ir.to_proto(model) == before
    assert list(tmp_path.iterdir()) == []


def test_the_command_takes_such_a_file_and_gives_it_back_as_it_computes(run: Run, tmp_path: Path) -> None:
    path = saved(backwards(in_order()), tmp_path / "m.onnx")
    assert run(path, "-o", tmp_path / "f.onnx", "--manifest", "embed").code == 0
    onnx.checker.check_model(onnx.load(tmp_path / "f.onnx"))
    assert run("unfold", tmp_path / "f.onnx", "-o", tmp_path / "u.onnx").code == 0
    restored, original = onnx.load(tmp_path / "u.onnx").graph, onnx.load(path).graph
    assert sorted((*n.output, n.op_type, *n.input) for n in restored.node) == sorted(
        (*n.output, n.op_type, *n.input) for n in original.node
    )
    assert list(restored.initializer) == list(original.initializer)
