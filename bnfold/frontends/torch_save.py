"""Writes PyTorch files whole or not at all: under another name beside their place, renamed last."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.errors import MachineError
from bnfold.frontends.onnx_files import save_whole
from bnfold.frontends.torch_quiet import first_line, silent
from bnfold.frontends.torch_states import missing_safetensors

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

#: What a file that holds no code tells whoever opens it.
FOLDED = "folded by bnfold: bnfold.load_folded(module, path) puts it into a new module of the same class"
RECALIBRATED = "recalibrated by bnfold"


def save_state(module: nn.Module, path: str | os.PathLike[str], note: str = FOLDED) -> None:
    """Write the state dict of `module`, as `torch.save` does or, if that is its suffix, as safetensors with a note.

    Raises:
        UsageError, MachineError: As `onnx_files.save`.
        MissingPackageError: safetensors is not installed.
    """
    import torch  # noqa: PLC0415

    if Path(path).suffix.lower() != ".safetensors":
        _save(path, lambda draft: torch.save(module.state_dict(), draft))
        return
    require_safetensors(path)
    from safetensors.torch import save_model  # noqa: PLC0415

    _save(path, lambda draft: save_model(module, str(draft), {"format": "pt", "bnfold": note}))


def require_safetensors(path: str | os.PathLike[str]) -> None:
    """Call it before long work.

    Raises:
        MissingPackageError: safetensors is not installed.
    """
    try:
        import safetensors  # noqa: F401, PLC0415
    except ImportError as error:
        raise missing_safetensors(path) from error


def save_program(program: ExportedProgram, path: str | os.PathLike[str]) -> None:
    """Write a torch.export archive.

    Raises:
        UsageError, MachineError: As `onnx_files.save`.
    """
    import torch  # noqa: PLC0415

    _save(path, lambda draft: torch.export.save(program, draft))


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
