"""Constants compose and absorb, Cast passes when it widens, and a BatchNorm that stays absorbs at both ends."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from carrier_laws import assert_pulls, assert_pushes, assert_refuses, on, pull, push, same
from fold_graph import ARITHMETIC, FLOAT32, Array, Net, affine, apply_placed, draw
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold import carriers
from bnfold.affine import ChannelAffine
from bnfold.carriers.elementwise import constant_affine
from bnfold.decision import Reason
from bnfold.graph import PlacedAffine, SetAffine
from bnfold.views import Arithmetic, Cast, ConstantOperand

SUMS = (Arithmetic.ADD, Arithmetic.SUBTRACT, Arithmetic.SUBTRACT_FROM)
PRODUCTS = (Arithmetic.MULTIPLY, Arithmetic.DIVIDE)
#: A scalar, one number in a vector, channels, another axis, two axes, everything.
SHAPES = [(), (1,), (3, 1, 1), (1, 3, 1, 1), (5,), (4, 1), (3, 4, 5), (2, 3, 4, 5)]
#: Those that are the same everywhere or vary over the channels only.
PER_CHANNEL = SHAPES[:4]


def constant(shape: tuple[int, ...]) -> Array:
    return np.asarray(0.5 + np.abs(draw(*shape, seed=7)))


def net_of(arithmetic: Arithmetic, shape: tuple[int, ...]) -> Net:
    net = Net(x=draw(2, 3, 4, 5))
    net.arithmetic(arithmetic, "x", constant(shape))
    return net


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("arithmetic", SUMS)
@pytest.mark.parametrize("axis", [1, 3])
def test_a_sum_takes_any_affine_from_both_sides_whatever_the_constants_shape(
    arithmetic: Arithmetic, shape: tuple[int, ...], axis: int
) -> None:
    any_affine = on(axis, affine((2, 3, 4, 5)[axis], positive=False))
    step = assert_pulls(net_of(arithmetic, shape), any_affine)
    assert step.placed[0].affine.is_pure_scale
    assert_pushes(net_of(arithmetic, shape), any_affine)


@pytest.mark.parametrize("arithmetic", SUMS)
def test_a_sum_takes_an_affine_that_is_the_same_everywhere_or_lives_on_two_axes(arithmetic: Arithmetic) -> None:
    for placed in (PlacedAffine(ChannelAffine([2.0], [1.0]), (), ()), PlacedAffine(affine(12), (1, 2), (3, 4))):
        assert_pulls(net_of(arithmetic, (3, 1, 1)), placed)
        assert_pushes(net_of(arithmetic, (3, 1, 1)), placed)


@pytest.mark.parametrize("arithmetic", SUMS)
def test_a_scale_of_zero_is_pulled_through_a_sum_and_not_pushed(arithmetic: Arithmetic) -> None:
    dead = on(1, ChannelAffine([1.0, 0, 2], [1.0, 2, 3]))
    assert_pulls(net_of(arithmetic, (3, 1, 1)), dead)
    assert_refuses(push(net_of(arithmetic, (3, 1, 1)), dead), Reason.SCALE_IS_ZERO)


@pytest.mark.parametrize("arithmetic", SUMS)
def test_a_pure_shift_pushed_through_a_sum_leaves_the_constant_alone(arithmetic: Arithmetic) -> None:
    assert assert_pushes(net_of(arithmetic, (3, 4, 5)), on(1, ChannelAffine(np.ones(3), [1.0, 2, 3]))).edits == ()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("arithmetic", PRODUCTS)
def test_a_product_passes_a_scale_and_refuses_a_pulled_shift(arithmetic: Arithmetic, shape: tuple[int, ...]) -> None:
    scale = on(1, affine(3, positive=False, shift=False))
    assert_pulls(net_of(arithmetic, shape), scale)
    assert_pushes(net_of(arithmetic, shape), scale)
    assert_refuses(pull(net_of(arithmetic, shape), on(1, affine(3))), Reason.SHIFT_MEETS_PRODUCT)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("arithmetic", PRODUCTS)
def test_a_shift_is_pushed_through_a_product_per_channel_only(arithmetic: Arithmetic, shape: tuple[int, ...]) -> None:
    any_affine = on(1, affine(3, positive=False))
    if shape in PER_CHANNEL:
        assert_pushes(net_of(arithmetic, shape), any_affine)
    else:
        assert_refuses(push(net_of(arithmetic, shape), any_affine), Reason.SHIFT_MEETS_PRODUCT)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("arithmetic", list(Arithmetic))
def test_a_constant_along_one_axis_is_an_affine(arithmetic: Arithmetic, shape: tuple[int, ...]) -> None:
    x, c = draw(2, 3, 4, 5), constant(shape)
    placed = constant_affine(ConstantOperand(arithmetic, 4, FLOAT32), c)
    varying = sum(size > 1 for size in shape)
    assert (placed is None) == (varying > 1)
    if placed is not None:
        same(apply_placed(placed, x), ARITHMETIC[arithmetic](x, c))


def test_a_division_by_zero_is_an_affine_that_is_not_finite() -> None:
    placed = constant_affine(ConstantOperand(Arithmetic.DIVIDE, 2, FLOAT32), np.array([1.0, 0.0]))
    assert placed is not None
    assert not placed.affine.is_finite


def cast(source: Any, target: Any) -> Net:
    net = Net(x=draw(2, 3, 4))
    net.add(Cast(np.dtype(source), np.dtype(target)), "x", run=lambda _op, _held, xs: xs[0])
    return net


HALF, BRAIN = np.float16, ml_dtypes.bfloat16


@pytest.mark.parametrize(
    ("source", "target"), [(HALF, np.float32), (HALF, np.float64), (np.float32, np.float64), (BRAIN, np.float32)]
)
def test_a_widening_cast_passes_any_affine(source: Any, target: Any) -> None:
    assert_pulls(cast(source, target), on(1, affine(3, positive=False)))
    assert_pushes(cast(source, target), on(1, affine(3, positive=False)))


@pytest.mark.parametrize(
    ("source", "target"),
    [(np.float32, HALF), (np.float64, np.float32), (np.float32, BRAIN), (BRAIN, HALF), (HALF, BRAIN)],
)
def test_a_cast_that_rounds_refuses(source: Any, target: Any) -> None:
    assert_refuses(pull(cast(source, target), on(1, affine(3))), Reason.CAST_NARROWS)
    assert_refuses(push(cast(source, target), on(1, affine(3))), Reason.CAST_NARROWS)


def batchnorm(axis: int = 1) -> Net:
    net = Net(x=draw(2, 3, 4))
    net.bn("x", affine((2, 3, 4)[axis], 9, positive=False), axis=axis)
    return net


@pytest.mark.parametrize("axis", [1, 2])
def test_a_batchnorm_that_stays_absorbs_at_both_ends(axis: int) -> None:
    any_affine = on(axis, affine((2, 3, 4)[axis], positive=False))
    assert assert_pulls(batchnorm(axis), any_affine).placed == {}
    assert assert_pushes(batchnorm(axis), any_affine).placed == {}
    everywhere = PlacedAffine(ChannelAffine([-2.0], [1.0]), (), ())
    assert_pulls(batchnorm(axis), everywhere)
    assert_pushes(batchnorm(axis), everywhere)


def test_a_batchnorm_refuses_an_affine_on_another_axis() -> None:
    assert_refuses(pull(batchnorm(), on(2, affine(4))), Reason.OPERATOR_MIXES_CHANNELS)
    assert_refuses(push(batchnorm(), on(2, affine(4))), Reason.OPERATOR_MIXES_CHANNELS)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 99)), max_size=4))
def test_a_batchnorm_absorbs_again_and_again(ends: list[tuple[bool, int]]) -> None:
    """Each time at its input (True) or at its output."""
    net = batchnorm()
    operator, x = net.operators[0], net.samples["x"]
    held = _Held(net.affine(operator))
    expected = held.now
    for at_input, seed in ends:
        given_affine = affine(3, seed)
        step = _absorb(net, held, at_input, given_affine)
        (edit,) = step.edits
        assert isinstance(edit, SetAffine)
        held.now = edit.affine
        expected = given_affine.then(expected) if at_input else expected.then(given_affine)
    same(net.run(operator, held, [x])[0], apply_placed(on(1, expected), x))  # type: ignore[arg-type]


class _Held:
    """The pending affine of one BatchNorm."""

    def __init__(self, now: ChannelAffine) -> None:
        self.now = now

    def affine(self, _operator: object) -> ChannelAffine:
        return self.now


def _absorb(net: Net, held: Any, at_input: bool, placed: ChannelAffine) -> Any:
    operator = net.operators[0]
    return (
        carriers.push(operator, {0: on(1, placed)}, held) if at_input else carriers.pull(operator, on(1, placed), held)
    )
