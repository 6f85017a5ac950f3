"""An exported program as a module like any other: it can be copied, pickled, moved and exported again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnfold.frontends.torch_guards import guards_of

if TYPE_CHECKING:
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
