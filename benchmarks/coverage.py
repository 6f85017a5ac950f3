"""Real architectures: how many BatchNorms every tool leaves, and whether what it makes is right, as one table.

Run from the repository root, with the tools installed (a tool or a package that is not there is shown as such)::

    pip install --no-deps onnxslim onnxoptimizer torchvision timm ultralytics
    pip install onnxruntime onnxscript onnxsim opencv-python-headless
    python -m benchmarks.coverage --markdown coverage.md --json coverage.json
    python -m benchmarks.coverage --only 'resnet|yolo' --jobs 2
    python -m benchmarks.coverage --provider cuda --markdown cuda.md    # bnfold alone, verified there

Every step runs in a process of its own, within limits of time and memory, and is kept in a folder under the system's
temporary one: a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from benchmarks import coverage_provider
from benchmarks import coverage_table as table
from benchmarks.coverage_nets import NETS, Net
from benchmarks.coverage_run import Examined, Limits, examine, installed
from benchmarks.coverage_tools import REDUCING, TOOLS
from benchmarks.frontier import as_markdown
from bnfold.errors import MachineError
from bnfold.runtime import PROVIDERS


def page(found: Sequence[Examined]) -> str:
    """Everything as one page of Markdown."""
    versions = ", ".join(f"{tool} {installed(tool) or 'not installed'}" for tool in TOOLS if tool != REDUCING)
    parts = [
        "# Real architectures", table.LEGEND, as_markdown(table.rows(found)),
        "\n".join(f"* {line}" for line in table.summary(found)),
        "## What is not right", "\n".join(f"* {line}" for line in table.bad(found)) or "Nothing.",
        "## Why BatchNorms stay (bnfold)", "\n".join(table.reasons(found, "bnfold")),
        f"## Why BatchNorms stay ({REDUCING})", "\n".join(table.reasons(found, REDUCING)),
        f"Versions: {versions}.",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def as_json(found: Sequence[Examined]) -> str:
    """Everything for programs: the rows, without the reports' details."""
    return json.dumps([asdict(examined) for examined in found], indent=1) + "\n"


def examined(nets: Sequence[Net], cache: Path, limits: Limits, jobs: int, tools: Sequence[str]) -> Iterator[Examined]:
    """The rows in the order of `nets`; the progress goes to stderr as they are finished."""
    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(examine, net, cache, limits, tools) for net in nets]
        for place, (net, future) in enumerate(zip(nets, waiting, strict=True), start=1):
            row = future.result()
            outcomes = " ".join(f"{tool}={table.cell(outcome)}" for tool, outcome in row.outcomes.items())
            print(f"[{place}/{len(nets)}] {net.name}: {row.trouble or outcomes}", file=sys.stderr, flush=True)
            yield row


def write(given: argparse.Namespace, markdown: str, records: str) -> None:
    """The page to stdout or where it was asked for, and what programs read."""
    if given.json:
        given.json.write_text(records, encoding="utf-8")
    if given.markdown:
        given.markdown.write_text(markdown, encoding="utf-8")
    else:
        print(markdown)


def on_provider(given: argparse.Namespace, nets: Sequence[Net], limits: Limits) -> int:
    """Verify every architecture on one provider; the exit code: 3 where it is not there, 1 where something failed."""
    try:
        coverage_provider.check_machine(given.provider)
    except MachineError as error:
        print(f"coverage: {error}", file=sys.stderr)
        return error.exit_code
    rows = list(coverage_provider.checked(nets, given.provider, given.cache, limits))
    write(given, coverage_provider.page(rows, given.provider), json.dumps([asdict(r) for r in rows], indent=1) + "\n")
    return int(any(row.outcome != "verified" for row in rows))


def main() -> int:
    """Run what is asked for and print or write the table."""
    parser = argparse.ArgumentParser(description="How many BatchNorms every tool leaves in real architectures.")
    parser.add_argument("--only", default="", metavar="REGEX", help="only architectures in whose name it is found")
    parser.add_argument("--tools", default="", metavar="REGEX", help="only tools in whose name it is found")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="architectures at the same time")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page here instead of to stdout")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here, for programs")
    parser.add_argument("--seconds", type=float, default=Limits.seconds, metavar="N", help="for one process")
    parser.add_argument("--memory", type=int, default=Limits.gibibytes, metavar="GIB", help="for one process")
    parser.add_argument(
        "--provider", choices=list(PROVIDERS), help="fold with bnfold alone and verify on this provider, net by net"
    )
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "bnfold-coverage", metavar="DIR")
    given = parser.parse_args()
    nets = [net for net in NETS if re.search(given.only, net.name)]
    limits = Limits(given.seconds, given.memory)
    if given.provider:
        return on_provider(given, nets, limits)
    tools = [tool for tool in TOOLS if re.search(given.tools, tool)]
    found = list(examined(nets, given.cache, limits, given.jobs, tools))
    write(given, page(found), as_json(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
