"""What a fold of an ONNX model gives back."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from bnfold.decision import Decision
from bnfold.manifest import Manifest
from bnfold.report.model import Report


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
