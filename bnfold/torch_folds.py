"""Folds of PyTorch files into PyTorch files: graphs into graphs, modules into graphs or state dicts."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.errors import UsageError
from bnfold.frontends.torch_kinds import FileKind

if TYPE_CHECKING:
    from bnfold.api_torch_graph import GraphSettings
    from bnfold.checking import Proof
    from bnfold.report.model import Report
    from bnfold.torch_files import Shapes, TorchFile

#: Suffixes of graphs, and of state dicts.
GRAPHS, STATES = (".pt2",), (".pt", ".pth", ".safetensors")


def fold_file(
    file: TorchFile, output: str | os.PathLike[str], shapes: Shapes, settings: GraphSettings, proof: Proof
) -> tuple[Report, Callable[[], None]]:
    """Fold the model in `file` for an output of that name.

    Args:
        file: The model.
        output: The file to write; its suffix says what.
        shapes: Shapes of inputs by name, where the file brings none.
        settings: What to do; for a state dict only which BatchNorms.
        proof: How to check it.

    Returns:
        The report, and what writes the output.

    Raises:
        UsageError: The output cannot be made of this kind of file, or an input has no shape.
        ModelError, VerificationError, MachineError: As `bnfold.fold`.
    """
    from bnfold.api_torch import fold_module  # noqa: PLC0415
    from bnfold.api_torch_graph import fold_program, fold_to_program  # noqa: PLC0415
    from bnfold.frontends.torch_save import require_safetensors, save_program, save_state  # noqa: PLC0415

    check_output(file, output)
    name, inputs = Path(file.path).name, file.inputs(shapes)
    if Path(output).suffix.lower() in GRAPHS:
        if file.program is not None:
            program, report = fold_program(file.program, inputs, settings, proof, name=name)
        else:
            program, report = fold_to_program(file.module, inputs, settings, proof)
        return replace(report, model=name), partial(save_program, program, output)
    if Path(output).suffix.lower() == ".safetensors":
        require_safetensors(output)
    result = fold_module(file.module, inputs, settings.wanted, proof, inplace=False)
    return replace(result.report, model=name), partial(save_state, result.module, output)


def inspect_file(file: TorchFile, output: str, shapes: Shapes, settings: GraphSettings) -> Report:
    """What `fold_file` would do; errors as there."""
    from bnfold.api_torch import inspect_module  # noqa: PLC0415
    from bnfold.api_torch_graph import inspect_graph, inspect_program  # noqa: PLC0415

    check_output(file, output)
    name, inputs = Path(file.path).name, file.inputs(shapes)
    if Path(output).suffix.lower() not in GRAPHS:
        return replace(inspect_module(file.module, inputs, settings.wanted), model=name)
    if file.program is not None:
        return inspect_program(file.program, inputs, settings, name)
    return replace(inspect_graph(file.module, inputs, settings), model=name)


def check_output(file: TorchFile, output: str | os.PathLike[str]) -> None:
    """Refuse what has no sound way.

    Raises:
        UsageError: The output cannot be made of this kind of file.
    """
    if file.kind is FileKind.TORCHSCRIPT:
        raise UsageError("TorchScript cannot be changed", where=file.path, remedy="name a file in .onnx")
    if file.kind is FileKind.EXPORTED and Path(output).suffix.lower() in STATES:
        what = "a torch.export archive has no class that could load a state dict"
        raise UsageError(what, where=file.path, remedy="name a file in .pt2 or .onnx")
