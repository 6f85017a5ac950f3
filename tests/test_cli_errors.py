"""What goes wrong is one sentence and an exit code, and leaves every file as it was."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from cli_run import MODEL, STUCK, Run, assert_one_sentence, names, shell, written

from bnfold import api
from bnfold.linear import LinearParams


def test_with_require_all_a_kept_batchnorm_is_an_error_and_nothing_is_written(run: Run, tmp_path: Path) -> None:
    model = written(tmp_path, STUCK)
    outcome = run(model, "-o", tmp_path / "fused.onnx", "--require-all", "--quiet")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("bnfold: 1 of 1 BatchNorm would be kept and --require-all was given")
    assert "stuck_bn: not into producers" in outcome.err
    assert names(tmp_path) == ["model.onnx"]


def test_with_require_all_a_whole_fold_and_what_was_excluded_by_name_pass(run: Run, tmp_path: Path) -> None:
    assert run(MODEL, "-o", tmp_path / "fused.onnx", "--require-all").code == 0
    assert run(MODEL, "-o", tmp_path / "fused.onnx", "--require-all", "--keep", "stem").code == 0


def test_with_require_all_a_leftover_is_no_batchnorm_and_what_cannot_become_one_is(run: Run, tmp_path: Path) -> None:
    assert run(written(tmp_path, STUCK), "-o", tmp_path / "a.onnx", "--require-all", "--leftover", "affine").code == 0
    training = written(tmp_path, STUCK.replace("Normalization (", "Normalization <training_mode=1> ("), "training.onnx")
    outcome = run(
        training, "-o", tmp_path / "b.onnx", "--require-all", "--leftover", "affine", "--no-verify", "--quiet"
    )
    assert outcome.code == 1
    assert "statistics of the batch" in outcome.err


@pytest.fixture
def wrong_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fold whose weights are off by a thousandth."""
    right = LinearParams.absorb_output

    def wrong(self: LinearParams, *arguments: Any) -> LinearParams:
        folded = right(self, *arguments)
        return LinearParams(folded.weight * 1.001, folded.bias)

    monkeypatch.setattr(LinearParams, "absorb_output", wrong)


@pytest.mark.usefixtures("wrong_arithmetic")
def test_a_failed_check_writes_nothing_and_names_the_culprit(run: Run, tmp_path: Path) -> None:
    outcome = run(MODEL, "-o", tmp_path / "fused.onnx")
    assert (outcome.code, outcome.out, names(tmp_path)) == (1, "", [])
    assert "failed" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("bnfold: digits-darknet.onnx: the folded model differs: ")
    assert "/stem/bn/BatchNormalization" in outcome.err.splitlines()[-1]


@pytest.mark.usefixtures("wrong_arithmetic")
def test_a_failed_check_still_has_its_json_report(run: Run, tmp_path: Path) -> None:
    outcome = run(MODEL, "-o", tmp_path / "fused.onnx", "--json")
    verification = json.loads(outcome.out)["verification"]
    assert (outcome.code, names(tmp_path)) == (1, [])
    assert (verification["passed"], verification["failed"]) == (False, True)
    assert verification["end_to_end"][0]["first_divergence"]
    assert outcome.err.count("\n") == 1


def truncated(folder: Path) -> Path:
    (folder / "cut.onnx").write_bytes(MODEL.read_bytes()[:100_000])
    return folder / "cut.onnx"


def text(folder: Path) -> Path:
    (folder / "text.onnx").write_text("this is no model\n" * 50, encoding="utf-8")
    return folder / "text.onnx"


def empty(folder: Path) -> Path:
    (folder / "empty.onnx").touch()
    return folder / "empty.onnx"


BAD_MODELS: dict[str, tuple[Callable[[Path], Path], int, str]] = {
    "missing": (lambda folder: folder / "none.onnx", 2, "there is no such file"),
    "folder": (lambda folder: folder, 2, "this is a folder"),
    "truncated": (truncated, 3, "cut off"),
    "text": (text, 3, "not an ONNX model"),
    "empty": (empty, 3, "the file is empty"),
}


@pytest.mark.parametrize("command", ["fold", "inspect", "verify"])
@pytest.mark.parametrize(("bad", "code", "expected"), BAD_MODELS.values(), ids=BAD_MODELS)
def test_a_bad_model_is_one_sentence(  # noqa: PLR0917
    run: Run, tmp_path: Path, command: str, bad: Callable[[Path], Path], code: int, expected: str
) -> None:
    (tmp_path / "in").mkdir()
    model = bad(tmp_path / "in")
    before = names(tmp_path / "in")
    more = {"fold": ["-o", tmp_path / "fused.onnx"], "inspect": [], "verify": [MODEL]}
    outcome = run(command, model, *more[command])
    assert (outcome.code, outcome.out) == (code, "")
    assert_one_sentence(outcome.err, expected)
    assert names(tmp_path) == ["in"]
    assert names(tmp_path / "in") == before


BAD_CALLS: dict[str, tuple[list[str], str]] = {
    "no output": ([str(MODEL)], "Missing option '-o' / '--output'"),
    "no output folder": ([str(MODEL), "-o", "nowhere/fused.onnx"], "does not exist"),
    "output is a folder": ([str(MODEL), "-o", "."], "the output is a folder"),
    "bad --keep": ([str(MODEL), "-o", "x.onnx", "--keep", "("], "'(' is no regular expression"),
    "bad --only": ([str(MODEL), "-o", "x.onnx", "--only", "*"], "'*' is no regular expression"),
    "bad --shape": ([str(MODEL), "-o", "x.onnx", "--shape", "images=1x-1"], "is no shape"),
    "--shape of no input": ([str(MODEL), "-o", "x.onnx", "--shape", "image=1x1x8x8"], "has no input 'image'"),
    "--shape twice": ([str(MODEL), "-o", "x.onnx", *("--shape", "images=1x1x8x8") * 2], "was given twice"),
    "unknown provider": ([str(MODEL), "-o", "x.onnx", "--provider", "tpu"], "'tpu' is not one of"),
    "unknown option": ([str(MODEL), "-o", "x.onnx", "--fast"], "No such option"),
    "one file too many": ([str(MODEL), "-o", "x.onnx", "y.onnx"], "unexpected extra argument"),
    "mistyped command": (["inspct", str(MODEL)], "did you mean inspect?"),
    "verify one file": (["verify", str(MODEL)], "Missing argument 'AFTER'"),
}


@pytest.mark.parametrize(("arguments", "expected"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_a_bad_call_is_one_sentence_and_exit_code_2(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert_one_sentence(outcome.err, expected)
    assert names(tmp_path) == []


def test_no_arguments_show_the_help_as_an_error(run: Run) -> None:
    outcome = run()
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == run("--help").out


@pytest.mark.parametrize("alias", ["same", "link", "hard link"])
def test_the_input_is_never_overwritten(run: Run, tmp_path: Path, alias: str) -> None:
    model, target = tmp_path / "net.onnx", tmp_path / "other.onnx"
    shutil.copy(MODEL, model)
    if alias == "link":
        target.symlink_to(model)
    elif alias == "hard link":
        target.hardlink_to(model)
    outcome = run(model, "-o", model if alias == "same" else target)
    assert outcome.code == 2
    assert_one_sentence(outcome.err, "the output is the input")
    assert model.read_bytes() == MODEL.read_bytes()


def test_the_file_with_the_inputs_weights_is_never_overwritten(run: Run, tmp_path: Path) -> None:
    onnx.save(onnx.load(MODEL), tmp_path / "net.onnx", save_as_external_data=True, location="net.data")
    before = (tmp_path / "net.data").read_bytes()
    outcome = run(tmp_path / "net.onnx", "-o", tmp_path / "net.data")
    assert outcome.code == 2
    assert_one_sentence(outcome.err, "the output is the input")
    assert (tmp_path / "net.data").read_bytes() == before


def test_cuda_asked_for_and_not_there_is_no_pass_on_the_cpu(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    outcome = run(MODEL, "-o", tmp_path / "fused.onnx", "--provider", "cuda", "--quiet")
    assert (outcome.code, outcome.out, names(tmp_path)) == (3, "", [])
    assert_one_sentence(outcome.err, "CUDAExecutionProvider")


def test_without_onnxruntime_the_sentence_names_the_package(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    outcome = run(MODEL, "-o", tmp_path / "fused.onnx", "--quiet")
    assert (outcome.code, names(tmp_path)) == (3, [])
    assert_one_sentence(outcome.err, "pip install")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("arguments", [["inspect", MODEL], ["inspect", MODEL, "--json"], ["--help"]])
def test_results_that_cannot_be_written_are_an_error(arguments: list[str | Path]) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = shell(*arguments, "--quiet" if len(arguments) > 1 else "--help", stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 3
    assert_one_sentence(done.stderr, os.strerror(errno.ENOSPC))


def test_a_bug_is_one_sentence_that_asks_for_a_report(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("no such\nthing")

    monkeypatch.setattr(api, "fold", broken)
    outcome = run(MODEL, "-o", tmp_path / "fused.onnx")
    assert (outcome.code, outcome.out) == (3, "")
    assert_one_sentence(outcome.err, "please report it")
    assert "KeyError" in outcome.err
    monkeypatch.setenv("BNFOLD_TRACEBACK", "1")
    assert "Traceback" in run(MODEL, "-o", tmp_path / "fused.onnx").err


def test_too_little_memory_is_no_bug(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(api, "fold", exhausted)
    outcome = run(MODEL, "-o", tmp_path / "fused.onnx")
    assert outcome.code == 3
    assert_one_sentence(outcome.err, "too little memory")


def test_a_name_cannot_command_the_terminal(run: Run, tmp_path: Path) -> None:
    hostile = onnx.parser.parse_model(STUCK)
    hostile.graph.node[0].name = "bn\x1b[2J[bold]:smile:\nbn"
    onnx.save(hostile, tmp_path / "model.onnx")
    outcome = run("inspect", tmp_path / "model.onnx")
    assert "\x1b" not in outcome.err
    assert r"bn\x1b[2J[bold]:smile: bn" in outcome.err.replace("\n", "")
