"""Parallel branches through ONNX: RepVGG, MobileOne, ACNet and RepMixer blocks become one convolution."""

from __future__ import annotations

import pytest
from onnx_models import NEWEST, PARAMETERS, STATS, assert_fold, ops, parse

from bnfold.decision import Folded, Reason

SECOND, THIRD = (PARAMETERS.replace(",", f"{i},") + str(i) for i in (2, 3))
STATS2, STATS3 = "gamma2, beta2, mean2, var2", "gamma3, beta3, mean3, var3"
SAME = "<pads=[1,1,1,1]>"


def block(nodes: str, *, weights: str = "float[4,4,3,3] w, float[4,4,1,1] p", more: str = "", out: str = "") -> str:
    return f"""(float[N,4,8,8] x) => (float[N,4,A,B] y{out}) <{weights}{more}, {PARAMETERS}, {SECOND}, {THIRD}>
        {{ {nodes} }}"""


REPVGG = f"""a = Conv {SAME} (x, w) c = BatchNormalization(a, {STATS})
    b = Conv(x, p) d = BatchNormalization(b, {STATS2})
    i = BatchNormalization(x, {STATS3}) s = Add(c, d) t = Add(s, i) y = Relu(t)"""


@pytest.mark.parametrize("opset", [7, 9, 13, 14, NEWEST])
def test_a_repvgg_block_is_one_convolution(opset: int) -> None:
    result = assert_fold(parse(block(REPVGG), opset=opset), folded=3)
    assert ops(result.model) == ["Conv", "Relu"]
    ways = {d.subject.name: d.direction for d in result.decisions if isinstance(d, Folded)}
    assert ways == {"c": "pull", "d": "pull", "i": "merge"}


def test_without_merging_the_identity_branch_keeps_its_batchnorm() -> None:
    result = assert_fold(parse(block(REPVGG)), folded=2, kept=[Reason.VALUE_HAS_OTHER_READERS], merge=False)
    assert ops(result.model).count("Conv") == 2


def test_a_batchnorm_that_the_caller_keeps_stays_beside_what_is_merged() -> None:
    result = assert_fold(parse(block(REPVGG)), folded=2, kept=[Reason.EXCLUDED_BY_CALLER], keep="^i$")
    assert sorted(ops(result.model)) == ["Add", "BatchNormalization", "Conv", "Relu"]


@pytest.mark.parametrize("order", ["Add(c, x)", "Add(x, c)", "Sub(c, x)", "Sub(x, c)"])
def test_an_identity_branch_of_either_sign_goes_into_the_convolution(order: str) -> None:
    text = f"a = Conv {SAME} (x, w) c = BatchNormalization(a, {STATS}) y = {order}"
    assert ops(assert_fold(parse(block(text)), folded=1).model) == ["Conv"]


@pytest.mark.parametrize("order", ["Add(c, z)", "Add(z, c)", "Sub(c, z)", "Sub(z, c)"])
@pytest.mark.parametrize("inner", ["Add(a, b)", "Sub(a, b)", "Sub(b, a)"])
def test_what_is_no_branch_stays_in_the_sum_with_its_sign(inner: str, order: str) -> None:
    text = f"a = Conv {SAME} (x, w) b = Conv(x, p) c = {inner} r = Relu(x) z = Conv(r, p) y = {order}"
    assert ops(assert_fold(parse(block(text)), folded=0).model) in (["Conv", "Relu", "Conv", order[:3]],
                                                                   ["Relu", "Conv", "Conv", order[:3]])  # fmt: skip


@pytest.mark.parametrize("order", ["Add(c, b)", "Add(b, c)", "Sub(c, b)"])
@pytest.mark.parametrize("inner", ["Add(a, z)", "Add(z, a)", "Sub(a, z)", "Sub(z, a)"])
def test_branches_apart_in_the_tree_are_brought_together(inner: str, order: str) -> None:
    text = f"a = Conv {SAME} (x, w) b = Conv(x, p) r = Relu(x) z = Conv(r, p) c = {inner} y = {order}"
    model = assert_fold(parse(block(text)), folded=0).model
    assert sorted(ops(model)) == sorted(["Conv", "Relu", "Conv", inner[:3]])


def test_the_branch_that_leaves_no_negative_rest_takes_in_the_other() -> None:
    """`b - (z + a)` without b would be `-(z + a')`, so that b stays and its window grows."""
    text = f"a = Conv {SAME} (x, w) b = Conv(x, p) r = Relu(x) z = Conv(r, p) c = Add(z, a) y = Sub(b, c)"
    assert ops(assert_fold(parse(block(text)), folded=0).model).count("Conv") == 2


def test_where_either_branch_would_leave_a_negative_rest_both_stay() -> None:
    text = f"""a = Conv {SAME} (x, w) b = Conv(x, p) r = Relu(x) z = Conv(r, p) q = Conv {SAME} (r, w) s = Relu(z)
        c = Sub(a, s) d = Sub(b, q) y = Add(c, d)"""
    assert ops(assert_fold(parse(block(text)), folded=0).model).count("Conv") == 4


def test_depthwise_branches_and_a_scale_are_one_depthwise_convolution() -> None:
    """MobileOne: several depthwise branches, a depthwise 1x1 and a BatchNorm of the input."""
    text = f"""a = Conv <pads=[1,1,1,1], group=4> (x, w) b = Conv <pads=[1,1,1,1], group=4> (x, u)
        c = Conv <group=4> (x, p) d = BatchNormalization(c, {STATS}) e = BatchNormalization(x, {STATS2})
        s = Add(a, b) t = Add(s, d) y = Add(t, e)"""
    weights = "float[4,1,3,3] w, float[4,1,3,3] u, float[4,1,1,1] p"
    result = assert_fold(parse(block(text, weights=weights)), folded=2)
    assert ops(result.model) == ["Conv"]
    weight = next(v for v in result.model.graph.initializers.values() if len(v.shape) == 4)  # type: ignore[arg-type]
    assert tuple(weight.shape) == (4, 1, 3, 3)  # type: ignore[arg-type]


def test_a_depthwise_branch_goes_into_a_dense_one_only_where_that_is_cheaper() -> None:
    into_dense = f"a = Conv {SAME} (x, w) b = Conv <pads=[1,1,1,1], group=4> (x, u) y = Add(a, b)"
    dense = parse(block(into_dense, weights="float[4,4,3,3] w, float[4,1,3,3] u"))
    assert ops(assert_fold(dense, folded=0).model) == ["Conv"]
    text = "a = Conv(x, p) b = Conv <pads=[1,1,1,1], group=4> (x, u) y = Add(a, b)"
    dearer = parse(block(text, weights="float[4,4,1,1] p, float[4,1,3,3] u"))
    assert ops(assert_fold(dearer, folded=0).model) == ["Conv", "Conv", "Add"]


def test_a_repmixer_block_with_its_layer_scale_is_one_convolution() -> None:
    """FastViT: `x + scale*(mixer(x) - norm(x))`, both of which are linear in x."""
    text = f"""a = Conv <pads=[1,1,1,1], group=4> (x, w) m = BatchNormalization(a, {STATS})
        i = BatchNormalization(x, {STATS2}) n = BatchNormalization(x, {STATS3}) o = Add(m, i) d = Sub(o, n)
        s = Mul(d, scale) y = Add(x, s)"""
    model = parse(block(text, weights="float[4,1,3,3] w", more=", float[4,1,1] scale"))
    assert ops(assert_fold(model, folded=4).model) == ["Conv"]


def test_a_batchnorm_behind_the_sum_goes_into_the_merged_convolution() -> None:
    """RepViT: the shortcut cannot take the scale, and needs not once it is part of the kernel."""
    text = f"a = Conv {SAME} (x, w) b = Conv(x, p) s = Add(a, b) t = Add(s, x) y = BatchNormalization(t, {STATS})"
    assert ops(assert_fold(parse(block(text)), folded=1).model) == ["Conv"]


def test_asymmetric_kernels_join_the_square_one() -> None:
    """ACNet: 3x3, 1x3 and 3x1."""
    text = f"""a = Conv {SAME} (x, w) b = Conv <pads=[0,1,0,1]> (x, h) c = Conv <pads=[1,0,1,0]> (x, v)
        s = Add(a, b) t = Add(s, c) y = BatchNormalization(t, {STATS})"""
    weights = "float[4,4,3,3] w, float[4,4,1,3] h, float[4,4,3,1] v"
    assert ops(assert_fold(parse(block(text, weights=weights)), folded=1).model) == ["Conv"]


@pytest.mark.parametrize(
    ("first", "second", "count"),
    [
        ("<pads=[1,1,1,1], strides=[2,2]> (x, w)", "<strides=[2,2]> (x, p)", 1),
        ("<pads=[2,2,2,2], dilations=[2,2]> (x, w)", "(x, p)", 1),
        ("<auto_pad=\"SAME_UPPER\"> (x, w)", "(x, p)", 1),
        ("<pads=[1,1,1,1], strides=[2,2]> (x, w)", "<pads=[1,1,1,1], strides=[2,2]> (x, v)", 1),
        ("<pads=[0,0,2,2]> (x, w)", "<pads=[1,1,1,1]> (x, v)", 1),  # 16 taps for 18
        ("<pads=[0,0,2,2]> (x, w)", "<pads=[2,2,0,0]> (x, v)", 2),  # 25 taps for 18
        ("<pads=[1,1,1,1]> (x, w)", "<pads=[2,2,2,2], dilations=[2,2]> (x, v)", 2),
        ("<pads=[1,1,1,1], group=2> (x, g)", "(x, p)", 2),  # 36 products beside 18 and 4
        ("<pads=[1,1,1,1]> (x, w)", "<pads=[1,1,1,1], group=2> (x, g)", 1),
    ],
)  # fmt: skip
def test_windows_join_where_they_fit_one_frame_and_that_is_no_dearer(first: str, second: str, count: int) -> None:
    weights = "float[4,4,3,3] w, float[4,4,3,3] v, float[4,2,3,3] g, float[4,4,1,1] p"
    model = parse(block(f"a = Conv {first} b = Conv {second} y = Add(a, b)", weights=weights))
    assert ops(assert_fold(model, folded=0).model).count("Conv") == count


@pytest.mark.parametrize(
    ("nodes", "out"),
    [
        (f"a = Conv {SAME} (x, w) z = Conv(x, p) y = Add(a, z)", ", float[N,4,8,8] z"),
        (f"a = Conv {SAME} (x, w) b = Conv(x, p) y = Add(a, b) z = Relu(b)", ", float[N,4,8,8] z"),
        (f"a = Conv {SAME} (x, w) r = Relu(x) b = Conv(r, p) y = Add(a, b)", ""),
    ],
)
def test_branches_that_are_read_elsewhere_or_read_something_else_stay(nodes: str, out: str) -> None:
    assert ops(assert_fold(parse(block(nodes, out=out)), folded=0).model).count("Conv") == 2


def test_an_identity_beside_a_strided_convolution_of_another_size_stays() -> None:
    text = "a = Conv <pads=[1,1,1,1]> (x, w) b = GlobalAveragePool(x) y = Add(a, b)"
    assert ops(assert_fold(parse(block(text)), folded=0).model) == ["Conv", "GlobalAveragePool", "Add"]


def test_a_batchnorm_before_a_padded_branch_is_no_part_of_it() -> None:
    """The zeros stand outside the BatchNorm's output; here it has two readers, which are merged."""
    text = f"""n = BatchNormalization(x, {STATS}) a = Conv {SAME} (n, w) b = Conv(n, p) s = Add(a, b) y = Add(s, n)"""
    model = assert_fold(parse(block(text)), folded=0, kept=[Reason.READS_MODEL_INPUT]).model
    assert ops(model) == ["BatchNormalization", "Conv"]


@pytest.mark.parametrize("kinds", ["MatMul(x, w) b = MatMul(x, v)", "Gemm(x, w, c) b = MatMul(x, v)"])
def test_matrix_products_of_one_value_and_the_value_itself_are_one(kinds: str) -> None:
    text = f"""(float[N,4] x) => (float[N,4] y) <float[4,4] w, float[4,4] v, float[4] c, {PARAMETERS}>
        {{ a = {kinds} s = Add(a, b) t = Add(s, x) y = BatchNormalization(t, {STATS}) }}"""
    model = assert_fold(parse(text), folded=1).model
    assert len([op for op in ops(model) if op in ("MatMul", "Gemm")]) == 1


def test_a_merged_weight_that_does_not_fit_float16_leaves_the_branches_as_they_are() -> None:
    text = block(f"a = Conv {SAME} (x, w) b = Conv(x, p) y = Add(a, b)").replace("float[", "float16[")
    big, small = parse(text, values={"w": 4e4, "p": 4e4}), parse(text, values={"w": 2e4, "p": 2e4})
    assert ops(assert_fold(small, folded=0, runs=False).model) == ["Conv"]
    assert ops(assert_fold(big, folded=0, runs=False).model) == ["Conv", "Conv", "Add"]


def test_a_gemm_whose_bias_varies_over_the_rows_stays_beside_a_product_and_in_a_row() -> None:
    weights = "float[4,4] w, float[4,4] v, float[4,4] c"
    for nodes in ("a = Gemm(x, w, c) b = MatMul(x, v) y = Add(a, b)", "a = Gemm(x, w, c) y = MatMul(a, v)"):
        text = f"(float[4,4] x) => (float[A,B] y) <{weights}> {{ {nodes} }}"
        assert [op for op in ops(assert_fold(parse(text), folded=0).model) if op != "Add"] == ["Gemm", "MatMul"]


def test_branches_of_an_inner_sum_that_is_read_elsewhere_stay_apart_from_those_outside() -> None:
    weights = "float[4,4,3,3] w, float[4,4,1,1] p, float[4,4,1,1] q"
    for other, count in (("b = Conv(x, p)", 2), ("b = Sigmoid(x)", 2)):
        text = f"a = Conv {SAME} (x, w) {other} s = Add(a, b) c = Conv(x, q) y = Add(s, c) z = Relu(s)"
        model = assert_fold(parse(block(text, weights=weights, out=", float[N,4,8,8] z")), folded=0).model
        assert ops(model).count("Conv") == count


@pytest.mark.parametrize("weight", ["float[1,4,1,1] w", "float[4,1,1,1] w"])
def test_a_value_that_is_broadcast_against_its_convolution_is_no_branch(weight: str) -> None:
    channels = 4 if weight.startswith("float[1,") else 1
    text = f"(float[N,{channels},8,8] x) => (float[A,B,C,D] y) <{weight}> {{ a = Conv(x, w) y = Add(a, x) }}"
    assert ops(assert_fold(parse(text), folded=0).model) == ["Conv", "Add"]
