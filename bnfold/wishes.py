"""What a caller asks of a check, and how a fold of a PyTorch module is to be proven."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from bnfold.inputs import InputsLike
from bnfold.report.recalibration_report import RecalibrationReport

Progress: TypeAlias = Callable[[str], None]

#: What helps where nothing is proven, on the command line and in Python.
BY_FLAGS = "--keep leaves a BatchNorm alone, --no-verify writes the model without this proof"
BY_ARGUMENTS = "keep=... leaves a BatchNorm alone, verify=False folds without this proof"


@dataclass(frozen=True, eq=False)
class Proof:
    """How a fold of a PyTorch module is proven.

    Attributes:
        verify: Whether at all.
        seed: Of the inputs.
        progress: Told what is being done.
        remedy: What helps where nothing is proven.
        recalibration: What was done to the module before, for the report.
    """

    verify: bool = True
    seed: int = 0
    progress: Progress | None = None
    remedy: str = BY_ARGUMENTS
    recalibration: RecalibrationReport | None = None


@dataclass(frozen=True)
class Wishes:
    """What is asked of the check besides, as `bnfold.fold` documents it."""

    inputs: InputsLike | None = None
    oracle: bool = False
    metric: str | None = None
    metric_output: str | None = None
    self_test: bool = False
    deployed: bool = True

    @property
    def first(self) -> str:
        """The first thing that is asked, by its name; empty if nothing is."""
        names = ("inputs", "oracle", "metric", "metric_output", "self_test")
        return next((name for name in names if getattr(self, name)), "")

    def __bool__(self) -> bool:
        """Whether anything is."""
        return self.first != ""


@dataclass(frozen=True)
class Where:
    """Where to check: providers, shapes of inputs by name, and the seed of what is drawn."""

    providers: Sequence[str]
    shapes: Mapping[str, tuple[int, ...]] | None
    seed: int
