"""Runs one tool on one file, in a process of its own: `python -m benchmarks.coverage_tools TOOL SOURCE TARGET`.

The peers are called as in `benchmarks/frontier_tools.py`. What a tool raises goes to `TARGET.error`; bnfold's report
goes to `TARGET.json`. A tool that aborts the process leaves neither.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.frontier_tools import TOOLS as FRONTIER

REDUCING = "bnfold --reduce"


def _by_bnfold(source: Path, target: Path, *, reduce: bool) -> None:
    """`bnfold.fold`, which verifies its result, and its report."""
    import bnfold  # noqa: PLC0415
    from bnfold.report.json_report import report_json  # noqa: PLC0415

    result = bnfold.fold(source, reduce=reduce)
    target.with_suffix(".json").write_text(report_json(result.report), encoding="utf-8")
    bnfold.save(result.model, target)


TOOLS: dict[str, Callable[[Path, Path], None]] = {
    "bnfold": partial(_by_bnfold, reduce=False),
    REDUCING: partial(_by_bnfold, reduce=True),
    **{tool: call for tool, call in FRONTIER.items() if tool != "bnfold"},
}
PEERS = tuple(tool for tool in TOOLS if not tool.startswith("bnfold"))


def main() -> None:
    """Run the tool, or write down what it raised."""
    tool, source, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    try:
        TOOLS[tool](source, target)
    except Exception as error:  # whatever a tool raises is a result of the benchmark
        target.unlink(missing_ok=True)
        target.with_suffix(".error").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")


if __name__ == "__main__":
    main()
