"""Which nodes of a graph a fold changed, and which of the changes hang together."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import count

import onnx

from bnfold.errors import InternalError
from bnfold.frontends.onnx_skeleton import bodies, first_output
from bnfold.manifest import Place


@dataclass(frozen=True, eq=False)
class NodeChange:
    """One node that a fold changed, took out or added.

    Attributes:
        place: Its place in the original graph; None for one that was added.
        before: The node as it was.
        after: The node as it is; None if it is gone.
        at: The place of the node as it is.
    """

    place: int | None
    before: onnx.NodeProto | None
    after: onnx.NodeProto | None
    at: Place = (0, 0)

    @property
    def name_after(self) -> str:
        """What names the node as it is: its first output."""
        return "" if self.after is None else first_output(self.after)

    @property
    def outputs(self) -> set[str]:
        """The values that it computes, as it was and as it is."""
        return {name for node in (self.before, self.after) if node is not None for name in node.output if name}

    @property
    def inputs(self) -> set[str]:
        """The values that it reads, as it was and as it is."""
        return {name for node in (self.before, self.after) if node is not None for name in node.input if name}


def changes(old: onnx.GraphProto, new: onnx.GraphProto, origins: Sequence[int | None]) -> list[NodeChange]:
    """Every node that is not as it was, in the original order, what was added behind its predecessor.

    Args:
        old: The original graph.
        new: The graph after the fold.
        origins: For each node of `new` the place of the same node in `old`; None where it was added.
    """
    found: list[NodeChange] = []
    place = (-1, 0)
    for node, origin in zip(new.node, origins, strict=True):
        place = (origin, 0) if origin is not None else (place[0], place[1] + 1)
        before = None if origin is None else old.node[origin]
        if before is None or _shallow(before) != _shallow(node):
            found.append(NodeChange(origin, before, node, place))
    stayed = set(origins)
    for i, node in enumerate(old.node):
        if i not in stayed:
            if any(True for _ in bodies(node)):
                raise InternalError("a node with a body was taken out", where=node.name)
            found.append(NodeChange(i, node, None))
    return sorted(found, key=lambda change: change.at if change.place is None else (change.place, 0))


def _shallow(node: onnx.NodeProto) -> bytes:
    """The node without the contents of its bodies."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for attribute in copy.attribute:
        if attribute.HasField("g"):
            attribute.g.Clear()
    return bytes(copy.SerializeToString(deterministic=True))


def supplies_of(found: Sequence[NodeChange], sources: Container[int]) -> list[NodeChange]:
    """The nodes that were taken out because nothing reads them any more: constants, and what computes them.

    One that reads a value that a fold has changed is none of them; it can come back only together with that value.

    Args:
        found: The changes.
        sources: The places of the nodes that were taken out because they were folded.
    """
    idle = {id(c): c for c in found if c.after is None and c.place not in sources}
    moved = _moved([change for change in found if id(change) not in idle])
    supplies: list[NodeChange] = []
    for change in idle.values():  # in order, so that what it reads was seen before
        if change.inputs & moved:
            moved |= change.outputs
        else:
            supplies.append(change)
    return supplies


def _moved(found: Iterable[NodeChange]) -> set[str]:
    """The values that only one of the two graphs computes."""
    found = list(found)
    return _outputs(change.before for change in found) ^ _outputs(change.after for change in found)


def regions_of(found: Sequence[NodeChange]) -> list[list[NodeChange]]:
    """The changes that hang together by a value which only one of the two graphs has, or which changed its producer."""
    moved = _moved(found)
    groups: dict[int, list[int]] = {}
    of: dict[str, int] = {}
    fresh = count()
    for i, change in enumerate(found):
        joined = {of[name] for name in _names([change], moved) if name in of}
        group = min(joined, default=next(fresh))
        members = sorted([*(j for g in joined for j in groups.pop(g)), i])
        groups[group] = members
        of.update(dict.fromkeys(_names([found[j] for j in members], moved), group))
    return [[found[i] for i in members] for members in sorted(groups.values())]


def _outputs(nodes: Iterable[onnx.NodeProto | None]) -> set[str]:
    return {name for node in nodes if node is not None for name in node.output}


def _names(group: Iterable[NodeChange], moved: set[str]) -> set[str]:
    return {name for change in group for name in change.outputs | (change.inputs & moved)}
