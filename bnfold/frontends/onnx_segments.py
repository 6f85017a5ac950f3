"""Cuts an ONNX graph at the levels of its BatchNorms into small models that run one after the other.

A segment takes what the earlier ones left, and the mean and variance of the BatchNorms that it begins with; it ends
with the moments of the inputs of the next BatchNorms, `moments(x) = sum of the moments of x in each sample`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TypeProto, helper

from bnfold.drift import Statistics
from bnfold.errors import ModelError
from bnfold.frontends.onnx_levels import Flow
from bnfold.frontends.onnx_reduction import Reduction, reduced
from bnfold.levels import Schedule
from bnfold.moments import ChannelMoments
from bnfold.observation import Call, State

#: Nothing older can have initializers that are no inputs.
_IR_VERSION = 4


class Runner(Protocol):
    """A model that is ready to run."""

    @property
    def types(self) -> Mapping[str, str]:
        """The element types of its inputs and outputs, by NumPy's names; other types by onnxruntime's."""

    def run(self, names: Sequence[str], feeds: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, Any]:
        """The named outputs."""


Opener: TypeAlias = Callable[[onnx.ModelProto], Runner]


@dataclass(frozen=True)
class Tap:
    """One BatchNorm node that is watched.

    Attributes:
        call: Which one it is.
        node: Its place in the graph.
        channels: C.
        rank: How many axes its input has; None if unknown.
        dtype: That of its input; None if unknown.
        dtypes: Those of mean and variance.
    """

    call: Call
    node: int
    channels: int
    rank: int | None
    dtype: np.dtype[Any] | None
    dtypes: tuple[np.dtype[Any], np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class OnnxSegment:
    """A segment, ready to run: see `bnfold.observation.Segment`.

    Attributes:
        runner: The small model.
        inputs: What it takes of the state.
        begins: The BatchNorms it begins with.
        ends: The BatchNorms whose inputs it ends with, and what computes their moments.
        carried: What later segments need.
        prefix: Of the names that were added.
    """

    runner: Runner
    inputs: Sequence[str]
    begins: Sequence[Tap]
    ends: Sequence[tuple[Tap, Reduction]]
    carried: Sequence[str]
    prefix: str

    def reduce(
        self, state: State, statistics: Mapping[Call, Statistics]
    ) -> tuple[Mapping[Call, ChannelMoments], State]:
        """Run it on one batch."""
        feeds = {name: state[name] for name in self.inputs}
        for tap in self.begins:
            given = statistics[tap.call]
            numbers = (given.mean, given.variance)
            for name, number, dtype in zip(_given(self.prefix, tap), numbers, tap.dtypes, strict=True):
                feeds[name] = number.astype(dtype)
        fresh = [name for name in self.carried if name not in state]
        found = [name for _, reduction in self.ends for name in reduction.results]
        results = self.runner.run([*fresh, *found], feeds)
        moments = {
            tap.call: reduced([results[name] for name in reduction.results], tap.channels)
            for tap, reduction in self.ends
        }
        return moments, {name: results[name] if name in results else state[name] for name in self.carried}


class Segments:
    """The segments of one model.

    Args:
        model: The model with its weights loaded.
        opset: Its version of the standard operators.
        flow: Its graph.
        plan: When each node runs.
        taps: The BatchNorms that are watched.
        opener: Makes a small model ready to run.
    """

    def __init__(  # noqa: PLR0913, PLR0917  # one for each thing it puts together
        self,
        model: onnx.ModelProto,
        opset: int,
        flow: Flow,
        plan: Schedule,
        taps: Sequence[Tap],
        opener: Opener,
    ) -> None:
        self._model, self._opset, self._flow, self._plan, self._opener = model, opset, flow, plan, opener
        self._taps = {tap.node: tap for tap in taps}
        self._level_of = {site: k for k, level in enumerate(plan.levels) for site in level}
        self._prefix = _unused_prefix(flow)
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._sparse = {tensor.values.name: tensor for tensor in model.graph.sparse_initializer}
        self._types = {value.name: value.type for value in model.graph.input}

    def cut(self, level: int) -> OnnxSegment:
        """The segment that ends at `level`; they are cut in order, as one tells the types that the next one needs.

        Raises:
            ModelError: A value between two segments is neither a tensor nor a sequence of tensors.
        """
        places = [i for i, at in sorted(self._plan.at.items()) if at == level]
        ends = [(t, self._reduction(t)) for t in self._taps.values() if self._level_of[t.call[0]] == level]
        read = {name for i in places for name in self._flow.reads[i]} | {reduction.source for _, reduction in ends}
        places = sorted({*places, *self._supplies(read)})
        made = {name for i in places for name in self._flow.nodes[i].output if name}
        read |= {name for i in places for name in self._flow.reads[i]}
        inputs = sorted(name for name in read - made if name not in self._flow.constants)
        begins = [self._taps[i] for i in places if i in self._taps]
        carried = self.carried(level)
        fresh = [name for name in carried if name in made]
        reductions = [reduction for _, reduction in ends]
        runner = self._opener(self._assemble(places, inputs, begins, reductions, fresh, read))
        self._types |= {name: _type(name, runner.types[name]) for name in fresh}
        return OnnxSegment(runner, inputs, begins, ends, carried, self._prefix)

    def carried(self, level: int) -> list[str]:
        """What later segments need of a batch at the end of this one, in the order in which it is kept."""
        return sorted(self._carried(level))

    def _input(self, tap: Tap) -> str:
        return str(self._flow.nodes[tap.node].input[0])

    def _supplies(self, read: set[str]) -> Iterator[int]:
        """The fixed nodes that the values need."""
        pending, seen = list(read), set[int]()
        while pending:
            node = self._flow.producers.get(pending.pop(), -1)
            if node in self._flow.fixed and node not in seen:
                seen.add(node)
                yield node
                pending += self._flow.reads[node]

    def _carried(self, level: int) -> Iterator[str]:
        """What is known at the end of a segment and read by a later one; fixed values are computed anew."""
        for name, last in self._plan.last.items():
            if last > level and not self._flow.is_fixed(name):
                source = self._flow.producers.get(name)
                if source is None or self._plan.at[source] <= level:
                    yield name

    def _assemble(  # noqa: PLR0913, PLR0917
        self,
        places: Sequence[int],
        inputs: Sequence[str],
        begins: Sequence[Tap],
        ends: Sequence[Reduction],
        fresh: Sequence[str],
        read: set[str],
    ) -> onnx.ModelProto:
        nodes = [self._node(i) for i in places]
        nodes += [node for reduction in ends for node in reduction.nodes]
        given = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), [tap.channels])
            for tap in begins
            for name, dtype in zip(_given(self._prefix, tap), tap.dtypes, strict=True)
        ]
        outputs = [*fresh, *(name for reduction in ends for name in reduction.results)]
        graph = helper.make_graph(
            nodes,
            "segment",
            [*(onnx.ValueInfoProto(name=name, type=self._types[name]) for name in inputs), *given],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            [
                *(self._initializers[name] for name in sorted(read) if name in self._initializers),
                *(constant for reduction in ends for constant in reduction.constants),
            ],
            sparse_initializer=[self._sparse[name] for name in sorted(read) if name in self._sparse],
        )
        version = max(self._model.ir_version, _IR_VERSION)
        imports, functions = self._model.opset_import, self._model.functions
        return helper.make_model(graph, opset_imports=imports, ir_version=version, functions=functions)

    def _node(self, place: int) -> NodeProto:
        """The node; a BatchNorm that is watched takes its statistics from outside."""
        node = NodeProto()
        node.CopyFrom(self._flow.nodes[place])
        if place in self._taps:
            node.input[3], node.input[4] = _given(self._prefix, self._taps[place])
        return node

    def _reduction(self, tap: Tap) -> Reduction:
        stem = _stem(self._prefix, tap)
        return Reduction(self._input(tap), f"{stem}.seen", tap.rank, tap.dtype, self._opset).build()


def _stem(prefix: str, tap: Tap) -> str:
    return f"{prefix}{tap.call[0]}.{tap.call[1]}"


def _given(prefix: str, tap: Tap) -> tuple[str, str]:
    """The inputs that take mean and variance."""
    stem = _stem(prefix, tap)
    return f"{stem}.mean", f"{stem}.variance"


def _type(name: str, text: str) -> TypeProto:
    """The type that a session tells, for the input of another one."""
    inner, is_sequence = text, text.startswith("seq(tensor(")
    if is_sequence:
        inner = text.removeprefix("seq(tensor(").removesuffix("))")
    known = {"float32": "FLOAT", "float64": "DOUBLE"}.get(inner, inner.upper())
    if known not in dict(onnx.TensorProto.DataType.items()):
        raise ModelError(f"a value of type {text} lies between two BatchNorms", where=name)
    kind = onnx.TensorProto.DataType.Value(known)
    tensor = helper.make_tensor_type_proto(kind, None)
    return helper.make_sequence_type_proto(tensor) if is_sequence else tensor


def _unused_prefix(flow: Flow) -> str:
    """What no name of the graph begins with."""
    names = {*flow.constants, *flow.producers, *(name for reads in flow.reads for name in reads)}
    prefix = "bnfold."
    while any(name.startswith(prefix) for name in names):
        prefix = f"_{prefix}"
    return prefix
