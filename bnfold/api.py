"""What bnfold does, as functions: load, inspect, fold, verify, save.

The command line calls these and nothing else. Nothing here prints; long work tells a `progress` callback.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast, get_args

import onnx_ir as ir

from bnfold.constantcheck import constant_check
from bnfold.data import read_inputs
from bnfold.data_sources import DataLike, Source, as_source
from bnfold.decision import Decision
from bnfold.errors import MachineError, UsageError, VerificationError
from bnfold.frontends.onnx_files import in_memory, load, save
from bnfold.frontends.onnx_fold import ModelPlan, Settings, plan_model
from bnfold.frontends.onnx_readers import Reader
from bnfold.frontends.onnx_regions import Cutter
from bnfold.frontends.onnx_simplify import simplified
from bnfold.history import History, Wish
from bnfold.leftover_forms import Form
from bnfold.localcheck import LocalCheck, local_check
from bnfold.manifest import Manifest
from bnfold.model_size import size_of
from bnfold.oracle import settle
from bnfold.quickcheck import QuickCheck, quick_check
from bnfold.report.model import Report
from bnfold.requantising import rounded_biases
from bnfold.runtime import require
from bnfold.verification import Verification

__all__ = ["FoldResult", "fold", "inspect", "load", "save", "verify"]

#: A model in memory, or the path of an ONNX file.
ModelLike: TypeAlias = "ir.Model | str | os.PathLike[str]"
Progress: TypeAlias = Callable[[str], None]
Readers: TypeAlias = Mapping[tuple[str, str], Reader]
Spans: TypeAlias = Mapping[int, tuple[int, int]]


@dataclass(frozen=True, eq=False)
class FoldResult:
    """A folded model and what happened.

    Attributes:
        model: The folded model; the original is as it was.
        report: Decisions, sizes and verification.
        manifest: How to undo the fold (and the folds before it that `model` knew of), where one was asked for.
    """

    model: ir.Model
    report: Report
    manifest: Manifest | None = None

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """One for each BatchNorm (and constant chain that is one in disguise), in topological order."""
        return self.report.decisions


def inspect(  # noqa: PLR0913
    model: ModelLike,
    *,
    only: str | None = None,
    keep: str | None = None,
    keep_overridable: bool = False,
    reduce: bool = False,
    merge: bool = True,
    leftover: Form = "keep",
    simplify: bool = False,
    readers: Readers | None = None,
) -> Report:
    """What `fold` would do with `model`, which stays as it is.

    Args:
        model: A model, or the path of an ONNX file.
        only: A regular expression; BatchNorms in whose name it is not found are kept.
        keep: A regular expression; BatchNorms in whose name it is found are kept.
        keep_overridable: Leave initializers alone that are also graph inputs, which a caller may override.
        reduce: Where that makes a BatchNorm vanish, give an activation behind it a bound for each channel, and where
            only the shift cannot move, leave an Add in its place: fewer BatchNorms for a compiler that lacks them,
            though not a faster model.
        merge: Whether parallel linear branches of one value become one operator (RepVGG, MobileOne, ACNet).
        leftover: What is written for a BatchNorm that stays: "keep" leaves it as it is; "affine" writes Mul and Add,
            without what does nothing, and after a Sub where the mean would cancel; "depthwise" a depthwise 1x1 Conv
            where the value has a spatial axis. What `keep` and `only` exclude stays a BatchNorm.
        simplify: Run onnxsim first (without its own BatchNorm fusion), to uncover constants.
        readers: Your own readers of operators, by domain ("" for the standard ones) and operator type; they come
            before bnfold's. `examples/own_carrier.py` shows one.

    Raises:
        UsageError: `only` or `keep` is no regular expression, `leftover` is no form; the file does not exist.
        ModelError: The file is not an ONNX model that can be read.
        MissingPackageError: onnxsim is wanted and not installed.
    """
    form = _form(leftover)
    given, name = _opened(model)
    original, notes = _prepared(given, simplify, keep_overridable)
    settings = Settings(_selection(only, keep), keep_overridable, readers or {}, reduce, merge, form)
    planned = plan_model(original.clone(), settings)
    return Report(name, planned.decisions, size_of(original), notes=notes + _merges(planned) + _roundings(planned))


def fold(  # noqa: PLR0913
    model: ModelLike,
    *,
    only: str | None = None,
    keep: str | None = None,
    keep_overridable: bool = False,
    reduce: bool = False,
    merge: bool = True,
    leftover: Form = "keep",
    simplify: bool = False,
    readers: Readers | None = None,
    verify: bool = True,
    manifest: Wish = None,
    providers: Sequence[str] = ("cpu",),
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    seed: int = 0,
    data: DataLike | None = None,
    progress: Progress | None = None,
) -> FoldResult:
    """Fold every BatchNorm of `model` that exact arithmetic allows, and prove the result equivalent.

    Args:
        model: A model, which stays as it is, or the path of an ONNX file.
        only: As `inspect`.
        keep: As `inspect`.
        keep_overridable: As `inspect`.
        reduce: As `inspect`.
        merge: As `inspect`.
        leftover: As `inspect`.
        simplify: As `inspect`.
        readers: As `inspect`.
        verify: Whether to check the result; without it, the metadata of the model says that it was not.
        manifest: Whether to note how `bnfold.unfold` can undo the fold: "apart" in the result alone, "embed" in the
            metadata of the model too. A model that carries a manifest goes on carrying one.
        providers: Execution providers of onnxruntime to check on: "cpu", "cuda".
        shapes: Shapes of inputs by name, where the model leaves them open.
        seed: Seed of the inputs of the check.
        data: Your own data, to compare on as well: a `DataRequest` or its text, or a list of batches.
        progress: Told what is being done, one clause at a time.

    Raises:
        UsageError, ModelError, MissingPackageError: As `inspect`; also, data without `verify`, or no data there.
        DataError: The data cannot be read, or does not fit the model.
        VerificationError: The folded model is not equivalent; its `report` says where.
        MachineError: The check cannot be run here (no kernel, no device), or proves nothing.
    """
    form = _form(leftover)
    for provider in providers if verify else ():
        require(provider)
    given, name = _opened(model)
    if data is not None and not verify:
        raise UsageError("data is for the check, which is left out", where=name, remedy="leave out one of the two")
    source = _source(data, given)
    original, notes = _prepared(given, simplify, keep_overridable)
    folded = original.clone()
    history = History(manifest, original, folded, simplified=simplify)
    settings = Settings(_selection(only, keep), keep_overridable, readers or {}, reduce, merge, form)
    planned = plan_model(folded, settings)
    spans = [graph.spans() for graph, _ in planned.parts]
    notes += _merges(planned) + _roundings(planned)
    history.note(planned)
    written = planned.write()
    notes += history.notes
    notes += tuple(f"input {lost} was the default of a folded parameter and is gone" for lost in written.dropped_inputs)
    notes += (f"{written.cloned_bytes} bytes of weights are shared and were copied",) if written.cloned_bytes else ()
    report = Report(name, planned.decisions, size_of(original), size_of(folded), notes=notes)
    if verify:
        check = _Check(providers, shapes, seed, source, progress)
        checked = Verification(check.local(original, planned, spans), check.quick(given, folded))
        report = Report(name, planned.decisions, report.before, report.after, checked, notes)
        _demand(report)
    planned.record(report.verification.providers if report.verification else ())
    return FoldResult(folded, report, history.extended(folded))


def verify(  # noqa: PLR0913
    before: ModelLike,
    after: ModelLike,
    *,
    providers: Sequence[str] = ("cpu",),
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    seed: int = 0,
    data: DataLike | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Run two models on the same inputs, unoptimised, and compare their outputs and inner tensors of equal name.

    Args and errors as `fold`; a difference is no error here but in the result.
    """
    old, new = (_opened(model)[0] for model in (before, after))
    return Verification((), _Check(providers, shapes, seed, _source(data, old), progress).quick(old, new))


def _opened(model: ModelLike) -> tuple[ir.Model, str]:
    """The model, and its name for the report."""
    if isinstance(model, ir.Model):
        return model, model.graph.name or "model"
    return load(model), Path(model).name


def _source(data: DataLike | None, model: ir.Model) -> Source | None:
    """The caller's data for this model."""
    return None if data is None else as_source(data, read_inputs(in_memory(model)))


def _prepared(given: ir.Model, simplify: bool, keep_overridable: bool) -> tuple[ir.Model, tuple[str, ...]]:
    """The model to fold, and what was done to it; end to end it is still compared with the one that was given."""
    if not simplify:
        return given, ()
    simpler = simplified(given, keep_overridable=keep_overridable)
    return simpler, (f"onnxsim left {len(simpler.graph)} of {len(given.graph)} nodes",)


def _merges(planned: ModelPlan) -> tuple[str, ...]:
    """What was merged, for the report."""
    merges = [(graph.path, merge) for graph, made in planned.parts for merge in made.merges]
    parallel = len({(path, merge.into.index) for path, merge in merges if not merge.is_in_a_row})
    row = sum(merge.is_in_a_row for _, merge in merges)
    notes = [f"parallel branches become one operator in {parallel} places"] if parallel else []
    return (*notes, *([f"operators in a row become one in {row} places"] if row else []))


def _roundings(planned: ModelPlan) -> tuple[str, ...]:
    """What quantised biases lose, for the report."""
    return tuple(note for _, part in planned.parts for note in rounded_biases(part.bench))


def _selection(only: str | None, keep: str | None) -> Callable[[str], bool]:
    include, exclude = _pattern(only, "only"), _pattern(keep, "keep")
    return lambda name: (include is None or bool(include.search(name))) and not (exclude and exclude.search(name))


def _form(leftover: str) -> Form:
    if leftover not in get_args(Form):
        raise UsageError(f"{leftover!r} is none of {', '.join(get_args(Form))}", where="leftover")
    return cast("Form", leftover)


def _pattern(text: str | None, option: str) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise UsageError(f"{text!r} is no regular expression: {error}", where=option) from error


@dataclass(frozen=True)
class _Check:
    """How to verify: providers, shapes of inputs, seed, the caller's data, and whom to tell."""

    providers: Sequence[str]
    shapes: Mapping[str, tuple[int, ...]] | None
    seed: int
    data: Source | None
    progress: Progress | None

    def local(self, original: ir.Model, planned: ModelPlan, spans: Sequence[Spans]) -> tuple[LocalCheck, ...]:
        shapes, seed, tell = self.shapes, self.seed, self.progress
        checks = list(constant_check(planned.called or original, planned.evaluated))
        if any(made.regions for _, made in planned.parts):
            old, new = Cutter(planned.prepared or original), Cutter(planned.model)
            for (graph, made), span in zip(planned.parts, spans, strict=True):
                where = (old.at(graph.path), new.at(graph.path))
                checks += local_check(*where, made, span, shapes=shapes, seed=seed, progress=tell)
        return tuple(checks)

    def quick(self, before: ir.Model, after: ir.Model) -> tuple[QuickCheck, ...]:
        old, new = in_memory(before), in_memory(after)
        shapes, seed, data, tell = self.shapes, self.seed, self.data, self.progress
        runs = [
            quick_check(old, new, provider=p, shapes=shapes, seed=seed, data=data, progress=tell)
            for p in self.providers
        ]
        return tuple(
            settle(r, old, new, seed=seed, data=data, progress=tell) if r.failed and r.runs else r for r in runs
        )


def _demand(report: Report) -> None:
    """Nothing wrong gets out, and nothing unproven either."""
    checked = report.verification
    assert checked is not None
    if checked.failed:
        failure = VerificationError(f"the folded model differs: {checked.culprit}", where=report.model)
        failure.report = report
        raise failure
    if not checked.passed:
        remedy = "--keep leaves a BatchNorm alone, --no-verify writes the model without this proof"
        raise MachineError(f"nothing is proven: {checked.doubt.rstrip('.')}", where=report.model, remedy=remedy)
