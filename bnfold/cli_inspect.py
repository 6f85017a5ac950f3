"""The command `inspect`: what a fold would do, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bnfold.cli_options import DONE, EPILOG, opening, reading, shape_option, showing
from bnfold.cli_report import Reports, printed, report_option, with_files
from bnfold.cli_torch import Opening, writes_torch

if TYPE_CHECKING:  # loading these takes a second, which --help need not wait for
    from bnfold.leftover_forms import Form


@click.command("inspect", short_help="Show what a fold would do, and why.", epilog=EPILOG)
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
    from bnfold.report.json_report import report_json  # noqa: PLC0415
    from bnfold.torch_folds import graph_settings, inspect_file  # noqa: PLC0415

    reports.check([model])
    given = Opening(factory, trust_pickle, shapes)
    to_torch = writes_torch(model, f"x.{to}", click.get_current_context())
    console = terminal.open_console(quiet)
    with terminal.progress(console, f"reading {model}"):
        if to_torch:
            settings = graph_settings(only, keep, reduce, not no_merge, leftover)
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
                shapes=None if given.is_torch(model) else shapes,
            )
    report = with_files(report, model)
    reports.of_fold(report, input=model)
    if as_json:
        click.echo(report_json(report), nl=False)
        return DONE
    terminal.show_decisions(console, report)
    click.echo(f"{printed(model)}: {wording.counted(report, 'would fold')}")
    return DONE
