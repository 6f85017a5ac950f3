"""The commands `fold`, `inspect` and `verify`: call the API, show the result, return the exit code."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bnfold import __version__
from bnfold.cli_bench import bench_command
from bnfold.cli_data import data_options
from bnfold.cli_options import (
    EMBED,
    How,
    checking,
    manifest_option,
    opening,
    reading,
    recalibrating,
    shape_option,
    showing,
)
from bnfold.cli_recalibrate import recalibrate_command
from bnfold.cli_report import Reports, report_option
from bnfold.cli_torch import Opening, check_options, writes_torch
from bnfold.cli_unfold import beside, check_targets, unfold_command
from bnfold.errors import BnfoldError

if TYPE_CHECKING:  # loading these takes a second, which --help need not wait for
    from rich.console import Console

    from bnfold.api import FoldResult
    from bnfold.data_sources import DataRequest
    from bnfold.leftover_forms import Form
    from bnfold.report.model import Report

_VERIFY_DATA = {"data": ("--verify-data", "Your own data, to compare on as well")}
_CALIBRATE = {"calibrate": ("--calibrate", "Recalibrate first, on these samples, which need no labels")}

#: Done; and not done, because the result would not be what was asked for.
DONE, NOT_DONE = 0, 1

_EPILOG = (
    "Exit codes: 0 done; 1 the result is not equivalent, or a BatchNorm was kept against --require-all; 2 usage; "
    "3 the model, the data or the machine is at fault. With 1, 2 and 3 nothing is written."
)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EPILOG,
    options_metavar="",
    subcommand_metavar="[fold] MODEL -o OUTPUT | inspect MODEL | verify BEFORE AFTER | bench BEFORE AFTER | "
    "unfold MODEL -o OUTPUT | recalibrate MODEL --data DATA -o OUTPUT",
)
@click.version_option(__version__, prog_name="bnfold", message="%(prog)s %(version)s")
def commands() -> None:
    """Fold BatchNorm in ONNX and PyTorch models, and prove the result equivalent.

    `bnfold MODEL -o OUTPUT` folds, verifies and writes; it is the same as `bnfold fold MODEL -o OUTPUT`, whose options
    `bnfold fold --help` lists. A model file that is called like a command is written ./inspect.
    """


@commands.command("fold", short_help="Fold, verify and write (the default).", epilog=_EPILOG)
@click.argument("model")
@click.option("-o", "--output", required=True, metavar="OUTPUT", help="The file to write; never the input.")
@opening
@reading
@click.option("--require-all", is_flag=True, help="Write nothing if a BatchNorm stays that --keep and --only allow.")
@click.option("--no-verify", is_flag=True, help="Do not check the result; the model's metadata will say so.")
@click.option(
    "--self-test", is_flag=True, help="Let the check damage a weight of every fold, too, and see that it fails."
)
@manifest_option
@checking
@data_options(_CALIBRATE | _VERIFY_DATA, seed=False)
@recalibrating("calibrate", "--calibrate")
@report_option
@showing
def fold_command(  # noqa: PLR0913  # one parameter for each option
    *,
    model: str,
    output: str,
    factory: str | None,
    trust_pickle: bool,
    keep: str | None,
    only: str | None,
    keep_overridable: bool,
    reduce: bool,
    no_merge: bool,
    leftover: Form,
    simplify: bool,
    require_all: bool,
    no_verify: bool,
    self_test: bool,
    manifest: str | None,
    providers: tuple[str, ...],
    shapes: dict[str, tuple[int, ...]],
    seed: int,
    calibrate: DataRequest | None,
    data: DataRequest | None,
    how: How,
    reports: Reports,
    as_json: bool,
    quiet: bool,
) -> int:
    """Fold every BatchNorm of MODEL that exact arithmetic allows, verify, and write OUTPUT.

    The suffix of OUTPUT says what is written: .onnx, or of a PyTorch model .pt2, .pt (a state dict) or .safetensors.
    """
    from bnfold import api, terminal, wording  # noqa: PLC0415  # as above: not for --help
    from bnfold.api_torch_graph import GraphSettings  # noqa: PLC0415
    from bnfold.calibrating import Calibration  # noqa: PLC0415
    from bnfold.checking import BY_FLAGS, Proof  # noqa: PLC0415
    from bnfold.report.model import Report  # noqa: PLC0415
    from bnfold.selecting import selection  # noqa: PLC0415
    from bnfold.torch_folds import fold_file  # noqa: PLC0415

    targets = [output, *([] if manifest in (None, EMBED) else [manifest])]
    sources = [model, *(request.text for request in (calibrate, data) if request)]
    check_targets(targets, [*sources])
    reports.check([*sources, *targets])
    given = Opening(factory, trust_pickle, shapes)
    to_torch = writes_torch(model, output)
    if to_torch:
        check_options(click.get_current_context(), output)
    console = terminal.open_console(quiet)
    try:
        with terminal.progress(console, f"folding {model}") as tell:
            if to_torch:
                settings = GraphSettings(selection(only, keep), False, reduce, not no_merge, leftover)
                proof = Proof(not no_verify, seed, tell, BY_FLAGS)
                report, write = fold_file(given.torch(model), output, shapes, settings, proof)
            else:
                result = api.fold(
                    given.as_onnx(model, verify=not no_verify),
                    calibrate=None if calibrate is None else Calibration(calibrate, **how),
                    only=only,
                    keep=keep,
                    keep_overridable=keep_overridable,
                    reduce=reduce,
                    merge=not no_merge,
                    leftover=leftover,
                    simplify=simplify,
                    verify=not no_verify,
                    manifest=None if manifest is None else "embed" if manifest == EMBED else "apart",
                    providers=providers,
                    shapes=shapes,
                    seed=seed,
                    data=data,
                    self_test=self_test,
                    progress=tell,
                )
                report, write = result.report, partial(_write_onnx, result, output, manifest)
    except BnfoldError as error:
        if isinstance(error.report, Report):
            _show_fold(console, error.report, as_json)
            reports.of_fold(error.report, input=model)
        raise
    against = wording.objection(report) if require_all else ""
    if against:
        _show_fold(console, report, as_json)
        reports.of_fold(report, input=model)
        terminal.say(against)
        return NOT_DONE
    write()
    _show_fold(console, report, as_json)
    reports.of_fold(report, input=model, output=output)
    if not as_json:
        click.echo(f"{_name(output)}: {wording.done(report)}")
    return DONE


@commands.command("inspect", short_help="Show what a fold would do, and why.", epilog=_EPILOG)
@click.argument("model")
@opening
@shape_option
@click.option(
    "--to",
    type=click.Choice(["onnx", "pt2", "pt", "safetensors"]),
    default="onnx",
    show_default=True,
    help="Into what a fold would write: a state dict holds less than a graph does.",
)
@reading
@report_option
@showing
def inspect_command(  # noqa: PLR0913
    *,
    model: str,
    factory: str | None,
    trust_pickle: bool,
    shapes: dict[str, tuple[int, ...]],
    to: str,
    keep: str | None,
    only: str | None,
    keep_overridable: bool,
    reduce: bool,
    no_merge: bool,
    leftover: Form,
    simplify: bool,
    reports: Reports,
    as_json: bool,
    quiet: bool,
) -> int:
    """Show what `fold` would do with every BatchNorm of MODEL, and why; write nothing."""
    from bnfold import api, terminal, wording  # noqa: PLC0415
    from bnfold.api_torch_graph import GraphSettings  # noqa: PLC0415
    from bnfold.report.json_report import report_json  # noqa: PLC0415
    from bnfold.selecting import selection  # noqa: PLC0415
    from bnfold.torch_folds import inspect_file  # noqa: PLC0415

    reports.check([model])
    given = Opening(factory, trust_pickle, shapes)
    to_torch = writes_torch(model, f"x.{to}")
    if to_torch:
        check_options(click.get_current_context(), f"x.{to}")
    console = terminal.open_console(quiet)
    with terminal.progress(console, f"reading {model}"):
        if to_torch:
            settings = GraphSettings(selection(only, keep), False, reduce, not no_merge, leftover)
            report = inspect_file(given.torch(model), f"x.{to}", shapes, settings)
        else:
            report = api.inspect(
                given.as_onnx(model, verify=False),
                only=only,
                keep=keep,
                keep_overridable=keep_overridable,
                reduce=reduce,
                merge=not no_merge,
                leftover=leftover,
                simplify=simplify,
            )
    reports.of_fold(report, input=model)
    if as_json:
        click.echo(report_json(report), nl=False)
        return DONE
    terminal.show_decisions(console, report)
    click.echo(f"{_name(model)}: {wording.counted(report, 'would fold')}")
    return DONE


@commands.command("verify", short_help="Compare two models, tensor by tensor.", epilog=_EPILOG)
@click.argument("before")
@click.argument("after")
@checking
@data_options(_VERIFY_DATA, seed=False)
@click.option(
    "--reproduce",
    metavar="FOLDER",
    help="Where to write the smallest pair of models that differs, and its inputs, if anything does.",
)
@report_option
@showing
def verify_command(  # noqa: PLR0913
    *,
    before: str,
    after: str,
    providers: tuple[str, ...],
    shapes: dict[str, tuple[int, ...]],
    seed: int,
    data: DataRequest | None,
    reproduce: str | None,
    reports: Reports,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run BEFORE and AFTER on the same inputs, unoptimised, and compare every tensor of equal name."""
    from bnfold import api, reproduction, terminal, wording  # noqa: PLC0415
    from bnfold.errors import MachineError  # noqa: PLC0415
    from bnfold.report.json_report import verification_json  # noqa: PLC0415

    reports.check([before, after])
    if reproduce is not None:
        reproduction.check_folder(reproduce)
    console = terminal.open_console(quiet)
    with terminal.progress(console, f"comparing {before} and {after}") as tell:
        found = api.verify(before, after, providers=providers, shapes=shapes, seed=seed, data=data, progress=tell)
    if as_json:
        click.echo(verification_json(Path(before).name, Path(after).name, found), nl=False)
    else:
        terminal.show_verification(console, found)
    reports.of_verification(found, before, after)
    if reproduce is not None and found.failed:
        operators = reproduction.reproduce(before, after, found, reproduce, seed=seed, data=data)
        terminal.say(f"{reproduce}: {wording.listed(operators)} of both models, which differ, and their inputs")
    if not found.passed and not found.failed:
        raise MachineError(f"nothing is proven: {found.doubt}", where=_name(after))
    if not as_json:
        click.echo(f"{_name(after)}: {wording.compared(_name(before), found)}")
    return NOT_DONE if found.failed else DONE


def _write_onnx(result: FoldResult, output: str, manifest: str | None) -> None:
    from bnfold import api  # noqa: PLC0415

    with beside(result, manifest):
        api.save(result.model, output)


def _show_fold(console: Console, report: Report, as_json: bool) -> None:
    from bnfold import terminal  # noqa: PLC0415
    from bnfold.report.json_report import report_json  # noqa: PLC0415

    if as_json:
        click.echo(report_json(report), nl=False)
    else:
        terminal.show_summary(console, report)


def _name(path: str) -> str:
    """The path as it was typed, made printable."""
    from bnfold.wording import printable  # noqa: PLC0415

    return printable(click.format_filename(path))


commands.add_command(bench_command)
commands.add_command(recalibrate_command)
commands.add_command(unfold_command)
