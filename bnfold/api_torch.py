"""Fold and inspect for PyTorch modules; `bnfold.api` hands them on to here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from bnfold.checking import demand
from bnfold.errors import ModelError
from bnfold.folding import FoldPlan
from bnfold.frontends.torch_arguments import Arguments
from bnfold.frontends.torch_capture import copied, in_float64
from bnfold.frontends.torch_flops import count_flops
from bnfold.frontends.torch_graph import TorchGraph
from bnfold.frontends.torch_lazy import has_lazy, initialise, is_lazy, lazy_tensors
from bnfold.model_size import scales_of
from bnfold.report.model import Report, Size
from bnfold.torch_plan import Planned, plan_module
from bnfold.torch_result import TorchFoldResult
from bnfold.torchcheck import torch_check
from bnfold.verification import Verification
from bnfold.views import Barrier, BatchNorm
from bnfold.wishes import Proof

if TYPE_CHECKING:
    from torch import nn


def inspect_module(module: nn.Module, inputs: Arguments | None, wanted: Callable[[str], bool]) -> Report:
    """What `fold_module` would do.

    Raises:
        UsageError: There are no example inputs, and none could be made up.
        ModelError: The module is in training mode, or does not run on the inputs.
    """
    planned = _plan(module, inputs, wanted)
    before, scales = _size(module, planned, inputs), scales_of(planned.parts)
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
    name, before = type(module).__name__, _size(module, planned, inputs)
    folded = _written(copied(module), planned)
    gone = sum(len(made.bench.removed) for _, made in planned.parts)
    flops = count_flops(folded, inputs or planned.inputs)
    after = Size(before.nodes - gone, before.batchnorms - gone, *_stored(folded), flops)
    scales, moved = scales_of(planned.parts), proof.recalibration
    report = Report(name, planned.decisions, before, after, None, planned.notes, scales, moved)
    if proof.verify:
        ready = initialise(copied(module), planned.inputs, planned.paths) if has_lazy(module) else module
        exact = _written(in_float64(ready), planned)
        running = folded if ready is module else _written(copied(ready), planned)
        landmarks = {path: name for part in planned.parts for path, name in _landmarks(*part).items()}
        check = torch_check((ready, running, exact), planned.inputs, landmarks,
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
        ModelError: It is TorchScript, or in training mode.
    """
    import torch  # noqa: PLC0415

    if isinstance(module, torch.jit.ScriptModule):
        what = "it is TorchScript, whose code cannot change"
        raise ModelError(what, where=type(module).__name__, remedy="give the Python module")
    check_mode(module)


def check_mode(module: nn.Module) -> None:
    """Raises a ModelError if the module is in training mode."""
    if module.training:
        what = "the module is in training mode"
        raise ModelError(what, where=type(module).__name__, remedy="call .eval() on it first")


def check_initialised(module: nn.Module) -> None:
    """Whether all its parameters are there, where nothing can be done without them.

    Raises:
        ModelError: Parts of it are lazy, and it was not run yet.
    """
    for name, _ in lazy_tensors(module):
        where = name.rpartition(".")[0] or type(module).__name__
        raise ModelError("a lazy module has no parameters yet", where=where, remedy="run the module once")


def _written(target: nn.Module, planned: Planned) -> nn.Module:
    planned.write(target)
    return target


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


def _size(module: nn.Module, planned: Planned, inputs: Arguments | None) -> Size:
    """Of a module that was not captured whole, the operators of its parts; FLOPs at the caller's own sizes."""
    operators = [op for graph, _ in planned.parts for op in graph.operators]
    norms = [op for op in operators if isinstance(op.view, BatchNorm) or _is_kept(op.view)]
    held = {op.name for op in norms}
    elsewhere = [d for d in planned.decisions if d.subject.is_batchnorm and d.subject.name not in held]
    flops = count_flops(module, inputs or planned.inputs)
    return Size(len(operators) + len(elsewhere), len(norms) + len(elsewhere), *_stored(module), flops)


def _is_kept(view: object) -> bool:
    return isinstance(view, Barrier) and view.is_batchnorm


def _stored(module: nn.Module) -> tuple[int, int]:
    """Bytes of all parameters and buffers, and how many numbers they are."""
    tensors = [t for t in (*module.parameters(), *module.buffers()) if not is_lazy(t)]
    return sum(t.numel() * t.element_size() for t in tensors), sum(t.numel() for t in tensors)
