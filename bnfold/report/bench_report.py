"""How fast a model is before and after, as a value and as JSON.

Version 1:

    schema_version  1; a key that goes or changes its meaning raises it, a new key does not
    before, after   the two file names
    inputs          names to shapes
    threads         within an operator; 0: onnxruntime's choice
    rounds          how often each model was measured, in turns
    measured        a list of
        provider    "cpu" or "cuda"
        level       "DISABLE_ALL" or "ENABLE_ALL", onnxruntime's optimiser
        before, after  {median, low, high}: seconds of one run, with the quartiles
        ratio       {median, low, high}: after over before, round by round
        batchnorms  [before, after]: BatchNorms that onnxruntime runs at this level
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from bnfold.report.figures import Json, text
from bnfold.stopwatch import Timing

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Measured:
    """One provider at one level of onnxruntime's optimiser.

    Attributes:
        provider: "cpu" or "cuda".
        level: "DISABLE_ALL" or "ENABLE_ALL".
        before: Seconds of one run of the original.
        after: Seconds of one run of the folded model.
        ratio: After over before, round by round.
        batchnorms: How many BatchNorms onnxruntime runs, before and after.
    """

    provider: str
    level: str
    before: Timing
    after: Timing
    ratio: Timing
    batchnorms: tuple[int, int]


@dataclass(frozen=True)
class BenchReport:
    """How fast a model is before and after.

    Attributes:
        before: The file name of the original, or its graph's name.
        after: Likewise of the folded model.
        inputs: Shapes of the inputs.
        threads: Threads within an operator; 0: onnxruntime's choice.
        rounds: How often each model was measured.
        measured: One entry for each provider and level.
    """

    before: str
    after: str
    inputs: Mapping[str, tuple[int, ...]]
    threads: int
    rounds: int
    measured: tuple[Measured, ...]

    @property
    def samples(self) -> int:
        """Samples in a run: axis 0 of the first input."""
        shape = next(iter(self.inputs.values()), ())
        return shape[0] if shape else 1

    def to_json(self) -> str:
        """The report as JSON, with a newline at the end."""
        return text(self.to_tree())

    def to_tree(self) -> dict[str, Json]:
        """The same as dictionaries and lists."""
        return {"schema_version": SCHEMA_VERSION} | asdict(self)
