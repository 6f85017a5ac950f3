"""Every error that bnfold raises on purpose: what is wrong, where, and what to do about it.

* BnfoldError
  + UsageError                the call contradicts itself                               exit code 2
  + ModelError                the user's model cannot be read, understood or written    exit code 3
  + DataError                 the user's data does not fit the model                    exit code 3
  + MachineError              the machine lacks something: space, a device, a package   exit code 3
    - MissingPackageError     an optional package is not installed
    - ProviderError           an execution provider is not there, or cannot run the model
  + VerificationError         the folded model is not equivalent; nothing was written   exit code 1
  + InternalError             a bug in bnfold itself                                    exit code 3

"This BatchNorm cannot be folded" is never an error: it is a decision with a reason (`bnfold.decision`).
"""

from __future__ import annotations

from typing import Any, ClassVar


class BnfoldError(Exception):
    """One clear sentence: `what` is wrong, `where`, and what to do (`remedy`).

    Attributes:
        what: The fault, as a clause without a full stop.
        where: The file, node or tensor concerned; empty when the fault has no place.
        remedy: What the reader can do about it; empty when nothing helps.
        report: The `bnfold.report.model.Report` of what was done until then; None where there is none.
        models: The original and the folded `onnx_ir.Model` that were compared; None where there are none.
    """

    exit_code: ClassVar[int] = 3
    report: object = None
    models: tuple[Any, Any] | None = None

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__(what, where, remedy)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f"; {self.remedy}" if self.remedy else ""
        return f"{place}{self.what}{advice}"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.where, self.remedy)


def _rebuild(kind: type[BnfoldError], what: str, where: str, remedy: str) -> BnfoldError:
    """Unpickle: `BaseException` would pass the keyword-only fields by position."""
    return kind(what, where=where, remedy=remedy)


class UsageError(BnfoldError):
    """The arguments contradict each other or name something that cannot be."""

    exit_code = 2


class ModelError(BnfoldError):
    """The user's model cannot be read, understood or written."""


class DataError(BnfoldError):
    """The user's data does not fit the model."""


class MachineError(BnfoldError):
    """The machine lacks what the work needs."""


class MissingPackageError(MachineError):
    """An optional package is not installed; the remedy is the pip command."""


class ProviderError(MachineError):
    """An execution provider is not there, or cannot run the model."""


class VerificationError(BnfoldError):
    """The folded model is not equivalent to the original; nothing was written; its `report` says where."""

    exit_code = 1


class InternalError(BnfoldError):
    """A bug in bnfold itself; please report it with the model."""
