"""Fold and inspect a PyTorch module as the graph that torch.export captures; nothing needs a place in its tree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bnfold.api_torch import check_initialised, check_module
from bnfold.checking import demand
from bnfold.errors import VerificationError
from bnfold.folding import FoldPlan, plan
from bnfold.frontends.torch_arguments import Arguments, demanded
from bnfold.frontends.torch_capture import Captured, capture_graph, captured_program
from bnfold.frontends.torch_flops import count_flops
from bnfold.frontends.torch_graph import TorchGraph
from bnfold.frontends.torch_graph_module import as_module
from bnfold.frontends.torch_limits import fixed_sizes, limits
from bnfold.frontends.torch_rewrite import rewritten
from bnfold.frontends.torch_wide import widened
from bnfold.leftover_forms import Form
from bnfold.leftovers import leave
from bnfold.model_size import scales_of
from bnfold.notes import merge_notes
from bnfold.report.model import Report, Size
from bnfold.torch_culprit import first_difference
from bnfold.torch_result import TorchFoldResult
from bnfold.torchcheck import torch_check
from bnfold.verification import Verification
from bnfold.views import Barrier, BatchNorm
from bnfold.wishes import Proof

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram


@dataclass(frozen=True)
class GraphSettings:
    """How a module is folded as a graph.

    Attributes:
        wanted: Which BatchNorms may change, by name.
        static_shapes: Whether the sizes of the example are the only ones.
        reduce: Whether a clamp may get a bound for each channel, and an Add be left of a BatchNorm.
        merge: Whether linear operators in parallel and in a row become one.
        leftover: What is written for a BatchNorm that stays.
    """

    wanted: Callable[[str], bool] = lambda _name: True
    static_shapes: bool = False
    reduce: bool = False
    merge: bool = True
    leftover: Form = "keep"


@dataclass(frozen=True, eq=False)
class _Planned:
    captured: Captured
    graph: TorchGraph
    plan: FoldPlan
    notes: tuple[str, ...]
    sample: Arguments

    @property
    def report(self) -> Report:
        size, scales = self.size(self.captured.program, self.graph), scales_of([(self.graph, self.plan)])
        return Report("program", self.plan.decisions, size, notes=self.notes, scales=scales)

    def size(self, program: ExportedProgram, graph: TorchGraph) -> Size:
        """Of the program or what becomes of it; FLOPs at the caller's own sizes, if it holds for them."""
        norms = [op for op in graph.operators if isinstance(op.view, BatchNorm) or _is_kept(op.view)]
        tensors = [t for _, t in (*program.named_parameters(), *program.named_buffers())]
        numbers, stored = sum(t.numel() for t in tensors), sum(t.numel() * t.element_size() for t in tensors)
        flops = count_flops(as_module(program), self.sample)
        if flops.work is None and self.sample is not self.captured.inputs:
            flops = count_flops(as_module(program), self.captured.inputs)
        return Size(len(graph.operators), len(norms), stored, numbers, flops)


def inspect_graph(module: nn.Module, inputs: Arguments | None, settings: GraphSettings) -> Report:
    """What `fold_graph` would do.

    Raises:
        UsageError: There are no example inputs.
        ModelError: The module is in training mode, or cannot be captured.
    """
    captured, notes = capture_module(module, inputs, settings)
    report = _plan(captured, settings, inputs).report
    return replace(report, model=type(module).__name__, notes=notes + report.notes)


def fold_graph(module: nn.Module, inputs: Arguments | None, settings: GraphSettings, proof: Proof) -> TorchFoldResult:
    """Fold all that exact arithmetic allows; the result is a GraphModule, and the module stays as it is.

    Raises:
        UsageError, ModelError: As `inspect_graph`.
        VerificationError: The graph is not equivalent to the module, or the folded one not to it.
        MachineError: The check cannot be run here, or proves nothing.
    """
    program, report = fold_to_program(module, inputs, settings, proof)
    return TorchFoldResult(as_module(program), report)


def fold_to_program(
    module: nn.Module, inputs: Arguments | None, settings: GraphSettings, proof: Proof
) -> tuple[ExportedProgram, Report]:
    """As `fold_graph`; the result is an exported program."""
    captured, notes = capture_module(module, inputs, settings)
    name = type(module).__name__
    if proof.verify:
        check_capture(module, captured, proof, name)
    program, report = fold_program(captured.program, captured.inputs, settings, proof, name=name, sample=inputs)
    return program, replace(report, notes=notes + report.notes)


def inspect_program(program: ExportedProgram, inputs: Arguments, settings: GraphSettings, name: str) -> Report:
    """What `fold_program` would do."""
    return replace(_plan(captured_program(program, inputs), settings, inputs).report, model=name)


def fold_program(  # noqa: PLR0913
    program: ExportedProgram,
    inputs: Arguments,
    settings: GraphSettings,
    proof: Proof,
    *,
    name: str = "program",
    sample: Arguments | None = None,
) -> tuple[ExportedProgram, Report]:
    """Fold an exported program, which stays as it is.

    Args:
        program: The program.
        inputs: Example inputs that it takes.
        settings: What to do; `static_shapes` means nothing here, as the program says which sizes it takes.
        proof: How to check it.
        name: What it is called in the report.
        sample: Inputs of the sizes to count FLOPs at; by default `inputs`.

    Raises:
        VerificationError, MachineError: As `fold_graph`.
    """
    planned = _plan(captured_program(program, inputs), settings, sample)
    folded, _ = rewritten(program, planned.graph, planned.plan)
    graph = TorchGraph(None, captured_program(folded, inputs))
    report = replace(planned.report, model=name, after=planned.size(folded, graph), recalibration=proof.recalibration)
    if not proof.verify:
        return folded, report
    report = replace(report, verification=_check(planned, folded, proof))
    demand(report, "module", proof.remedy)
    return folded, report


def capture_module(
    module: nn.Module, inputs: Arguments | None, settings: GraphSettings
) -> tuple[Captured, tuple[str, ...]]:
    """The graph of a module, and for what it holds; errors as `inspect_graph`."""
    check_module(module)
    check_initialised(module)
    captured = capture_graph(module, demanded(inputs), static_shapes=settings.static_shapes)
    if settings.static_shapes:
        return captured, ("captured for the sizes of the example only",)
    return captured, (*limits(captured), *fixed_sizes(module, captured))


def _plan(captured: Captured, settings: GraphSettings, sample: Arguments | None) -> _Planned:
    graph = TorchGraph(None, captured)
    made = plan(graph, settings.wanted, reduces=settings.reduce, merges=settings.merge)
    made = leave(made, settings.leftover)
    notes = merge_notes([((), merge) for merge in made.merges])
    return _Planned(captured, graph, made, notes, sample or captured.inputs)


def check_capture(module: nn.Module, captured: Captured, proof: Proof, name: str) -> None:
    """The graph computes what the module does, up to the rounding errors of the graph itself.

    Raises:
        VerificationError: It does not.
        MachineError: That cannot be told.
    """
    graph, wide = as_module(captured.program), as_module(widened(captured.program))
    check = torch_check((graph, module, wide), captured.inputs, {}, reference=wide, seed=proof.seed)
    report = Report(name, (), Size(0, 0, 0), verification=Verification((), (check,)))
    if check.failed:
        what = f"torch.export captures something else than it computes: {check.first_divergence} differs"
        failure = VerificationError(what, where=name, remedy="leave out as_graph, or write a state dict")
        failure.report = report
        raise failure
    demand(report, "module", proof.remedy)


def _check(planned: _Planned, folded: ExportedProgram, proof: Proof) -> Verification:
    """The folded program against the original one, both as stored and in float64."""
    program, inputs = planned.captured.program, planned.captured.inputs
    written, same = rewritten(program, planned.graph, planned.plan, is_wide=True)
    wide, exact = widened(program), widened(written)
    modules = (as_module(program), as_module(folded), as_module(exact))
    check = torch_check(modules, inputs, {}, reference=as_module(wide), seed=proof.seed, progress=proof.progress)
    if check.failed:
        first = first_difference((wide, exact), inputs, same)
        producer = None if first is None else planned.graph.producer(first)
        check = replace(check, first_divergence=check.first_divergence if producer is None else producer.name)
    return Verification((), (check,))


def _is_kept(view: object) -> bool:
    return isinstance(view, Barrier) and view.is_batchnorm
