"""The command `bench`: how fast a model is before and after a fold."""

from __future__ import annotations

import click

from bnfold.cli_options import checking, showing
from bnfold.cli_report import Reports, report_option

_EPILOG = "Exit codes: 0 done; 2 usage; 3 the models or the machine are at fault."


@click.command("bench", short_help="Measure how fast a model is before and after.", epilog=_EPILOG)
@click.argument("before")
@click.argument("after")
@checking
@click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Threads within an operator; 0: onnxruntime's choice.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    help="How often each model is measured, in turns.",
)
@report_option
@showing
def bench_command(  # noqa: PLR0913  # one parameter for each option
    *,
    before: str,
    after: str,
    providers: tuple[str, ...],
    shapes: dict[str, tuple[int, ...]],
    seed: int,
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
