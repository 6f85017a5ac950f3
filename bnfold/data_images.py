"""Images as samples: `x = (pixel * scale - mean) / std`, in the size, layout, channels and type that the model takes.

What the model says decides (its size, its layout, grey or colour); then the options; then the preset; then scale 1/255
(1 for a uint8 input), RGB, the middle of the image, no mean, no std.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from bnfold.data_fit import shape_text
from bnfold.data_pixels import Frame, Resize, read_pixels
from bnfold.dataflow import FLOATS
from bnfold.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from bnfold.data import InputSpec

Order: TypeAlias = Literal["rgb", "bgr"]
Preset: TypeAlias = Literal["yolo", "imagenet"]

#: Names of files that are read as images.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


@dataclass(frozen=True)
class ImageOptions:
    """How images become numbers; None leaves it to the preset, and then to the defaults.

    Attributes:
        preset: "yolo" (letterbox to 640x640, scale 1/255) or "imagenet" (the middle 224x224 of an image whose shorter
            side is 256, scale 1/255, mean and std of ImageNet). A size that the model or `size` gives comes before the
            preset's; "imagenet" then keeps the ratio of 224 to 256.
        size: Height and width in pixels.
        resize: "letterbox" keeps the ratio and pads with grey 114, "crop" keeps it and takes the middle, "stretch" does
            not keep it.
        mean: Taken off each channel, in units after `scale`; one number, or one for each channel in the model's order.
        std: What each channel is then divided by.
        scale: What the pixels, 0 to 255, are multiplied by.
        order: Order of the channels, "rgb" or "bgr".
    """

    preset: Preset | None = None
    size: tuple[int, int] | None = None
    resize: Resize | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: float | None = None
    order: Order | None = None

    def __post_init__(self) -> None:
        if self.preset not in (None, *_PRESETS):
            raise UsageError(f"{self.preset!r} is none of {', '.join(_PRESETS)}", where="image preset")
        if self.resize not in (None, "letterbox", "crop", "stretch"):
            raise UsageError(f"{self.resize!r} is none of letterbox, crop, stretch", where="image resize")
        if self.order not in (None, "rgb", "bgr"):
            raise UsageError(f"{self.order!r} is none of rgb, bgr", where="image order")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise UsageError("height and width must be at least 1", where="image size")
        numbers = (*(self.mean or ()), *(self.std or ()), *([] if self.scale is None else [self.scale]))
        if not np.isfinite(numbers).all() or self.scale == 0 or min(self.std or (1.0,)) <= 0:
            raise UsageError("mean and scale must be finite, scale not 0, and std above 0", where="image options")


@dataclass(frozen=True)
class _Preset:
    """What a family of networks is trained with; `share` is the part of the shorter side that a crop keeps."""

    size: tuple[int, int]
    resize: Resize
    share: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


_PRESETS: Mapping[str, _Preset] = {
    "yolo": _Preset((640, 640), "letterbox"),
    "imagenet": _Preset((224, 224), "crop", 224 / 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclass(frozen=True, eq=False)
class Recipe:
    """How the pixels of an image become one sample of one input.

    Attributes:
        name: The input's name.
        frame: Size, way of resizing, channels.
        channels_first: Whether the sample is (channel, height, width) rather than (height, width, channel).
        bgr: Whether the first channel is blue.
        scale: What the pixels are multiplied by.
        mean: Taken off each channel after that, in the model's order.
        std: What each channel is then divided by.
        dtype: The model's element type.
    """

    name: str
    frame: Frame
    channels_first: bool
    bgr: bool
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: np.dtype[np.generic]

    def apply(self, pixels: NDArray[np.uint8]) -> NDArray[np.generic]:
        """One sample from pixels of shape (height, width, channels); float64 until one rounding to `dtype`."""
        ordered = pixels[..., ::-1] if self.bgr else pixels
        if self.dtype.name in FLOATS:
            values = (ordered * self.scale - np.asarray(self.mean)) / np.asarray(self.std)
            ordered = values.astype(self.dtype)
        return np.moveaxis(ordered, -1, 0) if self.channels_first else ordered

    def describe(self) -> str:
        """`letterbox to 640x640, RGB, scale 0.00392157`, and mean and std where they do something."""
        colour = "grey" if self.frame.grey else "BGR" if self.bgr else "RGB"
        shift = f", mean {_figures(self.mean)}" if any(self.mean) else ""
        spread = f", std {_figures(self.std)}" if set(self.std) != {1.0} else ""
        return f"{self.frame.describe()}, {colour}, scale {self.scale:g}{shift}{spread}"


@dataclass(frozen=True, eq=False)
class Images:
    """Image files as samples, one each.

    Attributes:
        name: What the data is called in reports.
        files: The files.
        recipe: How an image becomes a sample.
    """

    name: str
    files: tuple[Path, ...]
    recipe: Recipe

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.files)

    def read(self, rows: NDArray[np.intp]) -> dict[str, NDArray[np.generic]]:
        """These images as one array, samples on axis 0."""
        samples = [self.recipe.apply(read_pixels(self.files[row], self.recipe.frame)) for row in rows]
        return {self.recipe.name: np.stack(samples)}

    def place(self, row: int) -> str:
        """The file."""
        return str(self.files[row])

    def describe(self, chosen: int) -> str:
        """How many images of where, and what was done to them."""
        some = f"{chosen}" if chosen == self.count else f"{chosen} of {self.count}"
        return f"{some} images of {self.name}, {self.recipe.describe()}"


def plan_images(inputs: Sequence[InputSpec], options: ImageOptions, where: str) -> Recipe:
    """The recipe for the one input of a model that takes images.

    Raises:
        DataError: The model takes no images, or its size is open and nobody gave one.
        UsageError: The options contradict the model.
    """
    spec, (channels_first, channels) = _image_input(inputs, where)
    floating = spec.dtype.name in FLOATS
    preset = _PRESETS.get(options.preset or "")
    bgr = options.order == "bgr" and channels == 3
    mean = options.mean or _of_preset(preset.mean if preset else (0.0,), bgr)
    std = options.std or _of_preset(preset.std if preset else (1.0,), bgr)
    scale = options.scale if options.scale is not None else 1 / 255 if floating or preset else 1.0
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise UsageError(
                f"{name} has {len(values)} numbers, the model takes {channels} channel{'s'[: channels > 1]}",
                where=where,
                remedy=f"give --image-{name} with one number, or one for each channel",
            )
    if not floating and (scale != 1 or any(mean) or set(std) != {1.0}):
        raise UsageError(
            "the model takes uint8, so its images cannot be scaled or shifted",
            where=spec.name,
            remedy="leave out the preset, --image-mean and --image-std, and --image-scale unless it is 1",
        )
    height, width = _size(spec, channels_first, options, preset)
    resize = options.resize or (preset.resize if preset else "crop")
    frame = Frame(height, width, resize, preset.share if preset else 1.0, channels == 1)
    return Recipe(spec.name, frame, channels_first, bgr, scale, mean, std, spec.dtype)


def _image_input(inputs: Sequence[InputSpec], where: str) -> tuple[InputSpec, tuple[bool, int]]:
    """The input, whether channels come first, and how many there are."""
    if len(inputs) != 1:
        raise DataError(
            f"images feed a model of one input, this one has {len(inputs)}",
            where=where,
            remedy="give a .npz file, or a callable that yields batches",
        )
    spec = inputs[0]
    dims = spec.dims or ()
    layout = _layout(spec) if len(dims) == 4 else None
    if layout is None:
        raise DataError(
            f"its shape {shape_text(dims) if spec.dims else 'is open and'} does not tell where an image of 1 or 3 "
            "channels goes",
            where=spec.name,
            remedy="give the data as .npy, or a callable that yields batches",
        )
    if spec.dtype.name not in (*FLOATS, "uint8"):
        raise DataError(
            f"this input takes {spec.dtype.name}, and images are floating-point numbers or uint8",
            where=spec.name,
            remedy="give the data as .npy, or a callable that yields batches",
        )
    return spec, layout


def _layout(spec: InputSpec) -> tuple[bool, int] | None:
    """Channels first and their number, by the shape, else by the weights that read the input."""
    dims = spec.dims or ()
    for axis, first in ((1, True), (3, False)):
        size = dims[axis]
        if isinstance(size, int) and size in (1, 3):
            return first, size
    if spec.channels is not None and spec.channels[0] in (1, 3) and spec.channels[1] in (1, 3):
        axis, size = spec.channels
        return (axis == 1, size) if not isinstance(dims[axis], int) else None
    return None


def _size(spec: InputSpec, channels_first: bool, options: ImageOptions, preset: _Preset | None) -> tuple[int, int]:
    """Height and width: the model's, the option's, the preset's."""
    dims = (spec.dims or ())[2:4] if channels_first else (spec.dims or ())[1:3]
    chosen = options.size or tuple(
        size if isinstance(size, int) else given
        for size, given in zip(dims, preset.size if preset else (None, None), strict=True)
    )
    height, width = chosen
    if height is None or width is None:
        raise DataError(
            "the model leaves the size of its images open",
            where=spec.name,
            remedy="give --image-size HxW, or a --preset",
        )
    for size, given in zip(dims, (height, width), strict=True):
        if isinstance(size, int) and size != given:
            raise UsageError(
                f"the images are to be {height}x{width} and the model takes {shape_text(dims)}",
                where=spec.name,
                remedy="leave out --image-size",
            )
    return height, width


def _of_preset(values: tuple[float, ...], bgr: bool) -> tuple[float, ...]:
    """Presets are in RGB."""
    return values[::-1] if bgr else values


def _figures(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)
