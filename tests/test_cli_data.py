"""`--verify-data` and the options of data: what they mean, that the check really runs on it, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from cli_run import MODEL, Run, assert_one_sentence, names, run, shell, written
from click.testing import CliRunner
from PIL import Image

import bnfold
from bnfold.cli_data import data_options
from bnfold.data import read_inputs, synthesise
from bnfold.data_images import ImageOptions
from bnfold.data_sources import DataRequest
from bnfold.errors import DataError, InternalError, ProviderError, UsageError
from bnfold.feeds import MOST_BATCHES, feeds_again
from bnfold.oracle import settle
from bnfold.quickcheck import quick_check

__all__ = ["run"]

#: Images of 3 channels of any size.
COLOUR = """<ir_version: 8, opset_import: ["" : 17]>
colour (float[n, 3, h, w] x) => (float[n, 3, h, w] y)
<float[3] gamma = {1.5, -0.5, 1.0}, float[3] beta = {0.5, 0.25, 0.0}, float[3] mean = {0.5, 1.0, 0.0},
 float[3] var = {2.0, 1.0, 1.0}, float[3, 1, 1, 1] weight = {1.0, 2.0, -1.0}>
{
  z = Conv <group = 3> (x, weight)
  [bn] y = BatchNormalization (z, gamma, beta, mean, var)
}"""

#: Equal up to 50; made-up inputs are below 6, so that only larger data can tell them apart.
CLIPPED, OPEN = (
    f"""<ir_version: 8, opset_import: ["" : 17]>
clipped (float[n, 4] x) => (float[n, 4] y)
<float low = {{-1e6}}, float high = {{{high}}}, float[4, 4] weight = {{
 1.0, 0.5, 0.0, 0.25,  0.0, 1.0, 0.5, 0.0,  0.5, 0.0, 1.0, 0.0,  0.25, 0.5, 0.0, 1.0}}>
{{
  z = MatMul (x, weight)
  y = Clip (z, low, high)
}}"""
    for high in ("50.0", "1e6")
)


def pair(folder: Path) -> tuple[Path, Path]:
    return written(folder, OPEN, "open.onnx"), written(folder, CLIPPED, "clipped.onnx")


def large(folder: Path, count: int = 20, name: str = "large.npy") -> Path:
    np.save(folder / name, np.linspace(60, 90, 4 * count, dtype=np.float32).reshape(count, 4))
    return folder / name


# The check runs on the data


def test_a_difference_that_only_the_data_shows_is_found(run: Run, tmp_path: Path) -> None:
    before, after = pair(tmp_path)
    assert run("verify", before, after).code == 0
    found = run("verify", before, after, "--verify-data", large(tmp_path))
    assert found.code == 1
    assert found.out.endswith("open.onnx: the first tensor that differs on cpu is y\n")


def test_data_that_both_models_treat_alike_passes_and_is_told_of(run: Run, tmp_path: Path) -> None:
    before, after = pair(tmp_path)
    np.save(tmp_path / "small.npy", np.ones((20, 4), np.float32))
    found = run("verify", before, after, "--verify-data", tmp_path / "small.npy")
    assert found.code == 0
    told = "The last 3 runs were on the caller's data: the first 3 batches of 20 samples of small.npy (batches of 8)."
    assert told in " ".join(found.err.split())


def test_the_runs_on_data_stand_in_the_report(run: Run, tmp_path: Path) -> None:
    before, after = pair(tmp_path)
    np.save(tmp_path / "small.npy", np.ones((7, 4), np.float32))
    found = run("verify", before, after, "--verify-data", tmp_path / "small.npy", "--batch-size", 4, "--json")
    (check,) = json.loads(found.out)["verification"]["end_to_end"]
    assert [entry["x"] for entry in check["runs"]] == [[2, 4], [3, 4], [4, 4], [3, 4]]
    assert str(tmp_path) not in found.out


def test_a_fold_is_checked_on_data_too(run: Run, tmp_path: Path) -> None:
    shape = tuple(size if isinstance(size, int) else 5 for size in read_inputs(onnx.load(MODEL))[0].dims or ())
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((5, *shape[1:]), dtype=np.float32))
    found = run(MODEL, "-o", tmp_path / "out.onnx", "--verify-data", tmp_path / "x.npy")
    assert found.code == 0
    assert "the first batch of 5 samples of x.npy" in " ".join(found.err.split())


def test_images_are_data(run: Run, tmp_path: Path) -> None:
    model = written(tmp_path, COLOUR)
    (tmp_path / "images").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 30, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    arguments = (model, "-o", tmp_path / "out.onnx", "--verify-data", tmp_path / "images", "--json")
    found = run(
        *arguments, "--preset", "imagenet", "--image-size", "16x24", "--batch-size", "2", "--image-order", "bgr"
    )
    assert found.code == 0
    (check,) = json.loads(found.out)["verification"]["end_to_end"]
    assert [entry["x"] for entry in check["runs"][-2:]] == [[2, 3, 16, 24], [1, 3, 16, 24]]
    assert any("crop to 16x24 (0.875 of the shorter side), BGR" in note for note in check["notes"])
    assert_one_sentence(run(*arguments).err, "give --image-size HxW, or a --preset")


def test_a_function_in_the_current_directory_is_data(tmp_path: Path) -> None:
    pair(tmp_path)
    text = "import numpy as np\ndef load():\n    yield {'x': np.full((3, 4), 70.0)}\n"
    (tmp_path / "my_batches.py").write_text(text)
    arguments = ("verify", "open.onnx", "clipped.onnx", "--verify-data", "my_batches:load")
    done = shell(*arguments, cwd=tmp_path, capture_output=True)
    assert done.returncode == 1
    assert "differs from open.onnx" in done.stdout
    assert "the first batch of my_batches:load" in " ".join(done.stderr.split())


# The library


def test_the_library_takes_data_in_every_form(tmp_path: Path) -> None:
    before, after = pair(tmp_path)
    values = np.full((3, 4), 70, np.float32)
    forms: list[Any] = [str(large(tmp_path)), DataRequest(str(large(tmp_path))), [{"x": values}], [values, values]]
    forms.append(bnfold.DataRequest(str(large(tmp_path))).open(read_inputs(onnx.load(before))))
    for data in forms:
        assert bnfold.verify(before, after, data=data).failed
        assert bnfold.verify(before, before, data=data).passed


def test_at_most_three_batches_are_compared(tmp_path: Path) -> None:
    before, _ = pair(tmp_path)
    (check,) = bnfold.verify(before, before, data=[np.ones((i + 1, 4), np.float32) for i in range(9)]).quick
    assert check.given == MOST_BATCHES == 3
    assert [shapes["x"] for shapes in check.runs[-3:]] == [(1, 4), (2, 4), (3, 4)]
    assert bnfold.verify(before, before).quick[0].given == 0


def test_data_without_a_check_is_a_contradiction(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="data is for the check, which is left out"):
        bnfold.fold(MODEL, verify=False, data="x.npy")
    done = run(MODEL, "-o", tmp_path / "o.onnx", "--no-verify", "--verify-data", "x.npy")
    assert done.code == 2
    assert_one_sentence(done.err, "data is for the check, which is left out; leave out one of the two")
    assert names(tmp_path) == []


def test_data_that_the_model_refuses_to_run_on_is_an_error_and_no_pass(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    halves (float[n, m] x) => (float[n, k, 2] y) <int64[3] shape = {0, -1, 2}> { y = Reshape (x, shape) }"""
    model = written(tmp_path, text)
    assert bnfold.verify(model, model, data=[np.ones((2, 4), np.float32)]).passed
    with pytest.raises(ProviderError, match="cannot run"):
        bnfold.verify(model, model, data=[np.ones((2, 3), np.float32)])


def test_data_that_does_not_fit_is_found_before_the_work(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 5, 5, 5), np.float32))
    told: list[str] = []
    with pytest.raises(DataError, match="the model takes"):
        bnfold.fold(MODEL, data=str(tmp_path / "x.npy"), progress=told.append)
    assert told == []


def test_the_oracle_judges_a_difference_on_the_data_by_the_data(tmp_path: Path) -> None:
    """A difference in float32 that the data alone makes: the oracle must be given the data, not made-up numbers."""
    before, after = (onnx.load(path) for path in pair(tmp_path))
    data = DataRequest(str(large(tmp_path))).open(read_inputs(before))
    check = quick_check(before, after, data=data)
    assert check.failed
    settled = settle(check, before, after, seed=0, data=data)
    assert settled.failed
    assert settled.notes[-1] == "0 of 1 differences are rounding, by the float64 oracle."
    small = DataRequest(str(large(tmp_path))).open(read_inputs(before))
    rounding = settle(quick_check(before, before, data=small), before, before, seed=0, data=small)
    assert rounding.passed


def test_the_inputs_of_the_runs_can_be_had_again(tmp_path: Path) -> None:
    inputs = read_inputs(onnx.load(pair(tmp_path)[0]))
    data = DataRequest(str(large(tmp_path))).open(inputs)
    runs: tuple[Mapping[str, tuple[int, ...]], ...] = ({"x": (2, 4)}, {"x": (3, 4)}, {"x": (8, 4)}, {"x": (8, 4)})
    again = list(feeds_again(inputs, runs, seed=5, given=2, data=data))
    for i in range(2):
        expected = synthesise(inputs, seed=5 + 2 * i, batch=1, overrides=runs[i])
        assert np.array_equal(again[i]["x"], expected["x"])
    assert [feeds["x"].tobytes() for feeds in again[2:]] == [batch["x"].tobytes() for batch in list(data)[:2]]
    with pytest.raises(InternalError):
        list(feeds_again(inputs, runs, seed=5, given=2, data=None))


# The options


Parse = Callable[..., Any]


@pytest.fixture
def parse() -> Parse:
    """What a command gets for `data`, from its arguments."""

    @click.command()
    @data_options({"data": ("--data", "Data")}, seed=True)
    def command(*, data: DataRequest | None) -> None:
        seen.append(data)

    seen: list[DataRequest | None] = []

    def call(*arguments: str) -> DataRequest | None:
        result = CliRunner().invoke(command, arguments)
        if result.exit_code:
            raise result.exception if result.exit_code == 1 and result.exception else ValueError(result.output)
        return seen.pop()

    return call


def test_every_option_arrives(parse: Parse) -> None:
    assert parse() is None
    assert parse("--data", "d") == DataRequest("d")
    picked = parse("--data", "d", "--batch-size", "4", "--samples", "9", "--seed", "7")
    assert picked == DataRequest("d", batch_size=4, samples=9, seed=7)
    images = parse(
        *("--data", "d", "--preset", "imagenet", "--image-size", "480x640", "--image-resize", "stretch"),
        *("--image-mean", "0.5,1/4,0", "--image-std", "2", "--image-scale", "1/255", "--image-order", "bgr"),
    )
    assert images.image == ImageOptions(
        "imagenet", (480, 640), "stretch", mean=(0.5, 0.25, 0.0), std=(2.0,), scale=1 / 255, order="bgr"
    )
    assert parse("--data", "d", "--image-size", "32").image == ImageOptions(size=(32, 32))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--image-size", "0x4"), "is no size"),
        (("--image-size", "4x4x4"), "is no size"),
        (("--image-size", "axb"), "is no size"),
        (("--image-mean", "a,b,c"), "is no number"),
        (("--image-mean", "1,,2"), "is no number"),
        (("--image-scale", "1/0"), "is no number"),
        (("--image-scale", "inf"), "is not finite"),
        (("--image-order", "gbr"), "is not one of"),
        (("--image-resize", "fit"), "is not one of"),
        (("--preset", "vgg"), "is not one of"),
        (("--batch-size", "0"), "is not in the range"),
        (("--samples", "-1"), "is not in the range"),
        (("--seed", "-1"), "is not in the range"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(parse: Parse, arguments: tuple[str, ...], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        parse("--data", "d", *arguments)


@pytest.mark.parametrize(
    "option",
    [("--batch-size", "2"), ("--samples", "2"), ("--preset", "yolo"), ("--image-size", "4x4"), ("--image-mean", "0")],
)
def test_options_of_data_without_data_are_a_mistake(run: Run, parse: Parse, option: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match=f"{option[0]} says how to read data, and there is none; give --data as well"):
        parse(*option)
    done = run("verify", MODEL, MODEL, *option)
    assert done.code == 2
    assert_one_sentence(done.err, "give --verify-data as well")


@pytest.fixture
def bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a model and data that is of no use."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npy").write_text("hello")
    np.save("wrong.npy", np.zeros((3, 5), np.float32))
    return written(tmp_path, OPEN)


@pytest.mark.parametrize(
    ("data", "code", "expected"),
    [
        ("gone.npy", 2, "gone.npy: there is no such file or folder"),
        ("gone:load", 2, "gone:load: there is no module gone"),
        ("text.npy", 3, "text.npy: the file cannot be read: it is damaged, or no NumPy file"),
        ("wrong.npy", 3, "wrong.npy, sample 0: the shape for the input 'x' is 3x5, the model takes ?x4"),
        ("empty", 3, "empty: data is .npy, .npz or an image"),
    ],
)
def test_bad_data_is_one_sentence_and_writes_nothing(run: Run, bad: Path, data: str, code: int, expected: str) -> None:
    before = names(bad.parent)
    for arguments in ((bad, "-o", "out.onnx"), ("verify", bad, bad)):
        done = run(*arguments, "--verify-data", data)
        assert done.code == code
        assert_one_sentence(done.err, expected)
    assert names(bad.parent) == before
