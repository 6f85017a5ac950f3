"""BatchNorms in model-local functions: written out at the calls where that leads to a fold, left alone elsewhere.

Bugs of other tools that are covered here: the defaults of attributes forgotten (onnx's own inliner), functions ignored
(onnxsim, onnxslim, onnxoptimizer, onnxscript's fusion).
"""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_models import PARAMETERS, STATS, as_bytes, assert_fold, parse, proto, reasons

import bnfold
from bnfold.data import read_inputs, synthesise
from bnfold.decision import Folded, Kept, Reason
from bnfold.frontends.onnx_float64 import evaluate, in_float64
from bnfold.frontends.onnx_inline import calls

SECOND = PARAMETERS.replace("gamma", "gamma2").replace("beta", "beta2").replace("mean", "mean2").replace("var", "var2")
STATS2 = "gamma2, beta2, mean2, var2"
IMAGE, SMALL = "float[N,3,8,8]", "float[N,4,6,6]"

BLOCK = """<domain: "local", opset_import: ["" : 17]>
    block (x, w, g, b, m, v) => (y) { c = Conv(x, w) y = BatchNormalization(c, g, b, m, v) }"""


def _model(
    nodes: str, functions: str, outputs: str = f"({SMALL} y)", more: str = "", opset: int = 17
) -> onnx.ModelProto:
    text = f"({IMAGE} x) => {outputs} <float[4,3,3,3] w, {PARAMETERS}, {SECOND}{more}> {{ {nodes} }}"
    return parse(text, functions=functions, domains=["local"], opset=opset)


def _same(before: onnx.ModelProto, after: ir.Model) -> None:
    feeds = synthesise(read_inputs(before), seed=5, batch=2, overrides={})
    old, new = (evaluate(in_float64(model), feeds) for model in (before, proto(after)))
    for name, value in old.items():
        assert np.allclose(value, new[name], rtol=0, atol=3e-6 * np.abs(value).max())


def _folded(model: onnx.ModelProto, count: int, **options: object) -> bnfold.FoldResult:
    result = assert_fold(model, folded=count, **options)  # type: ignore[arg-type]
    _same(model, result.model)
    return result


def test_a_batchnorm_in_a_function_is_folded_where_the_function_is_called() -> None:
    result = _folded(_model(f"y = local.block(x, w, {STATS})", BLOCK), 1)
    assert not result.model.functions
    assert [(node.op_type, node.name) for node in result.model.graph] == [("Conv", "y/c")]
    assert result.report.before.batchnorms == 1
    assert result.report.after is not None
    assert result.report.after.batchnorms == 0


def test_a_function_called_twice_is_folded_with_the_weights_of_each_call() -> None:
    nodes = f"a = local.block(x, w, {STATS}) n = Neg(x) b = local.block(n, w, {STATS2}) y = Add(a, b)"
    result = _folded(_model(nodes, BLOCK), 2)
    assert [node.op_type for node in result.model.graph] == ["Conv", "Neg", "Conv", "Add"]
    assert [d.subject.name for d in result.decisions] == ["a/y", "b/y"]


def test_the_names_are_the_calls_and_the_inner_ones() -> None:
    model = _model(f"a = local.block(x, w, {STATS}) b = local.block(x, w, {STATS2}) y = Mul(a, b)", BLOCK)
    model.functions[0].node[0].name, model.functions[0].node[1].name = "conv", "norm"
    for node, name in zip(model.graph.node, ("layer1", "layer1", "product"), strict=True):
        node.name = name  # two calls of one name
    result = _folded(model, 2, runs=False)  # onnxruntime refuses them
    assert [d.subject.name for d in result.decisions] == ["layer1/norm", "layer1/norm_2"]
    assert [d.into for d in result.report.folded] == [("layer1/conv",), ("layer1/conv_2",)]
    assert [node.name for node in result.model.graph] == ["layer1/conv", "layer1/conv_2", "product"]
    recorded = json.loads(result.model.metadata_props["bnfold.folds"])
    assert [entry["batchnorms"] for entry in recorded] == [["layer1/norm"], ["layer1/norm_2"]]


def test_keep_and_only_choose_by_the_names_of_calls() -> None:
    model = _model(f"a = local.block(x, w, {STATS}) b = local.block(x, w, {STATS2}) y = Mul(a, b)", BLOCK)
    result = _folded(model, 1, kept=[Reason.EXCLUDED_BY_CALLER], keep="^a/")
    assert [d.subject.name for d in result.report.folded] == ["b/y"]
    # The call that stays as it was is still a call.
    assert [node.op_type for node in result.model.graph] == ["block", "Conv", "Mul"]
    assert len(result.model.functions) == 1


def test_a_fold_may_begin_in_one_function_and_end_in_another() -> None:
    functions = """<domain: "local", opset_import: ["" : 17]> conv (x, w) => (y) { y = Conv(x, w) }
        <domain: "local", opset_import: ["" : 17]>
        norm (x, g, b, m, v) => (y) { y = BatchNormalization(x, g, b, m, v) }
        <domain: "local", opset_import: ["" : 17]> turn (x) => (y) { y = Transpose<perm=[0,1,3,2]>(x) }
        <domain: "local", opset_import: ["" : 17]> act (x) => (y) { y = Sigmoid(x) }"""
    nodes = f"c = local.conv(x, w) d = local.turn(c) e = local.norm(d, {STATS}) y = local.act(e)"
    result = _folded(_model(nodes, functions), 1)
    assert [node.op_type for node in result.model.graph] == ["Conv", "Transpose", "act"]
    assert [f.name for f in result.model.functions.values()] == ["act"]


def test_a_batchnorm_outside_folds_into_a_conv_inside_a_function() -> None:
    conv = """<domain: "local", opset_import: ["" : 17]> conv (x, w) => (y) { y = Conv(x, w) }"""
    result = _folded(_model(f"c = local.conv(x, w) y = BatchNormalization(c, {STATS})", conv), 1)
    assert not result.model.functions


def test_functions_inside_functions_are_written_out() -> None:
    functions = """<domain: "local", opset_import: ["" : 17, "local" : 1]>
        outer (x, w, g, b, m, v) => (y) { c = Conv(x, w) d = local.norm(c, g, b, m, v) y = Relu(d) }
        <domain: "local", opset_import: ["" : 17]>
        norm (x, g, b, m, v) => (y) { y = BatchNormalization(x, g, b, m, v) }"""
    nodes = f"a = local.outer(x, w, {STATS}) b = local.outer(x, w, {STATS2}) y = Sub(a, b)"
    result = _folded(_model(nodes, functions), 2)
    assert [d.subject.name for d in result.decisions] == ["a/d/y", "b/d/y"]
    assert not result.model.functions


EPSILON = """<domain: "local", opset_import: ["" : 17]>
    block <ATTRIBUTE> (x, w, g, b, m, v) => (y)
    { c = Conv(x, w) d = BatchNormalization<epsilon: float = @eps>(c, g, b, m, v)
      y = LeakyRelu<alpha: float = @slope>(d) }"""


def test_attributes_given_left_to_their_default_and_left_out_mean_what_they_should() -> None:
    function = EPSILON.replace("<ATTRIBUTE>", "<eps: float = 0.5, slope: float = 0.25>")
    nodes = f"a = local.block(x, w, {STATS}) b = local.block<eps=0.25, slope=0.5>(x, w, {STATS2}) y = Sub(a, b)"
    result = _folded(_model(nodes, function), 2)
    slopes = [node.attributes["alpha"].as_float() for node in result.model.graph if node.op_type == "LeakyRelu"]
    assert slopes == [0.25, 0.5]
    plain = EPSILON.replace("<ATTRIBUTE>", "<eps, slope>")  # without a default: the operator's own counts
    result = _folded(_model(f"y = local.block(x, w, {STATS})", plain), 1)
    assert "alpha" not in result.model.graph[1].attributes


def test_a_function_in_the_body_of_a_loop_is_written_out_there() -> None:
    text = f"""({SMALL} x, int64 n, bool go) => ({SMALL} y) <float[4,4,1,1] w, {PARAMETERS}>
        {{ y = Loop (n, go, x) <body = b (int64 i, bool k, {SMALL} s) => (bool k2, {SMALL} t)
           {{ k2 = Identity(k) t = local.block(s, w, {STATS}) }}> }}"""
    model = parse(text, functions=BLOCK, domains=["local"])
    result = assert_fold(model, folded=1)
    assert not result.model.functions
    for rounds in (0, 1, 3):
        feeds = synthesise(read_inputs(model), seed=5, batch=2, overrides={})
        feeds |= {"n": np.asarray(rounds), "go": np.asarray(True)}
        old, new = (evaluate(in_float64(m), feeds)["y"] for m in (model, proto(result.model)))
        assert np.allclose(old, new, rtol=0, atol=3e-6 * np.abs(old).max())


def test_a_loop_in_a_function_is_folded_with_names_of_its_own() -> None:
    function = """<domain: "local", opset_import: ["" : 17]> rounds (x, n, go, w, g, b, m, v) => (y)
        { y = Loop (n, go, x) <body = l (int64 i, bool k, s) => (bool k2, t)
          { k2 = Identity(k) c = Conv(s, w) t = BatchNormalization(c, g, b, m, v) }> }"""
    call = f"local.rounds(x, n, go, w, {STATS})"
    text = f"""({SMALL} x, int64 n, bool go) => ({SMALL} y) <float[4,4,1,1] w, {PARAMETERS}>
        {{ a = {call} b = {call} y = Add(a, b) }}"""
    result = assert_fold(parse(text, functions=function, domains=["local"]), folded=2)
    assert [d.subject.name for d in result.decisions] == ["a/t", "b/t"]


def test_a_function_of_another_operator_set_is_written_out_if_its_operators_mean_the_same() -> None:
    older = BLOCK.replace(": 17", ": 16")
    _folded(_model(f"y = local.block(x, w, {STATS})", older), 1)
    # ReduceMean takes its axes as an attribute up to 17, and as an input from 18 on.
    pooled = BLOCK.replace("y = Batch", "d = ReduceMean<axes=[2,3]>(c) y = Batch").replace("(c, g", "(d, g")
    model = _model(f"y = local.block(x, w, {STATS})", pooled, "(float[N,4,1,1] y)", opset=18)
    result = bnfold.fold(ir.from_proto(model), verify=False)
    assert [d.refusals[0].reason for d in result.report.kept] == [Reason.INSIDE_FUNCTION]
    assert as_bytes(result.model) == as_bytes(ir.from_proto(model))
    same = _model(f"y = local.block(x, w, {STATS})", pooled, "(float[N,4,1,1] y)", opset=17)
    _folded(same, 1)


def test_a_domain_that_only_functions_import_is_imported() -> None:
    model = _model(f"y = local.block(x, w, {STATS})", BLOCK)
    del model.opset_import[0]
    assert [o.domain for o in model.opset_import] == ["local"]
    result = bnfold.fold(ir.from_proto(model), verify=False)
    assert len(result.report.folded) == 1
    assert result.model.opset_imports[""] == 17


def test_a_model_in_which_nothing_folds_keeps_its_functions_byte_for_byte() -> None:
    alone = """<domain: "local", opset_import: ["" : 17]>
        norm (x, g, b, m, v) => (y) { y = BatchNormalization(x, g, b, m, v) }"""
    stats = PARAMETERS.replace("[4]", "[3]")
    text = f"({IMAGE} x) => ({IMAGE} y) <{stats}> {{ y = local.norm(x, {STATS}) }}"
    model = ir.from_proto(parse(text, functions=alone, domains=["local"]))
    result = bnfold.fold(model, verify=False)
    assert as_bytes(result.model) == as_bytes(model)
    assert reasons(result) == [Reason.READS_MODEL_INPUT, Reason.IS_MODEL_OUTPUT]
    assert [d.subject.name for d in result.decisions] == ["y/y"]
    assert bnfold.inspect(model).decisions == result.decisions


def test_a_batchnorm_that_stays_in_a_function_may_be_written_otherwise() -> None:
    alone = """<domain: "local", opset_import: ["" : 17]>
        norm (x, g, b, m, v) => (y) { y = BatchNormalization(x, g, b, m, v) }"""
    text = f"({SMALL} x) => ({SMALL} y) <{PARAMETERS}> {{ y = local.norm(x, {STATS}) }}"
    model = parse(text, functions=alone, domains=["local"])
    result = assert_fold(model, folded=0, kept=[Reason.READS_MODEL_INPUT], leftover="affine")
    assert not result.model.functions
    assert result.report.after is not None
    assert result.report.after.batchnorms == 0


def test_functions_without_a_fold_stay_beside_one_with() -> None:
    functions = (
        BLOCK
        + """ <domain: "local", opset_import: ["" : 17]> act (x) => (y) { s = Sigmoid(x) y = Mul(s, x) }
        <domain: "local", opset_import: ["" : 17]>
        norm (x, g, b, m, v) => (y) { y = BatchNormalization(x, g, b, m, v) }"""
    )
    nodes = f"a = local.block(x, w, {STATS}) b = local.act(a) y = local.norm(b, {STATS2})"
    result = _folded(_model(nodes, functions), 1, kept=[Reason.IS_MODEL_OUTPUT])
    assert sorted(f.name for f in result.model.functions.values()) == ["act", "norm"]
    assert [d.subject.name for d in result.decisions] == ["a/y", "y/y"]


def test_folds_outside_functions_leave_all_functions_alone() -> None:
    act = """<domain: "local", opset_import: ["" : 17]> act (x) => (y) { s = Sigmoid(x) y = Mul(s, x) }"""
    nodes = f"c = Conv(x, w) b = BatchNormalization(c, {STATS}) y = local.act(b)"
    result = _folded(_model(nodes, act), 1)
    assert [node.op_type for node in result.model.graph] == ["Conv", "act"]
    before = proto(ir.from_proto(_model(nodes, act)))
    assert proto(result.model).functions[0].SerializeToString() == before.functions[0].SerializeToString()


def test_a_weight_that_another_function_computes_is_constant_and_its_call_goes() -> None:
    functions = BLOCK + """ <domain: "local", opset_import: ["" : 17]> half (w) => (h) { t = Add(w, w) h = Neg(t) }"""
    result = _folded(_model(f"h = local.half(w) y = local.block(x, h, {STATS})", functions), 1)
    assert [node.op_type for node in result.model.graph] == ["Conv"]
    assert not result.model.functions


def test_an_output_that_is_an_input_or_given_twice_or_left_out_is_right() -> None:
    # onnxruntime takes no such function, and no call without all of its outputs; the specification does.
    function = """<domain: "local", opset_import: ["" : 17]> block (x, w, g, b, m, v) => (y, same, y, x, unread)
        { c = Conv(x, w) y = BatchNormalization(c, g, b, m, v) same = Relu(y) unread = Neg(same) }"""
    outputs = f"({SMALL} y, {SMALL} z, {SMALL} p, {IMAGE} q)"
    result = _folded(_model(f"y, z, p, q = local.block(x, w, {STATS})", function, outputs), 1, runs=False)
    assert not result.model.functions
    _folded(_model(f", z = local.block(x, w, {STATS})", function, f"({SMALL} z)"), 1, runs=False)


def test_inputs_left_out_are_absent_in_the_function() -> None:
    function = """<domain: "local", opset_import: ["" : 17]>
        block (x, w, g, b, m, v, bias) => (y) { c = Conv(x, w, bias) y = BatchNormalization(c, g, b, m, v) }"""
    _folded(_model(f"y = local.block(x, w, {STATS})", function), 1)
    _folded(_model(f"y = local.block(x, w, {STATS}, beta2)", function), 1)


def test_names_that_a_function_and_the_graph_share_do_not_meet() -> None:
    nodes = f"c = Relu(x) d = Abs(c) e = local.block(d, w, {STATS}) f = Neg(e) y = Sub(f, e)"
    result = _folded(_model(nodes, BLOCK), 1)
    names = [value.name for node in result.model.graph for value in node.outputs]
    assert len(set(names)) == len(names)


def test_a_function_that_calls_itself_is_left_alone() -> None:
    function = """<domain: "local", opset_import: ["" : 17, "local" : 1]>
        block (x, w, g, b, m, v) => (y)
        { c = Conv(x, w) d = BatchNormalization(c, g, b, m, v) y = local.block(d, w, g, b, m, v) }"""
    report = bnfold.inspect(ir.from_proto(_model(f"y = local.block(x, w, {STATS})", function)))
    assert reasons(report) == [Reason.INSIDE_FUNCTION]


def test_a_function_that_nothing_calls_stays() -> None:
    model = _model(f"c = Conv(x, w) y = BatchNormalization(c, {STATS})", BLOCK)
    result = _folded(model, 1, kept=[Reason.INSIDE_FUNCTION])
    before = proto(ir.from_proto(model))
    assert proto(result.model).functions[0].SerializeToString() == before.functions[0].SerializeToString()


def test_the_calls_are_those_of_bodies_too() -> None:
    text = f"""({IMAGE} x, bool q) => ({SMALL} y) <float[4,3,3,3] w, {PARAMETERS}>
        {{ y = If (q) <then_branch = g1 () => ({SMALL} t) {{ t = local.block(x, w, {STATS}) }},
                       else_branch = g2 () => ({SMALL} u) {{ u = Conv(x, w) }}> }}"""
    model = parse(text, functions=BLOCK, domains=["local"])
    assert len(calls(ir.from_proto(model))) == 1
    assert_fold(model, folded=1)


@pytest.mark.parametrize("where", ["graph", "function"])
def test_a_kept_batchnorm_in_a_function_is_told_with_its_own_reason(where: str) -> None:
    function = BLOCK.replace("y = Batch", "s = Sigmoid(c) y = Batch").replace("(c, g", "(s, g")
    nodes = f"y = local.block(x, w, {STATS})"
    if where == "graph":
        function = """<domain: "local", opset_import: ["" : 17]> conv (x, w) => (y) { c = Conv(x, w) y = Sigmoid(c) }"""
        nodes = f"c = local.conv(x, w) y = BatchNormalization(c, {STATS})"
    report = bnfold.inspect(ir.from_proto(_model(nodes, function)))
    (kept,) = report.decisions
    assert isinstance(kept, Kept)
    assert [r.reason for r in kept.refusals] == [Reason.OPERATOR_IS_NOT_LINEAR, Reason.IS_MODEL_OUTPUT]


def test_the_pass_writes_functions_out_too() -> None:
    model = ir.from_proto(_model(f"y = local.block(x, w, {STATS})", BLOCK))
    folding = bnfold.FoldBatchNormPass()
    assert folding(model).modified
    assert isinstance(folding.decisions[0], Folded)
    assert not model.functions
    assert not folding(model).modified
