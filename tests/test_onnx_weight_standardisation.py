"""BatchNorms of constants, which is how exporters write weight standardisation: computed once, and gone.

`y = gamma * (x - mean) / sqrt(var + epsilon) + beta`, in training mode with the population's statistics of x itself.
"""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_models import PARAMETERS, STATS, as_bytes, assert_fold, parse, proto, reasons, stored

import bnfold
from bnfold.constantcheck import constant_check
from bnfold.decision import Folded, Reason
from bnfold.errors import MachineError
from bnfold.frontends.onnx_fold import Settings, plan_model
from bnfold.frontends.onnx_kernels_run import evaluate
from bnfold.frontends.onnx_scopes import scopes
from bnfold.wording import outcome

IMAGE, SMALL = "float[N,3,8,8]", "float[N,4,6,6]"

#: As timm's StdConv2d: the weight is reshaped to (1, out, all others), normalised by itself, and reshaped back.
STANDARD = "r = Reshape(w, flat) NORM v = Reshape(s, back) c = Conv(x, v)"
WEIGHTS = f"float[4,3,3,3] w, int64[3] flat, int64[4] back, {PARAMETERS}, float[4] one, float[4] zero"
VALUES = {"flat": [1, 4, -1], "back": [4, 3, 3, 3], "one": 1, "zero": 0}
TRAINING = "s, rm, rv = BatchNormalization <training_mode=1, epsilon=EPS> (r, one, zero, zero, one)"


def _model(
    norm: str = TRAINING, behind: str = "y = Relu(c)", outputs: str = f"({SMALL} y)", **more: object
) -> onnx.ModelProto:
    nodes = STANDARD.replace("NORM", norm.replace("EPS", "1e-6"))
    text = f"({IMAGE} x) => {outputs} <{WEIGHTS}> {{ {nodes} {behind} }}"
    return parse(text, values={**VALUES, **more.pop("values", {})}, **more)  # type: ignore[arg-type, dict-item]


def _standardised(weight: np.ndarray, epsilon: float) -> np.ndarray:
    flat = weight.reshape(weight.shape[0], -1)
    normal = (flat - flat.mean(1, keepdims=True)) / np.sqrt(flat.var(1, keepdims=True) + epsilon)
    return np.asarray(normal.reshape(weight.shape))


def test_a_training_batchnorm_of_a_constant_weight_is_computed_once() -> None:
    model = _model()
    result = assert_fold(model, folded=1)
    assert [node.op_type for node in result.model.graph] == ["Reshape", "Conv", "Relu"]
    exact = _standardised(stored(model, "w"), float(np.float32(1e-6)))
    found = stored(result.model, "s").reshape(4, 3, 3, 3)
    assert np.allclose(found, exact, rtol=2.0**-24, atol=0)
    (decision,) = result.decisions
    assert decision == Folded(bnfold.Subject("s", "BatchNormalization", 4, True), "evaluate", ("v",))
    assert outcome(decision) == "computed once, because what it normalises is constant; read by v"
    assert json.loads(result.model.metadata_props["bnfold.folds"]) == [
        {"batchnorms": ["s"], "direction": "evaluate", "into": ["v"]}
    ]


def test_a_batchnorm_behind_a_standardised_conv_folds_into_it() -> None:
    model = _model(behind=f"y = BatchNormalization(c, {STATS})")
    result = assert_fold(model, folded=2)
    assert [node.op_type for node in result.model.graph] == ["Conv"]
    assert result.report.verification is not None
    assert [check.batchnorms for check in result.report.verification.local] == [("s",), ("y",)]
    assert result.report.after is not None
    assert result.report.after.batchnorms == 0
    report = bnfold.inspect(ir.from_proto(model))
    assert report.decisions == result.decisions


def test_gamma_and_beta_count_and_the_running_statistics_do_not() -> None:
    model = _model("s, rm, rv = BatchNormalization <training_mode=1> (r, gamma, beta, mean, var)")
    found = stored(assert_fold(model, folded=1).model, "s").reshape(4, -1)
    gamma, beta = (stored(model, name)[:, None] for name in ("gamma", "beta"))
    exact = gamma * _standardised(stored(model, "w"), float(np.float32(1e-5))).reshape(4, -1) + beta
    assert np.allclose(found, exact, rtol=0, atol=2.0**-24 * np.abs(exact).max())


def test_an_inference_batchnorm_of_a_constant_is_computed_once_with_its_own_statistics() -> None:
    model = _model(f"s = BatchNormalization(r, {STATS})")
    found = stored(assert_fold(model, folded=1).model, "s")[0]
    gamma, beta, mean, var = (stored(model, name)[:, None] for name in ("gamma", "beta", "mean", "var"))
    flat = stored(model, "w").reshape(4, -1)
    exact = gamma * (flat - mean) / np.sqrt(var + float(np.float32(1e-5))) + beta
    assert np.allclose(found, exact, rtol=0, atol=2.0**-24 * np.abs(exact).max())


def test_statistics_that_are_computed_from_the_constant_are_constant() -> None:
    norm = """m = ReduceMean<axes=[0,2], keepdims=0>(r) m1 = Unsqueeze(m, places) d = Sub(r, m1) d2 = Mul(d, d)
        q = ReduceMean<axes=[0,2], keepdims=0>(d2) s = BatchNormalization<epsilon=EPS>(r, one, zero, m, q)"""
    text = f"({IMAGE} x) => ({SMALL} y) <{WEIGHTS}, int64[2] places> {{ {STANDARD.replace('NORM', norm)} y = Relu(c) }}"
    model = parse(text.replace("EPS", "1e-6"), values={**VALUES, "places": [0, 2]})
    result = assert_fold(model, folded=1)
    exact = _standardised(stored(model, "w"), float(np.float32(1e-6)))
    assert np.allclose(stored(result.model, "s").reshape(4, 3, 3, 3), exact, rtol=0, atol=1e-6)


def test_a_chain_that_standardises_without_a_batchnorm_is_a_constant_weight() -> None:
    norm = """m = ReduceMean<axes=[2], keepdims=1>(r) d = Sub(r, m) d2 = Mul(d, d) q = ReduceMean<axes=[2]>(d2)
        e = Add(q, tiny) f = Sqrt(e) s = Div(d, f)"""
    text = f"({IMAGE} x) => ({SMALL} y) <{WEIGHTS}, float tiny> {{ {STANDARD.replace('NORM', norm)} "
    model = parse(text + f"y = BatchNormalization(c, {STATS}) }}", values={**VALUES, "tiny": 1e-6})
    result = assert_fold(model, folded=1)
    assert [node.op_type for node in result.model.graph] == ["Conv"]


@pytest.mark.parametrize("output", ["rm", "rv"])
def test_a_batchnorm_whose_running_statistics_are_read_stays(output: str) -> None:
    model = _model(behind="y = Relu(c)", outputs=f"({SMALL} y, float[4] {output})")
    assert_fold(model, folded=0, kept=[Reason.NORMALISES_BY_BATCH_STATISTICS])
    inside = _model(behind=f"z = Neg({output}) y = Relu(c)", outputs=f"({SMALL} y, float[4] z)")
    assert_fold(inside, folded=0, kept=[Reason.NORMALISES_BY_BATCH_STATISTICS])


def test_a_batchnorm_of_a_variable_stays() -> None:
    text = f"({IMAGE} x) => ({IMAGE} y, float[3] rm, float[3] rv) <{PARAMETERS.replace('[4]', '[3]')}> "
    model = parse(text + f"{{ y, rm, rv = BatchNormalization <training_mode=1> (x, {STATS}) }}")
    assert_fold(model, folded=0, kept=[Reason.NORMALISES_BY_BATCH_STATISTICS])
    fed = _model().graph
    fed.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4, 3, 3, 3]))
    overridable = onnx.helper.make_model(fed, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    assert_fold(overridable, folded=1)
    kept = assert_fold(overridable, folded=0, kept=[Reason.NORMALISES_BY_BATCH_STATISTICS], keep_overridable=True)
    assert "w" in kept.model.graph.initializers


def test_a_constant_that_the_caller_gets_stays() -> None:
    model = _model(behind="y = Relu(c)", outputs=f"({SMALL} y, float[1,4,27] s)")
    assert_fold(model, folded=0, kept=[Reason.NORMALISES_BY_BATCH_STATISTICS])


def test_one_that_is_to_be_kept_stays_and_what_reads_it_is_no_constant() -> None:
    model = _model(behind=f"y = BatchNormalization(c, {STATS})")
    kept = [Reason.NORMALISES_BY_BATCH_STATISTICS, Reason.WEIGHTS_NOT_CONSTANT]
    result = assert_fold(model, folded=0, kept=kept, keep="^s$")
    assert as_bytes(result.model) == as_bytes(ir.from_proto(model))


def test_a_result_that_is_not_finite_is_not_stored() -> None:
    norm = "s, rm, rv = BatchNormalization <training_mode=1, epsilon=0.0> (r, one, zero, zero, one)"
    model = _model(norm, values={"w": 1})  # a variance of zero
    report = bnfold.inspect(ir.from_proto(model))
    assert reasons(report) == [Reason.NORMALISES_BY_BATCH_STATISTICS]


def test_parameters_that_contradict_the_weight_are_left_alone() -> None:
    model = _model(TRAINING.replace("(r, one", "(r, short"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(3, np.float32), "short"))
    assert reasons(bnfold.inspect(ir.from_proto(model))) == [Reason.NORMALISES_BY_BATCH_STATISTICS]


@pytest.mark.parametrize("kind", ["float16", "double"])
def test_it_is_computed_in_float64_and_rounded_once(kind: str) -> None:
    text = f"({IMAGE} x) => ({SMALL} y) <{WEIGHTS}> {{ {STANDARD.replace('NORM', TRAINING)} y = Relu(c) }}"
    model = parse(text.replace("EPS", "1e-3").replace("float", kind), values=VALUES)
    result = bnfold.fold(ir.from_proto(model), verify=False)
    exact = _standardised(stored(model, "w"), float(np.float32(1e-3)))
    dtype = np.float16 if kind == "float16" else np.float64
    assert np.array_equal(stored(result.model, "s").reshape(exact.shape).astype(dtype), exact.astype(dtype)) or (
        kind == "double" and np.allclose(stored(result.model, "s").reshape(exact.shape), exact, rtol=1e-14, atol=1e-14)
    )


def test_a_weight_in_a_body_is_standardised_there() -> None:
    # In a body onnxruntime 1.31 writes the running statistics over the captured mean and var, so gamma is none of them.
    norm = TRAINING.replace("EPS", "1e-6").replace("one, zero, zero, one", STATS)
    body = STANDARD.replace("NORM", norm).replace("c = Conv", "t = Conv")
    text = f"""({IMAGE} x, bool q) => ({SMALL} y) <{WEIGHTS}>
        {{ z = If (q) <then_branch = g1 () => ({SMALL} t) {{ {body} }},
                       else_branch = g2 () => ({SMALL} u) {{ u = Conv(x, w) }}> y = Relu(z) }}"""
    model = parse(text, values=VALUES)
    result = assert_fold(model, folded=1)
    assert [check.passed for check in result.report.verification.local] == [True]  # type: ignore[union-attr]
    for choice in (True, False):
        feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32), "q": np.array(choice)}
        old, new = (evaluate(m, feeds)["y"] for m in (model, proto(result.model)))
        assert np.allclose(old, new, rtol=0, atol=1e-5)
    assert len(list(scopes(result.model))) == 3


def test_what_onnxruntime_cannot_run_is_proven_by_itself_and_told() -> None:
    # One output: legal, and onnxruntime refuses it.
    model = _model("s = BatchNormalization <training_mode=1, epsilon=EPS> (r, one, zero, zero, one)")
    with pytest.raises(MachineError, match="no-verify"):
        bnfold.fold(ir.from_proto(model))
    result = assert_fold(model, folded=1, runs=False)
    found = stored(result.model, "s").reshape(4, 3, 3, 3)
    assert np.allclose(found, _standardised(stored(model, "w"), float(np.float32(1e-6))), rtol=2.0**-24, atol=0)


@pytest.mark.parametrize(("factor", "right"), [(1.0, True), (1.001, False)])
def test_a_wrong_constant_is_found(factor: float, right: bool) -> None:
    model = ir.from_proto(_model())
    planned = plan_model(model, Settings())
    (evaluated,) = planned.evaluated
    assert planned.called is not None
    object.__setattr__(evaluated, "value", evaluated.value * factor)
    (check,) = constant_check(planned.called, planned.evaluated)
    assert check.passed is right
    assert check.failed is not right
    assert check.tensor == "s"


def test_nothing_is_tested_where_nothing_was_computed() -> None:
    assert list(constant_check(ir.from_proto(_model()), ())) == []
