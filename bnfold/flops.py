"""How much arithmetic a model does, counted and not measured: `FLOPs = 2 * multiply-adds + other operations`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: What is counted, wherever a figure is shown.
CONVENTION = (
    "an addition, a multiplication, and any function of one element is 1, so a multiply-add is 2; "
    "zeros of a padding count as numbers, and moving, casting or comparing numbers counts nothing"
)


@dataclass(frozen=True)
class Work:
    """What one operator does.

    Attributes:
        multiply_adds: Of Conv, ConvTranspose, Gemm and MatMul.
        others: Everything else: biases, BatchNorms, activations, sums, pooling.
    """

    multiply_adds: int = 0
    others: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.multiply_adds + other.multiply_adds, self.others + other.others)

    @property
    def flops(self) -> int:
        """Floating-point operations."""
        return 2 * self.multiply_adds + self.others


@dataclass(frozen=True)
class Uncounted:
    """Operators of one type that are left out of the count.

    Attributes:
        operator: Their type, with its domain if that is not ONNX's own.
        number: How many there are.
        why: A clause.
    """

    operator: str
    number: int
    why: str

    def __str__(self) -> str:
        return f"{self.number} {self.operator} ({self.why})"


@dataclass(frozen=True)
class Flops:
    """What a model does in one run.

    Attributes:
        work: All that was counted; None where the sizes are not known.
        inputs: The shapes of the inputs that it holds for, by name.
        uncounted: What was left out.
        unknown: Why `work` is None; empty when it is not.
    """

    work: Work | None
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    uncounted: tuple[Uncounted, ...] = ()
    unknown: str = ""
