"""What a recalibration keeps between two levels of a model, before it starts: how much in memory, how much on disk.

`Frontier` holds what fits its budget, and each batch takes its place from one level to the next; the two files that it
writes in turns are there at the same time.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from bnfold.errors import MachineError
from bnfold.sizes import data_size

#: Bytes of the values that one batch leaves behind each level; None where that is not known.
Levels = Sequence[Sequence[int | None]]


@dataclass(frozen=True)
class Footprint:
    """The largest amounts at any time, in bytes; what is not known beforehand is not in them.

    Attributes:
        batch: Of one batch, behind the level that leaves most.
        held: In memory, for all batches; None where their number is not known.
        spilled: In temporary files; None as well.
        is_whole: Whether all sizes are known.
    """

    batch: int
    held: int | None
    spilled: int | None
    is_whole: bool

    def __str__(self) -> str:
        """`about 1.0 GiB of activations in memory and 3.2 GiB on disk`, as not all batches need be equally large."""
        bound = "about" if self.is_whole else "at least"
        if self.held is None or self.spilled is None:
            return f"{bound} {data_size(self.batch)} of activations for each batch"
        disk = f" and {data_size(self.spilled)} on disk" if self.spilled else ""
        return f"{bound} {data_size(self.held)} of activations in memory{disk}"


def footprint(levels: Levels, batches: int | None, memory: int) -> Footprint:
    """What `Frontier` will need.

    Args:
        levels: Sizes by level, in the order in which the values are put.
        batches: How many batches of that size there are; None if that is not known.
        memory: Bytes that may be held.
    """
    is_whole = all(size is not None for level in levels for size in level)
    known = [[size or 0 for size in level] for level in levels]
    batch = max(map(sum, known), default=0)
    if batches is None:
        return Footprint(batch, None, None, is_whole)
    return Footprint(batch, *_simulated(known, batches, memory), is_whole)


def _simulated(levels: Sequence[Sequence[int]], batches: int, memory: int) -> tuple[int, int]:
    """The largest sums of what is held and of what lies in both files, level after level and batch after batch."""
    most_held = most_spilled = held = written = 0
    before = [0] * batches  # what is held of each batch
    for level in levels:
        read, written = written, 0
        for i in range(batches):
            held -= before[i]
            before[i] = 0
            for size in level:
                if size <= memory - held:
                    held += size
                    before[i] += size
                else:
                    written += size
            most_held = max(most_held, held)
        most_spilled = max(most_spilled, read + written)
    return most_held, most_spilled


def demand_room(need: Footprint) -> None:
    """Refuse what must fail, as far as the system tells how much there is.

    Raises:
        MachineError: The disk has less space, or the machine less memory.
    """
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if need.spilled and need.spilled > free:
        raise MachineError(
            f"{data_size(need.spilled)} of activations would go to disk, and {data_size(free)} are free there",
            where=folder,
            remedy="give --memory more or take fewer --samples, or name another folder in TMPDIR",
        )
    memory = _memory()
    if memory is not None and max(need.held or 0, need.batch) > memory:
        raise MachineError(
            f"the activations take {data_size(max(need.held or 0, need.batch))} of memory, and the machine has "
            f"{data_size(memory)}",
            remedy="give --memory less, and what is beyond goes to disk"
            if need.batch <= memory
            else "make the batches smaller: --batch-size",
        )


def _memory() -> int | None:
    """Bytes of memory of the machine; None where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
