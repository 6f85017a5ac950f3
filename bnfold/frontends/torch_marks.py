"""What a PyTorch file says of how it came about: by bnfold, and whether that was verified.

Of safetensors these are entries of its metadata; of a state dict, entries of the metadata of the outermost module,
which torch saves and hands to that module when it loads (and which no module minds); of an archive, a file of its own.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bnfold.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

#: What a file that holds no code tells whoever opens it.
FOLDED = "folded by bnfold: bnfold.load_folded(module, path) puts it into a new module of the same class"
RECALIBRATED = "recalibrated by bnfold"

#: The file in an archive.
ENTRY = "bnfold.json"

_NOTE, _VERIFIED, _NO = "bnfold", "bnfold.verified", "no"


def folded(providers: tuple[str, ...]) -> dict[str, str]:
    """The marks of a folded model; as in ONNX files, on what it was verified, or that it was not."""
    return {_NOTE: FOLDED, _VERIFIED: ", ".join(providers) or _NO}


def recalibrated() -> dict[str, str]:
    """The marks of a recalibrated model."""
    return {_NOTE: RECALIBRATED}


def marked_state(module: nn.Module, marks: Mapping[str, str]) -> dict[str, Any]:
    """The state dict of `module` with marks that `torch.save` keeps, also for `torch.load(weights_only=True)`."""
    given = module.state_dict()
    state: Any = given if isinstance(given, OrderedDict) else OrderedDict(given)
    known = getattr(given, "_metadata", {})
    state._metadata = OrderedDict({**known, "": {**known.get("", {}), **marks}})
    found: dict[str, Any] = state
    return found


def in_archive(marks: Mapping[str, str]) -> dict[str, str]:
    """The marks as the further files of an archive."""
    return {ENTRY: json.dumps(marks)}


def demand_verified(path: str | os.PathLike[str], *, is_safetensors: bool) -> None:
    """Whether a state dict says that the fold was verified.

    Args:
        path: A file that was loaded before, so that it is whole and holds tensors.
        is_safetensors: Of which kind it is.

    Raises:
        ModelError: It says that it was not, or says nothing.
    """
    marks = _of_safetensors(path) if is_safetensors else _of_pickled(path)
    said = marks.get(_VERIFIED)
    if said is None or said == _NO:
        what = "nothing in it says that the fold was verified" if said is None else "the fold was not verified"
        remedy = "compare it with the original: bnfold verify ORIGINAL FOLDED --model package.module:factory"
        raise ModelError(what, where=str(path), remedy=remedy)


def _of_safetensors(path: str | os.PathLike[str]) -> Mapping[str, str]:
    from safetensors import safe_open  # noqa: PLC0415

    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def _of_pickled(path: str | os.PathLike[str]) -> Mapping[str, str]:
    import torch  # noqa: PLC0415

    state = torch.load(path, map_location="meta", weights_only=True)
    found: Mapping[str, str] = getattr(state, "_metadata", {}).get("", {})
    return found
