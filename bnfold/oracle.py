"""The float64 oracle, asked when rounding alone could explain a difference: is the folded model less accurate?

A tensor passes if in every channel `error(folded) <= 4*error(original) + 64*u*scale`, both against the original in
float64. The oracle is believed only where it agrees with the original about as well as the arithmetic allows; where it
does not (a chaotic network, or a fault of the oracle) the tensor proves nothing, and is no failure of the fold either.
The original's error is the largest of several runs: as it is, and with inputs or weights off by one rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bnfold.affine import Float64Array
from bnfold.comparison import TOLERANCE, UNIT_ROUNDOFF, TensorComparison
from bnfold.data import read_inputs
from bnfold.data_sources import Source
from bnfold.errors import BnfoldError
from bnfold.feeds import feeds_again
from bnfold.frontends.onnx_float64 import in_float64
from bnfold.frontends.onnx_kernels_run import evaluate
from bnfold.quickcheck import QuickCheck
from bnfold.runtime import exposing, open_session

#: The folded model may err this many times as much as the original.
ERROR_FACTOR = 4.0

#: To which this many roundings of the channel's scale are added.
ERROR_ROUNDINGS = 64.0

#: The oracle is not believed where the original differs from it by more than this many tolerances.
_BELIEVED = 16.0


@dataclass(frozen=True)
class Errors:
    """How far two results are from the truth.

    Attributes:
        folded: The largest error of the folded model in units of what the rule allows; at most 1 passes.
        original: The largest error of the original, relative to the tensor's scale.
        believed: Whether the oracle and the original agree well enough to judge by.
    """

    folded: float
    original: float
    believed: bool = True


def judge(truth: Float64Array, original: npt.NDArray[Any], folded: npt.NDArray[Any], roundoff: float) -> Errors:
    """Both errors of one tensor, channel by channel (axis 1; one channel for fewer axes).

    A channel in which the original happened to be exact is granted the median channel's error. A tensor that is zero
    throughout has no scale of its own, because all that it was computed from cancelled: its scale counts as 1, which is
    the size of what a BatchNorm puts out.
    """
    axes = tuple(axis for axis in range(truth.ndim) if axis != 1)
    scale, was, now = (np.abs(a).max(axis=axes, initial=0.0) for a in (truth, original - truth, folded - truth))
    scale = scale if scale.any() else np.ones_like(scale)
    allowed = ERROR_FACTOR * np.maximum(was, np.median(was)) + ERROR_ROUNDINGS * roundoff * scale
    with np.errstate(all="ignore"):
        ratio = np.where(now == 0, 0.0, now / allowed)
        error = float(np.max(was)) / float(np.max(scale))
    return Errors(float(np.nan_to_num(np.max(ratio), nan=np.inf)), error if np.isfinite(error) else np.inf)


def settle(  # noqa: PLR0913
    check: QuickCheck,
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    *,
    seed: int,
    data: Source | None = None,
    progress: Callable[[str], None] | None = None,
) -> QuickCheck:
    """`check` with every doubtful difference judged by the oracle; as it was when there is no oracle to believe."""
    doubtful = [c.name for c in (*check.comparisons, *check.inner) if c.failed]
    if progress is not None:
        progress(f"asking the float64 oracle about {len(doubtful)} tensors")
    try:
        judged = _judge_all(check, before, after, doubtful, seed=seed, data=data)
    except BnfoldError as error:
        return replace(check, notes=(*check.notes, f"There is no oracle for the differences: {error}."))
    outputs, inner = ([_settled(c, judged) for c in group] for group in (check.comparisons, check.inner))
    failed = {c.name for c in (*outputs, *inner) if c.failed}
    first = check.first_divergence if check.first_divergence in failed else next(iter(sorted(failed)), None)
    rounding = sum(verdict.believed and verdict.folded <= 1 for verdict in judged.values())
    notes = [f"{rounding} of {len(doubtful)} differences are rounding, by the float64 oracle."]
    unknown = [name for name, verdict in judged.items() if not verdict.believed]
    if unknown:
        off = max(judged[name].original for name in unknown)
        notes.append(
            f"Rounding alone moves the original by {off:.2g} of the scale: {len(unknown)} tensors prove nothing."
        )
    return replace(
        check,
        comparisons=tuple(outputs),
        inner=tuple(inner),
        first_divergence=first,
        failed=bool(failed),
        proves=check.proves and (not outputs or any(c.compared for c in outputs)),
        notes=(*check.notes, *notes),
    )


def _judge_all(  # noqa: PLR0913
    check: QuickCheck,
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    names: Sequence[str],
    *,
    seed: int,
    data: Source | None,
) -> Mapping[str, Errors]:
    """The worst verdict on each tensor over all runs of the check."""
    specs, wide = read_inputs(before), in_float64(before)
    models = (before, after, *(_rounded_again(before, seed) for seed in range(2)))
    original, folding, *others = (open_session(exposing(model, names), check.provider) for model in models)
    worst: dict[str, Errors] = {}
    for feeds in feeds_again(specs, check.runs, seed=seed, given=check.given, data=data):
        truth = evaluate(wide, feeds, names)
        folded = folding.run(names, feeds)
        originals = [original.run(names, nudged) for nudged in (feeds, *_nudged(feeds))]
        originals += [other.run(names, feeds) for other in others]
        for name in names:
            accuracy = str(folded[name].dtype)
            error = np.max([np.abs(result[name] - truth[name]) for result in originals], axis=0)
            verdict = judge(truth[name], truth[name] + error, folded[name], UNIT_ROUNDOFF[accuracy])
            verdict = replace(verdict, believed=verdict.original <= _BELIEVED * TOLERANCE[accuracy])
            worst[name] = max(worst.get(name, verdict), verdict, key=lambda v: (not v.believed, v.folded))
    return worst


def _nudged(feeds: Mapping[str, npt.NDArray[Any]]) -> list[dict[str, npt.NDArray[Any]]]:
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
    up or down with the probability 1/12 has the variance of a rounding, which is uniform within half a step.
    """
    generator = np.random.default_rng(seed)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16) and tensor.dims:
            array = onnx.numpy_helper.to_array(tensor)
            away = generator.choice([-np.inf, np.inf], array.shape).astype(array.dtype)
            moved = np.where(generator.random(array.shape) < 1 / 12, np.nextafter(array, away), array)
            tensor.CopyFrom(onnx.numpy_helper.from_array(moved, tensor.name))
    return copy


def _settled(comparison: TensorComparison, judged: Mapping[str, Errors]) -> TensorComparison:
    verdict = judged.get(comparison.name)
    if verdict is None or (verdict.believed and not verdict.folded <= 1):
        return comparison
    if not verdict.believed:
        note = f"the original itself is off by {verdict.original:.2g} of its scale, so that this proves nothing"
        return replace(comparison, compared=False, note=note)
    note = f"rounding: {verdict.folded:.2g} of what the float64 oracle allows"
    return replace(comparison, passed=True, note=note)
