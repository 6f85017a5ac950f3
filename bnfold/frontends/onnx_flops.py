"""Counts the floating-point operations of an ONNX model at given input sizes, by the formulas of its specification.

No package for this is taken in: those on the package index bring a shape inference of their own, count functions of an
element in their own units, and have no place for what they do not know. Shapes here are those that the folds rely on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import onnx_ir as ir

from bnfold.flops import Flops, Uncounted, Work
from bnfold.frontends.onnx_context import is_float, is_standard
from bnfold.frontends.onnx_inline import write_out
from bnfold.frontends.onnx_operations import ARITHMETIC, FREE, LINEAR, Sizes, work_of
from bnfold.frontends.onnx_run_shapes import RunShapes
from bnfold.frontends.onnx_scopes import bodies
from bnfold.graph import Shape

_BODY = "how often its bodies run, and which, is known at run time only"
_SIZE = "its sizes are known at run time only"
_TYPE = "there is no formula for it here"


def count_flops(model: ir.Model, sizes: Mapping[str, tuple[int, ...]]) -> Flops:
    """What one run of `model` computes, functions written out; the bodies of If, Loop and Scan are left out.

    Args:
        model: The model; not changed.
        sizes: Shapes of inputs by name; those that are not there must be static in the model.

    Returns:
        The count. It is unknown where an input's size is, or that of a convolution or a matrix product: without
        them a figure would say nothing.
    """
    if model.functions:
        model = model.clone()
        write_out(model)
    inputs = _inputs(model, sizes)
    open_ones = [name for name, shape in inputs.items() if shape is None]
    if open_ones:
        return Flops(None, unknown=f"the model leaves the size of {open_ones[0]} open, and no size was given")
    known = {name: shape for name, shape in inputs.items() if shape is not None}
    shapes = RunShapes(model, known)
    work, missing = Work(), Counter[tuple[str, str]]()
    for node in model.graph:
        found = _count(node, shapes)
        if isinstance(found, Work):
            work += found
        elif found == _SIZE and node.op_type in LINEAR:
            return Flops(None, known, unknown=f"the sizes of {node.name or node.op_type} are known at run time only")
        else:
            missing[_type(node), found] += 1
    return Flops(work, known, tuple(Uncounted(name, n, why) for (name, why), n in sorted(missing.items())))


def _inputs(model: ir.Model, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...] | None]:
    """The shape of each input that is no initializer; None where the rank or a size is open."""
    held = set(model.graph.initializers)
    values = [value for value in model.graph.inputs if value.name and value.name not in held]
    return {str(v.name): sizes.get(str(v.name)) or _static(v.shape) for v in values}


def _static(shape: ir.Shape | None) -> tuple[int, ...] | None:
    if shape is None or not all(isinstance(size, int) for size in shape):
        return None
    return tuple(int(size) for size in shape)  # type: ignore[arg-type]


def _count(node: ir.Node, shapes: RunShapes) -> Work | str:
    """What the node does, or why that is not counted."""
    if any(True for _ in bodies(node)):
        return _BODY
    if not is_standard(node) or node.op_type not in ARITHMETIC:
        return Work() if is_standard(node) and node.op_type in FREE else _TYPE
    if not any(is_float(shapes.dtype(value)) for value in (node.inputs[0], node.outputs[0])):
        return Work()  # shape arithmetic
    known = ([_sizes_of(shapes, value) for value in values] for values in (node.inputs, node.outputs))
    found = work_of(node, *known)
    return _SIZE if found is None else found


def _sizes_of(shapes: RunShapes, value: ir.Value | None) -> Sizes:
    """The shape of the value; None if it is absent or its sizes are not all known."""
    shape: Shape | None = shapes.shape(value)
    fixed = [size for size in shape or () if isinstance(size, int)]
    return tuple(fixed) if shape is not None and len(fixed) == len(shape) else None


def _type(node: ir.Node) -> str:
    return node.op_type if is_standard(node) else f"{node.domain}::{node.op_type}"
