"""Recalibration as the first step of a fold: the data, and how statistics are computed from it, in one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import onnx_ir as ir

from bnfold.batches import Data
from bnfold.frontier import DEFAULT_MEMORY
from bnfold.recalibrating import recalibrate
from bnfold.report.recalibration_report import RecalibrationReport


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


def calibrated(  # noqa: PLR0913, PLR0917
    model: ir.Model,
    name: str,
    wish: Calibration | Data | None,
    only: str | None,
    keep: str | None,
    progress: Callable[[str], None] | None,
) -> tuple[ir.Model, RecalibrationReport | None]:
    """The model with new statistics, and what moved; the model itself and None where nothing was wished for.

    Args:
        model: The model, which stays as it is.
        name: What it is called in the report.
        wish: The data, or a `Calibration`, which also says how.
        only: As `recalibrate`, and so are the others, and the errors.
        keep: Excludes by name.
        progress: Told what is being done.
    """
    if wish is None:
        return model, None
    how = wish if isinstance(wish, Calibration) else Calibration(wish)
    result = recalibrate(
        model,
        how.data,
        method=how.method,
        momentum=how.momentum,
        bessel=how.bessel,
        memory=how.memory,
        force=how.force,
        unshare=how.unshare,
        keep=keep,
        only=only,
        progress=progress,
    )
    return result.model, replace(result.report, model=name)
