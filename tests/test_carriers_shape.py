"""Operators that only move elements: what is proven about the axes is true, and what is not proven is refused."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from carrier_laws import assert_pulls, assert_pushes, assert_refuses, on, pull, push
from fold_graph import Net, affine, apply_placed, draw
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.affine import ChannelAffine
from bnfold.carriers.shape import aligned, reindex
from bnfold.decision import Reason
from bnfold.graph import Dim, PlacedAffine, Shape
from bnfold.views import Same


@st.composite
def factorings(drawn: st.DrawFn, total: int) -> tuple[int, ...]:
    """A shape with `total` elements."""
    shape: list[int] = []
    while total > 1 and len(shape) < 4:
        factor = drawn(st.sampled_from([d for d in range(1, total + 1) if total % d == 0]))
        shape.append(factor)
        total //= factor
    return (*shape, total)


@st.composite
def masked(drawn: st.DrawFn, sizes: tuple[int, ...]) -> Shape:
    """The sizes as a front end may know them: as they are, as a symbol for the same number, or not at all."""
    known: list[Dim] = [drawn(st.sampled_from((size, size, f"d{size}", None))) for size in sizes]
    return tuple(known)


@st.composite
def reshapes(drawn: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], Shape, Shape, PlacedAffine]:
    total = drawn(st.sampled_from((1, 4, 6, 8, 12, 16, 24, 36)))
    old, new = drawn(factorings(total)), drawn(factorings(total))
    axes = tuple(sorted(drawn(st.sets(st.integers(0, len(old) - 1), max_size=2))))
    sizes = tuple(old[a] for a in axes)
    values = st.lists(st.sampled_from((1.0, 2.0, 3.0)), min_size=prod(sizes), max_size=prod(sizes))
    placed = PlacedAffine(ChannelAffine(drawn(values), drawn(values)), axes, sizes)
    return old, new, drawn(masked(old)), drawn(masked(new)), placed


@settings(max_examples=600, deadline=None)
@given(reshapes())
def test_a_reindexed_affine_is_the_reshaped_one_whatever_is_known_of_the_shapes(
    case: tuple[tuple[int, ...], tuple[int, ...], Shape, Shape, PlacedAffine],
) -> None:
    old, new, known_old, known_new, placed = case
    moved = reindex(placed, known_old, known_new)
    if known_old == old and known_new == new:
        assert moved is not None
    if moved is not None:
        x = np.arange(1.0, prod(old) + 1).reshape(old)
        expected = apply_placed(placed, x).reshape(new)
        np.testing.assert_array_equal(apply_placed(moved, x.reshape(new)), expected)


@settings(max_examples=300, deadline=None)
@given(reshapes())
def test_aligned_groups_cover_every_axis_once_and_hold_equally_many_elements(
    case: tuple[tuple[int, ...], tuple[int, ...], Shape, Shape, PlacedAffine],
) -> None:
    old, new, known_old, known_new, _ = case
    groups = aligned(known_old, known_new)
    assert [a for g in groups for a in g[0]] == list(range(len(old)))
    assert [a for g in groups for a in g[1]] == list(range(len(new)))
    assert all(prod(old[a] for a in g[0]) == prod(new[a] for a in g[1]) for g in groups)


C8 = PlacedAffine.on_axis(affine(8), 1)


@pytest.mark.parametrize(
    ("old", "new", "axes"),
    [
        (("N", 8, 4, 5), ("N", 8, 20), (1,)),  # equal product before the channels, equal size
        (("N", 8, "H", "W"), ("N", 8, "HW"), (1,)),  # the rest need not be known
        ((None, 8, None), ("N", 8, 1, None), None),  # nothing says that the first axis is N
        (("N", 8), ("N", 8, 1, 1), (1,)),
        (("N", 8, 4, 5), ("N", 160), (1,)),  # merged: each entry 20 times
        (("N", 8, "H"), ("N", 2, 4, "H"), (1, 2)),  # split
        (("N", 8, 5), (1, "N", 8, 5), (2,)),
        (("N", 8), (8, "N"), None),
        (("N", 8, "H"), ("N", "H", 8), None),
        (("N", 8, "H"), ("N", None), None),
        ((None, 8, None), (None, 8, None), None),  # the product before the channels may have changed
        (("N", 8, 4), ("M", 8, 4), (1,)),  # from the right; then N = M
        (("N", 8, 4), ("N", 4, 8), (1, 2)),  # not one axis any more
        ((2, 8, 0), (2, 0), None),  # no elements
        (("N", 8, 3), ("N", 5, 4), None),  # shapes that contradict each other
    ],
)
def test_an_axis_is_followed_where_that_is_proven(old: Shape, new: Shape, axes: tuple[int, ...] | None) -> None:
    moved = reindex(C8, old, new)
    assert (None if moved is None else moved.axes) == axes


def test_split_channels_come_back_as_one_axis_with_the_same_affine() -> None:
    there = reindex(C8, ("N", 8, "H"), ("N", 2, 4, "H"))
    assert there is not None
    back = reindex(there, ("N", 2, 4, "H"), ("N", 8, "H"))
    assert back is not None
    assert back.equals(C8)


def test_an_affine_that_is_the_same_in_every_channel_lives_on_no_axis_and_fits_any() -> None:
    uniform = on(1, ChannelAffine(np.full(8, 2.0), np.full(8, 3.0)))
    whole = reindex(uniform, ("N", 8, 4, 5), ("N", 8, 20))
    assert whole is not None
    assert whole.axes == (1,)  # an axis that stays whole keeps it
    moved = reindex(uniform, (2, 8, 3), (2, 24))
    assert moved is not None
    assert moved.axes == ()
    assert moved.spread(1, 24) is not None
    assert C8.spread(2, 8) is None
    assert C8.spread(1, 24) is None


def reshaped(*shape: int) -> Net:
    net = Net(x=draw(2, 8, 3, 5))
    net.reshape("x", *shape)
    return net


def test_reshape_pulls_and_pushes_where_the_shapes_are_known() -> None:
    assert assert_pushes(reshaped(2, 120), on(1, affine(8))).placed[0].axes == (1,)
    assert_pulls(reshaped(2, 8, 15), on(1, affine(8, positive=False)))
    assert_pulls(reshaped(2, 120), on(1, affine(120)))
    assert_pushes(reshaped(2, 2, 4, 3, 5), on(1, affine(8)))


def unknown() -> Net:
    net = Net(x=draw(2, 8, 3, 5))
    net.shapes["x"] = None
    net.reshape("x", 2, 8, 15)
    return net


def test_reshape_of_an_unknown_shape_refuses_unless_the_affine_is_the_same_everywhere() -> None:
    assert_refuses(pull(unknown(), on(1, affine(8))), Reason.AXIS_NOT_PROVEN)
    assert_refuses(push(unknown(), on(1, affine(8))), Reason.AXIS_NOT_PROVEN)
    everywhere = PlacedAffine(ChannelAffine([2.0], [1.0]), (), ())
    assert_pulls(unknown(), everywhere)
    assert_pushes(unknown(), everywhere)


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(4)), st.sets(st.integers(0, 3), max_size=3))
def test_transpose_moves_the_affine_with_its_axes(perm: list[int], axes: set[int]) -> None:
    sizes = (2, 3, 4, 5)
    net = Net(x=draw(*sizes))
    net.transpose("x", *perm)
    for check, shape in ((assert_pushes, sizes), (assert_pulls, tuple(sizes[i] for i in perm))):
        chosen = tuple(sorted(axes))
        lengths = tuple(shape[a] for a in chosen)
        check(net, PlacedAffine(affine(prod(lengths)), chosen, lengths))


def test_an_operator_that_changes_nothing_passes_everything() -> None:
    net = Net(x=draw(2, 3, 4))
    net.add(Same(), "x", run=lambda _op, _held, xs: xs[0])
    assert assert_pulls(net, on(1, affine(3, positive=False))).placed[0].axes == (1,)
    assert assert_pushes(net, on(1, affine(3, positive=False))).placed[0].axes == (1,)


@pytest.mark.parametrize(
    ("axes", "sizes", "entries"), [((1, 0), (2, 3), 6), ((1, 1), (2, 2), 4), ((1,), (2, 3), 6), ((1,), (3,), 2)]
)
def test_a_placed_affine_checks_its_axes(axes: tuple[int, ...], sizes: tuple[int, ...], entries: int) -> None:
    with pytest.raises(ValueError, match=r"axes|entries"):
        PlacedAffine(ChannelAffine.identity(entries), axes, sizes)
