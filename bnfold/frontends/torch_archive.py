"""Reads torch.export archives, after a look that nothing in them runs code of whoever made them.

`torch.export.load` unpickles example inputs, weights and constants where it cannot do without, evaluates texts, loads
compiled libraries, and finds the operators of the graph by name anywhere in `torch` (`torch.os.system` is one). An
archive that torch wrote of an ordinary model needs none of that, and one that does is refused.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.errors import MissingPackageError, ModelError, UsageError
from bnfold.frontends import torch_archive_text as text
from bnfold.frontends.torch_quiet import first_line, silent

if TYPE_CHECKING:
    from torch.export import ExportedProgram

#: The entries of an archive; what begins otherwise, compiled code above all, has no place in one.
_MODEL = "models/model.json"
_ENTRIES = re.compile(
    r"models/model\.json|data/(weights|constants)/\w+(\.json|\.pt)?|data/sample_inputs/model\.pt|archive_\w+|byteorder"
    r"|extra/.*|\.data/\w+|version"
)
#: Constants that are tensors; all others are objects of classes.
_TENSOR = re.compile(r"(weight|tensor)_\d+")

_FORMS = {
    "expr_str": text.is_expression,
    "range_constraints": text.is_expression,
    "guards_code": text.is_guard,
    "in_spec": text.is_tree,
    "out_spec": text.is_tree,
    "target": text.is_known_operator,
    "as_operator": text.is_known_operator,
    "name": text.is_identifier,
    "as_name": text.is_identifier,
    "forward_arg_names": text.is_identifier,
}


def load_program(path: str | os.PathLike[str], *, trusted: bool = False) -> ExportedProgram:
    """The exported program in an archive.

    Args:
        path: The archive.
        trusted: Whether to load it without a look.

    Raises:
        UsageError: It wants to run code, and is not trusted.
        ModelError: It is damaged, or of another version of torch.
        MissingPackageError: torch is too old for archives.
    """
    try:
        from torch.export.pt2_archive._package import PT2ArchiveReader, load_pt2  # noqa: PLC0415
    except ImportError as error:
        raise MissingPackageError(
            "this torch is too old for torch.export archives", where=str(path), remedy="pip install 'torch>=2.9'"
        ) from error
    with Path(path).open("rb") as file, silent(), _weights_only(not trusted):
        try:
            if not trusted:
                with PT2ArchiveReader(file) as reader:
                    _look(reader, str(path))
                file.seek(0)
            program: ExportedProgram = load_pt2(file).exported_programs["model"]
        except UsageError:
            raise
        except pickle.UnpicklingError as error:
            raise _refusal("it holds a pickled object that is no tensor", str(path)) from error
        except Exception as error:  # what torch raises about archives has no common base
            what = f"torch cannot read this archive: {first_line(error)}"
            remedy = "it is damaged, or of another version of torch: export it again"
            raise ModelError(what, where=str(path), remedy=remedy) from error
    return program


def _look(reader: Any, where: str) -> None:
    """Refuse what is not known to be harmless."""
    for entry in reader.get_file_names():
        if not _ENTRIES.fullmatch(entry):
            raise _refusal(f"it holds {entry}", where)
        if entry.endswith("_config.json"):
            _look_at_payload(json.loads(reader.read_string(entry)), where)
    for key, value in _texts(json.loads(reader.read_string(_MODEL)), ""):
        if not _FORMS.get(key, text.is_plain)(value):
            raise _refusal(f"its {key or 'key'} {value[:60]!r} is not of the kind that torch.export writes", where)


def _look_at_payload(config: Any, where: str) -> None:
    for name, entry in config["config"].items():
        if not _TENSOR.fullmatch(entry["path_name"]):
            raise _refusal(f"its constant {name} is no tensor but an object", where)


def _texts(value: object, key: str) -> Iterator[tuple[str, str]]:
    """Every text with what it stands for; texts about a node that torch only keeps are left out."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for entry in value:
            yield from _texts(entry, key)
    elif isinstance(value, dict):
        for name, entry in value.items():
            yield ("range_constraints" if key == "range_constraints" else ""), name
            if name != "metadata":
                yield from _texts(entry, name if key != "range_constraints" else "")


def _refusal(what: str, where: str) -> UsageError:
    return UsageError(
        f"loading this archive may run code of whoever made it: {what}",
        where=where,
        remedy="give --trust-pickle if you trust them",
    )


@contextmanager
def _weights_only(wanted: bool) -> Iterator[None]:
    """Every `torch.load` within unpickles nothing but tensors and containers, also where it is told otherwise."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    try:
        if wanted:
            os.environ[name] = "1"
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
