"""An exported program as a module like any other: it can be copied, pickled, moved and exported again."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bnfold.errors import InternalError
from bnfold.frontends.torch_calls import tensor_in
from bnfold.frontends.torch_guards import guards_of

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram
    from torch.fx import GraphModule


def as_module(program: ExportedProgram) -> GraphModule:
    """The program with its tensors as parameters and buffers; it refuses inputs of sizes that it does not hold for."""
    module = program.module()
    guards = getattr(module, "_guards_fn", None)
    readable = None if guards is None else guards_of(module, guards)
    if readable is not None:
        module._guards_fn = readable
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            hooks.clear()  # they serve modules among the inputs, and cannot be pickled
    for name in ("train", "eval"):
        vars(module).pop(name, None)
    module.graph._tracer_cls = None
    vars(module).pop("_tracer_cls", None)  # of torch.export, which is of no use to others
    return module.train(False)


def with_tensors(program: ExportedProgram, module: nn.Module) -> ExportedProgram:
    """The same graph with the parameters and buffers of `module`.

    Args:
        program: The program, which stays as it is.
        module: What it was captured from, or what `as_module` made of it; or a copy of these with other numbers.

    Raises:
        InternalError: The module lacks one.
    """
    held = {name: tensor_in(module, name) for name in (*program.state_dict, *program.constants)}
    for spec in program.graph_signature.input_specs:
        if spec.kind.name in ("PARAMETER", "BUFFER") and held[str(spec.target)] is None:
            raise InternalError("a parameter of the graph has no place in the module", where=str(spec.target))

    def own(tensors: Mapping[str, Any]) -> dict[str, Any]:
        return {name: old if held[name] is None else held[name] for name, old in tensors.items()}

    changed = copy.copy(program)
    changed._state_dict, changed._constants = own(program.state_dict), own(program.constants)
    return changed
