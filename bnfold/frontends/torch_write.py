"""Writes a fold plan into a module: weights and biases change, absorbed BatchNorms give place to what is left of them.

Everything else stays: classes, device, dtype, memory format, requires_grad, the training flags, buffers and names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.errors import InternalError
from bnfold.folding import FoldPlan
from bnfold.frontends.torch_context import numpy_dtype
from bnfold.frontends.torch_graph import TorchGraph
from bnfold.frontends.torch_read_batchnorm import TorchBatchNorm
from bnfold.frontends.torch_read_linear import TorchLinear
from bnfold.linear import LinearParams
from bnfold.rounding import round_once
from bnfold.views import BatchNorm

if TYPE_CHECKING:
    from torch import nn


def write(target: nn.Module, graph: TorchGraph, plan: FoldPlan) -> None:
    """Change `target`, which is the module that was planned for or a copy of it, maybe of another dtype.

    Raises:
        InternalError: The plan asks for something that has no place in the module.
    """
    import torch  # noqa: PLC0415

    bench = plan.bench
    if bench.constants or bench.clamps or bench.reduced or bench.merged:
        raise InternalError("a fold of a module changes what has no place in it")
    todo = [(index, bench.linear_params(graph.operators[index])) for index in sorted(bench.absorbed)]
    with torch.no_grad():
        for index, params in todo:
            _write_linear(target, graph.linears[index], params)
        for index in sorted(set(bench.affines) - set(bench.removed)):
            _write_batchnorm(target, graph, index, bench.affines[index])
        for index in sorted(bench.removed):
            take_out(target, graph.batchnorms[index])


def write_the_same(plans: Sequence[tuple[TorchGraph, FoldPlan]]) -> bool:
    """Whether all plans, each for another kind of inputs of one module, write the same numbers to the same places."""
    first, *others = (dict(_changes(*pair)) for pair in plans)
    return all(
        first.keys() == other.keys()
        and all(np.array_equal(a, b) for key in first for a, b in zip(first[key], other[key], strict=True))
        for other in others
    )


def _changes(graph: TorchGraph, plan: FoldPlan) -> Iterator[tuple[str, tuple[Float64Array, ...]]]:
    """What a plan changes, by name."""
    bench = plan.bench
    for index in bench.absorbed:
        params = bench.linear_params(graph.operators[index])
        yield f"{graph.linears[index].weight} {graph.linears[index].bias}", (params.weight, params.bias)
    for index in bench.removed:
        yield f"without {graph.batchnorms[index].path}", ()
    for index in set(bench.affines) - set(bench.removed):
        yield graph.batchnorms[index].path, (bench.affines[index].scale, bench.affines[index].shift)


def _write_linear(target: nn.Module, site: TorchLinear, params: LinearParams) -> None:
    weight = _named(target, site.weight)
    store(weight, site.layout.stored(params.weight))
    if site.bias:
        store(_named(target, site.bias), params.bias)
    elif params.bias.any():
        if site.owner is None:
            raise InternalError("a fold of a module adds a bias that has no place in it", where=site.weight)
        _add(target.get_submodule(site.owner), "bias", params.bias, weight)


def _write_batchnorm(target: nn.Module, graph: TorchGraph, index: int, affine: ChannelAffine) -> None:
    """Gamma and beta with which the statistics, that stay, give `affine`."""
    view, part = graph.operators[index].view, target.get_submodule(graph.batchnorms[index].path)
    assert isinstance(view, BatchNorm)
    for name, values in zip(("weight", "bias"), view.stored(affine), strict=True):
        stored = getattr(part, name, None)
        if stored is not None:
            store(stored, values)
        else:
            _add(part, name, values, part.running_mean)
            part.affine = True  # type: ignore[assignment]


def take_out(target: nn.Module, place: TorchBatchNorm) -> None:
    """Put what is left of a BatchNorm, its activation or nothing, in its place.

    Raises:
        InternalError: It is no module, or the whole module.
    """
    from torch import nn  # noqa: PLC0415

    if place.rest is None or not place.path:
        raise InternalError("a fold of a module takes out what is no module", where=place.path)
    above, _, name = place.path.rpartition(".")
    old = target.get_submodule(place.path)
    left = [part for part in (old.get_submodule(rest) for rest in place.rest) if not isinstance(part, nn.Identity)]
    new = nn.Identity() if not left else left[0] if len(left) == 1 else nn.Sequential(*left)
    if new not in left:
        new.training = old.training
    target.get_submodule(above)._modules[name] = new


def _named(target: nn.Module, name: str) -> Any:
    path, _, last = name.rpartition(".")
    return getattr(target.get_submodule(path), last)


def _add(part: nn.Module, name: str, values: Float64Array, like: Any) -> None:
    """A new parameter on the device and of the dtype of `like`, which learns if that does."""
    import torch  # noqa: PLC0415

    tensor = torch.empty(values.shape, dtype=like.dtype, device=like.device)
    store(tensor, values)
    part.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=like.requires_grad))


def store(tensor: Any, values: Float64Array) -> None:
    """`values`, each rounded once to the tensor's dtype; strides, device and identity stay."""
    import torch  # noqa: PLC0415

    dtype = numpy_dtype(tensor.dtype)
    assert dtype is not None
    rounded = np.ascontiguousarray(round_once(values, dtype).astype(np.float64)).reshape(tuple(tensor.shape))
    tensor.detach().copy_(torch.from_numpy(rounded))  # exact: each number is one of the dtype
