"""A linear operator absorbs what lives on its channels, and a shift at its input only where the view allows it."""

from __future__ import annotations

import numpy as np
import pytest
from carrier_laws import assert_pulls, assert_pushes, assert_refuses, on, pull, push
from fold_graph import Net, affine, draw

from bnfold.affine import ChannelAffine
from bnfold.decision import Reason, Refusal
from bnfold.graph import AbsorbInput, AbsorbOutput, PlacedAffine, Step
from bnfold.views import Barrier, Carrier

SIGNED, OUTPUT = affine(4, positive=False), affine(6, positive=False)
EVERYWHERE = PlacedAffine(ChannelAffine([-2.0], [0.5]), (), ())


def conv(pad: int = 0, per_group: int = 4) -> Net:
    net = Net(x=draw(2, 4, 5, 5))
    net.conv("x", draw(6, per_group, 3, 3, seed=2), draw(6, seed=3), pad)
    return net


@pytest.mark.parametrize("per_group", [4, 2])
@pytest.mark.parametrize("pad", [0, 1])
def test_the_output_absorbs_any_affine(pad: int, per_group: int) -> None:
    (edit,) = assert_pulls(conv(pad, per_group), on(1, OUTPUT)).edits
    assert isinstance(edit, AbsorbOutput)
    assert_pulls(conv(pad, per_group), EVERYWHERE)


@pytest.mark.parametrize("per_group", [4, 2])
def test_the_input_absorbs_any_affine_where_no_padding_is_seen(per_group: int) -> None:
    (edit,) = assert_pushes(conv(0, per_group), on(1, SIGNED)).edits
    assert isinstance(edit, AbsorbInput)
    assert_pushes(conv(0, per_group), EVERYWHERE)


def test_the_input_absorbs_a_scale_but_no_shift_where_padding_is_seen() -> None:
    assert_pushes(conv(1), on(1, SIGNED.scale_only))
    assert_refuses(push(conv(1), on(1, SIGNED)), Reason.SHIFT_MEETS_PADDING)
    assert_refuses(push(conv(1), EVERYWHERE), Reason.SHIFT_MEETS_PADDING)


@pytest.mark.parametrize("placed", [on(2, affine(6)), on(1, affine(5)), PlacedAffine(affine(6), (1, 2), (2, 3))])
def test_an_affine_that_does_not_live_on_the_channels_refuses(placed: PlacedAffine) -> None:
    assert_refuses(pull(conv(), placed), Reason.OPERATOR_MIXES_CHANNELS)
    assert_refuses(push(conv(), placed), Reason.OPERATOR_MIXES_CHANNELS)


def test_a_matmul_has_its_channels_last() -> None:
    net = Net(x=draw(2, 6, 4))
    net.matmul("x", draw(4, 6), draw(6))
    assert_pulls(net, on(2, OUTPUT))
    assert_pushes(net, on(2, SIGNED))
    assert_refuses(pull(net, on(1, OUTPUT)), Reason.OPERATOR_MIXES_CHANNELS)
    assert_refuses(push(net, on(1, OUTPUT)), Reason.OPERATOR_MIXES_CHANNELS)


def test_a_barrier_gives_its_own_reason_whichever_input_carries_the_affine() -> None:
    net = Net(x=draw(2, 4, 5, 5), y=draw(2, 4, 5, 5))
    refusal = Refusal(Reason.OPERATOR_HAS_NO_RULE, "product", "Mul of two variables")
    net.add(Barrier(refusal), "x", "y", run=lambda _op, _held, xs: xs[0] * xs[1])
    assert pull(net, on(1, SIGNED)) is refusal
    assert push(net, on(1, SIGNED), None) is refusal
    assert push(net, None, on(1, SIGNED)) is refusal
    assert push(net, on(1, SIGNED), on(1, SIGNED)) is refusal


def test_an_affine_on_an_input_that_is_not_the_data_refuses() -> None:
    net = Net(x=draw(2, 4, 5, 5), shape=np.ones(4))
    net.add(_own(), "x", "shape", run=lambda _op, _held, xs: -xs[0])
    assert_refuses(push(net, None, on(0, SIGNED)), Reason.OPERATOR_IS_NOT_LINEAR)
    assert_refuses(push(net, on(1, SIGNED), on(0, SIGNED)), Reason.OPERATOR_IS_NOT_LINEAR)


def _own() -> Carrier:
    """Neg: `s*(-x) + t = -(s*x - t)`."""

    def turned(_operator: object, placed: PlacedAffine) -> Step:
        return Step({0: placed.with_affine(ChannelAffine(placed.affine.scale, -placed.affine.shift))})

    return Carrier(turned, turned)


def test_an_operator_of_ones_own_passes_by_its_own_rules() -> None:
    net = Net(x=draw(2, 4, 5, 5))
    net.add(_own(), "x", run=lambda _op, _held, xs: -xs[0])
    assert_pulls(net, on(1, SIGNED))
    assert_pushes(net, on(1, SIGNED))
