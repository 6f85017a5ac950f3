"""What a linear operator absorbs is what it computes afterwards: every layout, against torch in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from carrier_laws import same
from fold_graph import Array, affine, draw
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.affine import ChannelAffine
from bnfold.linear import LinearParams, WeightLayout


@st.composite
def stored_weights(drawn: st.DrawFn) -> tuple[WeightLayout, Array]:
    """A layout with a weight that it may store: Conv and ConvTranspose with groups, Gemm, MatMul with batch axes."""
    outputs, inputs, groups = (drawn(st.integers(1, 3)) for _ in range(3))
    output_first, seed = drawn(st.booleans()), drawn(st.integers(0, 9))
    if drawn(st.booleans()):
        batch = drawn(st.lists(st.integers(1, 2), max_size=2))
        shape = (*batch, outputs, inputs) if output_first else (*batch, inputs, outputs)
        return WeightLayout(output_first, batch_axes=len(batch)), draw(*shape, seed=seed)
    kernel = drawn(st.lists(st.integers(1, 3), max_size=3))
    first, second = (outputs, inputs) if output_first else (inputs, outputs)
    return WeightLayout(output_first, groups), draw(groups * first, second, *kernel, seed=seed)


def params_of(layout: WeightLayout, weight: Array, rest: tuple[int, ...] = ()) -> LinearParams:
    canonical = layout.canonical(weight)
    outputs = canonical.shape[0] * canonical.shape[1]
    return LinearParams(canonical, draw(outputs, *rest, seed=4))


def assert_same(a: LinearParams, b: LinearParams) -> None:
    same(a.weight, b.weight)
    same(a.bias, b.bias)


@settings(deadline=None)
@given(stored_weights())
def test_the_stored_weight_comes_back_from_its_canonical_form(case: tuple[WeightLayout, Array]) -> None:
    layout, weight = case
    np.testing.assert_array_equal(layout.stored(layout.canonical(weight)), weight)
    half = weight.astype(np.float16)
    assert layout.canonical(half).dtype == np.float64


@settings(deadline=None)
@given(stored_weights(), st.sampled_from(((), (5,))))
def test_absorbing_twice_is_absorbing_the_composition(case: tuple[WeightLayout, Array], rest: tuple[int, ...]) -> None:
    params = params_of(*case, rest)
    first, second = (affine(params.outputs, seed, positive=False) for seed in (1, 2))
    assert_same(params.absorb_output(first).absorb_output(second), params.absorb_output(first.then(second)))
    first, second = (affine(params.inputs, seed, positive=False) for seed in (1, 2))
    assert_same(params.absorb_input(first).absorb_input(second), params.absorb_input(second.then(first)))


@settings(deadline=None)
@given(stored_weights(), st.sampled_from(((), (5,))))
def test_absorbing_at_both_ends_commutes(case: tuple[WeightLayout, Array], rest: tuple[int, ...]) -> None:
    params = params_of(*case, rest)
    before, after = affine(params.inputs, 3, positive=False), affine(params.outputs, 4, positive=False)
    assert_same(params.absorb_input(before).absorb_output(after), params.absorb_output(after).absorb_input(before))


def channelwise(a: ChannelAffine, x: Array, axis: int = 1) -> Array:
    return np.moveaxis(a.apply(np.moveaxis(x, axis, -1)), -1, axis)


@st.composite
def geometries(drawn: st.DrawFn) -> dict[str, Any]:
    """A Conv or ConvTranspose of one to three axes."""
    rank = drawn(st.integers(1, 3))
    several = st.tuples(*[st.integers(1, 2)] * rank)
    groups, outputs, inputs = (drawn(st.integers(1, 2)) for _ in range(3))
    return {
        "rank": rank, "groups": groups, "transposed": drawn(st.booleans()), "kernel": drawn(several),
        "outputs": groups * outputs, "inputs": groups * inputs, "stride": drawn(several), "dilation": drawn(several),
        "seed": drawn(st.integers(0, 9)),
    }  # fmt: skip


def convolution(g: dict[str, Any], padding: tuple[int, ...] | None = None) -> tuple[WeightLayout, LinearParams, Any]:
    """Its layout, its constants, and torch's function of them."""
    first, second = (g["inputs"], g["outputs"]) if g["transposed"] else (g["outputs"], g["inputs"])
    weight = draw(first, second // g["groups"], *g["kernel"], seed=g["seed"])
    layout = WeightLayout(output_first=not g["transposed"], groups=g["groups"])
    function = getattr(torch.nn.functional, f"conv{'_transpose' * g['transposed']}{g['rank']}d")
    options = {"stride": g["stride"], "dilation": g["dilation"], "groups": g["groups"]}
    options["padding"] = padding or (0,) * g["rank"]

    def compute(x: Array, params: LinearParams) -> Array:
        stored = (torch.from_numpy(np.array(a, order="C")) for a in (layout.stored(params.weight), params.bias))
        return np.asarray(function(torch.from_numpy(np.array(x, order="C")), *stored, **options).numpy())

    return layout, params_of(layout, weight), compute


@settings(max_examples=60, deadline=None)
@given(geometries())
def test_a_convolution_absorbs_any_affine_at_its_output_whatever_its_geometry(g: dict[str, Any]) -> None:
    _, params, compute = convolution(g, (1,) * g["rank"] if min(g["kernel"]) > 1 else None)
    x, after = draw(2, g["inputs"], *[5] * g["rank"]), affine(g["outputs"], positive=False)
    same(compute(x, params.absorb_output(after)), channelwise(after, compute(x, params)))


@settings(max_examples=60, deadline=None)
@given(geometries(), st.booleans())
def test_a_convolution_absorbs_a_scale_at_its_input_whatever_its_geometry(g: dict[str, Any], pad: bool) -> None:
    _, params, compute = convolution(g, (int(pad and min(g["kernel"]) > 1),) * g["rank"])
    x, before = draw(2, g["inputs"], *[5] * g["rank"]), affine(g["inputs"], positive=False, shift=False)
    same(compute(x, params.absorb_input(before)), compute(channelwise(before, x), params))


@settings(max_examples=40, deadline=None)
@given(geometries())
def test_a_convolution_without_padding_absorbs_a_shift_at_its_input(g: dict[str, Any]) -> None:
    _, params, compute = convolution(g | {"transposed": False})
    x, before = draw(2, g["inputs"], *[5] * g["rank"]), affine(g["inputs"], positive=False)
    same(compute(x, params.absorb_input(before)), compute(channelwise(before, x), params))


@settings(max_examples=20, deadline=None)
@given(geometries())
def test_a_transposed_convolution_that_shows_every_tap_absorbs_a_shift_at_its_input(g: dict[str, Any]) -> None:
    """Stride 1, and pads of dilation*(k-1) on every side."""
    seen = g | {"transposed": True, "stride": (1,) * g["rank"]}
    pads = tuple(d * (k - 1) for d, k in zip(g["dilation"], g["kernel"], strict=True))
    _, params, compute = convolution(seen, pads)
    x, before = draw(2, g["inputs"], *[6] * g["rank"]), affine(g["inputs"], positive=False)
    same(compute(x, params.absorb_input(before)), compute(channelwise(before, x), params))


@pytest.mark.parametrize("transposed", [False, True])
def test_a_shift_at_the_input_is_wrong_where_an_output_misses_a_tap(transposed: bool) -> None:
    g = {"rank": 2, "groups": 1, "transposed": transposed, "kernel": (3, 3), "outputs": 2, "inputs": 2,
         "stride": (1, 1), "dilation": (1, 1), "seed": 0}  # fmt: skip
    _, params, compute = convolution(g, (1, 1))
    x, before = draw(2, 2, 6, 6), affine(2)
    error = np.abs(compute(x, params.absorb_input(before)) - compute(channelwise(before, x), params))
    assert error.max() > 0.1
    assert error[..., 1:-1, 1:-1].max() < 1e-12  # where every tap is seen it is right


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("on_the_right", [True, False])
def test_a_matmul_with_a_batch_of_constants_absorbs_as_it_computes(batch: tuple[int, ...], on_the_right: bool) -> None:
    weight = draw(*batch, 4, 5)
    layout = WeightLayout(output_first=not on_the_right, batch_axes=len(batch))
    params, axis = params_of(layout, weight), -1 if on_the_right else -2
    x = draw(*batch, 6, 4, seed=1) if on_the_right else draw(*batch, 5, 6, seed=1)

    def compute(data: Array, p: LinearParams) -> Array:
        stored = layout.stored(p.weight)
        bias = p.bias if on_the_right else p.bias[:, None]
        return np.asarray(data @ stored + bias if on_the_right else stored @ data + bias)

    after, before = (
        affine(params.outputs, positive=False),
        affine(params.inputs, 2, positive=False, shift=bool(not batch)),
    )
    same(compute(x, params.absorb_output(after)), channelwise(after, compute(x, params), axis))
    same(compute(x, params.absorb_input(before)), compute(channelwise(before, x, axis), params))


def test_a_bias_that_varies_over_rows_is_scaled_and_shifted_per_output() -> None:
    params = params_of(WeightLayout(output_first=True), draw(3, 4), rest=(5,))
    x, after, before = draw(4, 5), affine(3, positive=False), affine(4, 2)
    compute = lambda p, data: p.weight[0] @ data + p.bias  # noqa: E731
    same(compute(params.absorb_output(after), x), channelwise(after, compute(params, x), 0))
    same(compute(params.absorb_input(before), x), compute(params, channelwise(before, x, 0)))


def test_the_largest_weights_are_told_per_output_and_per_input() -> None:
    weight = np.zeros((2, 1, 2, 3))
    weight[0, 0, 1, 2], weight[1, 0, 0, 0] = -3.0, 2.0
    params = LinearParams(weight, np.zeros(2))
    assert params.per_output().tolist() == [3.0, 2.0]
    assert params.per_input().tolist() == [0.0, 3.0, 2.0, 0.0]


@pytest.mark.parametrize(("weight", "bias"), [((1, 2, 3), (3,)), ((1, 2, 3), ()), ((2, 3), (2,)), ((2, 2, 3), (2,))])
def test_weight_and_bias_must_belong_together(weight: tuple[int, ...], bias: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        LinearParams(np.ones(weight), np.ones(bias))


@pytest.mark.parametrize(("shape", "groups"), [((5, 2), 2), ((5,), 1)])
def test_a_weight_must_divide_into_its_groups(shape: tuple[int, ...], groups: int) -> None:
    with pytest.raises(ValueError, match="does not divide"):
        WeightLayout(output_first=True, groups=groups).canonical(np.ones(shape))


def test_the_constants_cannot_be_written() -> None:
    params = params_of(WeightLayout(output_first=True), draw(3, 4))
    for array in (params.weight, params.bias):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
