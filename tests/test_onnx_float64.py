from __future__ import annotations

from math import prod

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx_cases import (
    FLOAT32,
    Array,
    assert_close,
    by_onnxruntime,
    floats,
    integers,
    normal,
    one_node,
)

from bnfold.errors import BnfoldError, DataError, ModelError
from bnfold.frontends.onnx_float64 import evaluate, in_float64


def parsed(text: str) -> ModelProto:
    return onnx.parser.parse_model(text)


def test_values_become_the_exact_doubles_of_the_stored_numbers() -> None:
    stored = {
        "f": np.array([0.1], np.float32),
        "h": np.array([0.1], np.float16),
        "b": np.array([0.1], ml_dtypes.bfloat16),
        "d": np.array([0.1], np.float64),
        "i": np.array([3], np.int64),
        "q": np.array([0.5], ml_dtypes.float8_e4m3fn),
    }
    graph = helper.make_graph([], "g", [], [], [numpy_helper.from_array(v, k) for k, v in stored.items()])
    wide = {t.name: numpy_helper.to_array(t) for t in in_float64(helper.make_model(graph)).graph.initializer}
    for name in "fhbd":
        assert wide[name].dtype == np.float64
        assert wide[name][0] == np.float64(stored[name][0])
    assert wide["i"].dtype == np.int64
    assert wide["q"].dtype == ml_dtypes.float8_e4m3fn


def test_every_place_that_names_a_float_type_becomes_double() -> None:
    model = parsed("""
        <ir_version: 10, opset_import: ["": 21]>
        g (float16[2] x, int64[1] n, bool c) => (float[2] y, float[2] z, int32[2] k, float[2] r)
        <float[2] inner> {
            a = Constant <value_float: float = 0.1> ()
            b = Constant <value_floats: floats = [0.1, 0.2]> ()
            s = ConstantOfShape (n)
            t = ConstantOfShape <value: tensor = float[1] {2.5}> (n)
            x32 = Cast <to: int = 1> (x)
            k = Cast <to: int = 6> (x)
            h = Cast <to: int = 16> (v)
            e = EyeLike <dtype: int = 1> (m)
            r = RandomNormal <shape: ints = [2]> ()
            m = Constant <value: tensor = int64[2,2] {1,2,3,4}> ()
            inner = Add (x32, b)
            sum = Sum (inner, a, v, s, t, h)
            z = If (c) <
                then_branch = th () => (float[2] o) { w = Constant <value_float: float = 0.1> ()  o = Mul (sum, w) },
                else_branch = el () => (float[2] o) { o = Neg (sum) }
            >
            y = Identity (sum)
        }
    """)
    half = numpy_helper.from_array(np.array([0.5], np.float16))
    model.graph.node.append(helper.make_node("Constant", [], ["v"], value=half))
    nodes = {n.output[0]: n for n in model.graph.node}
    order = ["a", "b", "v", "s", "t", "x32", "k", "h", "m", "e", "r", "inner", "sum", "z", "y"]
    del model.graph.node[:]
    model.graph.node.extend(nodes[name] for name in order)
    x = np.array([1.0, -2.0], np.float16)
    feeds = {"x": x, "n": integers(2), "c": np.array(True)}
    got = evaluate(in_float64(model), feeds, ["y", "z", "k", "e", "r", "a", "s", "t", "h"])
    tenth = np.float64(np.float32(0.1))
    total = np.float64(x) + [tenth, np.float64(np.float32(0.2))] + tenth + 0.5 + 0.0 + 2.5 + 0.5
    np.testing.assert_allclose(got["y"], total, rtol=1e-15)
    np.testing.assert_allclose(got["z"], total * tenth, rtol=1e-15)
    assert got["k"].dtype == np.int32
    assert {n: v.dtype for n, v in got.items() if v.dtype != np.float64} == {"k": np.dtype(np.int32)}
    assert got["a"].shape == ()
    declared = {v.name: v.type.tensor_type.elem_type for v in in_float64(model).graph.output}
    assert declared == {"y": 11, "z": 11, "k": 6, "r": 11}


def test_the_original_is_not_changed() -> None:
    model = one_node("Relu", [normal(0, 2)], 13)
    before = model.SerializeToString()
    in_float64(model)
    assert model.SerializeToString() == before


def test_float_attributes_are_read_as_the_double_of_the_stored_float32() -> None:
    x = np.array([-1.0])
    got = evaluate(in_float64(one_node("LeakyRelu", [x], 16, alpha=0.1)), {"x0": x})["y0"]
    assert got[0] == -np.float64(np.float32(0.1))


def refused() -> dict[str, tuple[ModelProto, str]]:
    def complex_tensor() -> ModelProto:
        tensor = numpy_helper.from_array(np.ones(1, np.complex64), "c")
        return helper.make_model(helper.make_graph([], "g", [], [], [tensor]))

    def external() -> ModelProto:
        tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
        return helper.make_model(helper.make_graph([], "g", [], [], [tensor]))

    def sparse() -> ModelProto:
        values = numpy_helper.from_array(np.ones(1, np.float32), "s")
        tensor = helper.make_sparse_tensor(values, numpy_helper.from_array(integers(1), "at"), [4])
        return helper.make_model(helper.make_graph([], "g", [], [], sparse_initializer=[tensor]))

    dynamic = one_node("DynamicQuantizeLinear", [normal(0, 2)], 13, 3)
    return {
        "complex": (complex_tensor(), "c: complex"),
        "external": (external(), "w: the weights are in another file; load the model with its external data"),
        "sparse": (sparse(), "s: sparse"),
        "quantised": (dynamic, "the_node: DynamicQuantizeLinear cannot be computed in float64"),
    }


@pytest.mark.parametrize("case", refused().values(), ids=refused())
def test_what_cannot_be_rewritten_truthfully_is_refused(case: tuple[ModelProto, str]) -> None:
    with pytest.raises(ModelError, match=case[1]):
        in_float64(case[0])


CHAIN = """
    <ir_version: 8, opset_import: ["": 17]>
    g (float[2] x) => (float[2] y) <float[2] w = {2.0, 3.0}> {
        a = Mul (x, w)
        b = Neg (a)
        y = Relu (b)
    }
"""


def test_any_inner_tensor_can_be_asked_for() -> None:
    got = evaluate(in_float64(parsed(CHAIN)), {"x": np.array([-1.0, 1.0])}, ["b", "x", "w"])
    assert {k: v.tolist() for k, v in got.items()} == {"b": [2.0, -3.0], "x": [-1.0, 1.0], "w": [2.0, 3.0]}


def test_a_float_feed_is_widened_where_the_model_is_double() -> None:
    assert evaluate(in_float64(parsed(CHAIN)), {"x": floats(-0.1, 1)})["y"][0] == 2 * np.float64(np.float32(0.1))
    narrow = np.array([-0.5, 1], ml_dtypes.bfloat16)
    assert evaluate(in_float64(parsed(CHAIN)), {"x": narrow})["y"][0] == 1.0


@pytest.mark.parametrize(
    ("feeds", "outputs", "kind", "words"),
    {
        "missing": ({}, None, DataError, "x: the input has no value"),
        "unknown": ({"x": floats(1, 2), "z": floats(1)}, None, DataError, "z: the model has no such input"),
        "wrong dtype": ({"x": np.array([1, 2])}, None, DataError, "x: the input is float64, the value is int64"),
        "no such tensor": ({"x": floats(1, 2)}, ["q"], ModelError, "q: the model has no such tensor"),
    }.values(),
)
def test_a_contradictory_call_is_refused(
    feeds: dict[str, Array], outputs: list[str] | None, kind: type[BnfoldError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        evaluate(in_float64(parsed(CHAIN)), feeds, outputs)


def test_a_node_that_fails_is_named() -> None:
    model = one_node("Add", [normal(0, 2), normal(0, 3)], 14)
    with pytest.raises(ModelError, match="the_node: Add cannot be evaluated"):
        evaluate(model, {"x0": normal(0, 2), "x1": normal(0, 3)})


def test_an_unknown_operator_is_the_models_fault() -> None:
    model = one_node("FusedConv", [normal(0, 2)], 14, domain="com.microsoft")
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(ModelError, match="FusedConv"):
        evaluate(model, {"x0": normal(0, 2)})


def test_nodes_that_nobody_needs_are_not_run() -> None:
    model = parsed("""
        <ir_version: 8, opset_import: ["": 17, "com.example": 1]>
        g (float[2] x) => (float[2] y, float[2] z) { y = Neg (x)  z = com.example.Unknown (x) }
    """)
    assert evaluate(model, {"x": floats(1, 2)}, ["y"])["y"].tolist() == [-1.0, -2.0]


def test_an_initializer_that_is_also_an_input_has_its_value_or_the_fed_one() -> None:
    model = parsed(CHAIN)
    model.ir_version = 3
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2]))
    assert evaluate(in_float64(model), {"x": floats(-1, -1)})["y"].tolist() == [2.0, 3.0]
    assert evaluate(in_float64(model), {"x": floats(-1, -1), "w": floats(5, 5)})["y"].tolist() == [5.0, 5.0]


def test_functions_keep_their_attributes_and_their_defaults() -> None:
    model = parsed("""
        <ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (float[1] x) => (float[1] y) <float[1] w = {2.0}> {
            t = Mul (x, w)
            u = local.f <a: float = 0.25> (t)
            y = local.outer (u)
        }
        <domain: "local", opset_import: ["": 17]>
        f <a: float = 0.5> (x) => (y) { t = LeakyRelu <alpha: float = @a> (x)  y = Identity (t) }
        <domain: "local", opset_import: ["": 17, "local": 1]>
        outer (x) => (y) { y = local.f (x) }
    """)
    got = evaluate(in_float64(model), {"x": floats(-1)}, ["t", "u", "y"])
    assert [got[k].tolist() for k in "tuy"] == [[-2.0], [-0.5], [-0.25]]
    assert evaluate(model, {"x": floats(-1)})["y"].dtype == np.float32


def test_bodies_of_loops_read_outer_values_that_stay_alive() -> None:
    model = parsed("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[2] x, int64 n, bool go) => (float[2] y) {
            w = Neg (x)
            start = Identity (x)
            y = Loop (n, go, start) <body = b (int64 i, bool c, float[2] s) => (bool d, float[2] r) {
                d = Identity (c)
                r = Add (s, w)
            }>
        }
    """)
    feeds = {"x": floats(1, 2), "n": np.array(3), "go": np.array(True)}
    got = evaluate(in_float64(model), feeds)["y"]
    assert got.dtype == np.float64
    assert got.tolist() == [-2.0, -4.0]


def test_infinities_and_overflow_are_values_and_not_warnings() -> None:
    x = np.array([-1000.0, 1000.0])
    assert evaluate(one_node("Sigmoid", [x], 13), {"x0": x})["y0"].tolist() == [0.0, 1.0]
    zero = np.zeros(2)
    assert evaluate(one_node("Div", [x, zero], 13), {"x0": x, "x1": zero})["y0"].tolist() == [-np.inf, np.inf]


def test_a_small_network_in_float64_agrees_with_onnxruntime_and_is_far_more_accurate_than_float32() -> None:
    rng = np.random.default_rng(0)
    weights = {"w1": (8, 3, 3, 3), "w2": (8, 1, 3, 3), "w3": (4, 8, 1, 1), "g": (8,), "b": (8,), "m": (8,), "f": (5, 4)}
    tensors = {k: (rng.normal(size=s) / np.sqrt(max(1, prod(s[1:])))).astype(np.float32) for k, s in weights.items()}
    tensors["v"] = rng.uniform(0.5, 2, 8).astype(np.float32)
    model = parsed("""
        <ir_version: 8, opset_import: ["": 13]>
        g (float[N,3,H,W] x) => (float[N,5] y) {
            a = Conv <strides: ints = [2, 2], pads: ints = [1, 1, 1, 1]> (x, w1)
            n = BatchNormalization <epsilon: float = 0.001> (a, g, b, m, v)
            r = Relu (n)
            p = MaxPool <kernel_shape: ints = [3, 3], strides: ints = [2, 2], ceil_mode: int = 1> (r)
            d = Conv <group: int = 8, auto_pad: string = "SAME_LOWER"> (p, w2)
            e = Add (d, p)
            c = Conv (e, w3)
            q = GlobalAveragePool (c)
            l = Flatten (q)
            y = Gemm <transB: int = 1> (l, f)
        }
    """)
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in tensors.items())
    x = rng.normal(size=(2, 3, 21, 17)).astype(np.float32)
    exact = evaluate(in_float64(model), {"x": x})["y"]
    assert_close(exact, by_onnxruntime(model, {"x": x})[0], FLOAT32)
    single = evaluate(model, {"x": x})["y"]
    assert single.dtype == np.float32
    assert 0 < np.abs(single - exact).max() < FLOAT32
