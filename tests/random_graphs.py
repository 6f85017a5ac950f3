"""Random ONNX graphs made of the operators that bnfold knows: a pure function of a seed and a size.

A graph is a walk: linear operators and BatchNorms with none to three carriers between them, joins, forks and barriers.
With one seed a smaller graph is the beginning of a larger one, so that a failure shrinks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from onnx import ModelProto

from tests import random_graph_branches as branches
from tests import random_graph_carriers as carriers
from tests import random_graph_linear as linears
from tests import random_graph_measures as measures
from tests import random_graph_pairs as pairs
from tests.random_graph_builder import Array, Builder, Misfit, Value

Step: TypeAlias = Callable[[Builder, Value], Value]

SMALLEST, LARGEST = 3, 25

#: Steps and their weights; those that only pass something on.
CARRIERS: dict[Step, float] = {
    carriers.same: 2,
    carriers.transpose: 1.5,
    carriers.reshape: 1.5,
    carriers.flatten: 0.4,
    carriers.squeeze: 1,
    carriers.unsqueeze: 0.5,
    carriers.shuffle: 0.7,
    carriers.concat: 2,
    carriers.pool: 2,
    carriers.global_pool: 0.5,
    carriers.reduce: 0.3,
    carriers.resize: 1.5,
    carriers.pad: 1.5,
    carriers.activation: 1.5,
    carriers.clamp: 1,
    carriers.cast: 0.25,
    pairs.two_variables: 1.5,
    pairs.gate: 0.7,
    pairs.slice_: 0.8,
    pairs.chunk: 1.2,
    pairs.gather: 0.5,
    pairs.blocks: 0.7,
    measures.measured: 1.5,
    linears.arithmetic: 2,
    linears.disguised_batch_norm: 0.4,
}
#: What stands between two routes.
OTHERS: dict[Step, float] = {
    **CARRIERS,
    linears.linear: 6,
    linears.batch_norm: 4,
    linears.disguised_batch_norm: 2,
    pairs.two_variables: 2,
    pairs.gate: 1,
    carriers.normed_activation: 1,
    carriers.barrier: 0.7,
    branches.branches: 2,
    measures.measured: 1.5,
}
_IR_VERSIONS = {9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10}


@dataclass(frozen=True, eq=False)
class RandomGraph:
    """A model, and what it can be run on.

    Attributes:
        model: A valid model with 3 to 25 operators, not counting those that only make constants.
        feeds: An array for each input without a default.
    """

    model: ModelProto
    feeds: dict[str, Array]


def random_graph(seed: int, size: int | None = None) -> RandomGraph:
    """The graph of that seed.

    Args:
        seed: Not negative.
        size: How many operators at least, 3 to 22 (a step may add a few more); drawn from the seed when left out.
    """
    rng = np.random.default_rng([seed, 0])
    dtype = np.dtype(str(rng.choice(["float32", "float64", "float16"], p=[0.88, 0.06, 0.06])))
    b = Builder(rng, int(rng.integers(9, 22)), dtype)
    drawn = int(rng.integers(SMALLEST, LARGEST - 2))
    static = _inputs(b)
    _walk(b, drawn if size is None else size)
    return RandomGraph(_finished(b, np.random.default_rng([seed, 1]), static), b.feeds)


def _inputs(b: Builder) -> bool:
    """One input, sometimes two; whether all their sizes are declared."""
    rank = b.pick(4, 4, 4, 4, 3, 3, 5, 2, 2)
    most = {2: 0, 3: 10, 4: 7, 5: 4}[rank]
    shape = (b.between(1, 3), b.pick(1, 2, 3, 4, 4, 6), *(b.between(3, most) for _ in range(rank - 2)))
    declared: list[int | str] = list(shape)
    if b.chance(0.5):
        declared[0] = "N"
        if b.chance(0.5):
            declared[2:] = [f"S{i}" for i in range(2, rank)]
        if b.chance(0.04):
            declared[1] = "C"
    for _ in range(1 + b.chance(0.15)):
        b.input(shape, declared)
    return declared == list(shape)


def _walk(b: Builder, size: int) -> None:
    for _ in range(20 * size):
        if b.operators >= size:
            return
        x = b.values[-1] if b.chance(0.7) else b.values[int(b.rng.integers(len(b.values)))]
        for step in _route(b) if b.chance(0.6) else [_drawn(b, OTHERS)]:
            if b.operators >= size:
                return
            x = _tried(b, step, x)


def _route(b: Builder) -> list[Step]:
    """A linear operator and a BatchNorm with none to three carriers between them, in either order."""
    norm = linears.batch_norm if b.chance(0.85) else linears.disguised_batch_norm
    between = [_drawn(b, CARRIERS) for _ in range(b.between(0, 3))]
    return [linears.linear, *between, norm] if b.chance(0.6) else [norm, *between, linears.linear]


def _drawn(b: Builder, weights: dict[Step, float]) -> Step:
    total = np.cumsum(list(weights.values()))
    return list(weights)[int(np.searchsorted(total, b.rng.random() * total[-1]))]


def _tried(b: Builder, step: Step, x: Value) -> Value:
    """What the step gives; x where the step does not fit it."""
    before = b.mark()
    try:
        return step(b, x)
    except Misfit:
        b.rollback(before)
        return x


def _finished(b: Builder, rng: np.random.Generator, static: bool) -> ModelProto:
    """The model: values that nothing reads are outputs (or dead), and some of the others too."""
    read = {name for node in b.nodes for name in node.input}
    computed = [v for v in b.values if v.name not in b.feeds]
    outputs = [v for v in computed if v is computed[-1] or rng.random() < (0.04 if v.name in read else 0.85)]
    rng.shuffle(outputs)
    old = b.opset == 9 and rng.random() < 0.5
    listed = list(b.initializers) if old or rng.random() < 0.05 else []
    return b.finish(outputs, 3 if old else _IR_VERSIONS[b.opset], listed, static)
