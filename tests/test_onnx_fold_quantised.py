"""Conv, ConvTranspose, Gemm and MatMul whose weights are quantised: the scale takes the affine, the integers stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_models import PARAMETERS, STATS, assert_fold, ops, parse, proto, reasons
from quantised_models import Weight, along, assert_scaled, batchnorm, fold, quantised_conv, spread_codes, weight_of

import bnfold
from bnfold.decision import Reason

SIGNS = [1.0, -0.7, 1.3, -1.1]
POSITIVE = [1.0, 0.7, 1.3, 0.2]


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
    codes = spread_codes((4, 3, 3, 3), kind)
    scales = 0.01 if grid != "[4]" else [0.01, 0.02, 0.03, 0.005]
    model = parse(
        quantised_conv(kind, "<axis=0> (q, s, z)", grid),
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
    model = parse(quantised_conv(kind), opset=25, values={"q": codes, "s": 0.1, "z": 0, "gamma": POSITIVE})
    np.testing.assert_array_equal(_check(model, runs=False).codes.astype(np.int64), codes)


def test_a_scale_that_is_the_same_for_all_stays_one_number() -> None:
    values = {"q": spread_codes((4, 3, 3, 3)), "s": 0.01, "z": 0, "gamma": 1.7, "var": 0.9}
    for opset in (10, 17):
        new = _check(parse(quantised_conv(), opset=opset, values=values))
        assert new.scale.shape == ()


def test_before_operator_set_13_there_is_one_scale_for_the_tensor() -> None:
    values = {"q": spread_codes((4, 3, 3, 3)), "s": 0.01, "z": 0, "gamma": POSITIVE}
    assert_fold(parse(quantised_conv(), opset=12, values=values), folded=0, kept=[Reason.QUANTISATION_IS_TOO_COARSE])
    assert_fold(parse(quantised_conv(), opset=13, values=values), folded=1)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_negative_scale_mirrors_the_integers_about_zero(kind: str) -> None:
    codes = spread_codes((4, 3, 3, 3), kind)
    model = parse(quantised_conv(kind), opset=21, values={"q": codes, "s": 0.01, "z": 0, "gamma": SIGNS})
    new = _check(model)
    np.testing.assert_array_equal(new.codes.astype(np.int64), codes * along(np.sign(SIGNS), 0, 4))
    assert not np.asarray(new.zero_point).astype(np.int64).any()


def test_a_zero_point_that_is_left_out_stays_out_while_it_is_zero() -> None:
    text = quantised_conv(dequantize="(q, s)").replace("int8 z, ", "")
    model = parse(text, values={"q": spread_codes((4, 3, 3, 3)), "s": 0.01, "gamma": SIGNS})
    assert _check(model).zero_point is None
    whole = spread_codes((4, 3, 3, 3), symmetric=False)
    moved = _check(parse(text, values={"q": whole, "s": 0.01, "gamma": -1}))
    np.testing.assert_array_equal(moved.zero_point, [-1] * 4)
    np.testing.assert_array_equal(moved.codes, -1 - whole)


def test_the_zero_point_moves_only_where_all_channels_can_share_it() -> None:
    whole, half = spread_codes((4, 3, 3, 3), symmetric=False), spread_codes((4, 3, 3, 3)) // 2
    mixed = np.where(along(np.array(SIGNS), 0, 4) < 0, whole, half)
    shared = _check(parse(quantised_conv(), values={"q": mixed, "s": 0.01, "z": 0, "gamma": SIGNS}))
    np.testing.assert_array_equal(shared.zero_point, [-1] * 4)
    kept = parse(quantised_conv(), values={"q": whole, "s": 0.01, "z": 0, "gamma": SIGNS})
    assert_fold(kept, folded=0, kept=[Reason.SIGN_DOES_NOT_FIT_INTEGERS])


def test_zero_points_that_differ_may_move_one_by_one() -> None:
    whole = spread_codes((4, 3, 3, 3), "uint8", symmetric=False)
    values = {"q": whole, "s": 0.01, "z": [100, 128, 3, 200], "gamma": SIGNS}
    new = _check(parse(quantised_conv("uint8", "<axis=0> (q, s, z)", "[4]"), values=values))
    np.testing.assert_array_equal(new.zero_point, [100, 127, 3, 55])


def test_an_unsigned_weight_is_mirrored_at_its_zero_point() -> None:
    codes = 128 + spread_codes((4, 3, 3, 3))
    model = parse(quantised_conv("uint8"), values={"q": codes, "s": 0.01, "z": 128, "gamma": SIGNS})
    new = _check(model)
    np.testing.assert_array_equal(new.zero_point, [128] * 4)
    np.testing.assert_array_equal(new.codes[1], 256 - codes[1])


def test_a_scale_of_zero_makes_the_integers_the_zero_point_and_keeps_the_scale() -> None:
    model = parse(
        quantised_conv(), values={"q": spread_codes((4, 3, 3, 3)) // 2, "s": 0.01, "z": 5, "gamma": [1, 0, -1, 2]}
    )
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
    text = quantised_conv(kind, "(q, s)").replace(f"{kind} z, ", "")
    model = parse(text, opset=opset, values={"q": codes, "s": 0.1, "gamma": [1, -1, 0, -2]})
    new = _check(model, runs=runs)
    np.testing.assert_array_equal(new.codes.astype(np.float64), codes * along(np.array([1, -1, 0, -1]), 0, 4))


@pytest.mark.parametrize("gamma", [POSITIVE, [1, 1, 1, 1]])
def test_blocks_along_the_input_take_what_is_the_same_within_each(gamma: list[float]) -> None:
    text = """(float[N,10] x) => (float[N,4] y) <uint4[10,4] q, float[3,4] s, uint4[3,4] z, PARAMETERS>
        { w = DequantizeLinear <axis=0, block_size=4> (q, s, z) c = MatMul(x, w) y = BatchNormalization(c, STATS) }"""
    scales = np.random.default_rng(0).uniform(0.05, 0.2, (3, 4))
    values = {"q": spread_codes((10, 4), "uint4"), "s": scales, "z": 8, "gamma": gamma}
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
    values = {"q": spread_codes((6, 5)), "s": 0.01, "gamma": channel, "var": 1, "beta": 0, "mean": 0}
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
    text = quantised_conv(weight=weight).replace("Conv  (", f"{conv} (")
    model = parse(text.replace("float[4]", f"float[{channels or 4}]"), values={"s": 0.01, "z": 0, "q": _shaped(weight)})
    assert _check(model, axis).axis == axis


def _shaped(weight: str) -> Any:
    return spread_codes(tuple(int(n) for n in weight.split(",")))


@pytest.mark.parametrize(("gamma", "kept"), [([1, 2, 1, 2], False), ([1, 2, 1, 3], True)])
def test_groups_of_a_transposed_convolution_must_ask_for_the_same(gamma: list[float], kept: bool) -> None:
    text = quantised_conv(weight="4,2,3,3").replace("Conv  (", "ConvTranspose <group=2> (").replace("x)", "x)", 1)
    values = {"s": 0.01, "z": 0, "q": spread_codes((4, 2, 3, 3)), "gamma": gamma, "var": 1, "mean": 0}
    model = parse(text.replace("N,3,9,9", "N,4,9,9"), values=values)
    result = assert_fold(model, folded=1 - kept, kept=[Reason.QUANTISATION_IS_TOO_COARSE] * kept)
    if not kept:
        assert weight_of(result.model, "y").scale.shape == (2,)


def test_scales_along_the_input_cannot_take_channels_of_the_output() -> None:
    values = {"q": spread_codes((4, 3, 3, 3)), "s": 0.01, "z": 0, "gamma": POSITIVE}
    model = parse(quantised_conv("int8", "<axis=1> (q, s, z)", "[3]"), values=values)
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
    # onnxruntime's optimiser gives a Gemm without beta 8-bit activations: tests/test_deployed.py is about that.
    result = assert_fold(model, folded=1, deployed="beta" not in node)
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
    model = parse(text, values={"q": spread_codes((4, 27)), "s": [0.1, 0.2, 0.3, 0.4], "r": [4, 3, 3, 3]})
    result = assert_fold(model, folded=1)
    assert ops(result.model) == ["DequantizeLinear", "Reshape", "Conv"]


def test_a_matrix_on_the_left_and_one_for_each_of_a_batch() -> None:
    left = f"""(float[5,N] x) => (float[A,B] y) <int8[4,5] q, float s, int64[1] ax, {PARAMETERS}>
        {{ w = DequantizeLinear(q, s) c = MatMul(w, x) d = Transpose(c) y = BatchNormalization(d, {STATS}) }}"""
    batch = f"""(float[2,N,5] x) => (float[A,B,C] y) <int8[2,5,4] q, float s, {PARAMETERS}>
        {{ w = DequantizeLinear(q, s) c = MatMul(x, w) d = Transpose <perm=[0,2,1]> (c)
           y = BatchNormalization(d, {STATS}) }}"""
    for text, shape in ((left, (4, 5)), (batch, (2, 5, 4))):
        model = parse(text, values={"q": spread_codes(shape), "s": 0.01})
        assert_fold(model, folded=1)


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
    codes = spread_codes((4, 3, 3, 3), kind, symmetric=seed % 2 == 0, seed=seed)
    text = quantised_conv(kind, "<axis=0> (q, s, z)", "[4]" if per_channel else "")
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
