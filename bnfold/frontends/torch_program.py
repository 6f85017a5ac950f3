"""Changes to an exported program: other arguments, new nodes, nodes that go, and what is left, put together again."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bnfold.frontends.torch_program_constants import Numbers, ProgramConstants, renamed

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Graph, Node


class ProgramEditor:
    """Edits a copy of a program.

    Attributes:
        graph: The copy of its graph.
        nodes: The copy of each of its nodes.
        values: The node that computes each value, by the name of the node that did so in the program.
        constants: Its parameters, buffers and further constants.

    Args:
        program: The program, which stays as it is.
        is_wide: Whether new constants are stored in float64, and not rounded to the types of those that they replace.
    """

    def __init__(self, program: ExportedProgram, *, is_wide: bool = False) -> None:
        self._program = program
        self.graph: Graph = copy.deepcopy(program.graph)
        self.nodes: dict[Node, Node] = dict(zip(program.graph.nodes, self.graph.nodes, strict=True))
        self.values = {old.name: new for old, new in self.nodes.items()}
        self.constants = ProgramConstants(program, self.graph, self.nodes, is_wide=is_wide)

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
        given = self.argument(node, name)
        self.set_argument(node, name, self.constants.put(given, numbers, node, like))

    def insert(self, target: Any, args: tuple[Any, ...], behind: Node, like: Node) -> Node:
        """A new call behind a node, of a value as that of `like`."""
        with self.graph.inserting_after(behind):
            node = self.graph.call_function(target, args)
        node.meta = {key: copy.copy(entry) if isinstance(entry, dict) else entry for key, entry in like.meta.items()}
        return node

    def padded(self, data: Node, pads: list[int], before: Node) -> Node:
        """`data` with zeros around it: pads before and behind, the last axis first."""
        import torch  # noqa: PLC0415

        with self.graph.inserting_before(before):
            node = self.graph.call_function(torch.ops.aten.constant_pad_nd.default, (data, pads))
        value = data.meta["val"]
        added = [pads[i] + pads[i + 1] for i in range(len(pads) - 2, -1, -2)]
        first = value.ndim - len(added)
        sizes = [size + more for size, more in zip(value.shape, [0] * first + added, strict=True)]
        node.meta = {**before.meta, "val": value.new_empty(sizes)}  # running it would ask for sizes
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

    def finish(self) -> ExportedProgram:
        """The changed program; the editor must not be used afterwards."""
        from torch.export import ExportedProgram  # noqa: PLC0415
        from torch.export.graph_signature import ExportGraphSignature  # noqa: PLC0415

        self.graph.eliminate_dead_code()
        self.constants.sweep()
        self.graph.lint()
        program, tensors = self._program, self.constants.tensors
        constants = {name: tensors[name] for name in program.constants if name in tensors}
        state = {name: tensor for name, tensor in tensors.items() if name not in program.constants}
        return ExportedProgram(
            program.graph_module,
            self.graph,
            ExportGraphSignature(self.constants.inputs, self._outputs()),
            state,
            program.range_constraints,
            _without_signatures(program.module_call_graph),
            program.example_inputs,
            constants,
            verifiers=program.verifiers,
        )

    def _outputs(self) -> list[Any]:
        """The specifications of the outputs, with the names of the nodes that compute them now."""
        from torch.fx import Node as FxNode  # noqa: PLC0415

        (outputs,) = self.graph.output_node().args
        specs = self._program.graph_signature.output_specs
        assert isinstance(outputs, list | tuple)
        return [
            renamed(spec, value) if isinstance(value, FxNode) else spec
            for spec, value in zip(specs, outputs, strict=True)
        ]


def _position(node: Node, name: str) -> int:
    schema: Any = node.target._schema  # type: ignore[union-attr]
    return next(i for i, argument in enumerate(schema.arguments) if argument.name == name)


def _without_signatures(entries: list[Any]) -> list[Any]:
    """The calls of modules without the names of inner values, which may be gone; those of the whole have none."""
    return [replace(entry, signature=entry.signature if not entry.fqn else None) for entry in entries]
