"""What a value of an ONNX graph depends on: the input's floating-point numbers, whole numbers only, or shapes alone.

A value is *inexact* when a floating-point number computed from the model's inputs reaches it other than through `Shape`
or `Size`: only such values may differ by rounding between two equivalent models. A *decision* is a node that turns
inexact values into ones that jump (TopK, Round, Greater, ...) or that draws random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    import onnx

#: Floating-point types by NumPy's names, from the finest to the coarsest.
_BY_FINENESS = ("float64", "float32", "float16", "bfloat16")
FLOATS = frozenset(_BY_FINENESS)
_SHAPES_ONLY = frozenset({"Shape", "Size"})
_JUMPING = frozenset(
    {"ArgMax", "ArgMin", "Ceil", "DynamicQuantizeLinear", "Equal", "Floor", "Greater", "GreaterOrEqual", "Hardmax"}
    | {"Less", "LessOrEqual", "Mod", "NonMaxSuppression", "NonZero", "QuantizeLinear", "Round", "Shrink", "Sign"}
    | {"ThresholdedRelu", "TopK", "Unique"}
)
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


@dataclass(frozen=True)
class Dataflow:
    """Where rounding can reach in one graph.

    Attributes:
        inexact: Names of the values that rounding may move, decisions taken from inexact values included.
        coarsest: The coarsest floating-point type on the way to each value, weights included, where known.
        decisions: Positions in `graph.node` of the decisions.
    """

    inexact: frozenset[str]
    coarsest: Mapping[str, str]
    decisions: tuple[int, ...]


def trace(graph: onnx.GraphProto, types: Mapping[str, str], outputs: Collection[str] | None = None) -> Dataflow:
    """Follow the inputs through the graph, whose nodes stand in topological order.

    Args:
        graph: The main graph.
        outputs: The outputs that the caller wants; the graph's by default.
        types: Element type of the values by NumPy's name; a value of unknown type counts as a floating-point one.
    """
    read = {name for node in graph.node for name in node_reads(node)}
    read |= set(outputs) if outputs is not None else {value.name for value in graph.output}
    constants = {tensor.name: _numpy_name(tensor.data_type) for tensor in graph.initializer}
    types = {**constants, **types}
    names = [value.name for value in graph.input if value.name not in constants]
    inexact = {name for name in names if not _is_whole(types, name)}
    exact = set(names) - inexact
    # A weight's type counts too: its own rounding is the fold's rounding.
    coarsest = {name: types[name] for name in (*names, *constants) if types.get(name) in FLOATS}
    decisions: list[int] = []
    for position, node in enumerate(graph.node):
        reads = set(node_reads(node))
        reached = node.op_type not in _SHAPES_ONLY and bool(reads & (inexact | exact))
        if node.op_type in _RANDOM or (reached and bool(reads & inexact) and _jumps(node, inexact, types, read)):
            decisions.append(position)
            reached = True
        for name in filter(None, node.output):
            _record_coarsest(coarsest, name, reads, types)
        if not reached:
            continue
        for name in filter(None, node.output):
            if reads & inexact or node.op_type in _RANDOM or not _is_whole(types, name):
                inexact.add(name)
            else:
                exact.add(name)
    return Dataflow(frozenset(inexact), coarsest, tuple(decisions))


def node_reads(node: onnx.NodeProto) -> Iterator[str]:
    """Every name the node reads, those that its bodies (If, Loop, Scan) capture included."""
    yield from filter(None, node.input)
    for body in node_bodies(node):
        for inner in body.node:
            yield from node_reads(inner)
        yield from (output.name for output in body.output)


def node_bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs a node holds as attributes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def descendants(graph: onnx.GraphProto, sources: set[str]) -> set[str]:
    """The sources and everything computed from them, shapes included."""
    reached = set(sources)
    for node in graph.node:
        if not reached.isdisjoint(node_reads(node)):
            reached.update(filter(None, node.output))
    return reached


def last_before(graph: onnx.GraphProto, name: str, wanted: frozenset[str]) -> tuple[str, ...]:
    """The nearest ancestors of a value that are in `wanted`, in the order they are met."""
    producer = {output: node for node in graph.node for output in node.output if output}
    found: dict[str, None] = {}
    seen, frontier = {name}, [name]
    while frontier:
        node = producer.get(frontier.pop(0))
        for read in node_reads(node) if node is not None else ():
            if read in seen:
                continue
            seen.add(read)
            if read in wanted:
                found[read] = None
            else:
                frontier.append(read)
    return tuple(found)


def computed_alike(before: onnx.GraphProto, after: onnx.GraphProto, name: str) -> bool:
    """Whether both graphs compute `name` by the same nodes from the same constants and inputs, bit for bit."""
    tensors = [{tensor.name: tensor for tensor in graph.initializer} for graph in (before, after)]
    nodes = [{output: node for node in graph.node for output in node.output} for graph in (before, after)]
    frontier, seen = [name], {name}
    while frontier:
        read = frontier.pop()
        if read in tensors[0] or read in tensors[1]:
            alike = tensors[0].get(read) == tensors[1].get(read)
        elif read in nodes[0] or read in nodes[1]:
            alike = nodes[0].get(read) == nodes[1].get(read)
            further = set(node_reads(nodes[0][read])) - seen if alike else set()
            frontier, seen = [*frontier, *further], seen | further
        else:
            alike = True  # an input: both are fed the same
        if not alike:
            return False
    return True


def floating_nodes(model: onnx.ModelProto) -> frozenset[str]:
    """Names of the nodes that read or write floating-point numbers computed from the inputs (unnamed ones excepted)."""
    types = infer_types(model)
    inexact = trace(model.graph, types).inexact

    def floats(names: Sequence[str]) -> bool:
        return any(name in inexact and not _is_whole(types, name) for name in names)

    return frozenset(
        node.name
        for node in model.graph.node
        if node.name and node.op_type not in _SHAPES_ONLY and (floats(tuple(node_reads(node))) or floats(node.output))
    )


def coarsest_types(model: onnx.ModelProto, types: Mapping[str, str]) -> dict[str, str]:
    """The coarsest floating-point type on the way to every value, by its name.

    Args:
        model: With its weights.
        types: What a runtime, which knows all operators, says of the values' types, by NumPy's name.
    """
    return dict(trace(model.graph, infer_types(model) | dict(types)).coarsest)


def coarsest_of(kinds: Iterable[str]) -> str:
    """The floating-point type with the fewest digits; float32 where there is none."""
    return max(kinds, key=_BY_FINENESS.index, default="float32")


def coarser(one: Mapping[str, str], other: Mapping[str, str]) -> set[str]:
    """Names whose type in `one` has fewer digits than in `other`; both are known."""
    return {name for name in one if name in other and coarsest_of((one[name], other[name])) != other[name]}


def infer_types(model: onnx.ModelProto) -> dict[str, str]:
    """Element types by NumPy's name, as far as ONNX can infer them.

    The weights' values are left out: only types count, and a model above 2 GiB could not be handed over.
    """
    import onnx  # noqa: PLC0415

    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    light.graph.name = "types"
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    listed = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.name not in listed:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    try:
        inferred = onnx.shape_inference.infer_shapes(light).graph
    except onnx.shape_inference.InferenceError:
        inferred = light.graph  # what the model declares is then all that is known
    values = [*model.graph.value_info, *inferred.value_info, *inferred.input, *inferred.output]
    return {value.name: _numpy_name(value.type.tensor_type.elem_type) for value in values if _is_typed(value)}


def _is_whole(types: Mapping[str, str], name: str) -> bool:
    """Whether a value is known to hold whole numbers, booleans or text."""
    return types.get(name, "").startswith(("int", "uint", "bool", "str"))


def _is_typed(value: onnx.ValueInfoProto) -> bool:
    return value.type.HasField("tensor_type") and value.type.tensor_type.elem_type != 0


def _numpy_name(element: int) -> str:
    import onnx  # noqa: PLC0415

    return str(onnx.helper.tensor_dtype_to_np_dtype(element).name)


def _jumps(node: onnx.NodeProto, inexact: set[str], types: Mapping[str, str], read: set[str]) -> bool:
    """Whether the node turns inexact numbers into ones that jump; bodies that hold such a node count as one."""
    reads_floats = any(name in inexact and not _is_whole(types, name) for name in node_reads(node))
    # MaxPool's Indices are there in many files, and in few does anybody read them.
    writes_whole = any(_is_whole(types, name) for name in node.output if name in read)
    # Dropout's mask is a constant, or drawn, and never a matter of rounding.
    if reads_floats and node.op_type != "Dropout" and (writes_whole or node.op_type in _JUMPING):
        return True
    # An If itself is none: the decision is the Greater that made its condition.
    return any(inner.op_type in _JUMPING | _RANDOM for inner in _nested(node))


def _nested(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    for body in node_bodies(node):
        for inner in body.node:
            yield inner
            yield from _nested(inner)


def _record_coarsest(coarsest: dict[str, str], name: str, reads: set[str], types: Mapping[str, str]) -> None:
    met = [coarsest[read] for read in reads if read in coarsest]
    met += [types[value] for value in (name, *reads) if types.get(value) in FLOATS]
    if met:
        coarsest[name] = coarsest_of(met)
