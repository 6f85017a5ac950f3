from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx_cases import (
    FLOAT64,
    Array,
    assert_agrees,
    assert_close,
    feeds_of,
    floats,
    integers,
    normal,
    one_node,
)

from bnfold.frontends.onnx_float64 import evaluate, in_float64

OPSETS = [7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 21]


def norm_parameters(*shape: int) -> list[Array | None]:
    return [normal(1, *shape), normal(2, *shape), normal(3, *shape), np.abs(normal(4, *shape)) + floats(0.1)]


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (2, 3, 4, 5), (2, 3, 2, 2, 2)])
def test_batch_normalization_uses_the_given_statistics_at_every_opset(opset: int, shape: tuple[int, ...]) -> None:
    for attributes in ({}, {"epsilon": 0.01, "momentum": 0.5}):
        assert_agrees("BatchNormalization", [normal(0, *shape), *norm_parameters(3)], opset, **attributes)


def test_batch_normalization_of_opset_7_may_have_parameters_per_element() -> None:
    assert_agrees("BatchNormalization", [normal(0, 2, 3, 4, 5), *norm_parameters(3)], 7, spatial=1)
    assert_agrees("BatchNormalization", [normal(0, 2, 3, 4, 5), *norm_parameters(3, 4, 5)], 7, spatial=0)


def test_batch_normalization_in_training_mode_uses_the_statistics_of_the_batch() -> None:
    x = normal(0, 4, 3, 5)
    inputs = [x, *norm_parameters(3)]
    model = in_float64(one_node("BatchNormalization", inputs, 15, 3, training_mode=1, momentum=0.75))
    got = evaluate(model, feeds_of(inputs))
    scale, bias, mean, var = (v.astype(np.float64) for v in inputs[1:] if v is not None)
    wide = x.astype(np.float64)
    unit = (wide - wide.mean((0, 2), keepdims=True)) / np.sqrt(wide.var((0, 2), keepdims=True) + np.float32(1e-5))
    np.testing.assert_allclose(got["y0"], unit * scale[:, None] + bias[:, None], rtol=1e-12)
    np.testing.assert_allclose(got["y1"], 0.75 * mean + 0.25 * wide.mean((0, 2)), rtol=1e-12)
    np.testing.assert_allclose(got["y2"], 0.75 * var + 0.25 * wide.var((0, 2)), rtol=1e-12)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax_means_what_its_opset_says(op_type: str, opset: int) -> None:
    for attributes in ({}, {"axis": 0}, {"axis": 1}, {"axis": -1}):
        assert_agrees(op_type, [normal(0, 2, 3, 4)], opset, **attributes)


def test_log_softmax_does_not_underflow() -> None:
    x = np.array([[0.0, -2000.0]])
    assert evaluate(in_float64(one_node("LogSoftmax", [x], 13)), {"x0": x})["y0"][0, 1] == -2000.0


@pytest.mark.parametrize("opset", OPSETS)
def test_squeeze_and_unsqueeze_take_axes_in_any_order(opset: int) -> None:
    x, y = normal(0, 2, 1, 3, 1), normal(0, 2, 3)
    assert_agrees("Squeeze", [x], opset)
    if opset < 13:
        assert_agrees("Squeeze", [x], opset, axes=[3, 1])
        assert_agrees("Unsqueeze", [y], opset, axes=[3, 0])
    else:
        assert_agrees("Squeeze", [x, integers(-1, 1)], opset)
        assert_agrees("Unsqueeze", [y, integers(3, 0)], opset)
    if opset in {11, 12}:
        assert_agrees("Squeeze", [normal(0, 2, 1, 1)], opset, axes=[-2, -1])


PAD_MODES = [(opset, mode) for opset in OPSETS for mode in ("constant", "reflect", "edge")]


@pytest.mark.parametrize(("opset", "mode"), [*PAD_MODES, (19, "wrap"), (21, "wrap")])
@pytest.mark.parametrize("pads", [[0, 0, 1, 2, 0, 0, 2, 1], [0, 0, -1, 2, 0, 0, 2, -1]], ids=["positive", "mixed"])
def test_pad_agrees_with_onnxruntime(opset: int, mode: str, pads: list[int]) -> None:
    x = normal(0, 2, 3, 4, 5)
    if opset < 11:
        assert_agrees("Pad", [x], opset, mode=mode, pads=pads, value=1.5)
        return
    fill = np.array(1.5, np.float32) if mode == "constant" else None
    assert_agrees("Pad", [x, integers(*pads), fill], opset, mode=mode)
    if opset >= 18:
        assert_agrees("Pad", [x, integers(2, 1, 0, 1), fill, integers(-1, 1)], opset, mode=mode)


@pytest.mark.parametrize("opset", OPSETS)
def test_lrn_reaches_over_the_channels(opset: int) -> None:
    for size in (1, 3, 5):  # onnxruntime takes odd sizes only
        assert_agrees("LRN", [normal(0, 4, 7, 3, 3)], opset, size=size, alpha=0.1, bias=2.0)


@pytest.mark.parametrize("transposed_a", [0, 1])
@pytest.mark.parametrize("transposed_b", [0, 1])
@pytest.mark.parametrize("opset", [7, 9, 11, 13, 19])
def test_gemm_takes_every_shape_of_c(opset: int, transposed_a: int, transposed_b: int) -> None:
    a = normal(0, *((4, 3) if transposed_a else (3, 4)))
    b = normal(1, *((5, 4) if transposed_b else (4, 5)))
    for shape in ((), (5,), (1, 5), (3, 1), (3, 5)):
        options = {"alpha": 0.5, "beta": 0.3, "transA": transposed_a, "transB": transposed_b}
        assert_agrees("Gemm", [a, b, normal(2, *shape)], opset, **options)


SINGLE = {
    "GlobalMaxPool of rank 3": ("GlobalMaxPool", [(2, 3, 5)], 7, {}),
    "GlobalMaxPool of rank 5": ("GlobalMaxPool", [(2, 3, 5, 2, 3)], 7, {}),
    "GlobalAveragePool": ("GlobalAveragePool", [(2, 3, 5, 4)], 7, {}),
    "Flatten": ("Flatten", [(2, 3, 4)], 7, {"axis": 2}),
    "Dropout 7": ("Dropout", [(2, 3)], 7, {"ratio": 0.3}),
    "Dropout 12": ("Dropout", [(2, 3)], 12, {}),
    "Clip 6": ("Clip", [(4, 4)], 7, {"min": -0.5, "max": 0.5}),
    "Clip 11": ("Clip", [(4, 4), (), ()], 11, {}),
    "Concat": ("Concat", [(2, 3), (2, 4)], 7, {"axis": 1}),
    "PRelu": ("PRelu", [(2, 3, 4, 4), (3, 1, 1)], 7, {}),
    "LeakyRelu": ("LeakyRelu", [(9,)], 7, {"alpha": 0.2}),
    "ReduceMean 1": ("ReduceMean", [(2, 3, 4)], 7, {"axes": [1, 2], "keepdims": 0}),
    "InstanceNormalization": ("InstanceNormalization", [(2, 3, 4, 4), (3,), (3,)], 7, {}),
    "GroupNormalization 18": ("GroupNormalization", [(2, 4, 3, 3), (2,), (2,)], 18, {"num_groups": 2}),
    "GroupNormalization 21": ("GroupNormalization", [(2, 4, 3, 3), (4,), (4,)], 21, {"num_groups": 2}),
    "LayerNormalization": ("LayerNormalization", [(2, 3, 4), (4,), (4,)], 17, {}),
    "Erf": ("Erf", [(50,)], 9, {}),
    "Gelu, a function whose body needs Erf": ("Gelu", [(50,)], 20, {}),
    "DepthToSpace before it had a mode": ("DepthToSpace", [(1, 8, 2, 3)], 7, {"blocksize": 2}),
    "SpaceToDepth": ("SpaceToDepth", [(1, 2, 4, 6)], 7, {"blocksize": 2}),
    "Max of three": ("Max", [(2, 3), (2, 3), (2, 3)], 8, {}),
}


@pytest.mark.parametrize(("op_type", "shapes", "opset", "attributes"), SINGLE.values(), ids=SINGLE)
def test_an_operator_agrees_with_onnxruntime(
    op_type: str, shapes: list[tuple[int, ...]], opset: int, attributes: dict[str, Any]
) -> None:
    values: list[Array | None] = [normal(i, *shape) for i, shape in enumerate(shapes)]
    assert_agrees(op_type, values, opset, **attributes)


@pytest.mark.parametrize("op_type", ["Erf", "Gelu", "GroupNormalization"])
def test_no_operator_detours_through_float32(op_type: str) -> None:
    x = normal(0, 2, 4, 3, 3).astype(np.float64)
    inputs: list[Array | None] = [x]
    attributes: dict[str, Any] = {}
    if op_type == "GroupNormalization":
        inputs, attributes = [x, np.ones(4), np.zeros(4)], {"num_groups": 2, "epsilon": 0.0}
    tensor = torch.from_numpy(x)
    theirs = {
        "Erf": torch.erf(tensor),
        "Gelu": torch.nn.functional.gelu(tensor),
        "GroupNormalization": torch.nn.functional.group_norm(tensor, 2, eps=0.0),
    }[op_type]
    model = in_float64(one_node(op_type, inputs, 21, **attributes))
    assert_close(evaluate(model, feeds_of(inputs))["y0"], theirs.numpy(), FLOAT64)


def test_dequantize_linear_is_exact_per_tensor_per_axis_and_per_block() -> None:
    codes = np.random.default_rng(0).integers(-100, 100, (4, 6)).astype(np.int8)
    assert_agrees("DequantizeLinear", [codes, floats(0.1, 0.2, 0.3, 0.4), np.arange(4, dtype=np.int8)], 13, axis=0)
    assert_agrees("DequantizeLinear", [codes, np.array(0.1, np.float32), np.array(3, np.int8)], 10)
    assert_agrees("DequantizeLinear", [codes, np.abs(normal(0, 4, 2))], 21, axis=1, block_size=3)
    large = np.array([2**31 - 1], dtype=np.int32)  # float32 cannot hold it
    inputs: list[Array | None] = [large, np.array(1.0, np.float32)]
    got = evaluate(in_float64(one_node("DequantizeLinear", inputs, 13)), feeds_of(inputs))["y0"]
    assert got[0] == 2**31 - 1
