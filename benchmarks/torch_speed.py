"""Eager inference of PyTorch modules before and after the fold, as ratios: `python -m benchmarks.torch_speed`.

Both take turns in one process, the one that begins alternates. Each figure is the median over rounds of
`time(folded) / time(original)` within a round, with the quartiles. On a loaded machine the wall clock also measures the
neighbours; the CPU time of the thread, which is there with one thread only, does not.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

import bnfold
from benchmarks.coverage_build import enlivened
from benchmarks.torch_made import calls
from benchmarks.torch_nets import BY_NAME

NETWORKS = ("resnet18", "mobilenetv3_small_100", "efficientnet_b0", "repvgg_a0", "yolov8n")
#: Runs of each before anything is measured.
WARM = 3


def ratios(
    pair: tuple[nn.Module, nn.Module], images: Tensor, rounds: int, clocks: Sequence[Callable[[], float]]
) -> list[list[float]]:
    """time(second) / time(first) of every round, by clock."""
    found: list[list[float]] = [[] for _ in clocks]
    for turn in range(-WARM, rounds):
        order = (0, 1) if turn % 2 else (1, 0)
        taken = {which: _seconds(pair[which], images, clocks) for which in order}
        if turn >= 0:
            for ours, before, after in zip(found, taken[0], taken[1], strict=True):
                ours.append(after / before)
    return found


def _seconds(module: nn.Module, images: Tensor, clocks: Sequence[Callable[[], float]]) -> list[float]:
    """What one run takes by each clock; the images stay on their device, which must have finished at the end."""
    start = [clock() for clock in clocks]
    with torch.inference_mode():
        module(images)
        if images.is_cuda:
            torch.cuda.synchronize()
    return [clock() - begun for clock, begun in zip(clocks, start, strict=True)]


def row(name: str, given: argparse.Namespace, clocks: Sequence[Callable[[], float]]) -> str:
    """One row of the table."""
    module, _ = enlivened(replace(BY_NAME[name], size=64))
    images = torch.randn(given.batch, 3, given.size, given.size)
    folded = bnfold.fold(module, example_inputs=(images[:2],), verify=False).module  # benchmarks.torch_folders checks
    counts = [calls(part, images) for part in (module, folded)]
    module, folded, images = (part.to(given.device) for part in (module, folded, images))
    cells = []
    for found in ratios((module, folded), images, given.rounds, clocks):
        low, middle, high = np.quantile(found, [0.25, 0.5, 0.75])
        cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
    return f"| {name} | {counts[0]} → {counts[1]} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Eager inference before and after the fold.")
    parser.add_argument("--size", type=int, default=128, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=1, help="images in a run")
    parser.add_argument("--rounds", type=int, default=60, help="timed rounds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="where to run: cpu, cuda")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    clocks: dict[str, Callable[[], float]] = {"wall clock": time.perf_counter}
    if given.threads == 1 and given.device == "cpu":
        clocks["CPU time"] = time.thread_time
    print(f"torch {torch.__version__}, {given.device}, {given.threads} thread(s), batch {given.batch}, ", end="")
    print(f"{given.size} x {given.size}, {given.rounds} rounds; folded / original, median (quartiles)\n")
    print(f"| network | BN | {' | '.join(clocks)} |\n|---|---:|{'---:|' * len(clocks)}", flush=True)
    for name in NETWORKS:
        print(row(name, given, list(clocks.values())), flush=True)


if __name__ == "__main__":
    main()
