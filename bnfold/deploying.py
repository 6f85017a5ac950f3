"""Runs two models as people deploy them, and asks float64 where a difference is in doubt (`bnfold.deployed`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bnfold.comparison import UNIT_ROUNDOFF, TensorComparison
from bnfold.deployed import Deployed, LevelErrors, Moved, Tf32
from bnfold.errors import BnfoldError
from bnfold.frontends.onnx_float64 import in_float64
from bnfold.frontends.onnx_kernels_run import evaluate
from bnfold.holding import COMPUTED
from bnfold.judging import Errors, worse
from bnfold.verdicts import nudged, verdict_on

if TYPE_CHECKING:
    from bnfold.rerunning import Arrays, Rerun, Results

#: TF32 keeps 11 bits of the inputs of a product, as float16 does.
_LIKE_TF32 = "float16"


@dataclass(frozen=True)
class _Judged:
    """One output as both models compute it, against float64: unoptimised, and as deployed where they can be run."""

    folded: Errors
    deployed: tuple[Errors | None, Errors | None]


def deployed_check(rerun: Rerun, *, everything: bool = False) -> Deployed:
    """What the optimiser at ORT_ENABLE_ALL does to both models.

    Args:
        rerun: Both models in the runs of the check.
        everything: Whether float64 is asked about all outputs, and not only where there is doubt.
    """
    now = rerun.results(0, optimised=True), rerun.results(1, optimised=True)
    original, folded = (rerun.moved(results, was) for results, was in zip(now, rerun.verified, strict=True))
    found = Deployed(original, folded, rerun.moved(now[1], now[0]))
    doubtful = {entry.name for model in (original, folded) for entry in model.comparisons if entry.failed}
    asked = [name for name in _numbers(rerun) if everything or name in doubtful]
    if not asked:
        return found
    try:
        judged = _judge(rerun, now, asked, len(rerun.feeds) if doubtful else 1)
    except BnfoldError as error:
        return replace(found, notes=(f"There is no oracle for the deployed level: {error}.",))
    return replace(
        found,
        original=_settled(original, {name: verdict.deployed[0] for name, verdict in judged.items()}),
        folded=_settled(folded, {name: verdict.deployed[1] for name, verdict in judged.items()}),
        errors=tuple(_errors(name, verdict) for name, verdict in judged.items()),
    )


def tf32_check(rerun: Rerun) -> Tf32:
    """What TF32 does to both models on CUDA, each against itself without."""
    moved = [rerun.moved(rerun.results(i, tf32=True), rerun.verified[i], _LIKE_TF32) for i in (0, 1)]
    return Tf32(moved[0], moved[1])


def _numbers(rerun: Rerun) -> list[str]:
    """The outputs that float64 can be asked about."""
    first = rerun.verified[0][0]
    return [name for name in rerun.names if not name.endswith(COMPUTED) and first[name].dtype.name in UNIT_ROUNDOFF]


def _judge(rerun: Rerun, now: tuple[Results, Results], names: Sequence[str], runs: int) -> Mapping[str, _Judged]:
    """The worst verdict on each output over the first `runs` runs."""
    wide, worst = in_float64(rerun.models[0]), dict[str, _Judged]()
    session = rerun.opener(rerun.models[0], rerun.provider)
    for place, feeds in enumerate(rerun.feeds[:runs]):
        truth = evaluate(wide, feeds, names)
        held = {name: feeds[name] for name in rerun.held}
        originals = [rerun.verified[0][place], *(session.run(names, moved | held) for moved in nudged(feeds))]
        others: list[Arrays | None] = [rerun.verified[1][place]]
        others += [None if isinstance(results, str) else results[place] for results in now]
        for name in names:
            known = [outputs[name] for outputs in originals]
            folded, *deployed = (
                None if other is None else verdict_on(truth[name], known, other[name], rerun.accuracy.get(name))
                for other in others
            )
            if folded is None:
                continue
            verdict = _Judged(folded, (deployed[0], deployed[1]))
            worst[name] = _worse(worst.get(name, verdict), verdict)
    return worst


def _worse(one: _Judged, other: _Judged) -> _Judged:
    pairs = [
        first if second is None else second if first is None else worse(first, second)
        for first, second in zip(one.deployed, other.deployed, strict=True)
    ]
    return _Judged(worse(one.folded, other.folded), (pairs[0], pairs[1]))


def _errors(name: str, verdict: _Judged) -> LevelErrors:
    original, folded = (None if errors is None else errors.folded for errors in verdict.deployed)
    return LevelErrors(name, verdict.folded.original, verdict.folded.folded, original, folded)


def _settled(moved: Moved, verdicts: Mapping[str, Errors | None]) -> Moved:
    return replace(moved, comparisons=tuple(settle(entry, verdicts.get(entry.name)) for entry in moved.comparisons))


def settle(entry: TensorComparison, verdict: Errors | None) -> TensorComparison:
    """What differs is rounding, or is not, or cannot be told."""
    if verdict is None or not entry.failed:
        return entry if verdict is None or not verdict.believed else replace(entry, oracle=verdict)
    if not verdict.believed:
        note = f"the original itself is off by {verdict.original:.2g} of its scale, so that this proves nothing"
        return replace(entry, compared=False, note=note)
    if verdict.ratio <= 1:
        note = f"rounding: {verdict.ratio:.2g} of what the float64 oracle allows"
        return replace(entry, passed=True, oracle=verdict, note=note)
    note = f"{verdict.ratio:.2g} times what the float64 oracle allows"
    return replace(entry, oracle=verdict, note=note)
