"""Judges one result: of every channel `error(result) <= 4 * error(original) + 64 * u * scale`, u = 2^-24.

`python -m benchmarks.coverage_judge DIR RESULT OUTCOME` reads what `coverage_build` left in `DIR`, and writes the
outcome as JSON. Errors are those against the truth in float64, over all images and places of a channel; `scale` is the
channel's largest true number. The figure of the table is the largest

    error(result) / (error(original) + 16 * u * scale),    so that the rule is: at most 4.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from benchmarks.coverage_build import Array, Facts, Truth, per_channel, run
from benchmarks.frontier_judge import TOLERANCE, RefusedError, invalidity

UNIT = 2.0**-24
#: The rule of accuracy, and the roundings that a channel is granted whose original happens to be exact.
LIMIT, GRANTED = 4.0, 16.0


@dataclass(frozen=True)
class Outcome:
    """What became of one architecture in one tool's hands.

    Attributes:
        kind: "right"; "WRONG" (an error above `TOLERANCE` of the output's scale, or a number that is not finite);
            "INACCURATE" (the rule above is broken, though by less than that); "UNPROVEN" (valid, but the outputs prove
            nothing); "INVALID" (the checker or onnxruntime refuses it); "ERROR" (the tool raised); "CRASH" (its process
            died); "TIMEOUT".
        batchnorms: How many BatchNormalization nodes are left; None where there is no result.
        nodes: How many nodes there are; None where there is no result.
        ratio: The figure above; None where nothing was compared, or where the outputs prove nothing.
        error: The largest error of an output, of its scale.
        exact: The largest error of a channel of the same fold in float64; None where that was not measured.
        detail: A sentence for people.
        seconds: How long the tool's process ran.
    """

    kind: str
    batchnorms: int | None = None
    nodes: int | None = None
    ratio: float | None = None
    error: float | None = None
    exact: float | None = None
    detail: str = ""
    seconds: float = 0.0

    @property
    def is_bad(self) -> bool:
        """Whether the tool failed on this architecture, or what it made is not as good as the original."""
        return self.kind not in ("right", "UNPROVEN")


def judge(original: onnx.ModelProto, result: onnx.ModelProto, truth: Truth, facts: Facts) -> Outcome:
    """The outcome of a tool that made `result` of `original`."""
    counted = Outcome("right", _batchnorms(result), sum(1 for _ in _nodes(result.graph)))
    if refusal := invalidity(original, result):
        return replace(counted, kind="INVALID", detail=refusal)
    try:
        outputs = run(result, truth.images)
    except RefusedError as refused:
        return replace(counted, kind="INVALID", detail=str(refused))
    found = [figures(outputs[name], truth.outputs[name], truth.errors[name]) for name in truth.outputs]
    ratio, error = (float(np.max(column)) for column in zip(*found, strict=True))
    if facts.state != "alive":
        return replace(counted, kind="UNPROVEN", error=finite(error), detail=f"the outputs are {facts.state}")
    kind = "right" if ratio <= LIMIT else "INACCURATE" if error <= TOLERANCE else "WRONG"
    return replace(counted, kind=kind, ratio=finite(ratio), error=finite(error))


def figures(output: Array, truth: Array, errors: Array) -> tuple[float, float]:
    """The ratio of the worst channel, and the largest error of the whole output's scale; infinite where it is."""
    if output.shape != truth.shape or not np.isfinite(output).all():
        return np.inf, np.inf
    difference, scale = per_channel(output - truth), per_channel(truth)
    granted = errors + GRANTED * UNIT * scale
    ratios = np.divide(difference, granted, out=np.where(difference > 0, np.inf, 0.0), where=granted > 0)
    return float(ratios.max()), float(difference.max() / scale.max())


def finite(number: float) -> float | None:
    """JSON has no infinity: an error that is not finite is None, and the kind says what that means."""
    return number if np.isfinite(number) else None


def _batchnorms(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "BatchNormalization" for node in _nodes(model.graph))


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of the bodies in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g)


def judge_files(folder: Path, result: Path) -> Outcome:
    """The outcome of a result in a file, which may be no ONNX file at all."""
    facts = Facts(**json.loads((folder / "facts.json").read_text(encoding="utf-8")))
    original, truth = onnx.load(folder / "original.onnx"), Truth.load(folder / "truth.npz")
    try:
        return judge(original, onnx.load(result), truth, facts)
    except DecodeError as broken:
        return Outcome("INVALID", detail=f"the file is broken: {broken}")


def main() -> None:
    """Judge one file and write the outcome."""
    folder, result, outcome = map(Path, sys.argv[1:])
    outcome.write_text(json.dumps(asdict(judge_files(folder, result))), encoding="utf-8")


if __name__ == "__main__":
    main()
