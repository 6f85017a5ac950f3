"""The options that ask more of the check, declared once; a command gets them as one keyword, `asked`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypedDict

import click

if TYPE_CHECKING:
    from bnfold.cli_options import Command


class Asked(TypedDict):
    """What is asked of the check: keywords of `bnfold.fold` and `bnfold.verify`."""

    inputs: dict[str, str] | None
    oracle: bool
    metric: str | None
    metric_output: str | None
    deployed: bool


def asking(command: Command) -> Command:
    """Declares the options; the command gets the keyword `asked`."""

    @functools.wraps(command)
    def call(**given: Any) -> Any:
        picked = {name: given.pop(name) for name in ("inputs", "oracle", "metric", "metric_output")}
        picked["deployed"] = not given.pop("no_deployed")
        return command(**given, asked=Asked(**picked))  # type: ignore[typeddict-item]

    decorated: Any = call
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    result: Command = decorated
    return result


def _files(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> dict[str, str] | None:
    """Name to file; a name given twice is a contradiction."""
    files: dict[str, str] = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not (name and equals and file):
            raise click.BadParameter(f"{text!r} names no file; write it like NAME=numbers.npy")
        if name in files:
            raise click.BadParameter(f"input {name!r} was given twice")
        files[name] = file
    return files or None


input_option = click.option(
    "--input",
    "inputs",
    metavar="NAME=FILE.npy",
    multiple=True,
    callback=_files,
    help="The whole of one input (indices, sizes), the same in every run; may be repeated.",
)

_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    input_option,
    click.option("--oracle", is_flag=True, help="Ask float64 about every tensor, not only about doubtful ones."),
    click.option(
        "--metric",
        type=click.Choice(["top1", "boxes", "mask"]),
        help="What both models must decide alike on --verify-data: class, boxes of a YOLO, class of each pixel.",
    ),
    click.option("--metric-output", metavar="NAME", help="The output to decide by, where there are several."),
    click.option("--no-deployed", is_flag=True, help="Do not compare with onnxruntime's own optimiser (ENABLE_ALL)."),
)
