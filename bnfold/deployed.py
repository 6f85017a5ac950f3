"""What a setting of onnxruntime does to two models, and who is to blame where a deployed model is wrong.

Equivalence is shown at ORT_DISABLE_ALL, and people deploy at ORT_ENABLE_ALL, where onnxruntime rewrites both models.
Each is compared with itself at the other level, so that no fold is blamed for what the optimiser does:

| original as deployed | folded as deployed | what it means |
| --- | --- | --- |
| as verified | as verified | nothing is wrong |
| differs | as verified | the optimiser gets the original wrong, and the folded model right |
| differs | differs | the optimiser gets both wrong: deploy with it off |
| as verified | differs | the optimiser gets the folded model wrong, though not the original: the verification fails |

The last one is no fault of the fold's arithmetic. It fails because who deploys the folded model as the original was
deployed gets wrong numbers from then on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from bnfold.comparison import TensorComparison

#: Which of the models onnxruntime's optimiser gets wrong.
Blame: TypeAlias = Literal["neither", "original", "folded", "both"]

#: The level that people deploy with, by onnxruntime's name.
LEVEL = "ENABLE_ALL"


@dataclass(frozen=True)
class Moved:
    """What a setting does to one model: its outputs with it, compared with the same outputs without it.

    Attributes:
        comparisons: The outputs, the worst run of each; quantised codes in steps.
        trouble: Why the model cannot be run with the setting; empty where it can.
    """

    comparisons: tuple[TensorComparison, ...] = ()
    trouble: str = ""

    @property
    def differs(self) -> bool:
        """Whether something is there that rounding does not explain, or the model cannot be run."""
        return bool(self.trouble) or any(entry.failed for entry in self.comparisons)

    @property
    def worst(self) -> TensorComparison | None:
        """The output that failed by most or came nearest to it; None where nothing was compared."""
        compared = [entry for entry in self.comparisons if entry.compared]
        return max(compared, key=lambda e: (e.failed, e.error / e.tolerance if e.tolerance else e.error), default=None)


@dataclass(frozen=True)
class LevelErrors:
    """How far one output is from float64, relative to the tensor's scale: both models without the optimiser, then with.

    Attributes:
        name: The output's name.
        original: The original, not optimised.
        folded: The folded model, not optimised.
        original_deployed: The original as deployed; None where it could not be run so.
        folded_deployed: The folded model as deployed; None likewise.
    """

    name: str
    original: float
    folded: float
    original_deployed: float | None
    folded_deployed: float | None


@dataclass(frozen=True)
class Deployed:
    """Both models as they are deployed, at ORT_ENABLE_ALL.

    Attributes:
        original: The original, against itself at ORT_DISABLE_ALL.
        folded: The folded model, likewise.
        between: The folded model against the original, both as deployed: what a user sees change.
        errors: All four results against float64, where that was asked or something was in doubt.
        notes: What a reader must know, in full sentences.
        trouble: Why nothing could be compared; empty where it could.
        alone: Whether the original is a PyTorch module, which the runtime does not run: `original` and `between` are
            empty, and what the optimiser gets wrong is lost.
    """

    original: Moved = Moved()
    folded: Moved = Moved()
    between: Moved = Moved()
    errors: tuple[LevelErrors, ...] = ()
    notes: tuple[str, ...] = ()
    trouble: str = ""
    alone: bool = False

    @property
    def blame(self) -> Blame:
        """Which of the models onnxruntime's own optimiser gets wrong."""
        match self.original.differs, self.folded.differs:
            case False, False:
                return "neither"
            case True, False:
                return "original"
            case False, True:
                return "folded"
            case _:
                return "both"

    @property
    def lost(self) -> tuple[str, ...]:
        """Outputs that the optimiser gets wrong in the folded model, though right in the original."""
        right = {entry.name for entry in self.original.comparisons if entry.passed}
        wrong = [entry.name for entry in self.folded.comparisons if entry.failed]
        return tuple(name for name in wrong if self.alone or name in right)

    @property
    def failed(self) -> bool:
        """Whether the folded model as deployed is wrong, or cannot be run, where the original is not."""
        return bool(self.failure)

    @property
    def failure(self) -> str:
        """What is wrong with the folded model as deployed and not with the original, as a clause; empty if nothing."""
        if self.lost:
            names = ", ".join(self.lost[:3]) + (f" and {len(self.lost) - 3} more" if len(self.lost) > 3 else "")
            whose = " wrong" if self.alone else " of the folded model wrong, though not of the original"
            right = "model" if self.alone else "fold"
            return (
                f"as deployed, at {LEVEL}, the runtime's own optimiser gets {names}{whose}; the {right} is right with "
                "the optimiser off"
            )
        if self.alone and self.folded.trouble:
            return f"the model cannot be run as deployed, at {LEVEL}: {self.folded.trouble}"
        if self.folded.trouble and not self.original.trouble:
            return f"the original can be run as deployed, at {LEVEL}, and the folded model not: {self.folded.trouble}"
        return ""


@dataclass(frozen=True)
class Tf32:
    """What TF32, which CUDA computes in by default, does to each model; the verdict is on both without it.

    Attributes:
        original: The original with TF32, against itself without.
        folded: The folded model, likewise.
    """

    original: Moved
    folded: Moved
