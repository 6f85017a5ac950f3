"""Cuts a captured module at the levels of its BatchNorms, and runs the parts one after the other, on its device.

A segment takes what the earlier ones left, and the mean and variance of the BatchNorms that it begins with; it ends
with the moments of the inputs of the next BatchNorms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bnfold.drift import Statistics
from bnfold.frontends.torch_calls import BatchNormCall, normalised
from bnfold.frontends.torch_flow import TorchFlow, functional
from bnfold.frontends.torch_run import guarded
from bnfold.frontends.torch_tensors import moments_of, to_array, to_tensor
from bnfold.levels import Schedule
from bnfold.moments import ChannelMoments
from bnfold.observation import Call, State

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node


@dataclass(frozen=True, eq=False)
class TorchSegment:
    """A segment, ready to run: see `bnfold.observation.Segment`.

    Attributes:
        nodes: What it runs, in order, and the operator of each, which writes nothing in place.
        inputs: What it takes of the state.
        constants: What else it takes.
        begins: The BatchNorms it begins with, by their outputs.
        ends: What the BatchNorms that it ends with normalise.
        carried: What later segments need.
        done: For each node the values that are not needed behind it.
    """

    nodes: Mapping[Node, Any]
    inputs: Sequence[Node]
    constants: Mapping[Node, Any]
    begins: Mapping[Node, tuple[Call, BatchNormCall]]
    ends: Mapping[Call, Node]
    carried: Sequence[Node]
    done: Mapping[Node, Sequence[Node]]

    def reduce(
        self, state: State, statistics: Mapping[Call, Statistics]
    ) -> tuple[Mapping[Call, ChannelMoments], State]:
        """Run it on one batch.

        Raises:
            ModelError: An operator does not take what it is given.
            MachineError: The device has too little memory.
        """
        import torch  # noqa: PLC0415

        with torch.no_grad():
            values = {node: to_tensor(state[node.name], node.meta.get("val")) for node in self.inputs}
            values.update(self.constants)
            for node in self.nodes:
                with guarded(node.name):
                    values[node] = self._run(node, values, statistics)
                for old in self.done[node]:
                    del values[old]
            with guarded("the moments"):
                moments = {call: moments_of(values[node]) for call, node in self.ends.items()}
            rest = {n.name: state[n.name] if n.name in state else to_array(values[n]) for n in self.carried}
        return moments, rest

    def _run(self, node: Node, values: Mapping[Node, Any], statistics: Mapping[Call, Statistics]) -> Any:
        from torch.fx import Node as FxNode  # noqa: PLC0415
        from torch.fx import map_arg  # noqa: PLC0415

        if node in self.begins:
            call, norm = self.begins[node]
            weight, bias = (values[w] if isinstance(w, FxNode) else w for w in norm.weights)
            mean, variance = norm.stored
            given = {"input": values[norm.source], "weight": weight, "bias": bias, "eps": norm.epsilon}
            return normalised({**given, "running_mean": mean, "running_var": variance}, statistics[call])
        args: Any = map_arg(node.args, values.__getitem__)
        kwargs: Any = map_arg(node.kwargs, values.__getitem__)
        result = self.nodes[node](*args, **kwargs)
        writes = self.nodes[node] is not node.target  # what is written in place keeps its type
        return result.to(args[0].dtype) if writes else result


class TorchSegments:
    """The segments of one module.

    Args:
        program: The captured module.
        flow: Its graph.
        plan: When each node runs.
        calls: The BatchNorms that are watched.
    """

    def __init__(
        self, program: ExportedProgram, flow: TorchFlow, plan: Schedule, calls: Mapping[Call, BatchNormCall]
    ) -> None:
        self._program, self._flow, self._plan, self._calls = program, flow, plan, calls
        self._level_of = {site: k for k, level in enumerate(plan.levels) for site in level}
        self._by_name = {node.name: node for node in flow.nodes}
        self._begins = {call.node: (key, call) for key, call in calls.items()}

    def cut(self, level: int) -> TorchSegment:
        """The segment that ends at `level`."""
        nodes = [self._flow.nodes[i] for i, at in sorted(self._plan.at.items()) if at == level]
        ends = {key: call.source for key, call in self._calls.items() if self._level_of[key[0]] == level}
        read = {value for node in nodes for value in self._reads(node)} | set(ends.values())
        outside = sorted(read - set(nodes), key=lambda node: node.name)
        constants = {node: self._constant(node) for node in outside if self._is_fixed(node)}
        inputs = [node for node in outside if node not in constants]
        carried = self.carried(level)
        begins = {node: self._begins[node] for node in nodes if node in self._begins}
        kept = {*ends.values(), *carried}
        operators = {node: functional(node) for node in nodes}
        return TorchSegment(operators, inputs, constants, begins, ends, carried, dict(self._done(nodes, kept)))

    def carried(self, level: int) -> list[Node]:
        """What is known at the end of a segment and read by a later one."""
        return [self._by_name[name] for name in sorted(self._carried(level))]

    def _reads(self, node: Node) -> list[Node]:
        extra = self._begins[node][1].weights if node in self._begins else ()
        return [*self._flow.inputs(node), *(value for value in extra if value in self._flow.constants)]

    def _is_fixed(self, node: Node) -> bool:
        return self._flow.producers.get(node.name) in self._flow.fixed

    def _constant(self, node: Node) -> Any:
        if node.op == "get_attr":
            return getattr(node.graph.owning_module, str(node.target))
        return self._flow.constants.tensor(node)

    def _carried(self, level: int) -> Iterator[str]:
        for name, last in self._plan.last.items():
            if last > level and not self._is_fixed(self._by_name[name]):
                source = self._flow.producers.get(name)
                if source is None or self._plan.at[source] <= level:
                    yield name

    def _done(self, nodes: Sequence[Node], kept: set[Node]) -> Iterator[tuple[Node, list[Node]]]:
        """For each node the values that it reads last."""
        seen = set(kept)
        found = []
        for node in reversed(nodes):
            values = [v for v in dict.fromkeys([*self._reads(node), node]) if v not in seen and not self._is_fixed(v)]
            seen.update(values)
            found.append((node, values))
        yield from reversed(found)
