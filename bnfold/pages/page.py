"""What one report shows, as a frozen value, and the verdict that stands at its top."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from bnfold.pages.provenance import Provenance
from bnfold.report.bench_report import BenchReport
from bnfold.report.model import Report
from bnfold.report.recalibration_report import RecalibrationReport
from bnfold.verification import Verification
from bnfold.wording import benched, counted, recalibrated, verified

#: Equivalent; different; neither of them was proven; nothing was compared.
Mood: TypeAlias = Literal["good", "bad", "unproven", "neutral"]


@dataclass(frozen=True)
class Verdict:
    """The one line to read.

    Attributes:
        mood: What it means.
        headline: It, in a few words.
        detail: What is behind it, in a sentence without its full stop; may be empty.
    """

    mood: Mood
    headline: str
    detail: str = ""


@dataclass(frozen=True)
class Page:
    """What one report shows.

    Attributes:
        title: The file name, or two of them.
        provenance: Where it comes from.
        fold: What `inspect` would do or `fold` did, if that was run.
        comparison: The result of `verify`, if that was run.
        recalibration: What a recalibration did, if one was run, by itself or before the fold.
        bench: What was measured, if anything was.
    """

    title: str
    provenance: Provenance
    fold: Report | None = None
    comparison: Verification | None = None
    recalibration: RecalibrationReport | None = None
    bench: BenchReport | None = None

    @property
    def verification(self) -> Verification | None:
        """The check, whichever command ran it."""
        return self.comparison if self.fold is None else self.fold.verification

    @property
    def verdict(self) -> Verdict:
        """Equivalent or not, or what else there is to say."""
        if self.verification is not None:
            return _judged(self.verification, self._counted, "" if self.fold is None else "; nothing was written")
        if self.fold is not None:
            headline = "Inspected, nothing written" if self.fold.after is None else "Not verified"
            return Verdict("neutral", headline, self._counted)
        if self.recalibration is not None:
            return Verdict("neutral", "Recalibrated", recalibrated(self.recalibration))
        return Verdict("neutral", "Measured", "" if self.bench is None else benched(self.bench))

    @property
    def _counted(self) -> str:
        if self.fold is None:
            return ""
        return counted(self.fold, "would fold" if self.fold.after is None else "folded")


def _judged(verification: Verification, done: str, consequence: str) -> Verdict:
    if verification.failed:
        headline = "Not equivalent" if verification.differs else "Equivalent, but wrong as deployed"
        return Verdict("bad", headline, verification.culprit + consequence)
    if not verification.passed:
        return Verdict("unproven", "Nothing proven", verification.doubt.rstrip(".") + consequence)
    return Verdict("good", "Equivalent", ", ".join(part for part in (done, verified(verification)) if part))
