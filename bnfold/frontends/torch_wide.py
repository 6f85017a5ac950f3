"""An exported program in float64: the same computation with every tensor and every type that it names widened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bnfold.frontends.torch_program import ProgramEditor

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def widened(program: ExportedProgram) -> ExportedProgram:
    """A copy of `program` in float64, in which nothing asks for the types of values any more."""
    editor = ProgramEditor(program)
    editor.constants.convert(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    for node in list(editor.graph.nodes):
        if "_assert_tensor_metadata" in str(node.target):
            editor.graph.erase_node(node)
        elif node.op == "call_function":
            node.args = tuple(_wide(value) for value in node.args)
            node.kwargs = {name: _wide(value) for name, value in node.kwargs.items()}
    return editor.finish()


def _wide(value: Any) -> Any:
    import torch  # noqa: PLC0415

    return torch.float64 if value in (torch.float16, torch.bfloat16, torch.float32) else value
