"""FLOPs: each formula against a count by hand, whole networks against their published figures, and what is unknown."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
import torch
from onnx_models import parse

import bnfold
from bnfold.flops import Flops, Uncounted, Work
from bnfold.frontends.onnx_flops import count_flops
from bnfold.frontends.onnx_operations import ARITHMETIC, FREE
from tests.zoo import NETWORKS, load
from tests.zoo.exporting import export_torchscript
from tests.zoo.vision import torchvision_network


def count(text: str, **sizes: tuple[int, ...]) -> Flops:
    proto = onnx.parser.parse_model(text) if text.startswith("<") else parse(text)
    return count_flops(ir.from_proto(proto), sizes)


#: Each with its multiply-adds and other operations, counted by hand.
BY_HAND = {
    "Conv: 4 channels of 6x6, each of 3*3*3 products": (
        "(float[2,3,8,8] x) => (float[2,4,6,6] y) <float[4,3,3,3] w> { y = Conv(x, w) }",
        Work(2 * 4 * 36 * 27, 0),
    ),
    "Conv with padding, stride and a bias": (
        (
            "(float[1,3,8,8] x) => (float[1,4,4,4] y) <float[4,3,3,3] w, float[4] b>"
            "{ y = Conv<pads = [1,1,1,1], strides = [2,2]>(x, w, b) }"
        ),
        Work(4 * 16 * 27, 4 * 16),
    ),
    "depthwise Conv": (
        "(float[1,4,8,8] x) => (float[1,4,6,6] y) <float[4,1,3,3] w> { y = Conv<group = 4>(x, w) }",
        Work(4 * 36 * 9, 0),
    ),
    "ConvTranspose: every input element meets 4 channels of 2x2": (
        (
            "(float[1,3,5,5] x) => (float[1,4,10,10] y) <float[3,4,2,2] w, float[4] b>"
            "{ y = ConvTranspose<strides = [2,2]>(x, w, b) }"
        ),
        Work(3 * 25 * 16, 400),
    ),
    "grouped ConvTranspose": (
        "(float[1,4,5,5] x) => (float[1,6,6,6] y) <float[4,3,2,2] w> { y = ConvTranspose<group = 2>(x, w) }",
        Work(4 * 25 * 12, 0),
    ),
    "Gemm with C": (
        "(float[2,7] x) => (float[2,5] y) <float[7,5] w, float[5] c> { y = Gemm(x, w, c) }",
        Work(2 * 5 * 7, 10),
    ),
    "Gemm with transA": (
        "(float[7,2] x) => (float[2,5] y) <float[5,7] w> { y = Gemm<transA = 1, transB = 1>(x, w) }",
        Work(2 * 5 * 7, 0),
    ),
    "MatMul of a batch": (
        "(float[3,2,7] x) => (float[3,2,5] y) <float[7,5] w> { y = MatMul(x, w) }",
        Work(3 * 2 * 5 * 7, 0),
    ),
    "BatchNormalization": (
        (
            "(float[2,3,4,4] x) => (float[2,3,4,4] y) <float[3] g, float[3] b, float[3] m, float[3] v>"
            "{ y = BatchNormalization(x, g, b, m, v) }"
        ),
        Work(0, 2 * 96),
    ),
    "LayerNormalization": (
        "(float[2,8] x) => (float[2,8] y) <float[8] g> { y = LayerNormalization(x, g) }",
        Work(0, 7 * 16),
    ),
    "activations and sums of two": (
        "(float[2,8] x) => (float[2,8] y) { a = Relu(x) b = Sigmoid(a) y = Add(a, b) }",
        Work(0, 3 * 16),
    ),
    "a sum that broadcasts": ("(float[1,8] x, float[2,1] z) => (float[2,8] y) { y = Mul(x, z) }", Work(0, 16)),
    "Sum, Mean and Max of three": (
        "(float[4] x, float[4] z) => (float[4] y) { a = Sum(x, z, x) b = Mean(a, z, x) y = Max(b, z, x) }",
        Work(0, 4 * (2 + 3 + 2)),
    ),
    "Softmax: exp, sum, quotient": ("(float[2,8] x) => (float[2,8] y) { y = Softmax(x) }", Work(0, 48)),
    "pooling: 9 taps each": (
        "(float[1,2,8,8] x) => (float[1,2,6,6] y) { a = MaxPool<kernel_shape = [3,3]>(x) y = Identity(a) }",
        Work(0, 2 * 36 * 9),
    ),
    "AveragePool": (
        "(float[1,2,8,8] x) => (float[1,2,4,4] y) { y = AveragePool<kernel_shape = [2,2], strides = [2,2]>(x) }",
        Work(0, 2 * 16 * 4),
    ),
    "GlobalAveragePool: sums, then quotients": (
        "(float[1,2,8,8] x) => (float[1,2,1,1] y) { y = GlobalAveragePool(x) }",
        Work(0, 128 + 2),
    ),
    "ReduceSum over all": ("(float[2,8] x) => (float y) { y = ReduceSum<keepdims = 0>(x) }", Work(0, 16)),
    "Resize, nearest": (
        "(float[1,2,4,4] x) => (float[1,2,8,8] y) <float[4] s = {1,1,2,2}> { y = Resize(x, , s) }",
        Work(0, 0),
    ),
    "Resize, linear: 4 taps with their weights": (
        '(float[1,2,4,4] x) => (float[1,2,8,8] y) <float[4] s = {1,1,2,2}> { y = Resize<mode = "linear">(x, , s) }',
        Work(0, 2 * 4 * 128),
    ),
    "Resize, cubic along one axis": (
        '(float[1,2,4,4] x) => (float[1,2,4,8] y) <float[4] s = {1,1,1,2}> { y = Resize<mode = "cubic">(x, , s) }',
        Work(0, 2 * 4 * 64),
    ),
    "what moves, picks, casts or compares": (
        (
            "(float[2,8] x) => (bool[8,2] y) <int64[1] s = {0}, int64[1] e = {8}>"
            "{ a = Transpose(x) b = Concat<axis = 0>(a, a) c = Slice(b, s, e)"
            " d = Cast<to = 11>(c) z = Cast<to = 11>(a) y = Greater(d, z) }"
        ),
        Work(0, 0),
    ),
    "arithmetic of shapes": (
        (
            "(float[2,8] x) => (float[16] y) { s = Shape(x) n = ReduceProd<keepdims = 1>(s) m = Mul(n, n)"
            " y = Reshape(x, n) }"
        ),
        Work(0, 0),
    ),
    "Conv of float16": (
        "(float16[1,1,4,4] x) => (float16[1,1,3,3] y) <float16[1,1,2,2] w> { y = Conv(x, w) }",
        Work(9 * 4, 0),
    ),
    "DequantizeLinear": (
        "(int8[4] x) => (float[4] y) <float s = {0.5}> { y = DequantizeLinear(x, s) }",
        Work(0, 8),
    ),
    "a function, once for each call": (
        """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        f (float[2,8] x) => (float[2,8] y) { a = own.twice(x) y = own.twice(a) }
        <domain: "own", opset_import: ["" : 17]> twice (a) => (c) { b = Relu(a) c = Sigmoid(b) }""",
        Work(0, 4 * 16),
    ),
}


@pytest.mark.parametrize(("text", "work"), BY_HAND.values(), ids=BY_HAND.keys())
def test_an_operator_is_counted_as_by_hand(text: str, work: Work) -> None:
    found = count(text)
    assert (found.work, found.uncounted, found.unknown) == (work, (), "")


def test_no_operator_is_both_counted_and_free() -> None:
    assert not ARITHMETIC & FREE
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain in {"", "ai.onnx"}}
    assert known >= ARITHMETIC | FREE, "a name that no operator has"


#: Published multiply-adds in 1e9 at 224x224, without biases: He et al. 2015 and torchvision's table of models.
PUBLISHED = {"resnet50": 4.09, "mobilenet_v2": 0.30, "densenet121": 2.83}


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "densenet121"])
def test_the_multiply_adds_of_a_network_are_those_that_are_published(name: str) -> None:
    if name == "mobilenet_v2":
        model = ir.from_proto(export_torchscript(torchvision_network(name).eval(), torch.zeros(2, 3, 64, 64)))
    else:
        model = ir.from_proto(load(name).proto)
    found = count_flops(model, {"image": (1, 3, 224, 224)})
    assert found.work is not None
    assert found.uncounted == ()
    assert found.work.multiply_adds / 1e9 == pytest.approx(PUBLISHED[name], abs=0.006)
    assert found.work.multiply_adds > 10 * found.work.others


def test_a_second_sample_is_as_much_again() -> None:
    model = ir.from_proto(load("resnet50").proto)
    one, two = (count_flops(model, {"image": (n, 3, 64, 64)}).work for n in (1, 2))
    assert one is not None
    assert two == one + one


def test_a_size_that_is_open_makes_the_figure_unknown_and_a_given_one_known() -> None:
    text = "(float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w> { y = Conv(x, w) }"
    assert count(text) == Flops(None, unknown="the model leaves the size of x open, and no size was given")
    assert count(text, x=(5, 3, 8, 8)).work == Work(5 * 4 * 36 * 27)


def test_sizes_that_the_model_computes_from_those_of_its_inputs_are_followed() -> None:
    """As exporters write `x.view(x.shape[0], -1)`, and once more behind it."""
    flatten = (
        "s{0} = Shape({1}) n{0} = Gather(s{0}, zero) u{0} = Unsqueeze(n{0}, axes) t{0} = Concat<axis = 0>(u{0}, rest)"
        " {2} = Reshape({1}, t{0})"
    )
    found = count(
        "(float[N,3,4,4] x) => (float[N,5] y) <float[48,7] v, float[7,5] w, int64 zero = {0}, int64[1] axes = {0},"
        f" int64[1] rest = {{-1}}> {{ {flatten.format(1, 'x', 'a')} b = MatMul(a, v) {flatten.format(2, 'b', 'c')}"
        " y = Gemm(c, w) }",
        x=(2, 3, 4, 4),
    )
    assert found.work == Work(2 * 7 * 48 + 2 * 5 * 7)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_counted_whole_and_the_folded_one_computes_no_more(name: str) -> None:
    model = ir.from_proto(load(name).proto)
    size = NETWORKS[name].size
    sizes = {"image": (2, 3, size, size)}
    old, new = (count_flops(m, sizes) for m in (model, bnfold.fold(model, verify=False).model))
    assert (old.uncounted, old.unknown, new.uncounted, new.unknown) == ((), "", (), "")
    assert old.work is not None
    assert new.work is not None
    assert new.work.flops < old.work.flops


def test_both_exporters_write_the_same_multiply_adds() -> None:
    pairs = [(name.removesuffix("_dynamo"), name) for name in NETWORKS if name.endswith("_dynamo")]
    assert len(pairs) >= 3
    for pair in pairs:
        one, other = (count_flops(ir.from_proto(load(name).proto), {"image": (2, 3, 64, 64)}).work for name in pair)
        assert one is not None
        assert other is not None
        assert one.multiply_adds == other.multiply_adds > 0


def test_a_convolution_whose_sizes_the_run_decides_makes_the_figure_unknown() -> None:
    found = count(
        "(float[2,3,8,8] x) => (float[a,4,b,c] y) <float[4,3,1,1] w>"
        "{ o = ReduceMax<keepdims = 1>(x) i = NonZero(x) t = Transpose(i) g = GatherND(x, t) s = Shape(g)"
        " one = Constant<value_ints = [1, 3, 1]>() z = Concat<axis = 0>(one, s) r = Expand(o, z)"
        " [last] y = Conv(r, w) }"
    )
    assert found.work is None
    assert found.unknown == "the sizes of last are known at run time only"


def test_other_operators_without_a_size_are_listed_and_the_rest_is_counted() -> None:
    found = count(
        "(float[2,8] x) => (float[a] y, float[2,8] z) { z = Relu(x) i = NonZero(x) t = Transpose(i)"
        " g = GatherND(x, t) y = Sigmoid(g) }"
    )
    assert found.work == Work(0, 16)
    assert found.uncounted == (Uncounted("Sigmoid", 1, "its sizes are known at run time only"),)


def test_bodies_and_unknown_operators_are_listed_and_not_counted() -> None:
    found = count(
        """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        f (float[2,8] x, bool c) => (float[2,8] y, float[2,8] z) {
          a = Relu(x) z = own.Odd(a) b = Einsum<equation = "ij->ij">(a)
          y = If(c) <then_branch = t () => (p) { p = Exp(a) }, else_branch = e () => (q) { q = Log(b) }>
        }"""
    )
    assert found.work == Work(0, 16)
    assert [(entry.operator, entry.number) for entry in found.uncounted] == [("Einsum", 1), ("If", 1), ("own::Odd", 1)]
