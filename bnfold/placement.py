"""Which execution provider ran which node, as onnxruntime records it, and whether that is what was asked for.

Nothing here about CUDA was seen on a GPU by this module's own tests: the rule that judges the placement is a pure
function of the assignments, tested with made-up ones.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bnfold.errors import ProviderError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

#: What to do where a model cannot be run as asked.
REMEDY = "use --no-verify to skip the run (the local proof still stands)"


@dataclass(frozen=True)
class Assignment:
    """One node and the provider it was given to, by onnxruntime's names."""

    node: str
    operator: str
    provider: str


def judge_placement(assignments: Iterable[Assignment], floating: frozenset[str], provider: str) -> tuple[str, ...]:
    """The nodes that ran elsewhere, as `operator name`, if none of them is on the floating-point data path.

    Args:
        assignments: Every node and its provider.
        floating: Names of the nodes on the floating-point data path.
        provider: The provider that was asked for, by onnxruntime's name.

    Raises:
        ProviderError: Nothing was recorded, a floating-point node is elsewhere, or a node elsewhere has no name to
            tell it by.
    """
    known = [entry for entry in assignments if not entry.operator.startswith("Memcpy")]
    if not any(entry.provider == provider for entry in known):
        raise ProviderError(f"no node was placed on {provider}", remedy="run on the cpu, or " + REMEDY)
    elsewhere = [entry for entry in known if entry.provider != provider]
    for entry in elsewhere:
        if entry.node in floating or not entry.node:
            raise ProviderError(
                f"{entry.operator} was placed on {entry.provider} although {provider} was asked for",
                where=entry.node,
                remedy="run on the cpu, or " + REMEDY,
            )
    return tuple(f"{entry.operator} {entry.node}" for entry in elsewhere)


def read_recorded(subgraphs: Iterable[Any]) -> tuple[Assignment, ...]:
    """Assignments from onnxruntime's own record (`session.record_ep_graph_assignment_info`)."""
    return tuple(Assignment(node.name, node.op_type, part.ep_name) for part in subgraphs for node in part.get_nodes())


def read_profile(path: Path) -> tuple[Assignment, ...]:
    """Assignments from the profile of a run, for an onnxruntime without the record; the file is removed."""
    events = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    kernels = [event for event in events if event["name"].endswith("_kernel_time")]
    return tuple(
        Assignment(event["name"].removesuffix("_kernel_time"), event["args"]["op_name"], event["args"]["provider"])
        for event in kernels
    )
