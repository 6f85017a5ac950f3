"""`reduce=True` through ONNX: the scale moves on, exactly even with zero padding, and an Add is left."""

from __future__ import annotations

import pytest
from onnx_models import NEWEST, PARAMETERS, STATS, assert_fold, ops, parse

from bnfold.decision import Reason

POSITIVE = {"gamma": 1.3}


def before(node: str, dtype: str = "float") -> str:
    """BatchNorm, `node` from b to r, and a Conv with zero padding."""
    parameters = PARAMETERS.replace("float", dtype)
    return f"""({dtype}[N,4,8,8] x) => ({dtype}[N,3,8,8] y) <{dtype}[3,4,3,3] w, {parameters}>
        {{ b = BatchNormalization(x, {STATS}) {node} y = Conv <pads=[1,1,1,1]> (r, w) }}"""


@pytest.mark.parametrize("opset", [7, 14, NEWEST])
@pytest.mark.parametrize(
    "node", ["r = Identity(b)", "r = Relu(b)", "r = MaxPool <kernel_shape=[3,3], pads=[1,1,1,1]> (b)"]
)
def test_an_add_is_left_before_padding_and_activations(node: str, opset: int) -> None:
    stops = "Relu" in node and opset < 8  # where Relu could not become a Max
    reason = Reason.SHIFT_MEETS_ACTIVATION if stops else Reason.SHIFT_MEETS_PADDING
    result = assert_fold(parse(before(node), opset=opset, values=POSITIVE), folded=0, kept=[reason], reduce=True)
    assert ops(result.model)[0] == "Add"
    assert "BatchNormalization" not in ops(result.model)
    assert_fold(parse(before(node), opset=opset, values=POSITIVE), folded=0, kept=[reason])  # nothing without leave


def test_the_add_has_the_dtype_of_the_model() -> None:
    model = parse(before("r = Relu(b)", "float16"), values=POSITIVE)
    result = assert_fold(model, folded=0, kept=[Reason.SHIFT_MEETS_PADDING], reduce=True)
    added = next(node for node in result.model.graph if node.op_type == "Add").inputs[1]
    assert added is not None
    assert added.const_value is not None
    assert added.const_value.dtype.name == "FLOAT16"
    assert added.const_value.shape.numpy() == (4, 1, 1)


def test_scales_of_both_signs_do_not_pass_an_activation() -> None:
    model = parse(before("r = LeakyRelu(b)"), values={"gamma": -1.3})
    result = assert_fold(model, folded=0, kept=[Reason.SHIFT_MEETS_ACTIVATION], reduce=True)
    assert ops(result.model)[0] == "BatchNormalization"
    model = parse(before("r = Relu(b)"), values={"gamma": [-1.3, 1, 1, 1]})
    result = assert_fold(model, folded=0, kept=[Reason.SHIFT_MEETS_PADDING], reduce=True)
    assert ops(result.model)[0] == "BatchNormalization"


def test_negative_scales_in_all_channels_pass_a_relu_which_becomes_a_clip_from_above() -> None:
    model = parse(before("r = Relu(b)"), values={"gamma": -1.3})
    result = assert_fold(model, folded=0, kept=[Reason.SHIFT_MEETS_PADDING], reduce=True)
    assert ops(result.model) == ["Add", "Clip", "Conv"]


def test_a_shift_that_a_shortcut_need_not_take_leaves_nothing_and_every_name_tells_the_truth() -> None:
    text = f"""(float[N,4,8,8] x) => (float[N,3,8,8] y) <float[4,4,1,1] v, float[3,4,3,3] w, {PARAMETERS}>
        {{ c = Conv(x, v) g = Sigmoid(x) s = Add(c, g) b = BatchNormalization(s, {STATS}) r = Relu(b)
           y = Conv <pads=[1,1,1,1]> (r, w) }}"""
    result = assert_fold(parse(text, values=POSITIVE), folded=1)
    assert ops(result.model) == ["Conv", "Sigmoid", "Add", "Relu", "Conv"]
    assert not {"c", "s", "b", "r"} & {v.name for node in result.model.graph for v in node.outputs}
