"""Paths of modules in the metadata of a captured graph, all as seen from the root.

Where a module has been given another forward pass (`m.forward = m.forward_split`, as ultralytics does before an export)
and some module stands at two places, torch.export (2.13) writes the paths below `m` as seen from `m`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

#: The modules that a node is in, from the outermost on: the path, with "@n" behind it in the n-th call, and the class.
Stack: TypeAlias = Mapping[str, tuple[str, Any]]


def absolute(program: ExportedProgram, module: nn.Module) -> ExportedProgram:
    """`program`, captured from `module`, with paths that are in its module tree wherever that can be told."""
    known = {path for path, _ in module.named_modules(remove_duplicate=False)}
    for node in program.graph.nodes:
        if stack := node.meta.get("nn_module_stack"):
            node.meta["nn_module_stack"] = restored(stack, known)
    return program


def restored(stack: Stack, known: Collection[str]) -> dict[str, tuple[str, Any]]:
    """The stack with each path that is not known appended to the one above it, if that makes a known one."""
    found: dict[str, tuple[str, Any]] = {}
    written, above = "", ""
    for key, (place, kind) in stack.items():
        path, mark, call = str(place).partition("@")
        if written and path.startswith(f"{written}."):
            whole = above + path.removeprefix(written)
        else:
            nested = f"{above}.{path}"
            whole = nested if path not in known and nested in known else path
        written, above = path, whole
        found[key] = (f"{whole}{mark}{call}", kind)
    return found
