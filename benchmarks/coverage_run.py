"""Builds an architecture, gives it to every tool and judges what comes back, each step in a process that may die.

Every step leaves a JSON file in a folder of its own for (architecture, versions of the packages, sources), so that an
interrupted run goes on where it stopped, and a change of bnfold runs bnfold alone again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.coverage_build import Facts
from benchmarks.coverage_judge import Outcome
from benchmarks.coverage_nets import Net
from benchmarks.coverage_tools import REDUCING, TOOLS

_ROOT = Path(__file__).resolve().parents[1]
_INGREDIENTS = ("numpy", "onnx", "onnxruntime", "onnxscript", "timm", "torch", "torchvision", "ultralytics")
_SOURCES = ("benchmarks/coverage_build.py", "benchmarks/coverage_models.py", "tests/zoo/lively.py", "tests/zoo/unet.py")


@dataclass(frozen=True)
class Limits:
    """What one process may take.

    Attributes:
        seconds: Wall time.
        gibibytes: Address space; None for no limit.
    """

    seconds: float = 600.0
    gibibytes: int | None = 12


@dataclass(frozen=True)
class Examined:
    """One row of the table.

    Attributes:
        net: The architecture.
        facts: What is known of the original; None where there is none.
        trouble: Why there is no original: its package is not installed, or it could not be built.
        outcomes: What each tool made of it, by tool; a tool that is not installed is not there.
        reports: bnfold's reports by tool, as parsed JSON.
    """

    net: Net
    facts: Facts | None = None
    trouble: str = ""
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    reports: dict[str, Any] = field(default_factory=dict)


def installed(tool: str) -> str | None:
    """The version of a tool; None where it is not installed. bnfold's is that of its sources."""
    if tool.startswith("bnfold"):
        return _digest(sorted((_ROOT / "bnfold").rglob("*.py")))
    try:
        return version(tool)
    except PackageNotFoundError:
        return None


def examine(net: Net, cache: Path, limits: Limits, tools: Sequence[str] = tuple(TOOLS)) -> Examined:
    """Everything about one architecture, from the cache where it was found out before.

    `bnfold --reduce` differs from bnfold only in what that keeps: where that is nothing, one outcome stands for both.
    """
    if find_spec(net.package) is None:
        return Examined(net, trouble=f"{net.package} is not installed")
    folder, trouble = built(net, cache, limits)
    if trouble:
        return Examined(net, trouble=trouble)
    facts = Facts(**json.loads((folder / "facts.json").read_text(encoding="utf-8")))
    examined = Examined(net, facts)
    for tool in tools:
        if tool == REDUCING and keeps_nothing(examined.reports.get("bnfold")):
            examined.outcomes[tool], examined.reports[tool] = examined.outcomes["bnfold"], examined.reports["bnfold"]
        elif (release := installed(tool)) is not None:
            examined.outcomes[tool], examined.reports[tool] = _tried(tool, folder, _stem(tool, release), limits)
    return examined


def keeps_nothing(report: Any) -> bool:
    """Whether bnfold's report, None where there is none, has a decision other than to keep for everything."""
    return report is not None and report["summary"]["kept"] == 0


def _stem(tool: str, release: str) -> str:
    """The name of the files about one tool's result: changes with the tool and with the judge."""
    return f"{tool.replace(' ', '')}-{release}-{_digest([_ROOT / 'benchmarks' / 'coverage_judge.py'])}"


def _key(net: Net) -> str:
    """Changes with all that the original depends on."""
    versions = " ".join(f"{package} {installed(package)}" for package in _INGREDIENTS)
    text = f"{net} {versions} {_digest([_ROOT / source for source in _SOURCES])}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _digest(paths: Sequence[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:12]


def built(net: Net, cache: Path, limits: Limits) -> tuple[Path, str]:
    """Build the original unless it is there: its folder, and why it is not there, empty when it is."""
    folder = cache / f"{net.name}-{_key(net)}"
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "facts.json").exists():
        return folder, ""
    kind, _, said = process(["benchmarks.coverage_build", net.name, str(folder)], limits)
    if (folder / "facts.json").exists():
        return folder, ""
    return folder, f"not built: {kind}, {_message(said)}"


def _message(said: str) -> str:
    """The exception that a process ended with, or its last line."""
    lines = [line for line in said.splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
    return (raised or lines)[-1]


def _tried(tool: str, folder: Path, stem: str, limits: Limits) -> tuple[Outcome, Any]:
    """What one tool makes of the original, and its report where it writes one."""
    known = folder / f"{stem}.outcome"
    report = folder / f"{stem}.json"
    if not known.exists():
        outcome = run_tool(tool, folder, folder / f"{stem}.onnx", limits)
        known.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
        if not outcome.is_bad:  # a bad one stays for whoever wants to see why
            (folder / f"{stem}.onnx").unlink()
    text = report.read_text(encoding="utf-8") if report.exists() else "null"
    return Outcome(**json.loads(known.read_text(encoding="utf-8"))), json.loads(text)


def run_tool(tool: str, folder: Path, target: Path, limits: Limits) -> Outcome:
    """Run one tool and judge its result, in two processes."""
    error, judged = target.with_suffix(".error"), target.with_suffix(".judged")
    for stale in (target, error, judged):  # of a run that was interrupted
        stale.unlink(missing_ok=True)
    source = folder / "original.onnx"
    kind, seconds, said = process(["benchmarks.coverage_tools", tool, str(source), str(target)], limits)
    if error.exists():
        return Outcome("ERROR", detail=error.read_text(encoding="utf-8"), seconds=seconds)
    if kind != "done" or not target.exists():
        return Outcome(kind if kind != "done" else "CRASH", detail=said[-300:], seconds=seconds)
    kind, _, said = process(["benchmarks.coverage_judge", str(folder), str(target), str(judged)], limits)
    if not judged.exists():
        return Outcome("INVALID", detail=f"judging it ended in {kind}: {said[-300:]}", seconds=seconds)
    outcome = Outcome(**json.loads(judged.read_text(encoding="utf-8")))
    judged.unlink()
    return replace(outcome, seconds=seconds)


def process(module: Sequence[str], limits: Limits) -> tuple[str, float, str]:
    """Run a module within the limits: "done", "CRASH" or "TIMEOUT", how long it took, and what it said."""
    space = "unlimited" if limits.gibibytes is None else limits.gibibytes * 2**20
    bounded = f'ulimit -v {space}; exec "$@"'
    command = ["sh", "-c", bounded, "sh", sys.executable, "-m", *module]
    home = Path(tempfile.gettempdir()) / "bnfold-coverage-home"
    calm = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "YOLO_CONFIG_DIR": str(home), "YOLO_OFFLINE": "true"}
    start = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=_ROOT, env=os.environ | calm, capture_output=True, timeout=limits.seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return "TIMEOUT", time.monotonic() - start, f"no result after {limits.seconds:g} seconds"
    said = done.stderr.decode(errors="replace").strip() or f"ended with code {done.returncode} and no word"
    return "CRASH" if done.returncode else "done", time.monotonic() - start, said
