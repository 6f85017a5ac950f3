from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, helper
from onnx_regions import STEPS, Region

from bnfold.errors import ModelError
from bnfold.frontends.onnx_float64 import evaluate, in_float64
from bnfold.frontends.onnx_magnitude import magnitude_model

Array = np.ndarray[Any, Any]

SLACK = 1e-6  # of the bound, for the rounding of the evaluation itself


def perturbed(model: ModelProto, draw: Any) -> ModelProto:
    """A copy in which `draw(values)` gives the relative change of every stored float."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        # The scales of Resize are geometry, not stored numbers of the bound: they are one-dimensional with four entries
        # that start with two ones.
        if values.dtype == np.float64 and not (values.shape == (4,) and values[0] == values[1] == 1):
            name = tensor.name
            tensor.CopyFrom(onnx.numpy_helper.from_array(values * (1 + draw(values)), name))
    return copy


def run(model: ModelProto, x: Array) -> Array:
    return next(iter(evaluate(model, {"x": x}).values()))


@given(
    st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=4),
    st.sampled_from([2.0**-24, 2.0**-11, 2.0**-8]),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_rounding_every_stored_number_moves_no_element_by_more_than_the_bound(
    steps: list[str], u: float, seed: int
) -> None:
    region = Region(seed)
    for step in steps:
        STEPS[step](region)
    model = in_float64(region.model())
    x = region.rng.normal(size=(2, 4, 6, 5))
    before, bound = run(model, x), run(magnitude_model(model, u), np.abs(x))
    assert bound.shape == before.shape
    for extreme in (False, True):
        rounded = perturbed(
            model,
            lambda v, extreme=extreme: (
                region.rng.choice([-u, u], v.shape) if extreme else region.rng.uniform(-u, u, v.shape)
            ),
        )
        moved = np.abs(run(rounded, x) - before)
        noise = 1e-12 * np.abs(bound) / u  # float64 itself: far below u
        assert np.all(moved <= u * bound * (1 + SLACK) + u * noise), (moved / (u * bound)).max()


@pytest.mark.parametrize("step", sorted(STEPS))
def test_every_step_alone_after_a_conv_keeps_the_bound_and_the_bound_is_not_empty(step: str) -> None:
    region, u = Region(7), 2.0**-11
    region.conv()
    STEPS[step](region)
    region.conv()
    model = in_float64(region.model())
    x = region.rng.normal(size=(2, 4, 6, 5))
    before, bound = run(model, x), run(magnitude_model(model, u), np.abs(x))
    moved = np.zeros_like(before)
    for _ in range(30):
        changed = run(perturbed(model, lambda v: region.rng.choice([-u, u], v.shape)), x)
        moved = np.maximum(moved, np.abs(changed - before))
    assert np.all(moved <= u * bound * (1 + SLACK))
    assert (moved / (u * bound)).max() > 0.01


def test_a_single_conv_has_the_bound_of_the_design_exactly() -> None:
    region = Region(1)
    region.conv()
    model = in_float64(region.model())
    x = np.abs(region.rng.normal(size=(2, 4, 6, 5)))
    absolute = perturbed(model, lambda v: np.where(v < 0, -2.0, 0.0))
    np.testing.assert_array_equal(run(magnitude_model(model), x), run(absolute, x))


def test_adversarial_signs_reach_a_good_part_of_the_bound_of_a_conv_and_batch_norm() -> None:
    region, u = Region(2), 2.0**-24
    region.conv()
    region.batch_norm()
    model = in_float64(region.model())
    x = np.abs(region.rng.normal(size=(2, 4, 6, 5)))
    weight, bias, _, gamma, beta, mean = (region.weights[f"c{i}"].astype(np.float64) for i in range(6))
    towards = np.sign(gamma)  # every term of every channel grows
    signs = {
        "c0": np.sign(weight) * towards[:, None, None, None],
        "c1": np.sign(bias) * towards,
        "c4": np.sign(beta),
        "c5": -np.sign(mean) * towards,
    }
    names = iter(region.weights)
    rounded = perturbed(model, lambda _: u * signs.get(next(names), 0.0))
    moved = np.abs(run(rounded, x) - run(model, x))
    ratio = moved / (u * run(magnitude_model(model, u), x))
    assert ratio.max() <= 1 + SLACK
    assert ratio.min() > 0.3


def test_a_bound_below_the_true_one_would_fail_the_property() -> None:
    region, u = Region(3), 2.0**-11
    region.conv()
    model = in_float64(region.model())
    x = np.abs(region.rng.normal(size=(2, 4, 6, 5)))
    bound = run(magnitude_model(model, u), x)
    moved = np.abs(run(perturbed(model, lambda v: u * np.sign(v)), x) - run(model, x))
    assert (moved / (u * bound)).max() == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize(("op_type", "inputs"), [("Sigmoid", []), ("Softmax", []), ("Exp", []), ("LRN", [])])
def test_an_operator_without_a_bound_is_refused_by_name(op_type: str, inputs: list[int]) -> None:
    region = Region(0)
    region.add(op_type, *(region.random(n) for n in inputs), name="the_node")
    with pytest.raises(ModelError, match=f"the_node: no rounding bound is known for {op_type}"):
        magnitude_model(region.model())


def test_a_random_operator_is_refused() -> None:
    region = Region(0)
    region.nodes.append(helper.make_node("RandomNormal", [], ["r"], shape=[4, 1, 1]))
    region.add("Add", "r")
    with pytest.raises(ModelError, match="RandomNormal"):
        magnitude_model(region.model())


def test_a_division_by_a_computed_value_is_refused() -> None:
    region = Region(0)
    region.add("Abs")
    region.add("Div", region.random(4, 1, 1), first=False)
    with pytest.raises(ModelError, match="Div with a computed 't0'"):
        magnitude_model(region.model())


@pytest.mark.parametrize("stored", [True, False])
def test_a_division_by_what_is_fed_adds_no_error_of_its_own(stored: bool) -> None:
    region, u = Region(4), 2.0**-11
    if stored:
        region.add("Div", region.random(4, 1, 1), first=False)
    else:
        region.conv()
        region.add("ReduceMean", region.const(np.array([2, 3])))
        region.add("Div", "x")
    model = in_float64(region.model())
    x = region.rng.normal(size=(2, 4, 6, 5))
    before, bound = run(model, x), run(magnitude_model(model, u), np.abs(x))
    moved = np.zeros_like(before)
    for _ in range(30):
        changed = run(perturbed(model, lambda v: region.rng.choice([-u, u], v.shape)), x)
        moved = np.maximum(moved, np.abs(changed - before))
    assert np.all(moved <= u * bound * (1 + SLACK))
    assert (moved / (u * bound)).max() > 0.1


def test_an_operator_of_another_domain_is_refused() -> None:
    region = Region(0)
    region.add("Relu", domain="com.example")
    with pytest.raises(ModelError, match=r"com\.example\.Relu"):
        magnitude_model(region.model())


def test_the_indices_of_a_max_pool_have_no_bound() -> None:
    region = Region(0)
    region.nodes.append(helper.make_node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2]))
    region.last = "i"
    with pytest.raises(ModelError, match="i: no rounding bound"):
        magnitude_model(region.model())


def test_a_region_without_stored_numbers_has_the_bound_zero() -> None:
    region = Region(0)
    region.add("Relu")
    assert not run(magnitude_model(region.model()), np.ones((2, 4, 6, 5))).any()


def test_shape_arithmetic_stays_as_it_is() -> None:
    region = Region(5)
    region.conv()
    value = region.last
    region.add("Shape")
    region.add("Gather", region.const(np.array([0, 1])), axis=0)
    region.add("Concat", region.const(np.array([-1])), axis=0)
    region.nodes.append(helper.make_node("Reshape", [value, region.last], ["y"]))
    region.last = "y"
    model = in_float64(region.model())
    assert run(magnitude_model(model), np.ones((2, 4, 6, 5))).shape == run(model, np.ones((2, 4, 6, 5))).shape


def test_an_old_clip_with_bounds_as_attributes_counts_them_but_not_the_largest_float() -> None:
    region = Region(5, opset=9)
    region.add("Clip", min=-0.5, max=float(np.finfo(np.float32).max))
    bound = run(magnitude_model(region.model()), np.ones((2, 4, 6, 5)))
    assert np.all(bound == 0.5)


NORMALISERS = {
    "instance norm": ("InstanceNormalization", 4, {}),
    "layer norm": ("LayerNormalization", 5, {"axis": -1, "epsilon": 0.0}),
    "group norm": ("GroupNormalization", 4, {"num_groups": 2}),
}


@pytest.mark.parametrize(("op_type", "size", "attributes"), NORMALISERS.values(), ids=NORMALISERS)
def test_the_bound_of_a_normaliser_holds_for_a_lone_spike(op_type: str, size: int, attributes: dict[str, Any]) -> None:
    region, u = Region(4, opset=21), 2.0**-11
    region.add(op_type, region.random(size), region.random(size), **attributes)
    region.batch_norm()
    model = in_float64(region.model())
    x = np.zeros((2, 4, 6, 5))
    x[(..., 2, 3) if op_type != "LayerNormalization" else (..., 3)] = 1000.0
    x += 1e-3 * region.rng.normal(size=x.shape)
    before, bound, ratio = run(model, x), run(magnitude_model(model, u), np.abs(x)), np.zeros(x.shape)
    for _ in range(20):
        changed = run(perturbed(model, lambda v: region.rng.choice([-u, u], v.shape)), x)
        ratio = np.maximum(ratio, np.abs(changed - before) / (u * bound))
    assert np.isfinite(bound).all()
    assert 0.1 < ratio.max() <= 1 + SLACK


def test_a_normaliser_after_a_stored_number_is_refused() -> None:
    region = Region(0)
    region.conv()
    region.add("InstanceNormalization", region.random(4), region.random(4))
    with pytest.raises(ModelError, match="InstanceNormalization after a stored number"):
        magnitude_model(region.model())


def test_the_bound_of_a_cubic_resize_holds_for_every_pattern_of_signs_and_is_reached() -> None:
    region, u = Region(0), 2.0**-24
    region.add("Mul", region.const(np.array(3.0, np.float32)))
    region.add("Resize", "", region.const(np.array([1, 1, 1, 2], np.float32)), mode="cubic")
    model = in_float64(region.model())
    bound = run(magnitude_model(model, u), np.ones((2, 4, 6, 5)))
    largest = 0.0
    for signs in product((-1.0, 1.0), repeat=5):
        x = np.ones((2, 4, 6, 5)) * np.array(signs)
        moved = np.abs(run(perturbed(model, lambda v: np.full(v.shape, u)), x) - run(model, x))
        largest = max(largest, float((moved / (u * bound)).max()))
    assert largest == pytest.approx(1.0, abs=1e-6)


def test_a_clip_that_lifts_a_zero_counts_what_it_lifts_it_to() -> None:
    region = Region(0)
    region.add("Clip", region.const(np.array(0.25, np.float32)), "")
    region.add("Mul", region.const(np.array(-3.0, np.float32)))
    bound = run(magnitude_model(region.model()), np.zeros((2, 4, 6, 5)))
    np.testing.assert_allclose(bound, 2 * 0.25 * 3.0)  # the limit and the factor round


@pytest.mark.parametrize(("op_type", "sign"), [("Max", 1), ("Min", -1)])
def test_a_bound_of_a_channel_counts_once_and_one_that_is_infinite_or_zero_not_at_all(op_type: str, sign: int) -> None:
    region = Region(0)
    low = sign * np.array([-np.inf, 0, 0.3, -0.7], np.float32).reshape(4, 1, 1)
    region.add(op_type, region.const(low))
    bound = run(magnitude_model(region.model()), np.full((2, 4, 6, 5), 2.0))
    np.testing.assert_allclose(bound[0, :, 0, 0], [0, 0, 0.3, 0.7], rtol=1e-6)
    region.add("Mul", region.const(np.array(2.0, np.float32)))
    bound = run(magnitude_model(region.model()), np.full((2, 4, 6, 5), 0.1))
    np.testing.assert_allclose(bound[0, :, 0, 0], [0.2, 0.2, 2 * (0.3 + 0.3), 2 * (0.1 + 0.7)], rtol=1e-6)


def test_a_batch_norm_counts_the_rounding_of_gamma_once_and_of_the_variance_half() -> None:
    region = Region(0)
    values = [2.0, -1.0, 0.5, 4.0]
    region.add("BatchNormalization", *(region.const(np.full(4, v, np.float32)) for v in values), epsilon=0.0)
    bound = run(magnitude_model(region.model()), np.full((2, 4, 6, 5), 3.0))
    np.testing.assert_allclose(bound, 1.0 * 0.5 + 1.5 * 1.0 * (3.0 + 0.5) + 1.0)


REFUSED = {
    "dropout in training": (["Dropout", "ratio", "yes"], {}, "Dropout in training mode"),
    "cast to an integer": (["Cast"], {"to": 7}, "Cast to a type that is not float"),
    "batch norm in training": (["BatchNormalization", *["four"] * 4], {"training_mode": 1}, "training mode"),
}


@pytest.mark.parametrize(("call", "attributes", "words"), REFUSED.values(), ids=REFUSED)
def test_a_use_of_an_operator_without_a_bound_is_refused(
    call: list[str], attributes: dict[str, Any], words: str
) -> None:
    region = Region(0)
    values = {"ratio": np.array(0.5, np.float32), "yes": np.array(True), "four": np.ones(4, np.float32)}
    names = {name: region.const(value) for name, value in values.items()}
    region.add(call[0], *(names.get(name, name) for name in call[1:]), **attributes)
    with pytest.raises(ModelError, match=words):
        magnitude_model(region.model())


def test_a_subnormal_number_is_rounded_as_if_it_were_normal() -> None:
    region = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y)'
        "<float[2] b = {1e-6, 0.5}> { y = Add(x, b) }"
    )
    smallest = 2.0**-14
    bound = evaluate(magnitude_model(region, 2.0**-11, smallest), {"x": np.zeros(2)})["y"]
    assert bound.tolist() == [smallest, 0.5]
    moved = np.float64(np.float16(1e-6)) - 1e-6
    assert 1e-6 * 2.0**-11 < abs(moved) <= smallest * 2.0**-11


def test_a_quantised_bias_is_off_by_half_a_step_and_a_quantised_weight_by_one_rounding() -> None:
    region = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,2] x) => (float[N,2] y)'
        "<int8[2,2] q = {3, -4, 5, 6}, float s = {0.5}, int32[2] k = {7, -9}, float[2] j = {0.25, 0.5}>"
        "{ w = DequantizeLinear(q, s) b = DequantizeLinear <axis=0> (k, j) y = Gemm(x, w, b) }"
    )
    u, x = 2.0**-24, np.array([[1.0, -2.0]])
    bound = u * evaluate(magnitude_model(region, u), {"x": np.abs(x)})["y"]
    weight = np.abs(x) @ np.abs(np.array([[1.5, -2.0], [2.5, 3.0]]))
    np.testing.assert_allclose(bound, u * weight + np.array([0.125, 0.25]), rtol=1e-12)
    with pytest.raises(ModelError, match="a step, not a rounding"):
        magnitude_model(region)
