"""Text files that are written whole or not at all, and what the operating system refuses said in one sentence."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bnfold.drafts import draft_folder
from bnfold.errors import MachineError


def write_whole(text: str, path: str | os.PathLike[str]) -> None:
    """Write `text` to `path`; what was there stays until all of it is on the disk.

    Raises:
        MachineError: The disk is full, or the folder may not be written.
    """
    target = Path(path)
    with as_ours(path), draft_folder(target) as work:
        write_text(text, work / "new")
        if target.exists():
            shutil.copymode(target, work / "new")
        (work / "new").replace(target)


def write_text(text: str, path: Path) -> None:
    """Write `text` as UTF-8 and flush it to the disk."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def as_ours(path: str | os.PathLike[str]) -> Iterator[None]:
    """Say in one sentence what the operating system refuses to do with `path`."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full" if full else f"cannot be written: {error.strerror}"
        raise MachineError(what, where=str(path), remedy="free some space" if full else "") from error
