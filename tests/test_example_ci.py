"""The example of a job in continuous integration: its commands do what it says, on a model that is there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml
from cli_run import MODEL, ROOT, STUCK, names, shell, written

JOB = ROOT / "examples" / "ci" / "github-actions.yml"


def steps() -> list[dict[str, Any]]:
    job: list[dict[str, Any]] = yaml.safe_load(JOB.read_text(encoding="utf-8"))["jobs"]["fold"]["steps"]
    return job


def commands() -> list[list[str]]:
    """The calls of bnfold, as words without the program's name."""
    lines = [step["run"] for step in steps() if step.get("run", "").startswith("bnfold ")]
    return [line.split()[1:] for line in lines]


def test_the_commands_fold_and_measure_and_leave_what_the_job_keeps(tmp_path: Path) -> None:
    shutil.copy(MODEL, tmp_path / "model.onnx")
    assert len(commands()) == 2
    for arguments in commands():
        done = shell(*arguments, cwd=tmp_path, capture_output=True)
        assert done.returncode == 0, done.stderr
    (kept,) = (step["with"]["path"].split() for step in steps() if "upload-artifact" in step.get("uses", ""))
    assert set(kept) <= set(names(tmp_path))
    assert "bench.md" in names(tmp_path)


def test_a_batchnorm_that_stays_fails_the_job_and_leaves_the_report_alone(tmp_path: Path) -> None:
    written(tmp_path, STUCK)
    assert shell(*commands()[0], cwd=tmp_path, capture_output=True).returncode == 1
    assert names(tmp_path) == ["model.onnx", "report.html", "report.json"]


def test_what_is_installed_is_in_the_package() -> None:
    (line,) = (step["run"] for step in steps() if step.get("run", "").startswith("pip install"))
    assert line == 'pip install "bnfold[cpu,report]"'
