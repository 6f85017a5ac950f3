"""Reads files of `torch.save`: tensors by name without running code; pickled modules only from whom the caller trusts.

A checkpoint may hold the state dict under one of the usual keys. Of a pickled checkpoint with modules (Ultralytics) the
averaged one, `ema`, is taken where there is one, in float32 as Ultralytics does.
"""

from __future__ import annotations

import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bnfold.errors import ModelError, UsageError
from bnfold.frontends.torch_quiet import first_line, silent

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Where training programs put the state dict, and where modules.
_STATES = ("state_dict", "model_state_dict", "model")
_MODULES = ("ema", "model")

#: The instructions of a pickle that look something up by name, which is how it gets at code.
_LOOK_UPS = frozenset({"GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"})


def load_pickled(path: str | os.PathLike[str], *, trusted: bool = False) -> dict[str, Tensor] | nn.Module:
    """What a file of `torch.save` holds, on the CPU: a state dict, or a module.

    Args:
        path: The file.
        trusted: Whether it may run code.

    Raises:
        UsageError: It wants to run code, and is not trusted.
        ModelError: It is damaged, holds no model, or needs classes that are not there.
    """
    import torch  # noqa: PLC0415

    try:
        with silent():
            found = torch.load(path, map_location="cpu", weights_only=not trusted)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"it needs the module {error.name}, which is not there",
            where=str(path),
            remedy="install it, or run bnfold in the folder where it lies",
        ) from error
    except Exception as error:  # the classes of what is unpickled may raise anything
        if isinstance(error, pickle.UnpicklingError) and not trusted and _looks_up(Path(path)):
            raise _untrusted(path, error) from error
        said = "the pickle is damaged" if isinstance(error, pickle.UnpicklingError) else first_line(error)
        what = f"torch cannot read this file: {said}"
        raise ModelError(
            what, where=str(path), remedy="it is damaged, or needs other packages: save it again"
        ) from error
    return _model_in(found, str(path))


def _untrusted(path: str | os.PathLike[str], error: Exception) -> UsageError:
    named = re.search(r"GLOBAL:? (\S+)", str(error))
    asks = f" (this one asks for {named[1]})" if named else ""
    return UsageError(
        f"it holds more than tensors, and loading such a pickle runs code of whoever made it{asks}",
        where=str(path),
        remedy="give --trust-pickle if you trust them, or save module.state_dict() and give --model",
    )


def _looks_up(file: Path) -> bool:
    """Whether the pickle is whole and looks something up by name; it is read and not run."""
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                with archive.open(name) as stream:
                    return _any_looks_up(stream, 1)
        with file.open("rb") as stream:
            return _any_looks_up(stream, 4)  # the older format begins with three that hold numbers
    except Exception:  # damaged, and so in ways without end
        return False


def _any_looks_up(stream: IO[bytes], pickles: int) -> bool:
    return any(_LOOK_UPS & {opcode.name for opcode, _, _ in pickletools.genops(stream)} for _ in range(pickles))


def _model_in(found: Any, where: str) -> dict[str, Tensor] | nn.Module:
    from torch import nn  # noqa: PLC0415

    if isinstance(found, nn.Module):
        return found
    if isinstance(found, Mapping):
        for key in _MODULES:
            if isinstance(found.get(key), nn.Module):
                module: nn.Module = found[key].float()
                return module
        states = (found, *(found.get(key) for key in _STATES))
        state = next((state for state in states if _is_state(state)), None)
        if state is not None:
            return dict(state)
    keys = f" with {', '.join(map(str, list(found)[:3]))}" if isinstance(found, Mapping) and found else ""
    what = f"it holds no model but a {type(found).__name__}{keys}"
    raise ModelError(what, where=where, remedy="save module.state_dict()")


def _is_state(state: object) -> bool:
    """Tensors by name; a module may add a few things that are none (`get_extra_state`)."""
    from torch import Tensor  # noqa: PLC0415

    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        return False
    return any(isinstance(value, Tensor) for value in state.values()) and all(
        isinstance(value, Tensor) or key.endswith("_extra_state") for key, value in state.items()
    )
