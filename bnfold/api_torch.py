"""Fold and inspect for PyTorch modules; `bnfold.api` hands them on to here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bnfold.checking import demand
from bnfold.errors import ModelError, UsageError
from bnfold.folding import FoldPlan, plan
from bnfold.frontends.torch_capture import Captured, capture, copied, limits
from bnfold.frontends.torch_graph import TorchGraph
from bnfold.frontends.torch_write import write
from bnfold.report.model import Report, Size
from bnfold.torch_result import TorchFoldResult
from bnfold.torchcheck import torch_check
from bnfold.verification import Verification
from bnfold.views import Barrier, BatchNorm

#: What helps where nothing is proven.
_REMEDY = "keep=... leaves a BatchNorm alone, verify=False folds without this proof"

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, eq=False)
class _Planned:
    captured: Captured
    graph: TorchGraph
    plan: FoldPlan


def inspect_module(module: nn.Module, inputs: tuple[Any, ...] | None, wanted: Callable[[str], bool]) -> Report:
    """What `fold_module` would do.

    Raises:
        UsageError: There are no example inputs.
        ModelError: The module is in training mode, or cannot be captured.
    """
    planned = _plan(module, inputs, wanted)
    before = _size(module, planned.graph)
    return Report(type(module).__name__, planned.plan.decisions, before, notes=limits(planned.captured))


def fold_module(  # noqa: PLR0913
    module: nn.Module,
    inputs: tuple[Any, ...] | None,
    wanted: Callable[[str], bool],
    *,
    inplace: bool,
    verify: bool,
    seed: int,
    progress: Callable[[str], None] | None,
) -> TorchFoldResult:
    """Fold what exact arithmetic allows and what can be written into the module tree, and check the result.

    Raises:
        UsageError, ModelError: As `inspect_module`.
        VerificationError: The folded module is not equivalent; its `report` says where. Nothing was changed.
        MachineError: The check cannot be run here, or proves nothing.
    """
    planned = _plan(module, inputs, wanted)
    name, before = type(module).__name__, _size(module, planned.graph)
    folded = copied(module)
    write(folded, planned.graph, planned.plan)
    gone = len(planned.plan.bench.removed)
    after = Size(before.nodes - gone, before.batchnorms - gone, _bytes(folded))
    notes = limits(planned.captured)
    report = Report(name, planned.plan.decisions, before, after, notes=notes)
    if verify:
        exact = copied(module).double()
        write(exact, planned.graph, planned.plan)
        check = torch_check(
            (module, folded, exact), planned.captured.inputs, _landmarks(planned), seed=seed, progress=progress
        )
        report = Report(name, planned.plan.decisions, before, after, Verification((), (check,)), notes)
        demand(report, "module", _REMEDY)
    if inplace:
        write(module, planned.graph, planned.plan)
        folded = module
    return TorchFoldResult(folded, report)


def _plan(module: nn.Module, inputs: tuple[Any, ...] | None, wanted: Callable[[str], bool]) -> _Planned:
    check_module(module)
    inputs = check_inputs(inputs)
    captured = capture(module, inputs)
    graph = TorchGraph(module, captured)
    return _Planned(captured, graph, plan(graph, wanted, merges=False))


def check_inputs(inputs: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """The example inputs, or a UsageError if there are none."""
    if isinstance(inputs, tuple):
        return inputs
    what = "a PyTorch module needs example_inputs, the tuple of what its forward pass takes"
    raise UsageError(what, where="example_inputs", remedy="example_inputs=(torch.randn(2, 3, 224, 224),)")


def check_module(module: nn.Module) -> None:
    """Raise a ModelError if the module is TorchScript, in training mode, or has no parameters yet."""
    import torch  # noqa: PLC0415

    name = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError("it is TorchScript, whose code cannot change", where=name, remedy="give the Python module")
    if module.training:
        raise ModelError("the module is in training mode", where=name, remedy="call .eval() on it first")
    for path, part in module.named_modules():
        lazy = torch.nn.parameter.is_lazy
        tensors = [*part._parameters.values(), *part._buffers.values()]
        if any(t is not None and lazy(t) for t in tensors):
            raise ModelError("a lazy module has no parameters yet", where=path, remedy="run the module once")


def _landmarks(planned: _Planned) -> dict[str, str]:
    """The modules whose outputs must be the same before and after: by path, the BatchNorm that they answer for."""
    found: dict[str, str] = {}
    graph = planned.graph
    for fold in planned.plan.bench.folds:
        last = fold.source.operators[-1]  # type: ignore[union-attr]
        place = graph.batchnorms[last.index].path
        if fold.direction == "pull" and graph.batchnorms[last.index].rest is not None:  # type: ignore[union-attr]
            found[place] = last.name
    changed = {value for fold in planned.plan.bench.folds for value in fold.values}
    return {path: name for path, name in found.items() if not _changes_again(graph, name, changed)}


def _changes_again(graph: TorchGraph, name: str, changed: set[str]) -> bool:
    """Whether a later fold changed the meaning of the BatchNorm's own output."""
    return any(op.name == name and op.outputs[0] in changed for op in graph.operators)


def _size(module: nn.Module, graph: TorchGraph) -> Size:
    norms = [op for op in graph.operators if isinstance(op.view, BatchNorm) or _is_kept(op.view)]
    return Size(len(graph.operators), len(norms), _bytes(module))


def _is_kept(view: object) -> bool:
    return isinstance(view, Barrier) and view.is_batchnorm


def _bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])
