"""Conv, ConvTranspose, Gemm and MatMul (with the Add behind it) as `y = W*x + b`, read and written.

In: a missing bias becomes zeros, Gemm's alpha and beta are multiplied through. Out: one rounding to the stored dtype,
alpha = beta = 1, a bias only where there was one or where it is not zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bnfold.affine import Float64Array
from bnfold.embedding import Geometry
from bnfold.frontends.onnx_context import float_attr, input_at, ints_attr, str_attr
from bnfold.frontends.onnx_editor import Editor
from bnfold.frontends.onnx_quantised import Dequantised, Stored, bias_values, dequantised_values
from bnfold.linear import LinearParams, WeightLayout
from bnfold.quantised import Quantised
from bnfold.rounding import round_once


class LinearSite(Protocol):
    """Where the constants of one linear operator stand in the file."""

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The node, and the Add that is its bias."""

    def read(self) -> LinearParams:
        """The stored constants in canonical form."""

    def write(self, params: LinearParams, editor: Editor, quantised: Quantised | None = None) -> None:
        """Store `params`, each number rounded once; of what is quantised, `quantised` instead."""

    @property
    def data_position(self) -> int:
        """Which input of the first node is the data."""

    def reshape(self, geometry: Geometry, groups: int) -> None:
        """Give the operator another window and other groups; `write` follows."""


@dataclass(frozen=True, eq=False)
class ConvSite:
    """Conv and ConvTranspose: weight at input 1, bias at input 2.

    Attributes:
        node: The node.
        layout: How its weight is stored.
        weight: The stored weight.
        bias: The stored bias, or None.
    """

    node: ir.Node
    layout: WeightLayout
    weight: Stored
    bias: Stored | None

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The node."""
        return (self.node,)

    @property
    def span(self) -> int:
        """`2*k + s` of the largest axis, with the effective kernel size k and the stride s; 0 if sizes are fixed.

        They are where a Conv pads as much as its stride leaves over of an axis: in a merge its pads are written out.
        """
        kernel = self.weight.shape[2:]
        dilations, strides = (ints_attr(self.node, name) or (1,) * len(kernel) for name in ("dilations", "strides"))
        pads_by_size = self.node.op_type == "Conv" and str_attr(self.node, "auto_pad", "NOTSET").startswith("SAME")
        if ints_attr(self.node, "output_shape") is not None or (pads_by_size and max(strides, default=1) > 1):
            return 0
        spans = (2 * ((k - 1) * d + 1) + s for k, d, s in zip(kernel, dilations, strides, strict=True))
        return int(max(spans))

    def read(self) -> LinearParams:
        """The stored constants in canonical form."""
        weight = self.layout.canonical(dequantised_values(self.weight, self.layout))
        zeros = np.zeros(weight.shape[0] * weight.shape[1])
        return LinearParams(weight, zeros if self.bias is None else bias_values(self.bias))

    @property
    def data_position(self) -> int:
        """The first."""
        return 0

    def reshape(self, geometry: Geometry, groups: int) -> None:
        """Write everything out."""
        attributes, pads = self.node.attributes, (*geometry.begins, *geometry.ends)
        attributes.pop("auto_pad", None)
        attributes["group"] = ir.AttrInt64("group", groups)
        window = {"kernel_shape": geometry.kernel, "strides": geometry.strides, "dilations": geometry.dilations}
        for name, sizes in (window | {"pads": pads}).items():
            attributes[name] = ir.AttrInt64s(name, sizes)

    def write(self, params: LinearParams, editor: Editor, quantised: Quantised | None = None) -> None:
        """Store weight and bias."""
        bias_name = _bias_name(self.node)
        _store_weight(self, 1, params, editor, quantised)
        if isinstance(self.bias, Dequantised):
            _store_bias(self.node, self.bias, editor, quantised)
        elif self.bias is not None or params.bias.any():
            editor.set_constant(self.node, 2, params.bias, self.weight.dtype, stem=bias_name)


@dataclass(frozen=True, eq=False)
class GemmSite:
    """Gemm: `alpha*A'*B' + beta*C`, with A or B constant.

    Attributes:
        node: The node.
        layout: How the constant matrix is stored.
        position: 1 if B is the weight, 0 if A is.
        weight: The stored weight.
        bias: The stored C, or None.
    """

    node: ir.Node
    layout: WeightLayout
    position: int
    weight: Stored
    bias: Stored | None

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The node."""
        return (self.node,)

    def read(self) -> LinearParams:
        """The stored constants with alpha and beta multiplied through."""
        weight = self.layout.canonical(dequantised_values(self.weight, self.layout)) * float_attr(
            self.node, "alpha", 1.0
        )
        outputs = weight.shape[1]
        if self.bias is None:
            return LinearParams(weight, np.zeros(outputs))
        c = bias_values(self.bias) * float_attr(self.node, "beta", 1.0)
        return LinearParams(weight, self._channels_first(c.reshape((1,) * (2 - c.ndim) + c.shape), outputs))

    def _channels_first(self, c: Float64Array, outputs: int) -> Float64Array:
        """C of shape (1 or M, 1 or N) with the output channels first, and a row of one number dropped."""
        first = c.T if self.position == 1 else c
        spread = np.broadcast_to(first, (outputs, first.shape[1]))
        return spread[:, 0] if first.shape[1] == 1 else spread

    @property
    def data_position(self) -> int:
        """The matrix that is not constant."""
        return 1 - self.position

    def reshape(self, geometry: Geometry, groups: int) -> None:
        """A matrix product has one tap and one group, always."""

    def write(self, params: LinearParams, editor: Editor, quantised: Quantised | None = None) -> None:
        """Store the weight and C, with beta = 1, and alpha = 1 if the weight is not quantised."""
        bias_name = _bias_name(self.node)
        _store_weight(self, self.position, params, editor, quantised)
        if isinstance(self.bias, Dequantised):
            _store_bias(self.node, self.bias, editor, quantised)
        elif self.bias is not None or params.bias.any():
            c = params.bias if params.bias.ndim == 2 or self.position == 1 else params.bias[:, None]
            stored = c.T if self.position == 1 else c
            editor.set_constant(self.node, 2, stored, self.weight.dtype, stem=bias_name)
        # Quantised, the weight is stored without alpha, which therefore stays.
        for name in ("alpha", "beta") if quantised is None else ("beta",):
            self.node.attributes.pop(name, None)


@dataclass(frozen=True, eq=False)
class MatMulSite:
    """MatMul with a constant, and the Add of a constant per output channel behind it.

    Attributes:
        node: The MatMul.
        layout: How the constant is stored.
        position: 1 if the right operand is the weight, 0 if the left one is.
        weight: The stored weight.
        add: The Add that only this MatMul feeds, and its constant; None where there is none.
    """

    node: ir.Node
    layout: WeightLayout
    position: int
    weight: Stored
    add: tuple[ir.Node, int, npt.NDArray[Any]] | None

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The MatMul, and the Add."""
        return (self.node,) if self.add is None else (self.node, self.add[0])

    def read(self) -> LinearParams:
        """The stored constants in canonical form."""
        weight = self.layout.canonical(dequantised_values(self.weight, self.layout))
        outputs = weight.shape[1]
        flat = np.zeros(1) if self.add is None else np.asarray(self.add[2], np.float64).ravel()
        return LinearParams(weight, np.broadcast_to(flat, (outputs,)))

    @property
    def data_position(self) -> int:
        """The matrix that is not constant."""
        return 1 - self.position

    def reshape(self, geometry: Geometry, groups: int) -> None:
        """A matrix product has one tap and one group, always."""

    def write(self, params: LinearParams, editor: Editor, quantised: Quantised | None = None) -> None:
        """Store the weight; the bias in the Add, which is added when it is missing and needed."""
        _store_weight(self, self.position, params, editor, quantised)
        bias = params.bias if self.position == 1 else params.bias[:, None]
        if self.add is not None:
            editor.rename(self.node.outputs[0])  # the product without its bias changes its meaning as well
            editor.set_constant(self.add[0], self.add[1], bias, self.add[2].dtype)
        elif params.bias.any():
            editor.add_after(self.node, bias, self.weight.dtype)


def _store_weight(
    site: ConvSite | GemmSite | MatMulSite,
    position: int,
    params: LinearParams,
    editor: Editor,
    quantised: Quantised | None,
) -> None:
    if not isinstance(site.weight, Dequantised):
        editor.set_constant(site.node, position, site.layout.stored(params.weight), site.weight.dtype)
        return
    assert quantised is not None  # a weight that is quantised stays so
    old, new = site.weight, quantised.weight
    data = None if new.codes is old.codes else new.codes
    if old.is_rounded_in_the_model:
        data = round_once(new.in_place(), old.dtype)
    _store(site.node, position, old, editor, data=data, step=new.step, zero_point=new.zero_point, axis=new.axis)


def _store_bias(node: ir.Node, old: Dequantised, editor: Editor, quantised: Quantised | None) -> None:
    assert quantised is not None
    assert quantised.bias is not None
    new = quantised.bias
    zeros = np.zeros(new.step.shape, np.int64)
    _store(node, 2, old, editor, data=new.codes, step=new.step, zero_point=zeros, axis=0)


def _store(  # noqa: PLR0913
    node: ir.Node,
    position: int,
    old: Dequantised,
    editor: Editor,
    *,
    data: npt.NDArray[Any] | None,
    step: Float64Array,
    zero_point: npt.NDArray[np.int64],
    axis: int,
) -> None:
    """Copy the nodes with what changed; a zero point that is left out stays so while it is zero."""
    scale = round_once(step if step.ndim else step.reshape(old.scale.shape), old.scale.dtype)
    zeros = zero_point.reshape(scale.shape).astype(old.codes.dtype)
    same = np.array_equal(zero_point.reshape(scale.shape), old.zero_point)
    stays = same if old.has_zero_point else not zero_point.any()
    editor.set_dequantised(node, position, old.nodes, (data, scale, None if stays else zeros), axis)


def _bias_name(node: ir.Node) -> str:
    old = input_at(node, 2)
    weight = input_at(node, 1)
    return (old.name if old is not None else None) or f"{weight.name if weight is not None else node.name}_bias"
