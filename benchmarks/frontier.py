"""What bnfold folds that others do not: every tool on every case, judged against float64, as one table.

Run from the repository root, with the tools installed (a tool that is not there is an empty column)::

    pip install --no-deps onnxslim onnxoptimizer
    pip install onnxruntime onnxscript onnxsim
    python -m benchmarks.frontier              # for people
    python -m benchmarks.frontier --markdown   # for the README

A cell is `BatchNorms left of how many`, or what is wrong with the result. Nothing is timed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeAlias

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

import bnfold
from benchmarks.frontier_cases import CASES, Case
from benchmarks.frontier_judge import TOLERANCE, Verdict, judge, verified
from benchmarks.frontier_tools import TOOLS

#: Seconds for one tool to start and to work on all cases.
LIMIT = 300.0
_ROOT = Path(__file__).resolve().parents[1]

Column: TypeAlias = Mapping[str, Verdict]


def run_tool(command: Sequence[str], made: Path, cases: Sequence[Case], limit: float = LIMIT) -> dict[str, Verdict]:
    """What one tool makes of every case, in processes that may die.

    Args:
        command: Starts the tool's process; the keys of the cases are added to it.
        made: Where the process puts `KEY.onnx` or `KEY.error`.
        cases: The cases. A process that dies is started again behind the case that it died on.
        limit: Seconds for each process.
    """
    verdicts: dict[str, Verdict] = {}
    while len(verdicts) < len(cases):
        todo = cases[len(verdicts) :]
        kind, detail = _run([*command, *(case.key for case in todo)], limit)
        for case in todo:
            verdict = _verdict(case, made)
            if verdict is None:
                verdicts[case.key] = Verdict(kind, 0, case.batchnorms, detail=detail)
                break
            verdicts[case.key] = verdict
    return verdicts


def _run(command: Sequence[str], limit: float) -> tuple[str, str]:
    """How the process ended: the kind and the detail of the verdict on a case that it left undone."""
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return "TIMEOUT", f"no result after {limit:g} seconds"
    return "CRASH", f"the process ended with code {done.returncode}"


def _verdict(case: Case, made: Path) -> Verdict | None:
    """The verdict on what the process left for `case`; None where it left nothing."""
    error = made / f"{case.key}.error"
    if error.exists():
        return Verdict("ERROR", 0, case.batchnorms, detail=error.read_text(encoding="utf-8"))
    result = made / f"{case.key}.onnx"
    if not result.exists():
        return None
    try:
        model = onnx.load(result)
        verdict = judge(case, model)
        return replace(verdict, verified=verified(case, model)) if verdict.kind in ("right", "WRONG") else verdict
    except DecodeError as broken:
        return Verdict("INVALID", 0, case.batchnorms, detail=f"the file is broken: {broken}")


def columns() -> dict[str, Column]:
    """The verdicts of every tool that is installed."""
    found: dict[str, Column] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            onnx.save(case.model(), Path(folder) / f"{case.key}.onnx")
        for tool in TOOLS:
            if _version(tool) is None:
                continue
            print(f"running {tool}", file=sys.stderr, flush=True)
            command = [sys.executable, "-m", "benchmarks.frontier_tools", tool, folder]
            found[tool] = run_tool(command, Path(folder) / tool, CASES)
    return found


def _version(tool: str) -> str | None:
    if tool == "bnfold":
        return bnfold.__version__
    try:
        return version(tool)
    except PackageNotFoundError:
        return None


def rows(found: Mapping[str, Column], *, markdown: bool) -> list[list[str]]:
    """The table: a heading, a row for each case, and two that sum up."""
    table = [["", *found]]
    for case in CASES:
        cells = [_cell(case, column[case.key], markdown=markdown) for column in found.values()]
        table.append([_title(case), *cells])
    can_go = [case for case in CASES if case.can_go]
    gone = [sum(_is_gone(column[case.key]) for case in can_go) for column in found.values()]
    wrong = [sum(verdict.kind != "right" for verdict in column.values()) for column in found.values()]
    table.append(["nothing left, where everything can go", *(f"{n} of {len(can_go)} rows" for n in gone)])
    table.append(["wrong, invalid or failed", *(f"{n} of {len(CASES)} rows" for n in wrong)])
    return table


def _is_gone(verdict: Verdict) -> bool:
    return verdict.kind == "right" and verdict.left == 0


def _cell(case: Case, verdict: Verdict, *, markdown: bool) -> str:
    """Bold, in Markdown, is what is not right, and what is left where it could go."""
    bad = verdict.kind != "right" or (verdict.left > 0 and case.can_go)
    return f"**{verdict}**" if markdown and bad else str(verdict)


def _title(case: Case) -> str:
    noted = [other for other in CASES if other.note]
    marker = f" [{noted.index(case) + 1}]" if case.note else ""
    return f"{case.title}{' (must stay)' if case.must_stay else ''}{marker}"


def footer(found: Mapping[str, Column]) -> list[str]:
    """What the figures mean, the notes of the cases, and the versions of the tools."""
    notes = [f"[{i}] {case.note}." for i, case in enumerate((case for case in CASES if case.note), start=1)]
    meaning = (
        "BatchNorms left of how many there were; Sub, Mul and Add, where one is written so. "
        "(+n nodes): the result has more operators than the original. (-n inputs): initializers that were inputs too. "
        f"WRONG: an error above {TOLERANCE:g} of an output's scale against the original in float64, or a weight that "
        "is not finite. INVALID: the ONNX checker or onnxruntime refuses the result. ERROR: the tool raised. "
        "CRASH: its process died."
    )
    versions = ", ".join(f"{tool} {_version(tool)}" for tool in found)
    missing = [tool for tool in TOOLS if tool not in found]
    return [
        meaning,
        *notes,
        agreement(found),
        f"Versions: {versions}.",
        *([f"Not installed: {', '.join(missing)}."] if missing else []),
    ]


def agreement(found: Mapping[str, Column]) -> str:
    """Whether `bnfold verify` passes what is right, and nothing else."""
    cells = [(tool, case, column[case.key]) for tool, column in found.items() for case in CASES]
    right = [cell for cell in cells if cell[2].verified and cell[2].kind == "right"]
    wrong = [cell for cell in cells if cell[2].verified and cell[2].kind == "WRONG"]
    apart = [cell for cell in right if cell[2].verified != "passed"] + [c for c in wrong if c[2].verified == "passed"]
    figures = [sum(verdict.verified == "passed" for *_, verdict in some) for some in (right, wrong)]
    told = "; ".join(f"{tool}, {case.title}: {verdict.verified}, {verdict.detail}" for tool, case, verdict in apart)
    return (
        f"`bnfold verify`, which knows no tool, passes {figures[0]} of these {len(right)} right results and "
        f"{figures[1]} of the {len(wrong)} WRONG ones{f' ({told})' if told else ''}."
    )


def as_markdown(table: Sequence[Sequence[str]]) -> str:
    """A GitHub table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in table]
    return "\n".join([lines[0], "|---" * len(table[0]) + "|", *lines[1:]])


def as_text(table: Sequence[Sequence[str]]) -> str:
    """Aligned columns."""
    widths = [max(len(cells[i]) for cells in table) for i in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) for cells in table]
    return "\n".join(line.rstrip() for line in lines)


def details(found: Mapping[str, Column]) -> list[str]:
    """One line for each result that is not right."""
    return [
        f"{tool}, {case.title}: {column[case.key].kind}, {' '.join(column[case.key].detail.split())[:160]}"
        for tool, column in found.items()
        for case in CASES
        if column[case.key].kind != "right"
    ]


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description="What bnfold folds that others do not.")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    markdown = parser.parse_args().markdown
    found = columns()
    table = rows(found, markdown=markdown)
    print(as_markdown(table) if markdown else as_text(table))
    print("", *footer(found), sep="\n\n" if markdown else "\n")
    if not markdown:
        print("", *details(found), sep="\n")


if __name__ == "__main__":
    main()
