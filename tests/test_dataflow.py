"""Rounding reaches what is computed from floating-point inputs, and decisions are where it jumps."""

from __future__ import annotations

import onnx
import pytest
from onnx import helper, parser

from bnfold.dataflow import computed_alike, descendants, infer_types, last_before, trace

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
