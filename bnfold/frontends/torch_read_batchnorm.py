"""Reader of BatchNorm in any form: `y = gamma * (x - mean) / sqrt(var + epsilon) + beta`.

BatchNorm1d, 2d, 3d, SyncBatchNorm, their subclasses, functional calls, and torchvision's FrozenBatchNorm2d, which is a
product and a sum in the graph. What is left of a module when its BatchNorm is gone: nothing, or its activation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.decision import Reason, Refusal
from bnfold.frontends.torch_constants import as_array
from bnfold.frontends.torch_context import (
    Context,
    arguments,
    base_name,
    class_of,
    is_module_of_torch,
    name_of,
    numpy_dtype,
    path_of,
    scalar,
)
from bnfold.views import Barrier, BatchNorm

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import Node

#: Modules of other libraries whose forward pass is the BatchNorm and then the modules named here.
_RESTS: dict[tuple[str, str], tuple[str, ...]] = {
    ("timm.layers.norm_act", "BatchNormAct2d"): ("drop", "act"),
    ("timm.layers.norm_act", "SyncBatchNormAct"): ("drop", "act"),
    ("torchvision.ops.misc", "FrozenBatchNorm2d"): (),
}

#: What computes a BatchNorm, and in a program that torch.export broke down into its core operators.
BATCHNORMS = ("aten.batch_norm", "aten._native_batch_norm_legit_no_training")

_FROZEN = ("torchvision.ops.misc", "FrozenBatchNorm2d")


@dataclass(frozen=True, eq=False)
class TorchBatchNorm:
    """Where the constants of a BatchNorm stand.

    Attributes:
        path: The module; empty where there is none.
        rest: The names of the modules in it that stay; None where it cannot be taken out.
    """

    path: str
    rest: tuple[str, ...] | None


def read_batchnorm(node: Node, context: Context) -> tuple[BatchNorm | Barrier, TorchBatchNorm]:
    """The affine that the node computes, or why it computes none; and its place."""
    from torch.fx import Node as FxNode  # noqa: PLC0415

    found = arguments(node)
    values = [found[name] for name in ("weight", "bias", "running_mean", "running_var")]
    place, why = _place(node, [v for v in values if isinstance(v, FxNode)], context)
    known = [v for v in values if isinstance(v, FxNode) and v in context.constants]
    channels = int(context.constants.tensor(known[0]).numel()) if known else 0
    refusal = None
    if found.get("training", False) or values[2] is None or values[3] is None:
        refusal = Refusal(Reason.NORMALISES_BY_BATCH_STATISTICS, name_of(node))
    elif len(known) < sum(v is not None for v in values):
        refusal = Refusal(Reason.PARAMETERS_NOT_CONSTANT, name_of(node))
    elif why:
        refusal = Refusal(Reason.MODULE_CANNOT_HOLD_IT, name_of(node), why)
    if refusal is not None:
        return Barrier(refusal, is_batchnorm=True, channels=channels), place
    tensors = [None if v is None else context.constants.tensor(v) for v in values]
    return _view(node, tensors, found["eps"], context), place


def frozen_pairs(nodes: tuple[Node, ...], context: Context) -> dict[Node, Node]:
    """The product and the sum of each FrozenBatchNorm2d, which must be all that its module computes."""
    inside: dict[str, list[Node]] = {}
    for node in nodes:
        if node.op == "call_function" and node not in context.constants and is_in_frozen(node):
            inside.setdefault(path_of(node), []).append(node)
    return {pair[0]: pair[1] for pair in inside.values() if _is_affine_pair(pair, context)}


def is_in_frozen(node: Node) -> bool:
    """Whether the node is of a FrozenBatchNorm2d."""
    return class_of(node) == ".".join(_FROZEN)


def _is_affine_pair(pair: list[Node], context: Context) -> bool:
    names = [base_name(node) for node in pair]
    if names != ["aten.mul", "aten.add"] or list(pair[0].users) != [pair[1]]:
        return False
    return all(node.args[1] in context.constants and not node.kwargs for node in pair)


def read_frozen(node: Node, context: Context) -> tuple[BatchNorm | Barrier, TorchBatchNorm]:
    """The affine of a FrozenBatchNorm2d."""
    path = path_of(node)
    stored = {context.constants.name(n): n for n in node.graph.nodes if n.op == "placeholder"}
    wanted = [stored.get(f"{path}.{name}") for name in ("weight", "bias", "running_mean", "running_var")]
    readers = [value for value in wanted if value is not None]
    place, why = _place(node, readers, context)
    tensors = [context.constants.tensor(value) for value in readers]
    epsilon = _epsilon(readers[-1]) if len(readers) == len(wanted) else None
    if epsilon is None:
        refusal = Refusal(Reason.PARAMETERS_NOT_CONSTANT, name_of(node))
        return Barrier(refusal, is_batchnorm=True), place
    if why:
        refusal = Refusal(Reason.MODULE_CANNOT_HOLD_IT, name_of(node), why)
        return Barrier(refusal, is_batchnorm=True, channels=int(tensors[0].numel())), place
    view = _view(node, tensors, epsilon, context)
    if isinstance(view, BatchNorm) and not _is_computed(node, view, tensors, context):
        refusal = Refusal(Reason.PARAMETERS_MISMATCHED, name_of(node), "it multiplies or adds something else")
        return Barrier(refusal, is_batchnorm=True, channels=view.affine.channels), place
    return view, place


def _is_computed(product: Node, view: BatchNorm, tensors: list[Any], context: Context) -> bool:
    """Whether the product and the sum are those of the statistics, up to some roundings in their dtype.

    An object may have another forward pass than its class, which names the pair.
    """
    import torch  # noqa: PLC0415

    _, beta, mean, _ = (as_array(tensor) for tensor in tensors)
    scale, shift = view.affine.scale, view.affine.shift
    slack = 16 * torch.finfo(tensors[0].dtype).eps
    limits = ((product, scale, np.abs(scale)), (next(iter(product.users)), shift, np.abs(beta) + np.abs(mean * scale)))
    axes = (scale.size, *[1] * (context.rank(product) - 2))
    for node, wanted, size in limits:
        found = context.constants.array(node.args[1])  # type: ignore[arg-type]
        if found.size != scale.size or found.shape[-len(axes) :] != axes:
            return False
        if not (np.abs(found.reshape(-1) - wanted) <= slack * size).all():
            return False
    return True


def _epsilon(var: Node) -> float | None:
    """What a FrozenBatchNorm2d adds to its variance."""
    following: list[Node] = [var]
    while len(following[-1].users) == 1:
        following.append(next(iter(following[-1].users)))
        found = scalar(following[-1].args[1]) if base_name(following[-1]) == "aten.add" else None
        if found is not None:
            return float(found)
    return None


def _view(node: Node, tensors: list[Any], epsilon: float, context: Context) -> BatchNorm | Barrier:
    mean, var = (as_array(t) for t in tensors[2:])
    gamma, beta = (as_array(t) if t is not None else other
                   for t, other in zip(tensors, (np.ones_like(mean), np.zeros_like(mean)), strict=False))  # fmt: skip
    data = next(iter(node.args))
    shape = context.shapes.get(data)  # type: ignore[arg-type]
    dtype = numpy_dtype(next(t for t in tensors if t is not None).dtype)
    same = len({a.shape for a in (gamma, beta, mean, var)}) == 1 and mean.ndim == 1 and mean.size > 0
    refusal = None
    if not same or dtype is None:
        refusal = Refusal(Reason.PARAMETERS_MISMATCHED, name_of(node))
    elif shape is None or len(shape) < 2:
        refusal = Refusal(Reason.AXIS_NOT_PROVEN, name_of(node), "its input has one axis")
    elif isinstance(shape[1], int) and shape[1] != mean.size:
        refusal = Refusal(Reason.PARAMETERS_MISMATCHED, name_of(node), f"{mean.size} for {shape[1]} channels")
    if refusal is not None:
        return Barrier(refusal, is_batchnorm=True, channels=int(mean.size))
    assert dtype is not None
    return BatchNorm.of_statistics(gamma, beta, mean, var, epsilon, dtype)


def _place(node: Node, parameters: list[Node], context: Context) -> tuple[TorchBatchNorm, str]:
    """The module of a BatchNorm, and why it must stay; empty if it may change and go."""
    path = path_of(node)
    names = [context.constants.name(value) for value in parameters]
    if context.modules is None:
        return TorchBatchNorm(path if is_module_of_torch(node) else "", None), ""
    if not path or any(name is None or name.rpartition(".")[0] != path for name in names):
        return TorchBatchNorm("", None), "its parameters are not those of a BatchNorm module"
    part = context.modules.module(path)
    rest = rest_of(part)
    if rest is None:
        return TorchBatchNorm(path, None), f"{type(part).__name__} may do more than normalise"
    for name, value in zip(names, parameters, strict=True):
        if name is not None and (why := context.modules.against_tensor(name, value)):
            return TorchBatchNorm(path, rest), why
    return TorchBatchNorm(path, rest), context.modules.against_module(path)


def rest_of(part: nn.Module) -> tuple[str, ...] | None:
    """The names of the modules that are left when the BatchNorm of `part` is gone; None where that is not known."""
    from torch import nn  # noqa: PLC0415

    if "forward" in part.__dict__:
        return None
    if _kind(part) in _RESTS:
        return tuple(name for name in _RESTS[_kind(part)] if isinstance(getattr(part, name, None), nn.Module))
    layers = (nn.SyncBatchNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    kind = next((layer for layer in layers if isinstance(part, layer)), None)
    return () if kind is not None and type(part).forward is kind.forward else None


def _kind(part: nn.Module) -> tuple[str, str]:
    return type(part).__module__, type(part).__qualname__
