"""`benchmarks/coverage.py --provider`: what is verified where; where there is no such machine nothing is recorded."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from test_report_json import GOLDEN

from benchmarks import coverage, coverage_provider
from benchmarks.coverage_nets import NETS
from benchmarks.coverage_provider import Checked, check_one, page
from benchmarks.coverage_run import Limits, process

UNET = next(net for net in NETS if net.name == "unet")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["coverage", *map(str, arguments)])
    return coverage.main()


def test_a_small_architecture_is_verified_on_the_cpu_and_recorded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = ("--markdown", tmp_path / "page.md", "--json", tmp_path / "rows.json", "--cache", tmp_path / "cache")
    assert call(monkeypatch, "--provider", "cpu", "--only", "^unet$", *files) == 0
    (row,) = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert (row["net"], row["outcome"], row["check"]["provider"]) == ("unet", "verified", "cpu")
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "# Real architectures on CPUExecutionProvider" in text
    assert "1 of 1 are verified there" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| unet |")]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[1] == "verified"
    assert all(float(cell) < 1e-3 for cell in cells[2:6:2])
    assert cells[6:] == ["not run", "not run"]  # TF32 is of CUDA


def test_without_the_provider_it_is_one_sentence_exit_code_3_and_no_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    files = ("--markdown", tmp_path / "page.md", "--json", tmp_path / "rows.json", "--cache", tmp_path / "cache")
    assert call(monkeypatch, "--provider", "cuda", *files) == 3
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(
        "coverage: no architecture was verified on cuda, and nothing is recorded: this onnxruntime has"
    )
    assert list(tmp_path.iterdir()) == []


def outcome_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, said: str, verification: Any) -> Checked:
    """The row of a process that ended so, and left that check in its report."""

    def ended(command: Sequence[str], limits: Limits) -> tuple[str, float, str]:
        assert limits.gibibytes is None  # CUDA maps more addresses than any limit of memory leaves
        if verification is not None:
            tree = json.loads(GOLDEN.read_text(encoding="ascii")) | {"verification": verification}
            Path(command[command.index("--report") + 1]).write_text(json.dumps(tree), encoding="utf-8")
        return kind, 1.0, said

    monkeypatch.setattr(coverage_provider, "built", lambda *_: (tmp_path, ""))
    monkeypatch.setattr(coverage_provider, "process", ended)
    return check_one(UNET, "cuda", tmp_path, Limits())


def test_what_is_not_verified_is_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="ascii"))["verification"]
    failed = outcome_of(monkeypatch, tmp_path, "CRASH", "bnfold: it differs", golden)
    doubtful = outcome_of(monkeypatch, tmp_path, "CRASH", "bnfold: nothing is proven", golden | {"failed": False})
    refused = outcome_of(monkeypatch, tmp_path, "CRASH", "bnfold: Conv was placed on the CPU", None)
    died = outcome_of(monkeypatch, tmp_path, "CRASH", "Segmentation fault", None)
    late = outcome_of(monkeypatch, tmp_path, "TIMEOUT", "no result after 600 seconds", None)
    rows = [failed, doubtful, refused, died, late]
    assert [row.outcome for row in rows] == ["FAILED", "not proven", "not proven", "CRASH", "TIMEOUT"]
    text = page(rows, "cuda")
    assert "0 of 5 are verified there" in text
    assert "* unet: FAILED: bnfold: it differs" in text
    assert "| unet | FAILED | inf | 1.0e-03 | 5.0e-01 | not run |" in text


def test_a_process_without_a_limit_of_memory_runs() -> None:
    assert process(["bnfold", "--version"], Limits(gibibytes=None))[0] == "done"
