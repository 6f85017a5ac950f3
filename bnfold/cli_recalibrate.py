"""The command `recalibrate`: new BatchNorm statistics from data, written as a new model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bnfold.cli_data import data_options
from bnfold.cli_options import How, choosing, recalibrating, showing
from bnfold.cli_report import Reports, report_option
from bnfold.cli_unfold import check_targets
from bnfold.errors import UsageError

if TYPE_CHECKING:  # loading these takes a second
    from bnfold.data_sources import DataRequest

_EPILOG = (
    "Exit codes: 0 done; 2 usage; 3 the model, the data or the machine is at fault. With 2 and 3 nothing is written."
)


@click.command("recalibrate", short_help="Compute the BatchNorm statistics anew, from data.", epilog=_EPILOG)
@click.argument("model")
@click.option("-o", "--output", required=True, metavar="OUTPUT", help="The file to write; never the input.")
@data_options({"data": ("--data", "The samples, without labels")}, seed=True)
@recalibrating("data", "--data")
@choosing
@report_option
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=1800.0,
    show_default=True,
    metavar="SECONDS",
    help="With torchrun: how long processes wait for each other.",
)
@showing
def recalibrate_command(  # noqa: PLR0913  # one parameter for each option
    *,
    model: str,
    output: str,
    data: DataRequest | None,
    how: How,
    keep: str | None,
    only: str | None,
    reports: Reports,
    timeout: float,
    as_json: bool,
    quiet: bool,
) -> int:
    """Compute mean and variance of every BatchNorm of MODEL anew from unlabelled DATA, and write OUTPUT."""
    from bnfold import api, launch, terminal, wording  # noqa: PLC0415
    from bnfold.recalibrating import recalibrate  # noqa: PLC0415

    if data is None:
        raise UsageError("there is no data to compute statistics from", remedy="give --data")
    check_targets([output], [model, data.text])
    reports.check([model, output, data.text])
    console = terminal.open_console(quiet or not launch.is_first())
    with launch.joined(timeout) as processes, terminal.progress(console, f"reading {model}") as tell:
        result = recalibrate(
            model,
            data,
            **how,
            keep=keep,
            only=only,
            processes=processes,
            progress=tell,
        )
        if not launch.is_first():
            return 0
        api.save(result.model, output)
    reports.of_recalibration(result.report, input=model, output=output)
    if as_json:
        click.echo(result.report.to_json(), nl=False)
        return 0
    terminal.show_recalibration(console, result.report)
    click.echo(f"{wording.printable(click.format_filename(output))}: {wording.recalibrated(result.report)}")
    return 0
