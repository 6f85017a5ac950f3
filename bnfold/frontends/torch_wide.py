"""An exported program in float64: the same computation with every tensor and every type that it names widened.

What it computes from constants alone is first rounded as it is now: the rules read those numbers, and not better ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.frontends.torch_aliases import find_aliases
from bnfold.frontends.torch_constants import TorchConstants
from bnfold.frontends.torch_context import dtype_of
from bnfold.frontends.torch_program import ProgramEditor
from bnfold.frontends.torch_program_constants import Numbers
from bnfold.frontends.torch_read_batchnorm import is_in_frozen

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node


def widened(program: ExportedProgram) -> ExportedProgram:
    """A copy of `program` in float64, in which nothing asks for the types of values any more."""
    editor = ProgramEditor(program, is_wide=True)
    editor.constants.convert(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    nodes = list(program.graph.nodes)
    constants = TorchConstants(program, nodes, find_aliases(nodes, ()).written)
    for node in nodes:
        if _is_read_rounded(node, constants):
            new, old = Numbers(constants.array(node), np.dtype(np.float64), node.name), editor.nodes[node]
            editor.hand_over(old, editor.constants.new(new, old))
    for node in list(editor.graph.nodes):
        if "_assert_tensor_metadata" in str(node.target):
            editor.graph.erase_node(node)
        elif node.op == "call_function":
            node.args = tuple(_wide(value) for value in node.args)
            node.kwargs = {name: _wide(value) for name, value in node.kwargs.items()}
    return editor.finish()


def _is_read_rounded(node: Node, constants: TorchConstants) -> bool:
    """Whether the rules read what the node computes, and not, as of a FrozenBatchNorm2d, what it is computed from."""
    is_computed = node in constants and node.op == "call_function" and dtype_of(node) is not None
    return is_computed and not is_in_frozen(node) and any(user not in constants for user in node.users)


def _wide(value: Any) -> Any:
    import torch  # noqa: PLC0415

    return torch.float64 if value in (torch.float16, torch.bfloat16, torch.float32) else value
