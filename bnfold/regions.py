"""The regions of a plan: operators whose changes overlap, and the values around them, for the local test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bnfold.bench import Bench
from bnfold.changes import Change, Fold
from bnfold.graph import FoldGraph, Value


@dataclass(frozen=True)
class Region:
    """Operators whose folds overlap, and the values around them: what the local test cuts out.

    Attributes:
        operators: Indices of the operators, ascending.
        inputs: Values that come in; they mean the same before and after.
        outputs: Values that go out; they mean the same before and after.
        batchnorms: The names of what was folded in it.
    """

    operators: tuple[int, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    batchnorms: tuple[str, ...]


def regions(bench: Bench, changes: Sequence[Change]) -> tuple[Region, ...]:
    """Changes that share an operator belong to one region; what only takes the identity out needs none."""
    groups: list[tuple[set[int], list[Change]]] = []
    for change in changes:
        operators, members = _along(bench, change), [change]
        apart = []
        for group in groups:
            if group[0] & operators:
                operators |= group[0]
                members = group[1] + members
            else:
                apart.append(group)
        groups = [*apart, (operators, members)]
    drops = [change for change in changes if isinstance(change, Fold) and change.is_drop]
    lost = {value for drop in drops for value in _lost(bench, drop)}
    return tuple(_region(bench.graph, *group, lost) for group in groups if not set(group[1]) <= set(drops))


def _lost(bench: Bench, drop: Fold) -> set[Value]:
    """The names that go with an identity: its own, or where it keeps that, those of the value that it equals."""
    output = drop.source.output
    if drop.direction == "push":
        return {output}
    root = bench.root(output)
    equal = [bench.graph.operators[index].outputs[0] for index in bench.removed_below(root)]
    return {value for value in (root, *equal) if value is not None} - {output}


def _along(bench: Bench, change: Change) -> set[int]:
    """The operators that a change touches, and those of others that were taken out along it."""
    outputs = {v for op in change.operators for v in op.outputs if v is not None and op.index in bench.removed}
    removed = {index for value in change.values | outputs for index in bench.removed_below(value)}
    return removed | {op.index for op in change.operators}


def _region(graph: FoldGraph, indices: set[int], changes: list[Change], lost: set[Value]) -> Region:
    operators = [graph.operators[i] for i in sorted(indices)]
    inside = {value for op in operators for value in op.outputs if value is not None}
    read = dict.fromkeys(value for op in operators for value in op.inputs)
    leaving = [v for op in operators for v in op.outputs if v is not None and _leaves(graph, v, indices)]
    return Region(
        tuple(sorted(indices)),
        tuple(v for v in read if v not in inside),
        tuple(v for v in leaving if v not in lost),
        tuple(subject.name for change in changes for subject in change.subjects),
    )


def _leaves(graph: FoldGraph, value: Value, inside: set[int]) -> bool:
    return graph.visible(value) is not None or any(u.operator.index not in inside for u in graph.uses(value))
