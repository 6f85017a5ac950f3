"""Rounding reaches what is computed from floating-point inputs, and decisions are where it jumps."""

from __future__ import annotations

import onnx
import pytest
from onnx import helper, parser

from bnfold.dataflow import (
    coarser,
    coarsest_of,
    coarsest_types,
    computed_alike,
    descendants,
    floating_nodes,
    infer_types,
    last_before,
    trace,
)

GRAPH = """<ir_version: 8, opset_import: ["": 17]>
net (float[N,4] x, int64[N] ids) => (int64[K] where, float[N,4] y, float[M] z)
<float[10,4] table = {{{}}}, float16[4] half = {{1,1,1,1}}> {{
  h = Relu(x)
  halved = Cast<to = 10>(h)
  product = Mul(halved, half)
  y = Cast<to = 1>(product)
  positive = Greater(h, x)
  where = NonZero(positive)
  s = Shape(x)
  sf = Cast<to = 1>(s)
  sr = Floor(sf)
  same = Equal(ids, ids)
  rows = Gather(table, ids)
  one = Constant<value_float = 1.5>()
  floored = Floor(one)
  z = ReduceSum<keepdims = 0>(rows)
}}""".format(",".join("1" * 40))


def test_the_inputs_are_followed_through_the_graph() -> None:
    model = parser.parse_model(GRAPH)
    flow = trace(model.graph, infer_types(model))
    assert flow.inexact == {"x", "h", "halved", "product", "y", "positive", "where", "rows", "z"}
    assert [model.graph.node[place].op_type for place in flow.decisions] == ["Greater"]
    assert (flow.coarsest["h"], flow.coarsest["y"], flow.coarsest["rows"]) == ("float32", "float16", "float32")


@pytest.mark.parametrize(("name", "expected"), [("where", ("h", "x")), ("y", ("h",)), ("s", ("x",)), ("floored", ())])
def test_the_last_values_before_another_are_found(name: str, expected: tuple[str, ...]) -> None:
    assert last_before(parser.parse_model(GRAPH).graph, name, frozenset({"h", "x"})) == expected


def test_descendants_go_through_bodies() -> None:
    body = helper.make_graph(
        [helper.make_node("Neg", ["a"], ["n"])], "body", [], [helper.make_tensor_value_info("n", 1, None)]
    )
    nodes = [helper.make_node("Relu", ["x"], ["a"]),
             helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body),
             helper.make_node("Neg", ["c2"], ["other"])]  # fmt: skip
    graph = helper.make_graph(nodes, "g", [], [])
    assert descendants(graph, {"x"}) == {"x", "a", "y"}


def test_types_are_known_without_the_weights_values_and_custom_operators_stay_unknown() -> None:
    model = parser.parse_model(GRAPH)
    model.graph.initializer[0].ClearField("float_data")
    model.graph.node.append(helper.make_node("Blur", ["h"], ["blurred"], domain="my.domain"))
    assert infer_types(model)["where"] == "int64"  # without an import of its domain nothing is inferred
    model.opset_import.append(helper.make_opsetid("my.domain", 1))
    types = infer_types(model)
    assert (types["product"], types["where"], types["positive"]) == ("float16", "int64", "bool")
    assert "blurred" not in types
    assert "blurred" in trace(model.graph, types).inexact


def test_values_are_computed_alike_only_by_the_same_nodes_from_the_same_constants() -> None:
    def graph(nodes: str, constant: float = 2) -> onnx.GraphProto:
        text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y)
            <float[2] c = {{{{{constant}, 3}}}}> {{{{ {nodes} }}}}"""
        return parser.parse_model(text.replace("{{", "{").replace("}}", "}")).graph

    same = graph("a = Mul(x, c) b = Relu(a) y = Neg(b)")
    assert computed_alike(same, graph("a = Mul(x, c) b = Relu(a) y = Abs(b)"), "b")
    assert computed_alike(same, same, "x")
    assert not computed_alike(same, graph("a = Mul(x, c) b = Relu(a) y = Abs(b)"), "y")
    assert not computed_alike(same, graph("a = Mul(x, x) b = Relu(a) y = Neg(b)"), "b")
    assert not computed_alike(same, graph("a = Mul(x, c) b = Relu(a) y = Neg(b)", 2.5), "b")
    assert not computed_alike(same, graph("a = Mul(x, c) d = Relu(a) y = Neg(d)"), "b")


def test_values_are_not_computed_alike_where_one_graph_stores_what_the_other_computes() -> None:
    stored, computed = (
        parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) {text}').graph
        for text in ("<float[2] c = {2, 3}> { y = Mul(x, c) }", "{ c = Abs(x) y = Mul(x, c) }")
    )
    assert not computed_alike(stored, computed, "y")
    assert not computed_alike(computed, stored, "y")
    assert not computed_alike(stored, computed, "c")
    neither = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x, float[2] c) => (float[2] y) { y = Mul(x, c) }'
    ).graph
    assert not computed_alike(neither, computed, "y")
    assert not computed_alike(computed, neither, "y")


def test_a_difference_far_behind_a_value_that_is_read_twice_is_seen() -> None:
    def graph(first: str) -> onnx.GraphProto:
        text = f"{{ a = {first}(x) b = Neg(a) c = Abs(a) d = Add(b, c) e = Mul(d, c) y = Add(e, d) }}"
        return parser.parse_model(
            f'<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) {text}'
        ).graph

    assert computed_alike(graph("Relu"), graph("Relu"), "y")
    assert not computed_alike(graph("Relu"), graph("Sigmoid"), "y")


def test_random_numbers_are_decisions_whatever_their_type() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (int64[1,3] y)
        <float[1,4] p = {1, 2, 3, 4}> { m = Multinomial <dtype = 7, sample_size = 3> (p) y = Neg(m) }"""
    model = parser.parse_model(text)
    flow = trace(model.graph, infer_types(model))
    assert flow.decisions == (0,)
    assert {"m", "y"} <= flow.inexact


def test_a_weight_that_is_listed_as_an_input_is_none() -> None:
    text = """<ir_version: 3, opset_import: ["" : 9]> g (float[2] x, float[2] w) => (float[2] y)
        <float[2] w = {2, 3}> { v = Abs(w) y = Mul(x, v) }"""
    model = parser.parse_model(text)
    assert trace(model.graph, infer_types(model)).inexact == {"x", "y"}


PLACED = """<ir_version: 8, opset_import: ["": 17]>
net (float[N,4] x, int64[N] ids) => (float[N,4] y, int64[A] k, float[B] t)
<int64[1] one = {1}> {
  [relu] h = Relu(x)
  [where] k = ArgMax<keepdims = 0>(h)
  [shape] s = Shape(h)
  [size] n = Size(h)
  [sum] m = Add(s, n)
  [twice] i = Add(ids, ids)
  [float] t = Cast<to = 1>(i)
  [whole] w = Cast<to = 7>(h)
  [after] v = Add(w, one)
  [fixed] c = ConstantOfShape <value: tensor = float {2.0}>(s)
  y = Mul(h, c)
}"""


def test_the_nodes_that_must_run_on_the_accelerator_touch_floating_point_numbers_of_the_inputs() -> None:
    """Shapes, whole numbers and what they alone decide may stay on the CPU; what reads or writes the rest may not."""
    assert floating_nodes(parser.parse_model(PLACED)) == {"relu", "where", "float", "whole"}


def test_a_node_of_unknown_type_counts_as_floating_point() -> None:
    model = parser.parse_model(PLACED)
    model.graph.node.append(helper.make_node("Blur", ["h"], ["blurred"], name="blur", domain="my.domain"))
    model.opset_import.append(helper.make_opsetid("my.domain", 1))
    assert "blur" in floating_nodes(model)


def test_the_coarsest_type_is_that_of_the_fewest_digits() -> None:
    order = ["float64", "float32", "float16", "bfloat16"]
    assert [coarsest_of(order[:length]) for length in range(1, 5)] == order
    fine, coarse = {"a": "float32", "b": "float16", "c": "float64"}, {"a": "float16", "b": "float16", "d": "bfloat16"}
    assert coarser(coarse, fine) == {"a"}
    assert coarser(fine, coarse) == set()


def test_what_a_runtime_knows_of_types_counts() -> None:
    model = parser.parse_model(PLACED)
    model.graph.node.append(helper.make_node("Blur", ["h"], ["blurred"], domain="my.domain"))
    model.opset_import.append(helper.make_opsetid("my.domain", 1))
    assert coarsest_types(model, {})["blurred"] == "float32"
    assert coarsest_types(model, {"blurred": "float16"})["blurred"] == "float16"


@pytest.mark.parametrize(("inner", "decisions"), [("Floor", (0,)), ("RandomNormalLike", (0,)), ("Neg", ())])
def test_a_body_that_decides_makes_its_operator_a_decision(inner: str, decisions: tuple[int, ...]) -> None:
    body = helper.make_graph(
        [helper.make_node(inner, ["x"], ["n"])], "body", [], [helper.make_tensor_value_info("n", 1, [2])]
    )
    outer = helper.make_graph(
        [helper.make_node("If", ["c"], ["m"], then_branch=body, else_branch=body)], "outer", [],
        [helper.make_tensor_value_info("m", 1, [2])],
    )  # fmt: skip
    nested = helper.make_node("If", ["c"], ["y"], then_branch=outer, else_branch=outer)
    inputs = [helper.make_tensor_value_info("x", 1, [2]), helper.make_tensor_value_info("c", 9, [])]
    graph = helper.make_graph([nested], "g", inputs, [helper.make_tensor_value_info("y", 1, [2])])
    assert trace(graph, {"x": "float32", "c": "bool", "y": "float32"}).decisions == decisions


def test_values_whose_type_nobody_says_or_that_are_no_tensors_stay_unknown() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y)
        { s = SequenceConstruct(x) y = Abs(x) }"""
    model = parser.parse_model(text)
    model.graph.value_info.append(onnx.ValueInfoProto(name="u"))
    model.graph.value_info.append(helper.make_tensor_value_info("v", 0, None))
    assert infer_types(model) == {"x": "float32", "y": "float32"}
