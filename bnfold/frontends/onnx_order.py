"""Models as the ONNX specification has them: nodes in topological order, bodies that compute what they hand out.

onnxruntime runs a model whose nodes stand in any order (its own float16 converter makes such ones), so a file is sorted
when it is loaded. The caller's model in memory is not changed: there the order is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from bnfold.errors import ModelError
from bnfold.frontends.onnx_scopes import bodies


def sort(model: ir.Model, where: str) -> None:
    """Sort the nodes of every graph, bodies and functions included; those that are in order keep it.

    Raises:
        ModelError: A node reads what is computed from its own output; or as `require_own_outputs`.
    """
    require_own_outputs(model, where)
    try:
        for graph in _graphs(model):
            graph.sort()
    except ValueError as error:
        raise ModelError(
            "its nodes read each other in a circle, so that none can be computed first",
            where=where,
            remedy="export it again",
        ) from error


def require_order(model: ir.Model, where: str) -> None:
    """Refuse a model in memory that is out of order.

    Raises:
        ModelError: With the node that stands too early; or as `require_own_outputs`.
    """
    require_own_outputs(model, where)
    for graph in _graphs(model):
        if (node := _first_too_early(graph, set())) is not None:
            raise ModelError(
                f"node {node.name or node.op_type} reads a value before it is computed",
                where=where,
                remedy="sort the nodes of its graph, graph.sort(), as the ONNX specification demands",
            )


def require_own_outputs(model: ir.Model, where: str) -> None:
    """Refuse a body that hands out a value from outside of it, which no runtime takes.

    Raises:
        ModelError: With the node that holds the body.
    """
    for graph in _graphs(model):
        for node in graph.all_nodes():
            for value in (value for _, _, body in bodies(node) for value in body.outputs):
                if value.producer() is None and not value.is_graph_input() and not value.is_initializer():
                    raise ModelError(
                        f"node {node.name or node.op_type} has a body that hands out {value.name}, which it does not"
                        " compute",
                        where=where,
                        remedy="put an Identity into the body, as the ONNX specification demands",
                    )


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield model.graph
    for function in model.functions.values():
        yield function.graph


def _first_too_early(nodes: Iterable[ir.Node], passed: set[ir.Node]) -> ir.Node | None:
    """The first node that reads, itself or in a body, what none of those `passed` computes; these grow."""
    for node in nodes:
        for value in node.inputs:
            if value is not None and (producer := value.producer()) is not None and producer not in passed:
                return node
        for _, _, body in bodies(node):
            if (too_early := _first_too_early(body, passed)) is not None:
                return too_early
        passed.add(node)
    return None
