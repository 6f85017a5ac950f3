"""Changes to an exported program: new constants, nodes that go, and the program that is left, put together again.

No tensor is written that another node reads: a changed constant keeps its name where nothing else reads it, and is
stored beside it otherwise. What loses its last reader is removed, and only that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.affine import Float64Array
from bnfold.frontends.torch_constants import inputs_of
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


class ProgramEditor:
    """Edits a copy of a program.

    Attributes:
        graph: The copy of its graph.
        nodes: The copy of each of its nodes.
        values: The node that computes each value, by the name of the node that did so in the program.

    Args:
        program: The program, which stays as it is.
        is_wide: Whether new constants are stored in float64, and not rounded to the types of those that they replace.
    """

    def __init__(self, program: ExportedProgram, *, is_wide: bool = False) -> None:
        self._program = program
        self._is_wide = is_wide
        self.graph: Graph = copy.deepcopy(program.graph)
        self.nodes: dict[Node, Node] = dict(zip(program.graph.nodes, self.graph.nodes, strict=True))
        self.values = {old.name: new for old, new in self.nodes.items()}
        specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        self._specs: dict[Node, InputSpec] = {
            new: _renamed(specs[old.name], new) for old, new in self.nodes.items() if old.op == "placeholder"
        }
        self._tensors: dict[str, Any] = copy.deepcopy({**program.constants, **program.state_dict})
        self._read = {node for node in self._specs if node.users}
        self._clones: dict[Node, str] = {}
        self._made: dict[tuple[object, ...], Node] = {}

    def argument(self, node: Node, name: str) -> Any:
        """An argument of a call by its name in the operator's schema; None where it is left out."""
        position = _position(node, name)
        return node.args[position] if position < len(node.args) else node.kwargs.get(name)

    def set_argument(self, node: Node, name: str, value: Any) -> None:
        """Give a call another argument; those between get their defaults."""
        schema: Any = node.target._schema  # type: ignore[union-attr]
        position = _position(node, name)
        if name in node.kwargs or schema.arguments[position].kwarg_only:
            node.kwargs = {**node.kwargs, name: value}
            return
        between = [argument.default_value for argument in schema.arguments[len(node.args) : position + 1]]
        args = [*node.args, *between]
        args[position] = value
        node.args = tuple(args)

    def set_constant(self, node: Node, name: str, numbers: Numbers, like: Node | None = None) -> None:
        """Make an argument of a call a tensor of `numbers`.

        Args:
            node: The call.
            name: The argument.
            numbers: The numbers.
            like: The constant whose kind, device and gradient it takes, where it replaces none.
        """
        old = self.argument(node, name)
        old = old if old in self._specs else None
        model = old or self._source(like)
        tensor = self._tensor(numbers, node, None if model is None else self._tensors[self._target(model)])
        if old is not None and sum(value is old for reader in old.users for value in inputs_of(reader)) == 1:
            self._tensors[self._target(old)] = tensor
            old.meta["val"] = self._fake(tensor)
            return
        key = (old, numbers.values.tobytes(), numbers.values.shape)
        if old is None or key not in self._made:
            called = numbers.stem if old is None else f"{self._target(old)}_folded"
            self._made[key] = self._placeholder(called, tensor, model, old)
        self.set_argument(node, name, self._made[key])

    def _source(self, node: Node | None) -> Node | None:
        """The first constant that the node is computed from."""
        if node is None or node in self._specs:
            return node
        return next((found for value in inputs_of(node) if (found := self._source(value)) is not None), None)

    def number(self, value: Float64Array, dtype: np.dtype[Any]) -> float:
        """One number, rounded once to `dtype`."""
        return float(value if self._is_wide else round_once(value, dtype))

    def constant(self, numbers: Numbers, near: Node) -> Node:
        """A new buffer on the device of what `near` computes."""
        return self._placeholder(numbers.stem, self._tensor(numbers, near, None), None, None)

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

    def _placeholder(self, stem: str, tensor: Any, like: Node | None, old: Node | None) -> Node:
        from torch.export.graph_signature import InputKind, InputSpec, TensorArgument  # noqa: PLC0415

        target = self._fresh(stem)
        is_parameter = like is not None and self._specs[like].kind is InputKind.PARAMETER
        prefix = "p_" if is_parameter else "b_"
        names = {node.name for node in self.graph.nodes}
        name = base = prefix + target.replace(".", "_")
        count = 1
        while name in names:
            name, count = f"{base}_{count}", count + 1
        first = next(n for n in self.graph.nodes if self._is_after_constants(n))
        with self.graph.inserting_before(first):
            node = self.graph.create_node("placeholder", name, name=name)
        node.meta["val"] = self._fake(tensor)
        kind = InputKind.PARAMETER if is_parameter else InputKind.BUFFER
        self._specs[node] = InputSpec(kind, TensorArgument(name=node.name), target, None if is_parameter else True)
        self._tensors[target] = tensor
        if old is not None:
            self._clones[node] = self._target(old)
        return node

    def _is_after_constants(self, node: Node) -> bool:
        from torch.export.graph_signature import InputKind  # noqa: PLC0415

        return node.op != "placeholder" or self._specs[node].kind is InputKind.USER_INPUT

    def _fresh(self, stem: str) -> str:
        """A name that no tensor and no module in its path has."""
        taken = {part for spec in self._specs.values() if spec.target for part in _prefixes(spec.target)}
        taken.update(part for target in self._tensors for part in _prefixes(target))
        name, count = stem, 1
        while name in taken or taken.intersection([*_prefixes(name)][:-1]) & set(self._tensors):
            count += 1
            name = f"{stem}_{count}"
        return name

    def _fake(self, tensor: Any) -> Any:
        """The tensor as the other values of the graph stand there: shape and type without numbers."""
        values = (node.meta.get("val") for node in self._program.graph.nodes)
        mode = next(value.fake_mode for value in values if hasattr(value, "fake_mode"))
        return mode.from_tensor(tensor, static_shapes=True)

    def insert(self, target: Any, args: tuple[Any, ...], behind: Node, like: Node) -> Node:
        """A new call behind a node, of a value as that of `like`."""
        with self.graph.inserting_after(behind):
            node = self.graph.call_function(target, args)
        node.meta = {key: copy.copy(entry) if isinstance(entry, dict) else entry for key, entry in like.meta.items()}
        return node

    def padded(self, data: Node, pads: list[int], before: Node) -> Node:
        """`data` with zeros around it: pads before and behind, the last axis first."""
        import torch  # noqa: PLC0415

        pad = torch.ops.aten.constant_pad_nd.default
        with self.graph.inserting_before(before):
            node = self.graph.call_function(pad, (data, pads))
        node.meta = {**before.meta, "val": pad(data.meta["val"], pads)}
        return node

    def erase(self, dead: Iterable[Node]) -> None:
        """Remove those of the nodes that nothing reads, the last first."""
        wanted = set(dead)
        for node in reversed(self.graph.nodes):
            if node in wanted and not node.users:
                self.graph.erase_node(node)

    def hand_over(self, old: Node, new: Node) -> None:
        """Let all readers of `old`, but not `new`, read `new`."""
        old.replace_all_uses_with(new, delete_user_cb=lambda reader: reader is not new)

    def convert(self, change: Callable[[Any], Any]) -> None:
        """Put `change(tensor)` in the place of every parameter, buffer and constant."""
        import torch  # noqa: PLC0415

        for name, old in self._tensors.items():
            if isinstance(old, torch.Tensor):
                new = change(old.detach())
                kept = isinstance(old, torch.nn.Parameter)
                self._tensors[name] = torch.nn.Parameter(new, requires_grad=old.requires_grad) if kept else new

    def finish(self) -> ExportedProgram:
        """The changed program; the editor must not be used afterwards."""
        from torch.export import ExportedProgram  # noqa: PLC0415
        from torch.export.graph_signature import ExportGraphSignature  # noqa: PLC0415

        self.graph.eliminate_dead_code()
        self._sweep()
        program = self._program
        inputs = [self._specs[node] for node in self.graph.nodes if node.op == "placeholder"]
        constants = {name: self._tensors[name] for name in program.constants if name in self._tensors}
        state = {name: tensor for name, tensor in self._tensors.items() if name not in program.constants}
        self.graph.lint()
        return ExportedProgram(
            program.graph_module,
            self.graph,
            ExportGraphSignature(inputs, self._outputs()),
            state,
            program.range_constraints,
            _without_signatures(program.module_call_graph),
            program.example_inputs,
            constants,
            verifiers=program.verifiers,
        )

    def _sweep(self) -> None:
        """Remove constants that lost their last reader, and the counters of BatchNorms that went with theirs."""
        gone = [node for node in self._read if not node.users]
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
            self.graph.erase_node(node)
            del self._specs[node]
        for name in dropped - {spec.target for spec in self._specs.values()}:
            del self._tensors[name]
        for node, name in self._clones.items():
            if node in self._specs and name not in self._tensors:
                self._tensors[name] = self._tensors.pop(self._target(node))
                self._specs[node] = replace(self._specs[node], target=name)

    def _outputs(self) -> list[Any]:
        """The specifications of the outputs, with the names of the nodes that compute them now."""
        from torch.fx import Node as FxNode  # noqa: PLC0415

        (outputs,) = self.graph.output_node().args
        specs = self._program.graph_signature.output_specs
        assert isinstance(outputs, list | tuple)
        return [
            _renamed(spec, value) if isinstance(value, FxNode) else spec
            for spec, value in zip(specs, outputs, strict=True)
        ]


def _renamed(spec: Any, node: Node) -> Any:
    """The specification of an input or output that `node` is now; graphs rename what they copy."""
    return replace(spec, arg=replace(spec.arg, name=node.name))


def _position(node: Node, name: str) -> int:
    schema: Any = node.target._schema  # type: ignore[union-attr]
    return next(i for i, argument in enumerate(schema.arguments) if argument.name == name)


def _prefixes(target: str) -> list[str]:
    parts = target.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def _above(target: str) -> str:
    return target.rpartition(".")[0]


def _is_channels_last(tensor: Any) -> bool:
    import torch  # noqa: PLC0415

    last = torch.channels_last
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=last) and not tensor.is_contiguous()


def _without_signatures(entries: list[Any]) -> list[Any]:
    """The calls of modules without the names of inner values, which may be gone; those of the whole have none."""
    return [replace(entry, signature=entry.signature if not entry.fqn else None) for entry in entries]
