"""Readers of aten operators: each condition on which one is read, from both sides, without a fold around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as f
from torch_models import sample

from bnfold.decision import Reason, Refusal
from bnfold.errors import InternalError
from bnfold.frontends.torch_arguments import Arguments
from bnfold.frontends.torch_capture import captured_program
from bnfold.frontends.torch_graph import TorchGraph
from bnfold.frontends.torch_read_batchnorm import TorchBatchNorm
from bnfold.frontends.torch_read_linear import TorchLinear
from bnfold.frontends.torch_write import _write_linear, take_out
from bnfold.linear import LinearParams, WeightLayout
from bnfold.views import (
    Average,
    Barrier,
    Cast,
    Clamp,
    Concat,
    ConstantOperand,
    Linear,
    Maximum,
    Product,
    Reshape,
    Same,
    Select,
    Spread,
    Sum,
    Total,
)
from bnfold.window_views import Pad, Resample

X, VECTOR = sample(2, 4, 6, 6), sample(4, 1, 1, seed=1)
ROWS, MATRIX = sample(5, 4), sample(4, 3, seed=2)

Function = Callable[..., Any]


class Net(nn.Module):
    """A function with one constant."""

    def __init__(self, function: Function, constant: Tensor) -> None:
        super().__init__()
        self.function, self.constant = function, nn.Parameter(constant, requires_grad=False)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self.constant, *inputs)


def graph(function: Function, *inputs: Tensor, constant: Tensor = VECTOR, is_open: bool = False) -> TorchGraph:
    """What is read of a function of a constant and inputs; with `is_open`, their first sizes are not known."""
    shapes = (tuple({0: torch.export.Dim.AUTO} for _ in inputs),) if is_open else None
    net = Net(function, constant).eval()
    program = torch.export.export(net, inputs, dynamic_shapes=shapes, strict=False)
    return TorchGraph(None, captured_program(program, Arguments(inputs, {})))


def last(function: Function, *inputs: Tensor, **options: Any) -> Any:
    """The view of the last operator."""
    return graph(function, *inputs, **options).operators[-1].view


@pytest.mark.parametrize(
    ("function", "inputs", "constant", "view"),
    [
        (lambda c, x: f.conv2d(x, c), (X,), sample(3, 4, 2, 2), Linear),
        (lambda c, x: torch.addmm(c[0], x, c), (ROWS,), sample(4, 4), Linear),
        (lambda c, x: x @ c, (ROWS,), MATRIX, Linear),
        (lambda c, x: torch.mm(x, c), (ROWS,), MATRIX, Linear),
        (lambda c, x: x + c, (X,), VECTOR, ConstantOperand),
        (lambda c, x: c - x, (X,), VECTOR, ConstantOperand),
        (lambda c, x: x / c, (X,), VECTOR, ConstantOperand),
        (lambda c, x: torch.rsub(x, 1.5), (X,), VECTOR, ConstantOperand),
        (lambda c, x, y: x + y, (X, X), VECTOR, Sum),
        (lambda c, x, y: x * y, (X, X), VECTOR, Product),
        (lambda c, x: x.clamp(-1, 2), (X,), VECTOR, Clamp),
        (lambda c, x: torch.clamp(x, c.abs() * 0, c.abs() + 1), (X,), VECTOR, Clamp),
        (lambda c, x: f.dropout(x, 0.5, training=False), (X,), VECTOR, Same),
        (lambda c, x: x.float(), (X,), VECTOR, Cast),
        (lambda c, x, y: torch.cat([x, y], 1), (X, X), VECTOR, Concat),
        (lambda c, x: torch.index_select(x, 1, c), (X,), torch.tensor([2, 0]), Select),
        (lambda c, x: f.pixel_shuffle(x, 2), (X,), VECTOR, Spread),
        (lambda c, x: f.pixel_unshuffle(x, 2), (X,), VECTOR, Select),
        (lambda c, x: f.channel_shuffle(x, 2), (X,), VECTOR, Select),
        (lambda c, x: x.sum((2, 3)), (X,), VECTOR, Total),
        (lambda c, x: x.mean(), (X,), VECTOR, Average),
        (lambda c, x: x.amax(2), (X,), VECTOR, Maximum),
        (lambda c, x: f.interpolate(x, scale_factor=2.0), (X,), VECTOR, Resample),
        (lambda c, x: f.pad(x, (1, 2)), (X,), VECTOR, Pad),
        (lambda c, x: f.pad(x, (1, 2, 0, 1), mode="reflect"), (X,), VECTOR, Pad),
        (lambda c, x: x.flatten(2), (X,), VECTOR, Reshape),
    ],
)
def test_an_operator_is_read(function: Function, inputs: tuple[Tensor, ...], constant: Tensor, view: type) -> None:
    if not constant.is_floating_point():
        function, kept, constant = (lambda _c, x: torch.index_select(x, 1, kept)), constant, VECTOR
    assert isinstance(last(function, *inputs, constant=constant), view)


HALF = X.float()

#: What must be a barrier: the constant, the function, its inputs, the reason and how the refusal says it.
REFUSED: dict[str, tuple[Tensor, Function, tuple[Tensor, ...], Reason, str]] = {
    "a convolution without a batch axis": (
        sample(3, 4, 2, 2), lambda c, x: f.conv2d(x, c), (X[0],), Reason.OPERATOR_HAS_NO_RULE, "no batch axis"),
    "a convolution of two variables": (
        VECTOR, lambda c, x, y: f.conv2d(x, y), (X, sample(3, 4, 2, 2)), Reason.WEIGHTS_NOT_CONSTANT, ""),
    "a product of two variables": (
        MATRIX, lambda c, x, y: x @ y, (ROWS, MATRIX), Reason.WEIGHTS_NOT_CONSTANT, ""),
    "a constant on the left of a product": (
        sample(3, 5), lambda c, x: c @ x, (ROWS,), Reason.WEIGHTS_NOT_CONSTANT, ""),
    "a product with a vector": (
        sample(4), lambda c, x: x @ c, (ROWS,), Reason.OPERATOR_HAS_NO_RULE, "no floating-point matrix"),
    "a product with many matrices": (
        sample(2, 4, 3), lambda c, x: x @ c, (ROWS,), Reason.OPERATOR_HAS_NO_RULE, "no floating-point matrix"),
    "a product with complex numbers": (
        MATRIX.to(torch.complex128), lambda c, x: x @ c, (ROWS.to(torch.complex128),),
        Reason.OPERATOR_HAS_NO_RULE, "no floating-point matrix"),
    "addmm with alpha": (
        sample(4, 4), lambda c, x: torch.addmm(c[0], x, c, alpha=2), (ROWS,), Reason.OPERATOR_HAS_NO_RULE, "alpha"),
    "addmm with beta": (
        sample(4, 4), lambda c, x: torch.addmm(c[0], x, c, beta=2), (ROWS,), Reason.OPERATOR_HAS_NO_RULE, "beta"),
    "addmm with a bias for each row": (
        sample(4, 4), lambda c, x: torch.addmm(c[:1, :1], x, c), (ROWS,), Reason.OPERATOR_HAS_NO_RULE, "a bias of"),
    "a division that rounds": (
        VECTOR, lambda c, x: torch.div(x, c, rounding_mode="floor"), (X,), Reason.OPERATOR_HAS_NO_RULE, "not of"),
    "whole numbers": (VECTOR, lambda c, x: x + 1, (X.int(),), Reason.OPERATOR_HAS_NO_RULE, "not of floating"),
    "a constant of another type": (
        VECTOR, lambda c, x: x + c, (HALF,), Reason.OPERATOR_HAS_NO_RULE, "not a variable and a constant of one type"),
    "a division by the value": (VECTOR, lambda c, x: c / x, (X,), Reason.OPERATOR_IS_NOT_LINEAR, "division by"),
    "alpha times the value": (
        VECTOR, lambda c, x: torch.add(c, x, alpha=2), (X,), Reason.OPERATOR_HAS_NO_RULE, "alpha is not 1"),
    "alpha of rsub": (
        VECTOR, lambda c, x: torch.rsub(x, 1.5, alpha=2), (X,), Reason.OPERATOR_HAS_NO_RULE, "alpha is not 1"),
    "a constant that makes the value larger": (
        sample(2, 1, 5), lambda c, x: x + c, (sample(2, 3, 1),), Reason.AXIS_NOT_PROVEN, "broadcast the value up"),
    "a constant of more axes": (
        sample(1, 5, 4), lambda c, x: x + c, (ROWS,), Reason.AXIS_NOT_PROVEN, "broadcast the value up"),
    "two variables with alpha": (
        VECTOR, lambda c, x, y: torch.add(x, y, alpha=2), (X, X), Reason.OPERATOR_HAS_NO_RULE, "alpha is not 1"),
    "two variables of two types": (
        VECTOR, lambda c, x, y: x + y, (X, HALF), Reason.OPERATOR_HAS_NO_RULE, "not two variables of one type"),
    "a clamp with a variable bound": (
        VECTOR, lambda c, x, y: torch.clamp(x, min=y), (X, X), Reason.OPERATOR_IS_NOT_LINEAR, "not constant"),
    "a clamp with nothing between its bounds": (
        VECTOR, lambda c, x: x.clamp(2, 1), (X,), Reason.OPERATOR_HAS_NO_RULE, "the low bound is above"),
    "a clamp at infinity": (
        VECTOR, lambda c, x: x.clamp(min=float("inf")), (X,), Reason.OPERATOR_HAS_NO_RULE, "the low bound is above"),
    "a clamp of whole numbers": (
        VECTOR, lambda c, x: x.clamp(1, 2), (X.int(),), Reason.OPERATOR_IS_NOT_LINEAR, "not constant"),
    "dropout that is on": (
        VECTOR, lambda c, x: f.dropout(x, 0.5, training=True), (X,), Reason.OPERATOR_IS_NOT_LINEAR, "training mode"),
    "a conversion to whole numbers": (VECTOR, lambda c, x: x.int(), (X,), Reason.CAST_NARROWS, "floating-point"),
    "a conversion of whole numbers": (VECTOR, lambda c, x: x.double(), (X.int(),), Reason.CAST_NARROWS, "floating"),
    "a constant among what is joined": (
        sample(2, 4, 6, 6), lambda c, x: torch.cat([x, c], 1), (X,), Reason.OPERATOR_HAS_NO_RULE, "not variables of"),
    "two types that are joined": (
        VECTOR, lambda c, x, y: torch.cat([x, y], 1), (X, HALF), Reason.OPERATOR_HAS_NO_RULE, "not variables of"),
    "indices that are computed": (
        VECTOR, lambda c, x, y: torch.index_select(x, 1, y), (X, torch.tensor([1, 0])), Reason.AXIS_NOT_PROVEN, ""),
    "a shuffle without a batch axis": (
        VECTOR, lambda c, x: f.pixel_shuffle(x, 2), (X[0],), Reason.AXIS_NOT_PROVEN, "number of channels"),
    "a sum in another type": (
        VECTOR, lambda c, x: x.sum(2, dtype=torch.float64), (HALF,), Reason.OPERATOR_HAS_NO_RULE, "of another type"),
    "a sum of whole numbers": (VECTOR, lambda c, x: x.sum(2), (X.int(),), Reason.OPERATOR_HAS_NO_RULE, "floating"),
    "a sum of a number": (VECTOR, lambda c, x: x.sum(), (X[0, 0, 0, 0],), Reason.OPERATOR_HAS_NO_RULE, "a number"),
    "padding of whole numbers": (VECTOR, lambda c, x: f.pad(x, (1, 1)), (X.int(),), Reason.AXIS_NOT_PROVEN, "pads"),
    "an operator of nobody": (VECTOR, lambda c, x: torch.special.erfcx(x), (X,), Reason.OPERATOR_HAS_NO_RULE, ""),
    "an operator that is not linear": (VECTOR, lambda c, x: x.exp(), (X,), Reason.OPERATOR_IS_NOT_LINEAR, "exp"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_an_operator_is_a_barrier(name: str) -> None:
    constant, function, inputs, reason, detail = REFUSED[name]
    view = last(function, *inputs, constant=constant)
    assert isinstance(view, Barrier)
    assert view.refusal.reason is reason
    assert detail in view.refusal.detail


def test_alpha_multiplies_the_constant() -> None:
    found = graph(lambda c, x: torch.add(x, c, alpha=3), X)
    assert np.array_equal(found.constant(found.operators[-1]), 3 * VECTOR.numpy())


def test_pads_that_depend_on_a_size_are_not_constant() -> None:
    def function(_c: Tensor, x: Tensor) -> Tensor:
        return f.pad(x, (0, 0, 0, x.shape[0]))

    assert last(function, X, is_open=True).refusal.detail == "the pads are not constant"
    assert isinstance(last(function, X), Pad)


def test_parts_of_an_axis_of_unknown_length_are_unknown() -> None:
    known, unknown = (last(lambda c, x: x.chunk(2, 0), sample(4, 3), is_open=is_open) for is_open in (False, True))
    assert (dict(known.picks), known.opaque, dict(known.sizes)) == ({0: ((0, 1), (2, 3))}, frozenset(), {0: 4})
    assert (dict(unknown.picks), unknown.opaque) == ({}, frozenset({0}))


def test_indices_into_an_axis_of_unknown_length_are_a_barrier() -> None:
    index = torch.tensor([1, 0])
    view = last(lambda c, x: torch.index_select(x, 0, index), X, is_open=True)
    assert isinstance(view, Barrier)


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({"padding": 2}, True),
        ({"padding": 1}, False),
        ({"padding": 2, "stride": 2}, False),
        ({"padding": 3, "dilation": 2}, False),
        ({"padding": 4, "dilation": 2}, True),
        ({"padding": 2, "stride": 2, "output_padding": 1}, False),
    ],
)
def test_a_shift_enters_a_transposed_convolution_where_every_output_receives_every_tap(
    options: dict[str, int], passes: bool
) -> None:
    view = last(lambda c, x: f.conv_transpose2d(x, c, **options), X, constant=sample(4, 3, 3, 3))
    assert isinstance(view, Linear)
    assert (view.shift_at_input is None) is passes


@pytest.mark.parametrize(("padding", "passes"), [(0, True), ("valid", True), (1, False), ("same", False)])
def test_a_shift_enters_a_convolution_that_sees_no_zeros(padding: Any, passes: bool) -> None:
    view = last(lambda c, x: f.conv2d(x, c, padding=padding), X, constant=sample(3, 4, 3, 3))
    assert (view.shift_at_input is None) is passes


def test_a_module_has_no_place_for_what_is_left_of_the_whole() -> None:
    with pytest.raises(InternalError, match="takes out what is no module"):
        take_out(nn.Sequential(nn.BatchNorm2d(4)), TorchBatchNorm("", ()))
    with pytest.raises(InternalError, match=r"0: .*takes out what is no module"):
        take_out(nn.Sequential(nn.BatchNorm2d(4)), TorchBatchNorm("0", None))


def test_a_bias_without_a_place_is_an_error_of_ours() -> None:
    net, layout = nn.Linear(2, 3, bias=False).double(), WeightLayout(output_first=True)
    site = TorchLinear(layout, "weight", "", None, (net.weight, None))
    weight = layout.canonical(net.weight.detach().numpy())
    _write_linear(net, site, LinearParams(weight, np.zeros(3)))
    with pytest.raises(InternalError, match="adds a bias that has no place in it"):
        _write_linear(net, site, LinearParams(weight, np.ones(3)))


def test_a_refusal_says_where() -> None:
    view = last(lambda c, x: x.exp(), X)
    assert view.refusal == Refusal(Reason.OPERATOR_IS_NOT_LINEAR, "exp", "exp")
