"""Linear operators in a row through ONNX: one where a single tap stands before or behind, and that is no dearer."""

from __future__ import annotations

import pytest
from onnx_models import PARAMETERS, STATS, assert_fold, ops, parse

from bnfold.decision import Reason


def row(nodes: str, weights: str, *, shape: str = "N,4,8,8", out: str = "A,B,C,D", more: str = "") -> str:
    return f"(float[{shape}] x) => (float[{out}] y{more}) <{weights}, {PARAMETERS}> {{ {nodes} }}"


WIDE = "float[8,4,1,1] w, float[8] b, float[4,8,3,3] v, float[4] c"
LAST = "float[8,4,3,3] w, float[8] b, float[4,8,1,1] v, float[4] c"


def convs(nodes: str, weights: str, **more: str) -> int:
    return ops(assert_fold(parse(row(nodes, weights, **more)), folded=0).model).count("Conv")


@pytest.mark.parametrize(
    ("first", "second", "count"),
    [
        ("(x, w)", "(a, v, c)", 1),
        ("(x, w, b)", "(a, v, c)", 1),
        ("(x, w)", "<pads=[1,1,1,1]> (a, v, c)", 1),
        ("(x, w, b)", "<pads=[1,1,1,1]> (a, v, c)", 2),  # b is missing in the padding
        ("<pads=[1,1,1,1]> (x, w)", "(a, v)", 2),  # two paddings
        ("<strides=[2,2]> (x, w)", "(a, v)", 2),  # a window with holes
        ("(x, w)", "<strides=[2,2], dilations=[2,2], pads=[2,2,2,2]> (a, v)", 1),
    ],
)
def test_a_single_tap_before(first: str, second: str, count: int) -> None:
    assert convs(f"a = Conv {first} y = Conv {second}", WIDE) == count


@pytest.mark.parametrize(
    "first", ["(x, w, b)", "<pads=[1,0,1,2], dilations=[2,1]> (x, w, b)", "<strides=[2,1]> (x, w)"]
)
@pytest.mark.parametrize(
    ("second", "count"), [("(a, v, c)", 1), ("<strides=[1,2]> (a, v)", 1), ("<pads=[1,1,1,1]> (a, v)", 2)]
)
def test_a_single_tap_behind(first: str, second: str, count: int) -> None:
    assert convs(f"a = Conv {first} y = Conv {second}", LAST) == count


@pytest.mark.parametrize(
    ("weights", "first", "second", "count"),
    [
        ("float[8,4,1,1] w, float[4,8,3,3] v", "", "", 1),  # 144 products for 32 + 288
        ("float[2,4,1,1] w, float[4,2,3,3] v", "", "", 2),  # 144 for 8 + 72
        ("float[4,1,3,3] w, float[4,4,1,1] v", "<group=4>", "", 2),  # 144 for 36 + 16: separable
        ("float[4,1,3,3] w, float[4,1,1,1] v", "<group=4>", "<group=4>", 1),
        ("float[4,2,3,3] w, float[4,2,1,1] v", "<group=2>", "<group=2>", 1),
        ("float[4,2,3,3] w, float[4,4,1,1] v", "<group=2>", "", 2),  # 144 for 72 + 16
        ("float[4,4,3,3] w, float[4,2,1,1] v", "", "<group=2>", 1),
    ],
)
def test_two_are_one_where_that_is_no_dearer(weights: str, first: str, second: str, count: int) -> None:
    assert convs(f"a = Conv {first} (x, w) y = Conv {second} (a, v)", weights) == count


def test_what_another_operator_or_the_caller_reads_stays() -> None:
    assert convs("a = Conv(x, w) y = Conv(a, v) z = Relu(a)", WIDE, more=", float[A,E,F,G] z") == 2
    assert convs("z = Conv(x, w) y = Conv(z, v)", WIDE, more=", float[A,E,F,G] z") == 2
    assert convs("a = Conv(x, w) r = Relu(a) y = Conv(r, v)", WIDE) == 2


def test_a_branch_of_two_in_a_row_joins_the_one_beside_it() -> None:
    """A diverse branch block: 1x1 and 3x3 in a row beside a 3x3."""
    weights = "float[4,4,1,1] w, float[4,4,3,3] v, float[4,4,3,3] u"
    nodes = f"""a = Conv(x, w) b = Conv <pads=[1,1,1,1]> (a, v) e = Conv <pads=[1,1,1,1]> (x, u) s = Add(b, e)
        y = BatchNormalization(s, {STATS})"""
    assert ops(assert_fold(parse(row(nodes, weights)), folded=1).model) == ["Conv"]


@pytest.mark.parametrize(
    ("nodes", "weights", "shape"),
    [
        ("a = MatMul(x, w) y = MatMul(a, v)", "float[4,6] w, float[6,4] v", "N,4"),
        ("a = MatMul(x, w) e = Add(a, b) y = MatMul(e, v)", "float[4,6] w, float[6] b, float[6,4] v", "N,5,4"),
        ("a = MatMul(x, w) e = MatMul(a, v) y = Add(e, c)", "float[4,6] w, float[6,4] v, float[4] c", "N,5,4"),
        ("a = MatMul(w, x) y = MatMul(v, a)", "float[6,4] w, float[4,6] v", "4,5"),
        ("a = Gemm(x, w, b) y = Gemm <transB=1, alpha=0.5> (a, v)", "float[4,6] w, float[6] b, float[4,6] v", "N,4"),
        ("a = Gemm(x, w, b) y = MatMul(a, v)", "float[4,6] w, float[6] b, float[6,4] v", "N,4"),
    ],
)
def test_matrix_products_in_a_row_are_one(nodes: str, weights: str, shape: str) -> None:
    out = {1: "A,B", 2: "A,B,C"}[shape.count(",")]
    model = assert_fold(parse(row(nodes, weights, shape=shape, out=out)), folded=0).model
    assert len([op for op in ops(model) if op in ("MatMul", "Gemm")]) == 1


def test_products_along_different_axes_stay_two() -> None:
    text = row("a = MatMul(x, w) y = MatMul(v, a)", "float[4,4] w, float[4,4] v", shape="4,4", out="A,B")
    assert ops(assert_fold(parse(text), folded=0).model) == ["MatMul", "MatMul"]


@pytest.mark.parametrize(
    ("nodes", "count"),
    [
        ("a = Gemm <transA=1> (x, w) y = MatMul(a, v)", 1),
        ("a = MatMul(x, w) y = Gemm <transB=1> (v, a)", 2),  # transposes what the first one computes
        ("a = MatMul(x, w) y = Gemm <transA=1> (a, v)", 2),
        ("a = Gemm(w, x) y = Gemm(v, a)", 1),
    ],
)
def test_a_gemm_that_transposes_its_data_may_only_come_first(nodes: str, count: int) -> None:
    text = row(nodes, "float[4,4] w, float[4,4] v", shape="4,4", out="A,B")
    model = assert_fold(parse(text), folded=0).model
    assert len([op for op in ops(model) if op in ("MatMul", "Gemm")]) == count


def test_a_stride_behind_counts_the_products_that_nobody_reads() -> None:
    weights = "float[2,4,3,3] w, float[4,2,1,1] v"  # 144 products for 4 * 72 + 8, or for 72 + 8
    assert convs("a = Conv(x, w) y = Conv <strides=[2,2]> (a, v)", weights) == 1
    assert convs("a = Conv(x, w) y = Conv(a, v)", weights) == 2


def test_a_shift_still_does_not_enter_the_padding_of_two_in_a_row() -> None:
    weights = "float[8,4,3,3] w, float[4,8,1,1] v"
    text = row(f"n = BatchNormalization(x, {STATS}) a = Conv <pads=[1,1,1,1]> (n, w) y = Conv(a, v)", weights)
    result = assert_fold(parse(text), folded=0, kept=[Reason.SHIFT_MEETS_PADDING])
    assert ops(result.model) == ["BatchNormalization", "Conv"]


def test_a_product_that_does_not_fit_float16_leaves_both() -> None:
    text = row("a = Conv(x, w) y = Conv(a, v)", "float[4,4,1,1] w, float[4,4,1,1] v").replace("float[", "float16[")
    for size, count in ((100, 1), (200, 2)):
        model = parse(text, values={"w": size, "v": size})  # four products of each: 4e4, 16e4
        assert ops(assert_fold(model, folded=0, runs=False).model).count("Conv") == count


@pytest.mark.parametrize("asks", ["Shape", "Size"])
@pytest.mark.parametrize("of", ["t", "n"])
def test_operators_in_a_row_stay_apart_where_the_shape_between_them_is_asked_for(asks: str, of: str) -> None:
    """Of the first one's own output, or of a BatchNorm's that folds into it."""
    shape = "int64[4]" if asks == "Shape" else "int64"
    model = parse(
        f"(float[N,3,9,9] x) => (float[N,4,7,7] y, {shape} s) <float[4,3,1,1] w, float[4,4,3,3] v, {PARAMETERS}>"
        f" {{ t = Conv(x, w) n = BatchNormalization(t, {STATS}) y = Conv(n, v) s = {asks}({of}) }}"
    )
    assert ops(assert_fold(model, folded=1).model) == ["Conv", "Conv", asks]


def test_matrix_products_in_a_row_stay_apart_where_the_shape_between_them_is_asked_for() -> None:
    text = "(float[N,3] x) => (float[N,4] y{out}) <{held}> {{ t = MatMul(x, w) y = MatMul(t, v){more} }}"
    text = text.replace("{held}", "float[3,5] w, float[5,4] v")
    apart = assert_fold(parse(text.format(out=", int64[2] s", more=" s = Shape(t)")), folded=0).model
    assert ops(apart) == ["MatMul", "MatMul", "Shape"]
    assert ops(assert_fold(parse(text.format(out="", more="")), folded=0).model) == ["MatMul"]


@pytest.mark.parametrize("size", [4, 7, 8])
def test_pads_that_hang_on_the_size_are_tested_at_the_models_own(size: int) -> None:
    """SAME with a stride is written out as pads in the merge, which are right for this size and for no other."""
    weights = "float[4,2,3,3] w, float[4] b, float[3,4,1,1] v, float[3] c"
    nodes = '{ t = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w, b) y = Conv(t, v, c) }'
    out = -(-size // 2)
    model = parse(f"(float[1,2,{size},{size}] x) => (float[1,3,{out},{out}] y) <{weights}> {nodes}")
    assert ops(assert_fold(model, folded=0).model) == ["Conv"]
