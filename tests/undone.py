"""Whether a fold that was undone gave the original back: every node, name, shape, input and number, bit by bit."""

from __future__ import annotations

import onnx
import onnx_ir as ir

import bnfold


def whole(model: ir.Model | onnx.ModelProto) -> bytes:
    """The model in bytes, its numbers stored in the one way that all have in common."""
    parsed = model if isinstance(model, ir.Model) else ir.from_proto(model)
    proto = ir.to_proto(ir.from_proto(ir.to_proto(parsed)))
    for graph in [proto.graph, *bodies(proto.graph)]:
        for tensor in graph.initializer:
            plain = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name)
            tensor.CopyFrom(plain)
    return bytes(proto.SerializeToString(deterministic=True))


def bodies(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """The graphs in the attributes of the nodes, at any depth."""
    inner = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return [body for each in inner for body in (each, *bodies(each))]


def undone(result: bnfold.FoldResult) -> ir.Model:
    """The model before the fold, from what a folded file and a manifest file would hold."""
    assert result.manifest is not None
    folded = ir.from_proto(ir.to_proto(result.model))
    return bnfold.unfold(folded, bnfold.Manifest.from_json(result.manifest.to_json())).model
