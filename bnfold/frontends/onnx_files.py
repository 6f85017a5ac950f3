"""Reads ONNX files, and writes them whole or not at all.

A model is written under a temporary name beside its place, and renamed last; external data goes to a file that is
named after its content, so that no file that another model refers to is ever overwritten.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from bnfold.drafts import COMPANION, draft_folder
from bnfold.errors import BnfoldError, MachineError, ModelError, UsageError
from bnfold.frontends.onnx_order import sort
from bnfold.frontends.torch_kinds import FileKind, kind_of
from bnfold.text_files import as_ours

#: Protobuf cannot hold more; larger models, and those that came with external data, are written with external data.
_MAX_INLINE = 2**31 - 2**24

#: Tensors of fewer bytes stay in the model file.
_SMALL = 1024


def load(path: str | os.PathLike[str]) -> ir.Model:
    """The model in the ONNX file `path`, its nodes sorted; external data stays on disk and is mapped when it is needed.

    Raises:
        UsageError: There is no such file, or it is a folder.
        ModelError: It is not an ONNX model, it is cut off, its external data is missing, its nodes read each other in
            a circle, or a body hands out what it does not compute.
        MachineError: The file may not be read.
    """
    file = Path(path)
    if not file.exists():
        raise UsageError("there is no such file", where=str(path))
    if file.is_dir():
        raise UsageError("this is a folder, not an ONNX file", where=str(path))
    try:
        model = ir.load(file)
    except OSError as error:
        raise MachineError(f"the file cannot be read: {error.strerror}", where=str(path)) from error
    except Exception as error:
        raise _not_onnx(file, path) from error
    if model.ir_version == 0 or not model.opset_imports or (not len(model.graph) and not model.graph.outputs):
        raise _not_onnx(file, path)
    sort(model, str(path))
    _check_external(model, path)
    return model


def _not_onnx(file: Path, path: str | os.PathLike[str]) -> ModelError:
    kind = kind_of(file)
    if kind is not FileKind.ONNX:
        what = f"this is {kind.value}, not an ONNX model"
        return ModelError(what, where=str(path), remedy="bnfold FILE -o fused.onnx, or bnfold.load_module, reads it")
    empty = file.stat().st_size == 0
    what = "the file is empty" if empty else "this is not an ONNX model, or it is cut off"
    return ModelError(what, where=str(path), remedy="export or copy it again")


def in_memory(model: ir.Model) -> onnx.ModelProto:
    """The model as protobuf with its external data read in; `model` itself goes on reading it from the disk."""
    return ir.to_proto(with_data(model))


def external_files(model: ir.Model) -> Iterator[tuple[Path, int]]:
    """The files that hold external data of `model`, and the size each must at least have."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                yield Path(tensor.path), (tensor.offset or 0) + (tensor.length or tensor.nbytes)


def with_data(model: ir.Model) -> ir.Model:
    """`model`, or a copy that maps its external data itself, so that it can be handed over whole."""
    if not any(True for _ in external_files(model)):
        return model
    copy = model.clone()
    for graph in copy.graphs():
        for value in graph.initializers.values():
            # Not `ir.external_data.load_to_model`: it closes the file, which `model` shares.
            if isinstance(tensor := value.const_value, ir.ExternalTensor):
                value.const_value = ir.Tensor(tensor.numpy(), tensor.dtype, shape=tensor.shape, name=tensor.name)
    return copy


def _check_external(model: ir.Model, path: str | os.PathLike[str]) -> None:
    for file, size in external_files(model):
        if not file.is_file():
            raise ModelError(
                f"its external data {file.name} is missing", where=str(path), remedy="copy it beside the model"
            )
        if file.stat().st_size < size:
            raise ModelError(f"its external data {file.name} is cut off", where=str(path), remedy="copy it again")


def check_target(target: str | os.PathLike[str], sources: list[str | os.PathLike[str]]) -> None:
    """Refuse a place that cannot be written or that would overwrite what is read; call it before long work.

    Raises:
        UsageError: The folder does not exist, the target is a folder, or it is one of `sources`.
    """
    file = Path(target)
    if not file.parent.is_dir():
        raise UsageError(f"the folder {file.parent} does not exist", where=str(target), remedy="create it first")
    if file.is_dir():
        raise UsageError("the output is a folder", where=str(target), remedy="name a file in it")
    for source in sources:
        if file.exists() and Path(source).exists() and file.samefile(source):
            raise UsageError("the output is the input", where=str(target), remedy="bnfold never overwrites its input")


def save(model: ir.Model, path: str | os.PathLike[str]) -> None:
    """Write `model` to `path`, whole or not at all.

    Raises:
        UsageError: As `check_target`.
        MachineError: The disk is full, or the folder may not be written.
    """
    target = Path(path)
    check_target(target, [])
    before = {file.resolve() for file in _external_files_at(target)}
    inputs = {file.resolve() for file, _ in external_files(model)}
    with as_ours(path):
        with draft_folder(target) as work:
            data = _write(model, work, target)
        for old in before - inputs - {data}:
            old.unlink(missing_ok=True)


def save_whole(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Have `write` make a file, and give it the name `path` when it is there.

    Raises:
        UsageError, MachineError: As `save`.
    """
    target = Path(path)
    check_target(target, [])
    with as_ours(path), draft_folder(target) as work:
        write(work / target.name)
        _settle(work / target.name, target)


def _write(model: ir.Model, work: Path, target: Path) -> Path | None:
    """Write into `work`, then move data and model into place; returns the data file."""
    draft = work / target.name
    if not _needs_external(model):
        ir.save(model, draft)
        _settle(draft, target)
        return None
    name = f"{target.name}.{_digest(model)}.data"
    # onnx_ir would close the maps of small tensors, which views of them still hold open.
    ir.save(with_data(model), draft, external_data=name, size_threshold_bytes=_SMALL)
    data = target.parent / name
    was_there = data.exists()
    try:
        if (work / name).exists():
            if not was_there:
                (work / COMPANION).write_text(name, encoding="utf-8")
            _settle(work / name, data)
        _settle(draft, target)
    except BaseException:
        if not was_there:
            data.unlink(missing_ok=True)
        raise
    return data.resolve()


def _settle(draft: Path, target: Path) -> None:
    """Flush `draft` to the disk and give it its name."""
    with draft.open("rb+") as file:
        os.fsync(file.fileno())
    if target.exists():
        shutil.copymode(target, draft)
    draft.replace(target)


def _needs_external(model: ir.Model) -> bool:
    tensors = [v.const_value for g in model.graphs() for v in g.initializers.values() if v.const_value is not None]
    return any(isinstance(t, ir.ExternalTensor) for t in tensors) or sum(t.nbytes for t in tensors) > _MAX_INLINE


def _digest(model: ir.Model) -> str:
    """Twelve hexadecimal digits of the content of all initializers."""
    digest = hashlib.sha256()
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            digest.update(name.encode())
            if value.const_value is not None:
                digest.update(value.const_value.tobytes())
    return digest.hexdigest()[:12]


def _external_files_at(target: Path) -> list[Path]:
    """Bnfold's own data files of the model that is about to be replaced."""
    if not target.is_file():
        return []
    pattern = re.compile(re.escape(target.name) + r"\.[0-9a-f]{12}\.data")
    try:
        return [file for file, _ in external_files(load(target)) if pattern.fullmatch(file.name)]
    except BnfoldError:
        return []
