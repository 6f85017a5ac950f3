"""Splitting an affine: an Add is left where that is exact, and nothing where the producers take the rest."""

from __future__ import annotations

import numpy as np
import pytest
from fold_graph import FLOAT16, Net, affine, draw
from test_folding import assert_same_function, image

from bnfold.affine import ChannelAffine
from bnfold.decision import Folded, Kept, Reason, Reduced
from bnfold.folding import FoldPlan, plan
from bnfold.views import Arithmetic

POSITIVE, SIGNED = affine(3, 1), affine(3, 2, positive=False)
KERNEL = draw(3, 3, 3, 3, seed=5)


def decide(net: Net) -> tuple[FoldPlan, list[type]]:
    made = plan(net, reduces=True)
    assert_same_function(net, made)
    return made, [type(d) for d in made.decisions]


@pytest.mark.parametrize("scales", [POSITIVE, SIGNED])
def test_before_zero_padding_an_add_is_left_for_scales_of_any_sign(scales: ChannelAffine) -> None:
    net = image()
    net.output(net.conv(net.bn("x", scales), KERNEL, pad=1))
    made, kinds = decide(net)
    assert kinds == [Reduced]
    (decision,) = made.decisions
    assert isinstance(decision, Reduced)
    assert (decision.to, decision.refusals[-1].reason) == ("Add", Reason.SHIFT_MEETS_PADDING)
    (left,) = made.bench.reduced.values()
    assert (left.affine.scale == 1).all()


def test_no_add_is_left_unless_the_caller_wants_it() -> None:
    net = image()
    net.output(net.conv(net.bn("x", POSITIVE), KERNEL, pad=1))
    assert [type(d) for d in plan(net).decisions] == [Kept]


def test_before_zero_padding_a_scale_of_zero_keeps_the_batchnorm() -> None:
    net = image()
    scales = ChannelAffine(np.where(np.arange(3) == 1, 0.0, POSITIVE.scale), POSITIVE.shift)
    net.output(net.conv(net.bn("x", scales), KERNEL, pad=1))
    assert decide(net)[1] == [Kept]


@pytest.mark.parametrize(("scales", "kind"), [(POSITIVE, Reduced), (SIGNED, Kept)])
def test_before_an_activation_an_add_is_left_for_positive_scales_only(scales: ChannelAffine, kind: type) -> None:
    net = image()
    net.output(net.conv(net.homogeneous(net.bn("x", scales)), KERNEL, pad=1))
    assert decide(net)[1] == [kind]


def test_before_an_even_activation_the_scale_may_have_any_sign() -> None:
    net = image()
    net.output(net.conv(net.homogeneous(net.bn("x", SIGNED), slope=-1), KERNEL, pad=1))
    assert decide(net)[1] == [Reduced]


def test_every_reader_must_take_the_scale() -> None:
    for last, kind in (("conv", Reduced), ("barrier", Kept)):
        net = image()
        value = net.homogeneous(net.bn("x", POSITIVE))
        net.output(net.conv(value, KERNEL, pad=1))
        net.output(net.conv(value, draw(2, 3, 1, 1)) if last == "conv" else net.barrier(value))
        assert decide(net)[1] == [kind]


@pytest.mark.parametrize("reduces", [False, True])
def test_a_shift_that_one_operand_of_a_sum_takes_leaves_nothing(reduces: bool) -> None:
    """The other operand could not take the scale, which goes on through the activation."""
    net = image()
    total = net.sum(net.conv("x", draw(3, 3, 1, 1, seed=1)), net.barrier("x"))
    net.output(net.conv(net.homogeneous(net.bn(total, POSITIVE)), KERNEL, pad=1))
    made = plan(net, reduces=reduces)
    assert_same_function(net, made)
    assert [type(d) for d in made.decisions] == [Folded]
    assert len(made.bench.folds[0].into) == 2


@pytest.mark.parametrize(("second", "kind"), [(1e-3, Folded), (1e2, Kept)])
@pytest.mark.parametrize("zero", [False, True])
def test_signs_and_shift_go_back_where_the_size_would_overflow(second: float, kind: type, zero: bool) -> None:
    scale = np.array([1e4, -1e4, 0.0 if zero else 2e4])
    net = image()
    value = net.bn(net.conv("x", draw(3, 3, 1, 1) * 1e2, stored_as=FLOAT16), ChannelAffine(scale, np.ones(3)))
    net.output(net.conv(net.homogeneous(value), KERNEL * second, pad=1, stored_as=FLOAT16))
    assert decide(net)[1] == [kind]


@pytest.mark.parametrize(("scale", "kind"), [(1.0, Folded), (1e-4, Kept)])
def test_in_float16_what_goes_back_must_fit_too(scale: float, kind: type) -> None:
    net = image()
    total = net.sum(net.conv("x", draw(3, 3, 1, 1, seed=1)), net.barrier("x"))
    value = net.bn(total, ChannelAffine(np.full(3, scale), np.ones(3)), dtype=FLOAT16, before=1.0, after=2.0)
    net.output(net.conv(net.homogeneous(value), KERNEL * 1e3, pad=1))
    assert decide(net)[1] == [kind]


def test_what_is_left_takes_in_nothing_and_is_not_tried_again() -> None:
    net = image()
    value = net.bn(net.homogeneous(net.bn("x", POSITIVE)), POSITIVE)
    net.output(net.conv(value, KERNEL, pad=1))
    made, kinds = decide(net)
    assert kinds.count(Reduced) >= 1
    assert len(made.bench.folds) == len(made.bench.reduced) + len(made.bench.removed)


@pytest.mark.parametrize(("scale", "kind"), [(1.0, Reduced), (1e-6, Kept)])
def test_in_float16_the_shift_must_fit(scale: float, kind: type) -> None:
    net = image()
    affine16 = ChannelAffine(np.full(3, scale), np.ones(3))
    value = net.bn("x", affine16, stored_as=FLOAT16, dtype=FLOAT16, before=1.0, after=2.0)
    net.output(net.conv(value, KERNEL * 1e3, pad=1, stored_as=FLOAT16))
    assert decide(net)[1] == [kind]


def test_an_ill_conditioned_shift_stays_before_the_convolution() -> None:
    net = image()
    net.output(net.conv(net.bn("x", POSITIVE, offset=100.0), KERNEL))
    made, kinds = decide(net)
    assert kinds == [Reduced]
    assert isinstance(made.decisions[0], Reduced)
    assert made.decisions[0].refusals[-1].reason is Reason.ILL_CONDITIONED


def test_chains_on_either_side_of_what_is_left_are_decided_apart() -> None:
    net = image()
    rows = np.array([2.0, 1, 3, 1, 1, 5]).reshape(6, 1)
    value = net.bn(net.arithmetic(Arithmetic.MULTIPLY, net.barrier("x"), rows, name="before"), affine(3, 2), name="bn")
    value = net.arithmetic(Arithmetic.MULTIPLY, value, rows, name="behind")
    net.output(net.conv(value, draw(3, 3, 3, 3), pad=1))
    made = plan(net, reduces=True)
    assert [d.subject.name for d in made.decisions] == ["before", "bn", "behind"]
    assert isinstance(made.decisions[1], Reduced)
