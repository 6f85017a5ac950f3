"""Trees of sums and the branches that end in them: `(W*x + b) - (s*x + t) + z` has three leaves, two of them of x.

A leaf is a linear operator, or a chain of BatchNorms and constants per channel, or the value itself. What it computes
must be read by the tree alone, or the leaf is that value.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from bnfold.bench import Bench
from bnfold.carriers.elementwise import constant_affine
from bnfold.graph import Operator, PlacedAffine, Value
from bnfold.views import BatchNorm, ConstantOperand, Linear, Sum


@dataclass(frozen=True, eq=False)
class Leaf:
    """What one operand of a tree of sums computes of `value`.

    Attributes:
        value: What it reads.
        output: What it computes; `value` itself for a branch without operators.
        sign: 1, or -1 where the tree subtracts it.
        linear: The linear operator; None for a chain of affine ones.
        operators: The operators of the branch, in topological order.
    """

    value: Value
    output: Value
    sign: int
    linear: Operator | None
    operators: tuple[Operator, ...]


@dataclass(frozen=True, eq=False)
class Node:
    """A sum of two variables in a tree.

    Attributes:
        operator: The sum.
        operands: What it adds up: sums that nothing else reads, and leaves.
    """

    operator: Operator
    operands: tuple[Part, Part]

    @property
    def nodes(self) -> Iterator[Node]:
        """The sums of the tree, each after its operands."""
        for operand in self.operands:
            if isinstance(operand, Node):
                yield from operand.nodes
        yield self

    @property
    def leaves(self) -> Iterator[Leaf]:
        """The leaves of the tree, from left to right."""
        for operand in self.operands:
            yield from operand.leaves if isinstance(operand, Node) else [operand]

    @property
    def sign(self) -> int:
        """The sign of the second operand."""
        assert isinstance(self.operator.view, Sum)
        return self.operator.view.sign


Part: TypeAlias = Node | Leaf


def is_private(bench: Bench, value: Value) -> bool:
    """Whether one operator reads `value`, and nobody else."""
    return bench.visible(value) is None and len(list(bench.uses(value))) == 1


def tree_of(bench: Bench, operator: Operator, sign: int = 1) -> Node:
    """The tree of sums that ends in `operator`."""
    assert isinstance(operator.view, Sum)
    first, second = (bench.root(value) for value in operator.inputs[:2])
    return Node(operator, (_part(bench, first, sign), _part(bench, second, sign * operator.view.sign)))


def _part(bench: Bench, value: Value, sign: int) -> Part:
    producer = bench.producer(value)
    if producer is not None and isinstance(producer.view, Sum) and is_private(bench, value):
        return tree_of(bench, producer, sign)
    return _leaf(bench, value, sign)


def _leaf(bench: Bench, output: Value, sign: int) -> Leaf:
    chain: list[Operator] = []
    value = output
    while is_private(bench, value) and (producer := bench.producer(value)) is not None:
        read = bench.root(producer.inputs[0])
        if isinstance(producer.view, Linear) and not chain:
            return Leaf(read, output, sign, producer, (producer,))
        if placed_affine(bench, producer) is None:
            break
        chain.insert(0, producer)
        value = read
    return Leaf(value, output, sign, None, tuple(chain))


def placed_affine(bench: Bench, operator: Operator) -> PlacedAffine | None:
    """What a BatchNorm or a constant operand computes, if it is an affine that may change."""
    if operator.index in bench.reduced or not bench.wanted(operator.name):
        return None
    match operator.view:
        case BatchNorm(axis=axis):
            return PlacedAffine.on_axis(bench.affine(operator), axis)
        case ConstantOperand() as view:
            return constant_affine(view, bench.constant(operator))
    return None


def signs_without(tree: Node, gone: Collection[Leaf], sums: list[tuple[Operator, int | None]]) -> dict[Leaf, int]:
    """The sign of each leaf that stays in `tree` when the leaves `gone` are taken out.

    Appends to `sums` those that go with them, each with the position of the operand that it is then equal to, or None.
    """
    first, second = (
        signs_without(part, gone, sums) if isinstance(part, Node) else ({} if part in gone else {part: 1})
        for part in tree.operands
    )
    if first and second:
        return first | {leaf: sign * tree.sign for leaf, sign in second.items()}
    sums.append((tree.operator, 0 if first else 1 if second else None))
    return first or second
