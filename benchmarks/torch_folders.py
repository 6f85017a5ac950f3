"""Folders of PyTorch modules: what each leaves of networks and of small modules, and where it is wrong, as one table.

Run from the repository root, with the packages installed (one that is not there is shown as such)::

    pip install torch onnxruntime pyyaml
    pip install --no-deps torchvision timm ultralytics
    pip install opencv-python-headless psutil        # ultralytics asks for them
    python -m benchmarks.torch_folders --markdown torch.md
    python -m benchmarks.torch_folders --only 'resnet|yolo' --tools 'bnfold|fx'

Every tool works on every network in a process of its own, within limits of time and memory, and what it found out is
kept in a folder under the system's temporary one: a run that was interrupted goes on where it stopped, and a new tool
in a file of its own leaves the others' figures as they are.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

from benchmarks.coverage_build import Facts
from benchmarks.coverage_judge import Outcome
from benchmarks.coverage_nets import Net
from benchmarks.coverage_run import Examined, Limits, installed, process
from benchmarks.torch_cases import CASES
from benchmarks.torch_judge import NOTHING
from benchmarks.torch_nets import TORCH_NETS
from benchmarks.torch_sums import UNMEASURED
from benchmarks.torch_table import Small, page
from benchmarks.torch_tools import SMALL, WHOLE

_ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("torch", "timm", "ultralytics")
_ENLIVENED = "tests/zoo/lively.py"
#: What an original and its truth depend on besides the row of the network, and a judgement besides the tool.
_ORIGINAL = (*(f"benchmarks/{name}.py" for name in ("coverage_build", "coverage_models", "torch_build")), _ENLIVENED)
_JUDGE = tuple(f"benchmarks/{name}.py" for name in ("coverage_judge", "frontier_judge", "torch_judge", "torch_made"))


def examine(net: Net, cache: Path, limits: Limits | None, tools: Sequence[str]) -> Examined:
    """Everything about one network, from the cache where it was found out before; without limits from there alone."""
    if find_spec(net.package) is None:
        return Examined(net, trouble=f"{net.package} is not installed")
    folder = cache / f"{net.name}-{_digest(str(net), *_ORIGINAL)}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "facts.json").exists():
        if limits is None:
            return Examined(net, trouble=UNMEASURED)
        kind, _, said = process(["benchmarks.torch_build", net.name, str(folder)], limits)
        if not (folder / "facts.json").exists():
            return Examined(net, trouble=f"not built: {kind}, {said.splitlines()[-1]}")
    facts = Facts(**json.loads((folder / "facts.json").read_text(encoding="utf-8")))
    examined = Examined(net, facts)
    for tool in tools:
        target = folder / f"{re.sub('[ .]', '-', tool)}-{_version(tool)}.json"
        outcome = _folded(net, tool, folder, target, limits)
        if outcome.kind != NOTHING:
            examined.outcomes[tool] = outcome
        report = target.with_suffix(".report")
        examined.reports[tool] = json.loads(report.read_text(encoding="utf-8")) if report.exists() else None
    return examined


def _folded(net: Net, tool: str, folder: Path, target: Path, limits: Limits | None) -> Outcome:
    if not target.exists():
        if limits is None:
            return Outcome(UNMEASURED)
        command = ["benchmarks.torch_judge", "fold", net.name, tool, str(folder), str(target)]
        kind, seconds, said = process(command, limits)
        if not target.exists():
            target.write_text(json.dumps(asdict(Outcome(kind, detail=said[-300:], seconds=seconds))), encoding="utf-8")
    return Outcome(**json.loads(target.read_text(encoding="utf-8")))


def small(tool: str, cache: Path, limits: Limits | None) -> Small:
    """What one tool makes of every small module, in processes that may die: the next one starts behind the case."""
    cases = _digest("", "benchmarks/torch_cases.py", _ENLIVENED)
    target = cache / f"small-{tool.replace(' ', '-')}-{_version(tool)}-{cases}.jsonl"
    if limits is None:
        return _lines(target)
    while todo := [case.key for case in CASES if case.key not in (found := _lines(target))]:
        kind, seconds, said = process(["benchmarks.torch_judge", "small", tool, str(target), *todo], limits)
        if kind != "done":
            left = next(key for key in todo if key not in (found := _lines(target)))
            with target.open("a", encoding="utf-8") as file:
                print(json.dumps([left, asdict(Outcome(kind, detail=said[-300:], seconds=seconds))]), file=file)
    return found


def _lines(target: Path) -> Small:
    lines = target.read_text(encoding="utf-8").splitlines() if target.exists() else []
    return {key: Outcome(**outcome) for key, outcome in map(json.loads, lines)}


def _version(tool: str) -> str:
    """Changes with the function behind the tool and the file that it is in, the judge, and for bnfold with bnfold.

    Another tool, in a file of its own, leaves it as it is: what was found out about this one stays.
    """
    function = SMALL.get(tool) or WHOLE[tool]
    ours = installed("bnfold") if tool.startswith("bnfold") else ""
    source = f"{function.__module__.replace('.', '/')}.py"
    return _digest(f"{function.__name__} {ours}", source, *_JUDGE)


def _digest(text: str, *sources: str) -> str:
    """Changes with the text, the packages and these files of the repository."""
    versions = " ".join(f"{package} {installed(package)}" for package in _PACKAGES)
    parts = [(_ROOT / source).read_bytes() for source in sources]
    return hashlib.sha256(f"{text} {versions}".encode() + b"".join(parts)).hexdigest()[:12]


def main() -> None:
    """Run what is asked for and print or write the page."""
    parser = argparse.ArgumentParser(description="What folders of PyTorch modules leave, and where they are wrong.")
    parser.add_argument("--only", default="", metavar="REGEX", help="only networks in whose name it is found")
    parser.add_argument("--tools", default="", metavar="REGEX", help="only tools in whose name it is found")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page here instead of to stdout")
    parser.add_argument("--known", action="store_true", help="run nothing: only what was found out before")
    parser.add_argument("--seconds", type=float, default=900.0, metavar="N", help="for one process")
    parser.add_argument("--memory", type=int, default=Limits.gibibytes, metavar="GIB", help="for one process")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "bnfold-torch", metavar="DIR")
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    limits = None if given.known else replace(Limits(), seconds=given.seconds, gibibytes=given.memory)
    cases = {}
    for tool in (tool for tool in SMALL if re.search(given.tools, tool)):
        cases[tool] = small(tool, given.cache, limits)
        print(f"{tool}: small modules done", file=sys.stderr, flush=True)
    found = []
    for net in (net for net in TORCH_NETS if re.search(given.only, net.name)):
        found.append(examine(net, given.cache, limits, [tool for tool in WHOLE if re.search(given.tools, tool)]))
        done = ", ".join(f"{tool} {outcome.kind}" for tool, outcome in found[-1].outcomes.items())
        print(f"{net.name}: {found[-1].trouble or done}", file=sys.stderr, flush=True)
        if given.markdown:  # as far as it got: the page names what is not in it
            given.markdown.write_text(page(found, cases), encoding="utf-8")
    if not given.markdown:
        print(page(found, cases))


if __name__ == "__main__":
    main()
