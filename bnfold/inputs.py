"""Inputs that the caller fixes, by name: indices and sizes, for which no number can be made up."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from bnfold.data_fit import fit_batch
from bnfold.errors import DataError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bnfold.data import InputSpec

#: For each input that is fixed: numbers, or the path of a .npy file.
InputsLike: TypeAlias = "Mapping[str, Any]"


def fixed_inputs(given: InputsLike | None, inputs: Sequence[InputSpec]) -> dict[str, NDArray[np.generic]]:
    """The arrays that the caller gives, in the types of the model's inputs.

    Args:
        given: By name of the input, an array, numbers, or the path of a .npy file of the whole input.
        inputs: What the model takes.

    Raises:
        UsageError: An input of that name or the file is not there; or no input is left that can be varied.
        DataError: The file cannot be read; the shape, the type or a value does not fit the model.
    """
    known = {spec.name: spec for spec in inputs}
    fixed: dict[str, NDArray[np.generic]] = {}
    for name, value in (given or {}).items():
        if name not in known:
            remedy = f"its inputs are {', '.join(known) or 'none'}"
            raise UsageError(f"the model has no input {name!r}", where="--input", remedy=remedy)
        where = os.fspath(value) if isinstance(value, str | os.PathLike) else f"input {name}"
        array = _read(Path(where)) if isinstance(value, str | os.PathLike) else np.asarray(value)
        fixed |= fit_batch({name: array}, [known[name]], lambda _, where=where: where)  # type: ignore[misc]
    if fixed and len(fixed) == len(known):
        remedy = "leave one to be drawn, or give them as data (--verify-data)"
        raise UsageError("with every input fixed nothing shows that the outputs follow them", remedy=remedy)
    return fixed


def _read(file: Path) -> NDArray[Any]:
    if not file.is_file():
        raise UsageError("there is no such file", where=str(file), remedy="write it like NAME=numbers.npy")
    try:
        with file.open("rb") as stream:
            return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))
    except (ValueError, OSError, EOFError) as error:
        raise DataError(
            "this is no .npy file of numbers", where=str(file), remedy="write it with numpy.save"
        ) from error
