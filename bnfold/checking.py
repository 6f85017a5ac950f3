"""How a fold of an ONNX model is verified: the local tests, and end to end on each provider."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

import onnx_ir as ir

from bnfold.constantcheck import constant_check
from bnfold.data import read_inputs
from bnfold.data_sources import DataLike, Source, as_source
from bnfold.deployed import Deployed
from bnfold.deploying import deployed_check, tf32_check
from bnfold.errors import BnfoldError, MachineError, ProviderError, UsageError, VerificationError
from bnfold.frontends.onnx_files import in_memory
from bnfold.frontends.onnx_fold import ModelPlan
from bnfold.frontends.onnx_regions import Cutter
from bnfold.inputs import fixed_inputs
from bnfold.localcheck import LocalCheck, local_check
from bnfold.metrics import Metric, choose_metric, measure
from bnfold.oracle import settle
from bnfold.providers import each_provider
from bnfold.quickcheck import QuickCheck, quick_check
from bnfold.renaming import renamed, reuse_note, reused_names
from bnfold.report.model import Report
from bnfold.rerunning import prepare_rerun
from bnfold.runtime import require
from bnfold.verdicts import Repeat
from bnfold.wishes import BY_FLAGS, Progress, Where, Wishes

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

Spans: TypeAlias = Mapping[int, tuple[int, int]]


@dataclass(frozen=True)
class Check:
    """How to verify: providers, shapes of inputs, seed, the caller's data, whom to tell; and what is asked besides.

    `fixed` are the inputs that are the same in every run, `oracle` tells whether float64 is asked about everything,
    `tries` whether the local test tries itself, `deployed` whether both models are compared as they are deployed,
    `foreign` whether another tool may have made the folded model: every stage is then judged by itself, for want of the
    local test of a fold, and names may be other tensors' names.
    """

    providers: Sequence[str]
    shapes: Mapping[str, tuple[int, ...]] | None
    seed: int
    data: Source | None
    progress: Progress | None
    tries: bool = False
    fixed: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    oracle: bool = False
    metric: Metric | None = None
    deployed: bool = True
    foreign: bool = False

    def local(self, original: ir.Model, planned: ModelPlan, spans: Sequence[Spans]) -> tuple[LocalCheck, ...]:
        """Every region of the folds by itself."""
        shapes = dict(self.shapes or {}) | {name: value.shape for name, value in self.fixed.items()}
        seed, tell = self.seed, self.progress
        checks = list(constant_check(planned.called or original, planned.evaluated))
        if any(made.regions for _, made in planned.parts):
            old, new = Cutter(planned.prepared or original), Cutter(planned.model)
            for (graph, made), span in zip(planned.parts, spans, strict=True):
                where = (old.at(graph.path), new.at(graph.path))
                checks += local_check(*where, made, span, shapes=shapes, seed=seed, tries=self.tries, progress=tell)
        return tuple(checks)

    def quick(self, before: ir.Model, after: ir.Model) -> tuple[QuickCheck, ...]:
        """Both models end to end."""
        old, new = in_memory(before), in_memory(after)
        return tuple(self._on(provider, old, new) for provider in self.providers)

    def _on(self, provider: str, old: onnx.ModelProto, new: onnx.ModelProto) -> QuickCheck:
        """On one provider: compared, judged by the oracle if asked or in doubt, then the decisions counted."""
        seed, data, fixed, tell = self.seed, self.data, self.fixed, self.progress
        check = self._compared(provider, old, new)
        if not check.runs:
            return check
        if self.foreign and (others := reused_names(Repeat(check, old, seed, data, fixed), old, new)):
            new = renamed(new, others)
            check = self._compared(provider, old, new)
            check = replace(check, renamed=others, notes=(*check.notes, reuse_note(others)))
        if check.failed or self.oracle or self.foreign:
            check = settle(check, old, new, seed=seed, data=data, fixed=fixed,
                           everything=self.oracle, stages=self.foreign, progress=tell)  # fmt: skip
        check = self._under_settings(check, old, new)
        if self.metric is None or data is None:
            return check
        found = measure(self.metric, old, new, provider=provider, data=data, fixed=fixed, progress=tell)
        first = check.first_divergence or (found.output if found.failed else None)
        return replace(
            check,
            agreement=found,
            failed=check.failed or found.failed,
            proves=check.proves and found.proves,
            first_divergence=first,
        )

    def _compared(self, provider: str, old: onnx.ModelProto, new: onnx.ModelProto) -> QuickCheck:
        return quick_check(old, new, provider=provider, shapes=self.shapes, seed=self.seed, data=self.data,
                           fixed=self.fixed, progress=self.progress)  # fmt: skip

    def _under_settings(self, check: QuickCheck, old: onnx.ModelProto, new: onnx.ModelProto) -> QuickCheck:
        """`check` with what the runtime's own optimiser and TF32 do to both models; both are reported apart."""
        on_cuda = check.provider == "cuda"
        if not self.deployed and not on_cuda:
            return check
        if self.progress is not None:
            self.progress("comparing as deployed, with the runtime's own optimiser")
        try:
            rerun = prepare_rerun(check, old, new, seed=self.seed, data=self.data, fixed=self.fixed)
        except ProviderError as error:
            return replace(check, deployed=Deployed(trouble=f"the outputs alone cannot be run: {error.what}"))
        deployed = deployed_check(rerun, everything=self.oracle) if self.deployed else None
        return replace(check, deployed=deployed, tf32=tf32_check(rerun) if on_cuda else None)


def prepare_check(
    model: ir.Model, where: Where, data: DataLike | None, wishes: Wishes, progress: Progress | None
) -> Check:
    """The check of what becomes of `model`, with all that can be refused at once refused.

    Raises:
        UsageError: A wish contradicts the model, or a metric is asked for without data.
        DataError: Data or inputs do not fit the model.
        MissingPackageError, ProviderError: onnxruntime or a provider is not there.
    """
    named = each_provider(where.providers)
    for provider in named:
        require(provider)
    if wishes.metric is None and wishes.metric_output is not None:
        raise UsageError("an output for decisions, and no decision is asked for", remedy="give --metric as well")
    if wishes.metric is not None and data is None:
        what = f"--metric {wishes.metric} counts decisions on your data, and there is none"
        raise UsageError(what, remedy="give --verify-data as well")
    fixed: Mapping[str, NDArray[np.generic]] = {}
    metric = None
    if wishes.inputs or wishes.metric is not None:
        proto = in_memory(model)
        fixed = fixed_inputs(wishes.inputs, read_inputs(proto)) if wishes.inputs else {}
        metric = choose_metric(wishes.metric, wishes.metric_output, proto) if wishes.metric is not None else None
    source = source_of(data, model, fixed)
    seed, shapes, tries = where.seed, where.shapes, wishes.self_test
    return Check(named, shapes, seed, source, progress, tries, fixed, wishes.oracle, metric, wishes.deployed)


def source_of(data: DataLike | None, model: ir.Model, fixed: Collection[str] = ()) -> Source | None:
    """The caller's data for this model, without the inputs that are fixed."""
    if data is None:
        return None
    return as_source(data, [spec for spec in read_inputs(in_memory(model)) if spec.name not in fixed])


#: What helps where the runtime's own optimiser gets the folded model wrong.
UNOPTIMISED = "deploy at ORT_DISABLE_ALL and fold with --no-deployed (deployed=False), or keep the BatchNorm behind it"


def demand(
    report: Report, kind: str = "model", remedy: str = BY_FLAGS, models: tuple[ir.Model, ir.Model] | None = None
) -> None:
    """Nothing wrong gets out, and nothing unproven either.

    Args:
        report: What was checked.
        kind: What was folded, for the message.
        remedy: What helps where nothing is proven.
        models: What was compared, for who wants to look.

    Raises:
        VerificationError: The models differ.
        MachineError: Nothing is proven. Both carry the report.
    """
    checked = report.verification
    assert checked is not None
    if checked.passed:
        return
    failure: BnfoldError
    if checked.failed:
        apart = not checked.differs  # equivalent, but for what the optimiser does
        what = checked.culprit if apart else f"the folded {kind} differs: {checked.culprit}"
        failure = VerificationError(what, where=report.model, remedy=UNOPTIMISED if apart else "")
    else:
        failure = MachineError(f"nothing is proven: {checked.doubt.rstrip('.')}", where=report.model, remedy=remedy)
    failure.report, failure.models = report, models
    raise failure
