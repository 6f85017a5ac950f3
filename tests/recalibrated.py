"""What recalibration must give, computed another way: BatchNorm after BatchNorm, whole data, float64, no cutting.

Each BatchNorm of the main graph in turn: evaluate the model in float64 up to its input, over all data at once, with the
statistics of all BatchNorms before it already replaced; take mean and variance; go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

import bnfold
from bnfold.frontends.onnx_float64 import evaluate, in_float64

Array = np.ndarray[Any, Any]

#: Of float32 models, in standard deviations: the brief's promise.
TOLERANCE = 1e-5


def expected(
    model: onnx.ModelProto, data: Mapping[str, Array], order: Sequence[Sequence[str]], *, bessel: bool = False
) -> dict[str, tuple[Array, Array]]:
    """Mean and variance by the name of the first node.

    Args:
        model: The model; its statistics are initializers.
        data: All samples.
        order: The names of the nodes that share statistics, in an order in which they can be computed.
        bessel: Whether to divide by n - 1.
    """
    wide = in_float64(model)
    nodes = {node.name: node for node in wide.graph.node}
    found = {}
    for group in order:
        inputs = evaluate(wide, dict(data), [nodes[name].input[0] for name in group])
        rows = np.concatenate([np.moveaxis(x, 1, -1).reshape(-1, x.shape[1]) for x in inputs.values()])
        mean, variance = rows.mean(axis=0), rows.var(axis=0, ddof=int(bessel))
        for name in group:  # a name of its own for each, so that sharing cannot hide anything
            for position, value in ((3, mean), (4, variance)):
                nodes[name].input[position] = f"{name}_expected{position}"
                wide.graph.initializer.append(onnx.numpy_helper.from_array(value, nodes[name].input[position]))
        found[group[0]] = mean, variance
    return found


def cut_up(data: Mapping[str, Array], size: int) -> list[dict[str, Array]]:
    """Batches of `size` samples; the last one may be smaller."""
    total = len(next(iter(data.values())))
    return [{name: x[start : start + size] for name, x in data.items()} for start in range(0, total, size)]


def assert_expected(
    result: bnfold.RecalibrationResult, wanted: Mapping[str, tuple[Array, Array]], tolerance: float = TOLERANCE
) -> None:
    """Every BatchNorm has these statistics and no other one has new ones; deviations are measured in deviations."""
    found = {entry.name: entry for entry in result.report.recalibrated}
    assert set(found) == set(wanted)
    for name, (mean, variance) in wanted.items():
        entry = found[name]
        deviation = np.sqrt(variance + entry.epsilon)
        assert (np.abs(entry.new.mean - mean) <= tolerance * deviation).all(), name
        assert (np.abs(entry.new.variance - variance) <= tolerance * deviation**2).all(), name


def statistics_in(model: onnx.ModelProto, name: str) -> tuple[Array, Array]:
    """The stored mean and variance of a BatchNorm node."""
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    node = next(node for node in model.graph.node if node.name == name)
    return arrays[node.input[3]], arrays[node.input[4]]
