"""What a reader of an aten operator answers: its view, its variable inputs, and the constants that belong to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bnfold.affine import Float64Array
from bnfold.graph import Bounds
from bnfold.views import View

if TYPE_CHECKING:
    from torch.fx import Node


@dataclass(frozen=True, eq=False)
class Reading:
    """An operator as it was read.

    Attributes:
        view: What it computes.
        inputs: The values that it reads, the data first.
        constant: The constant of a `ConstantOperand` or `Pad`.
        bounds: The bounds of a `Clamp`.
    """

    view: View
    inputs: tuple[Node, ...]
    constant: Float64Array | None = None
    bounds: Bounds | None = None
