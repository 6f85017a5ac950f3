"""The options that name data and say how images become numbers, declared once; a command gets one `DataRequest`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import starmap
from typing import TYPE_CHECKING, Any

import click

from bnfold.cli_options import seed_option
from bnfold.errors import UsageError

if TYPE_CHECKING:  # NumPy is not needed for --help
    from bnfold.cli_options import Command
    from bnfold.data_sources import DataRequest

_IMAGE = ("preset", "image_size", "image_resize", "image_mean", "image_std", "image_scale", "image_order")


def data_options(flags: Mapping[str, tuple[str, str]], *, seed: bool) -> Callable[[Command], Command]:
    """Declares options that name data, and how it is read; the command gets a DataRequest or None for each.

    Args:
        flags: By keyword of the command: the option, and what its data is for, as its help. All are read alike, but
            --samples is of the first one that is given: a check needs but a few batches of its own.
        seed: Whether to declare --seed, too; else the command has one, which then also chooses the samples.
    """

    def declare(command: Command) -> Command:
        @functools.wraps(command)
        def call(**given: Any) -> Any:
            picked = {name: given.pop(name) for name in ("batch_size", "samples", *_IMAGE)}
            number = given.pop("seed") if seed else given["seed"]
            _refuse_idle(picked, [flags[name][0] for name in flags], [given[name] for name in flags])
            requests = {}
            for name in flags:
                requests[name] = _request(given[name], number, picked)
                picked |= {"samples": None} if given[name] else {}
            return command(**{**given, **requests})

        decorated: Any = call
        for option in reversed([*starmap(_naming, flags.items()), *_options(), *([seed_option] if seed else [])]):
            decorated = option(decorated)
        result: Command = decorated
        return result

    return declare


def _refuse_idle(picked: dict[str, Any], flags: Sequence[str], texts: Sequence[str | None]) -> None:
    """Options of data without data are a mistake."""
    named = [f"--{name.replace('_', '-')}" for name, value in picked.items() if value is not None]
    if named and all(text is None for text in texts):
        remedy = f"give {' or '.join(flags)} as well"
        raise UsageError(f"{named[0]} says how to read data, and there is none", remedy=remedy)


def _request(text: str | None, seed: int, picked: dict[str, Any]) -> DataRequest | None:
    """What was asked for."""
    if text is None:
        return None
    from bnfold.data_images import ImageOptions  # noqa: PLC0415
    from bnfold.data_sources import DataRequest  # noqa: PLC0415

    fields = {name.removeprefix("image_"): picked[name] for name in _IMAGE if picked[name] is not None}
    image = ImageOptions(**fields) if fields else None
    return DataRequest(text, picked["batch_size"], picked["samples"], seed, image)


def _height_width(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """`480x640`, height first, or one number for both."""
    if text is None:
        return None
    sizes = [part.strip() for part in text.lower().split("x")]
    if not 1 <= len(sizes) <= 2 or not all(part.isdecimal() and int(part) for part in sizes):
        raise click.BadParameter(f"{text!r} is no size; write it like 480x640, height first")
    return int(sizes[0]), int(sizes[-1])


def _numbers(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    """Numbers with commas between them, each a decimal or a fraction like 1/255."""
    return None if text is None else tuple(_number(part) for part in text.split(","))


def _one_number(_context: click.Context, _option: click.Parameter, text: str | None) -> float | None:
    return None if text is None else _number(text)


def _number(text: str) -> float:
    above, slash, below = text.partition("/")
    try:
        number = float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError) as error:
        raise click.BadParameter(f"{text!r} is no number; write it like 0.485 or 1/255") from error
    if not math.isfinite(number):
        raise click.BadParameter(f"{text!r} is not finite")
    return number


def _naming(keyword: str, option: tuple[str, str]) -> Callable[[Any], Any]:
    flag, meaning = option
    text = f"{meaning}: a .npy or .npz file, a folder of those or of images, or package.module:callable."
    return click.option(flag, keyword, metavar="DATA", help=text)


def _options() -> list[Callable[[Any], Any]]:
    return [
        click.option("--batch-size", type=click.IntRange(min=1), help="Samples in a batch of DATA; the model's, or 8."),
        click.option("--samples", type=click.IntRange(min=1), help="Take that many of DATA, drawn with --seed."),
        click.option(
            "--preset", type=click.Choice(["yolo", "imagenet"]), help="How networks of this kind are fed images."
        ),
        click.option("--image-size", metavar="HxW", callback=_height_width, help="Where the model leaves it open."),
        click.option(
            "--image-resize",
            type=click.Choice(["letterbox", "crop", "stretch"]),
            help="Keep the ratio and pad, keep it and take the middle (the default), or do not keep it.",
        ),
        click.option(
            "--image-mean",
            metavar="R,G,B",
            callback=_numbers,
            help="Taken off the scaled pixels, in the model's order.",
        ),
        click.option("--image-std", metavar="R,G,B", callback=_numbers, help="What they are then divided by."),
        click.option(
            "--image-scale", metavar="NUMBER", callback=_one_number, help="Pixels are multiplied by it; 1/255."
        ),
        click.option("--image-order", type=click.Choice(["rgb", "bgr"]), help="Order of the channels; rgb."),
    ]
