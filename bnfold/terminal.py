"""What people see on stderr: tables and a spinner, by rich. Useful at 80 columns, without colour, and in a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bnfold.decision import Decision, Folded, Kept, Reduced
from bnfold.drift import Recalibrated
from bnfold.report.bench_report import BenchReport
from bnfold.report.model import Report
from bnfold.report.recalibration_report import RecalibrationReport
from bnfold.size_wording import flops_both, flops_notes, flops_sizes
from bnfold.sizes import data_size
from bnfold.verification import Verification
from bnfold.wording import (
    as_asked,
    bench_notes,
    count,
    kept_groups,
    left_lines,
    local_line,
    oracle_line,
    outcome,
    printable,
    provider_name,
    quick_line,
    seconds,
    stage_line,
)
from bnfold.wording_deployed import setting_lines

#: Facts that stand out.
_ALARMS = ("differs", "failed", "optimiser", "unproven")

#: Reduced BatchNorms that the summary spells out.
MOST_REDUCED = 6

Tell = Callable[[str], None]


def open_console(quiet: bool) -> Console:
    """stderr; `quiet` lets nothing through. Names are shown as they are: no markup, no emoji, no highlighting."""
    return Console(stderr=True, quiet=quiet, markup=False, emoji=False, highlight=False)


def say(sentence: str) -> None:
    """One plain sentence on stderr, never wrapped, never coloured, also with `--quiet`."""
    click.echo(f"bnfold: {printable(sentence)}", err=True)


@contextmanager
def progress(console: Console, start: str) -> Iterator[Tell]:
    """Show what is being done, but only where a person watches."""
    if console.quiet or not console.is_terminal:
        yield lambda _: None
        return
    with console.status(printable(start)) as status:
        yield lambda clause: status.update(printable(clause))


def show_summary(console: Console, report: Report) -> None:
    """A fold on one screen: what was recalibrated first, counts, sizes, checks, then what was kept and why."""
    console.print(printable(report.model), style="bold")
    recalibrated = () if report.recalibration is None else tuple(_show_drifts(console, report.recalibration))
    facts = [*recalibrated, *_counts(report), *_sizes(report), *_checks(report.verification), *_notes(report.notes)]
    left = [*_reduced(report.reduced), *_kept([d for d in report.kept_batchnorms if not as_asked(d)])]
    _show_facts(console, [*facts, *left])
    if report.bench is not None:
        console.print("\nlatency", style="bold")
        show_bench(console, report.bench)


def show_decisions(console: Console, report: Report) -> None:
    """One row for each BatchNorm, and each constant chain that is one in disguise."""
    console.print(printable(report.model), style="bold")
    if report.decisions:
        _show_table(console, report.decisions)
    _show_facts(console, [*_counts(report), *_sizes(report), *_notes(report.notes)])


def show_verification(console: Console, verification: Verification) -> None:
    """The lines of the check, for `bnfold verify`."""
    _show_facts(console, [*_checks(verification)])


def show_recalibration(console: Console, report: RecalibrationReport) -> None:
    """One row for each BatchNorm, by falling drift, then what stayed and why."""
    console.print(printable(report.model), style="bold")
    _show_facts(console, tuple(_show_drifts(console, report)))


def _show_drifts(console: Console, report: RecalibrationReport) -> Iterator[tuple[str, str]]:
    """The table at once; then the facts that belong below it."""
    if report.recalibrated:
        _show_drift_table(console, report.recalibrated)
    dead = [f"{e.name}: {count(len(e.dead), 'channel')} without variance" for e in report.recalibrated if e.dead]
    yield from (("dead", f"{line}, which keep their statistics") for line in dead)
    yield from left_lines(report.left)
    if report.footprint is not None and report.footprint.batch:
        yield "needed", str(report.footprint)
    yield from _notes(report.notes)


def show_bench(console: Console, report: BenchReport) -> None:
    """One row for each provider and level, then what the figures do not say."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("provider", "optimiser"):
        table.add_column(heading, no_wrap=True)
    for heading in ("before", "after", "after / before", "quartiles"):
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in report.measured:
        times, ratio = (seconds(entry.before.median), seconds(entry.after.median)), entry.ratio
        table.add_row(
            entry.provider, entry.level, *times, f"{ratio.median:.3f}", f"{ratio.low:.3f} to {ratio.high:.3f}"
        )
    console.print(table)
    _show_facts(console, [*_notes(list(bench_notes(report)))])


def _show_drift_table(console: Console, entries: Sequence[Recalibrated]) -> None:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("BatchNorm", overflow="fold", max_width=console.width * 9 // 20)
    for heading in ("ch.", "values", "drift", "rms", "variance"):
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in entries:
        ratio = entry.variance_ratio
        drifts = (f"{entry.largest_drift:.2g}", f"{entry.rms_drift:.2g}")
        ratios = f"x{ratio.min():.2g} to {ratio.max():.2g}"
        table.add_row(printable(entry.name), str(entry.channels), str(entry.samples), *drifts, ratios)
    console.print(table)


def _show_facts(console: Console, facts: Sequence[tuple[str, str]]) -> None:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="cyan")
    grid.add_column(overflow="fold")
    for label, text in facts:
        grid.add_row(f"  {label}", printable(text), style="bold red" if label in _ALARMS else "")
    console.print(grid)


def _show_table(console: Console, decisions: Sequence[Decision]) -> None:
    """Name, channels and a clause; the name takes less than half of the width."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("BatchNorm", overflow="fold", max_width=console.width * 9 // 20)
    table.add_column("ch.", justify="right", no_wrap=True)
    table.add_column("decision", overflow="fold", ratio=1)
    for decision in decisions:
        subject = decision.subject
        disguise = "" if subject.is_batchnorm else f" ({subject.kind})"
        style = "" if isinstance(decision, Folded) else "yellow"
        table.add_row(
            printable(subject.name + disguise), str(subject.channels or "?"), printable(outcome(decision)), style=style
        )
    console.print(table)


def _reduced(reduced: Sequence[Reduced]) -> Iterator[tuple[str, str]]:
    yield from (("reduced", f"{decision.subject.name} {outcome(decision)}") for decision in reduced[:MOST_REDUCED])
    if len(reduced) > MOST_REDUCED:
        yield "", f"{len(reduced) - MOST_REDUCED} more, which bnfold inspect lists"


def _kept(kept: Sequence[Kept]) -> Iterator[tuple[str, str]]:
    for number, lines in kept_groups(kept):
        yield f"kept {number}", lines[0]
        yield from (("", line) for line in lines[1:])


def _counts(report: Report) -> Iterator[tuple[str, str]]:
    """How many went where; constant chains that stayed are no news."""
    named = [d for d in report.decisions if d.subject.is_batchnorm]
    chains = [d for d in report.decisions if not d.subject.is_batchnorm]
    done = "foldable" if report.after is None else "folded"
    yield "BatchNorms", _tally(named, done) if named else "none"
    if any(not isinstance(d, Kept) for d in chains):
        yield "chains", f"{_tally(chains, done)} (constant Add, Sub, Mul, Div that act like a BatchNorm)"


def _tally(decisions: Sequence[Decision], done: str) -> str:
    into = [d.direction for d in decisions if isinstance(d, Folded)]
    figures = {
        f"{done} into producers": into.count("pull"),
        f"{done} into consumers": into.count("push"),
        f"{done} with parallel branches": into.count("merge"),
        "reduced": sum(isinstance(d, Reduced) for d in decisions),
        "kept": sum(isinstance(d, Kept) and not as_asked(d) for d in decisions),
        "kept as asked": sum(map(as_asked, decisions)),
    }
    return ", ".join(f"{number} {what}" for what, number in figures.items() if number)


def _sizes(report: Report) -> Iterator[tuple[str, str]]:
    before, after = report.before, report.after
    if after is None:
        yield "operators", str(before.nodes)
        yield "weights", data_size(before.bytes)
    else:
        yield "operators", f"{before.nodes} -> {after.nodes}"
        yield "weights", f"{data_size(before.bytes)} -> {data_size(after.bytes)}"
    if before.flops is not None:
        known = before.flops.work is not None
        figures = f"{flops_both(report).replace('→', '->')}, at {flops_sizes(report)}; a multiply-add is 2"
        yield "FLOPs", figures if known else flops_notes(report)[0].removeprefix("FLOPs are ")


def _checks(verification: Verification | None) -> Iterator[tuple[str, str]]:
    if verification is None:
        return
    if verification.local:
        yield "each fold", local_line(verification.local)
    for quick in verification.quick:
        yield "end to end", f"{provider_name(quick.provider)}: {quick_line(quick)}"
        if stages := stage_line(quick):
            yield "stages", stages
        if oracle := oracle_line(quick):
            yield "float64", oracle
        if quick.agreement is not None:
            yield "decisions", str(quick.agreement)
        if quick.first_divergence is not None:
            yield "differs", f"first at {quick.first_difference}"
        yield from setting_lines(quick)
        yield from (("note", note) for note in quick.notes)
    if verification.culprit:
        yield "failed", verification.culprit
    elif verification.doubt:
        yield "unproven", verification.doubt


def _notes(notes: Sequence[str]) -> Iterator[tuple[str, str]]:
    yield from (("note", note) for note in notes)
