"""MatMul with the constant on either side, of any rank, with and without an Add behind it."""

from __future__ import annotations

import pytest
from onnx_models import PARAMETERS, STATS, assert_fold, ops, parse

from bnfold.decision import Reason


def _to_axis_1(value: str, rank: int, channels: int) -> str:
    """Nodes that bring the axis `channels` of `value` to axis 1 and apply the BatchNorm there."""
    rest = [axis for axis in range(rank) if axis != channels]
    perm = [rest[0], channels, *rest[1:]]
    return f"t = Transpose <perm={perm}> ({value}) y = BatchNormalization(t, {STATS})"


@pytest.mark.parametrize("add", ["", "add(m, b)", "add(b, m)", "scalar", "row"])
@pytest.mark.parametrize("rank", [2, 3, 4])
def test_a_batchnorm_behind_a_matmul_with_its_constant_on_the_right_is_folded(rank: int, add: str) -> None:
    sizes = ["N", "5", "6", "3"][: rank - 1]
    bias = {"scalar": "float b", "row": f"float[{','.join('1' * (rank - 1))},4] b"}.get(add, "float[4] b")
    node = {"": "", "add(b, m)": "s = Add(b, m)"}.get(add, "s = Add(m, b)")
    text = f"""(float[{",".join([*sizes, "7"])}] x) => (float[{",".join("PQRS"[:rank])}] y)
        <float[7,4] w, {bias}, {PARAMETERS}>
        {{ m = MatMul(x, w) {node} {_to_axis_1("s" if add else "m", rank, rank - 1)} }}"""
    result = assert_fold(parse(text), folded=1)
    # A shift adds an Add to a MatMul that has none: half the price of the BatchNorm.
    assert ops(result.model) == ["MatMul", "Add", "Transpose"]
    pure = assert_fold(parse(text, values={"beta": 0, "mean": 0}), folded=1)
    assert ops(pure.model) == (["MatMul", "Add", "Transpose"] if add else ["MatMul", "Transpose"])


@pytest.mark.parametrize("add", ["", "float[4,1] b", "float b", "float[1,4,1] b"])
def test_a_batchnorm_behind_a_matmul_with_its_constant_on_the_left_is_folded(add: str) -> None:
    text = f"""(float[N,7,5] x) => (float[P,Q,R] y) <float[4,7] w{", " + add if add else ""}, {PARAMETERS}>
        {{ m = MatMul(w, x) {"s = Add(b, m)" if add else "s = Identity(m)"} y = BatchNormalization(s, {STATS}) }}"""
    assert ops(assert_fold(parse(text), folded=1).model)[:2] == ["MatMul", "Add"]


@pytest.mark.parametrize("shape", ["5,4", "1,5,1", "5,1"])
def test_an_add_of_a_constant_per_position_absorbs_behind_a_matmul(shape: str) -> None:
    text = f"""(float[2,5,7] x) => (float[P,Q,R] y) <float[7,4] w, float[{shape}] b, {PARAMETERS}>
        {{ m = MatMul(x, w) s = Add(m, b) {_to_axis_1("s", 3, 2)} }}"""
    assert ops(assert_fold(parse(text), folded=1).model) == ["MatMul", "Add", "Transpose"]


@pytest.mark.parametrize("reader", ["Relu", "Add"])
def test_an_add_behind_a_matmul_that_others_read_is_no_bias(reader: str) -> None:
    more = "z = Relu(m)" if reader == "Relu" else "z = Add(m, x)"
    text = f"""(float[N,4] x) => (float[N,4] y, float[N,4] z) <float[4,4] w, float[4] b, {PARAMETERS}>
        {{ m = MatMul(x, w) {more} s = Add(m, b) y = BatchNormalization(s, {STATS}) }}"""
    assert_fold(parse(text), folded=0, kept=[Reason.VALUE_HAS_OTHER_READERS])


def test_an_add_of_the_product_to_itself_is_no_bias() -> None:
    text = f"""(float[N,4] x) => (float[N,4] y) <float[4,4] w, {PARAMETERS}>
        {{ m = MatMul(x, w) s = Add(m, m) y = BatchNormalization(s, {STATS}) }}"""
    assert_fold(parse(text), folded=0, kept=[Reason.READERS_DISAGREE])  # a shift is wanted on one of the two only
    assert_fold(parse(text, values={"beta": 0, "mean": 0}), folded=1)


def test_an_add_that_broadcasts_the_product_up_is_no_bias() -> None:
    text = f"""(float[5,7] x) => (float[1,5,4] y) <float[7,4] w, float[1,1,4] b, float[5] gamma, float[5] beta,
        float[5] mean, float[5] var> {{ m = MatMul(x, w) s = Add(m, b) y = BatchNormalization(s, {STATS}) }}"""
    assert_fold(parse(text), folded=0, kept=[Reason.AXIS_NOT_PROVEN])


def test_a_linear_layer_before_a_batchnorm_over_another_axis_is_kept() -> None:
    # nn.Linear and then nn.BatchNorm1d on (N, C, L): the channels are not the features. pytorch/ao#4116.
    text = f"""(float[N,4,4] x) => (float[N,4,4] y) <float[4,4] w, {PARAMETERS}>
        {{ m = MatMul(x, w) y = BatchNormalization(m, {STATS}) }}"""
    assert_fold(parse(text), folded=0, kept=[Reason.OPERATOR_MIXES_CHANNELS])


@pytest.mark.parametrize("shape", ["4", "7"])
def test_a_constant_of_rank_1_is_a_barrier(shape: str) -> None:
    x, y = ("N,4,4", "P,Q") if shape == "4" else ("N,4,7", "P,Q")
    text = f"""(float[{x}] x) => (float[{y}] y) <float[{shape}] w, {PARAMETERS}>
        {{ m = MatMul(x, w) y = BatchNormalization(m, {STATS}) }}"""
    assert_fold(parse(text), folded=0, kept=[Reason.OPERATOR_HAS_NO_RULE])


def test_a_batch_of_constant_matrices_takes_an_affine_of_the_output() -> None:
    right = f"""(float[N,3,5,7] x) => (float[P,Q,R,S] y) <float[3,7,4] w, {PARAMETERS}>
        {{ m = MatMul(x, w) {_to_axis_1("m", 4, 3)} }}"""
    left = f"""(float[N,3,7,5] x) => (float[P,Q,R,S] y) <float[3,4,7] w, {PARAMETERS}>
        {{ m = MatMul(w, x) {_to_axis_1("m", 4, 2)} }}"""
    for text in (right, left):
        assert ops(assert_fold(parse(text), folded=1).model) == ["MatMul", "Add", "Transpose"]


def test_the_constant_may_have_more_axes_than_the_value() -> None:
    text = f"""(float[5,7] x) => (float[3,4,5] y) <float[3,7,4] w, {PARAMETERS}>
        {{ m = MatMul(x, w) {_to_axis_1("m", 3, 2)} }}"""
    assert_fold(parse(text), folded=1)


def test_the_batch_axis_of_a_constant_is_not_its_channel_axis() -> None:
    text = f"""(float[N,4,5,7] x) => (float[P,Q,R,S] y) <float[4,7,4] w, {PARAMETERS}>
        {{ m = MatMul(x, w) y = BatchNormalization(m, {STATS}) }}"""
    assert_fold(parse(text), folded=0, kept=[Reason.OPERATOR_MIXES_CHANNELS])


@pytest.mark.parametrize(
    ("x", "node", "weight", "reason"),
    [
        ("N,4", "MatMul(a, w)", "4,5", None),
        ("N,4,5", "MatMul(w, a)", "3,4", None),
        ("N,4,5", "MatMul(a, w)", "5,3", Reason.OPERATOR_MIXES_CHANNELS),
        ("N,4,4", "MatMul(a, w)", "4,4", Reason.OPERATOR_MIXES_CHANNELS),
        ("N,4,5", "MatMul(w, a)", "1,3,4", Reason.COSTS_MORE),
    ],
)
def test_a_batchnorm_before_a_matmul(x: str, node: str, weight: str, reason: Reason | None) -> None:
    rank = x.count(",") + 1
    text = f"""(float[{x}] x) => (float[{",".join("PQR"[:rank])}] y) <float[{weight}] w, {PARAMETERS}>
        {{ a = BatchNormalization(x, {STATS}) y = {node} }}"""
    assert_fold(parse(text), folded=int(reason is None), kept=[reason] if reason else [])
    scales = reason is None or reason is Reason.COSTS_MORE
    assert_fold(parse(text, values={"beta": 0, "mean": 0}), folded=int(scales), kept=[] if scales else [reason])  # type: ignore[list-item]


def test_a_shift_pushed_into_a_matmul_enters_the_add_behind_it() -> None:
    text = f"""(float[N,4] x) => (float[N,5] y) <float[4,5] w, float[5] b, {PARAMETERS}>
        {{ a = BatchNormalization(x, {STATS}) m = MatMul(a, w) y = Add(b, m) }}"""
    assert ops(assert_fold(parse(text), folded=1).model) == ["MatMul", "Add"]


def test_more_adds_than_a_batchnorm_costs_are_refused() -> None:
    def text(branches: int) -> str:
        products = " ".join(f"m{i} = MatMul(x, w{i})" for i in range(branches))
        names, weights = (", ".join(f"{p}{i}" for i in range(branches)) for p in ("m", "float[7,4] w"))
        parameters = PARAMETERS.replace("[4]", f"[{4 * branches}]")
        return f"""(float[N,7] x) => (float[N,{4 * branches}] y) <{weights}, {parameters}>
            {{ {products} c = Concat <axis=1> ({names}) y = BatchNormalization(c, {STATS}) }}"""

    assert_fold(parse(text(1)), folded=1)
    assert_fold(parse(text(2)), folded=0, kept=[Reason.COSTS_MORE])
    assert_fold(parse(text(2), values={"beta": 0, "mean": 0}), folded=1)


def test_a_matmul_or_gemm_of_two_variables_is_a_barrier() -> None:
    for node in ("MatMul(x, z)", "Gemm(x, z)"):
        text = f"""(float[N,4] x, float[4,4] z) => (float[N,4] y) <{PARAMETERS}>
            {{ m = {node} y = BatchNormalization(m, {STATS}) }}"""
        assert_fold(parse(text), folded=0, kept=[Reason.WEIGHTS_NOT_CONSTANT])
