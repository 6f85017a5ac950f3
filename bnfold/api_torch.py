"""Fold and inspect for PyTorch modules; `bnfold.api` hands them on to here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from bnfold.checking import Proof, demand
from bnfold.errors import ModelError
from bnfold.folding import FoldPlan
from bnfold.frontends.torch_arguments import Arguments
from bnfold.frontends.torch_capture import copied, in_float64
from bnfold.frontends.torch_graph import TorchGraph
from bnfold.model_size import scales_of
from bnfold.report.model import Report, Size
from bnfold.torch_plan import Planned, plan_module
from bnfold.torch_result import TorchFoldResult
from bnfold.torchcheck import torch_check
from bnfold.verification import Verification
from bnfold.views import Barrier, BatchNorm

if TYPE_CHECKING:
    from torch import nn


def inspect_module(module: nn.Module, inputs: Arguments | None, wanted: Callable[[str], bool]) -> Report:
    """What `fold_module` would do.

    Raises:
        UsageError: There are no example inputs, and none could be made up.
        ModelError: The module is in training mode, or does not run on the inputs.
    """
    planned = _plan(module, inputs, wanted)
    before, scales = _size(module, planned), scales_of(planned.parts)
    return Report(type(module).__name__, planned.decisions, before, notes=planned.notes, scales=scales)


def fold_module(
    module: nn.Module, inputs: Arguments | None, wanted: Callable[[str], bool], proof: Proof, *, inplace: bool
) -> TorchFoldResult:
    """Fold what exact arithmetic allows and what can be written into the module tree, and check the result.

    Raises:
        UsageError, ModelError: As `inspect_module`.
        VerificationError: The folded module is not equivalent; its `report` says where. Nothing was changed.
        MachineError: The check cannot be run here, or proves nothing.
    """
    planned = _plan(module, inputs, wanted)
    name, before = type(module).__name__, _size(module, planned)
    folded = copied(module)
    planned.write(folded)
    gone = sum(len(made.bench.removed) for _, made in planned.parts)
    after = Size(before.nodes - gone, before.batchnorms - gone, _bytes(folded))
    scales, moved = scales_of(planned.parts), proof.recalibration
    report = Report(name, planned.decisions, before, after, None, planned.notes, scales, moved)
    if proof.verify:
        exact = in_float64(module)
        planned.write(exact)
        landmarks = {path: name for part in planned.parts for path, name in _landmarks(*part).items()}
        check = torch_check((module, folded, exact), planned.inputs, landmarks,
                            paths=planned.paths, seed=proof.seed, progress=proof.progress)  # fmt: skip
        report = replace(report, verification=Verification((), (check,)))
        demand(report, "module", proof.remedy)
    if inplace:
        planned.write(module)
        folded = module
    return TorchFoldResult(folded, report)


def _plan(module: nn.Module, inputs: Arguments | None, wanted: Callable[[str], bool]) -> Planned:
    check_module(module)
    return plan_module(module, inputs, wanted)


def check_module(module: nn.Module) -> None:
    """Whether it can be read, and changed.

    Raises:
        ModelError: It is TorchScript, in training mode, or has no parameters yet.
    """
    import torch  # noqa: PLC0415

    if isinstance(module, torch.jit.ScriptModule):
        what = "it is TorchScript, whose code cannot change"
        raise ModelError(what, where=type(module).__name__, remedy="give the Python module")
    check_ready(module)


def check_ready(module: nn.Module) -> None:
    """Whether it can be run for its result.

    Raises:
        ModelError: It is in training mode, or has no parameters yet.
    """
    import torch  # noqa: PLC0415

    if module.training:
        what = "the module is in training mode"
        raise ModelError(what, where=type(module).__name__, remedy="call .eval() on it first")
    for path, part in module.named_modules():
        lazy = torch.nn.parameter.is_lazy
        tensors = [*part._parameters.values(), *part._buffers.values()]
        if any(t is not None and lazy(t) for t in tensors):
            raise ModelError("a lazy module has no parameters yet", where=path, remedy="run the module once")


def _landmarks(graph: TorchGraph, made: FoldPlan) -> dict[str, str]:
    """The modules whose outputs must be the same before and after: by path, the BatchNorm that they answer for."""
    found: dict[str, str] = {}
    for fold in made.bench.folds:
        last = fold.source.operators[-1]  # type: ignore[union-attr]
        place = graph.batchnorms[last.index].path
        if fold.direction == "pull" and graph.batchnorms[last.index].rest is not None:  # type: ignore[union-attr]
            found[place] = last.name
    changed = {value for fold in made.bench.folds for value in fold.values}
    return {path: name for path, name in found.items() if not _changes_again(graph, name, changed)}


def _changes_again(graph: TorchGraph, name: str, changed: set[str]) -> bool:
    """Whether a later fold changed the meaning of the BatchNorm's own output."""
    return any(op.name == name and op.outputs[0] in changed for op in graph.operators)


def _size(module: nn.Module, planned: Planned) -> Size:
    """Of a module that was not captured whole, the operators of its parts."""
    operators = [op for graph, _ in planned.parts for op in graph.operators]
    norms = [op for op in operators if isinstance(op.view, BatchNorm) or _is_kept(op.view)]
    held = {op.name for op in norms}
    elsewhere = [d for d in planned.decisions if d.subject.is_batchnorm and d.subject.name not in held]
    return Size(len(operators) + len(elsewhere), len(norms) + len(elsewhere), _bytes(module))


def _is_kept(view: object) -> bool:
    return isinstance(view, Barrier) and view.is_batchnorm


def _bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])
