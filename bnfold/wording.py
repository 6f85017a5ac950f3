"""Sentences and figures for people, from the result types: plain text, one line each, without colour."""

from __future__ import annotations

from math import isinf
from typing import TYPE_CHECKING

from bnfold.decision import Decision, Folded, Kept, Reason, Reduced, Refusal
from bnfold.runtime import PROVIDERS

if TYPE_CHECKING:  # these load NumPy and ONNX, which an error message needs not
    from collections.abc import Iterator, Mapping, Sequence

    from bnfold.comparison import TensorComparison
    from bnfold.drift import Left
    from bnfold.localcheck import LocalCheck
    from bnfold.quickcheck import QuickCheck
    from bnfold.report.bench_report import BenchReport
    from bnfold.report.model import Report
    from bnfold.report.recalibration_report import RecalibrationReport
    from bnfold.selftest import SelfTest
    from bnfold.verification import Verification

#: How many names are listed before "and more".
_LISTED = 3


def printable(text: str) -> str:
    """`text` on one line, with what a terminal would take for a command (escape sequences) spelt out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))


def count(number: int, noun: str) -> str:
    """`1 region`, `2 regions`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def provider_name(provider: str) -> str:
    """The execution provider as onnxruntime calls it."""
    return PROVIDERS.get(provider, provider)


def shapes_of(run: Mapping[str, tuple[int, ...]]) -> str:
    """`images 2x1x8x8`, as `--shape` would take them but for the equals sign."""
    return ", ".join(f"{name} {'x'.join(map(str, shape)) or 'scalar'}" for name, shape in run.items())


def why_kept(refusals: Sequence[Refusal]) -> str:
    """One reason, or that of the way to the producers and that of the way to the consumers."""
    return "; ".join(each_way([str(refusal) for refusal in refusals]))


def kept_groups(kept: Sequence[Kept]) -> Iterator[tuple[int, list[str]]]:
    """Kept BatchNorms with the same reasons together: how many, the reasons, then names with places, a few of each."""
    groups: dict[tuple[Reason, ...], list[Kept]] = {}
    for decision in kept:
        groups.setdefault(tuple(refusal.reason for refusal in decision.refusals), []).append(decision)
    for reasons, members in groups.items():
        lines = each_way([reason.value for reason in reasons])
        lines += [f"remedy: {members[0].remedy}"] if members[0].remedy else []
        lines += [f"- {member.subject.name}{_places(member.refusals)}" for member in members[:_LISTED]]
        more = len(members) - _LISTED
        yield len(members), [*lines, f"- {more} more, which bnfold inspect lists"] if more > 0 else lines


def each_way(reasons: list[str]) -> list[str]:
    """Of several reasons the first is that of the way to the producers, then to the consumers, then of a leftover."""
    ways = ("not into producers: ", "not into consumers: ", "not rewritten: ")[: len(reasons)]
    ways = ways if 2 <= len(reasons) <= 3 else ("",) * len(reasons)
    return [way + reason for way, reason in zip(ways, reasons, strict=True)]


def _places(refusals: Sequence[Refusal]) -> str:
    places = [f"at {r.where}" + (f" ({r.detail})" if r.detail else "") for r in refusals if r.where]
    return f": {'; '.join(places)}" if places else ""


def outcome(decision: Decision) -> str:
    """What a decision says about its subject, as a clause."""
    match decision:
        case Folded(direction="evaluate", into=into):
            return f"computed once, because what it normalises is constant; read by {listed(into)}"
        case Folded(direction="merge", into=into):
            return f"merged into the parallel branch {listed(into)}"
        case Folded(into=()):
            return "taken out, as it changes nothing"
        case Folded(direction=direction, into=into, through=through):
            ends = "producer" if direction == "pull" else "consumer"
            way = f", through {listed(through)}" if through else ""
            return f"into {ends}{'' if len(into) == 1 else 's'} {listed(into)}{way}"
        case Reduced(to=to, into=into, refusals=refusals):
            rest = f", the rest goes into {listed(into)}" if into else ""
            return f"becomes {to}{rest}: {why_kept(refusals)}"
        case Kept(refusals=refusals, remedy=remedy):
            return f"kept: {why_kept(refusals)}" + (f"; {remedy}" if remedy else "")


def counted(report: Report, done: str) -> str:
    """How many of all BatchNorms were folded (`done` is the verb), and what else happened."""
    named = [d for d in report.decisions if d.subject.is_batchnorm]
    chains = [d for d in report.decisions if not d.subject.is_batchnorm and not isinstance(d, Kept)]
    if not named and not chains:
        return "no BatchNorm to fold"
    folded = sum(isinstance(d, Folded) for d in named)
    reduced = sum(isinstance(d, Reduced) for d in named)
    parts = [f"{folded} of {count(len(named), 'BatchNorm')} {done}"]
    parts += [f"{reduced} reduced"] if reduced else []
    parts += [f"{count(len(chains), 'constant chain')} {done}"] if chains else []
    return ", ".join(parts)


def done(report: Report) -> str:
    """A fold in one line: what was recalibrated, where that was asked for, how much was folded, and the check."""
    first = "" if report.recalibration is None else f"{recalibrated(report.recalibration)}; "
    return f"{first}{counted(report, 'folded')}, {verified(report.verification)}"


def recalibrated(report: RecalibrationReport) -> str:
    """How many of all BatchNorms have new statistics, from how much, and how far they moved."""
    moved, total = len(report.recalibrated), len(report.recalibrated) + len(report.left)
    if not total:
        return "no BatchNorm to recalibrate"
    far = f"drift up to {report.recalibrated[0].largest_drift:.2g} standard deviations" if moved else ""
    how = f" on {count(report.samples, 'sample')}, {far}" if moved else ""
    return f"{moved} of {count(total, 'BatchNorm')} recalibrated{how}"


def left_lines(left: Sequence[Left]) -> Iterator[tuple[str, str]]:
    """BatchNorms that keep their statistics for the same reason together: how many, the reason, a few of the names."""
    groups: dict[str, list[str]] = {}
    for entry in left:
        groups.setdefault(str(entry), []).append(entry.name)
    for reason, names in groups.items():
        yield f"left {len(names)}", f"{reason}: {listed(names)}"


def verified(verification: Verification | None) -> str:
    """On which providers the result was found equivalent."""
    if verification is None:
        return "not verified"
    if not verification.passed:
        return "verification failed" if verification.failed else "nothing proven"
    from bnfold.wording_deployed import warned  # noqa: PLC0415  # loads NumPy

    where = " and ".join(map(provider_name, verification.providers))
    return (f"verified on {where}" if where else "verified") + warned(verification)


def compared(before: str, verification: Verification) -> str:
    """The result of `verify`, as a clause."""
    if verification.failed:
        relation = "differs from" if verification.differs else "as verified equal to"
        return f"{relation} {before}: {verification.culprit}"
    from bnfold.wording_deployed import warned  # noqa: PLC0415  # as above

    where = " and ".join(map(provider_name, verification.providers))
    return f"equivalent to {before} on {where}{warned(verification)}"


def local_line(checks: Sequence[LocalCheck]) -> str:
    """The local test in one line."""
    ratios = [check.ratio for check in checks if check.ratio is not None]
    skipped = len(checks) - len(ratios)
    worst = f", largest error {max(ratios):.2g} {'of' if max(ratios) <= 1 else 'times'} its bound" if ratios else ""
    line = f"{count(len(checks), 'region')} in float64{worst}" + (f", {skipped} could not be run" if skipped else "")
    return line + damaged_line([check.tried for check in checks if check.tried is not None and check.tried.weight])


def damaged_line(tried: Sequence[SelfTest]) -> str:
    """What the local test saw of weights that were damaged on purpose; empty where none was."""
    if not tried:
        return ""
    seen = [trial.ratio for trial in tried if trial.seen]
    least = f", at {min(seen):.3g} bounds or more" if seen else ""
    return f"; a damaged weight is seen in {len(seen)} of {len(tried)}{least}"


def quick_line(check: QuickCheck) -> str:
    """The end-to-end check on one provider in one line."""
    inner = f", {count(len(check.inner), 'inner tensor')}" if check.outputs is None else ""
    tensors = f"{_outputs(check)}{inner}"
    besides = f", then {', '.join(check.kinds)}" if check.kinds else ""
    return f"{tensors}{largest_error(check)}; {' and '.join(map(shapes_of, check.runs)) or 'nothing was run'}{besides}"


def largest_error(check: QuickCheck) -> str:
    """`, largest error ...`; empty where there are no tensors."""
    worst = worst_of((*check.comparisons, *check.inner))
    if worst is None:
        return ""
    if isinf(worst.error):
        return ", largest error infinite"
    return f", largest error {worst.error:.2g} of its scale ({worst.tolerance:.1g} allowed)"


def _outputs(check: QuickCheck) -> str:
    """`2 outputs`, and of those that were compared more than once how often."""
    made = len(check.comparisons)
    if check.outputs is None or check.outputs == made:
        return count(made, "output")
    return f"{count(check.outputs, 'output')} in {count(made, 'comparison')}"


def oracle_line(check: QuickCheck) -> str:
    """Both errors against float64, of the first tensor that differs, else of the worst output; empty if not asked."""
    judged = [(entry.oracle, entry) for entry in (*check.comparisons, *check.inner) if entry.oracle is not None]
    if not judged:
        return ""
    outputs = [pair for pair in judged if pair[1] in check.comparisons]
    first = [pair for pair in judged if pair[1].name == check.first_divergence]
    errors, entry = max(first or outputs or judged, key=lambda pair: pair[0].ratio)
    return (
        f"{entry.name} is off by {errors.original:.2g} of its scale before, by {errors.folded:.2g} after "
        f"({errors.ratio:.2g} of what is allowed); {count(len(judged), 'tensor')} asked about"
    )


def stage_line(check: QuickCheck) -> str:
    """The worst tensor from the values before it, in one line; empty if none was judged so."""
    judged = [(entry.stage, entry) for entry in (*check.inner, *check.comparisons) if entry.stage is not None]
    if not judged:
        return ""
    errors, entry = max(judged, key=lambda pair: pair[0].ratio)
    return (
        f"{count(len(judged), 'tensor')}, each from the original's values before it, largest error "
        f"{errors.ratio:.3g} of what is allowed against float64, at {entry.name}"
    )


def worst_of(entries: Sequence[TensorComparison]) -> TensorComparison | None:
    """The comparison that failed by most, or came nearest to it; integers that agree come last."""
    return max(entries, key=lambda e: (e.failed, e.error / e.tolerance if e.tolerance else e.error), default=None)


def as_asked(decision: Decision) -> bool:
    """Whether it stayed because of `--keep` or `--only`."""
    first = decision.refusals[0] if isinstance(decision, Kept) else None
    return first is not None and first.reason is Reason.EXCLUDED_BY_CALLER and not first.where


def objection(report: Report) -> str:
    """What `--require-all` objects to; empty if nothing. What the caller excluded is no objection."""
    kept = [d for d in report.kept_batchnorms if not as_asked(d)]
    if not kept:
        return ""
    first, total = kept[0], sum(d.subject.is_batchnorm for d in report.decisions)
    return (
        f"{len(kept)} of {count(total, 'BatchNorm')} would be kept and --require-all was given, so nothing was "
        f"written; the first is {first.subject.name}: {why_kept(first.refusals)}"
    )


def seconds(figure: float) -> str:
    """A duration in the unit that leaves three digits or so: `1.25 ms`."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if figure >= size:
            return f"{figure / size:.3g} {unit}"
    return f"{figure / 1e-6:.3g} us"


def benched(report: BenchReport) -> str:
    """How much less time the folded model takes, at each level."""
    return "; ".join(
        f"{entry.ratio.median:.3f} of the time of {report.before} at {entry.level} on {entry.provider}"
        for entry in report.measured
    )


def bench_notes(report: BenchReport) -> Iterator[str]:
    """What a reader of the figures must know."""
    for entry in report.measured:
        before, after = entry.batchnorms
        if entry.level == "ENABLE_ALL":
            yield (
                f"at {entry.level} on {entry.provider} onnxruntime itself folds BatchNorms or makes them convolutions: "
                f"{before} are left of {report.before}, {after} of {report.after}"
            )
        if entry.ratio.low < 1 < entry.ratio.high:
            yield f"at {entry.level} on {entry.provider} the difference is within the spread of the rounds"
    threads = "as many threads as onnxruntime chooses" if report.threads == 0 else count(report.threads, "thread")
    yield f"{shapes_of(report.inputs)}, {count(report.rounds, 'round')} in turns, {threads}"
