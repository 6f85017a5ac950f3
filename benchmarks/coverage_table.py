"""The coverage table for people: a row for each architecture, a column for each tool, and why BatchNorms stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.coverage_judge import Outcome
from benchmarks.coverage_nets import PROMISED
from benchmarks.coverage_run import Examined
from benchmarks.coverage_tools import PEERS, TOOLS

LEGEND = (
    "A cell is `BatchNorms left / nodes left (accuracy)`. Accuracy is the largest error of any output channel against "
    "float64, as a multiple of the original's own error there (16 roundings are added to it); at most 4 is right. "
    "WRONG: an error above 1e-3 of an output's scale, or a number that is not finite. INACCURATE: above 4, though not "
    "WRONG. INVALID: the ONNX checker or onnxruntime refuses the result. ERROR: the tool raised. CRASH: its process "
    "died. TIMEOUT: it did not end. UNPROVEN: the result is valid, but the outputs of this net prove nothing."
)


@dataclass(frozen=True)
class Stay:
    """BatchNorms of one architecture that stay for the same reasons.

    Attributes:
        reasons: The clauses, of the pull and of the push.
        remedy: What would help; empty where nothing does.
        count: How many they are.
        example: One of them, and where it was stopped.
    """

    reasons: tuple[str, ...]
    remedy: str
    count: int
    example: str


def stays(report: Mapping[str, Any]) -> list[Stay]:
    """Why BatchNorms stay, from one of bnfold's reports, the most frequent first."""
    kept = [row for row in report["decisions"] if row["kind"] == "kept" and row["subject"]["is_batchnorm"]]
    groups: Counter[tuple[tuple[str, ...], str]] = Counter()
    examples: dict[tuple[tuple[str, ...], str], str] = {}
    for row in kept:
        key = tuple(reason["clause"] for reason in row["reasons"]), row["remedy"]
        groups[key] += 1
        where = ", ".join(f"{reason['where']} {reason['detail']}".strip() for reason in row["reasons"])
        examples.setdefault(key, f"{row['subject']['name']} (stopped at {where})")
    return [Stay(*key, count, examples[key]) for key, count in groups.most_common()]


def cell(outcome: Outcome | None) -> str:
    """One tool's figures on one architecture."""
    if outcome is None:
        return "not installed"
    left = "" if outcome.batchnorms is None else f"{outcome.batchnorms} / {outcome.nodes}"
    if outcome.kind == "right":
        return f"{left} ({outcome.ratio:.2g})"
    if outcome.kind == "INACCURATE":
        return f"**INACCURATE** {left} ({outcome.ratio:.2g})"
    return f"**{outcome.kind}** {left}".strip()


def rows(found: Sequence[Examined]) -> list[list[str]]:
    """A heading, and a row for each architecture."""
    return [["architecture", "net", "BN / nodes", *TOOLS], *(_row(examined) for examined in found)]


def _row(examined: Examined) -> list[str]:
    title = f"{examined.net.name} ({examined.net.source})"
    if examined.facts is None:
        return [title, f"**{_clean(examined.trouble)}**", "", *("" for _ in TOOLS)]
    facts = examined.facts
    return [title, facts.state, f"{facts.batchnorms} / {facts.nodes}", *(cell(examined.outcomes.get(t)) for t in TOOLS)]


def summary(found: Sequence[Examined]) -> list[str]:
    """What the table adds up to, one sentence each."""
    there = [examined for examined in found if examined.facts is not None]
    alive = sum(examined.facts is not None and examined.facts.state == "alive" for examined in there)
    lines = [f"{len(found)} architectures, {len(there)} built, {alive} of them alive."]
    for tool in TOOLS:
        outcomes = [examined.outcomes[tool] for examined in there if tool in examined.outcomes]
        kinds = Counter(outcome.kind for outcome in outcomes)
        gone = sum(outcome.batchnorms == 0 and not outcome.is_bad for outcome in outcomes)
        left = sum(outcome.batchnorms or 0 for outcome in outcomes if not outcome.is_bad)
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        lines.append(f"{tool}: {listed or 'not installed'}; none left in {gone}; {left} left in what is not bad.")
    return [*lines, *_promises(there)]


def _promises(there: Sequence[Examined]) -> Iterator[str]:
    """Whether bnfold leaves fewer than every peer where the project promises it."""
    for examined in there:
        ours = examined.outcomes.get("bnfold")
        if examined.net.name not in PROMISED or ours is None:
            continue
        if ours.is_bad:
            yield f"{examined.net.name}: bnfold is {ours.kind}."
            continue
        peers = [outcome for tool, outcome in examined.outcomes.items() if tool in PEERS and not outcome.is_bad]
        if counts := [peer.batchnorms for peer in peers if peer.batchnorms is not None]:
            word = "fewer than" if (ours.batchnorms or 0) < min(counts) else "NOT fewer than"
            yield f"{examined.net.name}: bnfold leaves {ours.batchnorms}, {word} the best peer's {min(counts)}."


def bad(found: Sequence[Examined]) -> list[str]:
    """One line for each outcome that is bad."""
    return [
        f"{tool}, {examined.net.name}: {outcome.kind}, {_figure(outcome)}{_clean(outcome.detail)[:200]}"
        for examined in found
        for tool, outcome in examined.outcomes.items()
        if outcome.is_bad
    ]


def _figure(outcome: Outcome) -> str:
    return "" if outcome.error is None else f"error {outcome.error:.2g} of the output's scale; "


def reasons(found: Sequence[Examined], tool: str) -> list[str]:
    """The table of why BatchNorms stay, in Markdown."""
    lines = ["| architecture | left | why | remedy | for example |", "|---|---:|---|---|---|"]
    for examined in found:
        for stay in stays(examined.reports[tool]) if examined.reports.get(tool) else ():
            cells = (
                examined.net.name,
                str(stay.count),
                "; ".join(stay.reasons),
                stay.remedy or "-",
                _clean(stay.example),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _clean(text: str) -> str:
    """Text on one line that does not end a cell."""
    return " ".join(text.split()).replace("|", "/")
