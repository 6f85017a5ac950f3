"""Sums and products of two variables: a scale to both or to one, a shift to one, never along a broadcast axis."""

from __future__ import annotations

import numpy as np
import pytest
from carrier_laws import assert_pulls, assert_pushes, assert_refuses, on, push, same
from fold_graph import Net, affine, apply_placed, draw
from fold_graph_pairs import add_product, add_sum

from bnfold import carriers
from bnfold.affine import ChannelAffine
from bnfold.bench import Bench
from bnfold.decision import Reason, Refusal
from bnfold.graph import PlacedAffine, Shape, Step

SIGNED, SCALE = affine(3, positive=False), affine(3, positive=False, shift=False)
SHIFT = ChannelAffine(np.ones(3), [1.0, -2.0, 0.5])
EVERYWHERE = PlacedAffine(ChannelAffine([2.0], [-1.0]), (), ())
FULL = (2, 3, 4, 4)


def pair(x: tuple[int, ...] = FULL, z: tuple[int, ...] = FULL, sign: int = 1) -> Net:
    net = Net(x=draw(*x), z=draw(*z, seed=1))
    add_sum(net, "x", "z", sign)
    return net


def times(x: tuple[int, ...] = FULL, z: tuple[int, ...] = FULL, *, divides: bool = False) -> Net:
    net = Net(x=draw(*x), z=draw(*z, seed=1))
    add_product(net, "x", "z", divides=divides)
    return net


def with_shapes(net: Net, *shapes: Shape | None) -> Net:
    op = net.operators[-1]
    net.operators[-1] = op.__class__(**{**vars(op), "input_shapes": shapes})
    return net


def ways(net: Net, wanted: PlacedAffine) -> list[Step]:
    """All that the last operator would do; each of them must be right."""
    operator = net.operators[-1]
    answer = carriers.pull(operator, wanted, Bench(net))
    assert not isinstance(answer, Refusal), answer
    steps = list(answer) if isinstance(answer, tuple) else [answer]
    xs = [net.samples[v] for v in operator.inputs]
    for step in steps:
        asked = [apply_placed(step.placed.get(i), x) for i, x in enumerate(xs)]
        same(net.run(operator, net, asked)[0], apply_placed(wanted, net.run(operator, net, xs)[0]))
    return steps


def refused(net: Net, wanted: PlacedAffine, reason: Reason) -> None:
    answer = carriers.pull(net.operators[-1], wanted, Bench(net))
    assert isinstance(answer, Refusal), answer
    assert answer.reason is reason


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("x", "z"), [(FULL, FULL), (FULL, (2, 3, 1, 1)), ((1, 3, 4, 1), FULL), ((3, 1, 1), FULL), (FULL, (1, 3, 1, 4))]
)
def test_a_sum_takes_the_scale_at_both_and_the_shift_at_either(
    sign: int, x: tuple[int, ...], z: tuple[int, ...]
) -> None:
    first, second = ways(pair(x, z, sign), on(1, SIGNED))
    assert not first.placed[0].affine.is_pure_scale
    assert first.placed[1].affine.is_pure_scale
    assert second.placed[0].affine.is_pure_scale
    np.testing.assert_array_equal(second.placed[1].affine.shift, sign * SIGNED.shift)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_pure_scale_has_one_way_through_a_sum_and_a_pure_shift_asks_one_operand(sign: int) -> None:
    (only,) = ways(pair(sign=sign), on(1, SCALE))
    assert set(only.placed) == {0, 1}
    assert [set(step.placed) for step in ways(pair(sign=sign), on(1, SHIFT))] == [{0}, {1}]
    assert_pulls(pair(sign=sign), on(1, SCALE))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("narrow", [(2, 1, 4, 4), (4, 4), (4,), (1,), ()])
def test_an_operand_that_is_broadcast_along_the_channels_takes_neither_scale_nor_shift(
    sign: int, narrow: tuple[int, ...]
) -> None:
    for placed in (SIGNED, SCALE):
        refused(pair(FULL, narrow, sign), on(1, placed), Reason.AXIS_NOT_PROVEN)
        refused(pair(narrow, FULL, sign), on(1, placed), Reason.AXIS_NOT_PROVEN)
    assert [set(s.placed) for s in ways(pair(FULL, narrow, sign), on(1, SHIFT))] == [{0}]
    assert [set(s.placed) for s in ways(pair(narrow, FULL, sign), on(1, SHIFT))] == [{1}]


@pytest.mark.parametrize("unknown", [None, (2, None, 4, 4), ("N", "C", "H", "W")])
def test_an_operand_of_unknown_size_takes_nothing(unknown: Shape | None) -> None:
    net = with_shapes(pair(), FULL, unknown)
    refused(net, on(1, SCALE), Reason.AXIS_NOT_PROVEN)
    if unknown is None:  # the output may have more axes than the operand that is known
        refused(net, on(1, SHIFT), Reason.AXIS_NOT_PROVEN)
    else:
        assert [set(step.placed) for step in ways(net, on(1, SHIFT))] == [{0}]
    refused(with_shapes(times(), unknown, unknown), on(1, SCALE), Reason.AXIS_NOT_PROVEN)


def test_an_affine_that_is_the_same_everywhere_passes_whatever_is_broadcast() -> None:
    assert len(ways(pair(FULL, (4,)), EVERYWHERE)) == 2
    assert len(ways(with_shapes(pair(), None, None), EVERYWHERE)) == 2
    assert_pushes(pair(FULL, (4,)), EVERYWHERE, EVERYWHERE)


def test_an_affine_on_two_axes_passes_where_an_operand_has_both() -> None:
    wanted = PlacedAffine(affine(12), (1, 3), (3, 4))
    assert len(ways(pair(), wanted)) == 2
    assert len(ways(pair(FULL, (3, 1, 4)), wanted)) == 2
    refused(pair(FULL, (3, 4, 1)), wanted, Reason.AXIS_NOT_PROVEN)


@pytest.mark.parametrize("sign", [1, -1])
def test_equal_scales_on_both_operands_are_pushed_with_both_shifts(sign: int) -> None:
    other = ChannelAffine(SIGNED.scale, [3.0, 1.0, -1.0])
    step = assert_pushes(pair(sign=sign), on(1, SIGNED), on(1, other))
    np.testing.assert_allclose(step.placed[0].affine.shift, SIGNED.shift + sign * other.shift)
    assert_pushes(pair((3, 1, 1), FULL, sign), on(0, SIGNED), on(1, other))
    assert_pushes(pair((2, 3, 1, 1), FULL, sign), on(1, SIGNED), on(1, other))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_shift_on_either_operand_is_pushed(sign: int) -> None:
    assert_pushes(pair(sign=sign), on(1, SHIFT), None)
    assert_pushes(pair(sign=sign), None, on(1, SHIFT))
    assert_pushes(pair(FULL, (4,), sign), on(1, SHIFT), None)
    assert_pushes(pair((3, 1, 1), FULL, sign), on(0, SHIFT), None)


def test_a_scale_on_one_operand_or_two_scales_that_differ_are_not_pushed() -> None:
    for seen in ((on(1, SCALE), None), (None, on(1, SIGNED)), (on(1, SCALE), on(1, affine(3, 7)))):
        assert_refuses(push(pair(), *seen), Reason.SCALE_IS_ON_ONE_OPERAND)
    assert_refuses(push(pair(), on(1, SCALE), on(2, affine(4))), Reason.SCALE_IS_ON_ONE_OPERAND)
    assert_refuses(push(pair(), EVERYWHERE, on(1, SCALE)), Reason.SCALE_IS_ON_ONE_OPERAND)


def test_an_affine_on_an_axis_that_is_broadcast_up_is_not_pushed() -> None:
    one = on(1, ChannelAffine([1.0], [2.0]))
    assert_refuses(push(pair((2, 1, 4, 4), FULL), one, None), Reason.AXIS_NOT_PROVEN)
    assert_refuses(push(pair((2, 1, 4, 4), FULL), one, on(1, SHIFT)), Reason.AXIS_NOT_PROVEN)
    assert_refuses(push(pair(FULL, (2, 1, 4, 4)), on(1, SHIFT), one), Reason.AXIS_NOT_PROVEN)
    double = on(1, ChannelAffine([2.0], [0.0]))
    assert_refuses(push(times((2, 1, 4, 4), FULL), double, None), Reason.AXIS_NOT_PROVEN)
    assert_refuses(push(times(FULL, (2, 1, 4, 4)), on(1, SCALE), double), Reason.AXIS_NOT_PROVEN)
    assert_pushes(pair((2, 1, 4, 4), (2, 1, 4, 4)), one, None)
    assert_pushes(times((2, 1, 4, 4), (4, 4)), double, None)


def test_an_operand_of_unknown_rank_is_not_pushed_past() -> None:
    for net in (with_shapes(pair(), FULL, None), with_shapes(pair(), None, FULL)):
        assert_refuses(push(net, on(1, SHIFT), None), Reason.AXIS_NOT_PROVEN)
    assert_refuses(push(with_shapes(times(), FULL, None), on(1, SCALE), None), Reason.AXIS_NOT_PROVEN)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_value_that_is_added_to_itself_is_two_uses(sign: int) -> None:
    net = Net(x=draw(*FULL))
    add_sum(net, "x", "x", sign)
    (step,) = ways(net, on(1, SCALE))
    assert step.placed[0].equals(step.placed[1])  # both ask the same, so that the route may go on
    for step in ways(net, on(1, SIGNED)):
        assert not step.placed[0].equals(step.placed[1])
    assert_pushes(net, on(1, SIGNED), on(1, SIGNED))


def test_a_product_takes_a_scale_at_one_factor_and_no_shift() -> None:
    assert [set(step.placed) for step in ways(times(), on(1, SCALE))] == [{0}, {1}]
    assert [set(step.placed) for step in ways(times(FULL, (2, 3, 1, 1)), on(1, SCALE))] == [{0}, {1}]
    for narrow in ((2, 1, 4, 4), (4,), ()):
        assert [set(step.placed) for step in ways(times(FULL, narrow), on(1, SCALE))] == [{0}]
        assert [set(step.placed) for step in ways(times(narrow, FULL), on(1, SCALE))] == [{1}]
    refused(times(), on(1, SHIFT), Reason.SHIFT_MEETS_PRODUCT)
    refused(times((2, 3, 1, 1), (3, 1, 1)), on(1, SIGNED), Reason.SHIFT_MEETS_PRODUCT)


def test_scales_on_both_factors_multiply() -> None:
    assert_pushes(times(), on(1, SCALE), None)
    assert_pushes(times(), None, on(1, SCALE))
    step = assert_pushes(times(FULL, (2, 3, 1, 1)), on(1, SCALE), on(1, affine(3, 5, shift=False)))
    np.testing.assert_allclose(step.placed[0].affine.scale, SCALE.scale * affine(3, 5).scale)
    assert_refuses(push(times(), on(1, SHIFT), None), Reason.SHIFT_MEETS_PRODUCT)
    assert_refuses(push(times(), on(1, SCALE), on(1, SHIFT)), Reason.SHIFT_MEETS_PRODUCT)
    assert_refuses(push(times(), on(1, SCALE), on(2, affine(4, shift=False))), Reason.AXIS_NOT_PROVEN)


def test_a_square_pushes_the_square_of_a_scale() -> None:
    net = Net(x=draw(*FULL))
    add_product(net, "x", "x")
    np.testing.assert_allclose(assert_pushes(net, on(1, SCALE), on(1, SCALE)).placed[0].affine.scale, SCALE.scale**2)
    assert [set(step.placed) for step in ways(net, on(1, SCALE))] == [{0}, {1}]


def test_a_quotient_takes_and_passes_at_the_numerator_only() -> None:
    assert [set(step.placed) for step in ways(times(divides=True), on(1, SCALE))] == [{0}]
    refused(times((4,), FULL, divides=True), on(1, SCALE), Reason.AXIS_NOT_PROVEN)
    assert_pushes(times(divides=True), on(1, SCALE), None)
    assert_refuses(push(times(divides=True), None, on(1, SCALE)), Reason.OPERATOR_IS_NOT_LINEAR)
    assert_refuses(push(times(divides=True), on(1, SCALE), on(1, SCALE)), Reason.OPERATOR_IS_NOT_LINEAR)
