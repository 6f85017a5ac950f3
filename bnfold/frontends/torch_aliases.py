"""What writing in place does to other values: `relu_(y)` changes every value that shares y's memory.

A value of which somebody reads an older version afterwards must not change its meaning. And a BatchNorm makes a copy:
where that is written in place and the original is still read, or is the caller's, the BatchNorm must stay.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bnfold.frontends.torch_constants import inputs_of
from bnfold.frontends.torch_context import base_name

if TYPE_CHECKING:
    from torch.fx import Graph, Node

#: Operators that always make a new tensor; any other one that does not say so may hand on the memory of its inputs.
_FRESH = frozenset(
    f"aten.{name}"
    for name in """
    _softmax abs adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d add addmm amax amin
    avg_pool1d avg_pool2d avg_pool3d batch_norm bmm cat clamp clamp_max clamp_min clone conv1d conv2d conv3d
    conv_transpose1d conv_transpose2d conv_transpose3d convolution div elu exp gelu group_norm hardsigmoid hardswish
    hardtanh index_select instance_norm layer_norm leaky_relu linear log_softmax matmul max_pool1d max_pool2d max_pool3d
    mean mish mm mul neg pixel_shuffle pixel_unshuffle prelu relu relu6 rsqrt scaled_dot_product_attention sigmoid silu
    softmax sqrt sub sum tanh upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d
    upsample_nearest2d upsample_nearest3d upsample_trilinear3d
    """.split()
)


@dataclass(frozen=True)
class Aliases:
    """What may not change because something is written in place.

    Attributes:
        written: Values whose memory the module writes; what is computed of them is no constant.
        frozen: Values of which an older version is read after they were written.
        copies: BatchNorms whose output must be a copy of their input.
        writers: Operators that write what an older version is read of afterwards, or what is the caller's.
        stale: Values whose numbers differ from one reader to the next.
    """

    written: frozenset[Node]
    frozen: frozenset[Node]
    copies: frozenset[Node]
    writers: frozenset[Node]
    stale: frozenset[Node]


def find_aliases(nodes: Sequence[Node], batchnorms: Iterable[Node]) -> Aliases:
    """Args: the nodes in topological order; the last node of each BatchNorm that may be taken out."""
    norms = frozenset(batchnorms)
    plain, joined = _classes(nodes, frozenset()), _classes(nodes, norms)
    hazards = list(_hazards(nodes, plain))
    frozen = frozenset(node for hazard in hazards for node in hazard.members)
    stale = frozenset(node for hazard in hazards if hazard.is_stale for node in hazard.members)
    copies = frozenset(node for hazard in _hazards(nodes, joined) for node in hazard.members) & norms
    writers = frozenset(hazard.writer for hazard in hazards)
    written = frozenset(v for node in nodes for target in _targets(node) for v in plain[target])
    return Aliases(written, frozen, copies, writers, stale)


def unshare(graph: Graph, known: set[Node]) -> None:
    """Where something is written in place that others read later, write a copy; as a BatchNorm in between made one.

    Args:
        graph: The graph, from which operators were taken out.
        known: The operators that did so before.
    """
    import torch  # noqa: PLC0415

    nodes = list(graph.nodes)
    while new := [h.writer for h in _hazards(nodes, _classes(nodes, frozenset())) if h.writer not in known]:
        for target in _targets(new[0]):
            with graph.inserting_before(new[0]):
                clone = graph.call_function(torch.ops.aten.clone.default, (target,))
            clone.meta = dict(target.meta)
            new[0].replace_input_with(target, clone)
        nodes = list(graph.nodes)


@dataclass(frozen=True)
class _Hazard:
    """`writer` writes in place what `members` share, and either an older one is read later or it is the caller's."""

    writer: Node
    members: list[Node]
    is_stale: bool


def _classes(nodes: Sequence[Node], passing: frozenset[Node]) -> dict[Node, list[Node]]:
    """The nodes that may share memory with each node; those of `passing` hand on their first input."""
    members: dict[Node, list[Node]] = {}
    for node in nodes:
        group = [node]
        sources = [next(inputs_of(node))] if node in passing else _sources(node)
        for other in {id(members[s]): members[s] for s in sources}.values():
            group = [*other, *group]
        for member in group:
            members[member] = group
    return members


def _sources(node: Node) -> list[Node]:
    """The inputs whose memory the output may share."""
    if node.op != "call_function":
        return []
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return list(inputs_of(node))
    if any(r.alias_info is not None for r in schema.returns):
        named = zip(schema.arguments, node.args, strict=False)
        found = [value for argument, value in named if argument.alias_info is not None]
        given = {a.name for a in schema.arguments if a.alias_info is not None}
        found += [value for name, value in node.kwargs.items() if name in given]
        return [source for value in found for source in _nodes(value)]
    return [] if base_name(node) in _FRESH else list(inputs_of(node))


def _targets(node: Node) -> list[Node]:
    """The values that the node writes in place."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return list(inputs_of(node)) if _writes_within(node) else []
    named = zip(schema.arguments, node.args, strict=False)
    found = [value for argument, value in named if argument.alias_info is not None and argument.alias_info.is_write]
    given = {a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    found += [value for name, value in node.kwargs.items() if name in given]
    return [node_ for value in found for node_ in _nodes(value)]


def _nodes(value: object) -> Iterator[Node]:
    from torch.fx import Node as FxNode  # noqa: PLC0415

    for entry in value if isinstance(value, list | tuple) else [value]:
        if isinstance(entry, FxNode):
            yield entry


def _writes_within(node: Node) -> bool:
    """Whether an operator with a body writes anything in place there."""
    for value in inputs_of(node):
        if value.op == "get_attr":
            body = getattr(node.graph.owning_module, str(value.target), None)
            inner = getattr(getattr(body, "graph", None), "nodes", ())
            if any(_targets(n) for n in inner):
                return True
    return False


def _hazards(nodes: Sequence[Node], classes: dict[Node, list[Node]]) -> Iterator[_Hazard]:
    """Classes that are written while an older value of them is read later, or is the caller's."""
    place = {node: i for i, node in enumerate(nodes)}
    readers: dict[Node, list[int]] = defaultdict(list)
    for node in nodes:
        for value in inputs_of(node):
            readers[value].append(place[node])
    for node in nodes:
        for target in _targets(node):
            older = [m for m in classes[target] if place[m] < place[node]]
            is_stale = any(r > place[node] for m in older for r in readers[m])
            if is_stale or any(m.op == "placeholder" for m in older):
                yield _Hazard(node, classes[target], is_stale)
