"""The options of the command line, each declared once so that it means the same in every command."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, TypedDict, TypeVar

import click
from click.core import ParameterSource

from bnfold.errors import UsageError

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Command], Command]


def _regex(_context: click.Context, _option: click.Parameter, text: str | None) -> str | None:
    if text is not None:
        try:
            re.compile(text)
        except re.error as error:
            raise click.BadParameter(f"{text!r} is no regular expression: {error}") from error
    return text


def _shapes(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Name to shape; a name given twice is a contradiction."""
    from bnfold.data import parse_shape  # noqa: PLC0415  # NumPy is not needed for --help

    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, shape = parse_shape(text)
        if name in shapes:
            raise click.BadParameter(f"input {name!r} was given twice")
        shapes[name] = shape
    return shapes


def _bytes(_context: click.Context, _option: click.Parameter, text: str) -> int:
    """Bytes in `512MiB`, `2 GiB` or `0`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(KiB|MiB|GiB|TiB)?", text)
    if match is None:
        raise click.BadParameter(f"{text!r} is no size; write it like 512MiB")
    return int(float(match[1]) * 1024 ** ("", "KiB", "MiB", "GiB", "TiB").index(match[2] or ""))


def _each_once(_context: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(given))


def _together(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """One decorator that declares `options` in this order."""

    def declare(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return declare


_only = click.option("--only", metavar="REGEX", callback=_regex, help="Only the BatchNorms whose name it matches.")
_keep = click.option("--keep", metavar="REGEX", callback=_regex, help="Keep the BatchNorms whose name it matches.")

#: Done; and not done, because the result would not be what was asked for.
DONE, NOT_DONE = 0, 1

EPILOG = (
    "Exit codes: 0 done; 1 the result is not equivalent, or a BatchNorm was kept against --require-all; 2 usage; "
    "3 the model, the data or the machine is at fault. With 1, 2 and 3 nothing is written."
)

#: In the place of a path: the manifest is in the model's own metadata.
EMBED = "embed"

manifest_option = click.option(
    "--manifest",
    metavar="PATH|embed",
    help="Where it is noted how to undo the fold: a file, or the model's own metadata.",
)


seed_option = click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of all that is drawn: made-up inputs, and which samples of data are taken.",
)


def reading(command: Command) -> Command:
    """What decides which BatchNorms are folded."""
    return _together(
        _keep,
        _only,
        click.option(
            "--keep-overridable", is_flag=True, help="Keep weights that are inputs overridable by the caller."
        ),
        click.option(
            "--reduce", is_flag=True, help="Fewer BatchNorms, though no faster: a Max for a ReLU, an Add for a shift."
        ),
        click.option("--no-merge", is_flag=True, help="Leave parallel branches (RepVGG, MobileOne) as they are."),
        click.option(
            "--leftover",
            type=click.Choice(["keep", "affine", "depthwise"]),
            default="keep",
            show_default=True,
            help="What is written for a BatchNorm that stays: itself, Mul and Add, or a depthwise Conv.",
        ),
        click.option("--simplify", is_flag=True, help="Run onnxsim first, to uncover constants."),
    )(command)


shape_option = click.option(
    "--shape",
    "shapes",
    metavar="NAME=1x3x224x224",
    multiple=True,
    callback=_shapes,
    help="The shape of an input whose size the model leaves open, or of a PyTorch module's; may be repeated.",
)


def opening(command: Command) -> Command:
    """What PyTorch files need besides."""
    return _together(
        click.option(
            "--model",
            "factory",
            metavar="PACKAGE.MODULE:FACTORY",
            help="For a state dict: the function that returns its module.",
        ),
        click.option("--trust-pickle", is_flag=True, help="Load a pickle, which runs code of whoever made it."),
    )(command)


def checking(command: Command) -> Command:
    """How two models are compared."""
    return _together(
        click.option(
            "--provider",
            "providers",
            type=click.Choice(["cpu", "cuda", "all"]),
            multiple=True,
            default=("cpu",),
            callback=_each_once,
            show_default=True,
            help="Where to run both models; may be repeated. all: wherever this onnxruntime can.",
        ),
        shape_option,
        seed_option,
    )(command)


class How(TypedDict):
    """How statistics are computed: keywords of `bnfold.recalibrate` and `bnfold.Calibration`."""

    method: str
    momentum: float
    bessel: bool
    memory: int
    force: bool
    unshare: str


def recalibrating(data: str, flag: str) -> Callable[[Command], Command]:
    """Declares how statistics are computed; the command gets the keyword `how`.

    Args:
        data: The keyword that has the data, None where there is none; such options are a mistake then.
        flag: The option that names the data.
    """

    def declare(command: Command) -> Command:
        @functools.wraps(command)
        def call(**given: Any) -> Any:
            picked = {
                name: given.pop(name) for name in ("method", "momentum", "variance", "memory", "force", "unshare")
            }
            named = [name for name in picked if is_typed(name)]
            if named and given[data] is None:
                raise UsageError(
                    f"--{named[0]} says how to recalibrate, and there is no data for it", remedy=f"give {flag} as well"
                )
            if "momentum" in named and picked["method"] != "ema":
                raise UsageError("--momentum means something for a running average only", remedy="give --method ema")
            return command(**given, how=_how(**picked))

        decorated: Any = call
        result: Command = _together(*_methods)(decorated)
        return result

    return declare


def _how(  # noqa: PLR0913  # one parameter for each option
    *, variance: str, method: str, momentum: float, memory: int, force: bool, unshare: str
) -> How:
    bessel = variance == "bessel"
    return How(method=method, momentum=momentum, bessel=bessel, memory=memory, force=force, unshare=unshare)


def is_typed(name: str) -> bool:
    """Whether an option was given, be it with its default."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


_methods = (
    click.option(
        "--method",
        type=click.Choice(["sequential", "batch", "ema"]),
        default="sequential",
        show_default=True,
        help="What is upstream: recalibrated BatchNorms, those of training, or a running average of training.",
    ),
    click.option(
        "--momentum",
        type=click.FloatRange(min=0, max=1, min_open=True),
        default=0.1,
        show_default=True,
        help="For --method ema: the weight of a new batch (Keras writes 1 minus this).",
    ),
    click.option(
        "--variance",
        type=click.Choice(["population", "bessel"]),
        default="population",
        show_default=True,
        help="Divide by n, or by n - 1 as PyTorch's training does.",
    ),
    click.option(
        "--memory",
        default="1GiB",
        show_default=True,
        callback=_bytes,
        metavar="SIZE",
        help="How much of the activations stays in memory; the rest goes to a temporary file.",
    ),
    click.option("--force", is_flag=True, help="Compute statistics from fewer than 32 values in a channel."),
    click.option(
        "--unshare",
        type=click.Choice(["none", "dependent", "all"]),
        default="none",
        show_default=True,
        help="Which BatchNorms that share their statistics get some of their own: those behind each other, or all.",
    ),
)


def choosing(command: Command) -> Command:
    """Which BatchNorms, by name."""
    return _together(_keep, _only)(command)


def undoing(command: Command) -> Command:
    """Which folds are undone, and from what."""
    return _together(
        manifest_option,
        _only,
        click.option("--all", "every", is_flag=True, help="Undo every fold that is known, not only the last."),
    )(command)


def showing(command: Command) -> Command:
    """What is printed."""
    return _together(
        click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout, and no tables."),
        click.option("--quiet", is_flag=True, help="No tables and no progress on stderr."),
    )(command)
