"""What a fold of a PyTorch module will do: to the whole, or part by part where torch.export cannot capture that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from textwrap import shorten
from typing import TYPE_CHECKING

from bnfold.changes import Fold
from bnfold.decision import Decision, Folded, Kept, Reason, Refusal
from bnfold.errors import ModelError
from bnfold.folding import FoldPlan, plan
from bnfold.frontends.torch_arguments import Arguments, missing_inputs
from bnfold.frontends.torch_capture import capture
from bnfold.frontends.torch_graph import TorchGraph
from bnfold.frontends.torch_guess import differs_elsewhere, made_up_inputs
from bnfold.frontends.torch_limits import limits
from bnfold.frontends.torch_observed import Observation, observe
from bnfold.frontends.torch_open import open_parameters, other_values
from bnfold.frontends.torch_parts import Part, Parts, ends_of, find_parts
from bnfold.frontends.torch_write import write, write_the_same

if TYPE_CHECKING:
    from torch import nn

#: Characters of what torch says.
_LONGEST = 160


@dataclass(frozen=True, eq=False)
class Planned:
    """A plan.

    Attributes:
        parts: Each captured graph and what is done to it; one if the module was captured whole.
        decisions: All of them, in the order in which the forward pass comes to them.
        inputs: Example inputs for the check.
        notes: For the report.
        paths: Decisions of the forward pass, for each of which the check runs; none if it was captured whole.
    """

    parts: tuple[tuple[TorchGraph, FoldPlan], ...]
    decisions: tuple[Decision, ...]
    inputs: Arguments
    notes: tuple[str, ...]
    paths: tuple[tuple[bool, ...], ...] = ()

    def write(self, target: nn.Module) -> None:
        """Change `target`, which is the module that was planned for or a copy of it."""
        for graph, made in self.parts:
            write(target, graph, made)


def plan_module(module: nn.Module, inputs: Arguments | None, wanted: Callable[[str], bool]) -> Planned:
    """Plan for the module as a whole, or for its parts.

    Raises:
        ModelError: It does not run on the inputs.
        UsageError: There are no inputs, and none could be made up.
    """
    if inputs is None:
        return _of_guess(module, wanted)
    names = open_parameters(module, inputs)
    try:
        captured = capture(module, inputs)
    except ModelError as error:
        seen = observe(module, inputs)
        return _of_parts(module, inputs, wanted, find_parts(module, seen, error.what, names), seen)
    if names:
        seen = observe(module, inputs)
        found = find_parts(module, seen, other_values(names), names, is_captured=True)
        return _of_parts(module, inputs, wanted, found, seen)
    graph = TorchGraph(module, captured)
    made = plan(graph, wanted, merges=False)
    return Planned(((graph, made),), made.decisions, captured.inputs, limits(captured))


def _of_guess(module: nn.Module, wanted: Callable[[str], bool]) -> Planned:
    """For inputs of all kinds that the module's layers tell of."""
    kinds = made_up_inputs(module)
    if not kinds:
        raise missing_inputs("what its layers tell is not enough to make them up")
    if names := open_parameters(module, kinds[0]):
        raise missing_inputs(f"{other_values(names)}, and what it does is observed on inputs of yours alone")
    try:
        captures = tuple(capture(module, inputs) for inputs in kinds)
    except ModelError as error:
        why = "it cannot be captured whole, and what it does is observed on inputs of yours alone"
        raise missing_inputs(why) from error
    for captured in captures:
        if elsewhere := differs_elsewhere(module, captured):
            raise missing_inputs(f"it may do something else for {elsewhere}")
    graph, made, decisions = _agreed(module, Part("", captures), wanted)
    shapes = dict.fromkeys(", ".join(f"{_plain(t.dtype)} {tuple(t.shape)}" for t in inputs.args) for inputs in kinds)
    notes = (f"example_inputs were made up: {' or '.join(shapes)}", *(n for c in captures for n in limits(c)))
    return Planned(((graph, made),), decisions, captures[0].inputs, tuple(dict.fromkeys(notes)))


def _plain(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _of_parts(
    module: nn.Module, inputs: Arguments, wanted: Callable[[str], bool], found: Parts, seen: Observation
) -> Planned:
    placed: list[tuple[int, Decision]] = []
    planned: list[tuple[TorchGraph, FoldPlan]] = []
    for part in found.parts:
        graph, made, decisions = _agreed(module, part, wanted)
        planned.append((graph, made))
        placed += [(found.places[part.path], decision) for decision in decisions]
    last = len(found.places)
    placed += [(found.places.get(path, last), _excluded(kept, wanted)) for path, kept in found.kept]
    ordered = tuple(decision for _, decision in sorted(placed, key=lambda pair: pair[0]))
    notes = tuple(_notes(found, planned))
    return Planned(tuple(planned), ordered, inputs, notes, tuple(seen.paths))


def _excluded(kept: Kept, wanted: Callable[[str], bool]) -> Kept:
    return kept if wanted(kept.subject.name) else replace(kept, refusals=(Refusal(Reason.EXCLUDED_BY_CALLER),))


def _agreed(
    module: nn.Module, part: Part, wanted: Callable[[str], bool]
) -> tuple[TorchGraph, FoldPlan, tuple[Decision, ...]]:
    """The plan on which all kinds of calls agree, and its decisions."""
    graphs = [TorchGraph(module, captured) for captured in part.captures]
    plans = [plan(graph, wanted, merges=False) for graph in graphs]
    if identities := _identities(plans) if part.because else set[str]():
        graph, made, decided = _agreed(module, part, lambda name: wanted(name) and name not in identities)
        because = (Refusal(Reason.VALUE_HAS_OTHER_READERS, part.path, "without it the part would hand on its input"),)
        return graph, made, tuple(Kept(d.subject, because) if _name(d) in identities else d for d in decided)
    folded = [{_name(d) for d in made.decisions if isinstance(d, Folded)} for made in plans]
    given_up: set[str] = set()
    for allowed in (set.intersection(*folded), set[str]()):
        if write_the_same(list(zip(graphs, plans, strict=True))):
            break
        given_up = set.union(*folded) - allowed
        plans = [plan(graph, lambda name: wanted(name) and name in allowed, merges=False) for graph in graphs]  # noqa: B023
    disagree = Refusal(Reason.CALLS_DISAGREE, part.path, "" if part.path else "made-up inputs: give example_inputs")
    decisions = [_to_the_whole(decision, part.because) for decision in plans[0].decisions]
    return graphs[0], plans[0], tuple(Kept(d.subject, (disagree,)) if _name(d) in given_up else d for d in decisions)


def _identities(plans: list[FoldPlan]) -> set[str]:
    """BatchNorms that do nothing but copy; whoever calls a part may write into one of the two tensors."""
    return {subject.name for made in plans for change in made.bench.folds
            if isinstance(change, Fold) and change.is_drop for subject in change.subjects}  # fmt: skip


def _to_the_whole(decision: Decision, because: Refusal | None) -> Decision:
    if because is None or not isinstance(decision, Kept):
        return decision
    return replace(decision, refusals=tuple(dict.fromkeys(ends_of(r, because) for r in decision.refusals)))


def _name(decision: Decision) -> str:
    return decision.subject.name


def _notes(found: Parts, planned: list[tuple[TorchGraph, FoldPlan]]) -> Iterator[str]:
    parts = found.parts
    for path, why in found.refused.items():
        clause = why.removeprefix("torch.export cannot capture it: ").partition(" (unhinted")[0]
        short = shorten(clause, _LONGEST, placeholder=" ...")
        if found.is_captured and not path:
            yield f"not folded as a whole: {short}; as_graph=True makes a graph for these values, which refuses others"
        else:
            yield f"torch.export cannot capture {path or 'the whole'}: {short}"
    listed = ", ".join(part.path for part, (_, made) in zip(parts, planned, strict=True) if made.bench.folds)
    yield f"folded from observed runs on the example inputs, part by part: {listed or 'nothing'}"
    for part in parts:
        for captured in part.captures:
            yield from (f"{part.path} {limit}" for limit in limits(captured))
