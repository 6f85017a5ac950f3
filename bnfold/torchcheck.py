"""Runs a module before and after a fold on seeded inputs, in float64 and as it is stored.

In float64, before the folded numbers are rounded, both must agree to 1e-10 of each channel's scale, or to 4 times what
roundings of the input and in between do to the original, where that is more (a network that amplifies them), but never
more than 1e-7. As stored, the folded one may err by `4*error + 64*u*scale` of each channel, where error is that of the
original, against float64; a module that is stored in float64 may err by what is granted there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.affine import Float64Array
from bnfold.comparison import UNIT_ROUNDOFF, TensorComparison
from bnfold.frontends.torch_arguments import Arguments
from bnfold.frontends.torch_capture import in_float64
from bnfold.interfaces import failure
from bnfold.quickcheck import QuickCheck
from bnfold.torch_running import ROUNDINGS, Stored, cast, drawn, moved, run, samples, tensors

if TYPE_CHECKING:
    from torch import nn

#: The largest difference in float64, relative to the scale of a channel.
EXACT = 1e-10

#: Where 64 roundings of its input move the original further, 4 times that is granted, but never more than 1e-7.
_GRANTED, _MOST = 4.0, 1e-7

#: Of the original's own error, what the folded module is granted; besides, ROUNDINGS roundings.
_ERRORS = 4.0

#: As stored, a channel that happens to be small is measured by the median one: its rounding errors are those of others.
_TYPICAL = 1.0

#: Outputs that move by less than this share of their scale when the input is another one prove nothing.
_ALIVE = 1e-6


def torch_check(  # noqa: PLR0913
    modules: tuple[nn.Module, nn.Module, nn.Module],
    inputs: Arguments,
    landmarks: Mapping[str, str],
    *,
    reference: nn.Module | None = None,
    paths: Sequence[tuple[bool, ...]] = (),
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> QuickCheck:
    """Compare the outputs of modules.

    Args:
        modules: The original, the folded one, and the folded one in float64 with numbers that were not rounded.
        inputs: Example inputs; tensors of floating-point numbers are replaced by standard normal ones.
        landmarks: Modules whose outputs must be the same, by path, and the BatchNorm that each answers for.
        reference: The original in float64, where its `double()` is not that, because its code names types.
        paths: What the forward pass decides by the numbers of tensors, for each run; by default it decides by itself.
        seed: Of the inputs.
        progress: Told what is being done.
    """
    before, after, exact = modules
    found: list[TensorComparison] = []
    runs: list[Mapping[str, tuple[int, ...]]] = []
    notes: list[str] = []
    if progress:
        progress("checking the folded module")
    reference = in_float64(before) if reference is None else reference
    alive, culprit, outputs = False, None, 0
    ways: Sequence[tuple[bool, ...] | None] = paths or (None,)
    for sample, path in ((sample, path) for sample in samples(before, inputs, seed, notes) for path in ways):
        wide = cast(sample)
        try:
            old, inner_old = run(reference, wide, seed, landmarks, path)
            other, nudged = (run(reference, draw, seed, {}, path)[0] for draw in (drawn(wide, seed + 1), moved(wide)))
        except Exception as error:  # the user's forward pass may raise anything
            if len(paths) > 1:
                continue  # other numbers need not be able to go the way of the example's
            return _not_run(error, found, notes, runs)
        try:
            new, inner_new = run(exact, wide, seed, landmarks, path)
            stored = [run(module, sample, seed, {}, path)[0] for module in (before, after)]
        except Exception as error:
            return _not_run(error, found, notes, runs)
        runs.append({f"input {i}": tuple(t.shape) for i, t in enumerate(tensors(sample))})
        alive = alive or any(moves(a, b) for a, b in zip(old, other, strict=False))
        found += _compared(old, nudged, new, stored)
        outputs = max(outputs, len(old))
        if culprit is None:
            culprit = next((name for path, name in landmarks.items()
                            if not _close(inner_old.get(path), inner_new.get(path))), None)  # fmt: skip
    return outcome("torch", found, notes, runs, culprit=culprit, alive=alive, outputs=outputs)


def outcome(  # noqa: PLR0913
    provider: str,
    found: list[TensorComparison],
    notes: list[str],
    runs: list[Mapping[str, tuple[int, ...]]],
    *,
    culprit: str | None = None,
    alive: bool,
    outputs: int | None = None,
) -> QuickCheck:
    """What the comparisons come to.

    Args:
        provider: What the second model ran on.
        found: The comparisons.
        notes: What was left out, and why.
        runs: Shapes of the inputs of every run.
        culprit: What is to blame for a difference, where that is known.
        alive: Whether the outputs follow the inputs.
        outputs: How many outputs the original has, where each may have several comparisons.
    """
    failed = [entry for entry in found if entry.failed]
    if not alive:
        notes = [*notes, "The outputs do not follow the inputs."]
    first = (culprit or failed[0].name) if failed else None
    proves = alive and bool(found)
    return QuickCheck(provider, tuple(found), (), tuple(notes), tuple(runs), first, bool(failed), proves,
                      outputs=outputs)  # fmt: skip


def _not_run(
    error: Exception, found: list[TensorComparison], notes: list[str], runs: list[Mapping[str, tuple[int, ...]]]
) -> QuickCheck:
    why = f"the module cannot be run: {next(iter(str(error).splitlines()), type(error).__name__)}."
    return QuickCheck("torch", tuple(found), (), (*notes, why), tuple(runs), None, False, False)


def _compared(
    old: list[Float64Array], nudged: list[Float64Array], new: list[Float64Array], stored: list[list[Any]]
) -> Iterator[TensorComparison]:
    raw_before, raw_after = stored
    for i, (a, b) in enumerate(zip(old, new, strict=True)):
        u = _roundoff(raw_before[i])
        inner = _errors(a, raw_before[i]) * (UNIT_ROUNDOFF["float64"] / u) if u > UNIT_ROUNDOFF["float64"] else 0.0
        noise = np.minimum(
            np.maximum(_errors(a, nudged[i]), inner), 1.0
        )  # roundings of the input, and those inside, as stored
        noise = np.maximum(noise, np.quantile(noise, 0.9)) if a.size else noise
        exact = np.clip(_GRANTED * noise, EXACT, _MOST)
        yield _comparison(f"output {i} in float64", a, b, exact)
        name = f"output {i} as stored"
        if a.shape == b.shape and raw_after[i].shape != a.shape:  # how many boxes pass a threshold, say
            note = "its sizes depend on numbers that float64 and the stored type round differently"
            yield replace(failure(name, note, raw_after[i].dtype_name), compared=False)
        else:
            # in float64 the truth has no more digits: the error of the original is 0, as it is its own truth
            yield as_stored(name, a, raw_before[i], raw_after[i], exact if u == UNIT_ROUNDOFF["float64"] else 0.0)


def as_stored(
    name: str, truth: Float64Array, before: Stored, after: Stored, least: Float64Array | float = 0.0
) -> TensorComparison:
    """Whether `after` errs by no more than `4*error + 64*u*scale` of each channel, where error is that of `before`.

    Args:
        name: Of the output.
        truth: The original's output, computed in float64.
        before: The same, computed as the original is stored.
        after: What must not be worse.
        least: What is granted at least, relative to the scale of each channel.
    """
    mine = _errors(truth, before, _TYPICAL)
    if not np.isfinite(mine).all():
        note = "the original is finite, or not, where in float64 it is the other way round"
        return replace(failure(name, note, before.dtype_name), compared=False)
    typical = float(np.quantile(mine, 0.9)) if mine.size else 0.0  # few samples may hit a channel's error at zero
    granted = np.maximum(_ERRORS * np.maximum(mine, typical) + ROUNDINGS * _roundoff(before), least)
    entry = _comparison(name, truth, after, granted, _TYPICAL)
    return replace(entry, note=f"the original errs by {mine.max(initial=0.0):.3g}")


def _roundoff(stored: Any) -> float:
    return UNIT_ROUNDOFF.get(stored.dtype_name, UNIT_ROUNDOFF["float64"])


def _channels(a: Float64Array) -> int:
    return a.shape[1] if a.ndim > 1 else 1


def _errors(a: Float64Array, b: Float64Array, floor: float = 1e-3) -> Float64Array:
    """The largest difference in each channel relative to the channel's scale; infinite where the kinds differ.

    No scale counts as less than `floor` of the median one.
    """
    if a.shape != b.shape:
        return np.full(_channels(a), np.inf)
    x, y = (np.moveaxis(v, 1, 0).reshape(v.shape[1], -1) if v.ndim > 1 else v.reshape(1, -1) for v in (a, b))
    with np.errstate(all="ignore"):
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        difference = np.where(same, 0.0, np.abs(x - y))
        scale = np.where(np.isfinite(x), np.abs(x), 0.0).max(axis=1, initial=0.0)
        typical = float(np.median(scale[scale > 0])) if (scale > 0).any() else 1.0
        error = difference.max(axis=1, initial=0.0) / np.maximum(scale, floor * typical)
    return np.where(np.isnan(error), np.inf, error)


def _comparison(
    name: str, a: Float64Array, b: Float64Array, granted: Float64Array, floor: float = 1e-3
) -> TensorComparison:
    errors = _errors(a, b, floor)
    worst = int(np.argmax(errors - granted)) if errors.size else 0
    error = float(errors[worst]) if errors.size else 0.0
    tolerance = float(granted[worst]) if granted.size else 0.0
    dtype = getattr(b, "dtype_name", "float64")
    scale = float(np.abs(a[:, worst] if a.ndim > 1 else a).max(initial=0.0))
    return TensorComparison(name, a.shape, dtype, error, scale, tolerance, 1 if a.ndim > 1 else None, (),
                            a.size > 0, error <= tolerance)  # fmt: skip


def _close(a: list[Float64Array] | None, b: list[Float64Array] | None) -> bool:
    if a is None or b is None or len(a) != len(b):
        return a is None and b is None
    return all(bool((_errors(x, y) <= EXACT).all()) for x, y in zip(a, b, strict=True))


def moves(a: Float64Array, b: Float64Array) -> bool:
    """Whether an output follows its input."""
    return a.shape == b.shape and a.size > 0 and bool((_errors(a, b) > _ALIVE).any())
