"""The option `--reproduce`: what differs, cut out of both models, where a check fails."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bnfold.errors import BnfoldError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

reproduce_option = click.option(
    "--reproduce",
    metavar="FOLDER",
    help="Where to write the smallest pair of models that differs, and its inputs, if anything does.",
)


def check_place(folder: str | None, others: Sequence[str]) -> None:
    """Refuse at once what could not be written in the end, and the place of another file of the command.

    Raises:
        UsageError: It is no empty folder, or one of `others` is, or would be in it.
    """
    from bnfold.reproduction import check_folder  # noqa: PLC0415

    if folder is None:
        return
    check_folder(folder)
    place = Path(folder).resolve()
    for other in others:
        if place in (Path(other).resolve(), *Path(other).resolve().parents):
            raise UsageError("a reproduction has a folder to itself", where=folder, remedy=f"{other} is to be there")


def write_reproduction(folder: str, write: Callable[[], Sequence[str]]) -> None:
    """Call `write`, and say on stderr what is in `folder` now, or why nothing is; the check has failed anyhow."""
    from bnfold import terminal  # noqa: PLC0415
    from bnfold.wording import listed  # noqa: PLC0415

    try:
        operators = write()
    except BnfoldError as error:
        terminal.say(f"no reproduction is written: {error}")
    else:
        terminal.say(f"{folder}: {listed(operators)} of both models, which differ, and their inputs")
