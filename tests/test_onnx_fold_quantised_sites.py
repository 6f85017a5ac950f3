"""Quantised weights at the input, at both ends, shared, rounded in the model, beside branches, and not understood."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_models import PARAMETERS, STATS, assert_fold, ops, parse, proto, reasons, stored
from quantised_models import along, assert_scaled, batchnorm, deployed, quantised_conv, spread_codes, weight_of

import bnfold
from bnfold.decision import Reason
from bnfold.frontends.onnx_float64 import evaluate
from bnfold.runtime import open_session

SIGNS = [1.0, -0.7, 1.3, -1.1]
POSITIVE = [1.0, 0.7, 1.3, 0.2]


_PUSH = f"""(float[N,4,9,9] x) => (float[A,B,C,D] y) <int8[WEIGHT] q, float[SCALES] s, {PARAMETERS}>
    {{ c = BatchNormalization(x, {STATS}) w = DequantizeLinear <axis=AXIS> (q, s) y = Conv NODE (c, w) }}"""


@pytest.mark.parametrize(
    ("weight", "scales", "axis", "node", "gamma", "folded"),
    [
        ("5,4,2,2", "1", 0, "", [2, 2, 2, 2], True),
        ("5,4,2,2", "5", 0, "", [2, 2, 2, 2], True),
        ("5,4,2,2", "1", 0, "", [2, -2, 2, -2], True),
        ("5,4,2,2", "1", 0, "", [2, 2, 2, 3], False),
        ("5,4,2,2", "5", 0, "", [2, 2, 2, 3], False),
        ("5,4,2,2", "4", 1, "", [2, 2, 2, 3], True),
        ("4,1,2,2", "1", 0, "<group=4>", [2, 2, 2, 3], True),
        ("8,1,2,2", "8", 0, "<group=4>", [2, 2, 2, 3], True),
        ("6,2,2,2", "6", 0, "<group=2>", [2, 2, 3, 3], True),
        ("6,2,2,2", "6", 0, "<group=2>", [2, 3, 3, 3], False),
    ],
)
def test_at_the_input_the_scale_must_be_the_weights_own(  # noqa: PLR0917
    weight: str, scales: str, axis: int, node: str, gamma: list[float], folded: bool
) -> None:
    text = _PUSH.replace("WEIGHT", weight).replace("SCALES", scales).replace("AXIS", str(axis)).replace("NODE", node)
    values = {
        "q": spread_codes(tuple(int(n) for n in weight.split(","))),
        "s": 0.01,
        "gamma": gamma,
        "var": 1,
        "mean": 0.1,
    }
    kept = [] if folded else [Reason.QUANTISATION_IS_TOO_COARSE]
    assert_fold(parse(text, values=values), folded=int(folded), kept=kept)


def test_factors_of_both_ends_are_rounded_once() -> None:
    text = f"""(float[N,4,9,9] x) => (float[A,B,C,D] y)
        <int8[4,4,2,2] q, float[4] s, {PARAMETERS}, float[4] gamma2, float[4] beta2, float[4] mean2, float[4] var2>
        {{ b = BatchNormalization(x, gamma2, beta2, mean2, var2) w = DequantizeLinear <axis=0> (q, s)
           c = Conv(b, w) y = BatchNormalization(c, {STATS}) }}"""
    values = {"q": spread_codes((4, 4, 2, 2)), "s": 0.01, "gamma2": 1.3, "var2": 0.7, "mean2": 0.2}
    model = parse(text, values=values)
    result = assert_fold(model, folded=2)
    factor = batchnorm(model)[0] * batchnorm(model, "2")[0][0]
    assert_scaled(weight_of(model, "c"), weight_of(result.model, "y"), along(factor, 0, 4))


def test_a_shared_weight_is_never_written() -> None:
    text = f"""(float[N,3,9,9] x) => (float[A,B,C,D] y, float[A,B,C,D] z) <int8[4,3,3,3] q, float s, {PARAMETERS}>
        {{ w = DequantizeLinear(q, s) c = Conv(x, w) y = BatchNormalization(c, {STATS}) z = Conv <group=1> (x, w) }}"""
    model = parse(text, values={"q": spread_codes((4, 3, 3, 3)), "s": 0.01, "gamma": SIGNS})
    result = assert_fold(model, folded=1)
    np.testing.assert_array_equal(stored(result.model, "q"), stored(model, "q"))
    assert weight_of(result.model, "z").scale == np.float32(0.01)
    assert result.report.notes == (f"{4 * 27 + 4} bytes of weights are shared and were copied",)


def test_two_readers_that_ask_for_the_same_share_the_folded_weight() -> None:
    text = f"""(float[N,3,9,9] x, float[N,3,9,9] u) => (float[A,B,C,D] y, float[A,B,C,D] z)
        <int8[4,3,3,3] q, float s, {PARAMETERS}>
        {{ w = DequantizeLinear(q, s) c = Conv(x, w) y = BatchNormalization(c, {STATS})
           d = Conv(u, w) z = BatchNormalization(d, {STATS}) }}"""
    model = parse(text, values={"q": spread_codes((4, 3, 3, 3)), "s": 0.01, "gamma": SIGNS})
    result = assert_fold(model, folded=2)
    assert ops(result.model) == ["DequantizeLinear", "Conv", "Conv"]
    assert result.report.notes == ()


def test_float16_scales_are_float16_and_must_stay_normal() -> None:
    text = quantised_conv("int8").replace("float", "float16").replace("int8 z", "int8 z")
    values = {"q": spread_codes((4, 3, 3, 3)), "s": 0.01, "z": 0, "gamma": [1, 0.5, 1, 1], "var": 1, "mean": 0}
    model = parse(text, opset=19, values=values)
    result = assert_fold(model, folded=1)
    assert weight_of(result.model, "y").scale.dtype == np.float16
    small = parse(text, opset=19, values={**values, "gamma": [1, 0.004, 1, 1]})
    assert_fold(small, folded=0, kept=[Reason.UNDERFLOWS_DTYPE])


_ROUNDED = f"""(float[N,3,9,9] x) => (float[A,B,C,D] y) <float[4,3,3,3] f, floatGRID s, int8GRID z, {PARAMETERS}>
    {{ i = QuantizeLinear <axis=0> (f, s, z) w = DequantizeLinear <axis=0> (i, s, z) c = Conv(x, w)
       y = BatchNormalization(c, {STATS}) }}"""


@pytest.mark.parametrize("grid", ["", "[4]"])
@pytest.mark.parametrize("zero", [0, 3])
def test_weights_that_the_model_rounds_move_with_their_grid(grid: str, zero: int) -> None:
    values = {"s": 0.01 if not grid else [0.01, 0.02, 0.03, 0.004], "z": zero}
    values["f"] = np.random.default_rng(0).uniform(-1.2, 1.2, (4, 3, 3, 3))  # some are beyond the grid
    model = parse(_ROUNDED.replace("GRID", grid), values={**values, "gamma": SIGNS if zero == 0 else POSITIVE})
    model.graph.output.append(onnx.helper.make_tensor_value_info("i", onnx.TensorProto.INT8, None))
    before = evaluate(model, {"x": np.zeros((1, 3, 9, 9), np.float32)}, ["i"])["i"]
    np.testing.assert_array_equal(
        open_session(model, "cpu").run(["i"], {"x": np.zeros((1, 3, 9, 9), np.float32)})["i"], before
    )
    if zero == 0:
        before = np.maximum(before, -127)  # or the mirror image would not fit
        values["f"] = np.maximum(values["f"], -127 * along(np.broadcast_to(np.float32(values["s"]), (4,)), 0, 4))
    model = parse(_ROUNDED.replace("GRID", grid), values={**values, "gamma": SIGNS if zero == 0 else POSITIVE})
    result = assert_fold(model, folded=1)
    assert ops(result.model) == ["QuantizeLinear", "DequantizeLinear", "Conv"]
    scale = batchnorm(model)[0]
    after = proto(result.model)
    steps, weights = (stored(after, after.graph.node[0].input[i]) for i in (1, 0))
    for optimised in (False, True):
        codes = deployed(
            _only(after, after.graph.node[0].output[0]), {"x": np.zeros((1, 3, 9, 9), np.float32)}, optimised=optimised
        )
        np.testing.assert_array_equal(codes, before * along(np.sign(scale), 0, 4))
    np.testing.assert_allclose(steps, np.float32(values["s"]) * np.abs(scale), rtol=2**-24)
    np.testing.assert_allclose(
        weights, along(steps, 0, 4) * (before.astype(np.float64) - zero) * along(np.sign(scale), 0, 4), rtol=2**-24
    )


def _only(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model with one output, of 8 bits."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT8, None))
    return copy


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("w = DequantizeLinear <axis=0> (i, s, z)", "w = DequantizeLinear <axis=0> (i, t, z)"),
        ("w = DequantizeLinear <axis=0> (i, s, z)", "w = DequantizeLinear <axis=0> (i, s)"),
        ("float", "float16"),
    ],
)
def test_weights_on_a_grid_that_cannot_move_are_kept_and_the_reason_says_so(old: str, new: str) -> None:
    text = _ROUNDED.replace("GRID s,", " s, float t,").replace("GRID", "").replace(old, new)
    report = bnfold.inspect(ir.from_proto(parse(text, opset=19, values={"s": 0.01, "t": 0.02, "z": 0})))
    assert reasons(report)[0] is Reason.ROUNDED_TO_A_GRID
    assert str(report.kept[0].refusals[0]).endswith("at i (the weights pass through a QuantizeLinear)")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("float s, int8 z", "float[5] s, int8[5] z", "scales of shape (5,)"),
        ("(q, s, z)", "<axis=0, block_size=3> (q, s, z)", "scales of shape ()"),
        ("int8 z", "int8[4] z", "zero points"),
        ("w = ", "v = DequantizeLinear(q, s, z) w = Sqrt(v) k = ", "at c"),
    ],
)
def test_what_is_not_understood_is_kept(old: str, new: str, told: str) -> None:
    model = parse(
        quantised_conv().replace(old, new, 1), opset=21, values={"q": spread_codes((4, 3, 3, 3)), "s": 0.01, "z": 0}
    )
    report = bnfold.inspect(ir.from_proto(model))
    assert reasons(report)[0] in (Reason.WEIGHTS_ARE_QUANTISED, Reason.WEIGHTS_NOT_CONSTANT)
    assert told in str(report.kept[0].refusals[0])


def test_a_scale_that_is_not_positive_is_kept() -> None:
    for scale in (0.0, -0.01, np.inf):
        model = parse(quantised_conv(), values={"q": spread_codes((4, 3, 3, 3)), "s": scale, "z": 0})
        assert reasons(bnfold.inspect(ir.from_proto(model)))[0] is Reason.WEIGHTS_ARE_QUANTISED


def test_a_quantised_branch_is_not_merged_with_others() -> None:
    text = f"""(float[N,3,9,9] x) => (float[A,B,C,D] y)
        <int8[4,3,3,3] q, float s, float[4,3,1,1] v, {PARAMETERS}, float[4] gamma2, float[4] beta2, float[4] mean2,
         float[4] var2>
        {{ w = DequantizeLinear(q, s) c = Conv <pads=[1,1,1,1]> (x, w) a = BatchNormalization(c, {STATS})
           d = Conv(x, v) b = BatchNormalization(d, gamma2, beta2, mean2, var2) y = Add(a, b) }}"""
    result = assert_fold(parse(text, values={"q": spread_codes((4, 3, 3, 3)), "s": 0.01}), folded=2)
    assert ops(result.model) == ["DequantizeLinear", "Conv", "Conv", "Add"]


def test_a_quantised_reader_undoes_what_its_scales_allow() -> None:
    text = f"""(float[N,3,9,9] x) => (float[A,B,C,D] y, float[A,B,E,F] z)
        <float[4,3,3,3] v, int8[4,4,1,1] q, float s, {PARAMETERS}>
        {{ c = Conv(x, v) n = BatchNormalization(c, {STATS}) y = Sigmoid(n)
           w = DequantizeLinear(q, s) e = Conv(c, w) z = Sigmoid(e) }}"""
    values = {"q": spread_codes((4, 4, 1, 1)), "s": 0.01, "var": 0.8, "mean": 0.1}
    assert_fold(parse(text, values={**values, "gamma": 1.3}), folded=1)
    kept = parse(text, values={**values, "gamma": POSITIVE})
    assert_fold(kept, folded=0, kept=[Reason.VALUE_HAS_OTHER_READERS])


@pytest.mark.parametrize(("gamma", "folded"), [([1, 1, 1, 1], 1), ([1, 1, 1, -1], 0)])
def test_what_a_depthwise_convolution_is_asked_at_both_ends_is_asked_together(gamma: list[float], folded: int) -> None:
    text = f"""(float[N,4,9,9] x) => (float[A,B,C,D] y)
        <int8[4,1,3,3] q, float s, {PARAMETERS}, float[4] gamma2, float[4] beta2, float[4] mean2, float[4] var2>
        {{ b = BatchNormalization(x, gamma2, beta2, mean2, var2) w = DequantizeLinear(q, s)
           c = Conv <group=4> (b, w) y = BatchNormalization(c, {STATS}) }}"""
    whole = spread_codes((4, 1, 3, 3), symmetric=False)
    model = parse(text, values={"q": whole, "s": 0.01, "gamma": gamma, "gamma2": -1, "mean2": 0.1})
    result = assert_fold(model, folded=1 + folded, kept=[Reason.SIGN_DOES_NOT_FIT_INTEGERS] * (1 - folded))
    if folded:
        np.testing.assert_array_equal(weight_of(result.model, "y").zero_point, [-1] * 4)
