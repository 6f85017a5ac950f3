"""Recalibration as the first step of a fold: the data, and how statistics are computed from it, in one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, overload

import onnx_ir as ir

from bnfold.batches import Data
from bnfold.frontends.torch_arguments import Arguments
from bnfold.frontier import DEFAULT_MEMORY
from bnfold.processes import Processes
from bnfold.recalibrating import RecalibrationResult, recalibrate
from bnfold.report.recalibration_report import RecalibrationReport

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, eq=False)
class Calibration:
    """What `bnfold.fold` recalibrates on before it folds, and how: the arguments of `bnfold.recalibrate`.

    Attributes:
        data: The samples.
        method: "sequential", "batch" or "ema".
        momentum: Of "ema", the weight of a new batch.
        bessel: Divide by n - 1.
        memory: Bytes of activations to hold in memory.
        force: Compute statistics from fewer than 32 values in a channel.
        unshare: "none", "dependent" or "all".
    """

    data: Data
    method: str = "sequential"
    momentum: float = 0.1
    bessel: bool = False
    memory: int = DEFAULT_MEMORY
    force: bool = False
    unshare: str = "none"


@dataclass(frozen=True)
class Choice:
    """Which BatchNorms, by name, and who takes part: further arguments of `bnfold.recalibrate`.

    Attributes:
        only: A regular expression; what it does not find in a name keeps its statistics.
        keep: A regular expression; what it finds in a name does.
        processes: That this is one of several processes.
        progress: Told what is being done.
    """

    only: str | None = None
    keep: str | None = None
    processes: Processes | None = None
    progress: Callable[[str], None] | None = None


@overload
def calibrated(
    model: ir.Model, name: str, how: Calibration, choice: Choice
) -> tuple[ir.Model, RecalibrationReport]: ...


@overload
def calibrated(
    model: nn.Module, name: str, how: Calibration, choice: Choice, example: Arguments | None
) -> tuple[nn.Module, RecalibrationReport]: ...


def calibrated(
    model: ir.Model | nn.Module,
    name: str,
    how: Calibration,
    choice: Choice,
    example: Arguments | None = None,
) -> tuple[ir.Model | nn.Module, RecalibrationReport]:
    """The model with new statistics, and what moved.

    Args:
        model: The model, which stays as it is.
        name: What it is called in the report.
        how: The data, and how statistics are computed.
        choice: Of which BatchNorms.
        example: What the forward pass of a PyTorch module takes.

    Raises:
        BnfoldError: As `recalibrate`.
    """
    run: Callable[..., RecalibrationResult[Any]] = recalibrate  # of either kind of model
    result = run(
        model,
        how.data,
        example_inputs=None if example is None else example.args,
        example_kwargs=None if example is None else example.kwargs,
        method=how.method,
        momentum=how.momentum,
        bessel=how.bessel,
        memory=how.memory,
        force=how.force,
        unshare=how.unshare,
        keep=choice.keep,
        only=choice.only,
        processes=choice.processes,
        progress=choice.progress,
    )
    return result.model, replace(result.report, model=name)


def as_calibration(wish: Calibration | Data) -> Calibration:
    """The data, or a `Calibration`, which also says how, as a `Calibration`."""
    return wish if isinstance(wish, Calibration) else Calibration(wish)
