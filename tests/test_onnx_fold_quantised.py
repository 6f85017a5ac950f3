"""Conv, ConvTranspose, Gemm and MatMul whose weights are quantised: the scale takes the affine, the integers stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_models import PARAMETERS, STATS, assert_fold, ops, parse, proto, reasons, stored
from quantised_models import Weight, along, assert_scaled, batchnorm, deployed, fold, weight_of

import bnfold
from bnfold.decision import Reason
from bnfold.frontends.onnx_float64 import evaluate
from bnfold.rounding import integer_range
from bnfold.runtime import open_session

SIGNS = [1.0, -0.7, 1.3, -1.1]
POSITIVE = [1.0, 0.7, 1.3, 0.2]


def _codes(shape: tuple[int, ...], kind: str = "int8", symmetric: bool = True, seed: int = 0) -> Any:
    """Codes over the whole range of the dtype in every channel; symmetric ones leave out the smallest of it."""
    low, high = _range(kind)
    low += symmetric and low < 0
    codes = np.random.default_rng(seed).integers(low, high + 1, shape)
    codes.reshape(shape[0], -1)[:, :2] = [high, low][: codes[:1].size]
    return codes


def _range(kind: str) -> tuple[int, int]:
    limits = integer_range(onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.DataType.Value(kind.upper())))
    assert limits is not None
    return limits


def _conv(
    kind: str = "int8", dequantize: str = "(q, s, z)", grid: str = "", conv: str = "", weight: str = "4,3,3,3"
) -> str:
    """DequantizeLinear -> Conv -> BatchNorm; `grid` is the shape of scale and zero point."""
    return f"""(float[N,3,9,9] x) => (float[A,B,C,D] y)
        <{kind}[{weight}] q, float{grid} s, {kind}{grid} z, {PARAMETERS}>
        {{ w = DequantizeLinear {dequantize} c = Conv {conv} (x, w) y = BatchNormalization(c, {STATS}) }}"""


def _check(model: onnx.ModelProto, axis: int = 0, before: str = "c", after: str = "y", **options: Any) -> Weight:
    """Fold `model` and hold the weight to the promise; returns the folded one."""
    result = assert_fold(model, folded=1, **options)
    old, new = weight_of(model, before), weight_of(result.model, after)
    assert_scaled(old, new, along(batchnorm(model)[0], axis, old.codes.ndim))
    return new


@pytest.mark.parametrize(
    ("kind", "opset"), [("int8", 13), ("uint8", 13), ("int16", 21), ("uint16", 21), ("int4", 21), ("uint4", 21)]
)
@pytest.mark.parametrize("grid", ["", "[1]", "[4]"])
def test_a_positive_scale_leaves_the_integers_as_they_are(kind: str, opset: int, grid: str) -> None:
    codes = _codes((4, 3, 3, 3), kind)
    scales = 0.01 if grid != "[4]" else [0.01, 0.02, 0.03, 0.005]
    model = parse(
        _conv(kind, "<axis=0> (q, s, z)", grid),
        opset=opset,
        values={"q": codes, "s": scales, "z": 3, "gamma": POSITIVE},
    )
    new = _check(model)
    np.testing.assert_array_equal(new.codes.astype(np.int64), codes)
    assert new.axis == 0
    assert new.scale.shape == (4,)
    np.testing.assert_array_equal(np.asarray(new.zero_point).astype(np.int64), [3] * 4)


@pytest.mark.parametrize("kind", ["int2", "uint2"])
def test_two_bits_are_integers_like_others(kind: str) -> None:
    codes = np.random.default_rng(0).integers(0, 2, (4, 3, 3, 3))
    model = parse(_conv(kind), opset=25, values={"q": codes, "s": 0.1, "z": 0, "gamma": POSITIVE})
    np.testing.assert_array_equal(_check(model, runs=False).codes.astype(np.int64), codes)


def test_a_scale_that_is_the_same_for_all_stays_one_number() -> None:
    values = {"q": _codes((4, 3, 3, 3)), "s": 0.01, "z": 0, "gamma": 1.7, "var": 0.9}
    for opset in (10, 17):
        new = _check(parse(_conv(), opset=opset, values=values))
        assert new.scale.shape == ()


def test_before_operator_set_13_there_is_one_scale_for_the_tensor() -> None:
    values = {"q": _codes((4, 3, 3, 3)), "s": 0.01, "z": 0, "gamma": POSITIVE}
    assert_fold(parse(_conv(), opset=12, values=values), folded=0, kept=[Reason.QUANTISATION_IS_TOO_COARSE])
    assert_fold(parse(_conv(), opset=13, values=values), folded=1)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_negative_scale_mirrors_the_integers_about_zero(kind: str) -> None:
    codes = _codes((4, 3, 3, 3), kind)
    model = parse(_conv(kind), opset=21, values={"q": codes, "s": 0.01, "z": 0, "gamma": SIGNS})
    new = _check(model)
    np.testing.assert_array_equal(new.codes.astype(np.int64), codes * along(np.sign(SIGNS), 0, 4))
    assert not np.asarray(new.zero_point).astype(np.int64).any()


def test_a_zero_point_that_is_left_out_stays_out_while_it_is_zero() -> None:
    text = _conv(dequantize="(q, s)").replace("int8 z, ", "")
    model = parse(text, values={"q": _codes((4, 3, 3, 3)), "s": 0.01, "gamma": SIGNS})
    assert _check(model).zero_point is None
    whole = _codes((4, 3, 3, 3), symmetric=False)
    moved = _check(parse(text, values={"q": whole, "s": 0.01, "gamma": -1}))
    np.testing.assert_array_equal(moved.zero_point, [-1] * 4)
    np.testing.assert_array_equal(moved.codes, -1 - whole)


def test_the_zero_point_moves_only_where_all_channels_can_share_it() -> None:
    whole, half = _codes((4, 3, 3, 3), symmetric=False), _codes((4, 3, 3, 3)) // 2
    mixed = np.where(along(np.array(SIGNS), 0, 4) < 0, whole, half)
    shared = _check(parse(_conv(), values={"q": mixed, "s": 0.01, "z": 0, "gamma": SIGNS}))
    np.testing.assert_array_equal(shared.zero_point, [-1] * 4)
    kept = parse(_conv(), values={"q": whole, "s": 0.01, "z": 0, "gamma": SIGNS})
    assert_fold(kept, folded=0, kept=[Reason.SIGN_DOES_NOT_FIT_INTEGERS])


def test_zero_points_that_differ_may_move_one_by_one() -> None:
    whole = _codes((4, 3, 3, 3), "uint8", symmetric=False)
    values = {"q": whole, "s": 0.01, "z": [100, 128, 3, 200], "gamma": SIGNS}
    new = _check(parse(_conv("uint8", "<axis=0> (q, s, z)", "[4]"), values=values))
    np.testing.assert_array_equal(new.zero_point, [100, 127, 3, 55])


def test_an_unsigned_weight_is_mirrored_at_its_zero_point() -> None:
    codes = 128 + _codes((4, 3, 3, 3))
    model = parse(_conv("uint8"), values={"q": codes, "s": 0.01, "z": 128, "gamma": SIGNS})
    new = _check(model)
    np.testing.assert_array_equal(new.zero_point, [128] * 4)
    np.testing.assert_array_equal(new.codes[1], 256 - codes[1])


def test_a_scale_of_zero_makes_the_integers_the_zero_point_and_keeps_the_scale() -> None:
    model = parse(_conv(), values={"q": _codes((4, 3, 3, 3)) // 2, "s": 0.01, "z": 5, "gamma": [1, 0, -1, 2]})
    new = _check(model)
    assert (new.codes[1] == 5).all()
    assert new.scale[1] == np.float32(0.01)


@pytest.mark.parametrize(
    ("kind", "opset", "runs"),
    [
        ("float8e4m3fn", 19, True),
        ("float8e4m3fnuz", 19, True),
        ("float8e5m2", 19, True),
        ("float8e5m2fnuz", 19, True),
        ("float4e2m1", 23, False),
    ],
)
def test_floating_point_codes_change_their_sign_and_nothing_else(kind: str, opset: int, runs: bool) -> None:
    codes = np.random.default_rng(0).choice([-6.0, -1.5, -0.5, 0.0, 1.0, 3.0], (4, 3, 3, 3))
    text = _conv(kind, "(q, s)").replace(f"{kind} z, ", "")
    model = parse(text, opset=opset, values={"q": codes, "s": 0.1, "gamma": [1, -1, 0, -2]})
    new = _check(model, runs=runs)
    np.testing.assert_array_equal(new.codes.astype(np.float64), codes * along(np.array([1, -1, 0, -1]), 0, 4))


@pytest.mark.parametrize("gamma", [POSITIVE, [1, 1, 1, 1]])
def test_blocks_along_the_input_take_what_is_the_same_within_each(gamma: list[float]) -> None:
    text = """(float[N,10] x) => (float[N,4] y) <uint4[10,4] q, float[3,4] s, uint4[3,4] z, PARAMETERS>
        { w = DequantizeLinear <axis=0, block_size=4> (q, s, z) c = MatMul(x, w) y = BatchNormalization(c, STATS) }"""
    scales = np.random.default_rng(0).uniform(0.05, 0.2, (3, 4))
    values = {"q": _codes((10, 4), "uint4"), "s": scales, "z": 8, "gamma": gamma}
    model = parse(text.replace("PARAMETERS", PARAMETERS).replace("STATS", STATS), opset=21, values=values)
    result = assert_fold(model, folded=1)
    node = next(n for n in result.model.graph if n.op_type == "MatMul")
    new = weight_of(result.model, str(node.outputs[0].name))
    assert_scaled(weight_of(model, "c"), new, along(batchnorm(model)[0], 1, 2))
    np.testing.assert_array_equal(new.codes.astype(np.int64), values["q"])


@pytest.mark.parametrize(("channel", "kept"), [([2, 2, 2, 2, 3, 3], []), ([2, 2, 2, 3, 3, 3], [1])])
def test_blocks_of_channels_take_what_is_the_same_within_each(channel: list[float], kept: list[int]) -> None:
    text = f"""(float[N,5] x) => (float[N,6] y) <int8[6,5] q, float[2,5] s, {PARAMETERS}>
        {{ w = DequantizeLinear <axis=0, block_size=4> (q, s) c = Gemm <transB=1> (x, w)
           y = BatchNormalization(c, {STATS}) }}""".replace("float[4]", "float[6]")
    values = {"q": _codes((6, 5)), "s": 0.01, "gamma": channel, "var": 1, "beta": 0, "mean": 0}
    assert_fold(
        parse(text, opset=21, values=values), folded=1 - len(kept), kept=[Reason.QUANTISATION_IS_TOO_COARSE] * len(kept)
    )


@pytest.mark.parametrize(
    ("conv", "weight", "channels", "axis"),
    [
        ("ConvTranspose", "3,4,3,3", "", 1),
        ("ConvTranspose <group=3>", "3,1,3,3", "3", 0),
        ("Conv <group=3>", "3,1,3,3", "3", 0),
        ("Conv <group=3>", "6,1,3,3", "6", 0),
        ("Conv <pads=[1,1,1,1], strides=[2,2]>", "4,3,3,3", "", 0),
    ],
)
def test_the_scales_lie_on_the_axis_of_the_output_channels(conv: str, weight: str, channels: str, axis: int) -> None:
    text = _conv(weight=weight).replace("Conv  (", f"{conv} (")
    model = parse(text.replace("float[4]", f"float[{channels or 4}]"), values={"s": 0.01, "z": 0, "q": _shaped(weight)})
    assert _check(model, axis).axis == axis


def _shaped(weight: str) -> Any:
    return _codes(tuple(int(n) for n in weight.split(",")))


@pytest.mark.parametrize(("gamma", "kept"), [([1, 2, 1, 2], False), ([1, 2, 1, 3], True)])
def test_groups_of_a_transposed_convolution_must_ask_for_the_same(gamma: list[float], kept: bool) -> None:
    text = _conv(weight="4,2,3,3").replace("Conv  (", "ConvTranspose <group=2> (").replace("x)", "x)", 1)
    values = {"s": 0.01, "z": 0, "q": _codes((4, 2, 3, 3)), "gamma": gamma, "var": 1, "mean": 0}
    model = parse(text.replace("N,3,9,9", "N,4,9,9"), values=values)
    result = assert_fold(model, folded=1 - kept, kept=[Reason.QUANTISATION_IS_TOO_COARSE] * kept)
    if not kept:
        assert weight_of(result.model, "y").scale.shape == (2,)


def test_scales_along_the_input_cannot_take_channels_of_the_output() -> None:
    values = {"q": _codes((4, 3, 3, 3)), "s": 0.01, "z": 0, "gamma": POSITIVE}
    model = parse(_conv("int8", "<axis=1> (q, s, z)", "[3]"), values=values)
    assert_fold(model, folded=0, kept=[Reason.QUANTISATION_IS_TOO_COARSE])


_GEMM = f"""(float[N,5] x) => (float[N,4] y) <int8[WEIGHT] q, float s, float[4] b, {PARAMETERS}>
    {{ w = DequantizeLinear(q, s) MOVE c = NODE y = BatchNormalization(c, {STATS}) }}"""


@pytest.mark.parametrize(
    ("weight", "move", "node", "axis"),
    [
        ("5,4", "", "Gemm(x, w)", 1),
        ("4,5", "", "Gemm <transB=1, alpha=0.5> (x, w, b)", 0),
        ("5,4", "", "Gemm <beta=0.25> (x, w, b)", 1),
        ("4,5", "v = Transpose(w)", "Gemm(x, v, b)", 0),
        ("4,5", "v = Transpose <perm=[1,0]> (w)", "MatMul(x, v)", 0),
        ("20", "v = Reshape(w, r)", "MatMul(x, v)", None),
    ],
)
def test_a_matrix_is_scaled_along_its_output_axis(weight: str, move: str, node: str, axis: int | None) -> None:
    text = _GEMM.replace("WEIGHT", weight).replace("MOVE", move).replace("NODE", node)
    text = text.replace("float[4] b,", "float[4] b, int64[2] r,")
    model = parse(text, values={"q": _shaped(weight), "s": 0.01, "r": [5, 4]})
    if axis is None:  # one number for each of 20 along the only axis would be 5 for each channel
        assert_fold(model, folded=0, kept=[Reason.QUANTISATION_IS_TOO_COARSE])
        return
    result = assert_fold(model, folded=1)
    end = next(n for n in result.model.graph if n.op_type in ("Gemm", "MatMul"))
    last = next(n for n in result.model.graph if n.outputs[0] is end.inputs[1])
    name = str((last if move else end).outputs[0].name)
    old, new = weight_of(model, "v" if move else "c", 1 - bool(move)), weight_of(result.model, name, 1 - bool(move))
    assert_scaled(old, new, along(batchnorm(model)[0], axis, 2))
    assert new.axis == axis


def test_a_reshaped_weight_keeps_the_scales_that_it_has() -> None:
    text = f"""(float[N,3,9,9] x) => (float[A,B,C,D] y) <int8[4,27] q, float[4] s, int64[4] r, {PARAMETERS}>
        {{ v = DequantizeLinear <axis=0> (q, s) w = Reshape(v, r) c = Conv(x, w)
           y = BatchNormalization(c, {STATS}) }}"""
    model = parse(text, values={"q": _codes((4, 27)), "s": [0.1, 0.2, 0.3, 0.4], "r": [4, 3, 3, 3]})
    result = assert_fold(model, folded=1)
    assert ops(result.model) == ["DequantizeLinear", "Reshape", "Conv"]


def test_a_matrix_on_the_left_and_one_for_each_of_a_batch() -> None:
    left = f"""(float[5,N] x) => (float[A,B] y) <int8[4,5] q, float s, int64[1] ax, {PARAMETERS}>
        {{ w = DequantizeLinear(q, s) c = MatMul(w, x) d = Transpose(c) y = BatchNormalization(d, {STATS}) }}"""
    batch = f"""(float[2,N,5] x) => (float[A,B,C] y) <int8[2,5,4] q, float s, {PARAMETERS}>
        {{ w = DequantizeLinear(q, s) c = MatMul(x, w) d = Transpose <perm=[0,2,1]> (c)
           y = BatchNormalization(d, {STATS}) }}"""
    for text, shape in ((left, (4, 5)), (batch, (2, 5, 4))):
        model = parse(text, values={"q": _codes(shape), "s": 0.01})
        assert_fold(model, folded=1)


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
    values = {"q": _shaped(weight), "s": 0.01, "gamma": gamma, "var": 1, "mean": 0.1}
    kept = [] if folded else [Reason.QUANTISATION_IS_TOO_COARSE]
    assert_fold(parse(text, values=values), folded=int(folded), kept=kept)


def test_factors_of_both_ends_are_rounded_once() -> None:
    text = f"""(float[N,4,9,9] x) => (float[A,B,C,D] y)
        <int8[4,4,2,2] q, float[4] s, {PARAMETERS}, float[4] gamma2, float[4] beta2, float[4] mean2, float[4] var2>
        {{ b = BatchNormalization(x, gamma2, beta2, mean2, var2) w = DequantizeLinear <axis=0> (q, s)
           c = Conv(b, w) y = BatchNormalization(c, {STATS}) }}"""
    values = {"q": _codes((4, 4, 2, 2)), "s": 0.01, "gamma2": 1.3, "var2": 0.7, "mean2": 0.2}
    model = parse(text, values=values)
    result = assert_fold(model, folded=2)
    factor = batchnorm(model)[0] * batchnorm(model, "2")[0][0]
    assert_scaled(weight_of(model, "c"), weight_of(result.model, "y"), along(factor, 0, 4))


def test_a_shared_weight_is_never_written() -> None:
    text = f"""(float[N,3,9,9] x) => (float[A,B,C,D] y, float[A,B,C,D] z) <int8[4,3,3,3] q, float s, {PARAMETERS}>
        {{ w = DequantizeLinear(q, s) c = Conv(x, w) y = BatchNormalization(c, {STATS}) z = Conv <group=1> (x, w) }}"""
    model = parse(text, values={"q": _codes((4, 3, 3, 3)), "s": 0.01, "gamma": SIGNS})
    result = assert_fold(model, folded=1)
    np.testing.assert_array_equal(stored(result.model, "q"), stored(model, "q"))
    assert weight_of(result.model, "z").scale == np.float32(0.01)
    assert result.report.notes == (f"{4 * 27 + 4} bytes of weights are shared and were copied",)


def test_two_readers_that_ask_for_the_same_share_the_folded_weight() -> None:
    text = f"""(float[N,3,9,9] x, float[N,3,9,9] u) => (float[A,B,C,D] y, float[A,B,C,D] z)
        <int8[4,3,3,3] q, float s, {PARAMETERS}>
        {{ w = DequantizeLinear(q, s) c = Conv(x, w) y = BatchNormalization(c, {STATS})
           d = Conv(u, w) z = BatchNormalization(d, {STATS}) }}"""
    model = parse(text, values={"q": _codes((4, 3, 3, 3)), "s": 0.01, "gamma": SIGNS})
    result = assert_fold(model, folded=2)
    assert ops(result.model) == ["DequantizeLinear", "Conv", "Conv"]
    assert result.report.notes == ()


def test_float16_scales_are_float16_and_must_stay_normal() -> None:
    text = _conv("int8").replace("float", "float16").replace("int8 z", "int8 z")
    values = {"q": _codes((4, 3, 3, 3)), "s": 0.01, "z": 0, "gamma": [1, 0.5, 1, 1], "var": 1, "mean": 0}
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
    model = parse(_conv().replace(old, new, 1), opset=21, values={"q": _codes((4, 3, 3, 3)), "s": 0.01, "z": 0})
    report = bnfold.inspect(ir.from_proto(model))
    assert reasons(report)[0] in (Reason.WEIGHTS_ARE_QUANTISED, Reason.WEIGHTS_NOT_CONSTANT)
    assert told in str(report.kept[0].refusals[0])


def test_a_scale_that_is_not_positive_is_kept() -> None:
    for scale in (0.0, -0.01, np.inf):
        model = parse(_conv(), values={"q": _codes((4, 3, 3, 3)), "s": scale, "z": 0})
        assert reasons(bnfold.inspect(ir.from_proto(model)))[0] is Reason.WEIGHTS_ARE_QUANTISED


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["int8", "uint8", "int4", "uint4"]),
    per_channel=st.booleans(),
    zero=st.integers(0, 7),
    gamma=st.lists(st.sampled_from([-2.0, -0.3, 0.0, 0.5, 1.7]), min_size=4, max_size=4).filter(any),
    seed=st.integers(0, 1000),
)
def test_any_layer_is_scaled_exactly_or_kept_with_a_reason(
    kind: str, per_channel: bool, zero: int, gamma: list[float], seed: int
) -> None:
    codes = _codes((4, 3, 3, 3), kind, symmetric=seed % 2 == 0, seed=seed)
    text = _conv(kind, "<axis=0> (q, s, z)", "[4]" if per_channel else "")
    scale = np.random.default_rng(seed).uniform(0.001, 0.1, 4 if per_channel else ())
    model = parse(text, opset=21, seed=seed, values={"q": codes, "s": scale, "z": zero, "gamma": gamma})
    result = bnfold.fold(ir.from_proto(model))
    if result.report.kept:
        assert reasons(result)[0] is Reason.SIGN_DOES_NOT_FIT_INTEGERS
        assert min(gamma) < 0
        return
    old, new = weight_of(model, "c"), weight_of(result.model, "y")
    scales = batchnorm(model)[0]
    assert_scaled(old, new, along(scales, 0, 4))
    assert np.unique(np.asarray(new.zero_point).astype(np.int64)).size == 1
    if not min(gamma) <= 0:
        np.testing.assert_array_equal(new.codes.astype(np.int64), codes)
    assert fold(model).report.verification is not None
    assert proto(result.model).graph.node[-1].output[0] == "y"
