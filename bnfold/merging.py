"""Parallel linear branches of one value that sums bring together become one: `sum_i (W_i*x + b_i) = W*x + b`.

RepVGG, MobileOne, ACNet and their kin: k x k, 1 x 1, depthwise, BatchNorm and identity branches, found in the graph
with no access to the class that they were trained in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bnfold.affine import ChannelAffine
from bnfold.bench import Bench
from bnfold.branches import Leaf, Node, is_private, placed_affine, signs_without, tree_of
from bnfold.changes import Merge
from bnfold.decision import Reason, Refusal
from bnfold.embedding import Branch, Geometry, frame_of, merged
from bnfold.graph import Operator
from bnfold.rounding import fits
from bnfold.sources import compose
from bnfold.views import Linear, Sum


def merge_all(bench: Bench) -> bool:
    """Merge what can be merged; whether anything was."""
    before = len(bench.folds)
    for operator in bench.graph.operators:
        if isinstance(operator.view, Sum) and not _is_inner(bench, operator):
            while operator.index not in bench.removed and (found := _first(bench, operator)) is not None:
                bench.merge(found)
    return len(bench.folds) > before


def _is_inner(bench: Bench, operator: Operator) -> bool:
    """Whether the sum is an operand of another one, and of nothing else."""
    value = operator.outputs[0]
    assert value is not None
    return is_private(bench, value) and any(isinstance(use.operator.view, Sum) for use in bench.uses(value))


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A leaf, what it computes, and its products per output position."""

    leaf: Leaf
    branch: Branch
    cost: int


def _first(bench: Bench, root: Operator) -> Merge | None:
    """The first merge in the tree of `root`; branches with the fewest groups, and then with the most taps, lead."""
    tree = tree_of(bench, root)
    bases = [leaf for leaf in tree.leaves if _geometry(leaf) is not None]
    for base in sorted(bases, key=lambda leaf: (_view(leaf).layout.groups, -_size(leaf))):
        candidates = [c for leaf in tree.leaves if (c := _candidate(bench, leaf, base)) is not None]
        chosen, frame = _chosen(candidates, base)
        if len(chosen) > 1 and (found := _merge(bench, tree, chosen, frame)) is not None:
            return found
    return None


def _view(leaf: Leaf) -> Linear:
    assert leaf.linear is not None
    assert isinstance(leaf.linear.view, Linear)
    return leaf.linear.view


def _geometry(leaf: Leaf) -> Geometry | None:
    return None if leaf.linear is None else _view(leaf).geometry


def _size(leaf: Leaf) -> int:
    geometry = _geometry(leaf)
    return 0 if geometry is None else geometry.taps


def _candidate(bench: Bench, leaf: Leaf, base: Leaf) -> _Candidate | None:
    """`leaf` as a branch that could be added to `base`'s kernel."""
    if leaf.value != base.value:
        return None
    return _affine(bench, leaf, base) if leaf.linear is None else _linear(bench, leaf, base)


def _linear(bench: Bench, leaf: Leaf, base: Leaf) -> _Candidate | None:
    view, other = _view(leaf), _view(base)
    assert leaf.linear is not None
    same = all(
        getattr(view, name) == getattr(other, name)
        for name in ("input_axis", "output_axis", "inputs", "outputs", "dtype")
    )
    if view.geometry is None or not same or view.layout.groups % other.layout.groups:
        return None
    params = bench.linear_params(leaf.linear)
    if params.bias.ndim > 1:
        return None
    return _Candidate(leaf, Branch(params, view.geometry), params.weight.size)


def _affine(bench: Bench, leaf: Leaf, base: Leaf) -> _Candidate | None:
    view = _view(base)
    if view.inputs != view.outputs or view.input_axis != view.output_axis or view.geometry is None:
        return None
    total = ChannelAffine.identity(view.inputs)
    for operator in leaf.operators:
        placed = placed_affine(bench, operator)
        affine = None if placed is None else placed.spread(view.input_axis, view.inputs)
        if affine is None:
            return None
        total = total.then(affine)
    branch = Branch.of_affine(total, view.layout.groups, len(view.geometry.strides))
    return _Candidate(leaf, branch, view.inputs)


def _chosen(candidates: list[_Candidate], base: Leaf) -> tuple[list[_Candidate], Geometry]:
    """`base` and those that can join it without more products than they have apart; and the frame of all."""
    rest = [c for c in candidates if c.leaf is not base]
    chosen = [c for c in candidates if c.leaf is base]
    if not chosen:
        return [], Geometry.point(())
    frame, cost = chosen[0].branch.geometry, chosen[0].cost
    per_tap = cost // max(frame.taps, 1)
    for candidate in sorted(rest, key=lambda c: -c.branch.geometry.taps):
        wider = frame_of([c.branch.geometry for c in (*chosen, candidate)])
        if wider is not None and wider.taps * per_tap <= cost + candidate.cost:
            frame, cost = wider, wider.taps * per_tap
            chosen.append(candidate)
    return chosen, frame


def _merge(bench: Bench, tree: Node, chosen: list[_Candidate], frame: Geometry) -> Merge | None:
    """The chosen leaves, the first of which stays, as one; None where a sign or a number speaks against it."""
    base, gone = chosen[0].leaf, [c.leaf for c in chosen[1:]]
    sums: list[tuple[Operator, int | None]] = []
    signs = signs_without(tree, gone, sums)
    if any(sign != leaf.sign for leaf, sign in signs.items() if leaf is not base):
        return None
    view, sign = _view(base), signs[base]
    params = merged([(sign * c.leaf.sign, c.branch) for c in chosen], frame, view.layout.groups)
    if not fits(view.dtype, params.weight, params.bias):
        return None
    changed = [node.operator for node in tree.nodes if _is_changed(node, {base, *gone})]
    removed = {operator.index for operator, _ in sums}
    return Merge(
        _widened(base, frame),
        params,
        frame,
        tuple(op for leaf in gone for op in leaf.operators),
        tuple(sums),
        tuple(node.operator for node in tree.nodes if node.operator.index not in removed),
        frozenset(node.operator.index for node in tree.nodes if base in node.leaves),
        frozenset((base.output, *(value for op in changed for value in op.outputs if value is not None))),
        tuple(subject for leaf in gone for source in compose(leaf.operators, bench) for subject in source.subjects),
    )


def _is_changed(node: Node, leaves: set[Leaf]) -> bool:
    """Whether the sum holds a part of what is merged, and not the whole."""
    held = leaves & set(node.leaves)
    return bool(held) and held != leaves


def _widened(base: Leaf, frame: Geometry) -> Operator:
    """The operator with its new window, whose zeros a shift would miss."""
    assert base.linear is not None
    padding = Refusal(Reason.SHIFT_MEETS_PADDING, base.linear.name, "zero padding") if frame.is_padded else None
    return replace(base.linear, view=replace(_view(base), geometry=frame, shift_at_input=padding))
