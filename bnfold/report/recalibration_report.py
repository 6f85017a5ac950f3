"""What a recalibration did, as a value and as JSON, the same bytes for the same result.

Version 1:

    schema_version  1; a key that goes or changes its meaning raises it, a new key does not
    model           file name without its folder, or the graph's name
    method          "sequential", "batch" or "ema"
    momentum        the weight of a new batch; null unless the method is "ema"
    variance        "population" or "bessel"
    samples, batches  what was read
    recalibrated    a list by falling drift, of
        name, calls     the node, and all nodes that share its statistics
        channels, samples  how many, and the values in each that the statistics were computed from
        epsilon
        drift           {max, rms}: of the means of the channels, in old standard deviations
        variance_ratio  {min, max}: new variance over old one, epsilon added to both
        dead            channels that kept their old statistics
        old, new        {mean, variance}: a list each, one number per channel
    left            a list in the order of the model, of {name, hindrance, clause, detail}
    footprint       {batch, held, spilled, is_whole}: the largest number of bytes kept between two levels, as estimated
                    from the first batch: of one batch, of all in memory, of all on disk (null, null where the number of
                    batches was not known), and whether all sizes were known; null if there is no estimate
    notes           a list of sentences

JSON has no infinity: a figure that is not finite is the string "Infinity", "-Infinity" or "NaN".
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from bnfold.report.figures import Json, figure, text

if TYPE_CHECKING:
    from bnfold.drift import Left, Recalibrated, Statistics
    from bnfold.footprint import Footprint
    from bnfold.recalibration import Settings

SCHEMA_VERSION = 1


@dataclass(frozen=True, eq=False)
class RecalibrationReport:
    """What a recalibration did.

    Attributes:
        model: File name or graph name.
        settings: How the statistics were computed.
        samples: How many samples were read.
        batches: In how many batches.
        recalibrated: BatchNorms with new statistics, the one that drifted most first.
        left: BatchNorms that keep theirs, and why.
        notes: Whatever else the user should know.
        footprint: What was kept between two levels, as far as it was known before; None where it was not.
    """

    model: str
    settings: Settings
    samples: int
    batches: int
    recalibrated: tuple[Recalibrated, ...]
    left: tuple[Left, ...] = ()
    notes: tuple[str, ...] = ()
    footprint: Footprint | None = None

    def to_json(self) -> str:
        """The report as JSON, with a newline at the end."""
        return text(self.to_tree())

    def to_tree(self) -> dict[str, Json]:
        """The report as what JSON has: dicts, lists, text and finite numbers."""
        settings = self.settings
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "method": settings.method,
            "momentum": settings.momentum if settings.method == "ema" else None,
            "variance": settings.variance,
            "samples": self.samples,
            "batches": self.batches,
            "recalibrated": [_recalibrated(entry) for entry in self.recalibrated],
            "left": [_left(entry) for entry in self.left],
            "footprint": None if self.footprint is None else asdict(self.footprint),
            "notes": list(self.notes),
        }


def by_drift(entries: list[Recalibrated]) -> tuple[Recalibrated, ...]:
    """The one that drifted most first; equal ones in the order of the model."""
    return tuple(sorted(entries, key=lambda entry: -entry.largest_drift))


def _recalibrated(entry: Recalibrated) -> Json:
    ratio = entry.variance_ratio
    return {
        "name": entry.name,
        "calls": list(entry.calls),
        "channels": entry.channels,
        "samples": entry.samples,
        "epsilon": figure(entry.epsilon),
        "drift": {"max": figure(entry.largest_drift), "rms": figure(entry.rms_drift)},
        "variance_ratio": {"min": figure(float(ratio.min())), "max": figure(float(ratio.max()))},
        "dead": list(entry.dead),
        "old": _statistics(entry.old),
        "new": _statistics(entry.new),
    }


def _statistics(statistics: Statistics) -> Json:
    mean, variance = statistics.mean.tolist(), statistics.variance.tolist()
    return {"mean": [figure(x) for x in mean], "variance": [figure(x) for x in variance]}


def _left(entry: Left) -> Json:
    hindrance = entry.hindrance
    return {"name": entry.name, "hindrance": hindrance.name, "clause": hindrance.value, "detail": entry.detail}
