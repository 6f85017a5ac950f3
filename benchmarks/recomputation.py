"""Whether running levels again would be cheaper than the temporary file, where nothing fits the memory.

    python -m benchmarks.recomputation [--network resnet50 ...] [--samples 16] [--size 64] [--rounds 3]

Each level's segment is timed on one batch, and so is writing what it leaves to the temporary folder and reading it back
(flushed to the disk, and read with the pages of the file let go, where the system allows that). From these figures the
best mix is computed: a level whose file is left out is run again, from the last one that was written, each time that a
later level needs it. The table gives what the mix saves of the whole, at the measured speed of the disk and at others.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bnfold.frontends.onnx_observe import OnnxObservable
from bnfold.observation import State
from bnfold.runtime import open_segment
from tests.zoo import load

#: Bytes a second: a hard disk, a SATA SSD, an NVMe SSD.
DISKS = {"150 MB/s": 150e6, "500 MB/s": 500e6, "2 GB/s": 2e9}


@dataclass(frozen=True)
class Level:
    """One level, for one batch.

    Attributes:
        seconds: To run its segment.
        bytes: What it leaves.
    """

    seconds: float
    bytes: int


def levels_of(network: str, samples: int, size: int, rounds: int) -> list[Level]:
    """Every level, timed; the best of several rounds."""
    model = ir.from_proto(load(network).proto)
    observable = OnnxObservable(model, open_segment)
    name = observable.proto.graph.input[0].name
    state: State = {name: np.random.default_rng(0).standard_normal((samples, 3, size, size)).astype(np.float32)}
    old = {(s, call): site.old for s, site in enumerate(observable.sites) for call in range(len(site.calls))}
    found = []
    for level in range(len(observable.levels)):
        segment, taken = observable.cut(level), []
        for _ in range(rounds):
            start = time.perf_counter()
            _, rest = segment.reduce(state, old)
            taken.append(time.perf_counter() - start)
        found.append(Level(min(taken), sum(array.nbytes for array in rest.values())))
        state = rest
    return found


def disk_rate(size: int = 1 << 28) -> float:
    """Bytes a second, there and back: size / (seconds to write + seconds to read)."""
    array = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    with tempfile.TemporaryFile(buffering=0) as file:
        start = time.perf_counter()
        file.write(array.data)
        os.fsync(file.fileno())
        written = time.perf_counter() - start
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        start = time.perf_counter()
        file.readinto(array.data)  # type: ignore[attr-defined]
        return size / (written + time.perf_counter() - start)


def seconds(levels: Sequence[Level], rate: float, *, may_run_again: bool) -> float:
    """The whole for one batch: the best choice of levels whose file is written, by dynamic programming.

    `best[k]`: the first k levels are done and what level k leaves is on disk.
    """
    there_and_back = [0.0, *(level.bytes / rate for level in levels)]  # the user's data is there anyhow
    best = [0.0] + [float("inf")] * len(levels)
    for k in range(len(levels)):
        furthest = len(levels) if may_run_again else k + 1
        for end in range(k + 1, furthest + 1):
            runs = sum((end - j) * levels[j].seconds for j in range(k, end))
            again = (end - k - 1) * there_and_back[k] / 2  # what lies at k is read once more for each further level
            best[end] = min(best[end], best[k] + runs + again + there_and_back[end])
    return best[-1]


def main() -> None:
    """Print a row for each network and disk."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", nargs="+", default=["resnet50", "shufflenet_v2", "darknet53"])
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rate = disk_rate()
    print(f"this disk, there and back: {rate / 1e6:.0f} MB/s")
    for network in options.network:
        levels = levels_of(network, options.samples, options.size, options.rounds)
        once, kept = sum(level.seconds for level in levels), sum(level.bytes for level in levels)
        print(f"{network}: {len(levels)} levels, {once:.2f} s in all, leaving {kept / 2**20:.0f} MiB")
        for disk, speed in {"this disk": rate, **{name: speed / 2 for name, speed in DISKS.items()}}.items():
            spilled, mixed = (seconds(levels, speed, may_run_again=again) for again in (False, True))
            print(f"  {disk:>9}: {spilled / once:.2f} times that with the file, {mixed / once:.2f} with the best mix")


if __name__ == "__main__":
    main()
