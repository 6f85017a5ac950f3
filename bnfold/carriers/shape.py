"""Operators that move elements and change none: `reshape(s*x + t) = s'*reshape(x) + t'`, with s and t moved along.

Same (Identity, Dropout, Cast to the same type), Transpose, Reshape. Exact in both directions wherever the axis can be
followed: sizes and the products before and after them are proven equal, never assumed.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import TypeAlias

import numpy as np

from bnfold.affine import ChannelAffine
from bnfold.decision import Reason, Refusal
from bnfold.graph import Dim, Operator, PlacedAffine, Shape, Step
from bnfold.views import Transpose

_Group: TypeAlias = tuple[range, range]


def pull_same(_operator: Operator, wanted: PlacedAffine) -> Step:
    """The affine goes on unchanged."""
    return Step({0: wanted})


def push_same(_operator: Operator, seen: PlacedAffine) -> Step:
    """The affine goes on unchanged."""
    return Step({0: seen})


def pull_transpose(_operator: Operator, view: Transpose, wanted: PlacedAffine) -> Step:
    """Output axis i is input axis `perm[i]`."""
    return Step({0: move_axes(wanted, dict(enumerate(view.perm)))})


def push_transpose(_operator: Operator, view: Transpose, seen: PlacedAffine) -> Step:
    """Input axis `perm[i]` is output axis i."""
    return Step({0: move_axes(seen, {axis: i for i, axis in enumerate(view.perm)})})


def pull_reshape(operator: Operator, wanted: PlacedAffine) -> Step | Refusal:
    """From the output's shape back to the input's."""
    return _reshape(operator, wanted, operator.output_shapes[0], operator.input_shapes[0])


def push_reshape(operator: Operator, seen: PlacedAffine) -> Step | Refusal:
    """From the input's shape on to the output's."""
    return _reshape(operator, seen, operator.input_shapes[0], operator.output_shapes[0])


def move_axes(placed: PlacedAffine, to: dict[int, int]) -> PlacedAffine:
    """The same affine with axis a moved to `to[a]`, axes ascending again."""
    moved = [to[axis] for axis in placed.axes]
    order = np.argsort(moved)
    scale = placed.affine.scale.reshape(placed.sizes).transpose(order)
    shift = placed.affine.shift.reshape(placed.sizes).transpose(order)
    affine = ChannelAffine(scale.ravel(), shift.ravel())
    return PlacedAffine(affine, tuple(moved[i] for i in order), tuple(placed.sizes[i] for i in order))


def _reshape(operator: Operator, placed: PlacedAffine, old: Shape | None, new: Shape | None) -> Step | Refusal:
    if not placed.axes:
        return Step({0: placed})
    moved = None if old is None or new is None else reindex(placed, old, new)
    if moved is None:
        return Refusal(Reason.AXIS_NOT_PROVEN, operator.name, f"{_show(old)} to {_show(new)}")
    return Step({0: moved})


def _show(shape: Shape | None) -> str:
    return "unknown shape" if shape is None else "(" + ", ".join("?" if d is None else str(d) for d in shape) + ")"


def reindex(placed: PlacedAffine, old: Shape, new: Shape) -> PlacedAffine | None:
    """`placed` on a value of shape `old`, seen after the value was reshaped to `new`; None where it is not proven.

    Groups of axes that hold the same elements are found first. A group of one axis each moves the axis; any other
    must have known sizes, and the affine is written out over it and read back on the axes on which it depends.
    """
    groups = [g for g in aligned(old, new) if set(g[0]) & set(placed.axes)]
    sizes_of = dict(zip(placed.axes, placed.sizes, strict=True))
    old_axes = [axis for group in groups for axis in group[0]]
    new_axes = [axis for group in groups for axis in group[1]]
    old_dims = [sizes_of.get(axis, old[axis]) for axis in old_axes]
    renamed = {g[1][0]: sizes_of[g[0][0]] for g in groups if len(g[0]) == len(g[1]) == 1}
    new_dims = [renamed.get(axis, new[axis]) for axis in new_axes]
    old_sizes, new_sizes = _known(old_dims, new_dims), _known(new_dims, old_dims)
    if old_sizes is None or new_sizes is None or prod(old_sizes) != prod(new_sizes) or 0 in new_sizes:
        return None
    within = [sizes_of.get(axis, 1) for axis in old_axes]
    arrays = [
        np.broadcast_to(a.reshape(within), old_sizes).reshape(new_sizes)
        for a in (placed.affine.scale, placed.affine.shift)
    ]
    keep = [i for i, axis in enumerate(new_axes) if axis in renamed or any(_varies(a, i) for a in arrays)]
    thin = tuple(slice(None) if i in keep else 0 for i in range(len(new_axes)))
    affine = ChannelAffine(arrays[0][thin].ravel(), arrays[1][thin].ravel())
    return PlacedAffine(affine, tuple(new_axes[i] for i in keep), tuple(arrays[0].shape[i] for i in keep))


def _known(dims: list[Dim], others: list[Dim]) -> list[int] | None:
    """The sizes, if at most one is unknown and follows from `others`, which hold as many elements."""
    known = [size for size in dims if isinstance(size, int)]
    if len(known) == len(dims):
        return known
    total = [size for size in others if isinstance(size, int)]
    if len(known) < len(dims) - 1 or len(total) < len(others) or not prod(known) or prod(total) % prod(known):
        return None
    return [size if isinstance(size, int) else prod(total) // prod(known) for size in dims]


def _varies(array: np.ndarray[tuple[int, ...], np.dtype[np.float64]], axis: int) -> bool:
    return bool((array != array.take([0], axis)).any())


def aligned(old: Shape, new: Shape) -> list[_Group]:
    """Groups of axes of two shapes of one row-major array that hold the same index, as far as it can be proven.

    Matched from both ends by equal products; what is left in the middle is one group, because the totals are equal.
    """
    left = _matched(old, new)
    i, j = (left[-1][0].stop, left[-1][1].stop) if left else (0, 0)
    right = _matched(old[i:][::-1], new[j:][::-1])
    k, m = (right[-1][0].stop, right[-1][1].stop) if right else (0, 0)
    middle = [(range(i, len(old) - k), range(j, len(new) - m))]
    mirrored = [(_mirror(a, len(old)), _mirror(b, len(new))) for a, b in reversed(right)]
    return [*left, *(g for g in middle if len(g[0]) or len(g[1])), *mirrored]


def _mirror(axes: range, length: int) -> range:
    return range(length - axes.stop, length - axes.start)


def _matched(old: Shape, new: Shape) -> list[_Group]:
    """Groups from the left, each the smallest whose products are proven equal."""
    groups: list[_Group] = []
    i = j = 0
    while True:
        ends = sorted(product(range(i + 1, len(old) + 1), range(j + 1, len(new) + 1)), key=sum)
        end = next((e for e in ends if _equal_products(old[i : e[0]], new[j : e[1]])), None)
        if end is None:
            return groups
        groups.append((range(i, end[0]), range(j, end[1])))
        i, j = end


def _equal_products(a: Shape, b: Shape) -> bool:
    if any(d is None or d == 0 for d in (*a, *b)):
        return False
    return _factors(a) == _factors(b)


def _factors(dims: Shape) -> tuple[int, list[str]]:
    return prod(d for d in dims if isinstance(d, int)), sorted(d for d in dims if isinstance(d, str))
