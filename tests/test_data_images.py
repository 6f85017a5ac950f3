"""Images become what the network was trained with: size, padding, colours, layout, type, each by its definition."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from bnfold.data import InputSpec
from bnfold.data_images import ImageOptions
from bnfold.data_sources import open_source
from bnfold.errors import BnfoldError, DataError, MissingPackageError, UsageError

Array = np.ndarray[Any, Any]

RAW = ImageOptions(scale=1.0)


def spec(*dims: int | str | None, dtype: str = "float32", channels: tuple[int, int] | None = None) -> InputSpec:
    return InputSpec("images", np.dtype(dtype), dims, channels)


SMALL = spec("N", 3, 4, 6)
OPEN = spec("N", 3, None, None)


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> Array:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def put(folder: Path, pixels: Array, name: str = "a.png", **options: Any) -> str:
    Image.fromarray(pixels).save(folder / name, **options)
    return str(folder)


def read(text: str | Path, wanted: InputSpec = SMALL, **options: Any) -> Array:
    """The first batch."""
    return next(iter(open_source(str(text), (wanted,), image=ImageOptions(**options))))["images"]


def refused(kind: type[BnfoldError], text: str | Path, wanted: Sequence[InputSpec] = (SMALL,), **options: Any) -> str:
    with pytest.raises(kind) as caught:
        list(open_source(str(text), wanted, image=ImageOptions(**options)))
    return str(caught.value)


# Layout, colours, numbers


def test_pixels_come_as_the_model_lays_them_out(tmp_path: Path) -> None:
    pixels = picture(4, 6)
    folder = put(tmp_path, pixels)
    first, last = read(folder, SMALL), read(folder, spec("N", 4, 6, 3))
    assert first.dtype == np.float32
    assert np.array_equal(first[0], (pixels / 255).astype(np.float32).transpose(2, 0, 1))
    assert np.array_equal(last[0], (pixels / 255).astype(np.float32))


def test_bgr_turns_the_channels_round(tmp_path: Path) -> None:
    pixels = picture(4, 6)
    folder = put(tmp_path, pixels)
    assert np.array_equal(read(folder, order="bgr", scale=1.0)[0], pixels[..., ::-1].transpose(2, 0, 1))


def test_scale_comes_before_mean_and_mean_before_std(tmp_path: Path) -> None:
    pixels = picture(4, 6)
    mean, std = (0.5, 0.25, 0.125), (2.0, 4.0, 8.0)
    found = read(put(tmp_path, pixels), scale=0.5, mean=mean, std=std)
    expected = (pixels.astype(np.float64) * 0.5 - mean) / std
    assert np.array_equal(found[0], expected.astype(np.float32).transpose(2, 0, 1))


def test_one_mean_is_for_all_channels(tmp_path: Path) -> None:
    pixels = picture(4, 6)
    found = read(put(tmp_path, pixels), scale=1.0, mean=(127.5,), std=(127.5,))
    assert np.array_equal(found[0], ((pixels - 127.5) / 127.5).astype(np.float32).transpose(2, 0, 1))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_floating_point_inputs_are_rounded_once(tmp_path: Path, dtype: str) -> None:
    pixels = picture(4, 6)
    found = read(put(tmp_path, pixels), spec("N", 3, 4, 6, dtype=dtype))
    assert found.dtype == np.dtype(dtype)
    assert np.array_equal(found[0], (pixels * (1 / 255)).astype(dtype).transpose(2, 0, 1))


def test_a_uint8_model_gets_the_pixels_as_they_are(tmp_path: Path) -> None:
    pixels, model = picture(4, 6), spec("N", 4, 6, 3, dtype="uint8")
    folder = put(tmp_path, pixels)
    found = read(folder, model)
    assert found.dtype == np.uint8
    assert np.array_equal(found[0], pixels)
    for options in ({"preset": "yolo"}, {"mean": (1.0,)}, {"std": (2.0,)}, {"scale": 0.5}):
        assert "the model takes uint8" in refused(UsageError, folder, (model,), **options)
    assert np.array_equal(read(folder, model, preset="yolo", scale=1.0, resize="crop")[0], pixels)


def test_a_grey_model_gets_the_luminance(tmp_path: Path) -> None:
    pixels = picture(4, 6)
    found = read(put(tmp_path, pixels), spec("N", 1, 4, 6), scale=1.0)
    luminance = pixels.astype(np.float64) @ (0.299, 0.587, 0.114)  # ITU-R BT.601, which Pillow documents for mode L
    assert found.shape == (1, 1, 4, 6)
    assert np.abs(found[0, 0] - luminance).max() <= 0.51


def test_a_grey_image_is_as_it_is_for_a_grey_model(tmp_path: Path) -> None:
    grey = picture(4, 6, 1)
    assert np.array_equal(read(put(tmp_path, grey), spec("N", 4, 6, 1), scale=1.0)[0, ..., 0], grey)


def test_a_grey_image_has_three_equal_channels_for_a_colour_model(tmp_path: Path) -> None:
    grey = picture(4, 6, 1)
    assert np.array_equal(read(put(tmp_path, grey), scale=1.0)[0], np.stack([grey] * 3))


@pytest.mark.parametrize(
    ("wanted", "shape"),
    [
        (spec(None, None, None, None, channels=(1, 3)), (1, 3, 5, 7)),
        (spec(None, None, None, None, channels=(1, 1)), (1, 1, 5, 7)),
        (spec(None, None, None, None, channels=(3, 3)), (1, 5, 7, 3)),
        (spec("N", 3, "H", "W"), (1, 3, 5, 7)),
        (spec("N", "H", "W", 3), (1, 5, 7, 3)),
        (spec(None, 3, 5, 7), (1, 3, 5, 7)),
    ],
)
def test_the_layout_is_read_from_the_model(tmp_path: Path, wanted: InputSpec, shape: tuple[int, ...]) -> None:
    assert read(put(tmp_path, picture(5, 7)), wanted, size=(5, 7)).shape == shape


@pytest.mark.parametrize(
    "wanted",
    [
        spec("N", 4, 8, 8),
        spec("N", None, None, None),
        spec("N", 3),
        spec("N", 2, 8, 8, channels=(1, 2)),
        InputSpec("images", np.dtype("float32"), None),
    ],
)
def test_a_model_that_takes_no_images_is_told_so(tmp_path: Path, wanted: InputSpec) -> None:
    said = refused(DataError, put(tmp_path, picture(4, 6)), (wanted,), size=(8, 8))
    assert "does not tell where an image of 1 or 3 channels goes" in said


def test_images_feed_one_input_of_a_type_for_images(tmp_path: Path) -> None:
    folder = put(tmp_path, picture(4, 6))
    assert "one input, this one has 2" in refused(DataError, folder, (SMALL, SMALL))
    assert "takes int64" in refused(DataError, folder, (spec("N", 3, 4, 6, dtype="int64"),))


# Sizes


def test_the_size_is_the_models_then_the_callers_then_the_presets(tmp_path: Path) -> None:
    folder = put(tmp_path, picture(30, 40))
    assert read(folder, SMALL, preset="yolo").shape == (1, 3, 4, 6)
    assert read(folder, OPEN, preset="yolo", size=(8, 16)).shape == (1, 3, 8, 16)
    assert read(folder, OPEN, preset="yolo").shape == (1, 3, 640, 640)
    assert read(folder, OPEN, preset="imagenet").shape == (1, 3, 224, 224)
    assert read(folder, spec("N", 3, 20, None), preset="imagenet").shape == (1, 3, 20, 224)
    assert "give --image-size HxW, or a --preset" in refused(DataError, folder, (OPEN,))
    assert "leave out --image-size" in refused(UsageError, folder, (SMALL,), size=(6, 4))


def test_stretch_takes_the_whole_image(tmp_path: Path) -> None:
    pixels = picture(30, 50)
    expected = np.asarray(Image.fromarray(pixels).resize((6, 4), Image.Resampling.BILINEAR))
    assert np.array_equal(read(put(tmp_path, pixels), scale=1.0, resize="stretch")[0], expected.transpose(2, 0, 1))


def test_crop_takes_the_middle_and_keeps_the_ratio(tmp_path: Path) -> None:
    """Columns that hold their own number: of 8x24 pixels for 4x6, the middle half of the columns is left."""
    pixels = np.broadcast_to(np.arange(24, dtype=np.uint8)[None, :, None] * 10, (8, 24, 3))
    found = read(put(tmp_path, pixels), scale=1.0)[0, 0]
    expected = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((12, 4), Image.Resampling.BILINEAR))
    assert np.array_equal(found, expected[:, 3:9, 0])
    assert np.array_equal(read(put(tmp_path, picture(4, 6)), scale=1.0)[0], picture(4, 6).transpose(2, 0, 1))


@pytest.mark.parametrize(("height", "width"), [(427, 640), (640, 427), (256, 256), (100, 333), (224, 224)])
def test_the_preset_imagenet_is_the_evaluation_of_imagenet(tmp_path: Path, height: int, width: int) -> None:
    """The shorter side to 256, the middle 224x224, scaled and normalised; written out step by step."""
    pixels = picture(height, width)
    short = min(height, width)
    resized = Image.fromarray(pixels).resize(
        (round(width * 256 / short), round(height * 256 / short)), Image.Resampling.BILINEAR
    )
    left, top = round((resized.width - 224) / 2), round((resized.height - 224) / 2)
    middle = np.asarray(resized, dtype=np.float64)[top : top + 224, left : left + 224]
    expected = (middle / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    found = read(put(tmp_path, pixels), OPEN, preset="imagenet")
    assert np.abs(found[0] - expected.transpose(2, 0, 1)).max() < 1e-6


def test_the_preset_imagenet_keeps_its_ratio_at_another_size(tmp_path: Path) -> None:
    pixels = picture(100, 200)
    resized = np.asarray(Image.fromarray(pixels).resize((256, 128), Image.Resampling.BILINEAR))
    found = read(put(tmp_path, pixels), OPEN, preset="imagenet", size=(112, 112), mean=(0.0,), std=(1.0,), scale=1.0)
    assert np.array_equal(found[0], resized[8:120, 72:184].transpose(2, 0, 1))


def test_means_of_a_preset_follow_their_channels_into_bgr(tmp_path: Path) -> None:
    folder = put(tmp_path, picture(4, 6))
    rgb, bgr = read(folder, preset="imagenet"), read(folder, preset="imagenet", order="bgr")
    assert np.array_equal(bgr, rgb[:, ::-1])


def test_options_come_before_the_preset(tmp_path: Path) -> None:
    pixels = picture(4, 6)
    found = read(put(tmp_path, pixels), preset="imagenet", resize="stretch", mean=(0.0,), std=(1.0,), scale=1.0)
    assert np.array_equal(found[0], pixels.transpose(2, 0, 1))


def linear(pixels: Array, height: int, width: int) -> Array:
    """Linear interpolation between pixel centres, edges repeated: OpenCV's INTER_LINEAR before its rounding."""
    rows, columns = (
        np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        for new, old in ((height, pixels.shape[0]), (width, pixels.shape[1]))
    )
    top, left = rows.astype(int), columns.astype(int)
    bottom, right = (np.minimum(low + 1, size - 1) for low, size in ((top, pixels.shape[0]), (left, pixels.shape[1])))
    down, along = (rows - top)[:, None, None], (columns - left)[None, :, None]
    wide = pixels.astype(np.float64)
    upper = wide[top][:, left] * (1 - along) + wide[top][:, right] * along
    lower = wide[bottom][:, left] * (1 - along) + wide[bottom][:, right] * along
    return np.asarray(upper * (1 - down) + lower * down)


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (427, 640, (0, 10, 64, 43)),  # china.jpg's size: 42.7 rows, the odd one of the padding below
        (640, 427, (10, 0, 43, 64)),
        (64, 64, (0, 0, 64, 64)),
        (16, 32, (0, 16, 64, 32)),  # enlarged
        (1, 640, (0, 31, 64, 1)),
    ],
)
def test_a_letterbox_keeps_the_ratio_and_pads_with_grey_114(
    tmp_path: Path, height: int, width: int, box: tuple[int, int, int, int]
) -> None:
    pixels = picture(height, width)
    found = read(put(tmp_path, pixels), OPEN, preset="yolo", size=(64, 64), scale=1.0)[0].transpose(1, 2, 0)
    left, top, inner_width, inner_height = box
    inner = found[top : top + inner_height, left : left + inner_width]
    assert np.abs(inner - linear(pixels, inner_height, inner_width)).max() < 0.501  # rounded, and not down
    padding = np.ones(found.shape, dtype=bool)
    padding[top : top + inner_height, left : left + inner_width] = False
    assert np.all(found[padding] == 114)


def test_a_letterbox_in_grey_is_padded_with_114_too(tmp_path: Path) -> None:
    found = read(put(tmp_path, picture(2, 4)), spec("N", 1, 4, 4), preset="yolo")
    assert np.array_equal(found[0, 0, [0, 3]], np.full((2, 4), np.float32(114 / 255)))


def test_an_image_of_extreme_shape_keeps_one_pixel(tmp_path: Path) -> None:
    assert read(put(tmp_path, picture(1, 3000)), preset="yolo").shape == (1, 3, 4, 6)
    assert read(tmp_path, resize="crop").shape == (1, 3, 4, 6)


# Files


def test_images_come_recursively_and_by_name(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    order = ["a.png", "b/a.bmp", "b/c.PNG", "c.webp"]
    for number, name in enumerate(order):
        options = {"lossless": True} if name.endswith("webp") else {}
        put(tmp_path, np.full((4, 6, 3), 10 * number, np.uint8), name, **options)
    put(tmp_path, picture(4, 6), ".hidden.png")
    (tmp_path / "labels.txt").write_text("0 1 2 3")
    source = open_source(str(tmp_path), (SMALL,), image=RAW, batch_size=3)
    assert [batch["images"][:, 0, 0, 0].tolist() for batch in source] == [[0, 10, 20], [30]]
    assert source.describe() == f"4 images of {tmp_path.name}, crop to 4x6, RGB, scale 1 (batches of 3)"


def test_what_was_done_to_the_images_is_said(tmp_path: Path) -> None:
    put(tmp_path, picture(4, 6))
    put(tmp_path, picture(4, 6), "b.jpg")
    source = open_source(str(tmp_path), (OPEN,), samples=1, image=ImageOptions(preset="imagenet", order="bgr"))
    assert source.describe() == (
        f"1 of 2 images of {tmp_path.name}, crop to 224x224 (0.875 of the shorter side), BGR, scale 0.00392157, "
        "mean 0.406,0.456,0.485, std 0.225,0.224,0.229 (drawn with seed 0, batches of 8)"
    )


def test_one_image_is_a_source_of_one_sample(tmp_path: Path) -> None:
    put(tmp_path, picture(4, 6))
    assert open_source(str(tmp_path / "a.png"), (SMALL,)).samples == 1


def test_photographs_are_read_as_they_are(tmp_path: Path) -> None:
    """scikit-learn's two photographs: its own decoding, and this one."""
    photographs = load_sample_images()
    folder = Path(photographs.filenames[0]).parent
    source = open_source(str(folder), (spec("N", "H", "W", 3, dtype="uint8"),), image=ImageOptions(size=(427, 640)))
    (batch,) = source
    assert source.samples == 2
    names = [Path(name).name for name in photographs.filenames]
    assert np.array_equal(batch["images"][0], photographs.images[names.index("china.jpg")])
    assert np.array_equal(batch["images"][1], photographs.images[names.index("flower.jpg")])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_exif_says(tmp_path: Path, orientation: int) -> None:
    upright = Image.fromarray(picture(4, 6))
    exif = Image.Exif()
    exif[0x0112] = orientation
    # Stored so that turning it as EXIF says makes it upright; PNG, which loses nothing, carries EXIF too.
    stored = {
        1: upright,
        2: ImageOps.mirror(upright),
        3: upright.rotate(180),
        4: ImageOps.flip(upright),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    stored.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read(tmp_path, scale=1.0)[0], picture(4, 6).transpose(2, 0, 1))


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    pixels = picture(4, 6, 4)
    pixels[0, 0, 3], pixels[0, 1, 3] = 0, 255
    found = read(put(tmp_path, pixels), scale=1.0)[0].transpose(1, 2, 0)
    part = pixels[..., 3:] / 255
    assert np.abs(found - (pixels[..., :3] * part + 255 * (1 - part))).max() <= 1
    assert found[0, 0].tolist() == [255] * 3
    assert np.array_equal(found[0, 1], pixels[0, 1, :3])


def test_a_palette_is_looked_up_and_may_be_transparent(tmp_path: Path) -> None:
    indices = np.arange(24, dtype=np.uint8).reshape(4, 6) % 3
    image = Image.frombytes("P", (6, 4), indices.tobytes())
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "a.png")
    colours = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]])
    assert np.array_equal(read(tmp_path, scale=1.0)[0].transpose(1, 2, 0), colours[indices])
    image.save(tmp_path / "a.png", transparency=1)
    colours[1] = 255
    assert np.array_equal(read(tmp_path, scale=1.0)[0].transpose(1, 2, 0), colours[indices])


def test_16_bits_become_8_and_are_not_cut_off(tmp_path: Path) -> None:
    values = np.array([[0, 257, 65535, 60000, 128, 129]] * 4, dtype=np.uint16)
    found = read(put(tmp_path, values), spec("N", 1, 4, 6), scale=1.0)
    assert found[0, 0, 0].tolist() == [0, 1, 255, 233, 0, 1]
    assert read(tmp_path, SMALL, scale=1.0)[0, :, 0, 2].tolist() == [255] * 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_of_white_is_white(tmp_path: Path, mode: str) -> None:
    name = "a.jpg" if mode == "CMYK" else "a.png"
    Image.new("RGB", (6, 4), "white").convert(mode).save(tmp_path / name)
    for wanted in (SMALL, spec("N", 1, 4, 6)):
        assert np.all(read(tmp_path, wanted, scale=1.0) == 255)


# What cannot be read


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.webp"])
@pytest.mark.parametrize("how", ["cut", "empty", "text"])
def test_a_damaged_image_is_an_error_that_names_it(tmp_path: Path, name: str, how: str) -> None:
    put(tmp_path, picture(40, 60), "good.png")
    put(tmp_path, picture(40, 60), name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}[how])
    said = refused(DataError, tmp_path)
    assert said.startswith(f"{tmp_path / name}: the image cannot be read: it is damaged, or no image")


def test_a_decompression_bomb_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put(tmp_path, picture(40, 60))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "too many pixels" in refused(DataError, folder)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # Pillow warns here, and the image is read
    assert read(folder).shape == (1, 3, 4, 6)


def test_without_pillow_the_command_that_installs_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put(tmp_path, picture(4, 6))
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert refused(MissingPackageError, folder).endswith('pip install "bnfold[images]"')


# Options


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "resnet"},
        {"resize": "pad"},
        {"order": "rbg"},
        {"size": (0, 4)},
        {"size": (4,)},
        {"std": (1.0, 0.0, 1.0)},
        {"std": (-1.0,)},
        {"scale": 0.0},
        {"scale": float("nan")},
        {"mean": (float("inf"),)},
    ],
)
def test_options_that_mean_nothing_are_refused(options: Any) -> None:
    with pytest.raises(UsageError):
        ImageOptions(**options)


def test_means_must_be_one_for_each_channel(tmp_path: Path) -> None:
    folder = put(tmp_path, picture(4, 6))
    assert "mean has 2 numbers, the model takes 3 channels" in refused(UsageError, folder, mean=(0.0, 0.0))
    assert "std has 3 numbers, the model takes 1 channel;" in refused(
        UsageError, folder, (spec("N", 1, 4, 6),), std=(1.0, 1.0, 1.0)
    )
    assert "mean has 3 numbers" in refused(UsageError, folder, (spec("N", 1, 4, 6),), preset="imagenet")


def test_options_of_images_mean_nothing_for_other_data(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 4, 6), np.float32))
    for text in (tmp_path / "x.npy", "somewhere:load"):
        assert "leave out --preset and --image-..." in refused(UsageError, text, preset="yolo")
    assert read(tmp_path / "x.npy").shape == (2, 3, 4, 6)
