"""Where the BatchNorms of a graph lie behind each other, and at which level each of its nodes can run.

`level(node) = max(level of what it reads)`, and one more behind a BatchNorm that is recalibrated. Nodes that depend on
no input of the model have no level: they run wherever they are read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class Flow(Protocol):
    """What the nodes of a graph read, in topological order; what a BatchNorm normalises it reads first.

    Attributes:
        reads: The values that each node reads.
        producers: Which node computes a value.
        fixed: The nodes whose result is always the same.
    """

    @property
    def reads(self) -> Sequence[Sequence[str]]: ...  # noqa: D102
    @property
    def producers(self) -> Mapping[str, int]: ...  # noqa: D102
    @property
    def fixed(self) -> Collection[int]: ...  # noqa: D102


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
    last = {flow.reads[node][0]: level - 1 for node, level in after.items()}
    needed = _needed(flow, list(after))
    for i in sorted(needed):
        sources = (flow.producers.get(name) for name in flow.reads[i])
        at[i] = after.get(i, max((at[s] for s in sources if s in at), default=0))
        for name in flow.reads[i]:
            last[name] = max(last.get(name, 0), at[i])
    for node, level in after.items():  # one value may be observed at several levels
        name = flow.reads[node][0]
        last[name] = max(last[name], level - 1)
    return Schedule([sorted(level) for level in levels], at, last)


def _upstream(flow: Flow, sites: Sequence[Sequence[int]]) -> list[int]:
    """For each site the sites before it, as bits; shared statistics lie behind everything that any call reads."""
    site_of = {node: site for site, nodes in enumerate(sites) for node in nodes}
    before: dict[int, int] = {}
    behind = [0] * len(sites)
    for i in range(len(flow.reads)):
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
    pending = [flow.reads[call][0] for call in calls]
    while pending:
        node = flow.producers.get(pending.pop(), -1)
        if node >= 0 and node not in found and node not in flow.fixed:
            found.add(node)
            pending += flow.reads[node]
    return found
