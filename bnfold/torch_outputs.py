"""What PyTorch files can become: graphs and state dicts, by the suffix of the output."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.errors import UsageError
from bnfold.frontends.torch_kinds import FileKind

if TYPE_CHECKING:
    from bnfold.torch_files import TorchFile

#: Suffixes of graphs, and of state dicts.
GRAPHS, STATES = (".pt2",), (".pt", ".pth", ".safetensors")


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
