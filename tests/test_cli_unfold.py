"""`bnfold --manifest` and `bnfold unfold` on the command line: files, sentences, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from cli_run import MODEL, STUCK, Run, assert_one_sentence, batchnorms, names, written

from bnfold import api
from bnfold.errors import MachineError
from tests.undone import whole


def test_a_model_comes_back_from_the_manifest_beside_it(run: Run, tmp_path: Path) -> None:
    fused, back = tmp_path / "fused.onnx", tmp_path / "back.onnx"
    assert run(MODEL, "-o", fused, "--manifest", f"{fused}.manifest.json", "--quiet").code == 0
    assert names(tmp_path) == ["fused.onnx", "fused.onnx.manifest.json"]
    outcome = run("unfold", fused, "-o", back)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == f"{back}: 11 of 11 folds of {fused} undone, bit by bit\n"
    assert whole(onnx.load(back)) == whole(onnx.load(MODEL))


def test_a_model_comes_back_from_its_own_metadata_and_part_of_it_too(run: Run, tmp_path: Path) -> None:
    fused, part, back = (tmp_path / name for name in ("fused.onnx", "part.onnx", "back.onnx"))
    assert run(MODEL, "-o", fused, "--manifest", "embed").code == 0
    assert names(tmp_path) == ["fused.onnx"]
    outcome = run("unfold", fused, "-o", part, "--only", "stem")
    assert (outcome.code, batchnorms(part)) == (0, 1)
    assert outcome.out.endswith(f"1 of 11 folds of {fused} undone, bit by bit\n")
    assert outcome.err == "bnfold: the model carries the manifest of the folds that are left\n"
    assert run("inspect", part).code == 0
    assert run("unfold", part, "-o", back, "--quiet").out.endswith(f"10 of 10 folds of {part} undone, bit by bit\n")
    assert whole(onnx.load(back)) == whole(onnx.load(MODEL))


def test_the_report_is_json_on_request(run: Run, tmp_path: Path) -> None:
    fused, part = tmp_path / "fused.onnx", tmp_path / "part.onnx"
    run(MODEL, "-o", fused, "--manifest", "embed", "--no-verify")
    outcome = run("unfold", fused, "-o", part, "--only", "stem", "--json")
    report = json.loads(outcome.out)
    assert (outcome.err, report["schema_version"], report["model"]) == ("", 1, "fused.onnx")
    assert (report["restored"], report["also"]) == (["/stem/bn/BatchNormalization"], [])
    assert (len(report["left"]), report["simplified"]) == (10, False)


def test_every_fold_is_undone_with_all(run: Run, tmp_path: Path) -> None:
    first, second, back = (tmp_path / name for name in ("first.onnx", "second.onnx", "back.onnx"))
    assert run(MODEL, "-o", first, "--manifest", "embed", "--only", "stem", "--no-verify").code == 0
    assert run(first, "-o", second, "--no-verify").code == 0
    assert run("unfold", second, "-o", back).out.endswith(f"10 of 11 folds of {second} undone, bit by bit\n")
    assert batchnorms(back) == 10
    assert run("unfold", second, "-o", back, "--all").code == 0
    assert whole(onnx.load(back)) == whole(onnx.load(MODEL))


def test_what_overlaps_and_what_was_simplified_is_said(run: Run, tmp_path: Path) -> None:
    model = written(
        tmp_path,
        """<ir_version: 8, opset_import: ["" : 17]>
        both (float[n, 2, 4, 4] x) => (float[n, 2, 4, 4] y)
        <float[2] g = {1.5, -0.5}, float[2] b = {0.5, 0.25}, float[2] m = {0.5, 1.0}, float[2] v = {2.0, 1.0},
         float[2, 2, 1, 1] w = {1.0, 2.0, -1.0, 0.5}>
        {
          [front] a = BatchNormalization (x, g, b, m, v)
          [conv] c = Conv (a, w)
          [back] y = BatchNormalization (c, g, b, m, v)
        }""",
    )
    fused = tmp_path / "fused.onnx"
    assert run(model, "-o", fused, "--manifest", "embed", "--simplify", "--no-verify").code == 0
    lines = run("unfold", fused, "-o", tmp_path / "back.onnx", "--only", "front").err.splitlines()
    assert lines == [
        "bnfold: back: restored too, because their folds overlap with those asked for",
        "bnfold: onnxsim had simplified the model before the fold, and that is what is restored",
    ]


def test_nothing_to_undo_is_no_error(run: Run, tmp_path: Path) -> None:
    model, manifest = written(tmp_path, STUCK), tmp_path / "m.json"
    assert run(model, "-o", tmp_path / "fused.onnx", "--manifest", manifest).code == 0
    outcome = run("unfold", tmp_path / "fused.onnx", "-o", tmp_path / "back.onnx", "--manifest", manifest)
    assert outcome.code == 0
    assert "0 of 0 folds" in outcome.out
    assert whole(onnx.load(tmp_path / "back.onnx")) == whole(onnx.load(model))


@pytest.fixture
def fused(run: Run, tmp_path: Path) -> Path:
    """A folded model without a manifest."""
    run(MODEL, "-o", tmp_path / "fused.onnx", "--no-verify")
    return tmp_path / "fused.onnx"


def test_without_a_manifest_it_is_a_wrong_call(run: Run, fused: Path, tmp_path: Path) -> None:
    outcome = run("unfold", fused, "-o", tmp_path / "back.onnx")
    assert outcome.code == 2
    assert_one_sentence(outcome.err, "nor is there a file fused.onnx.manifest.json beside it; name it with --manifest")
    assert names(tmp_path) == ["fused.onnx"]


def test_a_manifest_of_another_model_is_refused_and_nothing_is_written(run: Run, fused: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "m.json"
    run(MODEL, "-o", tmp_path / "other.onnx", "--only", "stem", "--manifest", manifest, "--no-verify")
    outcome = run("unfold", fused, "-o", tmp_path / "back.onnx", "--manifest", manifest)
    assert outcome.code == 3
    assert_one_sentence(outcome.err, "the manifest belongs to another model, or the model was changed since")
    assert not (tmp_path / "back.onnx").exists()


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b'{"schema": "bnfold.manifest", "schema_version": 7}'])
def test_a_manifest_that_cannot_be_read_is_one_sentence(run: Run, fused: Path, tmp_path: Path, text: bytes) -> None:
    (tmp_path / "m.json").write_bytes(text)
    outcome = run("unfold", fused, "-o", tmp_path / "back.onnx", "--manifest", tmp_path / "m.json")
    assert outcome.code == 3
    assert_one_sentence(outcome.err, "m.json: ")


def test_the_manifest_goes_to_a_place_of_its_own(run: Run, fused: Path, tmp_path: Path) -> None:
    before = fused.read_bytes()
    for output, manifest in [("new.onnx", "new.onnx"), ("new.onnx", "fused.onnx"), ("new.onnx", "no/m.json")]:
        outcome = run(fused, "-o", tmp_path / output, "--manifest", tmp_path / manifest)
        assert outcome.code == 2
        assert_one_sentence(outcome.err, "")
    assert run("unfold", fused, "-o", fused).code == 2
    assert run("unfold", fused, "-o", tmp_path / "m.json", "--manifest", tmp_path / "m.json").code == 2
    assert (names(tmp_path), fused.read_bytes()) == (["fused.onnx"], before)


def test_a_model_that_cannot_be_written_leaves_no_manifest(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise MachineError("the disk is full")

    monkeypatch.setattr(api, "save", full)
    outcome = run(MODEL, "-o", tmp_path / "fused.onnx", "--manifest", tmp_path / "m.json", "--no-verify")
    assert (outcome.code, names(tmp_path)) == (3, [])
    assert_one_sentence(outcome.err[outcome.err.rindex("bnfold: ") :], "the disk is full")


def test_a_call_with_only_and_all_contradicts_itself(run: Run, fused: Path, tmp_path: Path) -> None:
    outcome = run("unfold", fused, "-o", tmp_path / "back.onnx", "--only", "stem", "--all")
    assert outcome.code == 2
    assert_one_sentence(outcome.err, "contradict each other")
