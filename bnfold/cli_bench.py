"""The command `bench`, how fast a model is before and after a fold, and its options, which `fold --bench` shares."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypedDict

import click

from bnfold.cli_checks import input_option
from bnfold.cli_options import checking, is_typed, showing
from bnfold.cli_report import Reports, report_option
from bnfold.errors import UsageError

if TYPE_CHECKING:
    from bnfold.cli_options import Command

_EPILOG = "Exit codes: 0 done; 2 usage; 3 the models or the machine are at fault."


_threads = click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Threads within an operator, where latency is measured; 0: onnxruntime's choice.",
)
_rounds = click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    help="How often the latency of each model is measured, in turns.",
)


class Timed(TypedDict):
    """How latency is measured: keywords of `bnfold.benchmark`."""

    threads: int
    rounds: int


def timing(command: Command) -> Command:
    """Declares `--bench` and how to measure; the command gets the keyword `timed`, None where nobody asked."""

    @functools.wraps(command)
    def call(*, bench: bool, threads: int, rounds: int, **given: Any) -> Any:
        lonely = next((name for name in ("threads", "rounds") if is_typed(name) and not bench), None)
        if lonely is not None:
            what = f"--{lonely} says how to measure latency, and nobody asked for that"
            raise UsageError(what, remedy="give --bench as well")
        return command(**given, timed=Timed(threads=threads, rounds=rounds) if bench else None)

    decorated: Any = call
    flag = click.option("--bench", is_flag=True, help="Measure latency before and after as well, as bnfold bench does.")
    result: Command = flag(_threads(_rounds(decorated)))
    return result


@click.command("bench", short_help="Measure how fast a model is before and after.", epilog=_EPILOG)
@click.argument("before")
@click.argument("after")
@checking
@input_option
@_threads
@_rounds
@report_option
@showing
def bench_command(  # noqa: PLR0913  # one parameter for each option
    *,
    before: str,
    after: str,
    providers: tuple[str, ...],
    shapes: dict[str, tuple[int, ...]],
    seed: int,
    inputs: dict[str, str] | None,
    threads: int,
    rounds: int,
    reports: Reports,
    as_json: bool,
    quiet: bool,
) -> int:
    """Time BEFORE and AFTER on the same inputs in turns, with and without onnxruntime's own optimiser."""
    from bnfold import terminal, wording  # noqa: PLC0415  # loading these takes a second
    from bnfold.benchmarking import benchmark  # noqa: PLC0415

    reports.check([before, after])
    console = terminal.open_console(quiet)
    with terminal.progress(console, f"measuring {before} and {after}") as tell:
        found = benchmark(
            before,
            after,
            providers=providers,
            shapes=shapes,
            seed=seed,
            inputs=inputs,
            threads=threads,
            rounds=rounds,
            progress=tell,
        )
    reports.of_bench(found, before, after)
    if as_json:
        click.echo(found.to_json(), nl=False)
        return 0
    terminal.show_bench(console, found)
    click.echo(f"{wording.printable(click.format_filename(after))}: {wording.benched(found)}")
    return 0
