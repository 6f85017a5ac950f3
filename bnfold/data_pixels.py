"""An image file as pixels 0 to 255 of a given size: upright, without transparency, in colour or grey.

Turned as its EXIF orientation says; transparent parts lie on white; palettes are looked up; 16-bit greys are divided
by 257. A letterbox samples linearly as OpenCV does (so YOLO is trained); a crop and a stretch average over what they
shrink as Pillow and torchvision do.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from bnfold.errors import DataError, MissingPackageError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from PIL.Image import Image as Picture

Resize: TypeAlias = Literal["letterbox", "crop", "stretch"]

#: The grey around a letterboxed image.
PADDING = 114


@dataclass(frozen=True)
class Frame:
    """Where an image goes.

    Attributes:
        height: In pixels.
        width: In pixels.
        resize: "letterbox" keeps the ratio and pads, "crop" keeps it and takes the middle, "stretch" does not keep it.
        share: The part of the shorter side that a crop keeps.
        grey: One channel instead of three.
    """

    height: int
    width: int
    resize: Resize
    share: float = 1.0
    grey: bool = False

    def describe(self) -> str:
        """`crop to 224x224 (0.875 of the shorter side)`."""
        share = f" ({self.share:g} of the shorter side)" if self.resize == "crop" and self.share != 1 else ""
        return f"{self.resize} to {self.height}x{self.width}{share}"


def require_pillow() -> Any:
    """Pillow's `Image` module; raises MissingPackageError without it."""
    try:
        from PIL import Image  # noqa: PLC0415
    except ImportError as error:
        raise MissingPackageError(
            "reading images takes Pillow, which is not installed", remedy='pip install "bnfold[images]"'
        ) from error
    return Image


def read_pixels(path: Path, frame: Frame) -> NDArray[np.uint8]:
    """Pixels of shape (height, width, 3), RGB, or (height, width, 1).

    Raises:
        MissingPackageError: Pillow is not installed.
        DataError: The file is no image, or is damaged.
    """
    module = require_pillow()
    from PIL import ImageOps  # noqa: PLC0415

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about large images and odd tags
            with module.open(path) as opened:
                upright = ImageOps.exif_transpose(opened)
                pixels = np.asarray(_fitted(_opaque(upright, frame.grey), frame))
    except module.DecompressionBombError as error:
        raise DataError(
            "the image has too many pixels to be decoded safely", where=str(path), remedy="make it smaller"
        ) from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:  # SyntaxError is what Pillow raises for a broken PNG
        why = getattr(error, "strerror", None) or "it is damaged, or no image"
        raise DataError(
            f"the image cannot be read: {why}", where=str(path), remedy="repair it, or take it out"
        ) from error
    return pixels[..., np.newaxis] if frame.grey else pixels


def _opaque(picture: Picture, grey: bool) -> Picture:
    """In mode L or RGB; what is transparent lies on white."""
    from PIL import Image  # noqa: PLC0415

    if picture.mode.startswith("I"):  # Pillow's own conversion cuts 16 bits off at 255
        values = np.asarray(picture).astype(np.float64)
        picture = Image.fromarray(np.clip(np.rint(values / 257), 0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    elif picture.mode == "P":
        picture = picture.convert("RGB")
    return picture.convert("L" if grey else "RGB")


def _fitted(picture: Picture, frame: Frame) -> Picture:
    match frame.resize:
        case "letterbox":
            return _letterboxed(picture, frame)
        case "crop":
            return _cropped(picture, frame)
        case "stretch":
            return _resized(picture, frame.width, frame.height)


def _resized(picture: Picture, width: int, height: int) -> Picture:
    from PIL import Image  # noqa: PLC0415

    return picture.resize((width, height), Image.Resampling.BILINEAR)


def _letterboxed(picture: Picture, frame: Frame) -> Picture:
    """Scaled by the smaller ratio and put in the middle; of an odd rest, the larger part is right and below."""
    from PIL import Image  # noqa: PLC0415

    ratio = min(frame.height / picture.height, frame.width / picture.width)
    width, height = max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio))
    if (width, height) != picture.size:
        picture = _sampled(picture, width, height)
    grey = PADDING if frame.grey else (PADDING,) * 3
    canvas = Image.new(picture.mode, (frame.width, frame.height), grey)
    canvas.paste(picture, ((frame.width - width) // 2, (frame.height - height) // 2))
    return canvas


def _sampled(picture: Picture, width: int, height: int) -> Picture:
    """Each pixel's centre is mapped back and its four neighbours are weighed: OpenCV's INTER_LINEAR, to one level."""
    from PIL import Image  # noqa: PLC0415

    matrix = (picture.width / width, 0.0, 0.0, 0.0, picture.height / height, 0.0)
    bands = [
        # In floating point, because Pillow rounds the bytes of a transform down: half a level too dark on average.
        band.convert("F").transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        for band in picture.split()
    ]
    return Image.merge(picture.mode, [Image.fromarray(np.rint(np.asarray(band)).astype(np.uint8)) for band in bands])


def _cropped(picture: Picture, frame: Frame) -> Picture:
    """Scaled so that the frame, divided by `share`, is just covered, and cut out of the middle."""
    ratio = max(frame.height / picture.height, frame.width / picture.width) / frame.share
    width, height = (
        max(least, round(side * ratio))
        for side, least in ((picture.width, frame.width), (picture.height, frame.height))
    )
    left, top = round((width - frame.width) / 2), round((height - frame.height) / 2)
    resized = _resized(picture, width, height)
    return resized.crop((left, top, left + frame.width, top + frame.height))
