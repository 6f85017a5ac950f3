"""Homogeneous activations pass positive scales; Abs takes any scale pushed into it; no shift passes."""

from __future__ import annotations

import numpy as np
import pytest
from carrier_laws import assert_pulls, assert_pushes, assert_refuses, on, pull, push
from fold_graph import Net, affine, draw

from bnfold.affine import ChannelAffine
from bnfold.decision import Reason

POSITIVE, SIGNED = affine(3, shift=False), affine(3, positive=False, shift=False)
RELU, LEAKY, ABS = 0.0, 0.1, -1.0


def activated(slope: float) -> Net:
    net = Net(x=draw(2, 3, 4, 4))
    net.homogeneous("x", slope)
    return net


@pytest.mark.parametrize("slope", [RELU, LEAKY, ABS])
def test_a_positive_scale_passes_both_ways(slope: float) -> None:
    assert_pulls(activated(slope), on(1, POSITIVE))
    assert_pushes(activated(slope), on(1, POSITIVE))


@pytest.mark.parametrize("slope", [RELU, LEAKY, ABS])
def test_a_shift_does_not_pass(slope: float) -> None:
    shifted = on(1, ChannelAffine([1.0, 1, 1], [0, 0, 1e-9]))
    assert_refuses(pull(activated(slope), shifted), Reason.SHIFT_MEETS_ACTIVATION)
    assert_refuses(push(activated(slope), shifted), Reason.SHIFT_MEETS_ACTIVATION)


@pytest.mark.parametrize("slope", [RELU, LEAKY])
@pytest.mark.parametrize("scale", [SIGNED, ChannelAffine([1.0, 0, 1], np.zeros(3))])
def test_a_scale_that_is_not_positive_does_not_pass(slope: float, scale: ChannelAffine) -> None:
    assert_refuses(pull(activated(slope), on(1, scale)), Reason.SCALE_IS_NOT_POSITIVE)
    assert_refuses(push(activated(slope), on(1, scale)), Reason.SCALE_IS_NOT_POSITIVE)


def test_abs_takes_a_scale_of_any_sign_and_asks_for_positive_ones() -> None:
    step = assert_pushes(activated(ABS), on(1, SIGNED))
    np.testing.assert_array_equal(step.placed[0].affine.scale, np.abs(SIGNED.scale))
    assert_refuses(pull(activated(ABS), on(1, SIGNED)), Reason.SCALE_IS_NOT_POSITIVE)
