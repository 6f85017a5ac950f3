"""Joins the two tests of equivalence: the local one proves each fold, the end-to-end one guards wiring and provider.

A model passes when no region's local test failed, every region could be run, both models agree end to end on every
provider that was asked for, and the folded model is no worse off with the runtime's own optimiser than the original is.
"""

from __future__ import annotations

from dataclasses import dataclass

from bnfold.localcheck import LocalCheck
from bnfold.quickcheck import QuickCheck


@dataclass(frozen=True)
class Verification:
    """Both tests.

    Attributes:
        local: One entry for each region of folds; none when two files are compared that bnfold did not make.
        quick: One entry for each provider.
    """

    local: tuple[LocalCheck, ...]
    quick: tuple[QuickCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether everything was run and nothing differs."""
        every = all(local.passed for local in self.local) and all(quick.passed for quick in self.quick)
        return every and self.deployed_failure is None

    @property
    def failed(self) -> bool:
        """Whether something was run and differs; neither `passed` nor `failed` means that nothing was proven."""
        return self.differs or self.deployed_failure is not None

    @property
    def differs(self) -> bool:
        """Whether the models themselves differ, without the runtime's own optimiser."""
        return any(local.failed for local in self.local) or any(quick.failed for quick in self.quick)

    @property
    def deployed_failure(self) -> QuickCheck | None:
        """The first provider on which the runtime's own optimiser gets the folded model wrong, the original not."""
        return next((quick for quick in self.quick if quick.deployed is not None and quick.deployed.failed), None)

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers on which both models ran."""
        return tuple(check.provider for check in self.quick)

    @property
    def culprit(self) -> str:
        """The first thing that differs, for people; empty when nothing does."""
        for local in self.local:
            if local.failed:
                return f"{local.change} is wrong at {local.tensor} ({local.ratio:.3g} bounds)"
        for quick in self.quick:
            tensors_differ = any(entry.failed for entry in (*quick.comparisons, *quick.inner))
            if quick.agreement is not None and quick.agreement.failed and not tensors_differ:
                return f"on {quick.provider} {quick.agreement}"
            if quick.failed:
                return f"the first tensor that differs on {quick.provider} is {quick.first_difference}"
        if self.deployed_failure is not None and self.deployed_failure.deployed is not None:
            return f"on {self.deployed_failure.provider} {self.deployed_failure.deployed.failure}"
        return ""

    @property
    def doubt(self) -> str:
        """Why nothing was proven, for people; empty when it was."""
        for local in self.local:
            if not local.passed and not local.failed:
                return f"{local.change} could not be run by itself: {local.note}"
        for quick in self.quick:
            if quick.agreement is not None and not quick.agreement.proves and not quick.failed:
                return f"on {quick.provider} there is no decision that is not within rounding: {quick.agreement}"
            if not quick.passed and not quick.failed:
                telling = [note for note in quick.notes if "proves nothing" in note] or quick.notes
                return next(reversed(telling), f"nothing was compared on {quick.provider}")
        return ""
