"""Where a report comes from: the files with their SHA-256, the versions at work, the command and the time."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bnfold import __version__

#: What has a say in the numbers of a report.
_PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "onnxsim", "torch")

_CHUNK = 1 << 20


@dataclass(frozen=True)
class FileFacts:
    """A file that was read or written.

    Attributes:
        role: "input", "output", "before", "after".
        name: Its name without the folder.
        bytes: Its size; data that an ONNX file keeps in other files is not counted.
        sha256: Of its content, in hexadecimal.
    """

    role: str
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Provenance:
    """Where a report comes from.

    Attributes:
        command: The command line, quoted as a shell wants it; empty for a call from Python.
        files: What was read and written.
        versions: Names and versions of what has a say in the numbers, the interpreter and the system among them.
        time: When, in UTC, to the second.
    """

    command: str
    files: tuple[FileFacts, ...]
    versions: tuple[tuple[str, str], ...]
    time: str


def provenance_of(files: Sequence[tuple[str, str | os.PathLike[str]]], arguments: Sequence[str] | None) -> Provenance:
    """The facts of this run.

    Args:
        files: Role and path of each file; one that does not exist (an output that was not written) is left out.
        arguments: The arguments of the command line; None for a call from Python.
    """
    command = "" if arguments is None else shlex.join(["bnfold", *arguments])
    facts = tuple(_facts(role, Path(path)) for role, path in files if Path(path).is_file())
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    return Provenance(command, facts, tuple(_versions()), now)


def _facts(role: str, path: Path) -> FileFacts:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return FileFacts(role, path.name, path.stat().st_size, digest.hexdigest())


def _versions() -> list[tuple[str, str]]:
    machine = [
        ("bnfold", __version__),
        ("Python", platform.python_version()),
        ("system", f"{platform.system()} {platform.machine()}"),
    ]
    return [*machine, *((package, found) for package in _PACKAGES if (found := _version(package)))]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
