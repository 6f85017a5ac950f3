"""Each gate of range, conditioning and cost, on both sides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fold_graph import FLOAT16, FLOAT32, FLOAT64, Array, Net, affine, draw

from bnfold.affine import ChannelAffine
from bnfold.decision import Folded, Kept, Reason, Reduced
from bnfold.folding import plan
from bnfold.views import Arithmetic, Product, Sum
from bnfold.window_views import Average, Pad

LARGEST16, SUBNORMAL16 = 65504.0, 2.0**-24
ONES = np.ones((3, 3, 1, 1))


def image() -> Net:
    return Net(x=draw(2, 3, 4, 4))


def outcome(net: Net, number: int = 0) -> Reason | None:
    """The last reason of a decision; None where it folded."""
    decision = plan(net).decisions[number]
    assert isinstance(decision, Folded | Kept | Reduced)
    return decision.refusals[-1].reason if isinstance(decision, Kept | Reduced) else None


def scaled(*scale: float) -> ChannelAffine:
    return ChannelAffine(scale, np.zeros(len(scale)))


def pushed(affine_: ChannelAffine, **more: Any) -> Net:
    net = image()
    net.output(net.conv(net.bn("x", affine_, **more), draw(3, 3, 3, 3)))
    return net


@pytest.mark.parametrize(
    ("offset", "reason"), [(8.0, None), (8.000001, Reason.ILL_CONDITIONED), (np.nan, Reason.ILL_CONDITIONED)]
)
def test_a_shift_is_pushed_up_to_an_offset_of_eight(offset: float, reason: Reason | None) -> None:
    assert outcome(pushed(affine(3), offset=offset)) is reason


def test_a_scale_alone_is_pushed_whatever_the_offset() -> None:
    assert outcome(pushed(affine(3, shift=False), offset=1e6)) is None


def test_a_shift_is_pulled_whatever_the_offset() -> None:
    net = image()
    net.output(net.bn(net.conv("x", draw(3, 3, 3, 3)), affine(3), offset=1e6))
    assert outcome(net) is None


@pytest.mark.parametrize(("shift", "reason"), [(8.0, None), (-8.01, Reason.ILL_CONDITIONED)])
def test_a_chain_without_statistics_is_judged_by_its_shift(shift: float, reason: Reason | None) -> None:
    net = image()
    value = net.arithmetic(Arithmetic.MULTIPLY, "x", np.array([1.0, 2, 3]).reshape(3, 1, 1))
    net.output(net.conv(net.arithmetic(Arithmetic.ADD, value, np.full((3, 1, 1), shift)), draw(3, 3, 3, 3)))
    assert outcome(net) is reason


def test_the_largest_offset_of_a_run_counts() -> None:
    net = image()
    value = net.bn(net.bn("x", affine(3), offset=9.0), affine(3, 2), offset=1.0)
    net.output(net.conv(value, draw(3, 3, 3, 3)))
    assert outcome(net) is Reason.ILL_CONDITIONED


def stored_in(dtype: np.dtype[Any], scale: float, shift: float = 0.0, *, pull: bool = True) -> Net:
    """A 1x1 Conv whose weights are 1 in `dtype`, and a BatchNorm behind or before it."""
    net, scale_shift = image(), ChannelAffine([1.0, scale, 1.0], [0.0, shift, 0.0])
    weight = np.eye(3).reshape(3, 3, 1, 1)
    if pull:
        net.output(net.bn(net.conv("x", weight, stored_as=dtype), scale_shift, before=1e9))
    else:
        net.output(net.conv(net.bn("x", scale_shift), weight, stored_as=dtype))
    return net


@pytest.mark.parametrize("pull", [True, False])
@pytest.mark.parametrize(
    ("scale", "shift", "reason"),
    [
        (LARGEST16, 0.0, None),
        (-LARGEST16 * 1.0001, 0.0, Reason.OVERFLOWS_DTYPE),
        (1.0, LARGEST16, None),
        (1.0, -LARGEST16 * 1.0001, Reason.OVERFLOWS_DTYPE),
        (2**10 * SUBNORMAL16, 0.0, None),
        (2**10 * SUBNORMAL16 * 0.9999, 0.0, Reason.UNDERFLOWS_DTYPE),
        (0.0, 0.0, None),  # a dead channel is no loss
    ],
)
def test_a_folded_number_must_fit_the_stored_dtype(
    pull: bool, scale: float, shift: float, reason: Reason | None
) -> None:
    made = plan(stored_in(FLOAT16, scale, shift, pull=pull)).decisions[0]
    refused = made.refusals[0 if pull else -1].reason if isinstance(made, Kept | Reduced) else None
    assert refused is reason
    assert isinstance(plan(stored_in(FLOAT32, scale, shift, pull=pull)).decisions[0], Folded)


def test_weights_that_were_small_before_may_stay_small_but_not_become_smaller() -> None:
    for scale, reason in ((1.0, None), (2.0, None), (0.5, Reason.UNDERFLOWS_DTYPE)):
        net = image()
        weight = np.full((3, 3, 1, 1), 100 * SUBNORMAL16)
        net.output(net.bn(net.conv("x", weight, stored_as=FLOAT16), ChannelAffine(np.full(3, scale), [1.0, 2, 3])))
        made = plan(net).decisions[0]
        assert (made.refusals[0].reason if isinstance(made, Kept | Reduced) else None) is reason


@pytest.mark.parametrize(("low", "reason"), [(2**10 * SUBNORMAL16, None), (100 * SUBNORMAL16, Reason.UNDERFLOWS_DTYPE)])
@pytest.mark.parametrize("high", [1.0, LARGEST16 * 1.001])
def test_a_batchnorm_that_stays_must_hold_the_folded_numbers(low: float, high: float, reason: Reason | None) -> None:
    net = image()
    deviation = np.linspace(0.5, 2, 3)
    value = net.homogeneous(net.bn("x", ChannelAffine([low, high, 1] / deviation, np.zeros(3))))
    # Its shift does not pass the activation, and its output is the model's: it stays, and takes in the other.
    net.output(net.bn(value, ChannelAffine(np.ones(3), np.ones(3)), stored_as=FLOAT16, name="stays"))
    decision = plan(net).decisions[0]
    expected = Reason.OVERFLOWS_DTYPE if high > LARGEST16 else reason
    assert (decision.refusals[-1].reason if isinstance(decision, Kept | Reduced) else None) is expected


@pytest.mark.parametrize("parameter", [0, 1])
def test_a_number_that_is_not_finite_is_never_stored(parameter: int) -> None:
    """In a BatchNorm that stays because its own statistics are not finite; beta alone, or gamma."""
    numbers = [np.ones(3), np.zeros(3)]
    numbers[parameter][2] = np.nan
    net = image()
    with np.errstate(all="ignore"):
        broken = net.bn(net.conv("x", ONES), ChannelAffine(*numbers), name="broken")
        net.output(net.bn(net.homogeneous(broken), scaled(1.0, 2, 3)))
    made = plan(net).decisions[1]
    assert isinstance(made, Kept | Reduced)
    assert made.refusals[0].reason is Reason.OVERFLOWS_DTYPE


@pytest.mark.parametrize(("scale", "reason"), [(1e-3, None), (1e-5, Reason.OVERFLOWS_DTYPE)])
def test_a_constant_must_fit_its_dtype_after_the_fold(scale: float, reason: Reason | None) -> None:
    net = image()
    value = net.arithmetic(Arithmetic.ADD, net.bn("x", scaled(1, scale, 1)), np.ones((4, 4)), FLOAT16)
    net.output(net.conv(value, ONES))
    assert outcome(net) is reason


@pytest.mark.parametrize(("shift", "reason"), [(1e4, None), (1e5, Reason.OVERFLOWS_DTYPE)])
def test_the_padding_must_fit_its_dtype_after_the_fold(shift: float, reason: Reason | None) -> None:
    net = image()
    value = net.pad(net.conv("x", ONES), Pad((0, 0, 1, 1), (0, 0, 1, 1), 0.0, FLOAT16))
    net.output(net.bn(value, ChannelAffine(np.ones(3), np.full(3, shift))))
    made = plan(net).decisions[0]
    assert (made.refusals[0].reason if isinstance(made, Kept | Reduced) else None) is reason


def test_numbers_beyond_float64_are_refused_without_a_warning() -> None:
    net = image()
    with np.errstate(all="ignore"):
        net.output(net.bn(net.conv("x", ONES * 1e200, stored_as=FLOAT64), scaled(1e200, 1, 1)))
    made = plan(net).decisions[0]
    assert isinstance(made, Kept | Reduced)
    assert made.refusals[0].reason is Reason.OVERFLOWS_DTYPE


def far(direction: str, source: ChannelAffine, dtype: np.dtype[Any] = FLOAT16, **sizes: float) -> Net:
    """A BatchNorm with an average between it and the Conv that absorbs it."""
    net = image()
    if direction == "pull":
        net.output(net.bn(net.pool(net.conv("x", ONES), Average((2, 3)), dtype=dtype), source, **sizes))
    else:
        net.output(net.conv(net.pool(net.bn("x", source, **sizes), Average((2, 3)), dtype=dtype), ONES))
    return net


JOINS = {Sum(): np.add, Sum(-1): np.subtract, Product(): np.multiply}
SMALL, LARGE = LARGEST16 / 16, LARGEST16 / 16 * 1.001


@pytest.mark.parametrize("direction", ["pull", "push"])
@pytest.mark.parametrize(
    ("old", "new", "safe"), [(1.0, SMALL, True), (1.0, LARGE, False), (LARGE, LARGE, True), (1.0, np.nan, False)]
)
def test_activations_in_float16_may_grow_within_a_share_of_the_range(
    direction: str, old: float, new: float, safe: bool
) -> None:
    before, after = (old, new) if direction == "pull" else (new, old)
    for dtype, folds in ((FLOAT16, safe), (FLOAT32, True)):
        made = plan(far(direction, affine(3), dtype, before=before, after=after)).decisions[0]
        assert isinstance(made, Folded) is folds
        assert folds or Reason.ACTIVATIONS_MIGHT_OVERFLOW in {r.reason for r in made.refusals}  # type: ignore[union-attr]


def test_activations_next_to_the_conv_that_absorbs_are_those_of_the_batchnorm() -> None:
    net = image()
    net.output(net.bn(net.conv("x", ONES, dtype=FLOAT16), affine(3), before=1.0, after=LARGE))
    assert outcome(net) is None


@pytest.mark.parametrize("direction", ["pull", "push"])
@pytest.mark.parametrize(
    ("scale", "shift", "pulls", "pushes"),
    [(1.0, 1.0, True, True), (0.5, 0.5, True, False), (2.0, 0.5, False, True), (1.0, 1.5, False, False)],
)
def test_without_statistics_activations_in_float16_must_not_grow(
    direction: str, scale: float, shift: float, pulls: bool, pushes: bool
) -> None:
    net = image()
    start = net.conv("x", ONES) if direction == "pull" else "x"
    value = net.pool(start, Average((2, 3)), dtype=FLOAT16) if direction == "pull" else start
    value = net.arithmetic(Arithmetic.MULTIPLY, value, np.array([1.0, 1, -scale]).reshape(3, 1, 1))
    value = net.arithmetic(Arithmetic.ADD, value, np.array([0.0, 0, shift]).reshape(3, 1, 1))
    net.output(value if direction == "pull" else net.conv(net.pool(value, Average((2, 3)), dtype=FLOAT16), ONES))
    assert isinstance(plan(net).decisions[0], Folded) is (pulls if direction == "pull" else pushes)


@pytest.mark.parametrize("joined", [Sum(), Sum(-1), Product()])
@pytest.mark.parametrize(("scale", "folds"), [(0.5, True), (1.0, True), (2.0, False)])
def test_operands_in_float16_must_not_grow_whatever_their_sum_or_product_is(
    joined: Sum | Product, scale: float, folds: bool
) -> None:
    """`60000 - 60000` is small, and twice its operands does not fit."""
    for dtype in (FLOAT16, FLOAT32):
        net = image()
        a, b = net.conv("x", ONES), net.conv("x", 2 * ONES)
        value = net.add(joined, a, b, run=lambda _op, _held, xs: JOINS[joined](xs[0], xs[1]), dtype=dtype)
        net.output(net.bn(value, ChannelAffine([scale, 1, -1], np.zeros(3)), before=1.0, after=1.0))
        decision = plan(net, merges=False).decisions[0]
        assert isinstance(decision, Folded) is (folds or dtype == FLOAT32)
        if isinstance(decision, Kept):
            assert decision.refusals[0].reason is Reason.ACTIVATIONS_MIGHT_OVERFLOW


def readers(count: int, source: ChannelAffine, bias: Array | None = None) -> Net:
    """A BatchNorm that `count` MatMuls read."""
    net = Net(x=draw(4, 3))
    value = net.bn("x", source)
    for seed in range(count):
        net.output(net.matmul(value, draw(3, 5, seed=seed), bias))
    return net


@pytest.mark.parametrize(("count", "reason"), [(1, None), (2, Reason.COSTS_MORE)])
def test_a_new_add_is_as_dear_as_a_batchnorm(count: int, reason: Reason | None) -> None:
    assert outcome(readers(count, affine(3))) is reason
    assert outcome(readers(count, affine(3, shift=False))) is None  # a scale needs no Add
    assert outcome(readers(count, affine(3), draw(5))) is None  # the Add is there


@pytest.mark.parametrize(("count", "reason"), [(2, None), (3, Reason.COSTS_MORE)])
def test_a_constant_operator_is_as_dear_as_an_add(count: int, reason: Reason | None) -> None:
    net = Net(x=draw(4, 3))
    value = net.arithmetic(Arithmetic.ADD, net.arithmetic(Arithmetic.MULTIPLY, "x", np.array([1.0, 2, 3])), np.ones(3))
    for seed in range(count):
        net.output(net.matmul(value, draw(3, 5, seed=seed)))
    assert outcome(net) is reason


def gated(source: ChannelAffine, shape: tuple[int, ...], *bounds: float, clamps: int = 1) -> Net:
    """A BatchNorm, one or more clamps, each before a linear operator."""
    net = Net(x=draw(*shape))
    value = net.bn("x", source)
    for seed in range(clamps):
        kept = net.clamp(value, *bounds)
        net.output(net.conv(kept, draw(2, 3, *(1,) * (len(shape) - 2), seed=seed)))
    return net


SIGNED = affine(3, positive=False)


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (gated(affine(3), (2, 3, 5)), None),
        (gated(affine(3), (2, 3, 5, 5)), Reason.COSTS_MORE),  # an image
        (gated(affine(3), (2, 3, 5), clamps=2), Reason.COSTS_MORE),
        (gated(SIGNED, (2, 3, 5)), Reason.COSTS_MORE),  # a Max and a Min
        (gated(affine(3), (2, 3, 5), 0.0, 6.0), Reason.COSTS_MORE),
        (gated(ChannelAffine([2.0] * 3, [1.0] * 3), (2, 3, 5, 5), 0.0, 6.0), None),  # one number a side
    ],
    ids=["one side", "image", "two clamps", "both signs", "two sides", "equal"],
)
def test_a_bound_for_each_channel_may_cost_no_more_than_the_batchnorm(net: Net, reason: Reason | None) -> None:
    assert outcome(net) is reason
    assert all(isinstance(d, Folded) for d in plan(net, reduces=True).decisions)


def test_a_clamp_that_the_runtime_merges_with_the_operator_before_it_is_dear() -> None:
    for folds, net in ((False, Net(x=draw(2, 3, 5))), (True, Net(x=draw(2, 3, 5)))):
        inner = net.conv("x", draw(3, 3, 1))
        value = net.reduce(inner, Average((2,))) if folds else inner
        net.output(net.bn(net.clamp(value), affine(3)))
        assert isinstance(plan(net).decisions[0], Folded) is folds


@pytest.mark.parametrize(("bound", "safe"), [(SMALL, True), (LARGE, False)])
def test_a_bound_in_float16_is_a_size_that_activations_may_have(bound: float, safe: bool) -> None:
    net = Net(x=draw(2, 3, 5))
    value = net.clamp(net.bn("x", ChannelAffine([1.0, 1, 1], [0, -bound, 1]), before=1.0, after=1.0), dtype=FLOAT16)
    net.output(net.conv(value, draw(2, 3, 1)))
    assert outcome(net) is (None if safe else Reason.ACTIVATIONS_MIGHT_OVERFLOW)


@pytest.mark.parametrize(("shift", "reason"), [(3e38, None), (3.5e38, Reason.OVERFLOWS_DTYPE)])
def test_a_bound_must_fit_its_dtype_after_the_fold(shift: float, reason: Reason | None) -> None:
    net = Net(x=draw(2, 3, 5))
    value = net.clamp(net.bn("x", ChannelAffine([1e-30, 1, 1], [shift * 1e-30, 1, 0])))
    net.output(net.conv(value, np.ones((2, 3, 1))))
    assert outcome(net) is reason
