"""Whether two models decide alike, counted: what a deployment is judged by, beside the numbers themselves.

A decision is *within rounding* where the original itself would not stand by it: where the margin by which it was taken
is no more than rounding, measured on that very sample, can move it. Such decisions are counted, and never a failure;
of all others not a single one may differ.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Count:
    """Decisions on one sample or several.

    Attributes:
        decisions: How many there are: classes, pixels, or boxes (one for each pair, and each box without a partner).
        same: How many are the same in both models.
        clear: How many are not within rounding.
        different: How many of the clear ones differ.
        first: The first clear one that differs, for people; empty when none does.
    """

    decisions: int = 0
    same: int = 0
    clear: int = 0
    different: int = 0
    first: str = ""

    def __add__(self, other: Count) -> Count:
        return Count(
            self.decisions + other.decisions,
            self.same + other.same,
            self.clear + other.clear,
            self.different + other.different,
            self.first or other.first,
        )


@dataclass(frozen=True)
class Agreement:
    """How often two models decide alike on the caller's data.

    Attributes:
        metric: "top1", "boxes" or "mask".
        output: Name of the output that the decisions were taken from.
        samples: How many samples were fed.
        count: The decisions.
    """

    metric: str
    output: str
    samples: int
    count: Count

    def __str__(self) -> str:
        """The figures in one line."""
        count, nouns = self.count, {"top1": "classes", "mask": "pixels"}.get(self.metric, self.metric)
        unclear = count.decisions - count.same - count.different
        share = f" ({count.same / count.decisions:.2%})" if count.decisions else ""
        line = f"{count.same} of {count.decisions} {nouns} of {self.output} are the same{share}"
        line += f", {unclear} differ within rounding" if unclear else ""
        line += f", {count.different} beyond it ({count.first})" if count.different else ""
        return f"{line}; {self.samples} sample{'' if self.samples == 1 else 's'}"

    @property
    def failed(self) -> bool:
        """A decision that is not within rounding differs."""
        return self.count.different > 0

    @property
    def proves(self) -> bool:
        """There was a decision that is not within rounding."""
        return self.count.clear > 0
