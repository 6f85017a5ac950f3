"""What has to come back with some regions of a fold: the constants that their nodes read, and what computes those."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx

from bnfold.manifest import GraphPath, GraphUndo, LostTensor, StoredNodes, UndoRegion

Key = tuple[GraphPath, str]


@dataclass(frozen=True, eq=False)
class Selection:
    """What comes back in one graph.

    Attributes:
        record: What the fold did to the graph.
        whole: Whether all of the fold is undone.
        regions: The regions.
        supplies: Nodes that compute constants, by their place.
        lost: Initializers.
    """

    record: GraphUndo
    whole: bool
    regions: tuple[UndoRegion, ...]
    supplies: Mapping[int, onnx.NodeProto]
    lost: tuple[LostTensor, ...]

    @property
    def nodes(self) -> Iterator[tuple[int, onnx.NodeProto]]:
        """All nodes, each with its place."""
        yield from self.supplies.items()
        for region in self.regions:
            yield from unpacked(region.before)

    @property
    def described(self) -> tuple[str, ...]:
        """The values whose description comes back: those that do, or all at the end."""
        back = {name for _, node in self.nodes for name in node.output} | {tensor.name for tensor in self.lost}
        return tuple(name for name in self.record.described if self.whole or name in back)

    def rest(self, made: Sequence[str]) -> GraphUndo:
        """What is still to be undone; of what the fold made, `made` is still there."""
        record, back, told = self.record, {id(region) for region in self.regions}, set(self.described)
        supplies = [(place, node) for place, node in unpacked(record.supplies) if place not in self.supplies]
        return replace(
            record,
            regions=tuple(region for region in record.regions if id(region) not in back),
            supplies=packed(supplies),
            lost=tuple(tensor for tensor in record.lost if tensor not in self.lost),
            made=tuple(made),
            described=tuple(name for name in record.described if name not in told),
        )


def unpacked(stored: StoredNodes) -> list[tuple[int, onnx.NodeProto]]:
    """The nodes, each with its place."""
    return list(zip(stored.places, onnx.GraphProto.FromString(stored.proto).node, strict=True))


def packed(nodes: Sequence[tuple[int, onnx.NodeProto]]) -> StoredNodes:
    """The inverse of `unpacked`."""
    proto = onnx.GraphProto(node=[node for _, node in nodes])
    return StoredNodes(tuple(place for place, _ in nodes), bytes(proto.SerializeToString(deterministic=True)))


def select(records: Mapping[GraphPath, GraphUndo], wanted: Callable[[UndoRegion], bool]) -> dict[GraphPath, Selection]:
    """What comes back in each graph for the wanted regions; everything, where those are all."""
    back = {path: tuple(filter(wanted, record.regions)) for path, record in records.items()}
    whole = all(len(back[path]) == len(record.regions) for path, record in records.items())
    supplies = {path: dict(unpacked(record.supplies)) for path, record in records.items()}
    needed = None if whole else _needed(records, back, supplies)
    return {
        path: Selection(
            record,
            whole,
            back[path],
            {i: n for i, n in supplies[path].items() if needed is None or any((path, o) in needed for o in n.output)},
            tuple(tensor for tensor in record.lost if needed is None or (path, tensor.name) in needed),
        )
        for path, record in records.items()
    }


def _needed(
    records: Mapping[GraphPath, GraphUndo],
    back: Mapping[GraphPath, tuple[UndoRegion, ...]],
    supplies: Mapping[GraphPath, Mapping[int, onnx.NodeProto]],
) -> set[Key]:
    """The values that are gone and that the regions read, directly or through others that are gone."""
    sources: dict[Key, list[str]] = {(path, t.name): [] for path, record in records.items() for t in record.lost}
    for path, nodes in supplies.items():
        sources |= {(path, output): list(node.input) for node in nodes.values() for output in node.output if output}
    pending = [
        (p, n) for p, regions in back.items() for r in regions for _, node in unpacked(r.before) for n in node.input
    ]
    found: set[Key] = set()
    while pending:
        path, name = pending.pop()
        scopes = (path[:depth] for depth in range(len(path), -1, -1))
        key = next(((scope, name) for scope in scopes if (scope, name) in sources), None)
        if key is not None and key not in found:
            found.add(key)
            pending += [(key[0], read) for read in sources[key]]
    return found
