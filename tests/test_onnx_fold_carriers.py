"""Every carrier through ONNX, each on both sides of its condition.

Bugs of other tools that are covered here: a BatchNorm folded through a Relu (opencv#28689), Conv-BN-Conv-BN that leaves
one (tensorflow-onnx#2186), a negative scale through a maximum (tvm#2340, mmcv#2620), onnxruntime's own MatMul fusion
through Transpose and Reshape (PEERS 3.4).
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from onnx_models import NEWEST, PARAMETERS, STATS, assert_fold, ops, parse

from bnfold.decision import Reason

POSITIVE = {"gamma": [0.5, 1.5, 2, 0.25]}
MIXED = {"gamma": [0.5, -1.5, 2, 0.25]}
SCALE = {**POSITIVE, "beta": 0, "mean": 0}
NEGATIVE_SCALE = {**MIXED, "beta": 0, "mean": 0}


def pulled(nodes: str, *, more: str = "", rank: int = 4, x: str = "N,3,8,8", after: str = STATS) -> str:
    """Conv -> `nodes` from c to d -> BatchNorm."""
    return f"""(float[{x}] x) => (float[{",".join("ABCDE"[:rank])}] y) <float[4,3,3,3] w, {PARAMETERS}{more}>
        {{ c = Conv(x, w) {nodes} y = BatchNormalization(d, {after}) }}"""


def pushed(nodes: str, *, more: str = "", x: str = "N,4,8,8") -> str:
    """BatchNorm on the input -> `nodes` from c to d -> unpadded Conv."""
    return f"""(float[{x}] x) => (float[A,B,C,D] y) <float[5,4,2,2] w, {PARAMETERS}{more}>
        {{ c = BatchNormalization(x, {STATS}) {nodes} y = Conv(d, w) }}"""


def check(text: str, reason: Reason | None = None, *, opset: int = 17, **values: object) -> None:
    assert_fold(parse(text, opset=opset, values=values), folded=int(reason is None), kept=[reason] if reason else [])


def both(nodes: str, reason: Reason | None = None, *, more: str = "", opset: int = 17, **values: object) -> None:
    """Pull and push answer alike."""
    check(pulled(nodes, more=more), reason, opset=opset, **values)
    check(pushed(nodes, more=more), reason, opset=opset, **values)


@pytest.mark.parametrize("node", ["Identity(c)", "Cast <to=1> (c)", "Transpose <perm=[0,1,3,2]> (c)"])
def test_operators_that_change_no_number_pass_everything(node: str) -> None:
    both(f"d = {node}")


@pytest.mark.parametrize("opset", [7, 10, 11])
def test_a_dropout_of_old_operator_sets_passes_everything(opset: int) -> None:
    both("d = Dropout <ratio=0.4> (c)", opset=opset)


@pytest.mark.parametrize("opset", [12, 13, NEWEST])
def test_a_dropout_passes_unless_it_may_train(opset: int) -> None:
    both("d = Dropout(c)", opset=opset)
    both("d = Dropout(c, r)", more=", float r", opset=opset, r=0.5)
    both("d = Dropout(c, r, t)", more=", float r, bool t", opset=opset, r=0.5, t=False)
    for text in (pulled("d = Dropout(c, r, t)", more=", float r, bool t"),):
        result = parse(text, opset=opset, values={"r": 0.0, "t": True})
        assert_fold(result, folded=0, kept=[Reason.OPERATOR_IS_NOT_LINEAR])


def test_a_dropout_whose_mask_is_read_passes_the_data() -> None:
    text = pulled("d, mask = Dropout(c)").replace("y)", "y, bool[A,B,C,D] mask)", 1)
    check(text)


def test_a_widening_cast_passes_and_a_narrowing_one_does_not() -> None:
    wide = pulled("d = Cast <to=11> (c)").replace("[A,B,C,D] y", "[A,B,C,D] z").replace("y = Batch", "e = Batch")
    wide = wide.replace("}", "z = Cast <to=1> (e) }").replace(PARAMETERS, PARAMETERS.replace("float", "double"))
    check(wide)
    narrow = pulled("d = Cast <to=10> (c)").replace("float[A,B,C,D] y", "float16[A,B,C,D] y")
    check(narrow.replace(PARAMETERS, PARAMETERS.replace("float", "float16")), Reason.CAST_NARROWS)


@pytest.mark.parametrize("perm", ["[0,2,3,1]", "[3,0,1,2]", "[2,1,0,3]", "[1,0,2,3]"])
def test_a_transpose_moves_the_axis(perm: str) -> None:
    order = [int(a) for a in re.findall(r"\d", perm)]
    back = [order.index(axis) for axis in range(4)]
    both(f"t = Transpose <perm={perm}> (c) r = Relu(t) d = Transpose <perm={back}> (r)", **SCALE)
    both(f"t = Transpose <perm={perm}> (c) d = Transpose <perm={back}> (t)")


def test_a_transpose_without_perm_turns_the_axes_round() -> None:
    both("t = Transpose(c) d = Transpose(t)")
    wrong = pulled("d = Transpose(c)").replace(PARAMETERS, PARAMETERS.replace("[4]", "[6]"))
    check(wrong, Reason.OPERATOR_MIXES_CHANNELS)


def test_batchnorms_in_a_row_are_one() -> None:
    parameters, stats = (re.sub(r"(gamma|beta|mean|var)", r"\1_2", text) for text in (PARAMETERS, STATS))
    text = pulled(f"d = BatchNormalization(c, {stats})", more=f", {parameters}")
    assert ops(assert_fold(parse(text), folded=2).model) == ["Conv"]


def test_conv_batchnorm_conv_batchnorm_leaves_none() -> None:
    text = f"""(float[N,3,8,8] x) => (float[A,B,C,D] y) <float[4,3,3,3] w, float[4,4,3,3] v, {PARAMETERS}>
        {{ c = Conv <pads=[1,1,1,1]> (x, w) b = BatchNormalization(c, {STATS})
           d = Conv <pads=[1,1,1,1]> (b, v) y = BatchNormalization(d, {STATS}) }}"""
    assert ops(assert_fold(parse(text), folded=2).model) == ["Conv", "Conv"]


FLATTENED = {"gamma": "float[16] gamma", "more": ", int64[2] r"}


@pytest.mark.parametrize(
    ("nodes", "more", "values", "opset"),
    [
        ("d = Flatten <axis=1> (p)", "", {}, 9),
        ("d = Flatten(p)", "", {}, 17),
        ("d = Reshape(p, r)", ", int64[2] r", {"r": [0, 4]}, 9),
        ("d = Reshape(p, r)", ", int64[2] r", {"r": [-1, 4]}, 17),
        ("d = Reshape <allowzero=1> (p, r)", ", int64[2] r", {"r": [-1, 4]}, 17),
        ("d = Squeeze <axes=[2,3]> (p)", "", {}, 11),
        ("d = Squeeze <axes=[-1,-2]> (p)", "", {}, 11),
        ("d = Squeeze(p, r)", ", int64[2] r", {"r": [2, 3]}, 13),
        ("q = Squeeze <axes=[2,3]> (p) u = Unsqueeze <axes=[2]> (q) d = Squeeze <axes=[2]> (u)", "", {}, 11),
        (
            "q = Squeeze(p, r) u = Unsqueeze(q, s) d = Squeeze(u, s)",
            ", int64[2] r, int64[1] s",
            {"r": [2, 3], "s": [2]},
            13,
        ),
    ],
)
def test_reshapes_pass_where_the_channel_axis_stays_one_axis(
    nodes: str, more: str, values: dict[str, object], opset: int
) -> None:
    check(pulled(f"p = GlobalAveragePool(c) {nodes}", more=more, rank=2), opset=opset, **values)


def test_flattening_channels_and_pixels_passes_forward_and_not_back() -> None:
    forward = f"""(float[N,4,2,3] x) => (float[N,5] y) <float[24,5] w, float[5] b, {PARAMETERS}>
        {{ c = BatchNormalization(x, {STATS}) f = Flatten(c) y = Gemm(f, w, b) }}"""
    check(forward)
    parameters = PARAMETERS.replace("[4]", "[144]")
    check(pulled("d = Flatten(c)", rank=2).replace(PARAMETERS, parameters), Reason.OPERATOR_MIXES_CHANNELS)
    unknown = forward.replace("[N,4,2,3]", "[N,4,H,W]")
    image = np.random.default_rng(0).standard_normal((2, 4, 2, 3)).astype(np.float32)
    assert_fold(parse(unknown), {"x": image}, folded=0, kept=[Reason.AXIS_NOT_PROVEN], shapes={"x": (2, 4, 2, 3)})


def test_a_reshape_that_is_computed_at_run_time_keeps_dynamic_sizes() -> None:
    nodes = "s = Shape(c) n = Gather(s, zero) k = Concat <axis=0> (n, four, rest) d = Reshape(c, k)"
    text = pulled(nodes, more=", int64[1] zero, int64[1] four, int64[1] rest", rank=3)
    check(text, zero=[0], four=[4], rest=[-1])


def test_keras_style_chains_over_the_last_axis_are_batchnorms_in_disguise() -> None:
    text = """(float[N,3,8,8] x) => (float[A,B,C,D] y) <float[4,3,3,3] w, float[4] mean, float[4] gamma, float[4] beta>
        { c = Conv(x, w) t = Transpose <perm=[0,2,3,1]> (c) CAST s = Sub(u, mean) m = Mul(s, gamma) a = Add(m, beta)
          y = Relu(a) }"""
    for cast in ("u = Identity(t)", "u = Cast <to=1> (t)"):
        result = assert_fold(parse(text.replace("CAST", cast)), folded=1)
        assert ops(result.model)[0::3] == ["Conv", "Relu"]
        assert result.decisions[0].subject.kind == "Sub-Mul-Add"
    left = (
        text.replace("CAST", "u = Identity(t)")
        .replace("Sub(u, mean)", "Sub(mean, u)")
        .replace("Mul(s, gamma)", "Div(s, gamma)")
    )
    assert_fold(parse(left), folded=1)
    bias = text.replace("CAST", "u = Identity(t)").replace(
        "s = Sub(u, mean) m = Mul(s, gamma) a = Add(m, beta)", "a = Add(u, beta)"
    )
    assert assert_fold(parse(bias), folded=0).decisions == ()


@pytest.mark.parametrize(
    ("left", "right"), [("Div(mean, c)", Reason.OPERATOR_IS_NOT_LINEAR), ("Mul(c, c)", Reason.SHIFT_MEETS_PRODUCT)]
)
def test_arithmetic_that_is_not_affine_is_a_barrier(left: str, right: Reason) -> None:
    check(pulled(f"d = {left}").replace("mean, c", "one, c").replace("gamma,", "gamma, float[1] one,", 1), right)


def test_a_constant_of_any_shape_absorbs_a_shift_in_a_sum_and_not_in_a_product() -> None:
    image = ", float[4,6,6] p"
    check(pulled("d = Add(c, p)", more=image))
    check(pulled("d = Sub(p, c)", more=image))
    check(pulled("d = Mul(c, p)", more=image), Reason.SHIFT_MEETS_PRODUCT)
    check(pulled("d = Mul(c, p)", more=image), **NEGATIVE_SCALE)
    check(pulled("d = Div(c, p)", more=image), Reason.SHIFT_MEETS_PRODUCT)
    check(pushed("d = Add(c, p)", more=", float[4,8,8] p"))
    check(pushed("d = Sub(p, c)", more=", float[8,8] p"))
    check(pushed("d = Add(c, p)", more=", float[4,8,8] p"), Reason.SCALE_IS_ZERO, gamma=[1, 0, 1, 1])
    check(pushed("d = Mul(c, p)", more=", float[4,8,8] p"), Reason.SHIFT_MEETS_PRODUCT)
