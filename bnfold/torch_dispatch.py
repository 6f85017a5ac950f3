"""Tells PyTorch modules from ONNX models without importing torch, and hands them on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from bnfold.errors import UsageError
from bnfold.frontends.torch_arguments import Arguments, read_arguments
from bnfold.leftover_forms import Form
from bnfold.report.model import Report
from bnfold.torch_result import TorchFoldResult
from bnfold.verification import Verification
from bnfold.wishes import Proof

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

#: as_graph, static_shapes, reduce, merge and leftover.
Graph: TypeAlias = tuple[bool, bool, bool, bool, Form]

#: example_inputs and example_kwargs.
Example: TypeAlias = "tuple[tuple[Any, ...] | None, Mapping[str, Any] | None]"


def is_module(model: object) -> TypeGuard[nn.Module]:
    """Whether `model` is a PyTorch module; nobody has one without having imported torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def inspect_torch(module: nn.Module, inputs: Arguments | None, wanted: Callable[[str], bool], graph: Graph) -> Report:
    """`inspect` for a module.

    Raises:
        UsageError: What is given for a graph is given without `as_graph`; also as below.
    """
    if graph[0]:
        from bnfold.api_torch_graph import GraphSettings, inspect_graph  # noqa: PLC0415

        return inspect_graph(module, inputs, GraphSettings(wanted, *graph[1:]))
    from bnfold.api_torch import inspect_module  # noqa: PLC0415

    _refuse_graph(graph)
    return inspect_module(module, inputs, wanted)


def fold_torch(  # noqa: PLR0913
    module: nn.Module,
    inputs: Arguments | None,
    wanted: Callable[[str], bool],
    graph: Graph,
    proof: Proof,
    *,
    inplace: bool,
) -> TorchFoldResult:
    """`fold` for a module, behind `check_wishes`."""
    if graph[0]:
        from bnfold.api_torch_graph import GraphSettings, fold_graph  # noqa: PLC0415

        return fold_graph(module, inputs, GraphSettings(wanted, *graph[1:]), proof)
    from bnfold.api_torch import fold_module  # noqa: PLC0415

    return fold_module(module, inputs, wanted, proof, inplace=inplace)


def check_wishes(graph: Graph, *, inplace: bool, calibrates: bool) -> None:
    """What `fold` can be asked for of a module at once.

    Raises:
        UsageError: Not this.
    """
    if inplace and graph[0]:
        what = "as_graph makes another module, inplace changes the one that is given"
        raise UsageError(what, where="inplace", remedy="leave out one of the two")
    if inplace and calibrates:
        what = "calibrate folds a recalibrated copy, inplace changes the module that is given"
        raise UsageError(what, where="inplace", remedy="call bnfold.recalibrate(..., inplace=True) first, then fold")
    if not graph[0]:
        _refuse_graph(graph)


def _refuse_graph(graph: Graph) -> None:
    _, static_shapes, reduce, merge, leftover = graph
    if static_shapes or reduce or not merge or leftover != "keep":
        what = "static_shapes, reduce, merge and leftover have no place in a module tree"
        raise UsageError(what, where="fold", remedy="as_graph=True makes a graph of the module, which takes them")


def verify_torch(  # noqa: PLR0913
    before: object,
    after: nn.Module | ir.Model,
    example: Example,
    others: tuple[object, ...],
    *,
    providers: tuple[str, ...],
    seed: int,
    deployed: bool,
    progress: Callable[[str], None] | None,
) -> Verification:
    """`verify` with a module; `others` as in `inspect_torch`.

    Raises:
        UsageError: The first of the two is none.
    """
    from bnfold.torch_verify import verify_module  # noqa: PLC0415

    if not is_module(before):
        raise UsageError("a PyTorch module is the first of the two", where="verify", remedy="verify(module, model)")
    if any(others):
        what = (
            "of a module, verify takes example_inputs, example_kwargs, providers, seed, progress and, with an ONNX "
            "model, deployed, and nothing else"
        )
        raise UsageError(what, where="verify")
    inputs = read_arguments(before, *example)
    return verify_module(before, after, inputs, providers=providers, seed=seed, deployed=deployed, progress=progress)


def refuse_torch(others: tuple[object, ...]) -> None:
    """Args: the arguments that no module takes, false where they were not given.

    Raises:
        UsageError: One was.
    """
    if any(others):
        raise UsageError(
            "a PyTorch module takes example_inputs, example_kwargs, inplace, calibrate, only, keep, verify, seed, "
            "progress, as_graph and with it static_shapes, reduce, merge and leftover, and nothing else",
            where="fold",
        )


def refuse_onnx(*others: bool) -> None:
    """As `refuse_torch`, of what only a module takes."""
    if any(others):
        what = "example_inputs, example_kwargs, inplace, as_graph and static_shapes are for PyTorch modules"
        raise UsageError(what, where="fold")
