"""The constants of an exported program while it is changed.

No tensor is written that another node reads: a changed constant keeps its name where nothing else reads it, and is
stored beside it otherwise. What loses its last reader is removed, and only that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.affine import Float64Array
from bnfold.frontends.torch_constants import inputs_of
from bnfold.frontends.torch_modules import memory
from bnfold.frontends.torch_write import store
from bnfold.rounding import round_once

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.export.graph_signature import InputSpec
    from torch.fx import Graph, Node


@dataclass(frozen=True, eq=False)
class Numbers:
    """What a tensor is to hold.

    Attributes:
        values: The numbers.
        dtype: The type that each is rounded to, once.
        stem: What the tensor is called where there is none yet.
    """

    values: Float64Array
    dtype: np.dtype[Any]
    stem: str


class ProgramConstants:
    """Parameters, buffers and further constants, each a placeholder of the graph.

    Attributes:
        tensors: The tensors by name.

    Args:
        program: The program, which stays as it is.
        graph: A copy of its graph.
        nodes: The copy of each node.
        is_wide: Whether new constants are stored in float64, not rounded.
    """

    def __init__(self, program: ExportedProgram, graph: Graph, nodes: Mapping[Node, Node], *, is_wide: bool) -> None:
        self._graph, self._is_wide = graph, is_wide
        specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        self._specs: dict[Node, InputSpec] = {
            new: renamed(specs[old.name], new) for old, new in nodes.items() if old.op == "placeholder"
        }
        self.tensors: dict[str, Any] = copy.deepcopy({**program.constants, **program.state_dict})
        self._read = {node for node in self._specs if node.users}
        self._memory = {name: memory(t) for name, t in self.tensors.items() if hasattr(t, "untyped_storage")}
        self._changed: set[Node] = set()
        self._clones: dict[Node, tuple[str, str]] = {}
        self._made: dict[tuple[object, ...], Node] = {}

    @property
    def inputs(self) -> list[InputSpec]:
        """The specifications of all placeholders, in order."""
        return [self._specs[node] for node in self._graph.nodes if node.op == "placeholder"]

    def put(self, given: Any, numbers: Numbers, reader: Node, like: Node | None) -> Node:
        """A constant of `numbers` in the place of `given`, that `reader` reads, of the kind of that or of `like`."""
        old: Node | None = given if given in self._specs else None
        model = old or self._source(like or given)
        tensor = self._tensor(numbers, reader, None if model is None else self.tensors[self._target(model)])
        key = (old, numbers.values.tobytes(), numbers.values.shape)
        if old is None:
            return self._placeholder(numbers.stem, tensor, model)
        self._changed.add(old)
        if key not in self._made and _reads(old) == 1:
            self.tensors[self._target(old)] = tensor
            old.meta["val"] = self._fake(tensor)
            return old
        if key not in self._made:
            self._made[key] = self._placeholder(f"{self._target(old)}_folded", tensor, model)
            self._clones[self._made[key]] = (self._target(old), numbers.stem)
        return self._made[key]

    def _source(self, node: Any) -> Node | None:
        """The first constant that the node is computed from; None for what is no node."""
        from torch.fx import Node as FxNode  # noqa: PLC0415

        if not isinstance(node, FxNode) or node in self._specs:
            return node if isinstance(node, FxNode) else None
        return next((found for value in inputs_of(node) if (found := self._source(value)) is not None), None)

    def number(self, value: Float64Array, dtype: np.dtype[Any]) -> float:
        """One number, rounded once to `dtype`."""
        return float(value if self._is_wide else round_once(value, dtype))

    def new(self, numbers: Numbers, near: Node) -> Node:
        """A new buffer on the device of what `near` computes."""
        return self._placeholder(numbers.stem, self._tensor(numbers, near, None), None)

    def _target(self, node: Node) -> str:
        target = self._specs[node].target
        assert target is not None
        return target

    def _tensor(self, numbers: Numbers, near: Node, old: Any) -> Any:
        import torch  # noqa: PLC0415

        values, kind = numbers.values, torch.float64 if self._is_wide else getattr(torch, numbers.dtype.name)
        if old is not None and tuple(old.shape) == values.shape:
            tensor = torch.empty_like(old, dtype=kind, requires_grad=False, memory_format=torch.preserve_format)
        else:
            device = old.device if old is not None else near.meta["val"].device
            tensor = torch.empty(values.shape, dtype=kind, device=device)
            if old is not None and old.ndim == tensor.ndim and _is_channels_last(old):
                tensor = tensor.contiguous(memory_format=torch.channels_last)
        store(tensor, values)
        if old is not None and isinstance(old, torch.nn.Parameter):
            return torch.nn.Parameter(tensor, requires_grad=old.requires_grad)
        return tensor

    def _placeholder(self, stem: str, tensor: Any, like: Node | None) -> Node:
        from torch.export.graph_signature import InputKind, InputSpec, TensorArgument  # noqa: PLC0415

        target = self._fresh(stem)
        is_parameter = like is not None and self._specs[like].kind is InputKind.PARAMETER
        prefix = "p_" if is_parameter else "b_"
        names = {node.name for node in self._graph.nodes}
        name = base = prefix + target.replace(".", "_")
        count = 1
        while name in names:
            name, count = f"{base}_{count}", count + 1
        first = next(n for n in self._graph.nodes if self._is_after_constants(n))
        with self._graph.inserting_before(first):
            node = self._graph.create_node("placeholder", name, name=name)
        node.meta["val"] = self._fake(tensor)
        kind = InputKind.PARAMETER if is_parameter else InputKind.BUFFER
        self._specs[node] = InputSpec(kind, TensorArgument(name=node.name), target, None if is_parameter else True)
        self.tensors[target] = tensor
        return node

    def _is_after_constants(self, node: Node) -> bool:
        from torch.export.graph_signature import InputKind  # noqa: PLC0415

        return node.op != "placeholder" or self._specs[node].kind is InputKind.USER_INPUT

    def _fresh(self, stem: str) -> str:
        """A name that no tensor and no module in its path has."""
        taken = {part for spec in self._specs.values() if spec.target for part in _prefixes(spec.target)}
        taken.update(part for target in self.tensors for part in _prefixes(target))
        name, count = stem, 1
        while name in taken or taken.intersection([*_prefixes(name)][:-1]) & set(self.tensors):
            count += 1
            name = f"{stem}_{count}"
        return name

    def _fake(self, tensor: Any) -> Any:
        """The tensor as the other values of the graph stand there: shape and type without numbers."""
        values = (node.meta.get("val") for node in self._graph.nodes)
        mode = next(value.fake_mode for value in values if hasattr(value, "fake_mode"))
        return mode.from_tensor(tensor, static_shapes=True)

    def convert(self, change: Callable[[Any], Any]) -> None:
        """Put `change(tensor)` in the place of every parameter, buffer and constant."""
        import torch  # noqa: PLC0415

        for name, old in self.tensors.items():
            if isinstance(old, torch.Tensor):
                new = change(old.detach())
                kept = isinstance(old, torch.nn.Parameter)
                self.tensors[name] = torch.nn.Parameter(new, requires_grad=old.requires_grad) if kept else new

    def sweep(self) -> None:
        """Remove constants that lost their last reader, further names of them, and counters of BatchNorms that went."""
        gone = [node for node in self._read if not node.users]
        moved = {self._memory.get(self._target(node)) for node in (*gone, *self._changed)} - {None}
        gone += [node for node, spec in self._specs.items() if self._memory.get(spec.target or "") in moved]
        above = {_above(self._target(node)) for node in gone} - {
            _above(spec.target) for node, spec in self._specs.items() if spec.target and node.users
        }
        gone += [
            node
            for node, spec in self._specs.items()
            if spec.target and spec.target.endswith("num_batches_tracked") and _above(spec.target) in above
        ]
        dropped = {self._target(node) for node in gone if not node.users}
        for node in {node: None for node in gone if not node.users}:
            self._graph.erase_node(node)
            del self._specs[node]
        for name in dropped - {spec.target for spec in self._specs.values()}:
            del self.tensors[name]
        for node, names in self._clones.items():
            free = next((name for name in names if name not in self.tensors), None)
            if node in self._specs and free is not None:
                self.tensors[free] = self.tensors.pop(self._target(node))
                self._specs[node] = replace(self._specs[node], target=free)


def renamed(spec: Any, node: Node) -> Any:
    """The specification of an input or output that `node` is now; graphs rename what they copy."""
    return replace(spec, arg=replace(spec.arg, name=node.name))


def _reads(node: Node) -> int:
    """How often the node is an argument."""
    return sum(value is node for reader in node.users for value in inputs_of(reader))


def _prefixes(target: str) -> list[str]:
    parts = target.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def _above(target: str) -> str:
    return target.rpartition(".")[0]


def _is_channels_last(tensor: Any) -> bool:
    import torch  # noqa: PLC0415

    last = torch.channels_last
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=last) and not tensor.is_contiguous()
