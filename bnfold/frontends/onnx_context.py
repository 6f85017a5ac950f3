"""What the readers of ONNX operators need to know around a node: shapes, constants, versions, attributes, readers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold.decision import Reason, Refusal
from bnfold.frontends.onnx_constants import Constants
from bnfold.frontends.onnx_shapes import Shapes
from bnfold.views import Barrier

#: The model's metadata that names the values which the leftovers of BatchNorms compute.
LEFT = "bnfold.left"

FLOATS = frozenset(("float16", "bfloat16", "float32", "float64"))


@dataclass(frozen=True, eq=False)
class Context:
    """The surroundings of the nodes of one graph.

    Attributes:
        shapes: Shapes and dtypes of the values.
        constants: Which values are constant.
        opset: The version of the standard operators.
        functions: Identifiers of the model-local functions.
    """

    shapes: Shapes
    constants: Constants
    opset: int
    functions: frozenset[tuple[str, str, str]]

    def version(self, node: ir.Node) -> int:
        """The operator set version that the node means."""
        return self.opset if node.version is None else node.version


def marked(model: ir.Model, key: str) -> list[Any]:
    """The list that an earlier fold put into the model's metadata; empty where there is none, or something else."""
    try:
        found = json.loads(model.metadata_props.get(key, "[]"))
    except ValueError:
        return []
    return found if isinstance(found, list) else []


def name_of(node: ir.Node) -> str:
    """The node's name; an unnamed node is known by its first output."""
    return node.name or next((v.name for v in node.outputs if v.name), None) or node.op_type


def is_standard(node: ir.Node) -> bool:
    """Whether the node is of the ONNX specification's own domain, which has two names."""
    return node.domain in ("", "ai.onnx")


def asks_for_shape(node: ir.Node) -> bool:
    """Whether the node reads the shape of its input alone, and none of its numbers."""
    return node.op_type in ("Shape", "Size") and is_standard(node)


def barrier(node: ir.Node, reason: Reason, detail: str = "") -> Barrier:
    """A barrier at `node`."""
    return Barrier(Refusal(reason, name_of(node), detail))


def input_at(node: ir.Node, position: int) -> ir.Value | None:
    """The input, or None where it is left out."""
    return node.inputs[position] if position < len(node.inputs) else None


def is_present(value: ir.Value) -> bool:
    """Whether an output has a name; exporters leave out trailing outputs by an empty one."""
    return bool(value.name)


def is_read(value: ir.Value) -> bool:
    """Whether anything, the caller included, reads the value."""
    return bool(value.uses()) or value.is_graph_output()


def int_attr(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute."""
    attr = node.attributes.get(name)
    return default if attr is None else attr.as_int()


def ints_attr(node: ir.Node, name: str) -> tuple[int, ...] | None:
    """A list of integers, or None where it is left out."""
    attr = node.attributes.get(name)
    return None if attr is None else tuple(attr.as_ints())


def float_attr(node: ir.Node, name: str, default: float) -> float:
    """A float attribute: the double that equals the stored float32."""
    attr = node.attributes.get(name)
    return float(np.float32(default)) if attr is None else float(np.float32(attr.as_float()))


def str_attr(node: ir.Node, name: str, default: str) -> str:
    """A string attribute."""
    attr = node.attributes.get(name)
    return default if attr is None else attr.as_string()


def is_float(dtype: np.dtype[Any] | None) -> bool:
    """Whether the dtype is one of the floating-point types that bnfold folds."""
    return dtype is not None and dtype.name in FLOATS
