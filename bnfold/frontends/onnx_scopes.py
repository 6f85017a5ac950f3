"""The graphs of a model: the main one, and the bodies of If, Loop and Scan, each known by the way that leads to it.

A body sees the values of the graphs around it. Bodies beside each other may use equal names for different values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import onnx
import onnx_ir as ir

#: From the main graph inwards: an output of the control-flow node, its attribute, and the place in a list of graphs.
Path: TypeAlias = tuple[tuple[str, str, int], ...]


def scopes(model: ir.Model) -> Iterator[tuple[Path, ir.Graph]]:
    """The main graph, then every body at the place of its node, outer ones first."""
    yield (), model.graph
    yield from _within(model.graph, ())


def _within(graph: ir.Graph, path: Path) -> Iterator[tuple[Path, ir.Graph]]:
    for node in graph:
        name = next((v.name for v in node.outputs if v.name), "")
        for attribute, index, body in bodies(node):
            inner = (*path, (name, attribute, index))
            yield inner, body
            yield from _within(body, inner)


def bodies(node: ir.Node) -> Iterator[tuple[str, int, ir.Graph]]:
    """The graphs that a node holds: attribute, place in it, graph."""
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield name, 0, attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from ((name, i, graph) for i, graph in enumerate(attribute.as_graphs()))


def graph_at(model: ir.Model, path: Path) -> ir.Graph:
    """The graph that `path` leads to."""
    return next(graph for found, graph in scopes(model) if found == path)


def proto_at(graph: onnx.GraphProto, path: Path) -> onnx.GraphProto:
    """As `graph_at`, from the protobuf of the main graph."""
    for output, name, index in path:
        node = next(node for node in graph.node if output in node.output)
        attribute = next(a for a in node.attribute if a.name == name)
        graph = attribute.g if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs[index]
    return graph


def own_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """The values that the graph defines: inputs, initializers, and what its nodes compute."""
    yield from dict.fromkeys((*graph.inputs, *graph.initializers.values()))
    for node in graph:
        yield from node.outputs


def values_of(graph: ir.Graph) -> dict[str, ir.Value]:
    """The values that the graph defines, and those that it reads from the graphs around it, by name."""
    found = {value.name: value for value in own_values(graph) if value.name}
    for value in (v for node in graph for v in node.inputs):
        if value is not None and value.name:
            found.setdefault(value.name, value)
    return found


def rename_alone(value: ir.Value, name: str) -> None:
    """Rename a value, and with it no tensor that a clone of the model shares."""
    if (tensor := value.const_value) is not None:
        is_text = tensor.dtype == ir.DataType.STRING
        numbers = tensor.numpy()
        value.const_value = ir.StringTensor(numbers, name=name) if is_text else ir.Tensor(numbers, tensor.dtype)
    value.name = name
