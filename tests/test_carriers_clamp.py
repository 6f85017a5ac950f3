"""Clip, Relu, Max and Min: every affine passes, the bounds move with it; what it may cost is the engine's affair."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from carrier_laws import EXACT, assert_refuses, on, pull, push, same
from fold_graph import FLOAT32, Array, Net, affine, apply_placed, draw, edited

from bnfold import carriers
from bnfold.affine import ChannelAffine
from bnfold.bench import Bench
from bnfold.decision import Reason, Refusal
from bnfold.graph import Bounds, PlacedAffine, SetBounds, Step
from bnfold.views import Clamp

POSITIVE, SIGNED = affine(3), affine(3, positive=False)
EQUAL = ChannelAffine([2.0, 2, 2], [0.25, 0.25, 0.25])
DEAD = ChannelAffine([2.0, 0, -0.5], [0.25, 1.5, -1])
ONE_EACH = np.array([-0.5, 0, 0.25]).reshape(1, 3, 1, 1)

#: Low and high bound: Relu, ReLU6, one side, one for each channel, one for each place, none.
BOUNDS: dict[str, tuple[Any, Any]] = {
    "relu": (0.0, np.inf),
    "clip": (-0.5, 1.5),
    "from above": (-np.inf, 0.5),
    "max": (ONE_EACH, np.inf),
    "both": (ONE_EACH, ONE_EACH + 1),
    "none": (-np.inf, np.inf),
}
PLACES = draw(3, 4, 4, seed=9).reshape(1, 3, 4, 4)


def clamped(low: Any = 0.0, high: Any = np.inf, **more: Any) -> Net:
    net = Net(x=2 * draw(2, 3, 4, 4))
    net.clamp("x", low, high, **more)
    return net


def spending(net: Net, direction: str, placed: PlacedAffine) -> Step | Refusal:
    bench = Bench(net)
    bench.budget = np.inf
    if direction == "push":
        return carriers.push(net.operators[-1], {0: placed}, bench)
    answer = carriers.pull(net.operators[-1], placed, bench)
    assert not isinstance(answer, tuple)
    return answer


def assert_passes(net: Net, direction: str, placed: PlacedAffine) -> Step:
    """The law of both directions, with the new bounds."""
    step = spending(net, direction, placed)
    assert isinstance(step, Step), step
    operator, x = net.operators[-1], net.samples["x"]

    def clamp(held: Any, value: Array) -> Array:
        return net.run(operator, held, [value])[0]

    after = edited(net, step.edits)
    if direction == "pull":
        same(clamp(after, apply_placed(step.placed[0], x)), apply_placed(placed, clamp(net, x)))
    else:
        same(apply_placed(step.placed[0], clamp(after, x)), clamp(net, apply_placed(placed, x)))
    return step


@pytest.mark.parametrize("direction", ["pull", "push"])
@pytest.mark.parametrize("given", [POSITIVE, SIGNED, EQUAL, DEAD], ids=["positive", "signed", "equal", "dead"])
@pytest.mark.parametrize("bounds", BOUNDS)
def test_every_affine_passes_every_clamp_both_ways(bounds: str, given: ChannelAffine, direction: str) -> None:
    assert_passes(clamped(*BOUNDS[bounds]), direction, on(1, given))


@pytest.mark.parametrize("direction", ["pull", "push"])
@pytest.mark.parametrize("given", [POSITIVE, SIGNED], ids=["positive", "signed"])
def test_bounds_that_vary_from_place_to_place_move_too(given: ChannelAffine, direction: str) -> None:
    assert_passes(clamped(PLACES, np.inf), direction, on(1, given))
    assert_passes(clamped(PLACES - 1, PLACES + 1), direction, on(1, given))


def test_a_dead_channel_behind_bounds_that_vary_from_place_to_place_is_no_constant() -> None:
    assert_passes(clamped(PLACES), "pull", on(1, DEAD))
    assert_refuses(spending(clamped(PLACES), "push", on(1, DEAD)), Reason.SCALE_IS_ZERO)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_the_affine_may_live_on_any_axis_or_on_none(axis: int) -> None:
    net = clamped(-0.5, 1.5)
    size = net.samples["x"].shape[axis]
    assert_passes(net, "pull", on(axis, affine(size, positive=False)))
    assert_passes(net, "push", on(axis, affine(size, positive=False)))
    step = assert_passes(net, "push", PlacedAffine(ChannelAffine([-2.0], [1.0]), (), ()))
    assert bounds_of(step) == (-0.25, 0.75)


def bounds_of(step: Step) -> tuple[float, float]:
    """Two plain numbers."""
    (edit,) = step.edits
    assert isinstance(edit, SetBounds)
    assert not edit.bounds.varies
    return float(edit.bounds.low), float(edit.bounds.high)


def test_a_positive_scale_leaves_a_relu_as_it_is_and_a_negative_one_makes_it_a_clip_from_above() -> None:
    for direction in ("pull", "push"):
        kept = spending(clamped(), direction, on(1, affine(3, shift=False)))
        assert isinstance(kept, Step)
        assert kept.edits == ()
        flipped = assert_passes(clamped(), direction, on(1, ChannelAffine([-1.0, -2, -3], np.zeros(3))))
        assert bounds_of(flipped) == (-np.inf, 0)


def test_bounds_that_are_equal_in_all_channels_stay_one_number() -> None:
    net = clamped(0.0, 6.0)
    assert bounds_of(assert_passes(net, "pull", on(1, EQUAL))) == (0.25, 12.25)
    assert bounds_of(assert_passes(net, "push", on(1, EQUAL))) == (-0.125, 2.875)
    step = push(net, on(1, EQUAL))  # for nothing
    assert isinstance(step, Step)


def test_a_dead_channel_asks_for_no_bound_of_its_own_when_it_is_pushed() -> None:
    step = assert_passes(clamped(0.0, 6.0), "push", on(1, ChannelAffine([2.0, 0, 2], [0.5, 9, 0.5])))
    assert bounds_of(step) == (-0.25, 2.75)
    np.testing.assert_array_equal(step.placed[0].affine.shift, [0.5, 6, 0.5])
    all_dead = assert_passes(clamped(0.0, 6.0), "push", on(1, ChannelAffine(np.zeros(3), [-1.0, 2, 9])))
    assert all_dead.edits == ()
    np.testing.assert_array_equal(all_dead.placed[0].affine.shift, [0, 2, 6])


def test_a_zero_that_stays_a_zero_is_one_exactly() -> None:
    (edit,) = assert_passes(clamped(0.0, 6.0), "push", on(1, ChannelAffine([-0.3, -0.7, -0.1], np.zeros(3)))).edits
    assert isinstance(edit, SetBounds)
    assert edit.bounds.high == 0
    assert not np.signbit(edit.bounds.high)


def test_a_bound_for_each_channel_is_refused_where_nothing_may_be_spent() -> None:
    for ask in (pull, push):
        assert_refuses(ask(clamped(), on(1, POSITIVE)), Reason.COSTS_MORE)
        assert_refuses(ask(clamped(0.0, 6.0), on(1, affine(3, shift=False))), Reason.COSTS_MORE)
        assert_refuses(ask(clamped(ONE_EACH), on(1, SIGNED)), Reason.COSTS_MORE)  # a Max and a Min for a Max
        for net in (clamped(ONE_EACH), clamped(ONE_EACH, ONE_EACH + 1)):
            assert isinstance(ask(net, on(1, POSITIVE)), Step)


def test_a_bound_for_each_channel_is_refused_where_no_operator_holds_one() -> None:
    for direction in ("pull", "push"):
        net = clamped(may_vary=False)
        assert_refuses(spending(net, direction, on(1, POSITIVE)), Reason.SHIFT_MEETS_ACTIVATION)
        assert_refuses(spending(clamped(0.0, 6.0, may_vary=False), direction, on(1, affine(3, shift=False))),
                       Reason.OPERATOR_HAS_NO_RULE)  # fmt: skip
        assert isinstance(spending(net, direction, on(1, EQUAL)), Step)


def test_a_bound_that_leaves_the_range_is_refused_and_not_taken_for_none() -> None:
    huge, tiny = ChannelAffine([1e200] * 3, np.zeros(3)), ChannelAffine([1e-200] * 3, np.zeros(3))
    assert_refuses(spending(clamped(0.0, 1e200), "pull", on(1, huge)), Reason.OVERFLOWS_DTYPE)
    assert_refuses(spending(clamped(0.0, 1e200), "push", on(1, tiny)), Reason.OVERFLOWS_DTYPE)


def test_pending_bounds_are_composed() -> None:
    net = clamped(-0.5, 1.5)
    first = assert_passes(net, "push", on(1, SIGNED))
    bench = edited(net, first.edits)
    bench.budget = np.inf
    second = carriers.push(net.operators[-1], {0: on(1, POSITIVE)}, bench)
    assert isinstance(second, Step)
    both = edited(net, second.edits)
    x = net.samples["x"]
    result = net.run(net.operators[-1], both, [x])[0]
    moved = apply_placed(on(1, SIGNED), apply_placed(on(1, POSITIVE), x))
    expected = np.clip(moved, -0.5, 1.5)
    actual = apply_placed(on(1, SIGNED), apply_placed(on(1, POSITIVE), result))
    assert np.abs(actual - expected).max() <= EXACT * np.abs(expected).max()


def test_without_a_rank_only_a_scale_that_moves_no_bound_passes() -> None:
    for low, high, passes in ((0.0, np.inf, True), (-np.inf, 0.0, True), (0.0, 6.0, False)):
        net = Net(x=draw(2, 3, 4, 4))
        bounds = Bounds(np.array(low), np.array(high))
        net.add(Clamp(None, FLOAT32), "x", run=lambda _op, _held, xs: xs[0], bounds=bounds)
        for ask in (pull, push):
            answer = ask(net, on(1, affine(3, shift=False)))
            assert isinstance(answer, Step) is passes
            assert_refuses(ask(net, on(1, POSITIVE)), Reason.AXIS_NOT_PROVEN)
            assert_refuses(ask(net, on(1, affine(3, positive=False, shift=False))), Reason.AXIS_NOT_PROVEN)


def test_bounds_that_cross_or_are_no_numbers_are_no_bounds() -> None:
    for low, high in ((1.0, 0.0), (np.nan, 1.0), (0.0, np.nan)):
        with pytest.raises(ValueError, match="low bound"):
            Bounds(np.array(low), np.array(high))
