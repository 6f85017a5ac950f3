"""BatchNorms in the bodies of If, Loop and Scan: folded there, and nothing moves across the border of a body.

Bugs of other tools that are covered here: bodies left alone (onnxsim, onnxoptimizer, onnxscript), a crash (aimet-onnx).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_models import PARAMETERS, STATS, assert_fold, parse, reasons

import bnfold
from bnfold.data import read_inputs, synthesise
from bnfold.decision import Folded, Kept, Reason
from bnfold.frontends.onnx_float64 import evaluate, in_float64
from bnfold.frontends.onnx_fold import Settings, plan_model
from bnfold.frontends.onnx_regions import Cutter
from bnfold.frontends.onnx_scopes import scopes
from bnfold.localcheck import local_check

SECOND = PARAMETERS.replace("gamma", "gamma2").replace("beta", "beta2").replace("mean", "mean2").replace("var", "var2")
STATS2 = "gamma2, beta2, mean2, var2"
IMAGE, SMALL = "float[N,3,8,8]", "float[N,4,6,6]"
NORM, NORM2 = f"BatchNormalization({{}}, {STATS})", f"BatchNormalization({{}}, {STATS2})"


def _if(then: str, other: str = "u = Conv(x, w)", before: str = "", behind: str = "y = Relu(z)", more: str = "") -> str:
    return f"""({IMAGE} x, {SMALL} x2, bool q) => ({SMALL} y) <float[4,3,3,3] w, {PARAMETERS}, {SECOND}{more}>
        {{ {before} z = If (q) <then_branch = g1 () => ({SMALL} t) {{ {then} }},
                                else_branch = g2 () => ({SMALL} u) {{ {other} }}> {behind} }}"""


def _loop(body: str, carried: str = "float[A,4,6,6] s", out: str = "float[B,4,6,6] t", more: str = "") -> str:
    return f"""({SMALL} x, int64 n, bool go) => ({SMALL} y) <float[4,4,1,1] w, {PARAMETERS}{more}>
        {{ y = Loop (n, go, x) <body = b (int64 i, bool k, {carried}) => (bool k2, {out})
           {{ k2 = Identity(k) {body} }}> }}"""


CONV_NORM = f"c = Conv(x, w) t = {NORM.format('c')}"


def _body(model: ir.Model, attribute: str) -> ir.Graph:
    return next(graph for path, graph in scopes(model) if path and path[-1][1] == attribute)


def _same_in_both_ways(before: onnx.ModelProto, after: ir.Model, **fixed: Any) -> None:
    """Both branches, or several rounds: the outputs in float64 agree, but for the rounding of the weights."""
    for inputs in _choices(fixed):
        feeds = synthesise(read_inputs(before), seed=5, batch=2, overrides={}) | inputs
        old, new = (evaluate(in_float64(model), feeds) for model in (before, ir.to_proto(after)))
        for name, value in old.items():
            assert np.allclose(value, new[name], rtol=0, atol=3e-6 * np.abs(value).max())


def _choices(fixed: Mapping[str, Any]) -> list[dict[str, np.ndarray]]:
    return [
        {name: np.asarray(values[i]) for name, values in fixed.items()}
        for i in range(max(len(values) for values in fixed.values()))
    ]


Q = {"q": [True, False]}
ROUNDS = {"n": [0, 1, 3], "go": [True, True, True]}


def test_a_batchnorm_behind_a_conv_in_a_branch_is_folded() -> None:
    model = parse(_if(CONV_NORM))
    result = assert_fold(model, folded=1)
    _same_in_both_ways(model, result.model, **Q)
    body = _body(result.model, "then_branch")
    assert [node.op_type for node in body] == ["Conv"]
    assert list(body.initializers) == ["w_folded", "w_bias_folded"]  # new numbers belong to the body
    assert "w" in result.model.graph.initializers  # the other branch reads it


def test_both_branches_get_weights_of_their_own_and_the_shared_one_goes() -> None:
    model = parse(_if(CONV_NORM, f"c = Conv(x, w) u = {NORM2.format('c')}"))
    result = assert_fold(model, folded=2)
    _same_in_both_ways(model, result.model, **Q)
    assert not result.model.graph.initializers
    names = [name for _, graph in scopes(result.model) for name in graph.initializers]
    assert len(set(names)) == len(names) == 4
    assert result.report.after is not None
    assert result.report.after.batchnorms == 0


def test_a_weight_of_the_body_itself_is_folded_and_goes() -> None:
    model = parse(_if(f"c = Conv(x, v) t = {NORM.format('c')}"))
    weight = np.random.default_rng(1).standard_normal((4, 3, 3, 3)).astype(np.float32)
    model.graph.node[0].attribute[0].g.initializer.append(onnx.numpy_helper.from_array(weight, "v"))
    result = assert_fold(model, folded=1)
    _same_in_both_ways(model, result.model, **Q)
    assert list(_body(result.model, "then_branch").initializers) == ["v_folded", "v_bias_folded"]


def test_a_constant_that_is_computed_outside_or_inside_counts_as_constant() -> None:
    model = parse(_if(f"v = Neg(w) c = Conv(x, v) g = Abs(gamma) t = {NORM.format('c')}"))
    _same_in_both_ways(model, assert_fold(model, folded=1).model, **Q)
    outside = parse(
        _if("c = Conv(x, v) t = BatchNormalization(c, g, beta, mean, var)", before="v = Neg(w) g = Neg(gamma)")
    )
    result = assert_fold(outside, folded=1)
    _same_in_both_ways(outside, result.model, **Q)
    assert [node.op_type for node in result.model.graph] == ["If", "Relu"]  # what computed them outside is gone


def test_a_weight_that_is_variable_outside_is_variable_inside() -> None:
    text = _if(f"c = Conv(x, v) t = {NORM.format('c')}", before="v = Mul(w, f)").replace("bool q", "bool q, float f")
    assert_fold(parse(text), folded=0, kept=[Reason.WEIGHTS_NOT_CONSTANT])
    text = _if("c = Conv(x, w) t = BatchNormalization(c, g, beta, mean, var)", before="g = Mul(gamma, f)")
    assert_fold(parse(text.replace("bool q", "bool q, float f")), folded=0, kept=[Reason.PARAMETERS_NOT_CONSTANT])


def test_an_affine_does_not_leave_a_body_by_its_output() -> None:
    model = parse(_if("c = Conv(x, w) t = Relu(c)", behind=f"y = {NORM.format('z')}"))
    assert_fold(model, folded=0, kept=[Reason.OPERATOR_HOLDS_BODIES])
    inside = parse(_if(f"t = {NORM.format('x2')}", behind="y = Conv(z, v)", more=", float[4,4,1,1] v"))
    result = assert_fold(inside, folded=0, kept=[Reason.LEAVES_BODY])
    assert reasons(result) == [Reason.ENTERS_BODY, Reason.LEAVES_BODY]
    assert "body of an If, Loop or Scan" in str(result.report.kept[0].refusals[1])


def test_an_affine_does_not_enter_a_body_by_a_captured_value() -> None:
    model = parse(_if(f"t = {NORM.format('c')}", before="c = Conv(x, w)"))
    result = assert_fold(model, folded=0, kept=[Reason.ENTERS_BODY])
    assert result.report.kept[0].refusals[0].where == "c"
    outside = parse(_if("t = Conv(b, v)", before=f"b = {NORM.format('x2')}", more=", float[4,4,1,1] v"))
    assert_fold(outside, folded=0, kept=[Reason.CAPTURED_BY_SUBGRAPH])


def test_a_batchnorm_on_a_captured_value_is_pushed_into_a_conv_of_the_body() -> None:
    model = parse(_if(f"b = {NORM.format('x2')} t = Conv(b, v)", more=", float[4,4,1,1] v"))
    result = assert_fold(model, folded=1)
    _same_in_both_ways(model, result.model, **Q)
    assert next(iter(_body(result.model, "then_branch"))).inputs[0].name == "x2"


def test_a_value_of_the_body_that_an_inner_body_reads_keeps_its_meaning() -> None:
    inner = f"""If (q) <then_branch = i1 () => ({SMALL} a) {{ a = Relu(c) }},
                        else_branch = i2 () => ({SMALL} e) {{ e = Neg(c) }}>"""
    model = parse(_if(f"c = Conv(x, w) b = {NORM.format('c')} d = {inner} t = Add(b, d)"))
    assert_fold(model, folded=0, kept=[Reason.CAPTURED_BY_SUBGRAPH])


def test_nested_bodies_are_folded_with_weights_from_two_scopes_out() -> None:
    deep = f"a0 = Conv(x, w) a = {NORM.format('a0')}"
    inner = (
        f"If (q) <then_branch = i1 () => ({SMALL} a) {{ {deep} }}, else_branch = i2 () => ({SMALL} e) {{ e = Neg(b) }}>"
    )
    model = parse(_if(f"c = Conv(x, w) b = {NORM2.format('c')} t = {inner}"))
    result = assert_fold(model, folded=2)
    _same_in_both_ways(model, result.model, **Q)
    assert len(list(scopes(result.model))) == 5
    assert "w" in result.model.graph.initializers


def test_a_loop_is_folded_round_by_round() -> None:
    model = parse(_loop(f"c = Conv(s, w) t = {NORM.format('c')}"))
    result = assert_fold(model, folded=1)
    _same_in_both_ways(model, result.model, **ROUNDS)


def test_a_loop_whose_carried_value_has_no_declared_shape_is_folded_too() -> None:
    model = parse(_loop(f"c = Conv(s, w) t = {NORM.format('c')}", "s", "t"))
    result = assert_fold(model, folded=1)
    _same_in_both_ways(model, result.model, **ROUNDS)


def test_a_carried_value_is_an_input_and_never_changes_its_meaning() -> None:
    lone = _loop(f"t = {NORM.format('s')}")
    result = assert_fold(parse(lone), folded=0, kept=[Reason.ENTERS_BODY])
    assert reasons(result) == [Reason.ENTERS_BODY, Reason.LEAVES_BODY]
    # The sum is carried as well: the next round reads it.
    both = parse(_loop(f"c = Conv(s, w) d = {NORM.format('c')} t = Add(c, d)"))
    assert_fold(both, folded=0, kept=[Reason.VALUE_HAS_OTHER_READERS])


@pytest.mark.parametrize("declared", [True, False])
def test_a_rank_that_every_round_hands_on_is_proven(declared: bool) -> None:
    body = f"m = MatMul(s, v) a = Transpose<perm=[0,2,1]>(m) d = {NORM.format('a')} t = Transpose<perm=[0,2,1]>(d)"
    kinds = ("float[A,6,4] s", "float[B,6,4] t") if declared else ("s", "t")
    model = parse(_loop(body, *kinds, ", float[4,4] v").replace(SMALL, "float[N,6,4]"))
    _same_in_both_ways(model, assert_fold(model, folded=1).model, **ROUNDS)


SUMMED = f"""e = Conv PADS (s, v) c = Conv(s, w) p = ReduceSum(c, axes) d = {NORM.format("p")} t = Add(e, d)"""


def test_a_size_that_the_next_round_does_not_get_is_not_proven() -> None:
    # The sum over space counts 6*6 in the first round only, whatever the file declares.
    more = ", float[4,4,3,3] v, int64[2] axes"
    text = _loop(SUMMED, f"{SMALL} s", f"{SMALL} t", more).replace(f"({SMALL} y)", "(float[N,4,A,B] y)")
    shrinks = parse(text.replace("PADS", ""), values={"axes": [2, 3]})
    report = bnfold.inspect(ir.from_proto(shrinks))
    assert len(report.folded) == 0
    assert Reason.AXIS_NOT_PROVEN in reasons(report)
    same = parse(text.replace("PADS", "<pads=[1,1,1,1]>"), values={"axes": [2, 3]})
    _same_in_both_ways(same, assert_fold(same, folded=1).model, **ROUNDS)


def test_a_scan_is_folded_slice_by_slice() -> None:
    text = f"""(float[5,2,4,6] xs, float[2,4,6] x) => (float[2,4,6] y, float[5,2,4,6] z) <float[4,4,1] w, {PARAMETERS}>
        {{ y, z = Scan <num_scan_inputs=1, body = b (s, e) => (t, o)
           {{ c = Conv(e, w) d = {NORM.format("c")} t = Add(s, d) o = Relu(t) }}> (x, xs) }}"""
    result = assert_fold(parse(text), folded=1)
    assert result.report.verification is not None
    assert [check.passed for check in result.report.verification.local] == [True]
    carried = text.replace("Conv(e, w)", "Identity(e)")
    assert_fold(parse(carried), folded=0, kept=[Reason.ENTERS_BODY])


def test_bodies_beside_each_other_may_use_equal_names_for_different_values() -> None:
    model = parse(_if(CONV_NORM, "c = Neg(x2) t = Abs(c) u = Conv(t, v)", more=", float[4,4,1,1] v"))
    _same_in_both_ways(model, assert_fold(model, folded=1).model, **Q)
    twice = parse(_if(CONV_NORM, CONV_NORM.replace("t =", "u =").replace(STATS, STATS2)))
    _same_in_both_ways(twice, assert_fold(twice, folded=2).model, **Q)


def test_the_shapes_of_values_with_equal_names_are_not_mixed_up() -> None:
    flat = f"c = Flatten(x2) m = MatMul(c, k) d = {NORM.format('m')} e = MatMul(d, l) u = Reshape(e, r)"
    model = parse(
        _if("c = Conv(x, w) m = Neg(c) t = Relu(m)", flat, more=", float[144,4] k, float[4,144] l, int64[4] r"),
        values={"r": [-1, 4, 6, 6]},
    )
    result = assert_fold(model, folded=1)
    _same_in_both_ways(model, result.model, **Q)


def test_keep_and_only_choose_by_the_names_in_bodies() -> None:
    model = ir.from_proto(parse(_if(CONV_NORM, f"c = Conv(x, w) u = {NORM2.format('c')}")))
    for options, folded in ({"keep": "^t$"}, ["u"]), ({"only": "^t$"}, ["t"]):
        decisions = bnfold.inspect(model, **options).decisions
        assert [d.subject.name for d in decisions if isinstance(d, Folded)] == folded
        (kept,) = [d for d in decisions if isinstance(d, Kept)]
        assert [r.reason for r in kept.refusals] == [Reason.EXCLUDED_BY_CALLER]
        assert [d.subject.name for d in bnfold.fold(model, **options).report.folded] == folded


def test_decisions_of_bodies_follow_those_of_the_main_graph_and_the_record_has_them() -> None:
    model = parse(_if(CONV_NORM, behind=f"e = Conv(z, v) y = {NORM2.format('e')}", more=", float[4,4,1,1] v"))
    result = assert_fold(model, folded=2)
    assert [d.subject.name for d in result.decisions] == ["y", "t"]
    assert [d.subject.name for d in bnfold.inspect(ir.from_proto(model)).decisions] == ["y", "t"]
    recorded = json.loads(result.model.metadata_props["bnfold.folds"])
    assert [entry["batchnorms"] for entry in recorded] == [["y"], ["t"]]


def test_new_names_avoid_those_of_every_graph() -> None:
    # "w_folded" is a value behind the If: in the body it would shadow nothing, but later readers could mix it up.
    text = _if(
        CONV_NORM, "w_bias_folded = Neg(x2) u = Relu(w_bias_folded)", behind="w_folded = Neg(z) y = Relu(w_folded)"
    )
    result = assert_fold(parse(text), folded=1)
    assert list(_body(result.model, "then_branch").initializers) == ["w_folded_2", "w_bias_folded_2"]


def test_the_local_test_finds_a_wrong_number_in_a_body() -> None:
    for text in (_if(CONV_NORM), _loop(f"c = Conv(s, w) d = Neg(c) t = {NORM.format('d')}", "s", "t")):
        before = ir.from_proto(parse(text))
        after = before.clone()
        made = plan_model(after, Settings())
        spans = [graph.spans() for graph, _ in made.parts]
        made.write()
        where, planned = next((graph, planned) for graph, planned in made.parts if planned.regions)
        value = where.graph.initializers["w_folded"]
        assert value.const_value is not None
        for factor, right in (1.0, True), (1.001, False):
            value.const_value = ir.Tensor(value.const_value.numpy() * np.float32(factor), name="w_folded")
            cutters = (Cutter(model).at(where.path) for model in (before, after))
            (check,) = local_check(*cutters, planned, spans[made.parts.index((where, planned))])
            assert check.passed is right
            assert check.failed is not right


def test_a_file_of_ir_version_3_gets_its_new_numbers_in_the_main_graph() -> None:
    text = _if(CONV_NORM).replace(f"{SMALL} t", "t").replace(f"{SMALL} u", "u")
    result = assert_fold(parse(text, opset=8), folded=1)
    graph = result.model.graph
    assert {"w_folded", "w_bias_folded"} <= set(graph.initializers)
    assert {"w_folded", "w_bias_folded"} <= {value.name for value in graph.inputs}
    assert not _body(result.model, "then_branch").initializers


def test_an_initializer_that_the_caller_may_override_is_variable_in_a_body_if_it_is_to_be_kept() -> None:
    model = parse(_if(CONV_NORM))
    model.graph.input.append(onnx.helper.make_tensor_value_info("gamma", onnx.TensorProto.FLOAT, [4]))
    result = assert_fold(model, folded=1)
    assert any("gamma" in note for note in result.report.notes)
    assert_fold(model, folded=0, kept=[Reason.PARAMETER_IS_OVERRIDABLE], keep_overridable=True)


def test_a_body_input_that_an_initializer_of_the_body_names_is_no_constant() -> None:
    text = _loop(f"c = Conv(x, s) t = {NORM.format('c')}", "float[4,4,1,1] s", "float[B,4,6,6] t")
    fed = parse(text)
    fed.graph.node[0].attribute[0].g.initializer.append(
        onnx.numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "s")
    )
    report = bnfold.inspect(ir.from_proto(fed))
    assert Reason.WEIGHTS_NOT_CONSTANT in reasons(report)


@pytest.mark.parametrize("reduce", [False, True])
def test_what_a_body_keeps_may_be_reduced_there(reduce: bool) -> None:
    model = parse(_if(f"b = {NORM.format('x2')} t = Conv<pads=[1,1,1,1]>(b, v)", more=", float[4,4,3,3] v"))
    result = bnfold.fold(ir.from_proto(model), reduce=reduce)
    assert len(result.report.reduced) == int(reduce)
    _same_in_both_ways(model, result.model, **Q)


@pytest.mark.parametrize("leftover", ["affine", "depthwise"])
def test_what_a_body_keeps_may_be_written_otherwise_there(leftover: str) -> None:
    model = parse(_if(f"t = {NORM.format('x2')}"))
    result = assert_fold(model, folded=0, kept=[Reason.ENTERS_BODY], leftover=leftover)
    _same_in_both_ways(model, result.model, **Q)
    assert result.report.after is not None
    assert result.report.after.batchnorms == 0
    assert [node.op_type for node in _body(result.model, "then_branch")] in (
        ["Mul", "Add"],
        ["Sub", "Mul", "Add"],
        ["Conv"],
    )


def test_branches_of_one_value_in_a_body_are_merged_there() -> None:
    body = f"c = Conv(x2, v) d = {NORM.format('c')} e = {NORM2.format('x2')} t = Add(d, e)"
    model = parse(_if(body, more=", float[4,4,1,1] v"))
    result = assert_fold(model, folded=2)
    _same_in_both_ways(model, result.model, **Q)
    assert [node.op_type for node in _body(result.model, "then_branch")] == ["Conv"]


def test_a_model_with_bodies_in_which_nothing_folds_stays_byte_for_byte() -> None:
    model = ir.from_proto(parse(_if(f"t = {NORM.format('x2')}")))
    result = bnfold.fold(model, verify=False)
    assert ir.to_proto(result.model).SerializeToString() == ir.to_proto(model).SerializeToString()


def test_the_pass_folds_bodies_too() -> None:
    model = ir.from_proto(parse(_if(CONV_NORM)))
    folding = bnfold.FoldBatchNormPass()
    assert folding(model).modified
    assert [node.op_type for node in _body(model, "then_branch")] == ["Conv"]
    assert not folding(model).modified
