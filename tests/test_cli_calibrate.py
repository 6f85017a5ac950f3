"""`bnfold MODEL --calibrate DATA -o OUTPUT`: recalibrated, folded, verified, in one call with one report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_run import MODEL, ROOT, Run, assert_one_sentence, names, written

import bnfold
from bnfold.frontends.onnx_skeleton import fingerprint
from bnfold.rounding import round_once

#: The digits with another brightness and contrast.
SCALE, OFFSET = np.float32(0.4), np.float32(0.3)

STUCK_AND_FREE = """<ir_version: 8, opset_import: ["" : 17]>
net (float[n, 2, 4, 4] x) => (float[n, 2, 4, 4] y)
<float[2, 2, 1, 1] w = {1.0, 0.5, -0.5, 1.0}, float[2] g = {1.5, -0.5}, float[2] b = {0.5, 0.25},
 float[2] m = {0.5, 1.0}, float[2] v = {2.0, 1.0}, float[2] p = {0.5, 1.0}, float[2] q = {2.0, 1.0}>
{
  [stuck] z = BatchNormalization (x, g, b, m, v)
  r = Sigmoid (z)
  c = Conv (r, w)
  [free] y = BatchNormalization (c, g, b, p, q)
}"""


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    path = tmp_path / "moved.npy"
    with np.load(ROOT / "models" / "digits-heldout.npz") as archive:
        np.save(path, SCALE * archive["images"][:, None].astype(np.float32) / 16 + OFFSET)
    return path


def samples(folder: Path, count: int = 8) -> Path:
    np.save(folder / "x.npy", 3 + np.random.default_rng(0).standard_normal((count, 2, 4, 4)).astype(np.float32))
    return folder / "x.npy"


def without_metadata(path: Path) -> onnx.ModelProto:
    model = onnx.load(path)
    model.ClearField("metadata_props")
    return model


def test_one_call_gives_what_the_two_give(run: Run, moved: Path, tmp_path: Path) -> None:
    one, between, two = (tmp_path / name for name in ("one.onnx", "between.onnx", "two.onnx"))
    how = ("--samples", "40", "--seed", "3", "--batch-size", "5", "--variance", "bessel", "--method", "batch")
    done = run(MODEL, "--calibrate", moved, "-o", one, *how)
    assert done.code == 0
    assert done.out.startswith(f"{one}: 11 of 11 BatchNorms recalibrated on 40 samples, drift up to ")
    assert done.out.endswith(" standard deviations; 11 of 11 BatchNorms folded, verified on CPUExecutionProvider\n")
    assert run("recalibrate", MODEL, "--data", moved, "-o", between, *how).code == 0
    assert run(between, "-o", two).code == 0
    assert without_metadata(one).graph == without_metadata(two).graph
    keys = [entry.key for entry in onnx.load(one).metadata_props]
    assert keys == [entry.key for entry in onnx.load(two).metadata_props]
    assert "bnfold.recalibrated" in keys


def test_the_result_is_compared_with_the_recalibrated_model_and_not_with_the_given_one(
    run: Run, moved: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.onnx"
    assert run(MODEL, "--calibrate", moved, "-o", output, "--verify-data", moved).code == 0
    assert run("verify", MODEL, output, "--verify-data", moved).code == 1, "the statistics should have moved"


def test_the_terminal_shows_both_parts_under_one_name_in_80_columns(run: Run, moved: Path, tmp_path: Path) -> None:
    shown = run(MODEL, "--calibrate", moved, "-o", tmp_path / "out.onnx").err
    lines = shown.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[0] == "digits-darknet.onnx"
    assert shown.count("digits-darknet.onnx") == 1
    assert lines[1].split() == ["BatchNorm", "ch.", "values", "drift", "rms", "variance"]
    assert "  BatchNorms  11 folded into producers" in shown


def test_the_json_has_both_parts_each_as_its_own_command_gives_it(run: Run, moved: Path, tmp_path: Path) -> None:
    done = run(MODEL, "--calibrate", moved, "-o", tmp_path / "one.onnx", "--json")
    again = run("recalibrate", MODEL, "--data", moved, "-o", tmp_path / "between.onnx", "--json")
    report = json.loads(done.out)
    assert report.pop("recalibration") == json.loads(again.out)
    fold = json.loads(run(tmp_path / "between.onnx", "-o", tmp_path / "two.onnx", "--json").out)
    assert fold.pop("recalibration") is None
    assert report["before"].pop("file") == (Path(MODEL).stat().st_size)
    assert fold["before"].pop("file") == (tmp_path / "between.onnx").stat().st_size
    assert report == fold | {"model": "digits-darknet.onnx"}
    assert done.err == ""


def test_what_the_names_exclude_is_neither_recalibrated_nor_folded(run: Run, tmp_path: Path) -> None:
    model, output = written(tmp_path, STUCK_AND_FREE), tmp_path / "out.onnx"
    done = run(model, "--calibrate", samples(tmp_path), "-o", output, "--keep", "free", "--json")
    report = json.loads(done.out)
    assert [entry["name"] for entry in report["recalibration"]["recalibrated"]] == ["stuck"]
    assert report["summary"]["folded"] == 0
    stored = {t.name: onnx.numpy_helper.to_array(t).tolist() for t in onnx.load(output).graph.initializer}
    assert (stored["p"], stored["q"]) == ([0.5, 1.0], [2.0, 1.0])
    assert stored["m"] != [0.5, 1.0]


def test_the_input_stays_as_it_is(run: Run, tmp_path: Path) -> None:
    model = written(tmp_path, STUCK_AND_FREE)
    before = model.read_bytes()
    assert run(model, "--calibrate", samples(tmp_path), "-o", tmp_path / "out.onnx").code == 0
    assert model.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    {
        "a method without data": (["--method", "ema"], 2, "--method says how to recalibrate, and there is no data"),
        "its default too": (["--memory", "1GiB"], 2, "--memory says how to recalibrate"),
        "forced without data": (["--force"], 2, "give --calibrate as well"),
        "samples without data": (["--samples", "3"], 2, "give --calibrate or --verify-data as well"),
        "a momentum of no average": (["--calibrate", "x.npy", "--momentum", "0.1"], 2, "give --method ema"),
        "a fold that must be whole": (["--calibrate", "x.npy", "--require-all"], 1, "1 of 2 BatchNorms would be kept"),
        "no data there": (["--calibrate", "gone.npy"], 2, "gone.npy: there is no such file"),
        "too few": (["--calibrate", "x.npy", "--samples", "1"], 3, "stuck: only 16 values in each channel"),
        "data to check on that is not there": (
            ["--calibrate", "x.npy", "--verify-data", "gone.npy"],
            2,
            "gone.npy: there is no such file",
        ),
        "data to check on without a check": (
            ["--calibrate", "x.npy", "--verify-data", "x.npy", "--no-verify"],
            2,
            "data is for the check, which is left out",
        ),
        "the data as output": (["--calibrate", "x.npy", "-o", "x.npy"], 2, "bnfold never overwrites its input"),
    }.values(),
)
def test_a_fault_is_one_sentence_and_nothing_is_written(  # noqa: PLR0917
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, STUCK_AND_FREE)
    data = samples(tmp_path).read_bytes()
    output = [] if "-o" in arguments else ["-o", "out.onnx"]
    done = run("model.onnx", *output, "--quiet", *arguments)
    assert done.code == code
    assert_one_sentence(done.err, message)
    assert names(tmp_path) == ["model.onnx", "x.npy"]
    assert (tmp_path / "x.npy").read_bytes() == data


def test_samples_are_of_the_calibration_where_both_are_given(run: Run, tmp_path: Path) -> None:
    model, few = written(tmp_path, STUCK_AND_FREE), tmp_path / "few.npy"
    np.save(few, np.ones((2, 2, 4, 4), np.float32))
    both = ("--calibrate", samples(tmp_path), "--verify-data", few, "--samples", "5", "--json")
    done = run(model, "-o", tmp_path / "out.onnx", *both)
    assert json.loads(done.out)["recalibration"]["samples"] == 5
    assert "the first batch of 2 samples of few.npy" in " ".join(done.out.split())


def test_a_fold_that_fails_its_check_shows_what_was_recalibrated_and_writes_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bnfold.frontends.onnx_editor.round_once", lambda array, dtype: round_once(1.01 * array, dtype))
    model, data = written(tmp_path, STUCK_AND_FREE), samples(tmp_path)
    done = run(model, "--calibrate", data, "-o", tmp_path / "out.onnx", "--json")
    assert done.code == 1
    assert json.loads(done.out)["recalibration"]["samples"] == 8
    assert_one_sentence(done.err, "model.onnx: the folded model differs")
    assert names(tmp_path) == ["model.onnx", "x.npy"]


def test_from_python_data_will_do_or_a_calibration_that_says_how(tmp_path: Path) -> None:
    model, data = written(tmp_path, STUCK_AND_FREE), samples(tmp_path)
    plain = bnfold.fold(model, calibrate=str(data))
    batches = bnfold.fold(model, calibrate=[np.load(data)])
    assert (plain.model.metadata_props["bnfold.recalibrated"]) == batches.model.metadata_props["bnfold.recalibrated"]
    wish = bnfold.Calibration(str(data), method="ema", momentum=0.5, bessel=True, memory=0, force=True)
    report = bnfold.fold(model, calibrate=wish, verify=False).report.recalibration
    assert report is not None
    assert (
        report.settings
        == bnfold.recalibrate(model, str(data), method="ema", momentum=0.5, bessel=True, force=True).report.settings
    )
    assert report.model == "model.onnx"
    assert bnfold.fold(model, verify=False).report.recalibration is None


def test_what_shares_its_statistics_can_be_separated_from_the_command_line(run: Run, tmp_path: Path) -> None:
    text = STUCK_AND_FREE.replace("(c, g, b, p, q)", "(c, g, b, m, v)")
    model, data, output = written(tmp_path, text), samples(tmp_path), tmp_path / "out.onnx"
    kept = run(model, "--calibrate", data, "-o", output)
    assert "0 of 2 BatchNorms recalibrated;" in kept.out
    assert "--unshare dependent gives each its own" in " ".join(kept.err.split())
    done = run(model, "--calibrate", data, "-o", output, "--unshare", "dependent")
    assert "2 of 2 BatchNorms recalibrated on 8 samples" in done.out
    assert "have some of their own now: stuck, free" in " ".join(done.err.split())


def test_the_manifest_leads_back_to_the_recalibrated_model(run: Run, tmp_path: Path) -> None:
    model, data = written(tmp_path, STUCK_AND_FREE), samples(tmp_path)
    folded, restored, recalibrated = (tmp_path / name for name in ("f.onnx", "r.onnx", "c.onnx"))
    assert run(model, "--calibrate", data, "-o", folded, "--manifest", "embed").code == 0
    assert run("unfold", folded, "-o", restored).code == 0
    assert run("recalibrate", model, "--data", data, "-o", recalibrated).code == 0
    assert fingerprint(bnfold.load(restored)) == fingerprint(bnfold.load(recalibrated))


@pytest.mark.parametrize("suffix", ["html", "md", "json"])
def test_a_report_file_holds_both_parts(run: Run, tmp_path: Path, suffix: str) -> None:
    model, data, page = written(tmp_path, STUCK_AND_FREE), samples(tmp_path), tmp_path / f"report.{suffix}"
    done = run(model, "--calibrate", data, "-o", tmp_path / "out.onnx", "--report", page)
    assert done.code == 0, done.err
    text = page.read_text(encoding="utf-8")
    parts = (
        ('"recalibration": {', '"verification": {') if suffix == "json" else ("2 of 2 BatchNorms recalibrated", "Equiv")
    )
    assert all(part in text for part in parts)
