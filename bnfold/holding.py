"""A model whose decisions are fed: their outcomes become inputs, so that a value which jumps for a rounding cannot.

A QuantizeLinear stays, under another name, so that onnxruntime still optimises the operators that end in it as a whole,
and the codes that it computes can be compared. Other decisions go, and what they read becomes an output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnfold.dataflow import node_reads
from bnfold.probing import element_number
from bnfold.runtime import name_nodes

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import onnx

#: Behind the name of the codes that a model computes, where others are fed in their place.
COMPUTED = " as computed"


def hold(model: onnx.ModelProto, held: Mapping[str, str], shown: Collection[str]) -> onnx.ModelProto:
    """A copy of `model` with the values `held` as inputs, and `shown` among its outputs.

    Args:
        model: With its weights loaded; not changed.
        held: Names of the outcomes of decisions, and their element types by NumPy's name.
        shown: Names of the inner values that become outputs.
    """
    import onnx  # noqa: PLC0415

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    name_nodes(graph)
    kept = [_renamed(node) if set(node.output) & set(held) else node for node in graph.node if not _goes(node, held)]
    wanted = [value for value in graph.output if value.name not in held]
    present = {value.name for value in wanted}
    extra = [name for name in (*shown, *map(computed_name, computed(model.graph, held))) if name not in present]
    graph.ClearField("node")
    graph.ClearField("output")
    graph.node.extend(kept)
    graph.output.extend([*wanted, *(onnx.ValueInfoProto(name=name) for name in extra)])
    for name, kind in held.items():
        graph.input.append(onnx.helper.make_tensor_value_info(name, element_number(kind), None))
    return copy


def computed(graph: onnx.GraphProto, held: Collection[str]) -> tuple[str, ...]:
    """Those of the held values that are codes, and computed besides."""
    return tuple(node.output[0] for node in graph.node if _is_quantiser(node) and node.output[0] in held)


def computed_name(name: str) -> str:
    """The name of the codes that are computed in the place of the held ones."""
    return name + COMPUTED


def decided_by(graph: onnx.GraphProto, held: Collection[str]) -> set[str]:
    """What the decisions that go read."""
    return {name for node in graph.node if _goes(node, held) for name in node_reads(node)}


def _goes(node: onnx.NodeProto, held: Collection[str]) -> bool:
    return not _is_quantiser(node) and bool(set(node.output) & set(held))


def _renamed(node: onnx.NodeProto) -> onnx.NodeProto:
    import onnx  # noqa: PLC0415

    made = onnx.NodeProto()
    made.CopyFrom(node)
    made.output[0] = computed_name(node.output[0])
    return made


def _is_quantiser(node: onnx.NodeProto) -> bool:
    return node.op_type == "QuantizeLinear" and node.domain in ("", "ai.onnx")
