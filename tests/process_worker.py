"""What each process of `test_processes.py` runs: recalibrations together with the others; its results are a file."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.distributed as dist
from onnx_models import parse
from recalibration_cases import CASES
from torch import nn

import bnfold

Array = np.ndarray[Any, Any]


def arrays(count: int = 7, *, broken: int | None = None) -> Iterator[Array]:
    """Batches of 6, the last one smaller; one of them may hold a NaN."""
    generator = np.random.default_rng(4)
    for number in range(count):
        batch = (3 + generator.standard_normal((2 if number == count - 1 else 6, 4, 6, 6))).astype(np.float32)
        if number == broken:
            batch[1] = np.nan
        yield batch


def module() -> nn.Module:
    torch.manual_seed(0)
    parts = [nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)]
    return nn.Sequential(*parts).eval()


def of_onnx(data: Any, **options: Any) -> list[Array]:
    """The new statistics of an ONNX model, and how many samples they are of."""
    return statistics(bnfold.recalibrate(ir.from_proto(parse(CASES["a chain"].text)), data, **options))


def of_module(data: Any, **options: Any) -> list[Array]:
    return statistics(bnfold.recalibrate(module(), data, example_inputs=(torch.zeros(2, 4, 6, 6),), **options))


def statistics(result: bnfold.RecalibrationResult[Any]) -> list[Array]:
    entries = sorted(result.report.recalibrated, key=lambda entry: entry.name)
    counted = np.array([result.report.samples, result.report.batches])
    return [counted, *(x for e in entries for x in (e.new.mean, e.new.variance))]


def error_of(run: Any, *given: Any, **options: Any) -> str:
    try:
        run(*given, **options)
    except bnfold.BnfoldError as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank, everybody = dist.get_rank(), bnfold.Processes(timeout=120)
    found: dict[str, Any] = {}
    found["module"] = of_module(list(arrays()), processes=everybody)
    found["onnx"] = of_onnx(list(arrays()), processes=everybody)
    found["module, batch"] = of_module(list(arrays()), processes=everybody, method="batch")
    found["onnx, nothing for one"] = of_onnx(list(arrays(2)), processes=everybody)
    found["ema"] = error_of(of_onnx, list(arrays()), processes=everybody, method="ema")
    found["not a number"] = error_of(of_module, list(arrays(broken=4)), processes=everybody)
    shaped = [x[:, :3] if i == 5 and rank == 2 else x for i, x in enumerate(arrays())]
    found["another shape"] = error_of(of_onnx, shaped, processes=everybody)
    found["too large"] = error_of(of_onnx, [np.full((6, 4, 6, 6), 3e38, np.float32)], processes=everybody)
    found["other work"] = error_of(of_onnx, list(arrays()), processes=everybody, bessel=rank == 1)
    found["in the end"] = of_module(list(arrays()), processes=everybody)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
