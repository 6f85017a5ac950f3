"""BatchNormalization itself: operator sets 7 to the newest, every attribute, every odd parameter.

Bugs of other tools that are covered here: training-mode BatchNorm folded (onnxscript, aimet) or fatal (onnxsim#175),
`epsilon or 1e-5` (aimet) and another default (MNN), an opset forgotten (onnxruntime#11960), a negative scale
(mmcv#2620), a variance below zero (MobileNet-Caffe#87), mixed dtypes (onnxslim, onnxscript).
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_models import NEWEST, PARAMETERS, STATS, assert_fold, ops, parse, reasons, stored

import bnfold
from bnfold.decision import Kept, Reason

WEIGHT = "float[4,3,3,3] w"


def _behind_conv(node: str, parameters: str = PARAMETERS, *, more: str = "") -> str:
    return f"""(float[N,3,8,8] x) => (float[N,4,6,6] y) <{WEIGHT}, {parameters}>
        {{ {more} c = Conv(x, w) {node} }}"""


BATCHNORM = f"b = BatchNormalization(c, {STATS}) y = Relu(b)"


@pytest.mark.parametrize("opset", range(7, NEWEST + 1))
def test_conv_batchnorm_relu_folds_in_every_operator_set(opset: int) -> None:
    assert ops(assert_fold(parse(_behind_conv(BATCHNORM), opset=opset), folded=1).model) == ["Conv", "Relu"]


def test_operator_set_6_is_a_model_error() -> None:
    with pytest.raises(bnfold.ModelError, match=r"operator set 6 is too old.*version_converter"):
        bnfold.fold(ir.from_proto(parse(_behind_conv("y = Relu(c)"), opset=6)))


def test_a_model_without_an_operator_set_of_its_own_is_read_as_far_as_it_goes() -> None:
    model = parse(_behind_conv(BATCHNORM))
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("ai.onnx", 17))
    assert_fold(model, folded=1)


@pytest.mark.parametrize(("spatial", "folds"), [(1, True), (0, False)])
def test_spatial_0_of_old_operator_sets_is_no_channel_affine(spatial: int, folds: bool) -> None:
    text = _behind_conv(f"y = BatchNormalization <spatial={spatial}> (c, {STATS})")
    for opset in (7, 8):
        model = parse(text, opset=opset)
        if folds:
            assert_fold(model, folded=1)
        else:
            report = bnfold.inspect(ir.from_proto(model))
            assert reasons(report) == [Reason.NORMALISES_PER_ELEMENT]


@pytest.mark.parametrize(("is_test", "folds"), [(1, True), (0, False)])
def test_a_stray_is_test_is_believed(is_test: int, folds: bool) -> None:
    model = parse(_behind_conv(f"y = BatchNormalization <is_test={is_test}> (c, {STATS})"), opset=7)
    report = bnfold.inspect(ir.from_proto(model))
    assert reasons(report) == ([] if folds else [Reason.NORMALISES_BY_BATCH_STATISTICS])


@pytest.mark.parametrize("opset", [14, 15, NEWEST])
def test_training_mode_is_kept(opset: int) -> None:
    one = parse(_behind_conv(f"y = BatchNormalization <training_mode=1> (c, {STATS})"), opset=opset)
    three = parse(_behind_conv(f"y, m, v = BatchNormalization <training_mode=1> (c, {STATS})"), opset=opset)
    for model in (one, three):
        result = bnfold.fold(ir.from_proto(model), verify=False)
        assert reasons(result) == [Reason.NORMALISES_BY_BATCH_STATISTICS]
        assert isinstance(result.decisions[0], Kept)
        assert result.decisions[0].remedy == "export the model in eval mode"
        assert ops(result.model) == ["Conv", "BatchNormalization"]


def test_training_mode_0_is_folded() -> None:
    assert_fold(parse(_behind_conv(f"y = BatchNormalization <training_mode=0> (c, {STATS})")), folded=1)


def _with_outputs(model: onnx.ModelProto, *more: str) -> onnx.ModelProto:
    node = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    node.output.extend(more)
    return model


@pytest.mark.parametrize("opset", [9, 13, 15])
def test_trailing_outputs_that_are_left_out_do_not_count(opset: int) -> None:
    model = _with_outputs(parse(_behind_conv(f"y = BatchNormalization(c, {STATS})"), opset=opset), "", "")
    result = bnfold.fold(ir.from_proto(model), verify=False)
    assert ops(result.model) == ["Conv"]


def test_outputs_that_only_training_has_are_kept() -> None:
    model = _with_outputs(parse(_behind_conv(f"y = BatchNormalization(c, {STATS})"), opset=9), "m", "v", "sm", "sv")
    report = bnfold.inspect(ir.from_proto(model))
    assert reasons(report) == [Reason.NORMALISES_BY_BATCH_STATISTICS]


@pytest.mark.parametrize(
    ("attribute", "epsilon"),
    [("", 1e-5), ("<epsilon=0.0>", 0.0), ("<epsilon=0.001>", 0.001), ("<momentum=0.1>", 1e-5)],
)
def test_epsilon_is_what_the_file_says(attribute: str, epsilon: float) -> None:
    text = _behind_conv(f"y = BatchNormalization {attribute} (c, {STATS})")
    model = parse(text, values={"w": 1, "gamma": 1, "beta": 0, "mean": 0, "var": 1e-4})
    result = assert_fold(model, folded=1)
    exact = 1 / np.sqrt(np.float64(np.float32(1e-4)) + np.float64(np.float32(epsilon)))
    assert (stored(result.model, "w_folded") == np.float32(exact)).all()


def test_gammas_of_zero_and_of_either_sign_are_folded() -> None:
    assert_fold(parse(_behind_conv(BATCHNORM), values={"gamma": [0, -1.5, 2, -0.25]}), folded=1)
    assert_fold(parse(_behind_conv(BATCHNORM), values={"gamma": [-1, -1.5, -2, -0.25]}), folded=1)


def test_a_variance_just_above_minus_epsilon_is_folded_and_one_at_it_is_kept() -> None:
    text = _behind_conv(f"y = BatchNormalization <epsilon=0.00001> (c, {STATS})")
    assert_fold(parse(text, values={"var": [1, -9.9999e-6, 1, 1]}), folded=1)
    for bad in (-1.0, -float(np.float32(1e-5))):
        model = parse(text, values={"var": [1, bad, 1, 1]})
        result = bnfold.fold(ir.from_proto(model), verify=False)
        assert reasons(result) == [Reason.STATISTICS_NOT_FINITE]
        assert "channel 1, 1 of 4" in str(result.report.kept[0].refusals[0])


@pytest.mark.parametrize("parameter", ["gamma", "beta", "mean", "var"])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_parameters_that_are_not_finite_are_kept(parameter: str, number: float) -> None:
    given = {parameter: [1, 1, number, 1]}
    result = bnfold.fold(ir.from_proto(parse(_behind_conv(BATCHNORM), values=given)), verify=False)
    if (parameter, number) == ("var", np.inf):  # gamma / inf = 0: exact and finite
        assert len(result.report.folded) == 1
    else:
        assert reasons(result) == [Reason.STATISTICS_NOT_FINITE]


@pytest.mark.parametrize("length", [1, 3, 5])
def test_parameters_of_another_length_are_kept(length: int) -> None:
    for name in ("gamma", "var"):
        text = _behind_conv(BATCHNORM, PARAMETERS.replace(f"[4] {name}", f"[{length}] {name}"))
        assert reasons(bnfold.inspect(ir.from_proto(parse(text)))) == [Reason.PARAMETERS_MISMATCHED]
    text = _behind_conv(BATCHNORM, PARAMETERS.replace("[4]", f"[{length}]"))
    assert reasons(bnfold.inspect(ir.from_proto(parse(text)))) == [Reason.PARAMETERS_MISMATCHED]


CHAINS = {
    "Constant": ("", "g = Constant <value = float[4] {1.5, -2.0, 0.5, 1.0}> ()"),
    "Constant of floats": ("", "g = Constant <value_floats = [1.5, -2.0, 0.5, 1.0]> ()"),
    "Identity": ("float[4] gamma", "g = Identity(gamma)"),
    "two Identities": ("float[4] gamma", "h = Identity(gamma) g = Identity(h)"),
    "Cast": ("double[4] gamma", "g = Cast <to=1> (gamma)"),
    "CastLike": ("double[4] gamma", "g = CastLike(gamma, x)"),
    "Unsqueeze and Squeeze": ("float[4] gamma, int64[1] a", "h = Unsqueeze(gamma, a) g = Squeeze(h, a)"),
    "Reshape": ("float[2,2] gamma, int64[1] r", "g = Reshape(gamma, r)"),
    "Expand": ("float[1] gamma, int64[1] r", "g = Expand(gamma, r)"),
    "Expand to a Shape": ("float[1] gamma, float[4] like", "s = Shape(like) g = Expand(gamma, s)"),
    "Mul": ("float[4] gamma, float[4] other", "g = Mul(gamma, other)"),
    "Sqrt of Add": ("float[4] gamma", "h = Mul(gamma, gamma) g = Sqrt(h)"),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_a_parameter_computed_from_constants_is_constant(chain: str) -> None:
    declared, nodes = CHAINS[chain]
    parameters = PARAMETERS.replace("float[4] gamma, ", f"{declared}, " if declared else "")
    text = _behind_conv(f"y = BatchNormalization(c, {STATS.replace('gamma', 'g')})", parameters, more=nodes)
    model = parse(text, opset=17, values={"a": [0], "r": [4], "mean": [0.3, 0.1, -0.2, 0.4]})
    result = assert_fold(model, folded=1)
    assert ops(result.model) == ["Conv"]
    assert [v.name for v in result.model.graph.initializers.values()] == ["w_folded", "w_bias_folded"]


@pytest.mark.parametrize("node", ["g = ReduceMean <axes=[0,2,3], keepdims=0> (c)", "g = RandomNormal <shape=[4]> ()"])
def test_a_parameter_computed_at_run_time_is_kept(node: str) -> None:
    text = _behind_conv(f"{node} y = BatchNormalization(c, {STATS.replace('gamma', 'g')})")
    report = bnfold.inspect(ir.from_proto(parse(text)))
    assert reasons(report) == [Reason.PARAMETERS_NOT_CONSTANT]
    assert report.kept[0].subject.channels == 4


def test_mixed_dtypes_of_opset_15_are_folded_into_the_weights_dtype() -> None:
    text = f"""(float16[N,3,8,8] x) => (float16[N,4,6,6] y) <float16[4,3,3,3] w, {PARAMETERS}>
        {{ c = Conv(x, w) y = BatchNormalization(c, {STATS}) }}"""
    result = assert_fold(parse(text, opset=15), folded=1, runs=False)
    assert {t.dtype.name for v in result.model.graph.initializers.values() if (t := v.const_value)} == {"FLOAT16"}
    half = text.replace("float[4] gamma, float[4] beta", "float16[4] gamma, float16[4] beta")
    assert_fold(parse(half, opset=15), folded=1, runs=False)


def test_a_batchnorm_of_rank_2_and_of_rank_5_is_folded_and_one_of_rank_1_is_kept() -> None:
    assert_fold(
        parse(f"""(float[N,3] x) => (float[N,4] y) <float[3,4] w, float[4] b, {PARAMETERS}>
        {{ c = Gemm(x, w, b) y = BatchNormalization(c, {STATS}) }}"""),
        folded=1,
    )
    report = bnfold.inspect(
        ir.from_proto(
            parse(f"""(float[4] x) => (float[4] y) <{PARAMETERS}>
        {{ y = BatchNormalization(x, {STATS}) }}""")
        )
    )
    assert reasons(report) == [Reason.AXIS_NOT_PROVEN]


def test_a_batchnorm_between_input_and_output_is_kept_and_one_before_a_conv_is_folded() -> None:
    alone = f"(float[N,4,8,8] x) => (float[N,4,8,8] y) <{PARAMETERS}> {{ y = BatchNormalization(x, {STATS}) }}"
    assert_fold(parse(alone), folded=0, kept=[Reason.READS_MODEL_INPUT])
    first = f"""(float[N,4,8,8] x) => (float[N,2,7,7] y) <float[2,4,2,2] w, {PARAMETERS}>
        {{ b = BatchNormalization(x, {STATS}) y = Conv(b, w) }}"""
    assert_fold(parse(first), folded=1)


def test_a_batchnorm_of_no_channels_is_no_traceback() -> None:
    parameters = PARAMETERS.replace("[4]", "[0]")
    text = f"(float[N,0,8] x) => (float[N,0,8] y) <{parameters}> {{ y = BatchNormalization(x, {STATS}) }}"
    assert len(bnfold.inspect(ir.from_proto(parse(text))).kept) == 1
