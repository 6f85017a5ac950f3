"""The tables of `benchmarks/torch_folders.py` for people: networks, small modules, and why BatchNorms stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from benchmarks.coverage_judge import Outcome
from benchmarks.coverage_run import Examined, installed
from benchmarks.coverage_table import bad, reasons
from benchmarks.frontier import as_markdown
from benchmarks.torch_cases import CASES
from benchmarks.torch_legend import LEGEND, LEGEND_SMALL, LUCK
from benchmarks.torch_sums import UNMEASURED, columns, is_accurate, is_exact, measured, summary, without_figure

#: The outcomes of one tool by the keys of the small modules.
Small: TypeAlias = Mapping[str, Outcome]
#: Kinds of outcomes of small modules without a number that could be wrong.
_FAILURES = ("ERROR", "BROKEN", "CRASH", "TIMEOUT")


def cell(outcome: Outcome | None) -> str:
    """One tool's figures on one network."""
    if outcome is None or outcome.kind == UNMEASURED:
        return "-" if outcome is None else UNMEASURED
    exact = "?" if outcome.exact is None else f"{outcome.exact:.0e}"
    ratio = "?" if outcome.ratio is None else f"{outcome.ratio:.2g}"
    left = f"{outcome.batchnorms} ({exact}; {ratio})"
    if outcome.kind in ("right", "UNPROVEN"):
        return left if outcome.kind == "right" else f"UNPROVEN {left}"
    return f"**{outcome.kind}**" if outcome.batchnorms is None else f"**{outcome.kind}** {left}"


def cell_small(outcome: Outcome | None) -> str:
    """What one tool makes of one small module."""
    if outcome is None:
        return UNMEASURED
    if outcome.kind == "right":
        return str(outcome.batchnorms)
    size = "" if outcome.exact is None else f" ({outcome.exact:.1g})"
    return f"**{outcome.kind}{size if outcome.kind == 'WRONG' else ''}**"


def networks(found: Sequence[Examined], cases: Mapping[str, Small]) -> list[list[str]]:
    """A heading, a row for each network, and one of what the small modules add up to."""
    tools = columns(found)
    table = [["network", "net", "BN", "right in float64", "right in float32", *tools]]
    for examined in found:
        title = f"{examined.net.name} ({examined.net.source})"
        if examined.facts is None:
            table.append([title, f"**{examined.trouble}**", "", "", "", *("" for _ in tools)])
            continue
        made = [outcome for outcome in examined.outcomes.values() if outcome.batchnorms is not None]
        held = [f"{sum(map(is_held, made))} of {len(made)}" for is_held in (is_exact, is_accurate)]
        cells = [cell(examined.outcomes.get(tool)) for tool in tools]
        table.append([title, examined.facts.state, str(examined.facts.batchnorms), *held, *cells])
    sums = [_sum_of_small(cases[tool]) if tool in cases else "-" for tool in tools]
    return [*table, [f"{len(CASES)} small modules", "see below", "", "", "", *sums]]


def _sum_of_small(column: Small) -> str:
    """How many small modules a tool gets wrong, and on how many it fails."""
    kinds = Counter(outcome.kind for outcome in column.values())
    parts = [f"**{kinds['WRONG']} WRONG**"] if kinds["WRONG"] else []
    if fails := sum(kinds[kind] for kind in _FAILURES):
        parts.append(f"{fails} {'fails' if fails == 1 else 'fail'}")
    if later := len(CASES) - len(column):
        parts.append(f"{later} {UNMEASURED}")
    return ", ".join(parts) or "all right"


def small_modules(found: Mapping[str, Small]) -> list[list[str]]:
    """A heading, a row for each small module, and how many results are not right."""
    rows = ([case.title, *(cell_small(column.get(case.key)) for column in found.values())] for case in CASES)
    table = [["", *found], *rows]
    counts = [Counter(outcome.kind for outcome in column.values()) for column in found.values()]
    for kinds, title in ((("WRONG",), "wrong numbers"), (_FAILURES, "fails")):
        table.append([title, *(f"{sum(count[kind] for kind in kinds)} of {len(CASES)}" for count in counts)])
    return table


def failures(found: Mapping[str, Small]) -> list[str]:
    """What was said where a tool failed on a small module, one line each."""
    titles = {case.key: case.title for case in CASES}
    return [
        f"{tool}, {titles[key]}: {outcome.kind}, {' '.join(outcome.detail.split())[:110]}"
        for tool, column in found.items()
        for key, outcome in column.items()
        if outcome.kind not in ("right", "WRONG")
    ]


def page(found: Sequence[Examined], cases: Mapping[str, Small]) -> str:
    """Everything as one page of Markdown."""
    versions = ", ".join(f"{package} {installed(package) or 'not installed'}" for package in _SHOWN)
    parts = [
        "# Folders of PyTorch modules", LEGEND, as_markdown(networks(found, cases)), _list(summary(found)),
        "## What is not right, and what has no figure",
        _list([*bad(measured(found)), *without_figure(found)]) or "Nothing.",
        "## Small modules", LEGEND_SMALL, as_markdown(small_modules(cases)),
        "What was said where a tool failed:", _list(failures(cases)) or "Nothing.",
        "## Why BatchNorms stay (bnfold)", _reasons(found, "bnfold"),
        "## Why BatchNorms stay (bnfold as_graph)", _reasons(found, "bnfold as_graph"),
        "## What a ratio of two errors is worth", LUCK,
        f"Versions: {versions}; the sources of bnfold that all of its figures are of: {installed('bnfold')}.",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _reasons(found: Sequence[Examined], tool: str) -> str:
    heading, line, *rows = reasons(found, tool)
    return "\n".join([heading, line, *rows]) if rows else "None stays in what was measured."


_SHOWN = ("torch", "timm", "ultralytics", "numpy")


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)
