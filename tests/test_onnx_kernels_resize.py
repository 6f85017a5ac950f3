from __future__ import annotations

import pytest
from onnx_cases import (
    Array,
    assert_agrees,
    feeds_of,
    floats,
    integers,
    normal,
    one_node,
)

from bnfold.errors import ModelError
from bnfold.frontends.onnx_float64 import evaluate, in_float64

MODES = {
    "nearest": [{"nearest_mode": m} for m in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")],
    "linear": [{}],
    "cubic": [{}, {"cubic_coeff_a": -0.5}, {"exclude_outside": 1}],
}
COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")
SCALES = [(0.5, 2.0), (1.5, 0.7), (2.3, 1.0), (0.3, 3.0), (1.0, 0.4)]
SIZES = [(1, 9), (13, 3), (5, 6), (7, 1)]


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", MODES)
def test_resize_agrees_with_onnxruntime(mode: str, coordinates: str) -> None:
    x = normal(3, 2, 3, 5, 6)
    for options in MODES[mode]:
        common = {"mode": mode, "coordinate_transformation_mode": coordinates, **options}
        for opset in (11, 13, 18, 19) if coordinates != "half_pixel_symmetric" else (19,):
            nothing = floats() if opset < 13 else None
            for scales in SCALES:
                if (mode, coordinates, scales) == ("nearest", "half_pixel_symmetric", (0.3, 3.0)):
                    continue  # the position is a whole number up to the last bit of float32: either neighbour is right
                assert_agrees("Resize", [x, nothing, floats(1, 1, *scales)], opset, **common)
            for sizes in SIZES:
                assert_agrees("Resize", [x, nothing, nothing, integers(2, 3, *sizes)], opset, **common)


@pytest.mark.parametrize("policy", ["stretch", "not_larger", "not_smaller"])
@pytest.mark.parametrize("mode", MODES)
def test_resize_of_some_axes_keeps_the_aspect_ratio_as_onnxruntime_does(mode: str, policy: str) -> None:
    x = normal(3, 2, 3, 5, 6)
    for sizes in SIZES:
        options = {"axes": [3, 2], "keep_aspect_ratio_policy": policy}
        assert_agrees("Resize", [x, None, None, integers(*sizes)], 19, mode=mode, **options)


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_resize_with_antialias_agrees_with_onnxruntime(mode: str, coordinates: str) -> None:
    x = normal(3, 2, 3, 9, 8)
    for scales in SCALES:
        options = {"antialias": 1, "mode": mode, "coordinate_transformation_mode": coordinates}
        assert_agrees("Resize", [x, None, floats(1, 1, *scales)], 19, **options)


@pytest.mark.parametrize("mode", MODES)
def test_resize_of_a_region_agrees_with_onnxruntime(mode: str) -> None:
    x, roi = normal(3, 2, 3, 5, 6), floats(0, 0, -0.1, 0.2, 1, 1, 0.8, 1.3)
    options = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 2.5, "mode": mode}
    for scales in [(0.5, 2.0), (1.5, 0.7), (2.3, 3.0)]:
        assert_agrees("Resize", [x, roi, floats(1, 1, *scales)], 13, **options)


def test_resize_of_a_region_without_a_change_of_size_is_refused() -> None:
    x, roi = normal(3, 2, 3, 5, 6), floats(0, 0, 0.1, 0.2, 1, 1, 0.8, 0.9)
    options = {"coordinate_transformation_mode": "tf_crop_and_resize"}
    inputs: list[Array | None] = [x, roi, floats(1, 1, 1, 2)]
    with pytest.raises(ModelError, match=r"the_node: .*no agreed meaning"):
        evaluate(in_float64(one_node("Resize", inputs, 13, **options)), feeds_of(inputs))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", [(2.0, 3.0), (1.5, 2.5), (1.0, 1.7)])
def test_upsample_of_opsets_7_and_9_and_resize_of_10_agree_with_onnxruntime(
    mode: str, scales: tuple[float, float]
) -> None:
    x = normal(3, 2, 3, 5, 6)
    assert_agrees("Upsample", [x], 7, mode=mode, scales=[1.0, 1.0, *scales])
    assert_agrees("Upsample", [x, floats(1, 1, *scales)], 9, mode=mode)
    assert_agrees("Resize", [x, floats(1, 1, *scales)], 10, mode=mode)
    assert_agrees("Resize", [x, floats(1, 1, 0.5, 0.7)], 10, mode=mode)
