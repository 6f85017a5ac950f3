"""The float64 oracle, asked in doubt or about everything: is the folded model less accurate than the original?

A tensor passes if in every channel `error(folded) <= 4*error(original) + 64*u*scale`, both against the original in
float64 (`bnfold.judging`). The oracle is believed only where it agrees with the original about as well as the
arithmetic allows, which is seen by rounding the original otherwise; where it does not (a chaotic network, or a fault of
the oracle) there is no oracle for that tensor: a difference in it proves nothing, and is no failure of the fold either.
The original's error is the largest of several runs: as it is, and with inputs or weights off by one rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bnfold.comparison import MOST, TOLERANCE, UNIT_ROUNDOFF, TensorComparison
from bnfold.data import read_inputs
from bnfold.data_sources import Source
from bnfold.dataflow import descendants
from bnfold.errors import BnfoldError
from bnfold.feeds import feeds_again
from bnfold.frontends.onnx_float64 import in_float64
from bnfold.frontends.onnx_kernels_run import evaluate
from bnfold.judging import ERROR_FACTOR, Errors, channel_scales, judge, worse
from bnfold.quickcheck import QuickCheck
from bnfold.runtime import exposing, open_session

#: The oracle is believed where the original differs from it by no more than this many tolerances.
_BELIEVED = 16.0

#: Or by no more than this many times as much as from itself, rounded otherwise. A fault of the oracle is none of that.
_SPREADS = 16.0


def settle(  # noqa: PLR0913
    check: QuickCheck,
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    *,
    seed: int,
    data: Source | None = None,
    fixed: Mapping[str, npt.NDArray[Any]] | None = None,
    everything: bool = False,
    progress: Callable[[str], None] | None = None,
) -> QuickCheck:
    """`check` with every doubtful difference judged by the oracle; as it was when there is no oracle to believe.

    Args:
        check: What was found on the inputs that follow.
        before: The original with its weights loaded.
        after: The folded model, likewise.
        seed: As for the check, and so are the next two.
        data: The caller's data.
        fixed: The inputs that the caller fixed.
        everything: Whether tensors that agree are asked about as well; one that is less accurate than the rule allows
            then fails, too.
        progress: Told what is being done.
    """
    names = _asked(check, before, everything=everything)
    if not names:
        return check
    if progress is not None:
        progress(f"asking the float64 oracle about {len(names)} tensors")
    try:
        judged = _judge_all(check, before, after, names, seed=seed, data=data, fixed=fixed or {})
    except BnfoldError as error:
        what = "the differences" if check.failed else "these models"
        return replace(check, notes=(*check.notes, f"There is no oracle for {what}: {error}."))
    outputs, inner = ([_settled(c, judged) for c in group] for group in (check.comparisons, check.inner))
    failed = [c.name for c in (*inner, *outputs) if c.failed]
    first = check.first_divergence if check.first_divergence in failed else next(iter(failed), None)
    return replace(
        check,
        comparisons=tuple(outputs),
        inner=tuple(inner),
        first_divergence=first,
        failed=bool(failed),
        proves=check.proves and (not outputs or any(c.compared for c in outputs)),
        notes=(*check.notes, *_notes(check, judged, everything=everything)),
    )


def _asked(check: QuickCheck, before: onnx.ModelProto, *, everything: bool) -> list[str]:
    """Doubtful floating-point tensors, or all that follow no decision, which float64 may take otherwise."""
    entries = [entry for entry in (*check.inner, *check.comparisons) if entry.dtype in UNIT_ROUNDOFF]
    if not everything:
        return [entry.name for entry in entries if entry.failed]
    after_decision = descendants(before.graph, set(check.held))
    return [entry.name for entry in entries if entry.failed or (entry.compared and entry.name not in after_decision)]


def _notes(check: QuickCheck, judged: Mapping[str, Errors], *, everything: bool) -> Iterator[str]:
    """What a reader must know about the verdicts."""
    doubtful = [entry.name for entry in (*check.comparisons, *check.inner) if entry.failed]
    verdicts = [judged[name] for name in doubtful if name in judged]
    if doubtful:
        rounding = sum(verdict.believed and verdict.ratio <= 1 for verdict in verdicts)
        yield f"{rounding} of {len(doubtful)} differences are rounding, by the float64 oracle."
    unknown = [verdict for verdict in verdicts if not verdict.believed]
    if unknown:
        off = max(verdict.original for verdict in unknown)
        yield f"Rounding alone moves the original by {off:.2g} of the scale: {len(unknown)} tensors prove nothing."
    believed = sum(verdict.believed for verdict in judged.values())
    if everything and believed < len(judged):
        yield f"The float64 oracle is believed for {believed} of {len(judged)} tensors."


def _judge_all(  # noqa: PLR0913
    check: QuickCheck,
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    names: Sequence[str],
    *,
    seed: int,
    data: Source | None,
    fixed: Mapping[str, npt.NDArray[Any]],
) -> Mapping[str, Errors]:
    """The worst verdict on each tensor over all runs of the check; none where shapes or types differ in any of them."""
    specs, wide = read_inputs(before), in_float64(before)
    models = (before, after, *(_rounded_again(before, seed) for seed in range(2)))
    original, folding, *others = (open_session(exposing(model, names), check.provider) for model in models)
    worst: dict[str, Errors] = {}
    usual: dict[str, npt.NDArray[np.float64]] = {}
    different: set[str] = set()
    runs = feeds_again(specs, check.runs, seed=seed, given=check.given, data=data, kinds=check.kinds, fixed=fixed)
    for place, feeds in enumerate(runs):
        truth = evaluate(wide, feeds, names)
        usual = usual or {name: channel_scales(truth[name]) for name in names}
        is_pattern = place >= len(check.runs)
        folded = folding.run(names, feeds)
        originals = [original.run(names, moved) for moved in (feeds, *nudged(feeds))]
        originals += [other.run(names, feeds) for other in others]
        for name in names:
            if is_pattern and not np.isfinite(truth[name]).all():
                continue  # as in `bnfold.examining`
            verdict = verdict_on(
                truth[name], [result[name] for result in originals], folded[name], usual[name] if is_pattern else None
            )
            if verdict is None:
                different.add(name)
            else:
                worst[name] = worse(worst.get(name, verdict), verdict)
    return {name: verdict for name, verdict in worst.items() if name not in different}


def verdict_on(
    truth: npt.NDArray[np.float64],
    originals: Sequence[npt.NDArray[Any]],
    folded: npt.NDArray[Any],
    usual: npt.NDArray[np.float64] | None = None,
) -> Errors | None:
    """One tensor of one run against the truth; None where shapes or types differ.

    Args:
        truth: What is right, in float64.
        originals: The same tensor as the original computes it: as it is, and rounded otherwise.
        folded: And as the folded model does.
        usual: As for `judge`.
    """
    if any((values.shape, values.dtype) != (truth.shape, folded.dtype) for values in (*originals, folded)):
        return None
    accuracy = folded.dtype.name
    with np.errstate(all="ignore"):
        errors = np.stack([original - truth for original in originals])
        error, spread = np.abs(errors).max(axis=0), np.abs(errors - errors[0]).max(initial=0.0)
    verdict = judge(truth, truth + error, folded, UNIT_ROUNDOFF[accuracy], usual)
    believed = is_believed(verdict.original, error.max(initial=0.0), spread, TOLERANCE[accuracy])
    return replace(verdict, believed=believed)


def is_believed(relative: float, error: float, spread: float, tolerance: float) -> bool:
    """Whether the truth is one, by how far the original is from it.

    Means of 1000 standard deviations lose three digits at every layer: after thirty layers the original is off by a
    few hundredths of its scale, and so is every other rounding of it. What four errors of it grant is never more than
    a quarter of the scale (`bnfold.comparison`).

    Args:
        relative: The original's largest error, of the tensor's scale.
        error: The same, as it is.
        spread: How far the original is from itself where it is rounded otherwise.
        tolerance: What two runs of the type may differ by.
    """
    return bool(relative <= _BELIEVED * tolerance or (relative <= MOST / ERROR_FACTOR and error <= _SPREADS * spread))


def nudged(feeds: Mapping[str, npt.NDArray[Any]]) -> list[dict[str, npt.NDArray[Any]]]:
    """The inputs off by one rounding, thrice: an error that the original's arithmetic makes anyway, drawn again.

    Where a network amplifies rounding, the largest error of one run says little; that of four runs says more.
    """
    generator = np.random.default_rng(0)
    draws = []
    for _ in range(3):
        draw = dict(feeds)
        for name, value in feeds.items():
            if value.dtype.name in UNIT_ROUNDOFF:
                away = generator.choice([-np.inf, np.inf], value.shape).astype(value.dtype)
                draw[name] = np.nextafter(value, away)
        draws.append(draw)
    return draws


def _rounded_again(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The model with its weights as if they had been rounded once more, which a fold cannot help.

    Such an error has one sign all over an image, so that a mean over the image shows it and hides all others. One step
    up or down with the probability 1/12 has the variance of a rounding, which is uniform within half a step. Of float64
    every number takes a step: the oracle rounds as the original does, so that their difference does not show what
    either rounds away (means of 1000 standard deviations lose three digits in both alike).
    """
    generator = np.random.default_rng(seed)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype.name in UNIT_ROUNDOFF and tensor.dims:
            away = generator.choice([-np.inf, np.inf], array.shape).astype(array.dtype)
            share = 1.0 if array.dtype == np.float64 else 1 / 12
            moved = np.where(generator.random(array.shape) < share, np.nextafter(array, away), array)
            tensor.CopyFrom(onnx.numpy_helper.from_array(moved, tensor.name))
    return copy


def _settled(comparison: TensorComparison, judged: Mapping[str, Errors]) -> TensorComparison:
    verdict = judged.get(comparison.name)
    if verdict is None:
        return comparison
    if not verdict.believed:
        note = f"the original itself is off by {verdict.original:.2g} of its scale, so that this proves nothing"
        return replace(comparison, compared=False, note=note) if comparison.failed else comparison
    known = replace(comparison, oracle=verdict)
    if verdict.ratio <= 1:
        note = f"rounding: {verdict.ratio:.2g} of what the float64 oracle allows"
        return replace(known, passed=True, note=note) if comparison.failed else known
    note = f"less accurate than the original: {verdict.ratio:.2g} times what the float64 oracle allows"
    return known if comparison.failed else replace(known, passed=False, note=note)
