"""Explicit pads: what auto_pad means, against onnxruntime's output sizes, and lists of the wrong length."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx_ir as ir
import pytest
from onnx_models import PARAMETERS, STATS, parse

import bnfold
from bnfold.frontends.onnx_windows import window
from bnfold.runtime import open_session

SIZES, KERNELS, STRIDES = (5, 6, 7), (1, 2, 3), (1, 2, 3)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_explicit_pads_give_what_auto_pad_gives(auto_pad: str) -> None:
    x = np.arange(7, dtype=np.float32)[None, None] + 1
    for size, kernel, stride in product(SIZES, KERNELS, STRIDES):
        text = f"""(float[1,1,{size}] x) => (float[A,B,C] y) <float[1,1,{kernel}] w>
            {{ y = Conv <ATTR, strides=[{stride}]> (x, w) }}"""
        model = parse(text.replace("ATTR", f'auto_pad="{auto_pad}"'))
        pads = window(ir.from_proto(model).graph[0], (kernel,), (1, 1, size)).pads
        assert pads is not None
        given = parse(text.replace("ATTR", f"pads={list(pads)}"))
        results = [open_session(m, "cpu").run(["y"], {"x": x[:, :, :size]})["y"] for m in (model, given)]
        assert np.array_equal(*results)


def test_pads_that_depend_on_an_unknown_size_are_unknown() -> None:
    model = parse(
        '(float[1,1,N] x) => (float[A,B,C] y) <float[1,1,3] w> { y = Conv <auto_pad="SAME_UPPER", strides=[2]> (x, w) }'
    )
    assert window(ir.from_proto(model).graph[0], (3,), (1, 1, "N")).pads is None
    assert not window(ir.from_proto(model).graph[0], (3,), (1, 1, "N")).is_unpadded
    assert window(ir.from_proto(model).graph[0], (3,), None).pads is None


@pytest.mark.parametrize("attribute", ["strides=[1]", "dilations=[1,1,1]", "pads=[1,1]"])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "MaxPool"])
def test_a_list_of_the_wrong_length_is_a_model_error(op: str, attribute: str) -> None:
    node = f"MaxPool <kernel_shape=[2,2], {attribute}> (x)" if op == "MaxPool" else f"{op} <{attribute}> (x, w)"
    text = f"""(float[N,4,8,8] x) => (float[A,B,C,D] y) <float[4,4,2,2] w, {PARAMETERS}>
        {{ c = {node} y = BatchNormalization(c, {STATS}) }}"""
    with pytest.raises(bnfold.ModelError, match=r"c: (strides|dilations|pads) has \d entries and needs \d"):
        bnfold.inspect(ir.from_proto(parse(text)))


def test_a_pool_over_the_wrong_number_of_axes_is_a_model_error() -> None:
    text = f"""(float[N,4,8] x) => (float[N,4,7] y) <{PARAMETERS}>
        {{ c = MaxPool <kernel_shape=[2,2]> (x) y = BatchNormalization(c, {STATS}) }}"""
    with pytest.raises(bnfold.ModelError, match="a kernel of 2 axes for a value of 3"):
        bnfold.inspect(ir.from_proto(parse(text)))
