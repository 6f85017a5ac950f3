"""The records of what a plan changes, in the order in which it was decided: `Fold` and `Merge`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from bnfold.decision import Direction, Refusal, Subject
from bnfold.embedding import Geometry
from bnfold.graph import Operator, PlacedAffine, Value
from bnfold.linear import LinearParams
from bnfold.sources import Source
from bnfold.views import Linear


@dataclass(frozen=True, eq=False)
class Fold:
    """One source that was taken out.

    Attributes:
        source: What was taken out.
        direction: The way its affine went.
        into: The operators that absorbed it.
        through: The operators that passed it on.
        values: The values whose meaning it changed.
        beside: Further readers of values that changed, which see no difference or undo it.
        left: What stays in the source's place, a pure shift; None if nothing does.
        refusals: Why it stays.
    """

    source: Source
    direction: Direction
    into: tuple[Operator, ...]
    through: tuple[Operator, ...]
    values: frozenset[Value]
    beside: tuple[Operator, ...] = ()
    left: PlacedAffine | None = None
    refusals: tuple[Refusal, ...] = ()

    @property
    def subjects(self) -> list[Subject]:
        """What was taken out, for people."""
        return self.source.subjects

    @property
    def is_drop(self) -> bool:
        """Whether the source was the identity, and its readers read its input now."""
        return not (self.into or self.through or self.values or self.left)

    @property
    def operators(self) -> tuple[Operator, ...]:
        """Everything that it touches."""
        return (*self.source.operators, *self.into, *self.through, *self.beside)


@dataclass(frozen=True, eq=False)
class Merge:
    """Linear operators in parallel or in a row that became one.

    Attributes:
        into: The branch that stays, as it is afterwards.
        params: Its constants afterwards.
        geometry: Its window afterwards.
        gone: The operators of the other branches.
        sums: The sums (or the second in a row) that are gone, in topological order, each with the position of the
            operand that it now equals; None for one of which nothing is left.
        through: The sums that stay and are about to add up something else.
        renames: The indices of the sums whose place is taken by a value that changed, and not by one that was there.
        values: The values whose meaning changed.
        subjects: The BatchNorms among `gone`.
    """

    into: Operator
    params: LinearParams
    geometry: Geometry
    gone: tuple[Operator, ...]
    sums: tuple[tuple[Operator, int | None], ...]
    through: tuple[Operator, ...]
    renames: frozenset[int]
    values: frozenset[Value]
    subjects: tuple[Subject, ...]

    @property
    def is_in_a_row(self) -> bool:
        """Whether it joined two operators in a row, and not parallel ones."""
        return isinstance(self.sums[0][0].view, Linear)

    @property
    def operators(self) -> tuple[Operator, ...]:
        """Everything that it touches."""
        return (self.into, *self.gone, *(operator for operator, _ in self.sums), *self.through)


Change: TypeAlias = Fold | Merge
