"""`torchrun ... -m bnfold`: which of several processes this one is, by torch's environment, and who of them speaks.

Process 0 writes and prints. Where it cannot say what went wrong, because it is gone, one of the others does. Nobody
ends before that is said, as torchrun kills the rest with the first one that fails.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bnfold.errors import MachineError, MissingPackageError

if TYPE_CHECKING:
    from bnfold.processes import Processes

#: Seconds that the others give process 0 to say what is wrong; and the store, to answer.
_PATIENCE = 5.0

_SAID, _SPEAKER = "bnfold.said", "bnfold.speaker"


@dataclass(frozen=True)
class Place:
    """This process among those that one command has started.

    Attributes:
        rank: Which one it is.
        size: How many there are.
    """

    rank: int
    size: int


class _Ended(BaseException):
    """torchrun ends this process; no Exception, so that nobody on the way out takes it for one of its own."""


def place() -> Place | None:
    """Where this process stands; None if it is the only one."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    given = [os.environ.get(name, "") for name in names]
    if not all(given) or not (given[0].isdecimal() and given[1].isdecimal()) or int(given[1]) < 2:
        return None
    return Place(int(given[0]), int(given[1]))


def is_first() -> bool:
    """Whether this process writes and prints."""
    here = place()
    return here is None or here.rank == 0


@contextmanager
def joined(timeout: float) -> Iterator[Processes | None]:
    """This process with its siblings, for the time of one command; None if there are none.

    Raises:
        MachineError: They do not come together, or torchrun ends this process because another one has failed.
        MissingPackageError: There are several, and torch is not installed.
    """
    if place() is None:
        yield None
        return
    dist = _distributed()
    from datetime import timedelta  # noqa: PLC0415

    from bnfold.processes import Processes  # noqa: PLC0415

    with _ended_by_torchrun():
        try:
            try:
                dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
            except Exception as error:  # the store and gloo raise errors of many kinds
                raise MachineError(
                    f"the processes of this run have not come together within {timeout:g} seconds",
                    remedy="start all of them with torchrun",
                ) from error
            yield Processes(timeout)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


@contextmanager
def _ended_by_torchrun() -> Iterator[None]:
    """SIGTERM as a MachineError, wherever it comes."""
    before = signal.signal(signal.SIGTERM, _end)
    try:
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
    except _Ended as error:
        raise MachineError("the run was ended, because another of its processes has failed") from error


def may_speak() -> bool:
    """Whether this process says what is wrong: process 0 at once, another one if none has said it in a while."""
    if is_first():
        return True
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # until it is said
    try:
        store = _store()
        end = time.monotonic() + _PATIENCE
        while not store.check([_SAID]):
            if time.monotonic() > end:
                return bool(store.add(_SPEAKER, 1) == 1)
            time.sleep(0.05)
    except Exception:  # no store, so nobody to ask: process 0 holds it, or torchrun is gone
        return False
    return False


def said() -> None:
    """It is said: the others may end."""
    if place() is None:
        return
    try:
        _store().set(_SAID, "yes")
    except Exception:  # as above
        return


def _store() -> Any:
    """The store through which torchrun's processes find each other; it outlives them."""
    from datetime import timedelta  # noqa: PLC0415

    store = _distributed().TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=timedelta(seconds=_PATIENCE),
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return _distributed().PrefixStore(f"bnfold/{attempt}", store)


def _distributed() -> Any:
    try:
        import torch.distributed as dist  # noqa: PLC0415
    except ImportError as error:
        raise MissingPackageError(
            "several processes talk through torch.distributed", remedy="pip install torch"
        ) from error
    return dist


def _end(_signal: int, _frame: object) -> None:
    raise _Ended
