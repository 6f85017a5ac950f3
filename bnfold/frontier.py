"""The activations of all batches between two parts of a model: in memory up to a budget, beyond it in a temporary file.

The file has no name where the system allows that, so it is gone with the process, however that ends.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from bnfold.errors import MachineError
from bnfold.observation import State

#: 1 GiB.
DEFAULT_MEMORY = 1 << 30


@dataclass(frozen=True)
class _Spilled:
    """Where in the file an array is."""

    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Frontier:
    """A queue of states: what was put since the last `turn` comes out at the next one, each once, in order.

    Attributes:
        spilled: Bytes that have been written to disk so far.

    Args:
        memory: Bytes of arrays to hold in memory.
    """

    def __init__(self, memory: int = DEFAULT_MEMORY) -> None:
        self.spilled = 0
        self._budget = memory
        self._held: deque[Mapping[str, Any]] = deque()
        self._files: list[IO[bytes] | None] = [None, None]  # the one that is read, the one that is written

    def __enter__(self) -> Frontier:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.clear()
        for file in self._files:
            if file is not None:
                file.close()

    def put(self, state: State) -> None:
        """Hold a state until the next turn but one.

        Raises:
            MachineError: The disk is full, or the temporary folder cannot be written.
        """
        self._held.append({name: self._stored(value) for name, value in state.items()})

    def turn(self) -> Iterator[State]:
        """What was put since the last turn; each state is let go when the next one is asked for."""
        held, self._held = self._held, deque()
        self._files.reverse()
        while held:
            yield self._loaded(held.popleft())
        if (file := self._files[0]) is not None:
            file.seek(0)
            file.truncate()

    def _stored(self, value: Any) -> Any:
        size = _size(value)
        if size <= self._budget or not isinstance(value, np.ndarray) or value.dtype.hasobject:
            self._budget -= size
            return value
        try:
            return self._spill(value)
        except OSError as error:
            raise MachineError(
                f"the activations cannot be kept on disk: {error.strerror}",
                where=tempfile.gettempdir(),
                remedy="free some space, name another folder in TMPDIR, or give --memory more",
            ) from error

    def _spill(self, array: np.ndarray[Any, Any]) -> _Spilled:
        file = self._files[1]
        if file is None:
            file = self._files[1] = tempfile.TemporaryFile(prefix="bnfold-", buffering=0)  # noqa: SIM115  # closed at exit
        offset = file.seek(0, 2)
        _write(file, memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data))
        self.spilled += array.nbytes
        return _Spilled(offset, array.dtype, array.shape)

    def _loaded(self, held: Mapping[str, Any]) -> State:
        return {name: self._read(v) if isinstance(v, _Spilled) else self._released(v) for name, v in held.items()}

    def _released(self, value: Any) -> Any:
        self._budget += _size(value)
        return value

    def _read(self, spilled: _Spilled) -> np.ndarray[Any, Any]:
        file = self._files[0]
        assert file is not None
        array = np.empty(spilled.shape, spilled.dtype)
        file.seek(spilled.offset)
        rest = memoryview(array.reshape(-1).view(np.uint8).data)
        while rest:
            rest = rest[file.readinto(rest) :]  # type: ignore[attr-defined]  # a raw file has it
        return array


def _write(file: IO[bytes], rest: memoryview) -> None:
    """All of it: a raw file may take less at once."""
    while rest:
        rest = rest[file.write(rest) :]


def _size(value: Any) -> int:
    """Bytes of an array, or of a sequence of arrays."""
    if isinstance(value, np.ndarray):
        return int(value.nbytes)
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 0
