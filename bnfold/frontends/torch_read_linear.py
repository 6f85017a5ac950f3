"""Readers of convolutions and matrix products, and where their constants stand: `y = W*x + b`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.decision import Reason, Refusal
from bnfold.embedding import Geometry
from bnfold.frontends.torch_constants import as_array
from bnfold.frontends.torch_context import (
    Context,
    arguments,
    barrier,
    base_name,
    integers,
    name_of,
    numpy_dtype,
    path_of,
)
from bnfold.frontends.torch_modules import Modules
from bnfold.linear import LinearParams, WeightLayout
from bnfold.views import Barrier, Linear

if TYPE_CHECKING:
    from torch.fx import Node

#: Which arguments are the weight and the bias, of operators that do not call them that; "" where there is none.
PLACES = {"aten.addmm": ("mat2", "self"), "aten.matmul": ("other", ""), "aten.mm": ("mat2", "")}


@dataclass(frozen=True, eq=False)
class TorchLinear:
    """Where the constants of a linear operator stand.

    Attributes:
        layout: How the weight is stored.
        weight: The weight's name in the module; empty where it has none.
        bias: The bias's name; empty where there is none.
        owner: The path of the module that a missing bias may be given to; None if it may not.
        tensors: The stored weight, and the stored bias or None.
    """

    layout: WeightLayout
    weight: str
    bias: str
    owner: str | None
    tensors: tuple[Any, Any]

    def read(self) -> LinearParams:
        """The stored constants in canonical form."""
        weight = self.layout.canonical(as_array(self.tensors[0]))
        zeros = np.zeros(weight.shape[0] * weight.shape[1])
        return LinearParams(weight, zeros if self.tensors[1] is None else as_array(self.tensors[1]))


@dataclass(frozen=True, eq=False)
class ReadLinear:
    """A linear operator as the rules see it, where its constants stand, and its data input."""

    view: Linear
    site: TorchLinear
    data: Node


def read_conv(node: Node, context: Context) -> ReadLinear | Barrier:
    """conv1d, conv2d, conv3d, convolution, and the transposed ones."""
    found = arguments(node)
    transposed = "transpose" in base_name(node) or bool(found.get("transposed", False))
    groups = found["groups"]
    site = _site(node, found["weight"], found["bias"], WeightLayout(not transposed, groups), context)
    if isinstance(site, Barrier):
        return site
    shape, data = tuple(site.tensors[0].shape), found["input"]
    dtype = numpy_dtype(site.tensors[0].dtype)
    if dtype is None or len(shape) < 3 or shape[0] % groups or context.rank(data) != len(shape):
        return barrier(node, Reason.OPERATOR_HAS_NO_RULE, "no batch axis, or no floating-point weight")
    per_group = shape[1] * groups
    outputs, inputs = (per_group, shape[0]) if transposed else (shape[0], per_group)
    if transposed:
        shift, geometry = _transposed_shift(node, found, shape[2:]), None
    else:
        geometry = _geometry(found, shape[2:])
        seen = geometry is not None and not geometry.is_padded
        shift = None if seen else Refusal(Reason.SHIFT_MEETS_PADDING, name_of(node), "zero padding")
    view = Linear(site.layout, 1, 1, outputs, inputs, dtype, shift, geometry=geometry)
    return ReadLinear(view, site, data)


def _geometry(found: dict[str, Any], kernel: tuple[int, ...]) -> Geometry | None:
    """The window; None where it is not known."""
    strides, dilations = (integers(found[name], len(kernel)) for name in ("stride", "dilation"))
    if strides is None or dilations is None:
        return None
    pads = _pads(found["padding"], kernel, dilations)
    return None if pads is None else Geometry(kernel, strides, dilations, *pads)


def _pads(
    padding: Any, kernel: tuple[int, ...], dilations: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Zeros before and after each axis; of an odd total in "same" padding torch puts the larger half behind."""
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
        return tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
    known = (0,) * len(kernel) if padding == "valid" else integers(padding, len(kernel))
    return None if known is None else (known, known)


def _transposed_shift(node: Node, found: dict[str, Any], kernel: tuple[int, ...]) -> Refusal | None:
    """Every output receives every tap if the stride is 1 and the pads crop what a border tap misses."""
    values = [integers(found[name], len(kernel)) for name in ("stride", "padding", "output_padding", "dilation")]
    strides, pads, extra, dilations = (value or () for value in values)
    axes = zip(strides, pads, extra, dilations, kernel, strict=True) if None not in values else None
    if axes is not None and all(s == 1 and p >= d * (k - 1) + e for s, p, e, d, k in axes):
        return None
    return Refusal(Reason.SHIFT_MEETS_PADDING, name_of(node), "not every output receives every tap")


def read_linear(node: Node, context: Context) -> ReadLinear | Barrier:
    """`x @ W.T + b` along the last axis."""
    found = arguments(node)
    return _product(node, found["input"], (found["weight"], found["bias"]), WeightLayout(output_first=True), context)


def read_addmm(node: Node, context: Context) -> ReadLinear | Barrier:
    """`b + x @ W` with both constant."""
    found = arguments(node)
    if found["alpha"] != 1 or found["beta"] != 1:
        return barrier(node, Reason.OPERATOR_HAS_NO_RULE, "alpha or beta is not 1")
    constants = (found["mat2"], found["self"])
    return _product(node, found["mat1"], constants, WeightLayout(output_first=False), context)


def read_matmul(node: Node, context: Context) -> ReadLinear | Barrier:
    """`x @ W` with W constant."""
    found = arguments(node)
    constants = (found.get("other", found.get("mat2")), None)
    return _product(node, found["self"], constants, WeightLayout(output_first=False), context)


def _product(
    node: Node, data: Node, constants: tuple[Any, Any], layout: WeightLayout, context: Context
) -> ReadLinear | Barrier:
    site = _site(node, *constants, layout, context)
    if isinstance(site, Barrier):
        return site
    shape, dtype = tuple(site.tensors[0].shape), numpy_dtype(site.tensors[0].dtype)
    if len(shape) != 2 or dtype is None:
        return barrier(node, Reason.OPERATOR_HAS_NO_RULE, "no floating-point matrix")
    outputs, inputs = shape if layout.output_first else shape[::-1]
    bias = site.tensors[1]
    if bias is not None and tuple(bias.shape) != (outputs,):
        return barrier(node, Reason.OPERATOR_HAS_NO_RULE, f"a bias of shape {tuple(bias.shape)}")
    last = context.rank(data) - 1
    adds = base_name(node) in ("aten.matmul", "aten.mm")
    view = Linear(layout, last, last, outputs, inputs, dtype, shift_adds_operator=adds, geometry=Geometry.point(()))
    return ReadLinear(view, site, data)


def _site(node: Node, weight: Any, bias: Any, layout: WeightLayout, context: Context) -> TorchLinear | Barrier:
    """Where the constants stand, or why they cannot be written there."""
    from torch.fx import Node as FxNode  # noqa: PLC0415

    present = [value for value in (weight, bias) if isinstance(value, FxNode)]
    if any(value not in context.constants for value in present) or weight not in present:
        return barrier(node, Reason.WEIGHTS_NOT_CONSTANT)
    names = [context.constants.name(value) for value in (weight, bias)]
    owner = None
    if context.modules is not None:
        owner = None if bias is not None else _owner(node, names[0], context.modules)
        for value, name in zip(present, names, strict=False):
            why = f"{value.name} is computed" if name is None else context.modules.against_tensor(name, value)
            if why:
                return barrier(node, Reason.MODULE_CANNOT_HOLD_IT, why)
        if bias is None and owner is None:
            return barrier(node, Reason.MODULE_CANNOT_HOLD_IT, "there is no bias, and no place for one")
    tensors = tuple(context.constants.tensor(value) if isinstance(value, FxNode) else None for value in (weight, bias))
    return TorchLinear(layout, names[0] or "", names[1] or "", owner, (tensors[0], tensors[1]))


def _owner(node: Node, weight: str | None, modules: Modules) -> str | None:
    """The module whose forward pass adds a bias as soon as it has one: a layer of torch with torch's own forward."""
    from torch import nn  # noqa: PLC0415

    if weight is None or not weight.endswith("weight"):
        return None
    path = weight.rpartition(".")[0]
    part = modules.module(path)
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    kind = next((layer for layer in layers if isinstance(part, layer)), None)
    if kind is None or path_of(node) != path or part._parameters.get("bias", part) is not None:
        return None
    same = all(getattr(type(part), name, None) is getattr(kind, name, None) for name in ("forward", "_conv_forward"))
    return path if same and "forward" not in part.__dict__ else None
