"""Where the BatchNorms of an ONNX graph lie behind each other, and at which level each of its nodes can run.

`level(node) = max(level of what it reads)`, and one more behind a BatchNorm that is recalibrated. Nodes that depend on
no input of the model have no level: they run wherever they are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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


@dataclass(frozen=True, eq=False)
class Schedule:
    """When each node runs.

    Attributes:
        levels: Positions of sites, level by level.
        at: The level of each node that some site needs; fixed nodes have none.
        last: The last level that reads a value.
    """

    levels: Sequence[Sequence[int]]
    at: Mapping[int, int]
    last: Mapping[str, int]


def self_dependent(flow: Flow, sites: Sequence[Sequence[int]]) -> frozenset[int]:
    """The sites (each the nodes that share its statistics) that lie behind themselves."""
    behind = _upstream(flow, sites)
    return frozenset(site for site in range(len(sites)) if behind[site] >> site & 1)


def schedule(flow: Flow, sites: Sequence[Sequence[int]]) -> Schedule:
    """When each node runs, for sites none of which is self-dependent."""
    behind = _upstream(flow, sites)
    level_of: dict[int, int] = {}
    for site in sorted(range(len(sites)), key=lambda s: behind[s].bit_count()):  # what lies before has fewer before it
        level_of[site] = 1 + max((level_of[s] for s in range(len(sites)) if behind[site] >> s & 1), default=-1)
    levels = [[s for s in level_of if level_of[s] == k] for k in range(1 + max(level_of.values(), default=-1))]
    after = {node: level_of[site] + 1 for site, nodes in enumerate(sites) for node in nodes}
    at: dict[int, int] = {}
    last = {flow.nodes[node].input[0]: level - 1 for node, level in after.items()}
    needed = _needed(flow, list(after))
    for i in sorted(needed):
        sources = (flow.producers.get(name) for name in flow.reads[i])
        at[i] = after.get(i, max((at[s] for s in sources if s in at), default=0))
        for name in flow.reads[i]:
            last[name] = max(last.get(name, 0), at[i])
    for node, level in after.items():  # one value may be observed at several levels
        name = flow.nodes[node].input[0]
        last[name] = max(last[name], level - 1)
    return Schedule([sorted(level) for level in levels], at, last)


def _upstream(flow: Flow, sites: Sequence[Sequence[int]]) -> list[int]:
    """For each site the sites before it, as bits; shared statistics lie behind everything that any call reads."""
    site_of = {node: site for site, nodes in enumerate(sites) for node in nodes}
    before: dict[int, int] = {}
    behind = [0] * len(sites)
    for i in range(len(flow.nodes)):
        bits = 0
        for name in flow.reads[i]:
            bits |= before.get(flow.producers.get(name, -1), 0)
        if (site := site_of.get(i)) is not None:
            behind[site] |= bits
            bits |= 1 << site
        before[i] = bits
    while True:
        closed = [_closed(bits, behind) for bits in behind]
        if closed == behind:
            return behind
        behind = closed


def _closed(bits: int, behind: Sequence[int]) -> int:
    for site, more in enumerate(behind):
        if bits >> site & 1:
            bits |= more
    return bits


def _needed(flow: Flow, calls: Sequence[int]) -> set[int]:
    """The nodes on the way to the inputs of the calls; fixed ones are not counted, the way through them ends."""
    found: set[int] = set()
    pending = [flow.nodes[call].input[0] for call in calls]
    while pending:
        node = flow.producers.get(pending.pop(), -1)
        if node >= 0 and node not in found and node not in flow.fixed:
            found.add(node)
            pending += flow.reads[node]
    return found


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
