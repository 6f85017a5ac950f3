"""A whole ONNX model planned and folded: its main graph, the bodies of its control flow, and its functions.

One plan per graph, because nothing moves across the border of a body. A function is written out at a call where that
leads to a fold, and nowhere else; a model in which nothing folds stays as it is, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from bnfold.decision import Decision
from bnfold.folding import FoldPlan, plan
from bnfold.frontends.onnx_evaluate import Evaluated, find_constant_batchnorms, store
from bnfold.frontends.onnx_graph import OnnxGraph, open_context
from bnfold.frontends.onnx_inline import calls, write_out
from bnfold.frontends.onnx_readers import Reader
from bnfold.frontends.onnx_scopes import scopes
from bnfold.frontends.onnx_write import Written, record, write_all
from bnfold.leftover_forms import Form
from bnfold.leftovers import leave


@dataclass(frozen=True)
class Settings:
    """How to plan.

    Attributes:
        wanted: Which BatchNorms may be folded, by name.
        keep_overridable: Whether initializers that are also graph inputs are left alone.
        readers: The caller's own readers of operators.
        reduces: Whether an Add may be left of a BatchNorm.
        merges: Whether linear operators in parallel and in a row become one.
        form: How BatchNorms that stay are written.
    """

    wanted: Callable[[str], bool] = lambda _name: True
    keep_overridable: bool = False
    readers: Mapping[tuple[str, str], Reader] = field(default_factory=dict)
    reduces: bool = False
    merges: bool = True
    form: Form = "keep"


@dataclass(frozen=True, eq=False)
class ModelPlan:
    """What a fold does to a model.

    Attributes:
        model: The model, in which calls are written out and constants evaluated, and which `write` folds.
        parts: Its graphs, the main one first, and the plan for each.
        evaluated: BatchNorms that were constants.
        decisions: One for each BatchNorm, and each constant chain that is one in disguise: those that were constants,
            those of the main graph in topological order, those of each body, and those in functions that stay.
        called: The model with its calls written out; None if that is the model that was given.
        prepared: The same with the constants evaluated as well: what `write` starts from.
    """

    model: ir.Model
    parts: tuple[tuple[OnnxGraph, FoldPlan], ...]
    evaluated: tuple[Evaluated, ...]
    decisions: tuple[Decision, ...]
    called: ir.Model | None = None
    prepared: ir.Model | None = None

    @property
    def changes(self) -> bool:
        """Whether anything is folded."""
        return bool(self.evaluated) or any(made.bench.folds or made.leftovers for _, made in self.parts)

    def write(self) -> Written:
        """Fold the model; the plan must not be written twice."""
        return write_all(self.parts)

    def record(self, providers: tuple[str, ...]) -> None:
        """Say in the model's metadata what was folded and where that was verified; nothing folded, nothing said."""
        plans = [made for _, made in self.parts]
        record(self.model, [evaluated.decision for evaluated in self.evaluated], plans, providers)


def plan_model(model: ir.Model, settings: Settings) -> ModelPlan:
    """Decide about every BatchNorm of `model`, which is prepared for `write` where that leads to a fold.

    Raises:
        ModelError: As `OnnxGraph`.
    """
    if not calls(model):
        return _plan(model, settings)
    probe = model.clone()
    origin = write_out(probe)
    whole = _plan(probe, settings)
    if not whole.changes:
        return ModelPlan(model, (), (), whole.decisions)
    needed = _needed(whole, origin)
    if needed != set(origin.values()):
        trial = model.clone()
        write_out(trial, needed.__contains__)
        if _folds(_plan(trial, settings)) != _folds(whole):  # a constant that a further call computes is missing
            needed = set(origin.values())
    write_out(model, needed.__contains__)
    called = model.clone() if needed else None
    made = _plan(model, settings)
    return replace(made, decisions=whole.decisions, called=made.called or called, prepared=made.prepared or called)


def _plan(model: ir.Model, settings: Settings) -> ModelPlan:
    """The plan for a model with the calls that it has."""
    context = open_context(model, keep_overridable=settings.keep_overridable)
    evaluated = find_constant_batchnorms(model, settings.wanted, context.constants)
    called = prepared = None
    if evaluated:
        called = model.clone()
        store(model, evaluated)
        prepared = model.clone()
        context = open_context(model, keep_overridable=settings.keep_overridable)
    graphs = (OnnxGraph(model, path, context=context, readers=settings.readers) for path, _ in scopes(model))
    parts = tuple((graph, _plan_one(graph, settings)) for graph in graphs)
    decisions = (*(e.decision for e in evaluated), *(d for _, made in parts for d in made.decisions))
    return ModelPlan(model, parts, evaluated, decisions, called, prepared)


def _plan_one(graph: OnnxGraph, settings: Settings) -> FoldPlan:
    made = plan(graph, settings.wanted, reduces=settings.reduces, merges=settings.merges)
    return leave(made, settings.form)


def _needed(made: ModelPlan, origin: dict[str, int]) -> set[int]:
    """The calls that some fold goes through, or begins or ends in."""
    nodes = [evaluated.node for evaluated in made.evaluated]
    for graph, planned in made.parts:
        for index in (index for region in planned.regions for index in region.operators):
            nodes += graph.sites[index].nodes if index in graph.sites else (graph.nodes[index],)
    return {origin[node.name] for node in nodes if node.name in origin}


def _folds(made: ModelPlan) -> list[tuple[object, ...]]:
    """What is folded, by name."""
    found: list[tuple[object, ...]] = [(evaluated.decision,) for evaluated in made.evaluated]
    for _, planned in made.parts:
        found += [(type(c), c.subjects, [op.name for op in c.operators]) for c in planned.bench.folds]
        found += [(left.kind, left.source.subjects) for left in planned.leftovers]
    return found
