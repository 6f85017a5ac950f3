"""`--oracle`, `--input`, `--metric`, `--provider all`: as a user gives them, and gives them wrongly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_models import PARAMETERS, STATS, parse
from test_report_schema import schema

from bnfold import providers
from bnfold.providers import each_provider

Run = Callable[..., Any]
MODEL = Path(__file__).parents[1] / "models" / "digits-darknet.onnx"
GATHER = f"""(float[N,3,8,8] x, int64[5] indices) => (float[N,5,6,6] y) <float[4,3,3,3] w, {PARAMETERS}>
    {{ c = Conv(x, w) b = BatchNormalization(c, {STATS}) g = Gather<axis=1>(b, indices) y = Relu(g) }}"""


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    with np.load(MODEL.with_name("digits-heldout.npz")) as archive:
        np.save(tmp_path / "digits.npy", (archive["images"][:50, None] / 16).astype(np.float32))
    return tmp_path / "digits.npy"


def test_a_fold_with_oracle_and_decisions_is_reported_everywhere(run: Run, tmp_path: Path, digits: Path) -> None:
    output, page, text = (tmp_path / name for name in ("fused.onnx", "report.html", "report.md"))
    given = ("--oracle", "--metric", "top1", "--verify-data", digits)
    shown = run(MODEL, "-o", output, *given, "--report", page, "--report", text)
    assert shown.code == 0
    words = " ".join(shown.err.split())
    assert "float64 logits is off by" in words
    assert "decisions 50 of 50 classes of logits are the same (100.00%); 50 samples" in words
    for report in (page, text):
        written = report.read_text(encoding="utf-8")
        assert "Against float64: logits is off by" in written.replace("\\", "")
        assert "50 of 50 classes of logits are the same" in written.replace("\\", "")
    assert "float64: before</th>" in page.read_text(encoding="utf-8")


def test_the_json_report_has_both_errors_and_the_decisions(run: Run, tmp_path: Path, digits: Path) -> None:
    output = tmp_path / "fused.onnx"
    tree = json.loads(run(MODEL, "-o", output, "--oracle", "--metric", "top1", "--verify-data", digits, "--json").out)
    schema("fold-1").validate(tree)
    (check,) = tree["verification"]["end_to_end"]
    assert check["agreement"]["same"] == check["agreement"]["decisions"] == 50
    assert check["patterns"] == ["uniform numbers", "zeros", "ones", "impulses"]
    assert set(check["outputs"][0]["oracle"]) == {"original", "folded", "ratio"}
    plain = json.loads(run("verify", MODEL, output, "--json").out)
    schema("verify-1").validate(plain)
    (check,) = plain["verification"]["end_to_end"]
    assert check["agreement"] is None
    assert check["outputs"][0]["oracle"] is None
    assert check["outputs"][0]["stage"]["ratio"] <= 0.5


def test_a_page_without_an_oracle_has_no_columns_for_it(run: Run, tmp_path: Path) -> None:
    run(MODEL, "-o", tmp_path / "fused.onnx", "--report", tmp_path / "report.html")
    assert "float64: before" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_an_input_comes_from_a_file(run: Run, tmp_path: Path) -> None:
    onnx.save(parse(GATHER), tmp_path / "model.onnx")
    np.save(tmp_path / "i.npy", np.array([3, 2, 1, 0, 3]))
    fused = tmp_path / "fused.onnx"
    assert run(tmp_path / "model.onnx", "-o", fused, "--input", f"indices={tmp_path / 'i.npy'}").code == 0
    assert run("verify", tmp_path / "model.onnx", fused, "--input", f"indices={tmp_path / 'i.npy'}").code == 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--input", "x"], "'x' names no file; write it like NAME=numbers.npy"),
        (["--input", "x=a.npy", "--input", "x=b.npy"], "input 'x' was given twice"),
        (["--input", "x=none.npy"], "the model has no input 'x'; its inputs are images"),
        (["--input", "images=none.npy"], "none.npy: there is no such file"),
        (["--metric", "top1"], "counts decisions on your data, and there is none; give --verify-data as well"),
        (["--metric", "top5"], "'top5' is not one of"),
        (["--metric-output", "logits"], "no decision is asked for; give --metric as well"),
        (["--metric", "boxes", "--verify-data", "DIGITS"], "has no boxes"),
        (["--metric", "top1", "--metric-output", "z", "--verify-data", "DIGITS"], "the model has no output 'z'"),
        (["--oracle", "--no-verify"], "for the check, which is left out"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_writes_nothing(
    run: Run, tmp_path: Path, digits: Path, given: list[str], says: str
) -> None:
    output = tmp_path / "fused.onnx"
    found = run(MODEL, "-o", output, *(str(digits) if word == "DIGITS" else word for word in given))
    assert (found.code, output.exists()) == (2, False)
    assert says in " ".join(found.err.split())
    assert "Traceback" not in found.err


def test_all_providers_are_those_that_this_onnxruntime_has(monkeypatch: pytest.MonkeyPatch) -> None:
    class Runtime:
        def __init__(self, *names: str) -> None:
            self.names = [f"{name}ExecutionProvider" for name in names]

        def get_available_providers(self) -> list[str]:
            return self.names

    for names, expected in (
        (("CPU",), ("cpu",)),
        (("Tensorrt", "CUDA", "CPU"), ("cpu", "cuda")),
    ):
        monkeypatch.setattr(providers, "require", lambda _, names=names: Runtime(*names))
        assert each_provider(("all",)) == each_provider(("cpu", "all")) == expected
    assert each_provider(("cuda", "cpu", "cuda")) == ("cuda", "cpu")


def test_every_provider_is_checked(run: Run, tmp_path: Path) -> None:
    tree = json.loads(run(MODEL, "-o", tmp_path / "fused.onnx", "--provider", "all", "--json").out)
    assert [check["provider"] for check in tree["verification"]["end_to_end"]] == list(each_provider(("all",)))
    assert run("bench", MODEL, tmp_path / "fused.onnx", "--provider", "all", "--rounds", "1").code == 0
