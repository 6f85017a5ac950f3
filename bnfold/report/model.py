"""What happened to one model, as frozen values: the decisions, the check, and the sizes before and after."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bnfold.affine import Float64Array
from bnfold.decision import Decision, Folded, Kept, Reduced
from bnfold.flops import Flops
from bnfold.report.bench_report import BenchReport
from bnfold.report.recalibration_report import RecalibrationReport
from bnfold.verification import Verification


@dataclass(frozen=True)
class Size:
    """How large a model is.

    Attributes:
        nodes: Operators, those of bodies among them, and those of a function once for each call of it.
        batchnorms: BatchNormalization operators among them.
        bytes: Bytes of all initializers.
        parameters: Numbers in them; None where they were not counted.
        flops: What a run computes; None where that was not counted.
        file: Bytes on the disk, with the data that lies beside an ONNX file; None where there is no file.
    """

    nodes: int
    batchnorms: int
    bytes: int
    parameters: int | None = None
    flops: Flops | None = None
    file: int | None = None


@dataclass(frozen=True)
class ScaleSpread:
    """The scales `gamma / sqrt(var + epsilon)` of the channels of one BatchNorm.

    Attributes:
        name: The BatchNorm's name.
        channels: How many channels it has.
        negative: How many scales are below zero.
        zero: How many are zero.
        quantiles: Of their absolute values the smallest, the quartiles with the median, and the largest.
    """

    name: str
    channels: int
    negative: int
    zero: int
    quantiles: tuple[float, float, float, float, float]

    @classmethod
    def of(cls, name: str, scale: Float64Array) -> ScaleSpread:
        """The spread of `scale`, of shape (channels,)."""
        sizes, places = np.sort(np.abs(scale)), np.linspace(0, scale.size - 1, 5).round().astype(int)
        low, first, median, third, high = (float(size) for size in sizes[places])  # no mean of infinite ones
        signs = int((scale < 0).sum()), int((scale == 0).sum())
        return cls(name, int(scale.size), *signs, (low, first, median, third, high))


@dataclass(frozen=True)
class Report:
    """What `inspect` would do, or `fold` did.

    Attributes:
        model: The model's file name without its folder, or its graph's name.
        decisions: One for each BatchNorm, and each constant chain that is one in disguise, in topological order.
        before: The size of the original.
        after: The size of the folded model; None for `inspect`.
        verification: The check; None for `inspect`, or where the caller asked for none.
        notes: What else was done, one sentence each: inputs dropped, weights cloned, constants uncovered.
        scales: How the scales of each BatchNorm with channels were spread before anything was folded.
        recalibration: What was recalibrated before the fold; None where nothing was.
        bench: How fast both models are; None where that was not measured.
    """

    model: str
    decisions: tuple[Decision, ...]
    before: Size
    after: Size | None = None
    verification: Verification | None = None
    notes: tuple[str, ...] = ()
    scales: tuple[ScaleSpread, ...] = ()
    recalibration: RecalibrationReport | None = None
    bench: BenchReport | None = None

    @property
    def folded(self) -> tuple[Folded, ...]:
        """The decisions that left nothing behind."""
        return tuple(d for d in self.decisions if isinstance(d, Folded))

    @property
    def reduced(self) -> tuple[Reduced, ...]:
        """The decisions that left something cheaper."""
        return tuple(d for d in self.decisions if isinstance(d, Reduced))

    @property
    def kept(self) -> tuple[Kept, ...]:
        """The decisions that changed nothing."""
        return tuple(d for d in self.decisions if isinstance(d, Kept))

    @property
    def kept_batchnorms(self) -> tuple[Kept, ...]:
        """The BatchNorms by name that stayed; what `--require-all` objects to."""
        return tuple(d for d in self.kept if d.subject.is_batchnorm)
