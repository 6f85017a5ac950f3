"""The command `recalibrate`: new BatchNorm statistics from data, written as a new model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bnfold.cli_data import data_options
from bnfold.cli_options import How, choosing, opening, recalibrating, shape_option, showing
from bnfold.cli_report import Reports, report_option
from bnfold.cli_torch import Opening, writes_torch
from bnfold.cli_unfold import check_targets
from bnfold.errors import UsageError

if TYPE_CHECKING:  # loading these takes a second
    from bnfold.calibrating import Calibration, Choice
    from bnfold.data_sources import DataRequest
    from bnfold.report.recalibration_report import RecalibrationReport

_EPILOG = (
    "Exit codes: 0 done; 1 the export of a PyTorch model is not equivalent; 2 usage; 3 the model, the data or the "
    "machine is at fault. With 1, 2 and 3 nothing is written."
)


@click.command("recalibrate", short_help="Compute the BatchNorm statistics anew, from data.", epilog=_EPILOG)
@click.argument("model")
@click.option("-o", "--output", required=True, metavar="OUTPUT", help="The file to write; never the input.")
@opening
@shape_option
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
    factory: str | None,
    trust_pickle: bool,
    shapes: dict[str, tuple[int, ...]],
    data: DataRequest | None,
    how: How,
    keep: str | None,
    only: str | None,
    reports: Reports,
    timeout: float,
    as_json: bool,
    quiet: bool,
) -> int:
    """Compute mean and variance of every BatchNorm of MODEL anew from unlabelled DATA, and write OUTPUT.

    The suffix of OUTPUT says what is written: .onnx, or of a PyTorch model .pt2, .pt (a state dict) or .safetensors.
    """
    from bnfold import launch, terminal, wording  # noqa: PLC0415
    from bnfold.calibrating import Calibration, Choice  # noqa: PLC0415

    if data is None:
        raise UsageError("there is no data to compute statistics from", remedy="give --data")
    check_targets([output], [model, data.text])
    reports.check([model, output, data.text])
    given, wish = Opening(factory, trust_pickle, shapes), Calibration(data, **how)
    console = terminal.open_console(quiet or not launch.is_first())
    with launch.joined(timeout) as processes, terminal.progress(console, f"reading {model}") as tell:
        report, write = _recalibrated(model, output, given, wish, Choice(only, keep, processes, tell))
        if not launch.is_first():
            return 0
        write()
    reports.of_recalibration(report, input=model, output=output)
    if as_json:
        click.echo(report.to_json(), nl=False)
        return 0
    terminal.show_recalibration(console, report)
    click.echo(f"{wording.printable(click.format_filename(output))}: {wording.recalibrated(report)}")
    return 0


def _recalibrated(
    model: str, output: str, given: Opening, wish: Calibration, choice: Choice
) -> tuple[RecalibrationReport, Callable[[], None]]:
    """The report, and what writes the output."""
    from bnfold import api  # noqa: PLC0415
    from bnfold.calibrating import calibrated  # noqa: PLC0415
    from bnfold.torch_recalibrated import recalibrate_file  # noqa: PLC0415

    writes_torch(model, output)
    if given.is_torch(model):
        return recalibrate_file(given.torch(model), output, given.shapes, wish, choice)
    if given.shapes:
        raise UsageError("--shape is for PyTorch files", where=model, remedy="the data has the sizes of its inputs")
    changed, report = calibrated(api.load(model), Path(model).name, wish, choice)
    return report, partial(api.save, changed, output)
