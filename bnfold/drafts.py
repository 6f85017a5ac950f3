"""A folder for what is not finished: beside its place, gone in the end, and cleared away later if a process was killed.

The folder is locked as long as its process lives, whatever ends that; so one that can be locked has no owner any more.
Systems without such locks clear nothing away.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: In a draft folder: the name of a file that is new beside the target, and goes if the target's draft is still here.
COMPANION = "companion"


@contextmanager
def draft_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A new folder beside `target`, `.NAME.RANDOM`; those that killed processes left there for `target` go first.

    Raises:
        OSError: The folder of `target` may not be written.
    """
    place = Path(target)
    for left in _left_by_others(place):
        _clear(left, place)
    work, lock = _locked_folder(place)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _left_by_others(place: Path) -> list[Path]:
    pattern = re.compile(re.escape(f".{place.name}.") + "[a-z0-9_]{8}")  # what mkdtemp makes
    try:
        return [folder for folder in place.parent.iterdir() if pattern.fullmatch(folder.name)]
    except OSError:  # a folder may be written without being readable
        return []


def _locked_folder(place: Path) -> tuple[Path, int | None]:
    """A folder of our own; one that another process took for abandoned, before it was locked, is made anew."""
    while True:
        work = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
        lock = _lock(work, wait=True)
        if work.exists():
            return work, lock
        if lock is not None:
            os.close(lock)


def _clear(folder: Path, place: Path) -> None:
    """Remove a folder that nobody holds, and what its owner had put beside the target for a target that never came."""
    if not _is_ours(folder) or (lock := _lock(folder, wait=False)) is None:
        return
    try:
        if (folder / COMPANION).is_file() and (folder / place.name).exists():
            name = (folder / COMPANION).read_text(encoding="utf-8")
            (place.parent / Path(name).name).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _is_ours(folder: Path) -> bool:
    """Whether it is a folder, no link to one, and the user's own: others may write to a shared place."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == getattr(os, "getuid", lambda: found.st_uid)()


def _lock(folder: Path, *, wait: bool) -> int | None:
    """The lock of a folder, as an open file; None if another process has it, or there are no locks here."""
    try:
        import fcntl  # noqa: PLC0415  # not on every system
    except ImportError:
        return None
    handle = None
    try:
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        if handle is not None:
            os.close(handle)
        return None
    return handle
