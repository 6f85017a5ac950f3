"""Recalibrates PyTorch files: into state dicts of the same class, graphs, or ONNX with the BatchNorms kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.calibrating import Calibration, Choice, calibrated
from bnfold.frontends import torch_marks as marks
from bnfold.frontends.onnx_files import save
from bnfold.frontends.torch_kinds import FileKind
from bnfold.recalibrating import recorded
from bnfold.report.recalibration_report import RecalibrationReport
from bnfold.torch_outputs import GRAPHS, check_output
from bnfold.wishes import Proof

if TYPE_CHECKING:
    import onnx_ir as ir

    from bnfold.torch_files import Shapes, TorchFile


@dataclass(frozen=True, eq=False)
class _Writer:
    """Writes a recalibrated file; what would stop it is found out when it is made, before the long work.

    Attributes:
        write: Does so.
        notes: For the report.
    """

    write: Callable[[TorchFile], None]
    notes: tuple[str, ...] = ()


def recalibrate_file(
    file: TorchFile, output: str | os.PathLike[str], shapes: Shapes, how: Calibration, choice: Choice
) -> tuple[RecalibrationReport, Callable[[], None]]:
    """Compute the statistics of the model in `file` anew, for an output of that name.

    Args:
        file: The model.
        output: The file to write; its suffix says what.
        shapes: Shapes of inputs by name, where the file brings none.
        how: The data, and how statistics are computed.
        choice: Of which BatchNorms.

    Returns:
        The report, and what writes the output; that raises a VerificationError where an export changes what the model
        computes.

    Raises:
        UsageError: The output cannot be made of this kind of file, or an input has no shape.
        BnfoldError: As `bnfold.recalibrate`; or the model cannot be exported.
    """
    if Path(output).suffix.lower() == ".onnx":
        report, export = recalibrated_onnx(file, shapes, how, choice, verify=True)
        return report, lambda: save(export(), output)
    check_output(file, output)
    writer = _writer(file, output, shapes, choice)
    fresh, report = recalibrated(file, shapes, how, choice)
    return replace(report, notes=(*writer.notes, *report.notes)), partial(writer.write, fresh)


def recalibrated(
    file: TorchFile, shapes: Shapes, how: Calibration, choice: Choice
) -> tuple[TorchFile, RecalibrationReport]:
    """`file` with new statistics in memory, and what moved; arguments and errors as `recalibrate_file`."""
    from bnfold.frontends.torch_graph_module import with_tensors  # noqa: PLC0415

    module, report = calibrated(file.module, Path(file.path).name, how, choice, file.inputs(shapes))
    program = None if file.program is None else with_tensors(file.program, module)
    return replace(file, module=module, program=program), report


def recalibrated_onnx(
    file: TorchFile, shapes: Shapes, how: Calibration, choice: Choice, *, verify: bool
) -> tuple[RecalibrationReport, Callable[[], ir.Model]]:
    """As `recalibrated`, for ONNX: what moved, and what exports the model with its BatchNorms kept.

    TorchScript, which cannot be changed, and calls of one module that get statistics of their own, which have no place
    in it, are recalibrated as ONNX models.

    Args:
        file: As `recalibrate_file`, and so are the others.
        shapes: Shapes of inputs.
        how: The data.
        choice: Of which BatchNorms.
        verify: Whether to compare what the exported model computes; a difference is a VerificationError.
    """
    trial = partial(file.to_onnx, shapes)
    if file.kind is FileKind.TORCHSCRIPT or how.unshare != "none":
        model, report = calibrated(trial(verify=verify), Path(file.path).name, how, choice)
        return report, lambda: model
    trial(verify=False)  # what cannot be exported is known before the long work
    fresh, report = recalibrated(file, shapes, how, choice)

    def export() -> ir.Model:
        changed = fresh.to_onnx(shapes, verify=verify)
        if report.recalibrated:
            recorded(changed, report.settings, report.samples)
        return changed

    return report, export


def _writer(file: TorchFile, output: str | os.PathLike[str], shapes: Shapes, choice: Choice) -> _Writer:
    suffix = Path(output).suffix.lower()
    if suffix in GRAPHS:
        return _graph_writer(file, output, shapes, choice)
    from bnfold.frontends.torch_save import require_safetensors, save_state  # noqa: PLC0415

    if suffix == ".safetensors":
        require_safetensors(output)
    return _Writer(lambda fresh: save_state(fresh.module, output, marks.recalibrated()))


def _graph_writer(file: TorchFile, output: str | os.PathLike[str], shapes: Shapes, choice: Choice) -> _Writer:
    """Of an archive, its own graph; of a module, one that is captured of it and computes what the module does."""
    from bnfold.api_torch_graph import GraphSettings, capture_module, check_capture  # noqa: PLC0415
    from bnfold.frontends.torch_capture import captured_program  # noqa: PLC0415
    from bnfold.frontends.torch_graph_module import with_tensors  # noqa: PLC0415
    from bnfold.frontends.torch_save import save_program  # noqa: PLC0415

    def write(fresh: TorchFile) -> None:
        program = fresh.program
        if program is None:
            program = with_tensors(captured.program, fresh.module)
            proof = Proof(progress=choice.progress, remedy="write .pt, which needs no graph, or give other sizes")
            check_capture(fresh.module, captured_program(program, captured.inputs), proof, Path(fresh.path).name)
        save_program(program, output, marks.recalibrated())

    if file.program is not None:
        return _Writer(write)
    captured, notes = capture_module(file.module, file.inputs(shapes), GraphSettings())
    return _Writer(write, notes)
