"""What was checked, line by line, for who signs a report off: what, with what result, by which figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bnfold.decision import Folded, Kept, Reduced
from bnfold.wording import as_asked, count, largest_error, local_line, provider_name, recalibrated, stage_line
from bnfold.wording_deployed import deployed_line, is_alarming

if TYPE_CHECKING:
    from bnfold.deployed import Deployed
    from bnfold.pages.page import Mood, Page
    from bnfold.quickcheck import QuickCheck
    from bnfold.report.bench_report import Measured
    from bnfold.report.model import Report

#: The word beside each line, so that nothing hangs on a colour.
RESULTS: dict[Mood, str] = {"good": "passed", "bad": "failed", "unproven": "not proven", "neutral": "noted"}


@dataclass(frozen=True)
class Item:
    """One line.

    Attributes:
        what: What was looked at.
        mood: What came of it.
        detail: The figures, as a clause.
    """

    what: str
    mood: Mood
    detail: str

    @property
    def result(self) -> str:
        """What came of it, in a word or two."""
        return RESULTS[self.mood]


def checklist(page: Page) -> tuple[Item, ...]:
    """Every check that was run, and what else there is to know before signing; one that was not run says so."""
    return tuple(_items(page))


def _items(page: Page) -> Iterator[Item]:
    if page.recalibration is not None:
        yield Item("statistics", "neutral", recalibrated(page.recalibration))
    if page.fold is not None:
        yield Item("BatchNorms", "neutral", _kept(page.fold))
    checked = page.verification
    if checked is None and page.fold is not None and page.fold.after is not None:
        yield Item("equivalence", "unproven", "not checked: --no-verify was given")
    if checked is not None and checked.local:
        failed, passed = any(e.failed for e in checked.local), all(e.passed for e in checked.local)
        yield Item("each fold by itself", _mood(passed=passed, failed=failed), local_line(checked.local))
    for quick in checked.quick if checked is not None else ():
        yield _end_to_end(quick)
        if stages := stage_line(quick):
            judged = [entry.stage for entry in (*quick.inner, *quick.comparisons) if entry.stage is not None]
            mood = _mood(passed=True, failed=any(errors.ratio > 1 for errors in judged))
            yield Item(f"each stage by itself on {provider_name(quick.provider)}", mood, stages)
        if (deployed := quick.deployed) is not None:
            yield Item(
                f"as deployed on {provider_name(quick.provider)}", _deployed(quick, deployed), deployed_line(deployed)
            )
        if (found := quick.agreement) is not None:
            mood = _mood(passed=found.proves, failed=found.failed)
            yield Item(f"decisions ({found.metric}) on {provider_name(quick.provider)}", mood, str(found))
    if page.bench is not None:
        yield from (Item(f"latency at {e.level} on {e.provider}", "neutral", _latency(e)) for e in page.bench.measured)


def _end_to_end(quick: QuickCheck) -> Item:
    """The tensors alone; decisions have a line of their own."""
    entries = [*quick.comparisons, *quick.inner]
    compared, different = sum(entry.compared for entry in entries), sum(entry.failed for entry in entries)
    decided = quick.agreement is not None
    mood = _mood(
        passed=quick.passed or (decided and compared > 0), failed=different > 0 or (quick.failed and not decided)
    )
    agree = f"{compared - different} of {count(compared, 'tensor')} agree{largest_error(quick)}"
    detail = f"{agree}; {count(len(quick.runs), 'input size')}"
    return Item(f"end to end on {provider_name(quick.provider)}", mood, detail)


def _deployed(quick: QuickCheck, deployed: Deployed) -> Mood:
    """What is wrong with the original as well is no reason to refuse the folded model, and must be known.

    Where the models differ, that each is as deployed what it is otherwise recommends neither.
    """
    if deployed.failed:
        return "bad"
    if deployed.trouble:
        return "unproven"
    return "neutral" if is_alarming(deployed) or quick.failed else "good"


def _latency(entry: Measured) -> str:
    ratio = entry.ratio
    spread = "; that is within the spread of the rounds" if ratio.low < 1 < ratio.high else ""
    return f"{ratio.median:.3f} of the time before, quartiles {ratio.low:.3f} to {ratio.high:.3f}{spread}"


def _kept(fold: Report) -> str:
    named = [decision for decision in fold.decisions if decision.subject.is_batchnorm]
    figures = {
        "would fold" if fold.after is None else "folded": sum(isinstance(d, Folded) for d in named),
        "reduced": sum(isinstance(d, Reduced) for d in named),
        "kept": sum(isinstance(d, Kept) and not as_asked(d) for d in named),
        "kept as asked": sum(map(as_asked, named)),
    }
    parts = [f"{number} {what}" for what, number in figures.items() if number]
    return ", ".join(parts) if parts else "none"


def _mood(*, passed: bool, failed: bool) -> Mood:
    return "bad" if failed else "good" if passed else "unproven"
