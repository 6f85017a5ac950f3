"""What a recalibration costs: its wall time as a multiple of one plain pass over the same data, and its memory.

    python -m benchmarks.recalibration [--network resnet50 model.onnx ...] [--samples 64] [--size 64] [--memory MIB]

All run on onnxruntime with the same threads, in one process; the best of several rounds counts, taken in turns. A plain
pass opens its session anew too, because a recalibration opens one for each level. It is timed without onnxruntime's
optimiser, as recalibration runs, and with it, as people deploy.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

import bnfold
from bnfold.runtime import open_session
from tests.zoo import load

BATCH = 16


def seconds_plain(proto: onnx.ModelProto, batches: list[NDArray[np.float32]], *, optimised: bool = False) -> float:
    """One pass, all outputs."""
    start = time.perf_counter()
    session = open_session(proto, optimised=optimised)
    names = [value.name for value in proto.graph.output]
    for batch in batches:
        session.run(names, {proto.graph.input[0].name: batch})
    return time.perf_counter() - start


def seconds_recalibration(
    model: ir.Model, batches: list[NDArray[np.float32]], method: str, memory: int
) -> tuple[float, bnfold.RecalibrationReport]:
    """The whole call, and what it reports."""
    start = time.perf_counter()
    report = bnfold.recalibrate(model, batches, method=method, memory=memory).report
    return time.perf_counter() - start, report


def measure(name: str, samples: int, size: int, rounds: int, memory: int) -> None:
    """Print one line for each method."""
    proto = onnx.load(name) if name.endswith(".onnx") else load(name).proto
    images = np.random.default_rng(0).standard_normal((samples, 3, size, size))
    batches = [images[i : i + BATCH].astype(np.float32) for i in range(0, samples, BATCH)]
    model = ir.from_proto(proto)
    plain, optimised = [], []
    taken: dict[str, list[float]] = {"sequential": [], "batch": []}
    report = None
    for _ in range(rounds):
        plain.append(seconds_plain(proto, batches))
        optimised.append(seconds_plain(proto, batches, optimised=True))
        for method, times in taken.items():
            seconds, report = seconds_recalibration(model, batches, method, memory)
            times.append(seconds)
    print(f"{name}, {samples} images of {size} pixels: plain pass {min(plain):.2f} s, optimised {min(optimised):.2f} s")
    for method, times in taken.items():
        ratios = f"{min(times) / min(plain):.2f} times the plain pass, {min(times) / min(optimised):.2f} the optimised"
        print(f"{method}: {min(times):.2f} s, {ratios}")
    assert report is not None
    print(f"activations between two levels: {report.footprint}", flush=True)


def main() -> None:
    """Measure each network."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", nargs="+", default=["resnet50", "darknet53"])
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, default=1024, help="MiB of activations to hold in memory")
    options = parser.parse_args()
    for name in options.network:
        measure(name, options.samples, options.size, options.rounds, options.memory << 20)


if __name__ == "__main__":
    main()
