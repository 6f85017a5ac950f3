"""An exported program as a module like any other: it can be copied, moved and exported again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule


def as_module(program: ExportedProgram) -> GraphModule:
    """The program with its tensors as parameters and buffers; it refuses inputs of sizes that it does not hold for."""
    module = program.module()
    for name in ("train", "eval"):
        vars(module).pop(name, None)
    return module.train(False)
