"""Folds of PyTorch files into PyTorch files: graphs into graphs, modules into graphs or state dicts."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.calibrating import Calibration, Choice
from bnfold.frontends.torch_marks import folded
from bnfold.selecting import selection
from bnfold.torch_outputs import GRAPHS, check_output
from bnfold.torch_recalibrated import recalibrated

if TYPE_CHECKING:
    from bnfold.api_torch_graph import GraphSettings
    from bnfold.leftover_forms import Form
    from bnfold.report.model import Report
    from bnfold.torch_files import Shapes, TorchFile
    from bnfold.wishes import Proof


def graph_settings(only: str | None, keep: str | None, reduce: bool, merge: bool, leftover: Form) -> GraphSettings:
    """What to do, of sizes that stay open; for a state dict only which BatchNorms counts."""
    from bnfold.api_torch_graph import GraphSettings  # noqa: PLC0415

    return GraphSettings(selection(only, keep), False, reduce, merge, leftover)


def fold_file(  # noqa: PLR0913, PLR0917
    file: TorchFile,
    output: str | os.PathLike[str],
    shapes: Shapes,
    settings: GraphSettings,
    proof: Proof,
    wish: Calibration | None,
    choice: Choice,
) -> tuple[Report, Callable[[], None]]:
    """Fold the model in `file` for an output of that name.

    Args:
        file: The model.
        output: The file to write; its suffix says what.
        shapes: Shapes of inputs by name, where the file brings none.
        settings: What to do; for a state dict only which BatchNorms.
        proof: How to check it.
        wish: Data to recalibrate on first, and how, if that is asked for.
        choice: Which BatchNorms are recalibrated.

    Returns:
        The report, and what writes the output.

    Raises:
        UsageError: The output cannot be made of this kind of file, or an input has no shape.
        ModelError, VerificationError, MachineError: As `bnfold.fold`.
    """
    from bnfold.api_torch import check_initialised, fold_module  # noqa: PLC0415
    from bnfold.api_torch_graph import fold_program, fold_to_program  # noqa: PLC0415
    from bnfold.frontends.torch_save import require_safetensors, save_program, save_state  # noqa: PLC0415

    check_output(file, output)
    if Path(output).suffix.lower() == ".safetensors":
        require_safetensors(output)
    if wish is not None:
        file, moved = recalibrated(file, shapes, wish, choice)
        proof = replace(proof, recalibration=moved)
    name, inputs = Path(file.path).name, file.inputs(shapes)
    if Path(output).suffix.lower() in GRAPHS:
        if file.program is not None:
            program, report = fold_program(file.program, inputs, settings, proof, name=name)
        else:
            program, report = fold_to_program(file.module, inputs, settings, proof)
        return replace(report, model=name), partial(save_program, program, output, _marks(report))
    check_initialised(file.module)  # what has no shape cannot be written
    result = fold_module(file.module, inputs, settings.wanted, proof, inplace=False)
    return replace(result.report, model=name), partial(save_state, result.module, output, _marks(result.report))


def _marks(report: Report) -> dict[str, str]:
    """What the file says of itself."""
    return folded(() if report.verification is None else report.verification.providers)


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
