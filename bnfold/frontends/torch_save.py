"""Writes PyTorch files whole or not at all: under another name beside their place, renamed last."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.errors import MachineError
from bnfold.frontends.onnx_files import save_whole
from bnfold.frontends.torch_marks import in_archive, marked_state
from bnfold.frontends.torch_quiet import first_line, silent
from bnfold.frontends.torch_states import missing_safetensors

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram


def save_state(module: nn.Module, path: str | os.PathLike[str], marks: Mapping[str, str]) -> None:
    """Write the state dict of `module`, as `torch.save` does or, if that is its suffix, as safetensors.

    Args:
        module: The module.
        path: The file.
        marks: What the file says of how it came about.

    Raises:
        UsageError, MachineError: As `onnx_files.save`.
        MissingPackageError: safetensors is not installed.
    """
    import torch  # noqa: PLC0415

    if Path(path).suffix.lower() != ".safetensors":
        _save(path, lambda draft: torch.save(marked_state(module, marks), draft))
        return
    require_safetensors(path)
    from safetensors.torch import save_model  # noqa: PLC0415

    _save(path, lambda draft: save_model(module, str(draft), {"format": "pt", **marks}))


def require_safetensors(path: str | os.PathLike[str]) -> None:
    """Call it before long work.

    Raises:
        MissingPackageError: safetensors is not installed.
    """
    try:
        import safetensors  # noqa: F401, PLC0415
    except ImportError as error:
        raise missing_safetensors(path) from error


def save_program(program: ExportedProgram, path: str | os.PathLike[str], marks: Mapping[str, str]) -> None:
    """Write a torch.export archive; arguments and errors as `save_state`.

    Raises:
        UsageError, MachineError: As `onnx_files.save`.
    """
    import torch  # noqa: PLC0415

    _save(path, lambda draft: torch.export.save(program, draft, extra_files=in_archive(marks)))


def _save(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """As `save_whole`; the writers of torch and safetensors have errors of their own."""

    def told(draft: Path) -> None:
        draft.touch()
        mode = draft.stat().st_mode
        try:
            with silent():
                write(draft)
            draft.chmod(mode)  # safetensors lets nobody else read what it writes
        except OSError:
            raise
        except Exception as error:
            raise MachineError(f"cannot be written: {first_line(error)}", where=str(path)) from error

    save_whole(path, told)
