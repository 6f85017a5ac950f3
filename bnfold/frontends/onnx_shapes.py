"""Shapes and dtypes of every value, inferred afresh: recorded value_info may be stale, and proves nothing.

Sizes that the model leaves anonymous at its inputs get a symbol each, so that inference can follow them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from bnfold.graph import Shape


class Shapes:
    """What is known about the values of one model's main graph, by name."""

    def __init__(self, model: ir.Model, sizes: Mapping[str, tuple[int, ...]] | None = None) -> None:
        """Infer; `sizes` are shapes to assume for inputs, by name."""
        probe = model.clone()
        _forget(probe)
        for i, value in enumerate(probe.graph.inputs):
            given = (sizes or {}).get(value.name or "")
            value.shape = _named(value.shape, i) if given is None else ir.Shape(given)
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(probe)
        self._values = {
            v.name: v for v in ir.convenience.create_value_mapping(probe.graph, include_subgraphs=False).values()
        }
        self._shapes = {name: _shape(v) for name, v in self._values.items()}

    def shape(self, value: ir.Value | None) -> Shape | None:
        """Sizes, symbols (equal symbols are equal sizes) and unknowns; None if the rank is unknown."""
        return None if value is None else self._shapes.get(value.name)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all values."""
        return tuple(name for name in self._shapes if name is not None)

    def by_name(self, name: str) -> Shape | None:
        """As `shape`, for the value called `name`."""
        return self._shapes.get(name)

    def rank(self, value: ir.Value | None) -> int | None:
        """The number of axes; None if unknown."""
        shape = self.shape(value)
        return None if shape is None else len(shape)

    def dtype(self, value: ir.Value | None) -> np.dtype[Any] | None:
        """The NumPy (or ml_dtypes) dtype; None if unknown or not a tensor's."""
        known = None if value is None else self._values.get(value.name)
        if known is None or known.dtype is None:
            return None
        return known.dtype.numpy() if known.dtype in _NUMERIC else None


_NUMERIC = frozenset(
    (
        ir.DataType.FLOAT,
        ir.DataType.DOUBLE,
        ir.DataType.FLOAT16,
        ir.DataType.BFLOAT16,
        ir.DataType.INT8,
        ir.DataType.UINT8,
        ir.DataType.INT16,
        ir.DataType.UINT16,
        ir.DataType.INT32,
        ir.DataType.INT64,
        ir.DataType.UINT32,
        ir.DataType.UINT64,
        ir.DataType.BOOL,
    )
)


def _forget(model: ir.Model) -> None:
    """Drop every inner shape and type; keep those of inputs and initializers, and the outputs' types."""
    for graph in model.graphs():
        outputs = {id(v) for v in graph.outputs}
        for node in graph:
            for value in node.outputs:
                value.shape = None
                if id(value) not in outputs:
                    value.type = None


def _named(shape: ir.Shape | None, index: int) -> ir.Shape | None:
    if shape is None:
        return None
    return ir.Shape([d if _is_known(d) else f"bnfold_input{index}_axis{k}" for k, d in enumerate(shape)])


def _is_known(dim: int | ir.SymbolicDim) -> bool:
    return isinstance(dim, int) or dim.value is not None


def _shape(value: ir.Value) -> Shape | None:
    if value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)
