"""`bnfold recalibrate` on the command line: the shipped digits, files, sentences, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_run import MODEL, ROOT, Run, assert_one_sentence, names, written

from bnfold.runtime import open_session

Array = np.ndarray[Any, Any]

#: The digits with another brightness and contrast.
SCALE, OFFSET = np.float32(0.4), np.float32(0.3)

TWO = """<ir_version: 8, opset_import: ["" : 17]>
two (float[n, 2, 4] x, float[n, 2] z) => (float[n, 2, 4] y, float[n, 2] o)
<float[2] g = {1.5, -0.5}, float[2] b = {0.5, 0.25}, float[2] m = {0.5, 1.0}, float[2] v = {2.0, 1.0},
 float[2] p = {0.5, 1.0}, float[2] q = {2.0, 1.0}>
{
  [first] y = BatchNormalization (x, g, b, m, v)
  [second] o = BatchNormalization (z, g, b, p, q)
}"""

FIXED = TWO.replace("two (float[n, 2, 4] x, float[n, 2] z)", "two (float[8, 2, 4] x, float[8, 2] z)")


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    """Images of another camera, without labels; the model's file has seen none like them."""
    path = tmp_path / "moved.npy"
    np.save(path, SCALE * held_out()[0] + OFFSET)
    return path


def held_out() -> tuple[Array, Array]:
    with np.load(ROOT / "models" / "digits-heldout.npz") as archive:
        return archive["images"][:, None].astype(np.float32) / np.float32(16), archive["labels"]


def accuracy(model: Path, *, is_moved: bool) -> float:
    """The share of the held-out digits that the model gets right, in percent."""
    images, labels = held_out()
    feed = SCALE * images + OFFSET if is_moved else images
    logits = open_session(onnx.load(model)).run(["logits"], {"images": feed})["logits"]
    return 100 * float((logits.argmax(axis=1) == labels).mean())


def test_another_camera_costs_more_than_30_points_and_recalibration_brings_them_back(
    run: Run, moved: Path, tmp_path: Path
) -> None:
    output, fused = tmp_path / "recalibrated.onnx", tmp_path / "fused.onnx"
    before = accuracy(MODEL, is_moved=False)
    assert before - accuracy(MODEL, is_moved=True) > 30
    outcome = run("recalibrate", MODEL, "--data", moved, "-o", output)
    assert outcome.code == 0
    assert outcome.out.startswith(f"{output}: 11 of 11 BatchNorms recalibrated on 360 samples, drift up to 0.41 ")
    assert abs(accuracy(output, is_moved=True) - before) <= 1
    assert run(output, "-o", fused, "--require-all", "--quiet").out.endswith(
        "11 of 11 BatchNorms folded, verified on CPUExecutionProvider\n"
    )
    assert accuracy(fused, is_moved=True) == accuracy(output, is_moved=True)


def test_forty_samples_are_nearly_enough(run: Run, moved: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    assert run("recalibrate", MODEL, "--data", moved, "-o", output, "--samples", "40", "--seed", "1").code == 0
    assert accuracy(output, is_moved=True) > 95


def test_the_table_lists_them_by_drift_and_fits_80_columns(run: Run, moved: Path, tmp_path: Path) -> None:
    shown = run("recalibrate", MODEL, "--data", moved, "-o", tmp_path / "out.onnx", "--keep", "stage2").err
    assert all(len(line) <= 80 for line in shown.splitlines())
    lines = shown.splitlines()
    assert lines[0] == "digits-darknet.onnx"
    assert lines[1].split() == ["BatchNorm", "ch.", "values", "drift", "rms", "variance"]
    assert lines[3].split()[:4] == ["/stem/bn/BatchNormalization", "16", "12960", "0.41"]
    assert "left 5 the caller asked to keep it: /stage2/down/bn/BatchNormalization, " in " ".join(shown.split())
    assert " and 2 more" in " ".join(shown.split())


def test_the_report_is_json_on_request_and_the_same_each_time(run: Run, moved: Path, tmp_path: Path) -> None:
    call = ("recalibrate", MODEL, "--data", moved, "-o", tmp_path / "out.onnx", "--json")
    outcome = run(*call)
    report = json.loads(outcome.out)
    assert (outcome.err, outcome.out) == ("", run(*call).out)
    assert list(report) == [
        *("schema_version", "model", "method", "momentum", "variance", "samples", "batches"),
        *("recalibrated", "left", "footprint", "notes"),
    ]
    assert (report["schema_version"], report["model"], report["method"]) == (1, "digits-darknet.onnx", "sequential")
    assert (report["samples"], report["batches"], report["momentum"]) == (360, 45, None)
    drifts = [entry["drift"]["max"] for entry in report["recalibrated"]]
    assert drifts == sorted(drifts, reverse=True)
    first = report["recalibrated"][0]
    assert (first["name"], first["channels"], first["dead"]) == ("/stem/bn/BatchNormalization", 16, [])
    assert len(first["old"]["mean"]) == len(first["new"]["variance"]) == 16
    assert str(tmp_path) not in outcome.out


def test_an_infinite_drift_is_written_by_name(run: Run, tmp_path: Path) -> None:
    model = written(tmp_path, TWO.replace("v = {2.0, 1.0}", "v = {-1.0, 1.0}"))
    outcome = run("recalibrate", model, "--data", two_inputs(tmp_path), "-o", tmp_path / "out.onnx", "--json")
    first = json.loads(outcome.out)["recalibrated"][0]
    assert (first["name"], first["drift"]["max"], first["variance_ratio"]["max"]) == ("first", "Infinity", "Infinity")


def two_inputs(folder: Path, count: int = 40) -> Path:
    generator = np.random.default_rng(0)
    path = folder / "data.npz"
    x, z = generator.standard_normal((count, 2, 4)), generator.standard_normal((count, 2))
    np.savez(path, x=x.astype(np.float32), z=z.astype(np.float32))
    return path


def test_several_inputs_come_from_one_archive(run: Run, tmp_path: Path) -> None:
    data = two_inputs(tmp_path)
    outcome = run(
        "recalibrate", written(tmp_path, TWO), "--data", data, "-o", tmp_path / "out.onnx", "--batch-size", "7"
    )
    assert outcome.code == 0
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    with np.load(data) as archive:
        np.testing.assert_allclose(stored["m"], archive["x"].mean(axis=(0, 2)), atol=1e-6)
        np.testing.assert_allclose(stored["q"], archive["z"].var(axis=0), rtol=1e-5)


def test_a_fixed_batch_is_kept_to(run: Run, tmp_path: Path) -> None:
    model, output = written(tmp_path, FIXED), tmp_path / "out.onnx"
    report = json.loads(run("recalibrate", model, "--data", two_inputs(tmp_path), "-o", output, "--json").out)
    assert (report["samples"], report["batches"]) == (40, 5)
    outcome = run("recalibrate", model, "--data", two_inputs(tmp_path, 41), "-o", tmp_path / "other.onnx")
    assert outcome.code == 3
    assert_one_sentence(outcome.err, "8")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    {
        "no data": (["--data", "gone.npy"], 2, "gone.npy: there is no such file or folder"),
        "other data": (["--data", "model.onnx"], 3, "model.onnx: data is .npy, .npz or an image"),
        "broken data": (["--data", "broken.npz"], 3, "broken.npz"),
        "wrong names": (["--data", "names.npz"], 3, "other"),
        "too few": (["--data", "few.npz"], 3, "first: only 12 values in each channel reach this BatchNorm"),
        "no size": (["--data", "data.npz", "--memory", "much"], 2, "'much' is no size"),
        "no momentum": (["--data", "data.npz", "--momentum", "0"], 2, "0<x<=1"),
        "data missing": ([], 2, "there is no data to compute statistics from; give --data"),
    }.values(),
)
def test_a_fault_is_one_sentence_and_nothing_is_written(  # noqa: PLR0917
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    written(tmp_path, TWO)
    two_inputs(tmp_path, 3).rename(tmp_path / "few.npz")
    two_inputs(tmp_path)
    np.savez(tmp_path / "names.npz", other=np.zeros((40, 2), np.float32))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    before = names(tmp_path)
    outcome = run("recalibrate", "model.onnx", "-o", "out.onnx", *arguments)
    assert outcome.code == code
    assert_one_sentence(outcome.err, message)
    assert names(tmp_path) == before


def test_the_input_and_the_data_are_never_overwritten(run: Run, tmp_path: Path) -> None:
    model, data = written(tmp_path, TWO), two_inputs(tmp_path)
    for output in (model, data):
        before = output.read_bytes()
        outcome = run("recalibrate", model, "--data", data, "-o", output)
        assert outcome.code == 2
        assert_one_sentence(outcome.err, "bnfold never overwrites its input")
        assert output.read_bytes() == before


def test_an_interruption_leaves_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = written(tmp_path, TWO), two_inputs(tmp_path)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bnfold.frontends.onnx_segments.OnnxSegment.reduce", interrupted)
    outcome = run("recalibrate", model, "--data", data, "-o", tmp_path / "out.onnx", "--memory", "0")
    assert outcome.code == 130
    assert names(tmp_path) == ["data.npz", "model.onnx"]


def test_external_data_stay_beside_the_model(run: Run, tmp_path: Path, moved: Path) -> None:
    folder = tmp_path / "external"
    folder.mkdir()
    onnx.save(onnx.load(MODEL), folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    before = (folder / "m.data").read_bytes()
    assert run("recalibrate", folder / "m.onnx", "--data", moved, "-o", folder / "out.onnx", "--quiet").code == 0
    assert (folder / "m.data").read_bytes() == before
    assert accuracy(folder / "out.onnx", is_moved=True) > 98
