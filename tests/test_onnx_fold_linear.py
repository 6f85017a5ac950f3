"""BatchNorm at the output and at the input of Conv, ConvTranspose, Gemm and MatMul, on both sides of every condition.

Bugs of other tools that are covered here: bias not scaled (ncnn#1339, yolov3#807), ConvTranspose scaled along the
wrong axis (ultralytics#25364), grouped ConvTranspose (onnxscript#2879, onnx/optimizer#106, onnxruntime#12498), Gemm's
alpha and beta (onnxscript#3027), Linear before BatchNorm on (N, C, L) (pytorch/ao#4116), auto_pad at the input.
"""

from __future__ import annotations

import pytest
from onnx_models import PARAMETERS, STATS, assert_fold, ops, parse, stored

from bnfold.decision import Folded, Reason

SPATIAL = {1: "7", 2: "7,6", 3: "5,6,4"}
KERNEL = {1: "3", 2: "3,2", 3: "2,3,1"}
PADS = {1: "[1,2]", 2: "[1,0,2,1]", 3: "[1,1,0,0,1,1]"}


def _conv(rank: int, group: int, attributes: str, bias: str, *, op: str = "Conv") -> str:
    """4 channels in and out, a BatchNorm behind."""
    weight = f"float[4,{4 // group},{KERNEL[rank]}] w"
    reads = {"none": "x, w", "empty": 'x, w, ""', "given": "x, w, b"}[bias]
    extra = ", float[4] b" if bias == "given" else ""
    return f"""(float[N,4,{SPATIAL[rank]}] x) => (float[N,4,{", ".join("PQR"[:rank])}] y)
        <{weight}{extra}, {PARAMETERS}>
        {{ c = {op} <group={group}{attributes}> ({reads})
           y = BatchNormalization(c, {STATS}) }}"""


@pytest.mark.parametrize("bias", ["none", "empty", "given"])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_a_batchnorm_behind_a_convolution_of_any_rank_and_groups_is_folded(
    op: str, rank: int, group: int, bias: str
) -> None:
    result = assert_fold(parse(_conv(rank, group, "", bias, op=op)), folded=1)
    assert ops(result.model) == [op]


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize(
    "attributes",
    [
        ", strides=[2,3]",
        ", dilations=[2,1]",
        ", pads=[1,0,2,1]",
        ", strides=[2,1], pads=[1,1,1,1]",
        ', auto_pad="VALID"',
        ', auto_pad="SAME_UPPER"',
        ', auto_pad="SAME_LOWER", strides=[2,2]',
    ],
)
def test_geometry_is_no_condition_for_a_fold_at_the_output(op: str, attributes: str) -> None:
    assert_fold(parse(_conv(2, 2, attributes, "given", op=op)), folded=1)


def test_output_padding_and_output_shape_are_no_condition_at_the_output() -> None:
    assert_fold(parse(_conv(2, 1, ", strides=[2,2], output_padding=[1,0]", "given", op="ConvTranspose")), folded=1)
    assert_fold(parse(_conv(2, 1, ", strides=[2,2], output_shape=[15,12]", "none", op="ConvTranspose")), folded=1)


def _before(rank: int, group: int, attributes: str, *, op: str = "Conv", sizes: str = "", kernel: str = "") -> str:
    """A BatchNorm on the input of the model, and a convolution behind it."""
    return f"""(float[N,4,{sizes or SPATIAL[rank]}] x) => (float[N,4,{", ".join("PQR"[:rank])}] y)
        <float[4,{4 // group},{kernel or KERNEL[rank]}] w, float[4] b, {PARAMETERS}>
        {{ a = BatchNormalization(x, {STATS})
           y = {op} <group={group}{attributes}> (a, w, b) }}"""


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_batchnorm_before_an_unpadded_convolution_is_folded(rank: int, group: int) -> None:
    result = assert_fold(parse(_before(rank, group, "")), folded=1)
    assert ops(result.model) == ["Conv"]
    assert isinstance(result.decisions[0], Folded)
    assert result.decisions[0].direction == "push"


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_batchnorm_before_a_padded_convolution_is_kept(rank: int) -> None:
    text = _before(rank, 1, f", pads={PADS[rank]}")
    assert_fold(parse(text), folded=0, kept=[Reason.SHIFT_MEETS_PADDING])


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_batchnorm_without_a_shift_is_folded_into_a_padded_convolution(rank: int) -> None:
    text = _before(rank, 1, f", pads={PADS[rank]}")
    assert_fold(parse(text, values={"beta": 0, "mean": 0}), folded=1)


@pytest.mark.parametrize(
    ("attributes", "sizes", "kernel", "folds"),
    [
        (', auto_pad="VALID"', "", "", True),
        (', auto_pad="NOTSET"', "", "", True),
        (', auto_pad="SAME_UPPER"', "", "", False),
        (', auto_pad="SAME_LOWER"', "", "", False),
        (', auto_pad="SAME_UPPER"', "", "1,1", True),
        (', auto_pad="SAME_UPPER", strides=[2,2]', "", "1,1", True),
        # (ceil(7/3) - 1)*3 + 1 - 7 = 0 pads with kernel 1; with kernel 3 and size 6, (2-1)*3 + 3 - 6 = 0.
        (', auto_pad="SAME_UPPER", strides=[3,3]', "6,6", "3,3", True),
        (', auto_pad="SAME_UPPER", strides=[3,3]', "7,6", "3,3", False),
        (', auto_pad="SAME_LOWER", strides=[3,3]', "H,W", "3,3", False),
        (', auto_pad="SAME_UPPER", strides=[2,2]', "H,W", "1,1", True),
    ],
)
def test_auto_pad_is_resolved_before_a_shift_is_pushed(attributes: str, sizes: str, kernel: str, folds: bool) -> None:
    model = parse(_before(2, 1, attributes, sizes=sizes, kernel=kernel))
    assert_fold(model, folded=int(folds), kept=[] if folds else [Reason.SHIFT_MEETS_PADDING])


@pytest.mark.parametrize(
    ("attributes", "kernel", "folds"),
    [
        ("", "3,2", False),
        (", pads=[2,1,2,1]", "3,2", True),
        (", pads=[2,1,1,1]", "3,2", False),
        (", pads=[1,1,2,1]", "3,2", False),
        (", pads=[2,2,3,2], dilations=[1,2]", "3,2", True),
        (", pads=[2,1,2,1], dilations=[1,2]", "3,2", False),
        ("", "1,1", True),
        (", strides=[2,2]", "1,1", False),
        (', auto_pad="SAME_UPPER"', "1,1", True),
        (', auto_pad="SAME_UPPER"', "3,2", False),
        (', auto_pad="VALID"', "1,1", True),
        (", output_shape=[7,6]", "1,1", True),
        (", output_shape=[7,6]", "3,2", False),
        (', output_shape=[8,7], auto_pad="SAME_UPPER"', "3,2", False),
    ],
)
def test_a_shift_enters_a_transposed_convolution_where_every_output_sees_every_tap(
    attributes: str, kernel: str, folds: bool
) -> None:
    for group in (1, 2, 4):
        model = parse(_before(2, group, attributes, op="ConvTranspose", kernel=kernel))
        assert_fold(model, folded=int(folds), kept=[] if folds else [Reason.SHIFT_MEETS_PADDING])


C_SHAPES = {"()": "float c", "N": "float[4] c", "1": "float[1] c", "1,N": "float[1,4] c", "M,1": "float[6,1] c"}


@pytest.mark.parametrize("c", [*C_SHAPES, "M,N", "none", "empty"])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("trans_a", [0, 1])
def test_a_gemm_takes_a_batchnorm_at_either_end(trans_a: int, trans_b: int, c: str) -> None:
    data, weight = ("4,6" if trans_a else "6,4"), "4,4"
    declared = {"M,N": "float[6,4] c", **C_SHAPES}.get(c)
    reads = {"none": "", "empty": ', ""'}.get(c, ", c")
    inputs = f"<float[{weight}] w{', ' + declared if declared else ''}, {PARAMETERS}>"
    gemm = f"Gemm <transA={trans_a}, transB={trans_b}, alpha=-1.7, beta=0.3>"
    behind = f"""(float[{data}] x) => (float[6,4] y) {inputs}
        {{ g = {gemm} (x, w{reads}) y = BatchNormalization(g, {STATS}) }}"""
    result = assert_fold(parse(behind), folded=1)
    assert ops(result.model) == ["Gemm"]
    parameters = PARAMETERS.replace("[4]", "[6]") if trans_a else PARAMETERS
    before = f"""(float[{data}] x) => (float[6,4] y) {inputs.replace(PARAMETERS, parameters)}
        {{ a = BatchNormalization(x, {STATS}) y = {gemm} (a, w{reads}) }}"""
    if trans_a:  # the BatchNorm's axis is not the one that the product adds up
        assert_fold(parse(before), folded=0, kept=[Reason.OPERATOR_MIXES_CHANNELS])
    else:
        assert ops(assert_fold(parse(before), folded=1).model) == ["Gemm"]


def test_a_gemm_of_an_old_operator_set_keeps_its_obligatory_bias() -> None:
    text = f"""(float[N,5] x) => (float[N,4] y) <float[5,4] w, float[4] c, {PARAMETERS}>
        {{ g = Gemm <alpha=0.5, beta=2.0> (x, w, c) y = BatchNormalization(g, {STATS}) }}"""
    for opset in (7, 9, 11, 13):
        assert_fold(parse(text, opset=opset, values={"c": 0, "beta": 0, "mean": 0}), folded=1)


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("c", ["float[4,1] c", "float[1,7] c", "float[4,7] c", "float c"])
def test_a_gemm_whose_first_matrix_is_constant_has_its_channels_on_axis_0(trans_a: int, trans_b: int, c: str) -> None:
    weight, data = ("5,4" if trans_a else "4,5"), ("7,5" if trans_b else "5,7")
    gemm = f"Gemm <transA={trans_a}, transB={trans_b}, alpha=0.7, beta=1.3> (w, x, c)"
    text = f"""(float[{data}] x) => (float[7,4] y) <float[{weight}] w, {c}, {PARAMETERS}>
        {{ g = {gemm} t = Transpose <perm=[1,0]> (g) y = BatchNormalization(t, {STATS}) }}"""
    assert ops(assert_fold(parse(text), folded=1).model) == ["Gemm", "Transpose"]
    wide = text.replace("[7,4] y", "[4,7] y").replace("t = Transpose <perm=[1,0]> (g)", "")
    wide = wide.replace(f"BatchNormalization(t, {STATS})", f"BatchNormalization(g, {STATS})")
    wide = wide.replace(PARAMETERS, PARAMETERS.replace("[4]", "[7]"))
    assert_fold(parse(wide), folded=0, kept=[Reason.OPERATOR_MIXES_CHANNELS])


def test_the_folded_gemm_has_unit_alpha_and_beta() -> None:
    text = f"""(float[N,5] x) => (float[N,4] y) <float[5,4] w, {PARAMETERS}>
        {{ g = Gemm <alpha=0.5, beta=2.0> (x, w) y = BatchNormalization(g, {STATS}) }}"""
    model = parse(text, values={"w": 1, "gamma": 3, "beta": 0, "mean": 0, "var": 1 - 1e-5})
    result = assert_fold(model, folded=1)
    assert stored(result.model, "w_folded") == pytest.approx(1.5)
    assert not result.model.graph[0].attributes
