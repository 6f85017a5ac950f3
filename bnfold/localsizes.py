"""Shapes on which the local test runs a region: small ones where its operators allow any, else the model's own.

A convolution with effective kernel k and stride s shows all its taps, both borders and an inner output at `2*k + s`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx
import onnx_ir as ir

from bnfold.data import SPATIAL_SIZES, fill_shapes, read_inputs, synthesise
from bnfold.errors import BnfoldError
from bnfold.folding import FoldPlan
from bnfold.frontends.onnx_scopes import Path, graph_at, values_of
from bnfold.frontends.onnx_shapes import Shapes
from bnfold.graph import Operator, Shape
from bnfold.regions import Region
from bnfold.runtime import exposing, open_session
from bnfold.views import BatchNorm, Cast, Clamp, Homogeneous, Linear, Same

#: What works on any number of entries along the batch and the spatial axes, and treats channels one by one.
_LOCAL = (BatchNorm, Cast, Clamp, Homogeneous, Same)


def small_shapes(
    plan: FoldPlan, region: Region, spans: Mapping[int, tuple[int, int]]
) -> dict[str, tuple[int, ...]] | None:
    """A shape for the one input of a region of convolutions and operators that treat every element alike, or of these.

    Args:
        plan: The plan that the region is part of.
        region: The region.
        spans: For each convolution of the model, by its index: `2*k + s` of its largest axis, and its spatial axes.

    Returns:
        The shape by name; None where the region has other operators, or several inputs.
    """
    operators = [plan.bench.graph.operators[i] for i in region.operators]
    linear = [op for op in operators if isinstance(op.view, Linear)]
    if len(region.inputs) != 1 or not all(op.index in spans or _is_local(op) for op in operators):
        return None
    channels = next((c for op in operators if (c := _channels_of(op, region.inputs[0])) is not None), None)
    if channels is None:
        return None
    if not linear:
        return _pointwise_shape(operators, region.inputs[0], channels)
    size = max(spans[op.index][0] for op in linear)
    return {region.inputs[0]: (2, channels, *(size,) * spans[linear[0].index][1])}


def _pointwise_shape(operators: Sequence[Operator], value: str, channels: int) -> dict[str, tuple[int, ...]] | None:
    """Every element is treated alike, so that a border and an inner one show all."""
    shape = next(op.input_shapes[0] for op in operators if value in op.inputs)
    return None if shape is None else {value: (2, channels, *(3,) * (len(shape) - 2))}


def _is_local(operator: Operator) -> bool:
    """A clamp may have a bound for each channel, but none for each place."""
    view = operator.view
    return isinstance(view, _LOCAL) and not (isinstance(view, Clamp) and not {1}.issuperset(view.axes))


def _channels_of(operator: Operator, value: str) -> int | None:
    if value not in operator.inputs:
        return None
    match operator.view:
        case Linear(inputs=inputs):
            return inputs
        case BatchNorm(affine=affine):
            return affine.channels
    return None


def model_shapes(
    model: ir.Model, regions: Sequence[Region], overrides: Mapping[str, tuple[int, ...]], path: Path = ()
) -> Iterator[dict[str, Shape]]:
    """The shapes of all values of the graph at `path`, at each input size in turn.

    Those come first at which every region's inputs have one.
    """
    proto, graph = ir.to_proto(model), graph_at(model, path)
    specs = read_inputs(proto)
    wanted = {name for region in regions for name in region.inputs}
    outer = set(values_of(model.graph))
    later: list[dict[str, Shape]] = []
    for spatial in SPATIAL_SIZES:
        filled = fill_shapes(specs, batch=2, spatial=spatial, overrides=overrides)
        shapes = Shapes(model, filled).named(graph)
        known = {name: shape for name, shape in shapes.items() if _is_static(shape)}
        lost = sorted((wanted - set(known)) & outer)
        if lost:
            known |= _observed(proto, lost, filled)
        if wanted <= set(known):
            yield known
        else:
            later.append(known)
    yield from later


def _observed(
    proto: onnx.ModelProto, names: list[str], filled: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """The shapes that `names` have in a run of the model, where inference has lost track; none if it cannot be run."""
    feeds = synthesise(read_inputs(proto), seed=0, batch=2, overrides=filled)
    try:
        values = open_session(exposing(proto, names)).run(names, feeds)
    except BnfoldError:
        return {}
    return {name: value.shape for name, value in values.items() if value.size}


def _is_static(shape: Shape) -> bool:
    return all(isinstance(size, int) and size > 0 for size in shape)
