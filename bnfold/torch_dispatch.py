"""Tells PyTorch modules from ONNX models without importing torch, and hands them on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeGuard

from bnfold.errors import UsageError
from bnfold.report.model import Report
from bnfold.torch_result import TorchFoldResult
from bnfold.verification import Verification

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn


def is_module(model: object) -> TypeGuard[nn.Module]:
    """Whether `model` is a PyTorch module; nobody has one without having imported torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def inspect_torch(
    module: nn.Module, inputs: tuple[Any, ...] | None, wanted: Callable[[str], bool], others: tuple[object, ...]
) -> Report:
    """`inspect` for a module; `others` are the arguments that it does not take, false where they were not given."""
    from bnfold.api_torch import inspect_module  # noqa: PLC0415

    _refuse(others)
    return inspect_module(module, inputs, wanted)


def fold_torch(  # noqa: PLR0913
    module: nn.Module,
    inputs: tuple[Any, ...] | None,
    wanted: Callable[[str], bool],
    others: tuple[object, ...],
    *,
    inplace: bool,
    verify: bool,
    seed: int,
    progress: Callable[[str], None] | None,
) -> TorchFoldResult:
    """`fold` for a module; `others` as in `inspect_torch`."""
    from bnfold.api_torch import fold_module  # noqa: PLC0415

    _refuse(others)
    return fold_module(module, inputs, wanted, inplace=inplace, verify=verify, seed=seed, progress=progress)


def verify_torch(  # noqa: PLR0913
    before: object,
    after: nn.Module | ir.Model,
    inputs: tuple[Any, ...] | None,
    others: tuple[object, ...],
    *,
    providers: tuple[str, ...],
    seed: int,
    progress: Callable[[str], None] | None,
) -> Verification:
    """`verify` with a module; `others` as in `inspect_torch`.

    Raises:
        UsageError: The first of the two is none.
    """
    from bnfold.torch_verify import verify_module  # noqa: PLC0415

    if not is_module(before):
        raise UsageError("a PyTorch module is the first of the two", where="verify", remedy="verify(module, model)")
    if any(others):
        what = "with a PyTorch module, verify takes example_inputs, providers, seed and progress, and nothing else"
        raise UsageError(what, where="verify")
    return verify_module(before, after, inputs, providers=providers, seed=seed, progress=progress)


def _refuse(others: tuple[object, ...]) -> None:
    if any(others):
        raise UsageError(
            "a PyTorch module takes example_inputs, inplace, only, keep, verify, seed and progress, and nothing else",
            where="fold",
        )
