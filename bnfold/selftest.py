"""The verifier tries itself: a weight that is off by `max(1e-3, 16u)` of its layer's largest must fail the local test.

A check that passes proves something only if it can fail, here and now, on this model and these inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from bnfold.dataflow import FLOATS
from bnfold.rounding import unit_roundoff

#: The least error of a weight, in units of its layer's largest, that the local test must see.
VISIBLE, ROUNDINGS = 1e-3, 16

#: How many channels of a region are damaged one after the other, until one is seen.
TRIES = 4


@dataclass(frozen=True)
class SelfTest:
    """What the verifier saw of a weight that was damaged on purpose.

    Attributes:
        batchnorms: What was folded in the region.
        weight: The damaged constant; empty where the region stores none with channels.
        ratio: The error that the local test saw, in units of the bound; 0 where there is no such constant.
    """

    batchnorms: tuple[str, ...]
    weight: str
    ratio: float

    @property
    def seen(self) -> bool:
        """Whether the damaged weight failed the local test; there may have been none to damage."""
        return not self.weight or not self.ratio <= 1


def try_itself(
    batchnorms: tuple[str, ...],
    old: onnx.ModelProto,
    new: onnx.ModelProto,
    compare: Callable[[onnx.ModelProto, onnx.ModelProto], float],
) -> SelfTest:
    """Damage the folded region `new` and compare it with `old`.

    Args:
        batchnorms: What was folded in the region.
        old: The region of the original.
        new: The region of the folded model; not changed.
        compare: The largest error in units of the bound.
    """
    best = SelfTest(batchnorms, "", 0.0)
    for name, damaged in _damaged(old, new):
        found = SelfTest(batchnorms, name, compare(old, damaged))
        best = found if not best.weight or found.ratio > best.ratio else best
        if found.seen:
            return found
    return best


def _damaged(old: onnx.ModelProto, new: onnx.ModelProto) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Copies of `new` with one number of one channel off, in the largest constant that the fold changed."""
    before = {tensor.name: tensor.SerializeToString() for tensor in old.graph.initializer}
    changed = [t for t in new.graph.initializer if t.dims and before.get(t.name) != t.SerializeToString()]
    arrays: Mapping[str, Any] = {t.name: numpy_helper.to_array(t) for t in changed}
    floats = [name for name, array in arrays.items() if array.dtype.name in FLOATS and array.size]
    if not floats:
        return
    name = max(floats, key=lambda key: arrays[key].size)
    for place in _places(arrays[name]):
        yield name, _with(new, name, place)


def _places(values: np.ndarray[Any, Any]) -> Sequence[int]:
    """Where the largest numbers of the first few slices stand, the largest of all first."""
    flat = np.abs(values.astype(np.float64)).reshape(values.shape[0], -1)
    order = np.argsort(-flat.max(axis=1), kind="stable")[:TRIES]
    return [int(row * flat.shape[1] + flat[row].argmax()) for row in order]


def _with(model: onnx.ModelProto, name: str, place: int) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = next(t for t in copy.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    step = max(VISIBLE, ROUNDINGS * unit_roundoff(values.dtype)) * float(np.abs(values.astype(np.float64)).max())
    values.reshape(-1)[place] += np.asarray(step or 1.0, values.dtype)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    return copy
