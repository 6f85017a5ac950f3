"""The command `fold`: recalibrate if that is asked for, fold, verify, measure if that is asked for, write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bnfold.cli_bench import Timed, timing
from bnfold.cli_checks import Asked, asking
from bnfold.cli_data import data_options
from bnfold.cli_options import (
    DONE,
    EMBED,
    EPILOG,
    NOT_DONE,
    How,
    checking,
    manifest_option,
    opening,
    reading,
    recalibrating,
    showing,
)
from bnfold.cli_report import Reports, printed, report_option, with_files
from bnfold.cli_reproduce import check_place, reproduce_option, write_reproduction
from bnfold.cli_torch import Opening, writes_torch
from bnfold.cli_unfold import beside, check_targets
from bnfold.cli_verify import VERIFY_DATA
from bnfold.errors import BnfoldError, UsageError, VerificationError

if TYPE_CHECKING:  # loading these takes a second, which --help need not wait for
    from rich.console import Console

    from bnfold.api import FoldResult
    from bnfold.data_sources import DataRequest
    from bnfold.leftover_forms import Form
    from bnfold.report.bench_report import BenchReport
    from bnfold.report.model import Report
    from bnfold.report.recalibration_report import RecalibrationReport

_CALIBRATE = {"calibrate": ("--calibrate", "Recalibrate first, on these samples, which need no labels")}


@click.command("fold", short_help="Fold, verify and write (the default).", epilog=EPILOG)
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
@asking
@data_options(_CALIBRATE | VERIFY_DATA, seed=False)
@recalibrating("calibrate", "--calibrate")
@timing
@reproduce_option
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
    asked: Asked,
    calibrate: DataRequest | None,
    data: DataRequest | None,
    how: How,
    timed: Timed | None,
    reproduce: str | None,
    reports: Reports,
    as_json: bool,
    quiet: bool,
) -> int:
    """Fold every BatchNorm of MODEL that exact arithmetic allows, verify, and write OUTPUT.

    The suffix of OUTPUT says what is written: .onnx, or of a PyTorch model .pt2, .pt (a state dict) or .safetensors.
    """
    from bnfold import api, terminal, wording  # noqa: PLC0415  # as above: not for --help
    from bnfold.benchmarking import benchmark  # noqa: PLC0415
    from bnfold.calibrating import Calibration, Choice  # noqa: PLC0415
    from bnfold.report.model import Report  # noqa: PLC0415
    from bnfold.reproduction import reproduce_failure  # noqa: PLC0415
    from bnfold.torch_folds import fold_file, graph_settings  # noqa: PLC0415
    from bnfold.wishes import BY_FLAGS, Proof  # noqa: PLC0415

    targets = [output, *([] if manifest in (None, EMBED) else [manifest])]
    _check_files(targets, [model, *(request.text for request in (calibrate, data) if request)], reports)
    _check_reproduce(reproduce, [*targets, *reports.paths], verify=not no_verify)
    given = Opening(factory, trust_pickle, shapes)
    to_torch = writes_torch(model, output, click.get_current_context())
    wish = None if calibrate is None else Calibration(calibrate, **how)
    console, moved, measure = terminal.open_console(quiet), None, None
    show = _Shown(model, console, reports, as_json)
    try:
        with terminal.progress(console, f"folding {model}") as tell:
            choice = Choice(only, keep, progress=tell)
            if to_torch:
                settings = graph_settings(only, keep, reduce, not no_merge, leftover)
                proof = Proof(not no_verify, seed, tell, BY_FLAGS)
                report, write = fold_file(given.torch(model), output, shapes, settings, proof, wish, choice)
            else:
                if wish is None:
                    source = given.as_onnx(model, verify=not no_verify)
                else:
                    source, wish, moved = given.recalibrated(model, wish, choice, verify=not no_verify)
                result = api.fold(
                    source,
                    calibrate=wish,
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
                    **asked,
                )
                report, write = _with(result.report, moved), partial(_write_onnx, result, output, manifest)
                if timed is not None:
                    pair, fixed = (source, result.model), asked["inputs"]
                    measure = partial(
                        benchmark, *pair, providers=providers, shapes=shapes, seed=seed, inputs=fixed, **timed
                    )
    except BnfoldError as error:
        if isinstance(error.report, Report):
            show.fold(_with(error.report, moved))
        if reproduce is not None and isinstance(error, VerificationError):
            write_reproduction(
                reproduce, partial(reproduce_failure, error, reproduce, seed=seed, data=data, inputs=asked["inputs"])
            )
        raise
    against = wording.objection(report) if require_all else ""
    if against:
        show.fold(report)
        terminal.say(against)
        return NOT_DONE
    if measure is not None:
        report = _measured(report, measure, console, (model, output))
    write()
    show.fold(report, output)
    if not as_json:
        click.echo(f"{printed(output)}: {wording.done(report)}")
    return DONE


def _with(report: Report, moved: RecalibrationReport | None) -> Report:
    """The report with what was done to the PyTorch model before it became ONNX."""
    return report if moved is None else replace(report, recalibration=moved)


def _measured(report: Report, measure: Callable[..., BenchReport], console: Console, files: tuple[str, str]) -> Report:
    """The report with the latency of both models, under the names of their files."""
    from bnfold import terminal  # noqa: PLC0415

    with terminal.progress(console, f"measuring {files[0]} and {files[1]}") as tell:
        found = measure(progress=tell)
    before, after = (Path(file).name for file in files)
    return replace(report, bench=replace(found, before=before, after=after))


def _write_onnx(result: FoldResult, output: str, manifest: str | None) -> None:
    from bnfold import api  # noqa: PLC0415

    with beside(result, manifest):
        api.save(result.model, output)


def _check_files(targets: list[str], sources: list[str], reports: Reports) -> None:
    """Refuse at once what could not be written in the end, or would overwrite what is read."""
    check_targets(targets, [*sources])
    reports.check([*sources, *targets])


def _check_reproduce(folder: str | None, others: list[str], *, verify: bool) -> None:
    """Likewise of the place of a reproduction, which only a check can need."""
    if folder is not None and not verify:
        what = "--reproduce is for a check that fails, and the check is left out"
        raise UsageError(what, where=folder, remedy="leave out one of the two")
    check_place(folder, others)


@dataclass(frozen=True)
class _Shown:
    """Where people and programs see what happened to one model."""

    model: str
    console: Console
    reports: Reports
    as_json: bool

    def fold(self, report: Report, output: str | None = None) -> None:
        """On stdout or stderr, and in the reports; `output` is the file that was written."""
        from bnfold import terminal  # noqa: PLC0415
        from bnfold.report.json_report import report_json  # noqa: PLC0415

        report = with_files(report, self.model, output)
        if self.as_json:
            click.echo(report_json(report), nl=False)
        else:
            terminal.show_summary(self.console, report)
        written = {} if output is None else {"output": output}
        self.reports.of_fold(report, input=self.model, **written)
