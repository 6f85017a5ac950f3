"""Add, Sub, Mul, Div, Neg and ReduceSum of variables through ONNX: residual blocks, gates, and the bugs around them."""

from __future__ import annotations

import pytest
from onnx_models import NEWEST, PARAMETERS, STATS, assert_fold, ops, parse, reasons

from bnfold.decision import Reason

SCALE = {"beta": 0, "mean": 0}


def two(nodes: str, *, more: str = "", outputs: str = "", shape: str = "A,B,C,D") -> str:
    """Two convolutions c and e -> `nodes` to d -> BatchNorm."""
    return f"""(float[N,3,8,8] x) => (float[{shape}] y{outputs})
        <float[4,3,3,3] w, float[4,3,3,3] v, {PARAMETERS}{more}>
        {{ c = Conv(x, w) e = Conv(x, v) {nodes} y = BatchNormalization(d, {STATS}) }}"""


@pytest.mark.parametrize("opset", [7, 9, 13, 14, NEWEST])
@pytest.mark.parametrize("kind", ["Add", "Sub"])
def test_a_batchnorm_behind_a_sum_goes_into_both_convolutions(kind: str, opset: int) -> None:
    result = assert_fold(parse(two(f"d = {kind}(c, e)"), opset=opset), folded=1, merge=False)
    assert ops(result.model) == ["Conv", "Conv", kind]


def test_the_shift_goes_to_the_operand_that_can_take_it() -> None:
    for order, sign in (("r, e", "Add"), ("e, r", "Add"), ("r, e", "Sub"), ("e, r", "Sub")):
        model = parse(two(f"r = Relu(c) d = {sign}({order})"), values={"gamma": [1, 2, 0.5, 3]})
        assert ops(assert_fold(model, folded=1).model) == ["Conv", "Conv", "Relu", sign]
    model = parse(two("r = Relu(c) q = Relu(e) d = Add(r, q)"), values={"gamma": 1})
    assert_fold(model, folded=0, kept=[Reason.COSTS_MORE])


def test_a_pure_shift_leaves_the_other_operand_alone() -> None:
    for order in ("z, f", "f, z"):
        text = f"""(float[N,3,8,8] x, float[N,4,6,6] z) => (float[N,4,6,6] y) <float[4,3,3,3] w, {PARAMETERS}>
            {{ f = Conv(x, w) d = KIND({order}) y = BatchNormalization <epsilon=0.0> (d, {STATS}) }}"""
        for kind in ("Add", "Sub"):
            one = parse(text.replace("KIND", kind), values={"gamma": 1, "var": 1})
            assert ops(assert_fold(one, folded=1).model) == ["Conv", kind]
            assert_fold(parse(text.replace("KIND", kind)), folded=0, kept=[Reason.READS_MODEL_INPUT])


def test_nested_sums_find_the_one_leaf_that_takes_the_shift() -> None:
    text = f"""(float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w, {PARAMETERS}>
        {{ a = Conv(x, w) p = Relu(a) b = Conv(x, w) q = Relu(b) c = Conv(x, w) e = Conv(x, w) r = Relu(e)
           s = Add(p, q) t = Sub(r, c) u = Add(s, t) y = BatchNormalization(u, {STATS}) }}"""
    result = assert_fold(parse(text, values={"gamma": [1, 2, 0.5, 3]}), folded=1)
    assert ops(result.model).count("BatchNormalization") == 0


def test_a_shared_shortcut_keeps_the_batchnorm_and_says_who_reads_it() -> None:
    text = f"""(float[N,3,8,8] x) => (float[N,4,6,6] y, float[N,4,6,6] z)
        <float[4,3,3,3] w, float[4,4,3,3] v, {PARAMETERS}>
        {{ c = Conv(x, w) r = Relu(c) e = Conv <pads=[1,1,1,1]> (r, v) s = Add(e, r)
           y = BatchNormalization(s, {STATS}) z = Relu(r) }}"""
    result = assert_fold(parse(text), folded=0, kept=[Reason.VALUE_HAS_OTHER_READERS], merge=False)
    assert Reason.IS_MODEL_OUTPUT in reasons(result)


def test_a_resnet_block_folds_before_its_sum_and_keeps_a_batchnorm_that_a_preactivation_reads() -> None:
    text = f"""(float[N,3,8,8] x) => (float[N,5,6,6] y)
        <float[4,3,3,3] w, float[4,4,3,3] v, float[5,4,1,1] u, {PARAMETERS}>
        {{ c = Conv(x, w) b = BatchNormalization(c, {STATS}) r = Relu(b) e = Conv <pads=[1,1,1,1]> (r, v)
           f = BatchNormalization(e, {STATS}) s = Add(f, r) q = Relu(s) y = Conv(q, u) }}"""
    assert_fold(parse(text), folded=2)


def test_equal_scales_and_any_shifts_are_pushed_through_a_sum() -> None:
    text = f"""(float[N,4,8,8] x, float[N,4,8,8] z) => (float[A,B,C,D] y) <float[5,4,2,2] w, {PARAMETERS},
        float[4] beta2, float[4] mean2> {{ a = BatchNormalization(x, {STATS})
        b = BatchNormalization(z, gamma, beta2, mean2, var) d = Add(a, b) y = Conv(d, w) }}"""
    # one at a time: each alone is a scale on one operand
    assert_fold(parse(text), folded=0, kept=[Reason.SCALE_IS_ON_ONE_OPERAND] * 2)
    doubled = f"""(float[N,4,8,8] x) => (float[A,B,C,D] y) <float[5,4,2,2] w, {PARAMETERS}>
        {{ a = BatchNormalization(x, {STATS}) d = Add(a, a) y = Conv(d, w) }}"""
    assert_fold(parse(doubled), folded=1)


@pytest.mark.parametrize("opset", [7, 13, NEWEST])
def test_a_scale_behind_a_gate_goes_into_the_gated_convolution(opset: int) -> None:
    """Squeeze-and-excite: the gate (N, C, 1, 1) reads another value, and has the full channel axis."""
    nodes = "p = GlobalAveragePool(x) h = Conv(p, u) g = Sigmoid(h) d = Mul(c, g) z = Relu(e)"
    text = two(nodes, more=", float[4,3,1,1] u", outputs=", float[E,F,G,H] z")
    result = assert_fold(parse(text, opset=opset, values=SCALE), folded=1)
    assert ops(result.model).count("Mul") == 1
    assert_fold(parse(text, opset=opset), folded=0, kept=[Reason.SHIFT_MEETS_PRODUCT])
    own = two("p = GlobalAveragePool(c) g = Sigmoid(p) d = Mul(c, g) z = Relu(e)", outputs=", float[E,F,G,H] z")
    assert_fold(parse(own, opset=opset, values=SCALE), folded=0, kept=[Reason.VALUE_HAS_OTHER_READERS])


def test_a_product_asks_one_factor_and_a_quotient_its_numerator() -> None:
    for nodes in ("d = Mul(c, e)", "s = Sigmoid(c) d = Mul(s, e)", "s = Sigmoid(e) d = Mul(c, s)"):
        assert_fold(parse(two(nodes), values=SCALE), folded=1)
    assert_fold(parse(two("s = Sigmoid(e) d = Div(c, s)"), values=SCALE), folded=1)
    fed = two("d = Div(c, z) f = Relu(e)", outputs=", float[E,F,G,H] f").replace("] x)", "] x, float[N,4,6,6] z)")
    assert_fold(parse(fed), folded=0, kept=[Reason.SHIFT_MEETS_PRODUCT])
    denominator = two("s = Sigmoid(e) q = Abs(c) d = Div(s, q)")
    assert_fold(parse(denominator, values=SCALE), folded=0, kept=[Reason.OPERATOR_IS_NOT_LINEAR])
    assert_fold(parse(two("d = Mul(c, c) z = Relu(e)", outputs=", float[E,F,G,H] z"), values=SCALE), folded=0,
                kept=[Reason.VALUE_HAS_OTHER_READERS])  # fmt: skip


@pytest.mark.parametrize("shape", ["[6,6]", "[1,6,6]", "[6]", "[1]", ""])
@pytest.mark.parametrize("kind", ["Add", "Sub"])
def test_a_variable_that_is_broadcast_along_the_channels_does_not_carry_a_scale(shape: str, kind: str) -> None:
    text = f"""(float[N,3,8,8] x, float{shape} z) => (float[A,B,C,D] y) <float[4,3,3,3] w, {PARAMETERS}>
        {{ c = Conv(x, w) d = {kind}(c, z) y = BatchNormalization(d, {STATS}) }}"""
    assert_fold(parse(text), folded=0, kept=[Reason.AXIS_NOT_PROVEN])


def test_one_channel_that_is_broadcast_up_is_not_pushed() -> None:
    text = f"""(float[N,1,8,8] x, float[N,4,8,8] z) => (float[A,B,C,D] y)
        <float[5,4,2,2] w, {PARAMETERS.replace("[4]", "[1]")}>
        {{ b = BatchNormalization(x, {STATS}) d = KIND(b, z) y = Conv(d, w) }}"""
    scale = {**SCALE, "gamma": 2}
    assert_fold(parse(text.replace("KIND", "Mul"), values=scale), folded=0, kept=[Reason.AXIS_NOT_PROVEN])
    for kind in ("Add", "Sub"):
        assert_fold(parse(text.replace("KIND", kind)), folded=0, kept=[Reason.AXIS_NOT_PROVEN])


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Div"])
def test_arithmetic_of_two_constants_takes_in_nothing(kind: str) -> None:
    text = f"""(float[N,4,8,8] x) => (float[A,B,C,D] y, float[N,4,8,8] z) <float[1,4,8,8] k, float[1,4,8,8] l,
        {PARAMETERS}> {{ z = Relu(x) c = {kind}(k, l) y = BatchNormalization(c, {STATS}) }}"""
    assert_fold(parse(text), folded=0, kept=[Reason.IS_CONSTANT])


@pytest.mark.parametrize("opset", [7, 13, NEWEST])
def test_a_negation_passes_both_ways(opset: int) -> None:
    text = f"""(float[N,3,8,8] x) => (float[A,B,C,D] y) <float[4,3,3,3] w, float[5,4,1,1] v, {PARAMETERS}>
        {{ c = Conv(x, w) n = Neg(c) BODY }}"""
    pulled = text.replace("BODY", f"y = BatchNormalization(n, {STATS})").replace("float[5,4,1,1] v, ", "")
    assert ops(assert_fold(parse(pulled, opset=opset), folded=1).model) == ["Conv", "Neg"]
    pushed = f"""(float[N,4,8,8] x) => (float[A,B,C,D] y) <float[5,4,2,2] w, {PARAMETERS}>
        {{ b = BatchNormalization(x, {STATS}) n = Neg(b) y = Conv(n, w) }}"""
    assert ops(assert_fold(parse(pushed, opset=opset), folded=1).model) == ["Neg", "Conv"]


@pytest.mark.parametrize("opset", [7, 11, 12, 13, NEWEST])
@pytest.mark.parametrize("keep", [0, 1])
def test_a_sum_over_an_image_of_known_size_passes(opset: int, keep: int) -> None:
    rank = 4 if keep else 2
    old = opset < 13
    axes = "[2,-1]" if opset > 10 else "[2,3]"
    node = f"ReduceSum <axes={axes}, keepdims={keep}> (c)" if old else f"ReduceSum <keepdims={keep}> (c, axes)"
    more = "" if old else ", int64[2] axes"
    text = f"""(float[N,3,8,8] x) => (float[{",".join("ABCD"[:rank])}] y) <float[4,3,3,3] w, {PARAMETERS}{more}>
        {{ c = Conv(x, w) d = {node} y = BatchNormalization(d, {STATS}) }}"""
    values = {} if old else {"axes": [2, -1]}
    assert ops(assert_fold(parse(text, opset=opset, values=values), folded=1).model) == ["Conv", "ReduceSum"]
    unknown = text.replace("[N,3,8,8]", "[N,3,H,W]")
    assert_fold(parse(unknown, opset=opset, values=values), folded=0, kept=[Reason.AXIS_NOT_PROVEN])
    assert_fold(parse(unknown, opset=opset, values={**values, **SCALE}), folded=1)


def test_a_sum_over_the_channels_or_over_everything_is_a_barrier() -> None:
    text = f"""(float[N,3,8,8] x) => (float[A,B,C,D] y) <float[4,3,3,3] w, {PARAMETERS.replace("[4]", "[1]")}AXES>
        {{ c = Conv(x, w) d = ReduceSum(c WHICH) y = BatchNormalization(d, {STATS}) }}"""
    channels = text.replace("AXES", ", int64[1] axes").replace("WHICH", ", axes")
    assert_fold(parse(channels, values={"axes": [1]}), folded=0, kept=[Reason.OPERATOR_MIXES_CHANNELS])
    everything = text.replace("AXES", "").replace("WHICH", "")
    assert_fold(parse(everything), folded=0, kept=[Reason.AXIS_NOT_PROVEN])
    assert_fold(parse(everything, values=SCALE), folded=0, kept=[Reason.OPERATOR_MIXES_CHANNELS])
