"""Lazy modules that were not run yet: their parameters have no shapes, or their class is still to change.

torch.export and the check take copies that are run once; what reads these parameters stays as it is, in the copy that
the caller gets too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from bnfold.frontends.torch_arguments import Arguments
from bnfold.frontends.torch_decisions import forced

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram
    from torch.fx import Node


def is_lazy(tensor: Any) -> bool:
    """Whether it is a parameter or buffer without a shape."""
    import torch  # noqa: PLC0415

    return bool(torch.nn.parameter.is_lazy(tensor))


def lazy_tensors(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The parameters and buffers without a shape, under each of their names."""
    for path, part in module.named_modules(remove_duplicate=False):
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None and is_lazy(tensor):
                yield f"{path}.{name}".lstrip("."), tensor


def lazy_modules(module: nn.Module) -> frozenset[str]:
    """The paths of modules that their first run will change."""
    found = module.named_modules(remove_duplicate=False)
    return frozenset(path for path, part in found if hasattr(part, "_initialize_hook"))


def has_lazy(module: nn.Module) -> bool:
    """Whether its first run will change it."""
    return bool(lazy_modules(module)) or any(True for _ in lazy_tensors(module))


def blanks(module: nn.Module) -> dict[int, Any]:
    """For `copy.deepcopy`, which fails on them: other tensors without a shape, by the identities of those there are."""
    import torch  # noqa: PLC0415

    kinds = (torch.nn.UninitializedParameter, torch.nn.UninitializedBuffer)
    found = {}
    for _, tensor in lazy_tensors(module):
        kind: Any = next(kind for kind in kinds if isinstance(tensor, kind))
        found[id(tensor)] = kind(requires_grad=tensor.requires_grad, device=tensor.device, dtype=tensor.dtype)
    return found


def initialise(module: nn.Module, inputs: Arguments, paths: Sequence[tuple[bool, ...]] = ()) -> nn.Module:
    """Run `module`, a copy of the caller's, if it is lazy.

    Args:
        module: The module; it changes. Parameters that no run reaches get no entries.
        inputs: What it is run on.
        paths: What it decides by the numbers of tensors, for each run; by default it decides by itself.
    """
    import torch  # noqa: PLC0415
    from torch.utils import _pytree  # noqa: PLC0415

    if not has_lazy(module):
        return module
    for path in paths or (None,):
        sample: Arguments = _pytree.tree_map(lambda t: t.clone() if isinstance(t, torch.Tensor) else t, inputs)
        with torch.no_grad(), torch.random.fork_rng(), nullcontext() if path is None else forced(path):
            torch.manual_seed(0)
            sample.call(module)
    for _, tensor in list(lazy_tensors(module)):
        if is_lazy(tensor):  # it may have several names
            tensor.materialize((0,))
    return module


def not_there(module: nn.Module, program: ExportedProgram, nodes: Sequence[Node]) -> frozenset[Node]:
    """What `program`, captured of a copy that was run, holds for parameters that the module does not have yet."""
    lazy = {name for name, _ in lazy_tensors(module)}
    names = {name for name, _ in (*module.named_parameters(remove_duplicate=False),
                                  *module.named_buffers(remove_duplicate=False))}  # fmt: skip
    wanted = {
        spec.arg.name
        for spec in program.graph_signature.input_specs
        if spec.kind.name in ("PARAMETER", "BUFFER") and (spec.target in lazy or spec.target not in names)
    }
    return frozenset(node for node in nodes if node.op == "placeholder" and node.name in wanted)
