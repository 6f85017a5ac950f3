"""What the nodes of a captured module read, for `bnfold.levels`, and whether it can be cut there at all.

A part of the graph may run apart from the others, and what it hands on may be copied, where no value depends on when
memory is written or on how it is laid out. Writing in place is made to compute a new value, where nobody reads the old
one afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bnfold.frontends.torch_aliases import Aliases
from bnfold.frontends.torch_constants import TorchConstants, inputs_of
from bnfold.frontends.torch_context import base_name

if TYPE_CHECKING:
    from torch.fx import Node

#: What reads how memory is laid out.
_LAYOUT = frozenset(
    "aten.as_strided aten.as_strided_ aten.as_strided_scatter aten.sym_stride aten.sym_storage_offset".split()
)


@dataclass(frozen=True, eq=False)
class TorchFlow:
    """The nodes of a graph and what they read: see `bnfold.levels.Flow`.

    Attributes:
        nodes: In topological order; parameters and inputs are among them.
        constants: Which of them are constant.
        sources: What each call of a BatchNorm normalises, by the node that its output is.
        given: Inputs of the module, which no node produces.
        aliases: What is written in place.
    """

    nodes: Sequence[Node]
    constants: TorchConstants
    sources: Mapping[Node, Node]
    given: frozenset[Node]
    aliases: Aliases

    @cached_property
    def reads(self) -> list[tuple[str, ...]]:
        """What each node reads; a BatchNorm reads no statistics, these come from outside."""
        return [tuple(dict.fromkeys(value.name for value in self.inputs(node))) for node in self.nodes]

    @cached_property
    def producers(self) -> dict[str, int]:
        """Which node computes a value."""
        return {node.name: i for i, node in enumerate(self.nodes) if node not in self.given}

    @cached_property
    def fixed(self) -> frozenset[int]:
        """The nodes whose result is always the same."""
        return frozenset(i for i, node in enumerate(self.nodes) if node in self.constants or node.op == "get_attr")

    def inputs(self, node: Node) -> list[Node]:
        """The values that a node reads."""
        return [self.sources[node]] if node in self.sources else list(inputs_of(node))

    def against_cutting(self, places: Iterable[int]) -> str:
        """Why these nodes cannot run in parts; empty if they can."""
        for node in (self.nodes[i] for i in places):
            if base_name(node) in _LAYOUT:
                return f"{node.name} reads how memory is laid out"
            for value in [node, *self.inputs(node)]:
                if value.op == "placeholder" and value in self.aliases.written:
                    return f"the forward pass writes {self._stored(value)}"
                if value in self.aliases.frozen:
                    return f"{value.name} is read before and after it is written in place"
            if _is_mutable(node) and functional(node) is None:
                return f"{node.name} writes in place what no other operator computes"
        return ""

    def _stored(self, node: Node) -> str:
        return self.constants.name(node) or str(node.target)


def _is_mutable(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def functional(node: Node) -> Any:
    """The operator that computes what the node's writes in place: `aten.relu` for `aten.relu_`; None without one."""
    target: Any = node.target
    if not _is_mutable(node):
        return target
    import torch  # noqa: PLC0415

    namespace, _, name = target._schema.name.partition("::")
    if not name.endswith("_") or name.startswith("_"):
        return None
    packet = getattr(getattr(torch.ops, namespace), name[:-1], None)
    found = getattr(packet, target._overloadname, None) if packet is not None else None
    same = found is not None and [a.name for a in found._schema.arguments] == [a.name for a in target._schema.arguments]
    return found if same else None
