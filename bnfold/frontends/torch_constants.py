"""Which values of a captured graph are constant: parameters, buffers, and what is computed from them alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.affine import Float64Array

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node


class TorchConstants:
    """The constants of a graph.

    Args:
        program: The exported program.
        nodes: Its nodes in topological order.
        changing: Parameters and buffers that the forward pass writes, which are no constants.
    """

    def __init__(self, program: ExportedProgram, nodes: Sequence[Node], changing: frozenset[Node]) -> None:
        self._program = program
        targets = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        self._names: dict[Node, str] = {}
        self._constant: set[Node] = set()
        for node in nodes:
            if node.op == "placeholder":
                spec = targets.get(node.name)
                if spec is not None and spec.target is not None and node not in changing:
                    self._names[node] = spec.target
                    self._constant.add(node)
            elif node not in changing and self._is_computed(node):
                self._constant.add(node)

    def _is_computed(self, node: Node) -> bool:
        """A repeatable operator on constants alone."""
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None or schema.is_mutable or _is_random(node.target):
            return False
        inputs = list(node.all_input_nodes)
        return bool(inputs) and all(value in self._constant for value in inputs)

    def __contains__(self, node: object) -> bool:
        return node in self._constant

    def name(self, node: object) -> str | None:
        """The name in the module of a parameter or buffer; None for anything else."""
        return self._names.get(node)  # type: ignore[call-overload,no-any-return]

    def tensor(self, node: Node) -> Any:
        """The tensor, computed where that is needed.

        Raises:
            KeyError: It is not constant.
        """
        import torch  # noqa: PLC0415
        from torch.fx import map_arg  # noqa: PLC0415

        if node in self._names:
            name = self._names[node]
            stored = self._program.state_dict.get(name)
            return stored if stored is not None else self._program.constants[name]
        if node not in self._constant:
            raise KeyError(node.name)
        args: Any = map_arg(node.args, self.tensor)
        kwargs: Any = map_arg(node.kwargs, self.tensor)
        with torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[operator]

    def array(self, node: Node) -> Float64Array:
        """The tensor in float64."""
        return as_array(self.tensor(node))


def as_array(tensor: Any) -> Float64Array:
    """A tensor in float64; of its floating-point types all are exact there."""
    import torch  # noqa: PLC0415

    return np.array(tensor.detach().to("cpu", torch.float64).numpy(), np.float64)


def _is_random(target: Any) -> bool:
    import torch  # noqa: PLC0415

    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())


def inputs_of(node: Node) -> Iterator[Node]:
    """The nodes among the arguments, each as often as it stands there."""
    from torch.fx import Node as FxNode  # noqa: PLC0415

    for argument in _flat([*node.args, *node.kwargs.values()]):
        if isinstance(argument, FxNode):
            yield argument


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _flat(entry)
    elif isinstance(value, dict):
        yield from _flat(list(value.values()))
    else:
        yield value
