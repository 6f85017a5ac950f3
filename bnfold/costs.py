"""What a clamp costs that gets a bound for each channel: Max or Min or both in the place of a Clip or a Relu.

In units of a BatchNorm, on onnxruntime 1.31 on a CPU: one bound costs 0.2 to 0.9 more than a Relu, two cost 1.2 to 2.3
more. The runtime merges a Clip or a Relu into the linear operator before it, and in images a BatchNorm and a Relu into
one operator on blocks of channels; a Max it does not, so that a DenseNet121 with a Max in the place of each
BatchNorm-Relu pair took 1.05 to 1.1 times as long (0.985 to 1 with its optimiser off).
"""

from __future__ import annotations

from bnfold.bench import Bench
from bnfold.graph import Bounds, SetBounds
from bnfold.views import Linear

#: By the number of sides of which one varies; the second costs more than a BatchNorm.
_SIDES = (0.0, 0.75, 2.0)

#: What is lost besides where the runtime would merge a Clip or a Relu with what stands before it.
_UNMERGED = 0.75

#: Images are what the runtime lays out in blocks.
_IMAGE_RANK = 4


def clamp_cost(bench: Bench, edit: SetBounds) -> float:
    """By how many BatchNorms the clamp gets dearer; not negative."""
    old, new = (_cost(bounds) for bounds in (bench.bounds(edit.operator), edit.bounds))
    lost = _UNMERGED if new > 0 and not old and _is_merged(bench, edit) else 0.0
    return max(0.0, new - old + lost)


def _cost(bounds: Bounds) -> float:
    return _SIDES[bounds.sides] if bounds.varies else 0.0


def _is_merged(bench: Bench, edit: SetBounds) -> bool:
    shape, producer = edit.operator.input_shapes[0], bench.producer(edit.operator.inputs[0])
    return shape is None or len(shape) == _IMAGE_RANK or (producer is not None and isinstance(producer.view, Linear))
