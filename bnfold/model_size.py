"""How large a model is and how much it computes: what it runs, so a function counts once for each call; its scales."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import onnx_ir as ir

from bnfold.data import fill_shapes, read_inputs
from bnfold.frontends.onnx_context import is_standard
from bnfold.frontends.onnx_files import in_memory
from bnfold.frontends.onnx_flops import count_flops
from bnfold.graph import FoldGraph
from bnfold.report.model import Report, ScaleSpread, Size
from bnfold.views import BatchNorm


def size_of(model: ir.Model) -> Size:
    """Operators, BatchNorms among them, and bytes of weights."""
    nodes = list(_nodes(model, model.graph.all_nodes(), ()))
    batchnorms = sum(node.op_type == "BatchNormalization" and is_standard(node) for node in nodes)
    held = [v.const_value for graph in model.graphs() for v in graph.initializers.values()]
    tensors = [tensor for tensor in held if tensor is not None]
    return Size(len(nodes), batchnorms, sum(t.nbytes for t in tensors), sum(t.size for t in tensors))


def with_flops(
    report: Report, before: ir.Model, after: ir.Model | None, shapes: Mapping[str, tuple[int, ...]] | None
) -> Report:
    """The report with what both models compute, at the sizes of the first run of its check, else at `shapes`.

    Raises:
        UsageError: There was no run, and `shapes` contradicts the model.
        DataError: Likewise, and an input is no tensor of numbers, or its rank is open.
    """
    checks = report.verification.quick if report.verification is not None else ()
    sizes = next((check.runs[0] for check in checks if check.runs), shapes or {})
    if sizes is shapes:
        fill_shapes(read_inputs(in_memory(before)), batch=1, spatial=1, overrides=shapes)  # refuses what cannot be
    old = replace(report.before, flops=count_flops(before, sizes))
    if report.after is None or after is None:
        return replace(report, before=old)
    return replace(report, before=old, after=replace(report.after, flops=count_flops(after, sizes)))


def scales_of(parts: Iterable[tuple[FoldGraph, object]]) -> tuple[ScaleSpread, ...]:
    """How the scales of each BatchNorm are spread, before anything is folded; `parts` are graphs with their plans."""
    operators = (operator for graph, _ in parts for operator in graph.operators)
    return tuple(
        ScaleSpread.of(operator.name, operator.view.affine.scale)
        for operator in operators
        if isinstance(operator.view, BatchNorm) and operator.view.affine.channels
    )


def _nodes(model: ir.Model, nodes: Iterable[ir.Node], within: tuple[ir.OperatorIdentifier, ...]) -> Iterator[ir.Node]:
    """The nodes, those of bodies among them, with the nodes of a function in the place of each call."""
    for node in nodes:
        called = model.functions.get(node.op_identifier())
        if called is None or node.op_identifier() in within:
            yield node
        else:
            yield from _nodes(model, called.all_nodes(), (*within, node.op_identifier()))
