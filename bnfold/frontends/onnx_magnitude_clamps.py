"""Rounding bounds of Clip, Max and Min: `E = max(Ex, |c|)` for a stored bound c, as all three are 1-Lipschitz in each.

`M = max(Mx, c)` behind a low bound and `max(Mx, -c)` behind a high one; no bound (an infinite one) adds nothing, and
neither does 0, which is stored as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bnfold.frontends.onnx_magnitude_tracks import Array, Bound, TracksBuilder, stored_at

if TYPE_CHECKING:
    from onnx import NodeProto

# A Clip bound this large is how exporters write "no bound".
_NO_BOUND = float(np.finfo(np.float32).max)


def clips(tracks: TracksBuilder, node: NodeProto) -> None:
    """Clip to [low, high], each one number."""
    inputs = {name: i for name, i in (("min", 1), ("max", 2)) if len(node.input) > i and node.input[i]}
    limits = {name: stored_at(tracks, node, i) for name, i in inputs.items()}
    limits.update((a.name, np.asarray(np.float64(a.f))) for a in node.attribute if a.name in {"min", "max"})
    low, high = (limits.get(name) for name in ("min", "max"))
    stored = [value.reshape(()) for value in (low, None if high is None else -high) if value is not None]
    _bounded(tracks, node, [tracks.bound(node.input[0])], [v for v in stored if abs(v) < _NO_BOUND])


def extremes(tracks: TracksBuilder, node: NodeProto) -> None:
    """Max and Min of any number of variables and constants."""
    sign = 1 if node.op_type == "Max" else -1
    constants = [sign * tracks.constants[name] for name in node.input if name in tracks.constants]
    variables = [tracks.bound(name) for name in node.input if name not in tracks.constants]
    if not variables:  # of two stored numbers, either may be the result
        variables, constants = [tracks.bound(name) for name in node.input], []
    _bounded(tracks, node, variables, constants)


def _bounded(tracks: TracksBuilder, node: NodeProto, variables: list[Bound], constants: list[Array]) -> None:
    """The larger of the variables' tracks and what the constants, negated where they bound from above, can be."""
    magnitude = _largest(tracks, [b.magnitude for b in variables], [np.maximum(c, 0) for c in map(_finite, constants)])
    own = [np.where(c == 0, 0.0, tracks.rounded(c)) for c in map(_finite, constants)]
    moves = any(b.error for b in variables) or any(c.any() for c in own)
    error = _largest(tracks, [tracks.error_or_zeros(b) for b in variables], own) if moves else None
    tracks.set_bound(node.output[0], Bound(magnitude, error))


def _finite(constant: Array) -> Array:
    """Without infinite bounds, which are none: zero in their place."""
    return np.where(np.isinf(constant), 0.0, constant)


def _largest(tracks: TracksBuilder, names: list[str], constants: list[Array]) -> str:
    more = [tracks.constant(np.asarray(c)) for c in constants]
    return tracks.node("Max", [*names, *more]) if len(names) + len(more) > 1 else names[0]
