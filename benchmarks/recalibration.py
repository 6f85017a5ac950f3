"""What a recalibration costs: its wall time as a multiple of one plain pass over the same data.

    python -m benchmarks.recalibration [--network resnet50] [--samples 64] [--size 64] [--rounds 3]

Both run on onnxruntime without its optimiser, with the same threads, in one process; the best of several rounds counts,
taken in turns. The plain pass opens its session anew too, because a recalibration opens one for each level.
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


def seconds_plain(proto: onnx.ModelProto, batches: list[NDArray[np.float32]]) -> float:
    """One pass, all outputs."""
    start = time.perf_counter()
    session = open_session(proto)
    names = [value.name for value in proto.graph.output]
    for batch in batches:
        session.run(names, {proto.graph.input[0].name: batch})
    return time.perf_counter() - start


def seconds_recalibration(model: ir.Model, batches: list[NDArray[np.float32]], method: str) -> float:
    """The whole call."""
    start = time.perf_counter()
    bnfold.recalibrate(model, batches, method=method)
    return time.perf_counter() - start


def main() -> None:
    """Print one line for each method."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    network = load(options.network)
    images = np.random.default_rng(0).standard_normal((options.samples, 3, options.size, options.size))
    batches = [images[i : i + BATCH].astype(np.float32) for i in range(0, options.samples, BATCH)]
    proto, model = network.proto, ir.from_proto(network.proto)
    plain, taken = [], {"sequential": [], "batch": []}  # type: tuple[list[float], dict[str, list[float]]]
    for _ in range(options.rounds):
        plain.append(seconds_plain(proto, batches))
        for method, times in taken.items():
            times.append(seconds_recalibration(model, batches, method))
    print(f"{options.network}, {options.samples} images of {options.size} pixels: plain pass {min(plain):.2f} s")
    for method, times in taken.items():
        print(f"{method}: {min(times):.2f} s, {min(times) / min(plain):.2f} times the plain pass")


if __name__ == "__main__":
    main()
