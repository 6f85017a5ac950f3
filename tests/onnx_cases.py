"""Models of one node, and the judges that our kernels are compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from hypothesis import assume
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

from bnfold.frontends.onnx_float64 import evaluate, in_float64

Array = np.ndarray[Any, Any]

FLOAT32 = 1e-5  # relative to the largest element, against onnxruntime in float32
FLOAT64 = 1e-12  # relative to the largest element, against torch in float64


def one_node(op_type: str, inputs: list[Array | None], opset: int, outputs: int = 1, **attributes: Any) -> ModelProto:
    """A model of one node with an input for each array; None is an input left out."""
    names = ["" if v is None else f"x{i}" for i, v in enumerate(inputs)]
    fed = [(n, v) for n, v in zip(names, inputs, strict=True) if v is not None]
    made = [f"y{i}" for i in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(op_type, names, made, name="the_node", **attributes)],
        "one",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in fed],
        [
            helper.make_tensor_value_info(n, TensorProto.INT64 if i else TensorProto.FLOAT, None)
            for i, n in enumerate(made)
        ],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])


def feeds_of(inputs: list[Array | None]) -> dict[str, Array]:
    return {f"x{i}": v for i, v in enumerate(inputs) if v is not None}


def by_onnxruntime(model: ModelProto, feeds: dict[str, Array]) -> list[Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(v) for v in session.run(None, feeds)]


def assert_close(ours: Array, theirs: Array, tolerance: float) -> None:
    assert ours.shape == theirs.shape
    scale = max(1e-3, float(np.abs(theirs).max(initial=0.0)))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale)


def assert_agrees(
    op_type: str, inputs: list[Array | None], opset: int = 19, outputs: int = 1, **attributes: Any
) -> Array:
    """Our float64 result equals onnxruntime's in float32, and is float64."""
    model = one_node(op_type, inputs, opset, outputs, **attributes)
    theirs = by_onnxruntime(model, feeds_of(inputs))
    ours = list(evaluate(in_float64(model), feeds_of(inputs)).values())
    for mine, other in zip(ours, theirs, strict=True):
        assert_close(mine, other, FLOAT32)
    assert ours[0].dtype == np.float64
    return ours[0]


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def floats(*values: float) -> Array:
    return np.array(values, dtype=np.float32)


def integers(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


@st.composite
def geometry(draw: st.DrawFn) -> dict[str, Any]:
    rank = draw(st.integers(1, 3))
    each = st.lists(st.integers(1, 3), min_size=rank, max_size=rank)
    found: dict[str, Any] = {
        "spatial": draw(st.lists(st.integers(4, 8), min_size=rank, max_size=rank)),
        "kernel": draw(each),
        "strides": draw(each),
        "dilations": draw(st.lists(st.integers(1, 2), min_size=rank, max_size=rank)),
        "auto_pad": draw(st.sampled_from(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"])),
        "pads": draw(st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank)),
        "group": draw(st.integers(1, 3)),
        "inner": draw(st.integers(1, 2)),
        "outer": draw(st.integers(1, 2)),
        "bias": draw(st.booleans()),
        "ceil_mode": draw(st.integers(0, 1)),
        "seed": draw(st.integers(0, 1000)),
    }
    extents = [d * (k - 1) + 1 for d, k in zip(found["dilations"], found["kernel"], strict=True)]
    if found["auto_pad"].startswith("SAME"):
        found["dilations"] = [1] * rank  # onnxruntime refuses it for Conv
        # and a stride beyond the kernel, which makes the padding negative, for pooling
        found["strides"] = [min(s, k) for s, k in zip(found["strides"], found["kernel"], strict=True)]
    assume(all(e <= n for e, n in zip(extents, found["spatial"], strict=True)))
    return found


def padding(g: dict[str, Any], pads: list[int]) -> dict[str, Any]:
    return {"pads": pads} if g["auto_pad"] == "NOTSET" else {"auto_pad": g["auto_pad"]}
