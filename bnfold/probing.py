"""Two models made comparable: every inner tensor becomes an output, and decisions become inputs.

A decision (TopK, ArgMax, Round, a random draw) may jump for a rounding, so both models are fed the outcome the original
came to: `before(x, d(x))` against `after(x, d(x))`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bnfold.dataflow import FLOATS, Dataflow, coarser, coarsest_of, descendants, trace
from bnfold.runtime import Session, name_nodes, open_session

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import onnx


@dataclass(frozen=True, eq=False)
class Probe:
    """A model whose every inner tensor is an output.

    Attributes:
        graph: Its graph.
        session: Ready to run.
        flow: Where rounding can reach.
        jumping: Names of the values that follow a decision which is still in the graph, its outcome included.
    """

    graph: onnx.GraphProto
    session: Session
    flow: Dataflow
    jumping: frozenset[str]


@dataclass(frozen=True, eq=False)
class Pair:
    """Two models ready to be compared.

    Attributes:
        original: The original with its decisions, every inner tensor an output.
        before: The original with the decisions cut out; the same object as `original` when there are none.
        after: The folded model with the same decisions cut out.
        cut: Names of the decisions' outcomes; inputs of `before` and `after`.
        outputs: Names of the outputs that can be compared.
        inner: Names of the inner tensors that can be compared, in the original's topological order.
        retyped: Type before and after of every output whose type changed.
    """

    original: Probe
    before: Probe
    after: Probe
    cut: tuple[str, ...]
    outputs: tuple[str, ...]
    inner: tuple[str, ...]
    retyped: Mapping[str, tuple[str, str]]

    @property
    def compared(self) -> tuple[str, ...]:
        """Everything that can be compared."""
        return (*self.inner, *self.outputs)

    def accuracy(self, name: str) -> str | None:
        """The coarsest floating-point type on the way to a value in either model; None where no such type is known."""
        flows = (self.before.flow, self.after.flow)
        kinds = [flow.coarsest[name] for flow in flows if name in flow.coarsest]
        return coarsest_of(kinds) if kinds else None

    @property
    def coarser(self) -> tuple[str, ...]:
        """What is compared and goes through a coarser floating-point type in the folded model than in the original."""
        names = coarser(self.after.flow.coarsest, self.before.flow.coarsest)
        return tuple(name for name in self.compared if name in names)


def pair_up(before: onnx.ModelProto, after: onnx.ModelProto, provider: str) -> Pair:
    """Prepare both models for a comparison; neither is changed.

    Raises:
        MissingPackageError, ProviderError: As `bnfold.runtime.open_session`.
    """
    original, folded = probe(before, {}, provider), probe(after, {}, provider)
    wanted = [output.name for output in before.graph.output]
    types = (original.session.types, folded.session.types)
    retyped = {name: (types[0][name], types[1][name]) for name in wanted if types[0][name] != types[1][name]}
    shared = {found for found in set(_decisions(original)) & set(_decisions(folded)) if _same(found, *types)}
    # Only tensors can be fed; a decision that yields a sequence stays, and what follows it is left out.
    tensors = sorted(outcome for outcome in shared if all(_is_tensor(types[0][name]) for name in outcome))
    cut = tuple(name for outcome in tensors for name in outcome)
    if set(node_outputs(original.graph)) <= set(cut) or set(node_outputs(folded.graph)) <= set(cut):
        # Nothing but decisions: onnxruntime takes no graph without nodes, and nothing is left to compare.
        return Pair(original, original, folded, cut, (), (), retyped)
    reference = probe(before, {name: types[0][name] for name in cut}, provider) if cut else original
    folded = probe(after, {name: types[0][name] for name in cut}, provider) if cut else folded
    known = usable(reference) & usable(folded) - set(cut)
    inner = tuple(
        name for name in node_outputs(reference.graph) if name in known and _is_inner(reference, name, wanted)
    )
    outputs = tuple(name for name in wanted if name in known)
    return Pair(original, reference, folded, cut, outputs, inner, retyped)


def probe(model: onnx.ModelProto, fed: Mapping[str, str], provider: str) -> Probe:
    """A probe of a copy of the model whose nodes that compute `fed` (type by name) are replaced by inputs."""
    import onnx  # noqa: PLC0415

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    kept = [node for node in graph.node if not set(node.output) & set(fed)]
    outputs = [value for value in graph.output if value.name not in fed]
    graph.ClearField("node")
    graph.ClearField("output")
    graph.node.extend(kept)
    graph.output.extend(outputs)
    for name, kind in fed.items():
        graph.input.append(onnx.helper.make_tensor_value_info(name, element_number(kind), None))
    name_nodes(graph)
    held = {output.name for output in outputs}
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in node_outputs(graph) if name not in held)
    session = open_session(copy, provider)
    for tensor in graph.initializer:
        tensor.ClearField("raw_data")  # the session has its own
    flow = trace(graph, session.types, {value.name for value in outputs})
    sources = {name for position in flow.decisions for name in graph.node[position].output if name}
    return Probe(graph, session, flow, frozenset(descendants(graph, sources)))


def node_outputs(graph: onnx.GraphProto) -> tuple[str, ...]:
    """Names of all that the nodes of the main graph compute, in their order."""
    return tuple(name for node in graph.node for name in node.output if name)


def _decisions(found: Probe) -> tuple[tuple[str, ...], ...]:
    """The outcomes of every decision, one tuple per node."""
    nodes = [found.graph.node[position] for position in found.flow.decisions]
    return tuple(tuple(filter(None, node.output)) for node in nodes)


def _same(names: tuple[str, ...], *types: Mapping[str, str]) -> bool:
    return all(len({known[name] for known in types}) == 1 for name in names)


def usable(found: Probe) -> set[str]:
    """Names of the outputs of a probe that are tensors and follow no decision that is still in the graph."""
    names = {output.name for output in found.graph.output}
    return {name for name in names - found.jumping if _is_tensor(found.session.types[name])}


def _is_inner(found: Probe, name: str, outputs: list[str]) -> bool:
    return name not in outputs and name in found.flow.inexact and found.session.types[name] in FLOATS


def _is_tensor(kind: str) -> bool:
    return "(" not in kind


def element_number(kind: str) -> int:
    """ONNX's number of an element type known by NumPy's name."""
    import onnx  # noqa: PLC0415

    return int(onnx.TensorProto.DataType.Value({"float32": "FLOAT", "float64": "DOUBLE"}.get(kind, kind.upper())))


def numpy_type(kind: str) -> np.dtype[Any]:
    """The element type of that name; bfloat16 is none of NumPy's own."""
    import onnx  # noqa: PLC0415

    return onnx.helper.tensor_dtype_to_np_dtype(element_number(kind))
