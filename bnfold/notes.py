"""What a report says besides the decisions, one sentence each."""

from __future__ import annotations

from collections.abc import Sequence

from bnfold.changes import Merge
from bnfold.frontends.onnx_fold import ModelPlan
from bnfold.requantising import rounded_biases


def plan_notes(planned: ModelPlan) -> tuple[str, ...]:
    """What a plan for an ONNX model merges, and what quantised biases lose."""
    merges = merge_notes([(graph.path, merge) for graph, made in planned.parts for merge in made.merges])
    return merges + tuple(note for _, part in planned.parts for note in rounded_biases(part.bench))


def merge_notes(merges: Sequence[tuple[object, Merge]]) -> tuple[str, ...]:
    """What was merged; each merge with the graph that it is in."""
    parallel = len({(graph, merge.into.index) for graph, merge in merges if not merge.is_in_a_row})
    row = sum(merge.is_in_a_row for _, merge in merges)
    notes = [f"parallel branches become one operator in {parallel} places"] if parallel else []
    return (*notes, *([f"operators in a row become one in {row} places"] if row else []))
