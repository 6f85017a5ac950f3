"""Runs the command line for the tests: in this process (the fixture `run`), or in one of its own (`shell`)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest

from bnfold.cli import main

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "digits-darknet.onnx"

#: The BatchNorm reads the model's input and feeds a Sigmoid: it can go nowhere.
STUCK = """<ir_version: 8, opset_import: ["" : 17]>
stuck (float[n, 2, 4, 4] x) => (float[n, 2, 4, 4] y)
<float[2] gamma = {1.5, -0.5}, float[2] beta = {0.5, 0.25}, float[2] mean = {0.5, 1.0}, float[2] var = {2.0, 1.0}>
{
  [stuck_bn] z = BatchNormalization (x, gamma, beta, mean, var)
  [gate] y = Sigmoid (z)
}"""

#: The output does not depend on the input.
DEAD = """<ir_version: 8, opset_import: ["" : 17]>
dead (float[2, 3] x) => (float[2, 3] y)
<float[1] zero = {0.0}>
{
  y = Mul (x, zero)
}"""


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line in this process, at 80 columns, with its streams caught."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "BNFOLD_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: str | Path) -> Outcome:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *capfd.readouterr())

    return call


def shell(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "bnfold", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", **options.pop("env", {})}
    return subprocess.run(command, env=environment, text=True, check=False, timeout=120, **options)


def written(folder: Path, text: str, name: str = "model.onnx") -> Path:
    path = folder / name
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def batchnorms(path: Path) -> int:
    return sum(node.op_type == "BatchNormalization" for node in onnx.load(path).graph.node)


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def assert_one_sentence(shown: str, expected: str) -> None:
    assert shown.startswith("bnfold: ")
    assert shown.count("\n") == 1
    assert "Traceback" not in shown
    assert expected in shown
