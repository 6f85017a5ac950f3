"""Shapes of what enters the bodies of Loop and Scan, round after round, which ONNX's own inference leaves open.

Proven by induction: a size that the first round gets, and that a round hands on if it got it, is that of every round.
The declared shape of a body's input is no proof: nothing checks it when the model runs.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from bnfold.frontends.onnx_scopes import bodies

#: Constants of more bytes are no axes, sizes or shapes.
_SMALL = 1024


def bring_in_constants(model: ir.Model) -> None:
    """Give bodies copies of the small constants that they read outside, where ONNX's inference does not see them."""
    for k, (_, body) in enumerate(_with_bodies(model)):
        copies: dict[ir.Value, ir.Value] = {}
        for node in body:
            for i, value in enumerate(node.inputs):
                if value is None or value.graph is body or (tensor := _small_constant(value)) is None:
                    continue
                if value not in copies:
                    name = f"bnfold_constant{k}_{len(copies)}"
                    kind = ir.TensorType(tensor.dtype)
                    copies[value] = ir.Value(name=name, shape=ir.Shape(tensor.shape.numpy()), type=kind)
                    copies[value].const_value = ir.Tensor(tensor.numpy(), tensor.dtype, name=name)
                    body.register_initializer(copies[value])
                node.replace_input_with(i, copies[value])


def _small_constant(value: ir.Value) -> ir.TensorProtocol | None:
    node = value.producer()
    tensor = value.const_value
    if node is not None and node.op_type == "Constant" and "value" in node.attributes:
        tensor = node.attributes["value"].as_tensor()
    fits = tensor is not None and tensor.nbytes <= _SMALL and tensor.dtype != ir.DataType.STRING
    return tensor if fits and not value.is_graph_input() else None


def enter_bodies(model: ir.Model, *, fixed: bool) -> bool:
    """Give the inputs of bodies the shapes of what enters them first; returns whether that told anything new.

    Args:
        model: A model with inferred shapes; changed.
        fixed: Whether these are the sizes of a trial run, of its first round. Else they are what `doubt` has to
            confirm: symbols are not taken over, because a symbol would claim that all rounds see one size.
    """
    new = False
    for k, (node, body) in enumerate(_with_bodies(model)):
        for i, (value, shape, _) in enumerate(_rounds(node, body)):
            if shape is None or (value.shape is not None if not fixed else not shape.is_static()):
                continue
            known = (
                shape
                if fixed
                else ir.Shape([d if isinstance(d, int) else f"bnfold_entry{k}_{i}_{a}" for a, d in enumerate(shape)])
            )
            if value.shape != known:
                value.shape, new = known, True
    return new


def anonymous(shape: ir.Shape, stem: str) -> ir.Shape:
    """The shape with a symbol of its own for each size that is no number."""
    return ir.Shape([d if isinstance(d, int) else f"bnfold_{stem}_axis{k}" for k, d in enumerate(shape)])


def doubt(model: ir.Model) -> bool:
    """Forget the sizes of inputs of bodies that are not proven; returns whether there were any."""
    found = False
    for k, (node, body) in enumerate(_with_bodies(model)):
        for i, (value, entering, returning) in enumerate(_rounds(node, body)):
            proven = _proven(value.shape, entering, returning, f"bnfold_round{k}_{i}")
            if proven != value.shape:
                value.shape, found = proven, True
    return found


def _proven(
    shape: ir.Shape | None, entering: ir.Shape | None, returning: ir.Shape | None, stem: str
) -> ir.Shape | None:
    if shape is None or entering is None or returning is None or not len(shape) == len(entering) == len(returning):
        return None
    sizes = zip(shape, entering, returning, strict=True)
    return ir.Shape(
        [
            d if not isinstance(d, int) or d == first == later else f"{stem}_{a}"
            for a, (d, first, later) in enumerate(sizes)
        ]
    )


def _with_bodies(model: ir.Model) -> list[tuple[ir.Node, ir.Graph]]:
    return [(node, body) for node in model.graph.all_nodes() for _, _, body in bodies(node)]


def _rounds(node: ir.Node, body: ir.Graph) -> Iterator[tuple[ir.Value, ir.Shape | None, ir.Shape | None]]:
    """Each input of the body with the shape that it has in the first round, and the one for the next."""
    outer = [None if v is None else v.shape for v in node.inputs]
    scanned, axes = (node.attributes.get(name) for name in ("num_scan_inputs", "scan_input_axes"))
    if node.op_type == "Loop":
        yield from ((value, ir.Shape([]), ir.Shape([])) for value in body.inputs[:2])
        handed_on = [value.shape for value in body.outputs[1:]]
        yield from zip(body.inputs[2:], outer[2:], handed_on, strict=False)
    elif (
        node.op_type == "Scan" and scanned is not None and len(outer) == len(body.inputs)
    ):  # in opset 8 lengths are first
        states = len(outer) - scanned.as_int()
        handed_on = [value.shape for value in body.outputs]
        yield from zip(body.inputs[:states], outer[:states], handed_on, strict=False)
        places = [0] * scanned.as_int() if axes is None else axes.as_ints()
        slices = [_without(shape, axis) for shape, axis in zip(outer[states:], places, strict=False)]
        yield from zip(body.inputs[states:], slices, slices, strict=False)
    else:
        yield from ((value, None, None) for value in body.inputs)


def _without(shape: ir.Shape | None, axis: int) -> ir.Shape | None:
    if shape is None:
        return None
    return ir.Shape([size for i, size in enumerate(shape) if i != axis % len(shape)])
