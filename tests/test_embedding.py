"""Kernels in a common frame: the sum of several convolutions is the convolution with the sum of their kernels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.affine import ChannelAffine
from bnfold.embedding import Branch, Geometry, frame_of, in_groups, merged
from bnfold.linear import LinearParams


def convolve(x: np.ndarray, branch: Branch) -> np.ndarray:
    """A convolution over any spatial axes as its definition says, output by output."""
    geometry, weight = branch.geometry, branch.params.weight
    x = np.pad(x, [(0, 0), *zip(geometry.begins, geometry.ends, strict=True)])
    spans = [d * (k - 1) + 1 for d, k in zip(geometry.dilations, geometry.kernel, strict=True)]
    sizes = [(n - span) // s + 1 for n, span, s in zip(x.shape[1:], spans, geometry.strides, strict=True)]
    out = np.zeros((branch.params.outputs, *sizes))
    for place in np.ndindex(*sizes):
        starts = [p * s for p, s in zip(place, geometry.strides, strict=True)]
        window = tuple(slice(a, a + span, d) for a, span, d in zip(starts, spans, geometry.dilations, strict=True))
        seen = x[(slice(None), *window)].reshape(weight.shape[0], weight.shape[2], *geometry.kernel)
        letters = "uvw"[: len(sizes)]
        out[(slice(None), *place)] = np.einsum(f"goi{letters},gi{letters}->go", weight, seen).ravel()
    return out + branch.params.bias.reshape(-1, *[1] * len(sizes))


@st.composite
def families(draw: st.DrawFn) -> tuple[list[tuple[int, Branch]], int]:
    """Branches of four channels that keep the output size of a common frame, and the groups of the coarsest."""
    rank = draw(st.integers(0, 2))
    strides = tuple(draw(st.integers(1, 2)) for _ in range(rank))
    dilations = tuple(draw(st.integers(1, 2)) for _ in range(rank))
    found, groups = [], 4
    for _ in range(draw(st.integers(2, 4))):
        own = draw(st.sampled_from((1, 2, 4)))
        groups = min(groups, own)
        before = tuple(draw(st.integers(0, 1)) for _ in range(rank))
        after = tuple(draw(st.integers(0, 1)) for _ in range(rank))
        kernel = tuple(1 + b + a for b, a in zip(before, after, strict=True))
        pads = [tuple(d * n for d, n in zip(dilations, side, strict=True)) for side in (before, after)]
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        params = LinearParams(rng.standard_normal((own, 4 // own, 4 // own, *kernel)), rng.standard_normal(4))
        found.append((draw(st.sampled_from((1, -1))), Branch(params, Geometry(kernel, strides, dilations, *pads))))
    return found, groups


@settings(deadline=None)
@given(families())
def test_the_convolution_with_the_sum_is_the_sum_of_the_convolutions(
    family: tuple[list[tuple[int, Branch]], int],
) -> None:
    branches, groups = family
    frame = frame_of([branch.geometry for _, branch in branches])
    assert frame is not None
    x = np.random.default_rng(5).standard_normal((4, *(7, 6)[: len(frame.kernel)]))
    expected = sum(sign * convolve(x, branch) for sign, branch in branches)
    found = convolve(x, Branch(merged(branches, frame, groups), frame))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def geometry(kernel: int, begin: int, end: int, *, stride: int = 1, dilation: int = 1) -> Geometry:
    return Geometry((kernel,), (stride,), (dilation,), (begin,), (end,))


@pytest.mark.parametrize(
    ("geometries", "frame"),
    [
        ([geometry(3, 1, 1), geometry(1, 0, 0)], geometry(3, 1, 1)),
        ([geometry(3, 1, 1, dilation=2), geometry(1, 0, 0)], None),  # the sizes differ
        ([geometry(3, 2, 2, dilation=2), geometry(1, 0, 0, dilation=3)], geometry(3, 2, 2, dilation=2)),
        ([geometry(3, 2, 0), geometry(3, 0, 2)], geometry(5, 2, 2)),
        ([geometry(3, 1, 1), geometry(3, 1, 1, stride=2)], None),
        ([geometry(3, 1, 1), geometry(3, 2, 2, dilation=2)], None),
        ([geometry(3, 1, 3, dilation=2), geometry(1, 0, 0)], None),  # the single tap would fall between two
        ([geometry(3, 1, 1), geometry(2, 0, 1)], geometry(3, 1, 1)),
        ([geometry(3, 1, 1), geometry(2, 0, 0)], None),
        ([Geometry.point(()), Geometry.point(())], Geometry.point(())),
    ],
)
def test_windows_have_a_frame_where_their_taps_fall_on_it_and_their_outputs_are_as_many(
    geometries: list[Geometry], frame: Geometry | None
) -> None:
    assert frame_of(geometries) == frame
    assert frame_of(geometries[::-1]) == frame


def test_an_affine_is_a_kernel_of_one_tap_in_any_number_of_groups() -> None:
    affine = ChannelAffine(np.array([1.0, -2, 3, 0]), np.array([0.0, 1, 2, 3]))
    x = np.random.default_rng(1).standard_normal((4, 5, 3))
    for groups in (1, 2, 4):
        found = convolve(x, Branch.of_affine(affine, groups, 2))
        np.testing.assert_array_equal(found, np.moveaxis(affine.apply(np.moveaxis(x, 0, -1)), -1, 0))


def test_fewer_groups_compute_the_same() -> None:
    weight = np.random.default_rng(2).standard_normal((4, 2, 3, 2))
    x = np.random.default_rng(3).standard_normal((12, 6))
    point = Geometry((2,), (1,), (1,), (0,), (0,))
    expected = convolve(x, Branch(LinearParams(weight, np.zeros(8)), point))
    for groups in (1, 2, 4):
        wide = in_groups(weight, groups)
        assert wide.shape == (groups, 8 // groups, 12 // groups, 2)
        np.testing.assert_allclose(convolve(x, Branch(LinearParams(wide, np.zeros(8)), point)), expected, atol=1e-13)
