"""Tells by its content what kind of model a file holds, without unpickling or running anything in it."""

from __future__ import annotations

import os
import zipfile
import zlib
from enum import Enum
from pathlib import Path

from bnfold.errors import MachineError, ModelError, UsageError

#: Suffixes of files that PyTorch writes.
TORCH_SUFFIXES = (".pt2", ".pt", ".pth", ".safetensors", ".ckpt", ".pkl", ".torchscript")


class FileKind(Enum):
    """What a file holds."""

    #: An ONNX model, or nothing that is known here: reading it as ONNX tells.
    ONNX = "an ONNX model"
    #: A graph that `torch.export.save` wrote.
    EXPORTED = "a torch.export archive"
    #: A program that `torch.jit.save` wrote.
    TORCHSCRIPT = "a TorchScript archive"
    #: What `torch.save` wrote, in its present or older format: a state dict or any other object, pickled.
    PICKLED = "a file of torch.save"
    #: Tensors by name, without code.
    SAFETENSORS = "a safetensors file"


def kind_of(path: str | os.PathLike[str]) -> FileKind:
    """What the file at `path` holds; its content decides, and its suffix only where that is none of PyTorch's.

    Raises:
        UsageError: There is no such file, or it is a folder.
        ModelError: It is damaged, or a file of PyTorch's by its suffix only.
        MachineError: It may not be read.
    """
    file = Path(path)
    if not file.exists():
        raise UsageError("there is no such file", where=str(path))
    if file.is_dir():
        raise UsageError("this is a folder, not a model file", where=str(path))
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(9)
        if start[:4] == b"PK\x03\x04":
            return _kind_of_zip(file)
    except OSError as error:
        raise MachineError(f"the file cannot be read: {error.strerror or error}", where=str(path)) from error
    return _kind_of_bytes(file, start, size)


def check_archive(path: str | os.PathLike[str]) -> None:
    """Refuse a zip archive whose content is not what was written: torch does not look at the checksums.

    Raises:
        ModelError: A checksum is wrong.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, OSError, zlib.error) as error:
        raise _damaged(Path(path), "the archive is damaged") from error
    if wrong is not None:
        raise _damaged(Path(path), f"the archive is damaged: the checksum of {wrong} is wrong")


def _kind_of_bytes(file: Path, start: bytes, size: int) -> FileKind:
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):  # a pickle of that protocol
        return FileKind.PICKLED
    header = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{":
        if 8 + header > size:
            raise _damaged(file, "the safetensors file is cut off")
        return FileKind.SAFETENSORS
    if file.suffix.lower() in TORCH_SUFFIXES and start[:1] != b"\x08":  # an ONNX file starts with its ir_version
        what = "the file is empty" if not size else f"this is damaged, or no file that belongs into {file.suffix}"
        raise _damaged(file, what)
    return FileKind.ONNX


def _kind_of_zip(file: Path) -> FileKind:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise _damaged(file, "the archive is damaged or cut off") from error
    inner = {name.partition("/")[2] for name in names}  # PyTorch puts everything into one folder
    if "archive_format" in inner or any(name.startswith("models/") for name in inner):
        return FileKind.EXPORTED
    if "serialized_exported_program.json" in names:
        raise ModelError(
            "torch 2.7 or older wrote this archive", where=str(file), remedy="export it again with a newer torch"
        )
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return FileKind.TORCHSCRIPT
    if "data.pkl" in inner:
        return FileKind.PICKLED
    raise _damaged(file, "this zip archive is none that PyTorch writes")


def _damaged(file: Path, what: str) -> ModelError:
    return ModelError(what, where=str(file), remedy="export or copy it again")
