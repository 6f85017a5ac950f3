"""The sizes at which the local test runs a region: small ones where any will do, and the model's own elsewhere."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from onnx_models import parse

from bnfold.frontends.onnx_graph import OnnxGraph


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
