"""PyTorch files as models: which kind of file gives what, and what each kind needs besides.

A state dict has no code, so it needs a function that builds its module; a pickle has code of whoever made it, so it
needs the caller's trust; an archive of torch.export or TorchScript needs neither.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from bnfold.errors import MissingPackageError, ModelError, UsageError
from bnfold.frontends.torch_arguments import Arguments
from bnfold.frontends.torch_kinds import FileKind, check_archive, kind_of
from bnfold.frontends.torch_quiet import first_line
from bnfold.importing import PATTERN, called, import_object

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn
    from torch.export import ExportedProgram

#: What builds the module of a state dict: a function without arguments, or its name, `package.module:function`.
Factory: TypeAlias = "Callable[[], nn.Module] | str"

#: Shapes of inputs by name.
Shapes: TypeAlias = "Mapping[str, tuple[int, ...]]"

_STATE_REMEDY = "give --model package.module:factory (model=... in Python), a function that returns the module"


@dataclass(frozen=True, eq=False)
class TorchFile:
    """What a file of PyTorch's holds.

    Attributes:
        path: The file.
        kind: What kind it is of.
        module: The module in eval mode, on the CPU; that of an archive has no class of its own.
        program: What torch.export gave, of its archives only.
    """

    path: str
    kind: FileKind
    module: nn.Module
    program: ExportedProgram | None = None

    def inputs(self, shapes: Shapes) -> Arguments:
        """Example inputs of `shapes`; without any, those that came with the archive.

        Raises:
            UsageError: A shape is missing, or of no input.
        """
        from bnfold.frontends.torch_made_inputs import made_inputs  # noqa: PLC0415

        brought = None if self.program is None else self.program.example_inputs
        if brought and not shapes:
            return Arguments(tuple(brought[0]), dict(brought[1]))
        return made_inputs(self.module, shapes, self.path)

    def to_onnx(self, shapes: Shapes, *, verify: bool) -> ir.Model:
        """The model as ONNX with its BatchNorms kept.

        Args:
            shapes: As `inputs`.
            verify: Whether to compare what both compute.

        Raises:
            UsageError: As `inputs`; an archive of torch.export needs none where nothing is verified.
            ModelError: It cannot be exported.
            VerificationError: The exporter changed what it computes.
            MissingPackageError, ProviderError: onnxscript or onnxruntime is not installed, or cannot run the model.
        """
        from bnfold.api_torch import check_initialised  # noqa: PLC0415
        from bnfold.exportcheck import check_export  # noqa: PLC0415
        from bnfold.frontends.onnx_files import in_memory  # noqa: PLC0415

        check_initialised(self.module)
        exported = self._exported(shapes)
        if verify:
            check_export(self.module, *self.inputs(shapes), in_memory(exported), Path(self.path).name)
        return exported

    def _exported(self, shapes: Shapes) -> ir.Model:
        from bnfold.frontends import torch_to_onnx as export  # noqa: PLC0415

        name = Path(self.path).name
        if self.program is not None:
            return export.program_to_onnx(self.program, name)
        if self.kind is FileKind.TORCHSCRIPT:
            return export.script_to_onnx(self.module, self.inputs(shapes).args, name)  # type: ignore[arg-type]
        return export.module_to_onnx(self.module, self.inputs(shapes), name)


def open_torch(
    path: str | os.PathLike[str], *, model: Factory | None = None, trust_pickle: bool = False, compares: bool = False
) -> TorchFile:
    """The PyTorch model in a file; `load_module` says how, and what can be wrong.

    Args:
        path: The file.
        model: As `load_module`.
        trust_pickle: As `load_module`.
        compares: Whether a state dict may be that of a folded module, and `model` be for another file.
    """
    kind, where = kind_of(path), str(path)
    if kind is FileKind.ONNX:
        raise UsageError("this is no PyTorch file", where=where, remedy="bnfold.load reads ONNX models")
    _require_torch(where)
    check_archive(path)
    if kind is FileKind.EXPORTED:
        return _exported(path, model, trust_pickle)
    module = _module(path, kind, model, trust_pickle, compares=compares)
    module.eval()
    return TorchFile(where, kind, module)


def load_module(path: str | os.PathLike[str], *, model: Factory | None = None, trust_pickle: bool = False) -> nn.Module:
    """The PyTorch module in a file, in eval mode and on the CPU, to be folded with `bnfold.fold`.

    Args:
        path: A torch.export archive, TorchScript, a file of `torch.save`, or safetensors; its content tells which.
        model: For a state dict: the function that builds the module, or its name `package.module:function`.
        trust_pickle: Whether the file may run code of whoever made it: pickled modules need that.

    Raises:
        UsageError: There is no such file; `model` is missing, not needed, or names nothing; the file wants to run code.
        ModelError: The file is damaged or holds no model; the state dict does not fit; `model` raises.
        MissingPackageError: torch or safetensors is not installed.
    """
    return open_torch(path, model=model, trust_pickle=trust_pickle).module


def load_folded(module: nn.Module, path: str | os.PathLike[str], *, require_verified: bool = False) -> nn.Module:
    """Load the state dict of a folded module, which has no BatchNorms any more, into a new module of its class.

    Args:
        module: As its class builds it; it changes: BatchNorms that were folded give place to what is left of them.
        path: A `.pt` or `.safetensors` file of a folded module.
        require_verified: Whether to refuse a file that does not say that its fold was verified.

    Returns:
        `module`, in eval mode.

    Raises:
        UsageError: The file holds no state dict.
        ModelError: It is the state dict of another module, and `module` may have changed; or it was not verified.
    """
    from bnfold.frontends.torch_folded_state import load_folded_state  # noqa: PLC0415
    from bnfold.frontends.torch_marks import demand_verified  # noqa: PLC0415

    state = _state(path)
    if require_verified:
        demand_verified(path, is_safetensors=kind_of(path) is FileKind.SAFETENSORS)
    load_folded_state(module, state, str(path))
    return module.eval()


def _require_torch(where: str) -> None:
    try:
        import torch  # noqa: F401, PLC0415
    except ImportError as error:
        raise MissingPackageError(
            "PyTorch files need PyTorch", where=where, remedy='pip install "bnfold[torch]"'
        ) from error


def _exported(path: str | os.PathLike[str], model: Factory | None, trust_pickle: bool) -> TorchFile:
    from bnfold.frontends.torch_archive import load_program  # noqa: PLC0415
    from bnfold.frontends.torch_graph_module import as_module  # noqa: PLC0415

    _refuse(model, FileKind.EXPORTED, str(path))
    program = load_program(path, trusted=trust_pickle)
    try:
        module = as_module(program)
    except Exception as error:  # what torch raises about graphs has no common base
        what = f"torch cannot make a module of this archive: {first_line(error)}"
        raise ModelError(what, where=str(path), remedy="export it again") from error
    return TorchFile(str(path), FileKind.EXPORTED, module, program)


def _module(
    path: str | os.PathLike[str], kind: FileKind, model: Factory | None, trust_pickle: bool, *, compares: bool
) -> nn.Module:
    from torch import nn  # noqa: PLC0415

    from bnfold.frontends.torch_folded_state import load_folded_state  # noqa: PLC0415
    from bnfold.frontends.torch_states import load_state  # noqa: PLC0415

    where = str(path)
    if kind is FileKind.TORCHSCRIPT:
        from bnfold.frontends.torch_script import load_script  # noqa: PLC0415

        _refuse(model, kind, where)
        return load_script(path, trusted=trust_pickle)
    found = _content(path, kind, trust_pickle)
    if isinstance(found, nn.Module):
        _refuse(None if compares else model, kind, where, "a module")
        return found
    if model is None:
        raise UsageError("a state dict has no code", where=where, remedy=_STATE_REMEDY)
    module = _built(model)
    (load_folded_state if compares else load_state)(module, found, where)
    return module


def _content(path: str | os.PathLike[str], kind: FileKind, trust_pickle: bool) -> Any:
    from bnfold.frontends.torch_pickled import load_pickled  # noqa: PLC0415
    from bnfold.frontends.torch_states import load_safetensors  # noqa: PLC0415

    return load_safetensors(path) if kind is FileKind.SAFETENSORS else load_pickled(path, trusted=trust_pickle)


def _state(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    _require_torch(str(path))
    kind = kind_of(path)
    check_archive(path)
    if kind not in (FileKind.PICKLED, FileKind.SAFETENSORS):
        raise UsageError(f"this is {kind.value}, and no state dict", where=str(path))
    return _content(path, kind, trust_pickle=False)  # type: ignore[no-any-return]  # no module without trust


def _refuse(model: Factory | None, kind: FileKind, where: str, what: str = "") -> None:
    if model is not None:
        held = what or kind.value
        raise UsageError(f"this is {held}, which needs no --model", where=where, remedy="leave it out")


def _built(model: Factory) -> nn.Module:
    from torch import nn  # noqa: PLC0415

    text = model if isinstance(model, str) else getattr(model, "__qualname__", type(model).__name__)
    if isinstance(model, str) and not PATTERN.fullmatch(model):
        raise UsageError(f"{model!r} names no function", where="--model", remedy="write it like package.module:factory")
    factory = import_object(model, ModelError) if isinstance(model, str) else model
    module = called(factory, text) if callable(factory) and not isinstance(factory, nn.Module) else factory
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"this gives no torch.nn.Module but a {type(module).__name__}",
            where=text,
            remedy="name a function that returns one",
        )
    return module
