"""Every architecture folded by bnfold and verified by it on one execution provider, as one table.

Each is a command `bnfold original.onnx -o folded.onnx --provider NAME --report report.json` in a process of its own, so
that what is recorded is what a user gets. Nothing but the originals is kept from one run to the next: a row is of the
machine that made it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.coverage_nets import Net
from benchmarks.coverage_run import Limits, built, process
from benchmarks.frontier import as_markdown
from bnfold.errors import MachineError
from bnfold.runtime import PROVIDERS, require

_HEADINGS = (
    *("architecture", "outcome", "largest error / scale", "allowed"),
    *("ENABLE_ALL: before", "after", "TF32: before", "after"),
)
_LEGEND = (
    "%d of %d are verified there: folded, and equal in every output and inner tensor at ORT_DISABLE_ALL without TF32. "
    "The last four columns say how far onnxruntime's own optimiser and TF32 move an output of the model before and "
    "after the fold, as a part of its scale."
)


@dataclass(frozen=True)
class Checked:
    """One architecture on one provider.

    Attributes:
        net: Its name.
        outcome: "verified", "FAILED", "not proven", "CRASH", "TIMEOUT" or "not built".
        detail: What was said, where it is not verified.
        check: The end-to-end check of bnfold's report, as parsed JSON; None where there is none.
    """

    net: str
    outcome: str
    detail: str = ""
    check: Any = None

    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        if self.check is None:
            return (self.net, self.outcome, *[""] * (len(_HEADINGS) - 2))
        entries = [entry for entry in (*self.check["outputs"], *self.check["inner"]) if entry["compared"]]
        worst = max(entries, key=lambda entry: float(entry["error"]), default={"error": "", "tolerance": ""})
        settings = [self.check[name] for name in ("deployed", "tf32")]
        moved = [_largest(setting, model) for setting in settings for model in ("original", "folded")]
        return (self.net, self.outcome, _short(worst["error"]), _short(worst["tolerance"]), *moved)


def _largest(setting: Any, model: str) -> str:
    """How far the setting moves an output of the model that is measured in parts of its scale."""
    if setting is None or setting[model]["trouble"]:
        return "not run"
    outputs = [entry for entry in setting[model]["outputs"] if entry["note"] != "in steps" and entry["compared"]]
    return _short(max((float(entry["error"]) for entry in outputs), default=""))


def _short(number: Any) -> str:
    return f"{float(number):.1e}" if number != "" else ""


def check_machine(provider: str) -> None:
    """Say at once that the provider is not there.

    Raises:
        MachineError: It is not; nothing was recorded.
    """
    try:
        require(provider)
    except MachineError as error:
        raise MachineError(
            f"no architecture was verified on {provider}, and nothing is recorded: {error.what}", remedy=error.remedy
        ) from error


def checked(nets: Sequence[Net], provider: str, cache: Path, limits: Limits) -> Iterator[Checked]:
    """The rows in the order of `nets`, one after the other: they share the device."""
    for place, net in enumerate(nets, start=1):
        row = check_one(net, provider, cache, limits)
        print(f"[{place}/{len(nets)}] {net.name}: {row.outcome} {row.detail}".rstrip(), file=sys.stderr, flush=True)
        yield row


def check_one(net: Net, provider: str, cache: Path, limits: Limits) -> Checked:
    """Build one architecture, or take it from the cache, fold it, and verify it on the provider."""
    if find_spec(net.package) is None:
        return Checked(net.name, "not built", f"{net.package} is not installed")
    folder, trouble = built(net, cache, limits)
    if trouble:
        return Checked(net.name, "not built", trouble)
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        command = ["bnfold", str(folder / "original.onnx"), "-o", str(Path(scratch) / "folded.onnx"), "--quiet"]
        # CUDA maps far more addresses than it uses memory, so that these are not limited.
        unbounded = replace(limits, gibibytes=None)
        kind, _, said = process([*command, "--provider", provider, "--report", str(report)], unbounded)
        tree = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    verification = tree.get("verification")
    check = verification["end_to_end"][0] if verification else None
    if kind == "done":
        return Checked(net.name, "verified", "", check)
    if verification is None:
        return Checked(net.name, "not proven" if said.startswith("bnfold: ") else kind, said, None)
    return Checked(net.name, "FAILED" if verification["failed"] else "not proven", said, check)


def page(rows: Sequence[Checked], provider: str) -> str:
    """Everything as one page of Markdown."""
    good = sum(row.outcome == "verified" for row in rows)
    other = [f"* {row.net}: {row.outcome}: {row.detail}" for row in rows if row.outcome != "verified"]
    parts = [
        f"# Real architectures on {PROVIDERS[provider]}",
        _LEGEND % (good, len(rows)),
        as_markdown([_HEADINGS, *(row.cells() for row in rows)]),
        "## What is not verified", "\n".join(other) or "Nothing.",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"
