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
    notes           a list of sentences

JSON has no infinity: a figure that is not finite is the string "Infinity", "-Infinity" or "NaN".
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from bnfold.drift import Left, Recalibrated, Statistics
    from bnfold.recalibration import Settings

Json: TypeAlias = "dict[str, Json] | list[Json] | str | float | bool | None"

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
    """

    model: str
    settings: Settings
    samples: int
    batches: int
    recalibrated: tuple[Recalibrated, ...]
    left: tuple[Left, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The report as JSON, with a newline at the end."""
        settings = self.settings
        tree: dict[str, Json] = {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "method": settings.method,
            "momentum": settings.momentum if settings.method == "ema" else None,
            "variance": settings.variance,
            "samples": self.samples,
            "batches": self.batches,
            "recalibrated": [_recalibrated(entry) for entry in self.recalibrated],
            "left": [_left(entry) for entry in self.left],
            "notes": list(self.notes),
        }
        return json.dumps(tree, indent=2, allow_nan=False) + "\n"


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
        "epsilon": _figure(entry.epsilon),
        "drift": {"max": _figure(entry.largest_drift), "rms": _figure(entry.rms_drift)},
        "variance_ratio": {"min": _figure(float(ratio.min())), "max": _figure(float(ratio.max()))},
        "dead": list(entry.dead),
        "old": _statistics(entry.old),
        "new": _statistics(entry.new),
    }


def _statistics(statistics: Statistics) -> Json:
    mean, variance = statistics.mean.tolist(), statistics.variance.tolist()
    return {"mean": [_figure(x) for x in mean], "variance": [_figure(x) for x in variance]}


def _left(entry: Left) -> Json:
    hindrance = entry.hindrance
    return {"name": entry.name, "hindrance": hindrance.name, "clause": hindrance.value, "detail": entry.detail}


def _figure(number: float) -> Json:
    """A finite number as it is, any other by name."""
    if math.isfinite(number):
        return float(number)
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
