"""Which value of a rewritten program is the first that differs from the original's, and the BatchNorm before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.frontends.torch_arguments import Arguments
from bnfold.frontends.torch_constants import as_array
from bnfold.frontends.torch_graph_module import as_module
from bnfold.torchcheck import EXACT

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def first_difference(
    programs: tuple[ExportedProgram, ExportedProgram], inputs: Arguments, same: Mapping[str, str]
) -> str | None:
    """The name of a value, as the original calls it; None if all agree.

    Args:
        programs: The original and the rewritten one, both in float64.
        inputs: What they take.
        same: The values that must be the same, by name in the original and in the rewritten program.
    """
    old, new = (_values(program, inputs) for program in programs)
    for name, other in same.items():
        if name in old and other in new and not _close(old[name], new[other]):
            return name
    return None


def _values(program: ExportedProgram, inputs: Arguments) -> dict[str, Any]:
    """What each node of the program computes, by name; of what is written in place, what it is at the end."""
    import torch  # noqa: PLC0415
    from torch.utils import _pytree  # noqa: PLC0415

    def wide(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf

    runner = torch.fx.Interpreter(as_module(program), garbage_collect_values=False)
    with torch.no_grad():
        runner.run(*map(wide, _pytree.tree_leaves(inputs)), enable_io_processing=False)
    found = {node.name: value for node, value in runner.env.items() if isinstance(value, torch.Tensor)}
    return {name: as_array(value) for name, value in found.items() if value.is_floating_point()}


def _close(a: Any, b: Any) -> bool:
    scale = float(np.abs(a).max(initial=0.0))
    return bool(a.shape == b.shape and (np.abs(a - b) <= EXACT * scale).all())
