"""Where the tensors of a captured graph stand in the user's module, and which of them a fold may write.

A tensor may be written that one operator reads, once, which has one name in the module tree, and which no forward
hook and no script sees. A module may be replaced that stands at one place and is called once.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bnfold.frontends.torch_constants import inputs_of
from bnfold.frontends.torch_lazy import lazy_modules

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import Node


@dataclass(frozen=True, eq=False)
class Modules:
    """The module tree.

    Attributes:
        root: The user's module.
        paths: The names of each module, by its identity.
        tensors: The names of each tensor, by its memory.
        lazy: The paths of modules that were not run yet.
    """

    root: nn.Module
    paths: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    tensors: dict[tuple[str, int], list[str]] = field(default_factory=lambda: defaultdict(list))
    lazy: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.lazy.update(lazy_modules(self.root))
        for path, part in self.root.named_modules(remove_duplicate=False):
            self.paths[id(part)].append(path)
            for name, tensor in [*part._parameters.items(), *part._buffers.items()]:
                if tensor is not None:
                    self.tensors[memory(tensor)].append(f"{path}.{name}".lstrip("."))

    def module(self, path: str) -> nn.Module:
        """The module at `path`."""
        return self.root.get_submodule(path)

    def tensor(self, name: str) -> Any:
        """The parameter or buffer of that name; None where there is none."""
        path, _, last = name.rpartition(".")
        return getattr(self.root.get_submodule(path), last, None)

    def against_module(self, path: str) -> str:
        """Why the module at `path` must stay as it is; empty if it may change."""
        names = self.paths[id(self.module(path))]
        if len(names) > 1:
            return f"the module has {len(names)} names: {' and '.join(names)}"
        return self.seen_by_others(path)

    def not_initialised(self, path: str) -> str | None:
        """The lazy module at `path` or around it that was not run yet; None if there is none."""
        pieces = path.split(".") if path else []
        above = (".".join(pieces[:length]) for length in range(len(pieces) + 1))
        return next((upper for upper in above if upper in self.lazy), None)

    def seen_by_others(self, path: str) -> str:
        """What else than the forward pass sees the values within the module at `path`; empty if nothing does."""
        parts = path.split(".") if path else []
        for length in range(1, len(parts) + 1):
            upper = ".".join(parts[:length])
            if why := _against(self.module(upper)):
                return f"{why} {upper}"
        return ""

    def against_tensor(self, name: str, node: Node) -> str:
        """Why the tensor must stay as it is, which `node` stands for in the graph; empty if it may change."""
        readers = [reader for reader in node.users if reader.op != "output"]
        times = sum(_count(reader, node) for reader in readers)
        if times != 1 or len(node.users) != 1:
            return f"{name} is read {times} times"
        names = self.tensors[memory(self.tensor(name))]
        if len(names) > 1:
            return f"{' and '.join(names)} share their memory"
        return self.against_module(name.rpartition(".")[0])


def memory(tensor: Any) -> tuple[str, int]:
    """What two tensors have in common that share their memory."""
    try:
        return str(tensor.device), int(tensor.untyped_storage().data_ptr()) or id(tensor)
    except (RuntimeError, NotImplementedError, ValueError):  # a tensor without memory
        return str(tensor.device), id(tensor)


def _against(part: nn.Module) -> str:
    import torch  # noqa: PLC0415

    if part._forward_hooks or part._forward_pre_hooks:
        return "a forward hook sees"
    if isinstance(part, torch.jit.ScriptModule):
        return "TorchScript holds"
    if torch.nn.utils.parametrize.is_parametrized(part):
        return "a parametrisation computes the weights of"
    return ""


def _count(reader: Node, node: Node) -> int:
    return sum(value is node for value in inputs_of(reader))
