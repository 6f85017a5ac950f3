"""Joins the two tests of equivalence: the local one proves each fold, the end-to-end one guards wiring and provider.

Local: in float64, |folded - original| <= u * (|W'| * |x| + |b'|), u the unit round-off of the stored dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

from bnfold.quickcheck import QuickCheck


@dataclass(frozen=True)
class LocalCheck:
    """The local test of one region: folds that share an operator.

    Attributes:
        batchnorms: What was folded in it.
        ratio: The largest error in units of the bound; at most 1 for a right fold. None if it could not be run.
        tensor: The output of the region with that error.
        note: Why it could not be run; empty if it was.
    """

    batchnorms: tuple[str, ...]
    ratio: float | None
    tensor: str
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the region was run and every element is within its bound."""
        return self.ratio is not None and self.ratio <= 1


@dataclass(frozen=True)
class Verification:
    """Both tests.

    Attributes:
        local: One entry for each region.
        quick: One entry for each provider.
    """

    local: tuple[LocalCheck, ...]
    quick: tuple[QuickCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(check.passed for check in (*self.local, *self.quick))

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers on which both models ran."""
        return tuple(check.provider for check in self.quick)
