"""The calls of BatchNorms in a captured module: what each normalises, by which buffers, and what hinders new ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.drift import Hindrance, Left, Statistics
from bnfold.frontends.torch_capture import Captured
from bnfold.frontends.torch_constants import TorchConstants, as_array, inputs_of
from bnfold.frontends.torch_context import Context, arguments, base_name, name_of, numpy_dtype, path_of
from bnfold.frontends.torch_graph import bodies
from bnfold.frontends.torch_read_batchnorm import frozen_pairs, read_batchnorm, read_frozen
from bnfold.observation import Site
from bnfold.views import Barrier

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.fx import Node

#: Why statistics stay: the clause, and what in particular.
Why = tuple[Hindrance, str]


@dataclass(frozen=True, eq=False)
class BatchNormCall:
    """One call of a BatchNorm with statistics.

    Attributes:
        node: Its output.
        source: What it normalises.
        names: The names of mean and variance in the module.
        stored: These two, as they are.
        weights: Gamma and beta: nodes, tensors, or None.
        epsilon: What it adds to the variance.
    """

    node: Node
    source: Node
    names: tuple[str, str]
    stored: tuple[Any, Any]
    weights: tuple[Any, Any]
    epsilon: float

    @property
    def name(self) -> str:
        """As reports have it."""
        return name_of(self.node)


@dataclass(frozen=True, eq=False)
class Calls:
    """The calls of BatchNorms of a module, read.

    Attributes:
        found: Those that have statistics.
        pairs: Product and sum of each FrozenBatchNorm2d.
        left: The others, which have none that could change.
    """

    found: Sequence[BatchNormCall]
    pairs: Mapping[Node, Node]
    left: Sequence[Left]


def read_calls(module: nn.Module, captured: Captured, wanted: Callable[[str], bool]) -> Calls:
    """All calls of BatchNorms, in topological order."""
    constants = TorchConstants(captured.program, captured.nodes, frozenset())
    context = Context(captured.shapes, constants, None)
    pairs = frozen_pairs(captured.nodes, context)
    found, left = [], []
    for node in captured.nodes:
        if node not in pairs and base_name(node) != "aten.batch_norm":
            continue
        view, _ = (read_frozen if node in pairs else read_batchnorm)(node, context)
        name = name_of(node)
        if not wanted(name):
            left.append(Left(name, Hindrance.EXCLUDED_BY_CALLER))
        elif isinstance(view, Barrier):
            left.append(Left(name, Hindrance.NOT_IN_INFERENCE_FORM, view.refusal.reason.value))
        else:
            call = _frozen(node, pairs[node], module) if node in pairs else _plain(node, context, module)
            found += [call] if isinstance(call, BatchNormCall) else []
            left += [call] if isinstance(call, Left) else []
    unread = _unread(module, captured.nodes, pairs)
    inside = [Left(kept.subject.name, Hindrance.INSIDE_BODY, kept.refusals[0].where) for kept in bodies(captured.nodes)]
    return Calls(found, pairs, [*left, *unread, *inside])


def _unread(module: nn.Module, nodes: Sequence[Node], pairs: Mapping[Node, Node]) -> Iterator[Left]:
    """The FrozenBatchNorm2d that compute something else than one product and one sum: two calls of one, for example."""
    called, read = {path_of(node) for node in nodes}, {path_of(node) for node in pairs}
    for path, part in module.named_modules():
        if type(part).__name__ == "FrozenBatchNorm2d" and path in called - read:
            yield Left(path, Hindrance.NOT_IN_INFERENCE_FORM, "it is no single product and sum")


def _plain(node: Node, context: Context, module: nn.Module) -> BatchNormCall | Left:
    given = arguments(node)
    names = [context.constants.name(given[name]) for name in ("running_mean", "running_var")]
    tensors = [None if name is None else tensor_in(module, name) for name in names]
    if names[0] is None or names[1] is None or any(_dtype(tensor) is None for tensor in tensors):
        return Left(name_of(node), Hindrance.NOT_IN_INFERENCE_FORM, "its statistics are no buffers of a module")
    weights, stored = (given["weight"], given["bias"]), (tensors[0], tensors[1])
    return BatchNormCall(node, given["input"], (names[0], names[1]), stored, weights, float(given["eps"]))


def _frozen(product: Node, total: Node, module: nn.Module) -> BatchNormCall:
    path = path_of(product)
    part: Any = module.get_submodule(path)
    names = (f"{path}.running_mean".lstrip("."), f"{path}.running_var".lstrip("."))
    source = next(inputs_of(product))
    stored = (part.running_mean, part.running_var)
    return BatchNormCall(total, source, names, stored, (part.weight, part.bias), float(part.eps))


def _dtype(tensor: Any) -> np.dtype[Any] | None:
    return numpy_dtype(getattr(tensor, "dtype", None))


def tensor_in(module: nn.Module, name: str) -> Tensor | None:
    """The tensor of that name in a module; None where there is none."""
    path, _, last = name.rpartition(".")
    try:
        found = getattr(module.get_submodule(path), last, None)
    except AttributeError:
        return None
    return found if hasattr(found, "dtype") else None


def grouped(calls: Sequence[BatchNormCall]) -> list[list[BatchNormCall]]:
    """The calls that use the same statistics, together."""
    groups: dict[object, list[BatchNormCall]] = {}
    for call in calls:
        groups.setdefault(_places(call), []).append(call)
    return list(groups.values())


def hindered(
    module: nn.Module, groups: Sequence[Sequence[BatchNormCall]], captured: Captured, constants: TorchConstants
) -> Iterator[Why | None]:
    """For each group why its statistics stay, as far as that does not lie in what is before it."""
    places = [_places(group[0]) for group in groups]
    owners = Counter(place for pair in places for place in pair)
    for group, pair in zip(groups, places, strict=True):
        if any(owners[place] > 1 for place in pair):
            yield Hindrance.NOT_IN_INFERENCE_FORM, "it shares only one of mean and variance with another one"
        elif other := _other_reader(module, group, captured.nodes, constants):
            yield Hindrance.NOT_IN_INFERENCE_FORM, f"{other} reads its statistics as well"
        elif any(call.source in constants for call in group):
            yield Hindrance.NORMALISES_CONSTANT, ""
        else:
            yield None


def _places(call: BatchNormCall) -> tuple[object, object]:
    """Where mean and variance are in memory."""
    return place_of(call.stored[0]), place_of(call.stored[1])


def place_of(tensor: Any) -> object:
    """Where a tensor begins in memory."""
    return str(tensor.device), tensor.data_ptr() or id(tensor)


def _other_reader(
    module: nn.Module, group: Sequence[BatchNormCall], nodes: Sequence[Node], constants: TorchConstants
) -> str:
    """Who reads the statistics besides the group; empty if nobody does."""
    places, own = set(_places(group[0])), {call.node for call in group}
    inside = {path_of(call.node) for call in group if base_name(call.node) != "aten.batch_norm"}
    for node in nodes:
        name = constants.name(node)
        tensor = None if name is None else tensor_in(module, name)
        if tensor is None or place_of(tensor) not in places:
            continue
        for reader in node.users:
            if reader not in own and path_of(reader) not in inside:
                return name_of(reader)
    return ""


def site_of(module: nn.Module, names: tuple[str, str], calls: tuple[str, ...], epsilon: float) -> Site:
    """The statistics of these names, shared by the calls."""
    mean, variance = (tensor_in(module, name) for name in names)
    dtypes = _dtype(mean), _dtype(variance)
    assert dtypes[0] is not None
    assert dtypes[1] is not None
    return Site(calls, epsilon, Statistics(as_array(mean), as_array(variance)), (dtypes[0], dtypes[1]))


def normalised(given: Mapping[str, Any], statistics: Statistics) -> Any:
    """`batch_norm` under these statistics, each number rounded to the type in which it is stored.

    Args:
        given: input, weight, bias, eps, and the stored running_mean and running_var.
        statistics: What to normalise by.
    """
    import torch  # noqa: PLC0415

    source = given["input"]
    mean, variance = (
        torch.tensor(numbers, dtype=given[name].dtype, device=source.device)
        for name, numbers in (("running_mean", statistics.mean), ("running_var", statistics.variance))
    )
    weights = given["weight"], given["bias"]
    return torch.nn.functional.batch_norm(source, mean, variance, *weights, False, 0.0, given["eps"])
