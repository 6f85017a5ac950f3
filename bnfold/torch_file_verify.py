"""Compares two files, the first of which is PyTorch's; `bnfold.verifying` compares what is in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from bnfold.errors import ModelError, UsageError
from bnfold.frontends.torch_kinds import FileKind, kind_of
from bnfold.models import opened
from bnfold.providers import each_provider
from bnfold.torch_files import Factory, Shapes, TorchFile, open_torch
from bnfold.torch_verify import verify_module
from bnfold.verification import Verification

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

#: What may hold a state dict, which needs a module.
_STATES = (FileKind.PICKLED, FileKind.SAFETENSORS)


def verify_files(  # noqa: PLR0913
    before: str,
    after: str,
    shapes: Shapes,
    *,
    model: Factory | None = None,
    trust_pickle: bool = False,
    providers: tuple[str, ...] = ("cpu",),
    seed: int = 0,
    deployed: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Verification:
    """Compare the outputs of both, in order; state dicts may be those of folded modules.

    Args:
        before: A PyTorch file.
        after: Another one, or an ONNX model.
        shapes: Of the inputs, by the names of `before`.
        model: What builds the module of a state dict, of both if both are some.
        trust_pickle: Whether files may run code of whoever made them.
        providers: Where an ONNX model runs.
        seed: Of the numbers.
        deployed: Whether an ONNX model is run as deployed as well.
        progress: Told what is being done.

    Raises:
        UsageError: The first is an ONNX model; `model` is missing, or needed by neither; an input has no shape.
        ModelError: A file cannot be read, or the first does not run on the inputs.
        MissingPackageError, ProviderError: torch, onnxruntime or a provider is not there.
    """
    kinds = [kind_of(path) for path in (before, after)]
    if kinds[0] is FileKind.ONNX:
        what = "a PyTorch file comes first, as the other one is compared with it"
        raise UsageError(what, where=before, remedy=f"bnfold verify {after} {before}")
    if model is not None and not any(kind in _STATES for kind in kinds):
        raise UsageError("neither of the two needs --model", where=before, remedy="leave it out")
    old = _file(before, kinds[0], model, trust_pickle)
    new: nn.Module | ir.Model = (
        opened(after)[0] if kinds[1] is FileKind.ONNX else _file(after, kinds[1], model, trust_pickle).module
    )
    try:
        inputs = old.inputs(shapes)
        where = each_provider(providers)
        return verify_module(old.module, new, inputs, providers=where, seed=seed, deployed=deployed, progress=progress)
    except ModelError as error:
        if error.where != type(old.module).__name__:
            raise
        raise ModelError(error.what, where=before, remedy="give other sizes with --shape") from error


def _file(path: str, kind: FileKind, model: Factory | None, trust_pickle: bool) -> TorchFile:
    return open_torch(path, model=model if kind in _STATES else None, trust_pickle=trust_pickle, compares=True)
