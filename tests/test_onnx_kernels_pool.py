from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_cases import (
    FLOAT64,
    Array,
    assert_agrees,
    assert_close,
    geometry,
    normal,
    one_node,
    padding,
)

from bnfold.errors import ModelError
from bnfold.frontends.onnx_float64 import evaluate, in_float64


def pool_case(g: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
    pads = [min(p, k - 1) for p, k in zip(g["pads"], g["kernel"] * 2, strict=True)]
    attributes = {"kernel_shape": g["kernel"], "strides": g["strides"], "ceil_mode": g["ceil_mode"], **padding(g, pads)}
    return normal(g["seed"], 2, 3, *g["spatial"]), attributes


@given(geometry(), st.integers(1, 2))
@settings(max_examples=120, deadline=None)
def test_max_pool_and_its_indices_agree_with_onnxruntime(g: dict[str, Any], outputs: int) -> None:
    x, attributes = pool_case(g)
    assert_agrees("MaxPool", [x], outputs=outputs, dilations=g["dilations"], **attributes)


@given(geometry(), st.integers(0, 1), st.booleans())
@settings(max_examples=120, deadline=None)
def test_average_pool_agrees_with_onnxruntime(g: dict[str, Any], include: int, dilated: bool) -> None:
    x, attributes = pool_case(g)
    if dilated:
        attributes["dilations"] = g["dilations"]
    assert_agrees("AveragePool", [x], opset=19 if dilated else 11, count_include_pad=include, **attributes)


@given(geometry(), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_lp_pool_agrees_with_onnxruntime(g: dict[str, Any], p: int) -> None:
    x, attributes = pool_case(g)
    assert_agrees("LpPool", [x], opset=18, p=p, dilations=g["dilations"], **attributes)


@given(geometry(), st.booleans(), st.booleans())
@settings(max_examples=80, deadline=None)
def test_pooling_agrees_with_torch_in_float64(g: dict[str, Any], average: bool, include: bool) -> None:
    rank, x = len(g["spatial"]), normal(g["seed"], 2, 3, *g["spatial"]).astype(np.float64)
    pads = [min(p, k // 2) for p, k in zip(g["pads"], g["kernel"], strict=False)]
    attributes: dict[str, Any] = {"kernel_shape": g["kernel"], "strides": g["strides"], "pads": pads * 2}
    attributes["ceil_mode"] = g["ceil_mode"]
    common = (torch.from_numpy(x), g["kernel"], g["strides"], pads)
    if average:
        function = getattr(torch.nn.functional, f"avg_pool{rank}d")
        theirs = function(*common, ceil_mode=bool(g["ceil_mode"]), count_include_pad=include)
        model = one_node("AveragePool", [x], 19, count_include_pad=int(include), **attributes)
    else:
        function = getattr(torch.nn.functional, f"max_pool{rank}d")
        theirs = function(*common, dilation=g["dilations"], ceil_mode=bool(g["ceil_mode"]))
        model = one_node("MaxPool", [x], 19, dilations=g["dilations"], **attributes)
    assert_close(evaluate(in_float64(model), {"x0": x})["y0"], theirs.numpy(), FLOAT64)


@pytest.mark.parametrize(
    ("op_type", "attributes", "words"),
    {
        "column-major indices": ("MaxPool", {"outputs": 2, "storage_order": 1}, "storage_order 1"),
        "dilated SAME": ("MaxPool", {"auto_pad": "SAME_UPPER", "dilations": [2, 2]}, "no agreed meaning"),
        "kernel beyond the input": ("AveragePool", {"dilations": [5, 5]}, "no window fits"),
        "negative pads": ("MaxPool", {"pads": [-1, 0, 0, 0]}, "negative pads"),
        "pads of another rank": ("MaxPool", {"pads": [1, 1]}, "do not fit 2 spatial axes"),
    }.values(),
)
def test_pooling_without_a_clear_meaning_is_refused(op_type: str, attributes: dict[str, Any], words: str) -> None:
    x = normal(0, 1, 1, 5, 5)
    attributes = {"opset": 19, "kernel_shape": [2, 2], **attributes}
    with pytest.raises(ModelError, match=f"the_node: .*{words}"):
        evaluate(in_float64(one_node(op_type, [x], **attributes)), {"x0": x})


def test_of_equal_elements_the_first_is_the_largest() -> None:
    x = np.random.default_rng(0).integers(0, 2, (2, 3, 6, 7)).astype(np.float32)
    assert_agrees("MaxPool", [x], outputs=2, kernel_shape=[3, 3], strides=[1, 2], pads=[1, 1, 1, 1])
