"""A report as JSON, for programs: the same bytes for the same result, on every machine.

No clock, no absolute path, no version of anything; keys in the order below, every key always there. Version 1:

    schema_version  1; a key that goes or changes its meaning raises it, a new key does not
    model           file name without its folder, or the graph's name
    recalibration   null unless the model was recalibrated first, else the report of `bnfold recalibrate`
                    (bnfold.report.recalibration_report), which has a schema_version of its own
    summary         {folded, reduced, kept}: how many decisions of each kind
    decisions       a list in topological order, of
        kind            "folded", "reduced" or "kept"
        subject         {name, kind, channels, is_batchnorm}; channels is 0 when unknown
        direction       "pull" (into producers), "push" (into consumers), "merge" (with parallel branches), "evaluate"
                        (it normalises a constant, so it is computed once); null when kept, or only rewritten in place
        into, through   names of the operators that absorbed it, and of those that it passed
        to              what is left of it, joined by "-"; null unless reduced
        reasons         a list of {reason, clause, where, detail}, reason the name of a `Reason`; empty when folded
        remedy          what would help; "" when nothing does
    before, after   {nodes, batchnorms, bytes, parameters, file, flops}; after is null for `inspect`; bytes of all
                    weights, and parameters the numbers in them; file the bytes on the disk, null where there is none;
                    flops null where they were not counted, else
        total           floating-point operations of one run, 2 * multiply_adds + others; null where they are unknown
        multiply_adds, others  of convolutions and matrix products, and of all the rest
        inputs          the shapes that this holds for, by name
        convention      what counts as one operation, a sentence
        uncounted       a list of {operator, number, why}: operators that are left out, so that total is a lower bound
        unknown         why total is null, else ""
    verification    null when there was none, else
        passed, failed  both false: nothing was proven
        local           a list of {batchnorms, passed, ratio, tensor, note, damaged}; ratio null when it could not be
                        run; damaged {weight, ratio, seen}, a weight damaged on purpose; null unless asked for
        end_to_end      one for each provider: {provider, passed, failed, proves, first_divergence, runs, patterns,
                        renamed, outputs, inner, agreement, deployed, tf32, notes}; runs map inputs to shapes; patterns
                        are the kinds of inputs that were run besides, in the shapes of the first run; renamed maps
                        tensors of the second model to those of the first that they were compared with, by their values
                        (of `bnfold verify`); outputs and inner are lists of {name, shape, dtype, passed, compared,
                        error, scale, tolerance, oracle, stage, index, note}
            oracle      null where float64 was not asked or is not believed, else {original, folded, ratio}: both
                        errors relative to the tensor's scale, and the folded one's in units of what is allowed
            stage       the same where both models and float64 start from the original's values before the tensor; null
                        where that was not judged (a fold without doubt) or is not believed
            agreement   null without --metric, else {metric, output, samples, decisions, same, clear, different,
                        first}: clear decisions are not within rounding, different ones are clear and not the same
            deployed    null with --no-deployed, of two PyTorch modules, and where nothing could be run, else what the
                        runtime's own optimiser does: {level, failed, blame,
                        trouble, original, folded, between, errors, notes}; blame is "neither", "original", "folded" or
                        "both"; of a PyTorch module, which no runtime rewrites, original and between are empty; else
                        original and folded are {trouble, outputs}, each model against itself unoptimised, and
                        between is both as deployed; errors are of {name, original, folded, original_deployed,
                        folded_deployed} against float64, the last two null where the model cannot be run so
            tf32        null but on CUDA, else what TF32 does, which is no part of the verdict: {original, folded}
    notes           a list of sentences
    scales          of each BatchNorm gamma / sqrt(var + epsilon): {name, channels, negative, zero, quantiles}, how
                    many are below zero and zero, and of their absolute values the smallest, the quartiles, the largest
    bench           null unless latency was measured, else the report of `bnfold bench` (bnfold.report.bench_report)

`bnfold verify` prints {schema_version, before, after, verification}, before and after the two file names. JSON has no
infinity: a figure that is not finite is the string "Infinity", "-Infinity" or "NaN".
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from bnfold.decision import Decision, Folded, Kept, Reduced, Refusal, Subject
from bnfold.flops import CONVENTION, Flops
from bnfold.report.figures import Json, figure, text
from bnfold.report.settings_json import deployed_json, tf32_json

if TYPE_CHECKING:
    from bnfold.agreement import Agreement
    from bnfold.comparison import TensorComparison
    from bnfold.judging import Errors
    from bnfold.localcheck import LocalCheck
    from bnfold.quickcheck import QuickCheck
    from bnfold.report.model import Report, ScaleSpread, Size
    from bnfold.selftest import SelfTest
    from bnfold.verification import Verification

SCHEMA_VERSION = 1


def report_json(report: Report) -> str:
    """The report of `fold` or `inspect`, with a newline at the end."""
    kinds = {"folded": report.folded, "reduced": report.reduced, "kept": report.kept}
    return text(
        {
            "schema_version": SCHEMA_VERSION,
            "model": report.model,
            "recalibration": None if report.recalibration is None else report.recalibration.to_tree(),
            "summary": {kind: len(found) for kind, found in kinds.items()},
            "decisions": [_decision(decision) for decision in report.decisions],
            "before": _size(report.before),
            "after": None if report.after is None else _size(report.after),
            "verification": None if report.verification is None else _verification(report.verification),
            "notes": list(report.notes),
            "scales": [_spread(entry) for entry in report.scales],
            "bench": None if report.bench is None else report.bench.to_tree(),
        }
    )


def verification_json(before: str, after: str, verification: Verification) -> str:
    """The result of `verify` for two files of these names, with a newline at the end."""
    files: dict[str, Json] = {"schema_version": SCHEMA_VERSION, "before": before, "after": after}
    return text(files | {"verification": _verification(verification)})


def _decision(decision: Decision) -> Json:
    match decision:
        case Folded():
            return _row("folded", decision)
        case Reduced(refusals=refusals):
            return _row("reduced", decision, refusals)
        case Kept(refusals=refusals):
            return _row("kept", decision, refusals)


def _row(kind: str, decision: Decision, refusals: tuple[Refusal, ...] = ()) -> Json:
    """One shape for all kinds, so that a program need not ask which keys are there."""
    moved = None if isinstance(decision, Kept) else decision
    return {
        "kind": kind,
        "subject": _subject(decision.subject),
        "direction": moved.direction if moved else None,
        "into": list(moved.into) if moved else [],
        "through": list(moved.through) if moved else [],
        "to": decision.to if isinstance(decision, Reduced) else None,
        "reasons": [_refusal(refusal) for refusal in refusals],
        "remedy": decision.remedy if isinstance(decision, Kept) else "",
    }


def _subject(subject: Subject) -> Json:
    return {
        "name": subject.name,
        "kind": subject.kind,
        "channels": subject.channels,
        "is_batchnorm": subject.is_batchnorm,
    }


def _refusal(refusal: Refusal) -> Json:
    return {
        "reason": refusal.reason.name,
        "clause": refusal.reason.value,
        "where": refusal.where,
        "detail": refusal.detail,
    }


def _size(size: Size) -> Json:
    counted: dict[str, Json] = {"nodes": size.nodes, "batchnorms": size.batchnorms, "bytes": size.bytes}
    counted |= {"parameters": size.parameters, "file": size.file}
    return counted | {"flops": None if size.flops is None else _flops(size.flops)}


def _flops(count: Flops) -> Json:
    work = count.work
    return {
        "total": None if work is None else work.flops,
        "multiply_adds": None if work is None else work.multiply_adds,
        "others": None if work is None else work.others,
        "inputs": {name: list(shape) for name, shape in count.inputs.items()},
        "convention": CONVENTION,
        "uncounted": [asdict(entry) for entry in count.uncounted],
        "unknown": count.unknown,
    }


def _spread(entry: ScaleSpread) -> Json:
    signs: dict[str, Json] = {"channels": entry.channels, "negative": entry.negative, "zero": entry.zero}
    return {"name": entry.name} | signs | {"quantiles": [figure(quantile) for quantile in entry.quantiles]}


def _verification(verification: Verification) -> Json:
    return {
        "passed": verification.passed,
        "failed": verification.failed,
        "local": [_local(check) for check in verification.local],
        "end_to_end": [_quick(check) for check in verification.quick],
    }


def _local(check: LocalCheck) -> Json:
    return {
        "batchnorms": list(check.batchnorms),
        "passed": check.passed,
        "ratio": None if check.ratio is None else figure(check.ratio),
        "tensor": check.tensor,
        "note": check.note,
        "damaged": None if check.tried is None else _damaged(check.tried),
    }


def _damaged(trial: SelfTest) -> Json:
    return {"weight": trial.weight, "ratio": figure(trial.ratio), "seen": trial.seen}


def _quick(check: QuickCheck) -> Json:
    return {
        "provider": check.provider,
        "passed": check.passed,
        "failed": check.failed,
        "proves": check.proves,
        "first_divergence": check.first_divergence,
        "runs": [{name: list(shape) for name, shape in run.items()} for run in check.runs],
        "patterns": list(check.kinds),
        "renamed": dict(check.renamed),
        "outputs": [_comparison(entry) for entry in check.comparisons],
        "inner": [_comparison(entry) for entry in check.inner],
        "agreement": None if check.agreement is None else _agreement(check.agreement),
        "deployed": None if check.deployed is None else deployed_json(check.deployed, _comparison),
        "tf32": None if check.tf32 is None else tf32_json(check.tf32, _comparison),
        "notes": list(check.notes),
    }


def _comparison(entry: TensorComparison) -> Json:
    return {
        "name": entry.name,
        "shape": list(entry.shape),
        "dtype": entry.dtype,
        "passed": entry.passed,
        "compared": entry.compared,
        "error": figure(entry.error),
        "scale": figure(entry.scale),
        "tolerance": figure(entry.tolerance),
        "oracle": None if entry.oracle is None else _errors(entry.oracle),
        "stage": None if entry.stage is None else _errors(entry.stage),
        "index": list(entry.index),
        "note": entry.note,
    }


def _errors(errors: Errors) -> Json:
    figures = {"original": errors.original, "folded": errors.folded, "ratio": errors.ratio}
    return {name: figure(number) for name, number in figures.items()}


def _agreement(agreement: Agreement) -> Json:
    source: dict[str, Json] = {"metric": agreement.metric, "output": agreement.output, "samples": agreement.samples}
    return source | asdict(agreement.count)
