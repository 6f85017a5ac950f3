"""The sizes at which the local test runs a region: small ones where any will do, and the model's own elsewhere."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
import pytest
from onnx_models import PARAMETERS, STATS, parse

from bnfold.folding import plan
from bnfold.frontends.onnx_graph import OnnxGraph
from bnfold.leftover_forms import Form
from bnfold.leftovers import leave
from bnfold.localsizes import model_shapes, small_shapes
from bnfold.regions import Region


def span(operator: str, attributes: str) -> tuple[int, int] | None:
    """`2*k + s` and the number of spatial axes of a 3x5 window; None where the sizes are fixed."""
    text = f"(float[N,4,H,W] x) => (float[A,B,C,D] y) <float[4,4,3,5] w> {{ y = {operator} <{attributes}> (x, w) }}"
    return OnnxGraph(ir.from_proto(parse(text))).spans().get(0)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ("strides=[1,1]", 2 * 5 + 1),
        ("strides=[1,3]", 2 * 5 + 3),
        ("strides=[3,1]", 2 * 5 + 1),
        ("dilations=[4,1]", 2 * 9 + 1),
        ("pads=[1,2,1,2]", 2 * 5 + 1),
        ('auto_pad="VALID", strides=[2,2]', 2 * 5 + 2),
    ],
)
@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_a_window_shows_all_its_taps_and_both_borders_on_twice_its_size_and_a_stride(
    operator: str, attributes: str, expected: int
) -> None:
    assert span(operator, attributes) == (expected, 2)


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("strides", ["2,2", "1,2", "2,1"])
def test_a_convolution_whose_pads_depend_on_the_size_is_run_at_the_models_own(auto: str, strides: str) -> None:
    assert span("Conv", f'auto_pad="{auto}", strides=[{strides}]') is None


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER"])
def test_with_a_stride_of_one_the_pads_are_the_same_at_every_size(auto: str) -> None:
    assert span("Conv", f'auto_pad="{auto}"') == (11, 2)


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER"])
def test_the_pads_of_a_transposed_convolution_do_not_depend_on_the_size(auto: str) -> None:
    assert span("ConvTranspose", f'auto_pad="{auto}", strides=[2,2]') == (12, 2)


def test_a_wanted_size_of_the_output_fixes_that_of_the_input() -> None:
    assert span("ConvTranspose", "output_shape=[9,9]") is None
    assert span("ConvTranspose", "strides=[1,1]") == (11, 2)


POSITIVE = {"gamma": [0.5, 1.0, 1.5, 2.0]}


def small(
    nodes: str, constants: str = "", x: str = "N,3,9,9", leftover: Form = "keep"
) -> dict[str, tuple[int, ...]] | None:
    """The shape at which the one region of a model is run; None where that is the model's own."""
    text = f"(float[{x}] x) => (float[A,B,C,D] y) <float[4,3,3,3] w, {constants} {PARAMETERS}> {{ {nodes} }}"
    graph = OnnxGraph(ir.from_proto(parse(text, values=POSITIVE)))
    made = leave(plan(graph, reduces=True), leftover)
    (region,) = made.regions
    return small_shapes(made, region, graph.spans())


NORM = f"BatchNormalization(c, {STATS})"


def test_a_convolution_is_run_on_twice_its_window_and_a_stride() -> None:
    assert small(f"c = Conv(x, w) b = {NORM} y = Relu(b)") == {"x": (2, 3, 7, 7)}
    assert small(f"c = Conv<strides=[2,2]>(x, w) b = {NORM} y = Relu(b)") == {"x": (2, 3, 8, 8)}


def test_operators_that_treat_every_element_alike_may_stand_between() -> None:
    assert small(f"a = Conv(x, w) c = Identity(a) y = {NORM}") == {"x": (2, 3, 7, 7)}


def test_the_largest_of_several_windows_counts() -> None:
    nodes = f"a = Conv(x, w) c = Conv(a, v) y = {NORM}"
    assert small(nodes, "float[4,4,1,1] v,") == {"x": (2, 3, 7, 7)}


def test_where_nothing_is_linear_a_border_and_an_inner_element_show_all() -> None:
    assert small(f"c = Sigmoid(x) y = {NORM}", x="N,4,9,9", leftover="affine") == {"c": (2, 4, 3, 3)}


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        (f"a = Conv(x, w) c = AveragePool<kernel_shape=[2,2]>(a) y = {NORM}", ""),
        (f"a = Conv(x, w) c = Max(a, low) y = {NORM}", "float[1,1,7,7] low,"),
        (f'c = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w) y = {NORM}', ""),
    ],
    ids=["a window that is not linear", "a bound for each place", "pads that depend on the size"],
)
def test_what_depends_on_the_size_is_run_at_the_models_own(nodes: str, constants: str) -> None:
    assert small(nodes, constants) is None


def test_a_bound_for_each_channel_depends_on_no_size() -> None:
    assert small(f"a = Conv(x, w) c = Max(a, low) y = {NORM}", "float[1,4,1,1] low,") == {"x": (2, 3, 7, 7)}


def test_several_inputs_are_run_at_the_models_own_sizes() -> None:
    nodes = f"z = Sigmoid(x) a = Conv(x, w) d = Conv(z, w) c = Add(a, d) y = {NORM}"
    assert small(nodes) is None


def shapes_of(text: str, *inputs: str) -> list[dict[str, tuple[int | str | None, ...]]]:
    region = Region((), inputs, ("y",), ("b",))
    return [dict(found) for found in model_shapes(ir.from_proto(parse(text)), [region], {})]


def test_sizes_at_which_every_input_of_a_region_has_a_shape_come_first() -> None:
    """The window of 65 does not fit into the images that are tried first."""
    text = "(float[N,3,H,W] x) => (float[A,B,C,D] y) { p = MaxPool<kernel_shape=[65,65]>(x) y = Relu(p) }"
    found = shapes_of(text, "p")
    assert "p" in found[0]
    assert all(isinstance(size, int) and size > 0 for size in found[0]["p"])
    assert any("p" not in shapes for shapes in found)


def test_a_shape_that_inference_has_lost_is_seen_in_a_run() -> None:
    text = """(float[2,3] x) => (float[A,B] y) <float half> { z = NonZero(x) t = Transpose(z) f = Cast<to=1>(t)
        y = Mul(f, half) }"""
    (shapes, *_) = shapes_of(text, "f")
    assert shapes["f"] == (6, 2)


def test_a_value_of_another_graph_is_not_looked_for_in_a_run() -> None:
    text = """(float[2,3] x) => (float[A,B] y) <float half> { z = NonZero(x) t = Transpose(z) f = Cast<to=1>(t)
        y = Mul(f, half) }"""
    assert next(iter(shapes_of(text, "f", "elsewhere")))["f"] == (6, 2)


def test_a_model_that_cannot_be_run_tells_no_shapes() -> None:
    text = """(double[2,3,5,5] x) => (double[A,B,C,D] y) <double[4,3,3,3] w> { c = Conv(x, w) z = NonZero(c)
        t = Cast<to=11>(z) y = Unsqueeze(t, at) }"""
    found = shapes_of(text.replace("> {", ", int64[2] at> {"), "t")
    assert all("t" not in shapes for shapes in found)


def test_of_several_inputs_or_one_whose_channels_are_not_known_no_shape_is_made_up() -> None:
    nodes = f"a = Conv(x, w) c = Identity(a) y = {NORM}"
    text = f"(float[N,3,9,9] x) => (float[A,B,C,D] y) <float[4,3,3,3] w, {PARAMETERS}> {{ {nodes} }}"
    graph = OnnxGraph(ir.from_proto(parse(text, values=POSITIVE)))
    made = plan(graph)
    (region,) = made.regions
    assert small_shapes(made, region, graph.spans()) == {"x": (2, 3, 7, 7)}
    assert small_shapes(made, replace(region, inputs=("x", "z")), graph.spans()) is None
    assert small_shapes(made, replace(region, inputs=("a",)), graph.spans()) is None
