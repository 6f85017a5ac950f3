"""One fold as a user gets it, judged by the truth, by bnfold's own check and by the rules of its peers.

A fold is right if in every channel `error(folded) <= 4 * error(original) + 64 * u * scale`, both against float64, where
a channel's error in the original is no less than the median one: 16 samples can be exact in it by chance.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

import bnfold
from benchmarks.right_fold_cases import KINDS, Arrays, Case, Subject
from bnfold.comparison import TOLERANCE
from bnfold.runtime import open_session

Array = np.ndarray[Any, Any]

FACTOR, ROUNDINGS = 4.0, 64.0
#: An input moved by `MOVE` of its size may move no output of a network that is not chaotic by more than `CALM` of its
#: scale, beyond what the type of its numbers allows; another one moves a live network by more than `ALIVE`,
#: and by more than two runs of its type may differ by.
ALIVE, CALM, MOVE = 1e-2, 1e-4, 1e-7

_UNITS = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}


def _polygraphy(before: Array, after: Array) -> bool:
    """An element fails only if both its absolute and its relative error are above 1e-5."""
    wide, error = before.astype(np.float64), np.abs(after.astype(np.float64) - before)
    return bool(((error > 1e-5) & (error > 1e-5 * np.abs(wide))).any())


def _not_close(rtol: float, atol: float) -> Callable[[Array, Array], bool]:
    def fails(before: Array, after: Array) -> bool:
        wide = before.astype(np.float64), after.astype(np.float64)
        return not np.allclose(wide[1], wide[0], rtol=rtol, atol=atol, equal_nan=True)

    return fails


#: Rules that compare one run with the other, on inputs in [0, 1): whether they blame the fold.
RULES: Mapping[str, Callable[[Array, Array], bool]] = {
    "rtol 1e-5, atol 1e-8 (NumPy, torch)": _not_close(1e-5, 1e-8),
    "rtol 1e-4, atol 1e-5 (onnxsim)": _not_close(1e-4, 1e-5),
    "rtol 1e-3, atol 1e-4 (onnxslim)": _not_close(1e-3, 1e-4),
    "rel 1e-5 or abs 1e-5 (Polygraphy)": _polygraphy,
}


@dataclass(frozen=True)
class Row:
    """What became of one model.

    Attributes:
        key: Of the case.
        kind: Of the case.
        state: "right", "WRONG" (the rule above is broken), or why it does not count: "nothing folded", "dead",
            "chaotic", "not run" (onnxruntime cannot run the original).
        alarm: What `bnfold.fold` raised; empty where it gave a result.
        folded: How many BatchNorms, and chains that are one in disguise, are gone.
        ratio: The error of the folded model in units of what the rule above allows.
        asked: How many tensors the float64 oracle was asked about.
        local: The largest error of a region in units of its bound; None where bnfold raised.
        verified: Why `bnfold.verify` does not pass original and fold; empty where it does.
        stage: The largest error of a stage there, in units of what the rule above allows; None where none was judged.
        blamed: The rules of the peers by which the fold is wrong.
        seconds: How long `bnfold.fold` took.
    """

    key: str
    kind: str
    state: str
    alarm: str = ""
    folded: int = 0
    ratio: float = 0.0
    asked: int = 0
    local: float | None = None
    verified: str = ""
    stage: float | None = None
    blamed: tuple[str, ...] = ()
    seconds: float = 0.0


def examine(case: Case, cache: Path) -> Row:
    """Make the model, fold it, judge."""
    subject = KINDS[case.kind].make(case.seed, cache)
    plain = bnfold.fold(ir.from_proto(subject.model), verify=False)
    gone = len(plain.report.folded) + len(plain.report.reduced)
    if not gone:
        return Row(case.key, case.kind, "nothing folded")
    try:
        before = run(subject.model, subject.normal)
    except bnfold.BnfoldError as error:
        return Row(case.key, case.kind, "not run", str(error), gone)
    exact = {name: value.astype(np.float64) for name, value in subject.truth(subject.normal).items()}
    state = _state(subject, exact)
    if state:
        return Row(case.key, case.kind, state, folded=gone)
    after = ir.to_proto(plain.model)
    ratio = judge(exact, before, run(after, subject.normal), coarsest(subject.model))
    alarm, asked, local, seconds = _checked(subject)
    drawn = run(subject.model, subject.uniform), run(after, subject.uniform)
    blamed = tuple(name for name, rule in RULES.items() if any(rule(drawn[0][key], drawn[1][key]) for key in exact))
    right = "right" if ratio <= 1 else "WRONG"
    verdict = _verified(subject, plain.model)
    return Row(case.key, case.kind, right, alarm, gone, ratio, asked, local, *verdict, blamed, seconds)


def _checked(subject: Subject) -> tuple[str, int, float | None, float]:
    """The fold as a user gets it: the alarm, tensors that the oracle was asked about, local ratio, seconds."""
    told: list[str] = []
    start, alarm, report = time.monotonic(), "", None
    try:
        report = bnfold.fold(ir.from_proto(subject.model), shapes=subject.shapes or None, progress=told.append).report
    except bnfold.BnfoldError as error:
        alarm, report = f"{type(error).__name__}: {error}", error.report
    asked = sum(int(line.split()[-2]) for line in told if line.startswith("asking the float64 oracle"))
    checked = None if report is None else report.verification
    ratios = [check.ratio for check in checked.local if check.ratio is not None] if checked else []
    return alarm, asked, max(ratios, default=None), time.monotonic() - start


def _verified(subject: Subject, folded: ir.Model) -> tuple[str, float | None]:
    """What `bnfold verify` says to the fold, of which it knows no plan: why it does not pass, and the worst stage."""
    try:
        found = bnfold.verify(ir.from_proto(subject.model), folded, shapes=subject.shapes or None)
    except bnfold.BnfoldError as error:
        return f"{type(error).__name__}: {error}", None
    entries = [entry for quick in found.quick for entry in (*quick.inner, *quick.comparisons)]
    ratios = [entry.stage.ratio for entry in entries if entry.stage is not None]
    return "" if found.passed else found.culprit or found.doubt or "nothing is proven", max(ratios, default=None)


def _state(subject: Subject, exact: Arrays) -> str:
    """Why figures at the outputs prove nothing; empty where they do."""
    other = {name: x[::-1].copy() if x.shape[0] > 1 else -x for name, x in subject.normal.items()}
    names = [name for name, u in _UNITS.items() if u == coarsest(subject.model)]
    least = max(ALIVE, *(TOLERANCE[name] for name in names))  # what two runs of the type may differ by hides the rest
    if max(change(exact[name], value) for name, value in subject.truth(other).items()) <= least:
        return "dead"
    rng = np.random.default_rng(5)
    moved = {name: x * (1 + MOVE * rng.choice([-1, 1], x.shape)) for name, x in subject.normal.items()}
    # in float64, so that the move is not rounded away
    if max(change(exact[name], value) for name, value in subject.truth(moved).items()) >= CALM:
        return "chaotic"
    return ""


def change(one: Array, other: Array) -> float:
    """The largest difference, of the largest element of `one`; 0 where there is none."""
    scale = float(np.abs(one).max(initial=0.0))
    return float(np.abs(one - other).max()) / scale if scale else 0.0


def run(model: onnx.ModelProto, feeds: Arrays) -> dict[str, Array]:
    """The outputs by onnxruntime, unoptimised."""
    names = [output.name for output in model.graph.output]
    return open_session(_named(model), "cpu").run(names, dict(feeds))


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every node has a name of its own; onnxruntime refuses two of one name."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for place, node in enumerate(copy.graph.node):
        node.name = f"node{place}"
    return copy


def coarsest(model: onnx.ModelProto) -> float:
    """The unit round-off of the coarsest type among the stored numbers and the inputs."""
    kinds = [t.data_type for t in model.graph.initializer]
    kinds += [value.type.tensor_type.elem_type for value in model.graph.input]
    kinds += [a.t.data_type for node in model.graph.node for a in node.attribute if a.HasField("t")]
    names = {np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).name for kind in kinds}
    return max(_UNITS[name] for name in names & set(_UNITS))


def judge(exact: Arrays, before: Arrays, after: Arrays, u: float) -> float:
    """The largest error of the folded model in units of what is allowed; infinite where it is not finite."""
    return max(_ratio(truth, before[name], after[name], u) for name, truth in exact.items())


def _ratio(truth: Array, before: Array, after: Array, u: float) -> float:
    if truth.shape != after.shape or not np.isfinite(after[np.isfinite(truth)].astype(np.float64)).all():
        return np.inf
    if not np.isfinite(truth).all() or truth.size == 0:
        return 0.0
    was, now = (_per_channel(run.astype(np.float64) - truth) for run in (before, after))
    scale = _per_channel(truth)
    scale = scale if scale.any() else np.ones_like(scale)
    allowed = FACTOR * np.maximum(was, np.median(was)) + ROUNDINGS * u * scale
    with np.errstate(all="ignore"):
        ratios = np.where(now == 0, 0.0, now / allowed)
    return float(np.nan_to_num(ratios, nan=np.inf).max())


def _per_channel(values: Array) -> Array:
    axes = tuple(axis for axis in range(values.ndim) if axis != 1) if values.ndim > 1 else None
    return np.atleast_1d(np.abs(values).max(axis=axes))


assert ml_dtypes  # registers bfloat16 with NumPy
