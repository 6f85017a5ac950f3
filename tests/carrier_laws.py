"""What every carrier must keep: pulled and pushed affines describe the same function, in float64."""

from __future__ import annotations

import numpy as np
from fold_graph import Net, apply_placed, edited

from bnfold import carriers
from bnfold.affine import ChannelAffine
from bnfold.bench import Bench
from bnfold.decision import Reason, Refusal
from bnfold.graph import PlacedAffine, Step

#: Relative to the largest element; both sides are computed in float64.
EXACT = 1e-12


def on(axis: int, affine: ChannelAffine) -> PlacedAffine:
    """The affine on one axis."""
    return PlacedAffine.on_axis(affine, axis)


def pull(net: Net, wanted: PlacedAffine) -> Step | Refusal:
    """What the last operator asks for."""
    return carriers.pull(net.operators[-1], wanted, Bench(net))


def push(net: Net, *seen: PlacedAffine | None) -> Step | Refusal:
    """What is seen after the last operator; None for an input that carries nothing."""
    given = {i: placed for i, placed in enumerate(seen) if placed is not None}
    return carriers.push(net.operators[-1], given, Bench(net))


def assert_pulls(net: Net, wanted: PlacedAffine) -> Step:
    """`wanted(F(x)) == F'(asked(x))` with the edits in F'; returns the step."""
    step = pull(net, wanted)
    assert isinstance(step, Step), step
    operator = net.operators[-1]
    xs = [net.samples[v] for v in operator.inputs]
    asked = [apply_placed(step.placed.get(i), x) for i, x in enumerate(xs)]
    expected = apply_placed(wanted, net.run(operator, net, xs)[0])
    same(net.run(operator, edited(net, step.edits), asked)[0], expected)
    return step


def assert_pushes(net: Net, *seen: PlacedAffine | None) -> Step:
    """`F(seen(x)) == after(F'(x))` with the edits in F'; returns the step."""
    step = push(net, *seen)
    assert isinstance(step, Step), step
    operator = net.operators[-1]
    xs = [net.samples[v] for v in operator.inputs]
    changed = [apply_placed(placed, x) for placed, x in zip(seen, xs, strict=True)]
    expected = net.run(operator, net, changed)[0]
    same(apply_placed(step.placed.get(0), net.run(operator, edited(net, step.edits), xs)[0]), expected)
    return step


def assert_refuses(answer: Step | Refusal, reason: Reason) -> None:
    """The answer is a refusal, for this reason."""
    assert isinstance(answer, Refusal), answer
    assert answer.reason is reason


def same(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for rounding in float64; infinite where expected."""
    finite = np.isfinite(expected)
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(actual[~finite], expected[~finite])
    scale = np.abs(expected[finite]).max(initial=1e-300)
    assert np.abs(actual[finite] - expected[finite]).max(initial=0.0) <= EXACT * scale
