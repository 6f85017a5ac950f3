"""Latency of merged branches beside the class's own reparameterised export: `python -m benchmarks.reparameterised`.

For each network: the training-time graph, what bnfold makes of it, and what the class itself makes of it (timm's
`reparameterize_model`). All are timed in turn in one run; the figures are ratios of medians within it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch

import bnfold
from tests.zoo.exporting import INPUT, export_torchscript
from tests.zoo.lively import enliven
from tests.zoo.vision import timm_network

NETWORKS = ("mobileone_s0", "repvgg_a0", "fastvit_t8", "repvit_m0_9")
LEVELS = {
    "DISABLE_ALL": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "ENABLE_ALL": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def three_models(name: str, size: int) -> list[onnx.ModelProto]:
    """The network as it was trained, folded by bnfold, and reparameterised by its own class."""
    torch.manual_seed(0)
    network = timm_network(name)
    from timm.utils.model import reparameterize_model  # noqa: PLC0415  # after timm_network, which prepares the import

    images = torch.randn(4, 3, size, size)
    enliven(network, images, seed=0)
    trained = export_torchscript(network, images[:1])
    folded = ir.to_proto(bnfold.fold(ir.from_proto(trained)).model)
    own = export_torchscript(reparameterize_model(network), images[:1], fold=True)
    return [trained, folded, own]


def count(model: onnx.ModelProto, kind: str) -> int:
    """How many operators of a kind there are."""
    return sum(node.op_type == kind for node in model.graph.node)


def medians(models: Sequence[onnx.ModelProto], level: str, size: int, runs: int, threads: int) -> list[float]:
    """Median seconds of one run of each model, the models taking turns."""
    options = ort.SessionOptions()
    options.graph_optimization_level, options.intra_op_num_threads = LEVELS[level], threads
    options.log_severity_level = 3
    sessions = [
        ort.InferenceSession(m.SerializeToString(), options, providers=["CPUExecutionProvider"]) for m in models
    ]
    feeds = {INPUT: np.random.default_rng(0).standard_normal((1, 3, size, size)).astype(np.float32)}
    taken: list[list[float]] = [[] for _ in models]
    for turn in range(runs + 3):
        for session, seconds in zip(sessions, taken, strict=True):
            start = time.perf_counter()
            session.run(None, feeds)
            if turn >= 3:  # warm
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in taken]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reparameterised", description=__doc__)
    parser.add_argument("--size", type=int, default=224, help="height and width of the image")
    parser.add_argument("--runs", type=int, default=30, help="timed runs of each model")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    print("| network | BN left | Conv: trained, bnfold, own | level | bnfold / own | bnfold / trained |")
    print("|---|---:|---|---|---:|---:|")
    for name in NETWORKS:
        models = three_models(name, args.size)
        left = count(models[1], "BatchNormalization")
        convs = ", ".join(str(count(m, "Conv")) for m in models)
        for level in LEVELS:
            trained, ours, own = medians(models, level, args.size, args.runs, args.threads)
            print(f"| {name} | {left} | {convs} | {level} | {ours / own:.3f} | {ours / trained:.3f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
