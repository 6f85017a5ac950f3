"""Inner tensors of another tool's model that go by the name of one of the original's, and have the values of another.

A tool that folds a BatchNorm into a Conv may leave the Conv's name to what is the BatchNorm's output now. Such a tensor
is compared with the one whose values it has: which tensor is compared with which is a guess that the check then proves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from bnfold.dataflow import node_bodies, node_reads
from bnfold.probing import node_outputs, probe, usable
from bnfold.slices import absolute_difference, magnitudes
from bnfold.verdicts import Repeat

#: Another tensor must be this many times closer than the one of equal name, and as near as this part of its scale:
#: through a deep network rounding may move a tensor by hundredths.
_CLOSER, _NEAR = 4.0, 0.25


def reused_names(repeat: Repeat, before: onnx.ModelProto, after: onnx.ModelProto) -> dict[str, str]:
    """Names of the folded model, and the original's names of the tensors whose values those have.

    Args:
        repeat: The runs of a check; the inner tensors that failed it are looked at in its first run.
        before: The original with its weights loaded.
        after: The folded model, likewise.

    Raises:
        ProviderError: A model cannot be run.
    """
    suspects = [entry.name for entry in repeat.check.inner if entry.failed]
    if not suspects:
        return {}
    provider, (feeds, _) = repeat.check.provider, next(iter(repeat))
    old, new = probe(before, {}, provider), probe(after, {}, provider)
    taken = {name for node in after.graph.node for name in (*node.output, *node_reads(node))}
    free = [name for name in node_outputs(old.graph) if name in usable(old) - taken]
    was = old.session.run((*free, *suspects), feeds)
    found: dict[str, str] = {}
    for name, values in new.session.run(suspects, feeds).items():
        apart = {other: _apart(was[other], values) for other in free}
        closest = min(apart, key=apart.__getitem__, default=name)
        if apart.get(closest, np.inf) < min(_NEAR, _apart(was[name], values) / _CLOSER):
            found[name] = closest
            free.remove(closest)
    return found


def reuse_note(names: Mapping[str, str]) -> str:
    """One sentence on what `reused_names` found."""
    name, other = next(iter(names.items()))
    tensors = "1 tensor of the second model goes" if len(names) == 1 else f"{len(names)} tensors of the second model go"
    have = "has" if len(names) == 1 else "have"
    return f"{tensors} by the name of one of the first and {have} the values of another: {name} has those of {other}."


def renamed(model: onnx.ModelProto, names: Mapping[str, str]) -> onnx.ModelProto:
    """A copy of `model` in which values have other names; none of these may be there."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _rename(copy.graph, names)
    return copy


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for value in (*graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for places in (node.input, node.output):
            places[:] = [names.get(name, name) for name in places]
        for body in node_bodies(node):
            _rename(body, names)


def _apart(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The largest difference, of the largest element of `one`."""
    if one.shape != other.shape or one.dtype != other.dtype or not one.size:
        return np.inf
    scale, difference = float(magnitudes(one).max()), float(absolute_difference(one, other).max())
    return difference / scale if np.isfinite(difference) and scale > 0 else np.inf
