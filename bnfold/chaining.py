"""Two linear operators in a row as one: `V*(W*x + b) + c = (V W)*x + (V b + c)`, where one of them has a single tap.

With the single tap behind it is exact for any window. With the single tap before, b must not meet the zeros that the
second window sees. Taken only where the one has no more products than the two have.
"""

from __future__ import annotations

from dataclasses import replace
from math import gcd, prod

import numpy as np

from bnfold.affine import ChannelAffine
from bnfold.bench import Bench
from bnfold.branches import is_private
from bnfold.changes import Merge
from bnfold.decision import Reason, Refusal
from bnfold.embedding import Geometry, in_groups
from bnfold.graph import Operator
from bnfold.linear import LinearParams, WeightLayout
from bnfold.rounding import fits
from bnfold.views import Linear


def chain_all(bench: Bench) -> bool:
    """Join what can be joined; whether anything was."""
    before = len(bench.folds)
    for operator in bench.graph.operators:
        while operator.index not in bench.removed:
            joined = _with_its_reader(bench, bench.operator(operator.index))
            if joined is None:
                break
            bench.merge(joined)
    return len(bench.folds) > before


def _with_its_reader(bench: Bench, first: Operator) -> Merge | None:
    """`first` and the linear operator that alone reads it, as one; None where they are better left apart."""
    value = first.outputs[0]
    if not isinstance(first.view, Linear) or value is None or not is_private(bench, value) or bench.is_measured(value):
        return None  # what stands there afterwards has another shape
    (use,) = bench.uses(value)
    second = use.operator
    if not isinstance(second.view, Linear) or not _match(first, second):
        return None
    a, b = bench.linear_params(first), bench.linear_params(second)
    if first.view.geometry is None or second.view.geometry is None or a.bias.ndim > 1 or b.bias.ndim > 1:
        return None
    geometry = _geometry(first.view.geometry, second.view.geometry, biased=bool(a.bias.any()))
    if geometry is None:
        return None
    params, apart = _product(a, b), a.weight.size * prod(second.view.geometry.strides) + b.weight.size
    if params.weight.size > apart or not fits(first.view.dtype, params.weight, params.bias):
        return None
    return _merge(first, second, params, geometry)


def _match(first: Operator, second: Operator) -> bool:
    """Whether the second reads the first's channels and leaves them where they are, and the dtypes are one.

    A Gemm may transpose its data: then the channels come out on the other axis.
    """
    a, b = first.view, second.view
    assert isinstance(a, Linear)
    assert isinstance(b, Linear)
    alike = (a.output_axis, a.outputs, a.dtype, first.dtype) == (b.input_axis, b.inputs, b.dtype, second.dtype)
    return alike and b.input_axis == b.output_axis


def _geometry(first: Geometry, second: Geometry, *, biased: bool) -> Geometry | None:
    """The window of both in a row; None where it is not that of one of them."""
    if len(first.kernel) != len(second.kernel):
        return None
    if second.taps == 1 and not second.is_padded:
        return replace(first, strides=tuple(s * t for s, t in zip(first.strides, second.strides, strict=True)))
    alone = first == Geometry.point((1,) * len(first.strides))
    return second if alone and not (second.is_padded and biased) else None


def _product(first: LinearParams, second: LinearParams) -> LinearParams:
    """The constants of both in a row; one of the kernels has a single tap."""
    groups = gcd(first.weight.shape[0], second.weight.shape[0])
    w, v = (in_groups(params.weight, groups) for params in (first, second))
    kernel = max(w.shape[3:], v.shape[3:], key=prod)
    flat = np.einsum("gomt,gmiu->goitu", v.reshape(*v.shape[:3], -1), w.reshape(*w.shape[:3], -1))
    shift = ChannelAffine(np.ones_like(first.bias), first.bias)
    return LinearParams(flat.reshape(*flat.shape[:3], *kernel), second.absorb_input(shift).bias)


def _merge(first: Operator, second: Operator, params: LinearParams, geometry: Geometry) -> Merge:
    a, b, value = first.view, second.view, first.outputs[0]
    assert isinstance(a, Linear)
    assert isinstance(b, Linear)
    assert value is not None
    layout = WeightLayout(a.layout.output_first, params.weight.shape[0])
    padding = Refusal(Reason.SHIFT_MEETS_PADDING, first.name, "zero padding") if geometry.is_padded else None
    view = replace(
        a, layout=layout, outputs=b.outputs, output_axis=b.output_axis, geometry=geometry, shift_at_input=padding
    )
    whole = replace(first, view=view, output_shapes=second.output_shapes)
    return Merge(whole, params, geometry, (), ((second, 0),), (), frozenset([second.index]), frozenset([value]), ())
