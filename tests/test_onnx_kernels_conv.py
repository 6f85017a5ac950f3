from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx_cases import (
    FLOAT64,
    Array,
    assert_agrees,
    assert_close,
    feeds_of,
    geometry,
    normal,
    one_node,
    padding,
)

from bnfold.errors import ModelError
from bnfold.frontends.onnx_float64 import evaluate, in_float64


def conv_case(g: dict[str, Any]) -> tuple[list[Array | None], dict[str, Any]]:
    x = normal(g["seed"], 2, g["group"] * g["inner"], *g["spatial"])
    w = normal(g["seed"] + 1, g["group"] * g["outer"], g["inner"], *g["kernel"])
    b = normal(g["seed"] + 2, g["group"] * g["outer"]) if g["bias"] else None
    return [x, w, b], {"group": g["group"], "strides": g["strides"], "dilations": g["dilations"]}


@given(geometry())
@settings(max_examples=120, deadline=None)
def test_conv_agrees_with_onnxruntime(g: dict[str, Any]) -> None:
    inputs, attributes = conv_case(g)
    assert_agrees("Conv", inputs, **attributes, **padding(g, g["pads"]))


@given(geometry())
@settings(max_examples=80, deadline=None)
def test_conv_agrees_with_torch_in_float64(g: dict[str, Any]) -> None:
    inputs, attributes = conv_case(g)
    rank = len(g["spatial"])
    pads = g["pads"][:rank] * 2
    x, w, b = (None if v is None else torch.from_numpy(v.astype(np.float64)) for v in inputs)
    conv = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)[rank - 1]
    theirs = conv(x, w, b, g["strides"], pads[:rank], g["dilations"], g["group"]).numpy()
    model = in_float64(one_node("Conv", inputs, 19, pads=pads, **attributes))
    assert_close(evaluate(model, feeds_of(inputs))["y0"], theirs, FLOAT64)


@given(geometry(), st.integers(0, 2), st.sampled_from(["none", "output_padding", "output_shape"]))
@settings(max_examples=150, deadline=None)
def test_conv_transpose_agrees_with_onnxruntime(g: dict[str, Any], more: int, extra: str) -> None:
    rank = len(g["spatial"])
    x = normal(g["seed"], 2, g["group"] * g["inner"], *g["spatial"])
    w = normal(g["seed"] + 1, g["group"] * g["inner"], g["outer"], *g["kernel"])
    b = normal(g["seed"] + 2, g["group"] * g["outer"]) if g["bias"] else None
    attributes = {"group": g["group"], "strides": g["strides"], "dilations": g["dilations"], **padding(g, g["pads"])}
    axes = list(zip(g["spatial"], g["strides"], g["dilations"], g["kernel"], strict=True))
    full = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in axes]
    if extra == "output_padding":
        attributes["output_padding"] = [min(more, s - 1) for _, s, _, _ in axes]
        if "pads" in attributes:
            attributes["pads"] = [min(p, 1) for p in attributes["pads"]]
    if extra == "output_shape":
        attributes.pop("pads", None)
        attributes["output_shape"] = [f - min(more, f - 1) for f in full]
    elif "pads" in attributes:
        pads = attributes["pads"]
        assume(all(f - pads[i] - pads[rank + i] >= 1 for i, f in enumerate(full)))
    assert_agrees("ConvTranspose", [x, w, b], **attributes)


@given(geometry(), st.integers(0, 1))
@settings(max_examples=80, deadline=None)
def test_conv_transpose_agrees_with_torch_in_float64(g: dict[str, Any], more: int) -> None:
    rank = len(g["spatial"])
    x = normal(g["seed"], 2, g["group"] * g["inner"], *g["spatial"]).astype(np.float64)
    w = normal(g["seed"] + 1, g["group"] * g["inner"], g["outer"], *g["kernel"]).astype(np.float64)
    pads = [min(p, 1) for p in g["pads"][:rank]]
    extra = [min(more, max(s, d) - 1) for s, d in zip(g["strides"], g["dilations"], strict=True)]
    names = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
    function = getattr(torch.nn.functional, names[rank - 1])
    sizes = [
        (n - 1) * s + d * (k - 1) + 1
        for n, s, d, k in zip(g["spatial"], g["strides"], g["dilations"], g["kernel"], strict=True)
    ]
    assume(all(n + e - 2 * p >= 1 for n, e, p in zip(sizes, extra, pads, strict=True)))
    theirs = function(
        torch.from_numpy(x), torch.from_numpy(w), None, g["strides"], pads, extra, g["group"], g["dilations"]
    ).numpy()
    attributes = {"group": g["group"], "strides": g["strides"], "dilations": g["dilations"], "output_padding": extra}
    model = in_float64(one_node("ConvTranspose", [x, w], 19, pads=pads * 2, **attributes))
    assert_close(evaluate(model, feeds_of([x, w]))["y0"], theirs, FLOAT64)


def test_a_large_conv_that_is_unfolded_in_slabs_equals_torch() -> None:
    x, w = normal(0, 1, 64, 130, 130).astype(np.float64), normal(1, 8, 64, 3, 3).astype(np.float64)
    assert 64 * 9 * 130 * 130 > 2 * (1 << 22)  # more than two slabs
    theirs = torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(w), padding=1).numpy()
    model = in_float64(one_node("Conv", [x, w], 17, pads=[1, 1, 1, 1]))
    assert_close(evaluate(model, {"x0": x, "x1": w})["y0"], theirs, FLOAT64)


def test_a_conv_whose_weights_do_not_fit_names_the_node() -> None:
    x, w = normal(0, 1, 3, 5, 5), normal(0, 2, 2, 3, 3)
    with pytest.raises(ModelError, match="the_node: weights"):
        evaluate(one_node("Conv", [x, w], 17), {"x0": x, "x1": w})
