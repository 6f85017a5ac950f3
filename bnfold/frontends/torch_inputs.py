"""The inputs of a module by name: each tensor among the example inputs, called as the forward pass calls it.

A tensor in a list or a dict has its place behind the name of the argument: `images_0`, `batch_image`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bnfold.frontends.torch_arguments import Arguments
from bnfold.frontends.torch_tensors import to_array, to_tensor
from bnfold.graph import Dim, Shape

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bnfold.frontends.torch_capture import Captured


@dataclass(frozen=True, eq=False)
class ModuleInputs:
    """What a module takes.

    Attributes:
        names: Of its tensors.
        examples: These tensors.
        leaves: All that it takes, tensors or not.
        tree: How that is put together.
    """

    names: tuple[str, ...]
    examples: tuple[Tensor, ...]
    leaves: tuple[Any, ...]
    tree: Any

    def example_batch(self) -> dict[str, Any]:
        """The example inputs as a batch of arrays."""
        return {name: to_array(tensor) for name, tensor in zip(self.names, self.examples, strict=True)}

    def arguments(self, batch: Mapping[str, Any]) -> Arguments:
        """The arguments of the forward pass for a batch of arrays by name; tensors of their own."""
        from torch.utils import _pytree  # noqa: PLC0415

        fresh = iter(
            [to_tensor(batch[name], like).clone() for name, like in zip(self.names, self.examples, strict=True)]
        )
        leaves = [next(fresh) if _is_tensor(leaf) else leaf for leaf in self.leaves]
        found: Arguments = _pytree.tree_unflatten(leaves, self.tree)
        return found


def read_inputs(module: nn.Module, inputs: Arguments) -> ModuleInputs:
    """The tensors among the example inputs."""
    from torch.utils import _pytree  # noqa: PLC0415

    found, tree = _pytree.tree_flatten_with_path(inputs)
    paths: list[tuple[Any, Any]] = list(found)
    first = _parameters(module, len(inputs.args))
    named = [("_".join([_parameter(path[1], first), *map(_key, path[2:])]), leaf) for path, leaf in paths]
    tensors = [(name, leaf) for name, leaf in named if _is_tensor(leaf)]
    return ModuleInputs(
        tuple(name for name, _ in tensors),
        tuple(leaf for _, leaf in tensors),
        tuple(leaf for _, leaf in paths),
        tree,
    )


def input_shapes(captured: Captured) -> Iterator[Shape]:
    """For each tensor among the inputs: its sizes, a symbol where the size is open."""
    nodes = {node.name: node for node in captured.nodes if node.op == "placeholder"}
    for name in captured.program.graph_signature.user_inputs:
        if isinstance(name, str) and name in nodes and nodes[name] in captured.shapes:
            yield tuple(_size(size) for size in captured.shapes[nodes[name]])


def _size(size: Dim) -> Dim:
    """A number is also what torch.export has found out to be one."""
    return int(size) if isinstance(size, str) and size.isdecimal() else size


def _parameters(module: nn.Module, count: int) -> Sequence[str]:
    """The names of the first arguments of the forward pass."""
    found: list[str] = []
    for parameter in inspect.signature(module.forward).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            found += [f"{parameter.name}_{i}" for i in range(count - len(found))]
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            found.append(parameter.name)
    return [*found, *(f"input_{i}" for i in range(len(found), count))]


def _parameter(part: Any, first: Sequence[str]) -> str:
    """The name of the argument at a place among the arguments."""
    return first[part.idx] if hasattr(part, "idx") else str(part.key)


def _key(part: Any) -> str:
    return str(next(getattr(part, field) for field in ("idx", "key", "name") if hasattr(part, field)))


def _is_tensor(leaf: object) -> bool:
    import torch  # noqa: PLC0415

    return isinstance(leaf, torch.Tensor)
