"""Whether two models take and give the same: names, order, and the element types of the inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnfold.comparison import TensorComparison

if TYPE_CHECKING:
    import onnx


def compare_interfaces(before: onnx.GraphProto, after: onnx.GraphProto) -> tuple[TensorComparison, ...]:
    """A failed comparison for every input or output whose name, order or type (of inputs) changed."""
    failures = []
    for what, old, new in (
        ("input", _inputs(before), _inputs(after)),
        ("output", {value.name: 0 for value in before.output}, {value.name: 0 for value in after.output}),
    ):
        notes = {name: f"the {what} is gone" for name in old if name not in new}
        notes |= {name: f"the {what} is new" for name in new if name not in old}
        notes |= {name: f"the {what} changed its type" for name in old if name in new and old[name] != new[name]}
        if not notes and list(old) != list(new):
            notes[next(iter(old))] = f"the order of the {what}s changed to {', '.join(new)}"
        failures += [failure(name, note) for name, note in notes.items()]
    return tuple(failures)


def _inputs(graph: onnx.GraphProto) -> dict[str, int]:
    """Element type of every input that a caller must feed."""
    held = {tensor.name for tensor in graph.initializer}
    return {value.name: value.type.tensor_type.elem_type for value in graph.input if value.name not in held}


def failure(name: str, note: str, kind: str = "") -> TensorComparison:
    """A failed comparison of a tensor that cannot be compared; `note` says why."""
    return TensorComparison(name, (), kind, float("inf"), 0.0, 0.0, note=note)
