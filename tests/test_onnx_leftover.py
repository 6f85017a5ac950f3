"""`leftover="affine"` and `"depthwise"` through ONNX: no BatchNorm is left, and none was more accurate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_models import (
    NEWEST,
    PARAMETERS,
    STATS,
    Array,
    as_bytes,
    assert_fold,
    ops,
    parse,
    proto,
    reasons,
    stored,
)

import bnfold
from bnfold import leftover_forms
from bnfold.decision import Kept, Reason, Reduced
from bnfold.frontends.onnx_context import LEFT
from bnfold.frontends.onnx_float64 import evaluate, in_float64
from bnfold.leftover_forms import Part
from bnfold.runtime import open_session

INPUT = [Reason.READS_MODEL_INPUT]

#: y = x in every channel, to the last bit.
IDENTITY = {"gamma": 1, "beta": 0, "mean": 0, "var": 1}


def alone(rank: int = 4, dtype: str = "float", attributes: str = "", parameters: str = PARAMETERS) -> str:
    """A BatchNorm that can go nowhere, between the model's input and, so to speak, its output."""
    shape = ",".join(["N", "4", *["5"] * (rank - 2)])
    return f"""({dtype}[{shape}] x) => ({dtype}[{shape}] y) <{parameters.replace("float", dtype)}>
        {{ b = BatchNormalization {attributes} (x, {STATS}) y = Identity(b) }}"""


def left(result: bnfold.FoldResult) -> list[str]:
    """What the BatchNorms became."""
    return [decision.to for decision in result.report.reduced]


@pytest.mark.parametrize("opset", [7, 9, 14, NEWEST])
@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_a_mul_and_an_add_take_the_place_at_any_rank(rank: int, opset: int) -> None:
    result = assert_fold(parse(alone(rank), opset=opset), folded=0, kept=INPUT, leftover="affine")
    assert left(result) == ["Mul-Add"]
    assert ops(result.model) == ["Mul", "Add", "Identity"]
    assert stored(result.model, "b_scale").shape == stored(result.model, "b_shift").shape == (4, *(1,) * (rank - 2))


@pytest.mark.parametrize("opset", [7, 9, 14, NEWEST])
@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_a_depthwise_conv_takes_the_place_where_there_is_a_spatial_axis(rank: int, opset: int) -> None:
    result = assert_fold(parse(alone(rank), opset=opset), folded=0, kept=INPUT, leftover="depthwise")
    assert ops(result.model) == (["Mul", "Add", "Identity"] if rank == 2 else ["Conv", "Identity"])
    if rank > 2:
        assert stored(result.model, "b_scale").shape == (4, 1, *(1,) * (rank - 2))
        assert stored(result.model, "b_shift").shape == (4,)


def test_keep_is_the_default_and_changes_nothing() -> None:
    model = ir.from_proto(parse(alone()))
    assert as_bytes(bnfold.fold(model).model) == as_bytes(bnfold.fold(model, leftover="keep").model) == as_bytes(model)


CASES: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "no shift": ({"beta": 0, "mean": 0}, ["Mul"], ["Conv"]),
    "no scale": ({"gamma": 1, "mean": 2, "var": 1}, ["Add"], ["Add"]),
    "a channel of zero": ({"gamma": [0, 1, 2, 3]}, ["Mul", "Add"], ["Conv"]),
    "far from zero": ({"mean": 20}, ["Sub", "Mul", "Add"], ["Sub", "Conv"]),
    "far from zero, no beta": ({"mean": -20, "beta": 0}, ["Sub", "Mul"], ["Sub", "Conv"]),
    "far from zero, no scale": ({"mean": 20, "gamma": 1, "var": 1}, ["Sub", "Add"], ["Sub", "Add"]),
    "far from zero and a channel of zero": (
        {"mean": 20, "gamma": [0, 1, 2, 3]},
        ["Sub", "Mul", "Add"],
        ["Sub", "Conv"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_does_nothing_is_left_out_and_a_sub_is_there_where_the_mean_would_cancel(case: str) -> None:
    values, affine, depthwise = CASES[case]
    model = parse(alone(attributes="<epsilon = 0.0>"), values=values)
    for form, expected in (("affine", affine), ("depthwise", depthwise)):
        result = assert_fold(model, folded=0, kept=INPUT, leftover=form)
        assert ops(result.model) == [*expected, "Identity"]
        assert left(result) == ["-".join(expected)]


def test_a_conv_has_no_bias_where_the_shift_is_zero() -> None:
    model = parse(alone(), values={"beta": 0, "mean": 0})
    result = assert_fold(model, folded=0, kept=INPUT, leftover="depthwise")
    assert len(proto(result.model).graph.node[0].input) == 2


# Names


def test_the_value_and_the_node_keep_their_names_and_the_new_ones_follow_from_them() -> None:
    text = alone().replace("b = Batch", "[norm] b = Batch")
    result = assert_fold(parse(text, values={"mean": 20}), folded=0, kept=INPUT, leftover="affine")
    graph = proto(result.model).graph
    assert [(n.name, n.output[0]) for n in graph.node][:3] == [
        ("norm_centred", "b_centred"),
        ("norm_scaled", "b_scaled"),
        ("norm", "b"),
    ]
    assert {t.name for t in graph.initializer} == {"b_mean", "b_scale", "b_shift"}


def test_a_name_that_is_taken_is_not_taken_again() -> None:
    text = alone().replace("y = Identity(b)", "b_scale = Abs(b) b_scaled = Abs(b_scale) y = Sigmoid(b_scaled)")
    result = assert_fold(parse(text), folded=0, kept=INPUT, leftover="affine")
    assert {t.name for t in proto(result.model).graph.initializer} == {"b_scale_2", "b_shift"}


@pytest.mark.parametrize("form", ["affine", "depthwise"])
@pytest.mark.parametrize("values", [{}, IDENTITY])
def test_between_an_input_and_an_output_both_stay_what_they_are(form: str, values: dict[str, Any]) -> None:
    text = (
        f"(float[N,4,8] x) => (float[N,4,8] y) <{PARAMETERS}> {{ y = BatchNormalization <epsilon=0.0> (x, {STATS}) }}"
    )
    result = assert_fold(parse(text, values=values), folded=0, kept=INPUT, leftover=form)
    expected = "Identity" if values else {"affine": "Mul-Add", "depthwise": "Conv"}[form]
    assert left(result) == [expected]
    assert "-".join(ops(result.model)) == expected


def test_the_body_of_an_if_reads_the_value_as_before() -> None:
    text = f"""(float[N,4,8] x, bool q) => (float[N,4,8] y) <{PARAMETERS}>
        {{ b = BatchNormalization(x, {STATS})
           y = If (q) <then_branch = g () => (float[N,4,8] t) {{ t = Neg(b) }},
                       else_branch = h () => (float[N,4,8] u) {{ u = Relu(b) }}> }}"""
    result = assert_fold(parse(text), folded=0, kept=[Reason.CAPTURED_BY_SUBGRAPH], leftover="affine")
    assert ops(result.model) == ["Mul", "Add", "If"]


# Dtypes and accuracy


@pytest.mark.parametrize("dtype", ["float16", "float", "double"])
@pytest.mark.parametrize("form", ["affine", "depthwise"])
def test_the_constants_have_the_dtype_of_the_model(dtype: str, form: str) -> None:
    runs = (dtype, form) != ("double", "depthwise")  # onnxruntime's CPU has no Conv in double
    result = assert_fold(parse(alone(dtype=dtype)), folded=0, kept=INPUT, leftover=form, runs=runs)
    kinds = {t.data_type for t in proto(result.model).graph.initializer}
    assert kinds == {onnx.TensorProto.DataType.Value({"float": "FLOAT"}.get(dtype, dtype.upper()))}


@pytest.mark.parametrize("form", ["affine", "depthwise"])
def test_bfloat16_has_no_depthwise_conv_because_older_operator_sets_lack_it(form: str) -> None:
    result = assert_fold(parse(alone(dtype="bfloat16")), folded=0, kept=INPUT, leftover=form, runs=False)
    assert left(result) == ["Sub-Mul-Add"]


@pytest.mark.parametrize("opset", [15, NEWEST])
@pytest.mark.parametrize("form", ["affine", "depthwise"])
def test_float32_statistics_of_float16_values_are_rounded_to_float16_once(form: str, opset: int) -> None:
    text = alone(dtype="float16").replace("float16[4]", "float[4]")
    model = parse(text, opset=opset, values={"mean": [3.3, -1.1, 0.3, 7.7]})
    result = assert_fold(model, folded=0, kept=INPUT, leftover=form)
    assert left(result) == [{"affine": "Sub-Mul-Add", "depthwise": "Sub-Conv"}[form]]
    gamma, beta, mean, var = (stored(ir.from_proto(model), name) for name in STATS.split(", "))
    scale, centre = gamma / np.sqrt(var + np.float32(1e-5)), np.float16(mean).astype(np.float64)
    found = [stored(result.model, f"b_{name}").ravel() for name in ("mean", "scale", "shift")]
    expected = [np.float16(v).astype(np.float64) for v in (centre, scale, beta + (centre - mean) * scale)]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("ratio", [0.1, 1, 4, 8, 10, 100, 1000])
@pytest.mark.parametrize(("dtype", "worse"), [("float", 1.05), ("float16", 1.35)])
@pytest.mark.parametrize("form", ["affine", "depthwise"])
def test_no_form_is_less_accurate_than_the_batchnorm(form: str, dtype: str, worse: float, ratio: float) -> None:
    """Root mean square error on onnxruntime, which does not round the scale to float16."""
    generator = np.random.default_rng(5)
    var = 0.5 + generator.random(64)
    mean = ratio * np.sqrt(var) * generator.choice([-1, 1], 64)
    text = alone(parameters=PARAMETERS.replace("[4]", "[64]"), dtype=dtype).replace(",4,5,5]", ",64,32,32]")
    model = parse(text, values={"mean": mean, "var": var})
    after = proto(bnfold.fold(ir.from_proto(model), leftover=form, verify=False).model)
    x = mean[:, None, None] + np.sqrt(var)[:, None, None] * generator.standard_normal((4, 64, 32, 32))
    feeds = {"x": x.astype(np.float32 if dtype == "float" else np.float16)}
    truth = evaluate(in_float64(model), feeds, ["y"])["y"]
    errors = [_rms(open_session(m, "cpu").run(["y"], feeds)["y"] - truth) for m in (model, after)]
    assert 0 < errors[1] <= worse * errors[0]


def _rms(error: Array) -> float:
    return float(np.sqrt(np.mean(np.square(error))))


# What stays


def _stays(model: onnx.ModelProto, reason: Reason, **options: Any) -> None:
    """With either form the model is as it was, and the reason is the one that is told without."""
    original = ir.from_proto(model)
    before = bnfold.fold(original, verify=False, **options)
    for form in ("affine", "depthwise"):
        after = bnfold.fold(original, verify=False, leftover=form, **options)
        assert as_bytes(after.model) == as_bytes(original)
        assert after.decisions == before.decisions
        assert reason in reasons(after)


def test_what_the_caller_keeps_stays_a_batchnorm() -> None:
    _stays(parse(alone()), Reason.EXCLUDED_BY_CALLER, keep="b")
    _stays(parse(alone()), Reason.EXCLUDED_BY_CALLER, only="nothing")


def test_what_is_no_affine_stays_a_batchnorm() -> None:
    training, spatial = "<training_mode=1>", "<spatial=0>"
    _stays(parse(alone(attributes=training)), Reason.NORMALISES_BY_BATCH_STATISTICS)
    _stays(parse(alone(attributes=spatial), opset=7), Reason.NORMALISES_PER_ELEMENT)
    _stays(parse(alone(), values={"var": -1}), Reason.STATISTICS_NOT_FINITE)
    _stays(parse(alone().replace("[4] var", "[5] var")), Reason.PARAMETERS_MISMATCHED)
    _stays(
        parse(alone().replace("(x, gamma", "(x, g").replace(" x)", " x, float[4] g)")), Reason.PARAMETERS_NOT_CONSTANT
    )


def test_what_the_caller_may_override_stays_a_batchnorm() -> None:
    _stays(parse(alone(), opset=8), Reason.PARAMETER_IS_OVERRIDABLE, keep_overridable=True)


def _stuck(model: onnx.ModelProto, reason: Reason) -> None:
    """The BatchNorm stays, and `reason` is told beside the two ways that it could not go."""
    result = assert_fold(model, folded=0, kept=[reason], leftover="affine", runs=False)
    assert as_bytes(result.model) == as_bytes(ir.from_proto(model))
    (kept,) = result.report.kept
    assert [r.reason for r in kept.refusals][2:] == [reason]


def test_without_a_known_rank_it_stays_a_batchnorm() -> None:
    text = f"""(float[N,3,8,8] x, int64[k] shape) => (float[A,B,C,D] y) <{PARAMETERS}>
        {{ r = Reshape(x, shape) b = BatchNormalization(r, {STATS}) y = Sigmoid(b) }}"""
    model = parse(text)
    report = bnfold.inspect(ir.from_proto(model), leftover="affine")
    assert [r.reason for r in report.kept[0].refusals].count(Reason.AXIS_NOT_PROVEN) >= 1
    assert isinstance(report.decisions[0], Kept)
    assert as_bytes(bnfold.fold(ir.from_proto(model), leftover="affine", verify=False).model) == as_bytes(
        ir.from_proto(model)
    )


def test_what_would_not_fit_the_dtype_stays_a_batchnorm() -> None:
    _stuck(
        parse(alone(dtype="float16", attributes="<epsilon=0.0>"), values={"gamma": 6e4, "var": 1e-4}),
        Reason.OVERFLOWS_DTYPE,
    )
    _stuck(parse(alone(dtype="float16"), values={"gamma": 1e-3, "var": 1e4}), Reason.UNDERFLOWS_DTYPE)


def test_two_batchnorms_of_one_name_are_told_apart() -> None:
    text = f"""(float[N,4,8] x) => (float[N,4,8] y, float[N,4,8] z) <{PARAMETERS}>
        {{ [bn] y = BatchNormalization <training_mode=1> (x, {STATS}) [bn] z = BatchNormalization (x, {STATS}) }}"""
    report = bnfold.inspect(ir.from_proto(parse(text)), leftover="affine")
    assert [type(d) for d in report.decisions] == [Kept, Reduced]
    assert reasons(report)[0] is Reason.NORMALISES_BY_BATCH_STATISTICS


# Beside other folds


def test_constants_around_it_go_into_it() -> None:
    text = f"""(float[N,4,8] x) => (float[N,4,8] y) <{PARAMETERS}, float[4,1] p, float[4,1] q, float[4,1] r>
        {{ a = Mul(p, x) c = Sub(a, q) b = BatchNormalization(c, {STATS}) d = Div(b, r) y = Sigmoid(d) }}"""
    values = {"p": [[1], [2], [-3], [0.5]], "r": [[3], [-1], [2], [5]]}
    result = assert_fold(parse(text, values=values), folded=0, kept=INPUT, leftover="affine")
    assert ops(result.model) == ["Sub", "Mul", "Add", "Sigmoid"]
    result = assert_fold(parse(text, values=values), folded=0, kept=INPUT, leftover="depthwise")
    assert ops(result.model) == ["Sub", "Conv", "Sigmoid"]


def test_two_in_a_row_become_one() -> None:
    text = f"""(float[N,4,8] x) => (float[N,4,8] y) <{PARAMETERS}>
        {{ a = BatchNormalization(x, {STATS}) b = BatchNormalization(a, {STATS}) y = Sigmoid(b) }}"""
    result = assert_fold(parse(text), folded=0, kept=INPUT * 2, leftover="affine")
    assert ops(result.model) == ["Mul", "Add", "Sigmoid"]
    assert left(result) == ["Mul-Add"] * 2


def test_what_it_has_absorbed_is_in_it() -> None:
    text = f"""(float[N,4,8,8] x) => (float[N,4,4,4] y) <{PARAMETERS}>
        {{ a = BatchNormalization(x, {STATS}) p = AveragePool <kernel_shape=[2,2], strides=[2,2]> (a)
           b = BatchNormalization(p, {STATS}) y = Sigmoid(b) }}"""
    result = assert_fold(parse(text, values={"mean": 3}), folded=1, kept=INPUT, leftover="affine")
    assert sorted(ops(result.model)) == sorted(["Sub", "Mul", "Add", "AveragePool", "Sigmoid"])
    result = assert_fold(parse(text, values={"mean": 3}), folded=1, kept=INPUT, leftover="depthwise")
    assert "BatchNormalization" not in ops(result.model)


def test_an_add_of_reduce_and_a_leftover_go_together() -> None:
    text = f"""(float[N,4,8,8] x) => (float[N,3,8,8] y, float[N,4,8,8] z) <float[3,4,3,3] w, {PARAMETERS}>
        {{ b = BatchNormalization(x, {STATS}) r = Relu(b) y = Conv <pads=[1,1,1,1]> (r, w)
           z = BatchNormalization(x, {STATS}) }}"""
    model = parse(text, values={"gamma": 1.3})
    result = assert_fold(model, folded=0, kept=[Reason.VALUE_HAS_OTHER_READERS] * 2, reduce=True, leftover="affine")
    assert left(result) == ["Add", "Mul-Add"]
    assert "BatchNormalization" not in ops(result.model)


def test_what_can_be_folded_is_folded_as_ever() -> None:
    text = f"""(float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w, {PARAMETERS}>
        {{ c = Conv(x, w) y = BatchNormalization(c, {STATS}) }}"""
    plain, forms = (assert_fold(parse(text), folded=1, leftover=form) for form in ("keep", "affine"))
    assert as_bytes(plain.model) == as_bytes(forms.model)


@pytest.mark.parametrize("form", ["affine", "depthwise"])
def test_a_batchnorm_that_was_refused_for_its_statistics_is_refused_again_without_them(form: str) -> None:
    text = f"""(float[N,4,8,8] x) => (float[N,3,6,6] y) <float[3,4,3,3] w, {PARAMETERS}>
        {{ b = BatchNormalization(x, {STATS}) y = Conv (b, w) }}"""
    model = parse(text, values={"mean": 20, "gamma": 0.1, "var": 1})
    result = assert_fold(model, folded=0, kept=[Reason.ILL_CONDITIONED], leftover=form)
    assert bnfold.inspect(result.model, leftover=form).decisions == ()
    unmarked = result.model.clone()
    del unmarked.metadata_props[LEFT]
    if form == "affine":
        assert bnfold.inspect(unmarked).folded, "the mark is not needed, so that nothing is tested here"


def test_marks_of_several_folds_add_up() -> None:
    text = f"""(float[N,4,8] x) => (float[N,4,8] y) <{PARAMETERS}>
        {{ a = BatchNormalization(x, {STATS}) s = Sigmoid(a) b = BatchNormalization(s, {STATS}) y = Sigmoid(b) }}"""
    first = bnfold.fold(ir.from_proto(parse(text)), leftover="affine", only="^a$").model
    second = bnfold.fold(first, leftover="affine").model
    assert second.metadata_props[LEFT] == '["a_scaled", "a", "b_scaled", "b"]'
    for nonsense in ("{", "7", '[1, {"a": 2}]'):
        first.metadata_props[LEFT] = nonsense
        assert "BatchNormalization" not in ops(bnfold.fold(first, leftover="affine").model)


# Reports and proof


@pytest.mark.parametrize("form", ["affine", "depthwise"])
def test_inspect_and_fold_say_the_same(form: str) -> None:
    model = ir.from_proto(parse(alone()))
    result = bnfold.fold(model, leftover=form)
    assert bnfold.inspect(model, leftover=form).decisions == result.decisions
    (decision,) = result.report.reduced
    assert (decision.direction, decision.into, decision.through) == (None, (), ())
    assert [r.reason for r in decision.refusals] == [Reason.READS_MODEL_INPUT, Reason.IS_MODEL_OUTPUT]


@pytest.mark.parametrize("form", ["affine", "depthwise"])
@pytest.mark.parametrize("rank", [2, 4])
def test_every_rewritten_batchnorm_is_a_region_of_the_local_test(form: str, rank: int) -> None:
    result = bnfold.fold(ir.from_proto(parse(alone(rank))), leftover=form)
    assert result.report.verification is not None
    (check,) = result.report.verification.local
    assert check.batchnorms == ("b",)
    assert check.tensor == "b"
    assert check.ratio is not None
    assert 0 < check.ratio <= 1


def _enlarged(which: str) -> Callable[..., tuple[Part, ...]]:
    original = leftover_forms._parts

    def parts(*arguments: Any) -> tuple[Part, ...]:
        found = original(*arguments)
        return tuple(Part(p.kind, tuple(c * (1 + 2e-6) for c in p.constants)) if p.kind == which else p for p in found)

    return parts


@pytest.mark.parametrize("which", ["Mul", "Add", "Conv"])
def test_the_check_finds_a_constant_that_is_two_millionths_off(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftover_forms, "_parts", _enlarged(which))
    form = "depthwise" if which == "Conv" else "affine"
    with pytest.raises(bnfold.VerificationError, match="b"):
        bnfold.fold(ir.from_proto(parse(alone())), leftover=form)


def test_a_form_that_does_not_exist_is_a_usage_error() -> None:
    for function in (bnfold.inspect, bnfold.fold):
        with pytest.raises(bnfold.UsageError, match="keep, affine, depthwise"):
            function(ir.from_proto(parse(alone())), leftover="nothing")  # type: ignore[operator]
