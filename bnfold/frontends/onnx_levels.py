"""What the nodes of an ONNX graph read, their bodies included, and which of them always compute the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx

#: Operators whose result is another one each time, or in which more may happen than their inputs say.
_RANDOM = frozenset(
    "Bernoulli Dropout Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split()
)


@dataclass(frozen=True, eq=False)
class Flow:
    """The nodes of a graph and what they read.

    Attributes:
        nodes: In topological order.
        constants: Names of the initializers.
    """

    nodes: Sequence[onnx.NodeProto]
    constants: frozenset[str]

    @cached_property
    def reads(self) -> list[tuple[str, ...]]:
        """What each node reads, its bodies included."""
        return [tuple(dict.fromkeys(_reads(node))) for node in self.nodes]

    @cached_property
    def producers(self) -> dict[str, int]:
        """Which node computes a value."""
        return {name: i for i, node in enumerate(self.nodes) for name in node.output if name}

    @cached_property
    def fixed(self) -> frozenset[int]:
        """The nodes whose result is always the same."""
        found: set[int] = set()
        for i, node in enumerate(self.nodes):
            if node.op_type in _RANDOM or node.domain not in ("", "ai.onnx") or any(True for _ in _bodies(node)):
                continue
            if all(name in self.constants or self.producers.get(name) in found for name in self.reads[i]):
                found.add(i)
        return frozenset(found)

    def is_fixed(self, name: str) -> bool:
        """Whether a value is always the same."""
        return name in self.constants or self.producers.get(name) in self.fixed


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    yield from (name for name in node.input if name)
    for body in _bodies(node):
        own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
        own |= {name for inner in body.node for name in inner.output}
        captured = [name for inner in body.node for name in _reads(inner)] + [value.name for value in body.output]
        yield from (name for name in captured if name not in own)
