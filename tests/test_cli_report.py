from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_run import DEAD, MODEL, STUCK, Run, assert_one_sentence, names, written


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def damaged(folder: Path) -> Path:
    """The digits with one channel of one weight off."""
    proto = onnx.load(MODEL)
    weight = next(tensor for tensor in proto.graph.initializer if len(tensor.dims) == 4)
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0] *= 1.05
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(proto, folder / "damaged.onnx")
    return folder / "damaged.onnx"


def test_a_fold_writes_every_report_that_is_asked_for(run: Run, tmp_path: Path) -> None:
    page, text, data, output = (tmp_path / name for name in ("r.html", "r.MD", "r.json", "fused.onnx"))
    assert run(MODEL, "-o", output, "--report", page, "--report", text, "--report", data).code == 0
    assert digest(MODEL) in page.read_text()
    assert digest(output) in page.read_text()
    assert text.read_text().startswith("# digits-darknet.onnx: Equivalent")
    assert json.loads(data.read_text())["summary"]["folded"] == 11
    assert f"bnfold {MODEL} -o {output}" in page.read_text()


def test_the_json_report_is_what_json_prints(run: Run, tmp_path: Path) -> None:
    outcome = run("inspect", MODEL, "--json", "--report", tmp_path / "r.json")
    assert (tmp_path / "r.json").read_text() == outcome.out


def test_a_difference_is_reported_and_exits_with_1(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    assert run("verify", MODEL, damaged(tmp_path), "--report", page).code == 1
    assert "Not equivalent" in page.read_text()


def test_what_is_not_proven_is_reported_and_exits_with_3(run: Run, tmp_path: Path) -> None:
    dead, page = written(tmp_path, DEAD), tmp_path / "r.html"
    assert run(dead, "-o", tmp_path / "out.onnx", "--report", page).code == 3
    assert "Nothing proven" in page.read_text()
    assert names(tmp_path) == ["model.onnx", "r.html"]


def test_a_batchnorm_against_require_all_is_reported_and_exits_with_1(run: Run, tmp_path: Path) -> None:
    stuck, text = written(tmp_path, STUCK), tmp_path / "r.md"
    assert run(stuck, "-o", tmp_path / "out.onnx", "--require-all", "--report", text).code == 1
    assert "| stuck\\_bn | 2 | kept |" in text.read_text()


def test_a_recalibration_is_reported(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", np.random.default_rng(0).random((64, 1, 8, 8), dtype=np.float32))
    page, output = tmp_path / "r.html", tmp_path / "out.onnx"
    assert run("recalibrate", MODEL, "--data", tmp_path / "data.npy", "-o", output, "--report", page).code == 0
    assert "11 of 11 BatchNorms recalibrated on 64 samples" in page.read_text()


@pytest.mark.parametrize("name", ["report.pdf", "report", "html"])
def test_another_kind_of_report_is_refused_before_any_work(run: Run, tmp_path: Path, name: str) -> None:
    outcome = run(MODEL, "-o", tmp_path / "out.onnx", "--report", tmp_path / name)
    assert outcome.code == 2
    assert_one_sentence(outcome.err, "a report is one of .html, .md, .json")
    assert names(tmp_path) == []


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_is_said_before_any_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("bnfold.pages.render.find_spec", lambda name: None if name == package else found(name))
    outcome = run(MODEL, "-o", tmp_path / "out.onnx", "--report", tmp_path / "r.html")
    assert outcome.code == 3
    assert_one_sentence(outcome.err, "pip install 'bnfold[report]'")
    assert names(tmp_path) == []


def test_a_json_report_needs_no_package(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnfold.pages.render.find_spec", lambda _name: None)
    assert run("inspect", MODEL, "--report", tmp_path / "r.json").code == 0


def test_a_report_overwrites_neither_the_model_nor_the_output(run: Run, tmp_path: Path) -> None:
    model = tmp_path / "model.json"
    model.write_bytes(MODEL.read_bytes())
    before = digest(model)
    for arguments in ((model, "-o", tmp_path / "o.html"), ("inspect", model), ("verify", MODEL, model)):
        assert run(*arguments, "--report", model).code == 2
    assert run(model, "-o", tmp_path / "o.html", "--report", tmp_path / "o.html").code == 2
    assert digest(model) == before
    assert names(tmp_path) == ["model.json"]


def test_a_folder_that_is_not_there_is_refused_before_any_work(run: Run, tmp_path: Path) -> None:
    outcome = run(MODEL, "-o", tmp_path / "out.onnx", "--report", tmp_path / "none" / "r.html")
    assert outcome.code == 2
    assert names(tmp_path) == []


def test_a_full_disk_leaves_the_report_that_was_there(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "r.html"
    page.write_text("old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bnfold.text_files.os.fsync", full)
    outcome = run("inspect", MODEL, "--report", page)
    assert outcome.code == 3
    assert "the disk is full; free some space" in outcome.err
    assert page.read_text() == "old"
    assert names(tmp_path) == ["r.html"]
