"""The tables of `benchmarks/torch_folders.py` for people: networks, small modules, and why BatchNorms stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from benchmarks.coverage_judge import LIMIT, Outcome
from benchmarks.coverage_run import Examined, installed
from benchmarks.coverage_table import bad, reasons
from benchmarks.frontier import as_markdown
from benchmarks.torch_cases import CASES
from benchmarks.torch_judge import EXACT
from benchmarks.torch_legend import LEGEND, LEGEND_SMALL, LUCK
from benchmarks.torch_nets import TORCH_NETS
from benchmarks.torch_tools import WHOLE

#: In place of an outcome, where nobody has asked for one yet.
UNMEASURED = "not measured"
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
    tools = _tools(found)
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


def is_exact(outcome: Outcome) -> bool:
    """Whether a live network folded in float64 is the original within 1e-10 of each channel's scale."""
    return outcome.kind != "UNPROVEN" and outcome.exact is not None and outcome.exact <= EXACT


def is_accurate(outcome: Outcome) -> bool:
    """Whether no channel of a live network in float32 errs more than `4 * error(original) + 64u` of its scale."""
    return outcome.kind != "UNPROVEN" and outcome.ratio is not None and outcome.ratio <= LIMIT


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


def summary(found: Sequence[Examined]) -> list[str]:
    """What the table of networks adds up to, one sentence for each tool."""
    there = [examined for examined in found if examined.facts is not None]
    alive = sum(examined.facts is not None and examined.facts.state == "alive" for examined in there)
    later = sum(examined.trouble == UNMEASURED for examined in found)
    lines = [f"{len(found)} networks, {later} not measured, {len(there)} built, {alive} of them alive."]
    names = {examined.net.name for examined in found}
    if absent := [net.name for net in TORCH_NETS if net.name not in names]:
        lines.append(f"Not in this run: {', '.join(absent)}.")
    for tool in WHOLE:
        outcomes = [examined.outcomes[tool] for examined in _measured(there) if tool in examined.outcomes]
        if not outcomes:
            continue
        kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(map(_kind, outcomes)).most_common())
        made = [o for o in outcomes if o.batchnorms is not None]
        exact = max((o.exact for o in made if o.exact is not None), default=float("nan"))
        ratio = max((o.ratio for o in made if o.ratio is not None), default=float("nan"))
        left = sum(o.batchnorms or 0 for o in outcomes if not o.is_bad)
        lines.append(
            f"{tool}: {kinds}; within 1e-10 in float64 {sum(map(is_exact, made))} of {len(made)}, at most {exact:.0e}; "
            f"right in float32 {sum(map(is_accurate, made))} of {len(made)}, at most {ratio:.2g} times the original's "
            f"error; {left} of {_asked(there, tool)} BatchNorms left in what is not bad."
        )
    return lines


def _asked(found: Sequence[Examined], tool: str) -> int:
    """The BatchNorms of the networks on which a tool is not bad."""
    good = [row for row in found if tool in row.outcomes and not row.outcomes[tool].is_bad]
    return sum(row.facts.batchnorms for row in good if row.facts is not None)


def _kind(outcome: Outcome) -> str:
    return f"{outcome.kind} in float32 alone" if _is_half(outcome) else outcome.kind


def _is_half(outcome: Outcome) -> bool:
    """Whether the tool failed in float64 on what it does not badly in float32."""
    return not outcome.is_bad and outcome.batchnorms is not None and outcome.exact is None


def without_figure(found: Sequence[Examined]) -> list[str]:
    """What a tool said in float64 where the table has "?", and a line of the networks where it has "-"."""
    lines = [
        f"{tool}, {examined.net.name}: {_kind(outcome)}, {' '.join(outcome.detail.split())[:200]}"
        for examined in found
        for tool, outcome in examined.outcomes.items()
        if outcome.kind != UNMEASURED and _is_half(outcome)
    ]
    for tool in _tools(found):
        none = [row.net.name for row in found if row.facts is not None and tool not in row.outcomes]
        lines += [f"{tool}: their package brings none for {', '.join(none)}."] if none else []
    return lines


def _tools(found: Sequence[Examined]) -> list[str]:
    """The columns of this page."""
    return [tool for tool in WHOLE if any(tool in examined.outcomes for examined in found)]


def _measured(found: Sequence[Examined]) -> list[Examined]:
    """Without what nobody has asked for."""
    return [
        replace(row, outcomes={tool: o for tool, o in row.outcomes.items() if o.kind != UNMEASURED}) for row in found
    ]


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
        _list([*bad(_measured(found)), *without_figure(found)]) or "Nothing.",
        "## Small modules", LEGEND_SMALL, as_markdown(small_modules(cases)),
        "What was said where a tool failed:", _list(failures(cases)) or "Nothing.",
        "## Why BatchNorms stay (bnfold)", "\n".join(reasons(found, "bnfold")),
        "## Why BatchNorms stay (bnfold as_graph)", "\n".join(reasons(found, "bnfold as_graph")),
        "## What a ratio of two errors is worth", LUCK,
        f"Versions: {versions}; the sources of bnfold that all of its figures are of: {installed('bnfold')}.",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


_SHOWN = ("torch", "timm", "ultralytics", "numpy")


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)
