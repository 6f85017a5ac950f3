"""What a fold of a PyTorch module gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bnfold.decision import Decision
from bnfold.report.model import Report

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, eq=False)
class TorchFoldResult:
    """A folded module and what happened.

    Attributes:
        module: The folded module, of the class that was given: a copy, or the given one if that was asked for; with
            `as_graph` a `torch.fx.GraphModule`.
        report: Decisions, sizes and verification.
    """

    module: nn.Module
    report: Report

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """One for each BatchNorm that the forward pass calls, in topological order."""
        return self.report.decisions
