"""The opposite of right folds: folds that were made wrong on purpose, and whether bnfold's check sees it and where.

Twenty layers, one of them wrong in one way (`tests/mutated_folds.py`), for several seeds of all weights; and a YOLO all
of whose class scores are zero, which one scale for the whole output would hide behind the boxes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

import bnfold
from benchmarks.coverage_build import make
from benchmarks.coverage_nets import NETS
from tests.mutated_folds import BORDER, MUTATIONS, PLACES, behind, verified

_SOURCE = Path(__file__).resolve().parents[1] / "tests" / "mutated_folds.py"

#: Seeds of all the weights of the network.
SEEDS = range(4)
ZEROED = "YOLOv8n, class scores zeroed"


@dataclass(frozen=True)
class Caught:
    """What the check said to one wrong fold.

    Attributes:
        kind: What was done to it.
        seed: Of the weights.
        place: The layer.
        caught: Either test failed.
        local: The local test failed, at the wrong layer and nowhere else; None where no plan of bnfold made the fold.
        first: The tensor from which on both models differ is the right one.
        named: The sentence for people names the right place.
    """

    kind: str
    seed: int
    place: int
    caught: bool
    local: bool | None
    first: bool
    named: bool


def tried(cache: Path, digest: str) -> list[Caught]:
    """All wrong folds, from the cache where they were tried before; the YOLO only where ultralytics is installed."""
    path = cache / f"wrong-{digest}-{hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:12]}.json"
    if not path.exists():
        path.write_text(json.dumps([asdict(one) for one in _all(cache)]), encoding="utf-8")
    return [Caught(**held) for held in json.loads(path.read_text(encoding="utf-8"))]


def _all(cache: Path) -> Iterator[Caught]:
    for kind in (*MUTATIONS, BORDER):
        yield from (damaged(kind, place, seed) for seed in SEEDS for place in PLACES)
    if find_spec("ultralytics") is not None:
        yield zeroed(cache)


def damaged(kind: str, place: int, seed: int) -> Caught:
    """One layer folded wrongly."""
    found = verified(kind, place, seed)
    (quick,) = found.quick
    at = behind(kind, place)
    blamed = [check.batchnorms for check in found.local if check.failed]
    local = None if kind == BORDER else blamed == [(f"bn{place}",)]
    named = f"bn{place} " in found.culprit if local else found.culprit.endswith(f" is {at}")
    return Caught(kind, seed, place, found.failed, local, quick.first_divergence == at, named)


def zeroed(cache: Path) -> Caught:
    """A YOLO whose scores are multiplied by 0 right before they are joined with the boxes."""
    folder = cache / "yolov8n"
    folder.mkdir(exist_ok=True)
    if not (folder / "original.onnx").exists():
        make(next(net for net in NETS if net.name == "yolov8n"), folder)
    model = onnx.load(folder / "original.onnx")
    (quick,) = bnfold.verify(folder / "original.onnx", ir.from_proto(_without_scores(model))).quick
    output = model.graph.output[0].name
    return Caught(ZEROED, 0, 0, quick.failed, None, quick.first_divergence == output,
                  any(c.failed and c.name == output for c in quick.comparisons))  # fmt: skip


def _without_scores(model: onnx.ModelProto) -> onnx.ModelProto:
    graph, output = model.graph, model.graph.output[0].name
    place, join = next((i, node) for i, node in enumerate(graph.node) if output in node.output)
    graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), "none"))
    scores = join.input[1]
    join.input[1] = "no_scores"
    graph.node.insert(place, helper.make_node("Mul", [scores, "none"], ["no_scores"]))
    return model
