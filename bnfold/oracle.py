"""The float64 oracle, asked in doubt or about everything: is the folded model less accurate than the original?

A tensor passes if in every channel `error(folded) <= 4*error(original) + 64*u*scale`, both against the original in
float64 (`bnfold.verdicts`). The oracle is believed only where it agrees with the original about as well as the
arithmetic allows. Where it does not (a network that amplifies rounding, or a fault of the oracle), every stage between
two tensors is judged by itself (`bnfold.staging`); where it is not believed even there, there is no oracle for that
tensor: a difference in it proves nothing, and is no failure of the fold either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

import numpy.typing as npt
import onnx

from bnfold.comparison import UNIT_ROUNDOFF, TensorComparison
from bnfold.data_sources import Source
from bnfold.dataflow import descendants
from bnfold.errors import BnfoldError
from bnfold.judging import Errors
from bnfold.quickcheck import QuickCheck
from bnfold.staging import established, judge_stages
from bnfold.verdicts import Repeat, verdicts


def settle(  # noqa: PLR0913
    check: QuickCheck,
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    *,
    seed: int,
    data: Source | None = None,
    fixed: Mapping[str, npt.NDArray[Any]] | None = None,
    everything: bool = False,
    stages: bool = False,
    progress: Callable[[str], None] | None = None,
) -> QuickCheck:
    """`check` judged by the oracle, where there is one to believe.

    Args:
        check: What was found on the inputs that follow.
        before: The original with its weights loaded.
        after: The folded model, likewise.
        seed: As for the check, and so are the next two.
        data: The caller's data.
        fixed: The inputs that the caller fixed.
        everything: Whether tensors that agree are asked about as well as those that differ; one that is less accurate
            than the rule allows then fails, too.
        stages: Whether every stage is judged by itself in the first run and on the caller's data, also where
            nothing is asked about.
        progress: Told what is being done.
    """
    tell, repeat = progress or (lambda _: None), Repeat(check, before, seed, data, dict(fixed or {}))
    names = _asked(check, before, everything=everything)
    if not names and not stages:
        return check
    judged: Mapping[str, Errors] = {}
    try:
        if names:
            tell(f"asking the float64 oracle about {len(names)} tensors")
            judged = verdicts(before, after, names, repeat, check.provider)
    except BnfoldError as error:
        what = "the differences" if check.failed else "these models"
        return replace(check, notes=(*check.notes, f"There is no oracle for {what}: {error}."))
    found, notes = _with(check, lambda entry: _settled(entry, judged)), list[str]()
    if names or stages:
        tell("judging every stage by itself, in float64")
        try:
            found = _by_stages(found, repeat if names else repeat.fewer, before, after)
        except BnfoldError as error:
            notes.append(f"The stages cannot be judged by themselves: {error}.")
    failed = [entry for entry in (*found.inner, *found.comparisons) if entry.failed]
    differed = {entry.name for entry in check.comparisons if entry.failed}
    return replace(
        found,
        first_divergence=_first(failed, check.first_divergence),
        failed=bool(failed),
        proves=check.proves and all(entry.compared for entry in found.comparisons if entry.name in differed),
        notes=(*check.notes, *notes, *_notes(check, found, judged, everything=everything)),
    )


def _first(failed: Sequence[TensorComparison], known: str | None) -> str | None:
    """The first tensor that is wrong from what comes before it, else the first one that differs."""
    staged = [entry.name for entry in failed if entry.stage is not None and entry.stage.ratio > 1]
    names = [entry.name for entry in failed]
    return next(iter(staged), known if known in names else next(iter(names), None))


def _by_stages(found: QuickCheck, repeat: Repeat, before: onnx.ModelProto, after: onnx.ModelProto) -> QuickCheck:
    """`found` with what proves nothing judged from the values before it, and what a stage shows to be wrong failed."""
    stages = judge_stages(repeat, before, after)
    known = {name: verdict for name, verdict in stages.items() if verdict is not None and verdict.believed}
    wrong = {name for name, verdict in known.items() if verdict.ratio > 1}
    entries = (*found.inner, *found.comparisons)
    failed = wrong | {entry.name for entry in entries if entry.failed}
    sure = {entry.name for entry in entries if entry.compared or 0 in entry.shape} - failed
    right = {name: name in known and name not in failed for name in stages}
    equal = established(after.graph, right, sure, found.held) - sure
    return _with(found, lambda entry: _staged(entry, known.get(entry.name), cleared=entry.name in equal))


def _staged(entry: TensorComparison, verdict: Errors | None, *, cleared: bool) -> TensorComparison:
    if verdict is None:
        return entry
    entry = replace(entry, stage=verdict)
    if verdict.ratio > 1:
        note = f"less accurate from the values before it: {verdict.ratio:.3g} times what the float64 oracle allows"
        return replace(entry, compared=True, passed=False, note=note)
    if cleared:
        note = f"rounding: from the values before it {verdict.ratio:.2g} of what the float64 oracle allows"
        return replace(entry, compared=True, passed=True, note=note)
    return entry


def _with(check: QuickCheck, judge: Callable[[TensorComparison], TensorComparison]) -> QuickCheck:
    outputs, inner = (tuple(judge(entry) for entry in group) for group in (check.comparisons, check.inner))
    return replace(check, comparisons=outputs, inner=inner)


def _asked(check: QuickCheck, before: onnx.ModelProto, *, everything: bool) -> list[str]:
    """Doubtful floating-point tensors, or all that follow no decision, which float64 may take otherwise."""
    entries = [entry for entry in (*check.inner, *check.comparisons) if entry.dtype in UNIT_ROUNDOFF]
    if not everything:
        return [entry.name for entry in entries if entry.failed]
    after_decision = descendants(before.graph, set(check.held))
    return [entry.name for entry in entries if entry.failed or (entry.compared and entry.name not in after_decision)]


def _notes(check: QuickCheck, found: QuickCheck, judged: Mapping[str, Errors], *, everything: bool) -> Iterator[str]:
    """What a reader must know about the verdicts."""
    doubtful = {entry.name for entry in (*check.comparisons, *check.inner) if entry.failed}
    now = [entry for entry in (*found.comparisons, *found.inner) if entry.name in doubtful]
    if doubtful:
        rounding = sum(entry.passed for entry in now)
        yield f"{rounding} of {len(doubtful)} differences are rounding, by the float64 oracle."
    doubts = {name: judged[name].original for name in doubtful if name in judged and not judged[name].believed}
    staged = sum(entry.compared for entry in now if entry.name in doubts)
    unknown = sum(not entry.compared for entry in now)
    off = max((doubt for doubt in doubts.values() if isfinite(doubt)), default=None)
    if off is not None:
        parts = [f"{_tensors(staged)} judged stage by stage"] * (staged > 0)
        parts += [f"{_tensors(unknown)} without proof"] * (unknown > 0)
        yield f"Rounding alone moves the original by {off:.2g} of the scale: {', '.join(parts)}."
    elif doubts:
        yield (
            f"The original itself is not finite where float64 is: {_tensors(unknown)} without proof. Numbers of the"
            " size that the model expects help: give your own with --verify-data."
        )
    believed = sum(verdict.believed for verdict in judged.values())
    if everything and believed < len(judged):
        yield f"The float64 oracle is believed for {believed} of {len(judged)} tensors."


def _tensors(number: int) -> str:
    return f"{number} tensor{'s' * (number != 1)}"


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
