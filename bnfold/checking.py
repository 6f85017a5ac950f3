"""How a fold of an ONNX model is verified: the local tests, and end to end on each provider."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from bnfold.constantcheck import constant_check
from bnfold.data import read_inputs
from bnfold.data_sources import DataLike, Source, as_source
from bnfold.errors import BnfoldError, MachineError, VerificationError
from bnfold.frontends.onnx_files import in_memory
from bnfold.frontends.onnx_fold import ModelPlan
from bnfold.frontends.onnx_regions import Cutter
from bnfold.localcheck import LocalCheck, local_check
from bnfold.oracle import settle
from bnfold.quickcheck import QuickCheck, quick_check
from bnfold.report.model import Report
from bnfold.report.recalibration_report import RecalibrationReport

Progress: TypeAlias = Callable[[str], None]
Spans: TypeAlias = Mapping[int, tuple[int, int]]


#: What helps where nothing is proven, on the command line and in Python.
BY_FLAGS = "--keep leaves a BatchNorm alone, --no-verify writes the model without this proof"
BY_ARGUMENTS = "keep=... leaves a BatchNorm alone, verify=False folds without this proof"


@dataclass(frozen=True, eq=False)
class Proof:
    """How a fold of a PyTorch module is proven.

    Attributes:
        verify: Whether at all.
        seed: Of the inputs.
        progress: Told what is being done.
        remedy: What helps where nothing is proven.
        recalibration: What was done to the module before, for the report.
    """

    verify: bool = True
    seed: int = 0
    progress: Progress | None = None
    remedy: str = BY_ARGUMENTS
    recalibration: RecalibrationReport | None = None


@dataclass(frozen=True)
class Check:
    """How to verify: providers, shapes of inputs, seed, the caller's data, whom to tell, whether to try the test."""

    providers: Sequence[str]
    shapes: Mapping[str, tuple[int, ...]] | None
    seed: int
    data: Source | None
    progress: Progress | None
    tries: bool = False

    def local(self, original: ir.Model, planned: ModelPlan, spans: Sequence[Spans]) -> tuple[LocalCheck, ...]:
        """Every region of the folds by itself."""
        shapes, seed, tell = self.shapes, self.seed, self.progress
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
        shapes, seed, data, tell = self.shapes, self.seed, self.data, self.progress
        runs = [
            quick_check(old, new, provider=p, shapes=shapes, seed=seed, data=data, progress=tell)
            for p in self.providers
        ]
        return tuple(
            settle(r, old, new, seed=seed, data=data, progress=tell) if r.failed and r.runs else r for r in runs
        )


def source_of(data: DataLike | None, model: ir.Model) -> Source | None:
    """The caller's data for this model."""
    return None if data is None else as_source(data, read_inputs(in_memory(model)))


def demand(report: Report, kind: str = "model", remedy: str = BY_FLAGS) -> None:
    """Nothing wrong gets out, and nothing unproven either.

    Args:
        report: What was checked.
        kind: What was folded, for the message.
        remedy: What helps where nothing is proven.

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
        failure = VerificationError(f"the folded {kind} differs: {checked.culprit}", where=report.model)
    else:
        failure = MachineError(f"nothing is proven: {checked.doubt.rstrip('.')}", where=report.model, remedy=remedy)
    failure.report = report
    raise failure
