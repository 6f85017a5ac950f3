"""A model as protobuf with its initializers' numbers set aside, and a fingerprint of what a model computes.

`model = assemble(*skeleton(model))`. Graphs are edited as plain lists of nodes and names that way, whatever the size of
the weights, which are neither read nor copied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import onnx
import onnx_ir as ir

#: Tensors by the label that stands in their place.
Tensors = dict[str, ir.TensorProtocol]


def skeleton(model: ir.Model) -> tuple[onnx.ModelProto, Tensors]:
    """The model with a label in the place of the numbers of each initializer, and the numbers by label."""
    tensors: Tensors = {}
    copy = model.clone()
    for graph in copy.graphs():
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if tensor is not None and tensor.dtype != ir.DataType.STRING:
                value.const_value = _label(str(len(tensors)), name, tensor)
                tensors[str(len(tensors))] = tensor
    return ir.to_proto(copy), tensors


def _label(label: str, name: str, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
    return ir.ExternalTensor(label, None, None, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name)


def labelled(tensors: Tensors, name: str, tensor: ir.TensorProtocol) -> onnx.TensorProto:
    """What stands in a skeleton for one more initializer, whose numbers go to `tensors`."""
    label = str(len(tensors))
    tensors[label] = tensor
    return ir.to_proto(_label(label, name, tensor))


def label_of(proto: onnx.TensorProto) -> str:
    """The label in the place of the tensor's numbers; empty for a tensor that has its own."""
    return next((entry.value for entry in proto.external_data if entry.key == "location"), "")


def assemble(proto: onnx.ModelProto, tensors: Tensors) -> ir.Model:
    """The model of a skeleton."""
    model = ir.from_proto(proto)
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(tensor := value.const_value, ir.ExternalTensor):
                value.const_value = tensors[str(tensor.location)]
    return model


def bodies(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """The graphs in a node's attributes, by the attribute's name."""
    return ((attribute.name, attribute.g) for attribute in node.attribute if attribute.HasField("g"))


def first_output(node: onnx.NodeProto) -> str:
    """The name of the first output that is there; names it in its graph."""
    return next((name for name in node.output if name), "")


def reads(graph: onnx.GraphProto) -> set[str]:
    """Every name that the nodes of a graph read, those in bodies too, and its outputs."""
    found = {value.name for value in graph.output}
    for node in graph.node:
        found.update(node.input)
        for _, body in bodies(node):
            found |= reads(body)
    return found


def tensor_of(dtype: str, shape: tuple[int, ...], data: bytes, name: str) -> ir.TensorProtocol:
    """A tensor of an ONNX type, "FLOAT", from its little-endian bytes.

    Raises:
        ValueError: There is no such type.
    """
    kind = onnx.TensorProto.DataType.Value(dtype)
    return ir.TensorProtoTensor(onnx.TensorProto(name=name, data_type=kind, dims=shape, raw_data=data))


def fingerprint(model: ir.Model) -> str:
    """64 hexadecimal digits of all that decides what the model computes: operators, names of values, numbers.

    Documentation, metadata, node names and inferred shapes are left out: tools add those and change nothing.
    """
    proto, tensors = skeleton(model)
    digest = hashlib.sha256()
    for part in _parts(proto, tensors):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _parts(proto: onnx.ModelProto, tensors: Tensors) -> Iterator[bytes]:
    yield repr(sorted((o.domain if o.domain != "ai.onnx" else "", o.version) for o in proto.opset_import)).encode()
    yield from _graph_parts(proto.graph, tensors)
    for function in sorted(proto.functions, key=lambda f: (f.domain, f.name, f.overload)):
        yield repr((function.domain, function.name, function.overload)).encode()
        yield repr((list(function.input), list(function.output), list(function.attribute))).encode()
        yield from (_bytes(attribute) for attribute in function.attribute_proto)
        for node in function.node:
            yield from _node_parts(node, tensors)


def _graph_parts(graph: onnx.GraphProto, tensors: Tensors) -> Iterator[bytes]:
    yield repr([(value.name, _bytes(value.type)) for value in graph.input]).encode()
    yield repr([value.name for value in graph.output]).encode()
    for tensor in sorted(graph.initializer, key=lambda t: t.name):
        yield repr((tensor.name, tensor.data_type, list(tensor.dims))).encode()
        label = label_of(tensor)
        yield tensors[label].tobytes() if label else _bytes(tensor)
    for node in graph.node:
        yield from _node_parts(node, tensors)


def _node_parts(node: onnx.NodeProto, tensors: Tensors) -> Iterator[bytes]:
    domain = "" if node.domain == "ai.onnx" else node.domain
    yield repr((node.op_type, domain, node.overload, list(node.input), list(node.output))).encode()
    for attribute in sorted(node.attribute, key=lambda a: a.name):
        yield attribute.name.encode()
        if attribute.HasField("g"):
            yield from _graph_parts(attribute.g, tensors)
        else:
            yield _bytes(attribute)


def _bytes(proto: onnx.AttributeProto | onnx.TypeProto | onnx.TensorProto) -> bytes:
    return bytes(proto.SerializeToString(deterministic=True))
