"""The command `unfold`, and where a fold's manifest may go."""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bnfold.cli_options import EMBED, showing, undoing
from bnfold.cli_torch import is_torch_file
from bnfold.errors import UsageError

if TYPE_CHECKING:
    from bnfold.api import FoldResult
    from bnfold.unfolding import UnfoldResult

_EPILOG = "Exit codes: 0 done; 2 usage, or there is no manifest; 3 the manifest does not belong to the model."


@click.command("unfold", short_help="Put folded BatchNorms back, from the manifest.", epilog=_EPILOG)
@click.argument("model")
@click.option("-o", "--output", required=True, metavar="OUTPUT", help="The file to write; never the input.")
@undoing
@showing
def unfold_command(  # noqa: PLR0913  # one parameter for each option
    *, model: str, output: str, manifest: str | None, only: str | None, every: bool, as_json: bool, quiet: bool
) -> int:
    """Restore the BatchNorms of MODEL bit by bit, from the manifest that `bnfold --manifest` wrote; write OUTPUT."""
    from bnfold import api, terminal  # noqa: PLC0415  # loading these takes a second
    from bnfold.unfolding import unfold  # noqa: PLC0415
    from bnfold.wording import printable  # noqa: PLC0415

    manifest = None if manifest == EMBED else manifest  # it is looked for there first
    sources: list[str | os.PathLike[str]] = [model, *([] if manifest is None else [manifest])]
    check_targets([output], sources)
    console = terminal.open_console(quiet)
    with terminal.progress(console, f"restoring {model}"):
        result = unfold(model, manifest, only=only, every=every)
        api.save(result.model, output)
    if as_json:
        click.echo(json.dumps(_report(model, result), indent=2))
        return 0
    for line in _remarks(result):
        terminal.say(line)
    restored, folded = (printable(click.format_filename(path)) for path in (output, model))
    known = len(result.restored) + _left(result)
    click.echo(f"{restored}: {len(result.restored)} of {known} folds of {folded} undone, bit by bit")
    return 0


def _left(result: UnfoldResult) -> int:
    return 0 if result.manifest is None else len(result.manifest.folds)


def _report(model: str, result: UnfoldResult) -> dict[str, object]:
    """Version 1: what is restored, what of that was not asked for, and what can still be undone."""
    left = [] if result.manifest is None else [fold.name for fold in result.manifest.folds]
    return {
        "schema_version": 1,
        "model": Path(model).name,
        "restored": list(result.restored),
        "also": list(result.also),
        "left": left,
        "simplified": result.simplified,
    }


def _remarks(result: UnfoldResult) -> list[str]:
    """What a user may not expect."""
    from bnfold.wording import listed  # noqa: PLC0415

    lines = []
    if result.also:
        lines.append(f"{listed(result.also)}: restored too, because their folds overlap with those asked for")
    if result.simplified:
        lines.append("onnxsim had simplified the model before the fold, and that is what is restored")
    if _left(result):
        lines.append("the model carries the manifest of the folds that are left")
    return lines


def check_targets(targets: list[str], sources: list[str | os.PathLike[str]]) -> None:
    """Refuse at once what could not be written in the end, or must not: what is read, and one place for two files."""
    from bnfold.frontends.onnx_files import check_target, external_files, load  # noqa: PLC0415

    for target in targets:
        check_target(target, sources)
        if Path(target).exists() and Path(sources[0]).is_file() and not is_torch_file(str(sources[0])):
            # it may be where the model keeps its weights
            check_target(target, [file for file, _ in external_files(load(sources[0]))])
    if len({Path(target).resolve() for target in targets}) < len(targets):
        raise UsageError("the manifest and the model cannot be one file", where=targets[0])


def beside(result: FoldResult, manifest: str | None) -> AbstractContextManager[None]:
    """What to write the model in, so that its manifest, if it goes to a file, is there as well or neither is."""
    from bnfold.manifest_files import written  # noqa: PLC0415

    if result.manifest is None or manifest in (None, EMBED):
        return nullcontext()
    return written(result.manifest, manifest)
