"""State dicts: tensors by the names that a module has for them, and the modules that they belong to."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.errors import MissingPackageError, ModelError
from bnfold.frontends.torch_quiet import first_line
from bnfold.frontends.torch_read_batchnorm import rest_of

if TYPE_CHECKING:
    from torch import Tensor, nn

#: How many names a message lists.
_LISTED = 3


def load_safetensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors in a safetensors file, on the CPU.

    Raises:
        MissingPackageError: safetensors is not installed.
        ModelError: The file is damaged.
    """
    try:
        from safetensors.torch import load_file  # noqa: PLC0415
    except ImportError as error:
        raise missing_safetensors(path) from error
    try:
        found: dict[str, Tensor] = load_file(Path(path))
    except Exception as error:  # SafetensorError, and whatever the operating system says
        what = f"the safetensors file cannot be read: {first_line(error)}"
        raise ModelError(what, where=str(path), remedy="copy it again") from error
    return found


def missing_safetensors(path: str | os.PathLike[str]) -> MissingPackageError:
    """What to install."""
    return MissingPackageError(
        "safetensors is not installed", where=str(path), remedy="pip install 'bnfold[safetensors]'"
    )


def load_state(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Copy `state` into `module`, all of it into all of it.

    Raises:
        ModelError: Names or shapes differ; `module` may have changed.
    """
    try:
        result = module.load_state_dict(state, strict=False)
    except Exception as error:  # RuntimeError of shapes, and whatever the module's own hooks raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = lines[1] if len(lines) > 1 else first_line(error)
        raise ModelError(f"the state dict does not fit the module: {said.rstrip('.')}", where=where) from error
    missing, unexpected = _untied(module, result.missing_keys, state), list(result.unexpected_keys)
    if missing or unexpected:
        raise ModelError(
            f"the state dict does not fit the module: {_difference(missing, unexpected)}",
            where=where,
            remedy=_remedy(module, missing, unexpected),
        )


def _untied(module: nn.Module, missing: Sequence[str], state: Mapping[str, Tensor]) -> list[str]:
    """Those of the missing names that are no second name of a tensor that came: safetensors keeps one of them."""
    own = module.state_dict(keep_vars=True)
    came = {id(own[name]) for name in state if name in own}
    return [name for name in missing if id(own.get(name)) not in came]


def _difference(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    parts = [f"it lacks {_listed(missing)}"] if missing else []
    parts += [f"the module has no {_listed(unexpected)}"] if unexpected else []
    return ", and ".join(parts)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _remedy(module: nn.Module, missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """Names with one more prefix everywhere, a folded module, or another function."""
    norms = {path for path, part in module.named_modules() if rest_of(part) is not None}
    if missing and {name.rpartition(".")[0] for name in missing} <= norms:
        return "it seems to be of a folded module, which bnfold.load_folded reads"
    for prefix in ("module.", "model.", "_orig_mod."):
        if unexpected and all(name.startswith(prefix) for name in unexpected):
            return f"every name begins with {prefix!r}: save the state dict of the module inside"
    return "name the function that builds the module that was saved"
