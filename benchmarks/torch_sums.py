"""What the table of networks of `benchmarks/torch_folders.py` adds up to, tool by tool, and where it has no figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.coverage_judge import LIMIT, Outcome
from benchmarks.coverage_run import Examined
from benchmarks.torch_judge import EXACT
from benchmarks.torch_nets import TORCH_NETS
from benchmarks.torch_tools import WHOLE

#: In place of an outcome, where nobody has asked for one yet.
UNMEASURED = "not measured"


def columns(found: Sequence[Examined]) -> list[str]:
    """The columns of this page."""
    return [tool for tool in WHOLE if any(tool in examined.outcomes for examined in found)]


def is_exact(outcome: Outcome) -> bool:
    """Whether a live network folded in float64 is the original within 1e-10 of each channel's scale."""
    return outcome.kind != "UNPROVEN" and outcome.exact is not None and outcome.exact <= EXACT


def is_accurate(outcome: Outcome) -> bool:
    """Whether no channel of a live network in float32 errs more than `4 * error(original) + 64u` of its scale."""
    return outcome.kind != "UNPROVEN" and outcome.ratio is not None and outcome.ratio <= LIMIT


def summary(found: Sequence[Examined]) -> list[str]:
    """What the table of networks adds up to, one sentence for each tool."""
    there = [examined for examined in found if examined.facts is not None]
    alive = sum(examined.facts is not None and examined.facts.state == "alive" for examined in there)
    later = sum(outcome.kind == UNMEASURED for examined in found for outcome in examined.outcomes.values())
    lines = [f"{len(found)} networks, {len(there)} built, {alive} of them alive; {later} of their cells not measured."]
    names = {examined.net.name for examined in found}
    if absent := [net.name for net in TORCH_NETS if net.name not in names]:
        lines.append(f"Not in this run: {', '.join(absent)}.")
    done = measured(there)
    return [*lines, *(_sums(tool, done) for tool in columns(done))]


def _sums(tool: str, found: Sequence[Examined]) -> str:
    """What one tool's column adds up to."""
    outcomes = [examined.outcomes[tool] for examined in found if tool in examined.outcomes]
    made = [outcome for outcome in outcomes if outcome.batchnorms is not None]
    kinds = ", ".join(f"{n} {word}" for word, n in Counter(map(_word, outcomes)).most_common())
    exact = max((outcome.exact for outcome in made if outcome.exact is not None), default=float("nan"))
    ratio = max((outcome.ratio for outcome in made if outcome.ratio is not None), default=float("nan"))
    left = sum(outcome.batchnorms or 0 for outcome in outcomes if not outcome.is_bad)
    return (
        f"{tool}: {kinds}; within 1e-10 in float64 {sum(map(is_exact, made))} of {len(made)}, at most {exact:.0e}; "
        f"right in float32 {sum(map(is_accurate, made))} of {len(made)}, at most {ratio:.2g} times the original's "
        f"error; {left} of {_asked(found, tool)} BatchNorms left in what is not bad."
    )


def _asked(found: Sequence[Examined], tool: str) -> int:
    """The BatchNorms of the networks on which a tool is not bad."""
    good = [row for row in found if tool in row.outcomes and not row.outcomes[tool].is_bad]
    return sum(row.facts.batchnorms for row in good if row.facts is not None)


def _word(outcome: Outcome) -> str:
    return f"{outcome.kind} in float32 alone" if _is_half(outcome) else outcome.kind


def _is_half(outcome: Outcome) -> bool:
    """Whether the tool failed in float64 on what it does not badly in float32."""
    return not outcome.is_bad and outcome.batchnorms is not None and outcome.exact is None


def without_figure(found: Sequence[Examined]) -> list[str]:
    """What a tool said in float64 where the table has "?", and a line of the networks where it has "-"."""
    lines = [
        f"{tool}, {examined.net.name}: {_word(outcome)}, {' '.join(outcome.detail.split())[:200]}"
        for examined in found
        for tool, outcome in examined.outcomes.items()
        if outcome.kind != UNMEASURED and _is_half(outcome)
    ]
    for tool in columns(found):
        none = [row.net.name for row in found if row.facts is not None and tool not in row.outcomes]
        lines += [f"{tool}: their package brings none for {', '.join(none)}."] if none else []
    return lines


def measured(found: Sequence[Examined]) -> list[Examined]:
    """Without what nobody has asked for."""
    return [
        replace(row, outcomes={tool: o for tool, o in row.outcomes.items() if o.kind != UNMEASURED}) for row in found
    ]
