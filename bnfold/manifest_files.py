"""Manifests in files of their own: read, and written whole or not at all, and never without their model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bnfold.drafts import draft_folder
from bnfold.errors import MachineError, UsageError
from bnfold.manifest import Manifest
from bnfold.text_files import as_ours, write_text


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """The manifest in the file `path`.

    Raises:
        UsageError: There is no such file.
        ModelError: As `Manifest.from_json`.
        MachineError: The file may not be read.
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError("there is no such file", where=str(path))
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise MachineError(f"the file cannot be read: {error.strerror}", where=str(path)) from error
    return Manifest.from_json(text, where=str(path))


@contextmanager
def written(manifest: Manifest, path: str | os.PathLike[str]) -> Iterator[None]:
    """Write `manifest` to `path` before the body, which writes the model, and take it back if the body fails.

    So there is never a model without its manifest; what was at `path` before is there again after a failure.

    Raises:
        MachineError: The disk is full, or the folder may not be written.
    """
    target = Path(path)
    with ExitStack() as stack:
        with as_ours(path):
            work = stack.enter_context(draft_folder(target))
            write_text(manifest.to_json(), work / "new")
            if target.exists():
                shutil.copy2(target, work / "old")
                shutil.copymode(target, work / "new")
        try:
            with as_ours(path):
                (work / "new").replace(target)
            yield
        except BaseException:
            _take_back(work, target)
            raise


def _take_back(work: Path, target: Path) -> None:
    """Put back what was at `target`, unless nothing came there."""
    if (work / "new").exists():
        return
    if (work / "old").exists():
        (work / "old").replace(target)
    else:
        target.unlink(missing_ok=True)
