"""Folds one module with one tool: bnfold, what PyTorch brings along, and what the module's own package brings.

Each tool gets a module of its own, in eval mode, and an example input. BatchNorms left are counted in what the result
runs: the aten operators of one run for modules, `aten::batch_norm` nodes for TorchScript, and for inductor, which takes
them apart, the BatchNorm modules of which its frozen graph has arithmetic left.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import fusion
from torch.utils._python_dispatch import TorchDispatchMode

import bnfold


class NothingToDoError(Exception):
    """The module's package brings no fold of its own for it."""


@dataclass(frozen=True, eq=False)
class Made:
    """What a tool made.

    Attributes:
        run: Computes what the module computes.
        left: How many BatchNorms one run goes through, given an input.
        report: bnfold's.
    """

    run: Callable[[Tensor], Any]
    left: Callable[[Tensor], int]
    report: bnfold.Report | None = None


#: What inductor makes of a BatchNorm.
_ARITHMETIC = {torch.ops.aten.sub.Tensor, torch.ops.aten.mul.Tensor, torch.ops.aten.add.Tensor}

Tool: TypeAlias = Callable[[nn.Module, Tensor, tuple[str, str]], Made]


class _Counting(TorchDispatchMode):
    """Counts the BatchNorm operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found += "batch_norm" in str(func)
        return func(*args, **(kwargs or {}))


def calls(run: Callable[[Tensor], Any], x: Tensor) -> int:
    """How many BatchNorm operators a run on x goes through."""
    counting = _Counting()
    with torch.no_grad(), counting:
        run(x)
    return counting.found


def _module(module: nn.Module, report: bnfold.Report | None = None) -> Made:
    return Made(module, lambda x: calls(copy.deepcopy(module), x), report)


def by_bnfold(module: nn.Module, x: Tensor, _pair: tuple[str, str] = ("", "")) -> Made:
    """`bnfold.fold`, which verifies its result; the module's own class comes back."""
    result = bnfold.fold(module, example_inputs=(x[:2],))
    return _module(result.module, result.report)


def by_fx(module: nn.Module, _x: Tensor, _pair: tuple[str, str] = ("", "")) -> Made:
    """`torch.fx.experimental.optimization.fuse`."""
    from torch.fx.experimental.optimization import fuse  # noqa: PLC0415

    return _module(fuse(module))


def by_freeze(module: nn.Module, x: Tensor, _pair: tuple[str, str] = ("", "")) -> Made:
    """`torch.jit.freeze` of the module traced with the example."""
    frozen = torch.jit.freeze(torch.jit.trace(module, x, check_trace=False))  # type: ignore[no-untyped-call]
    return Made(frozen, lambda _: len(frozen.inlined_graph.findAllNodes("aten::batch_norm")))


def by_inductor(module: nn.Module, x: Tensor, _pair: tuple[str, str] = ("", "")) -> Made:
    """What inductor freezes; torch's own kernels run the frozen graph, no code is generated for it.

    Without oneDNN: inductor packs weights for it, which does not work in float64.
    """
    from torch._inductor import config  # noqa: PLC0415
    from torch._inductor.compile_fx import compile_fx  # noqa: PLC0415

    graphs: list[fx.GraphModule] = []

    def keep(graph: fx.GraphModule, _inputs: Any, **_options: Any) -> Callable[[list[Any]], Any]:
        graphs.append(graph)
        return _boxed(graph)

    def backend(graph: fx.GraphModule, inputs: Any) -> Any:
        return compile_fx(graph, inputs, inner_compile=keep)

    compiled = torch.compile(module, backend=backend)

    def run(sample: Tensor) -> Any:
        packs = torch.backends.mkldnn.flags(enabled=False)
        with torch.no_grad(), config.patch(freezing=True), packs:
            return compiled(sample)

    torch._dynamo.reset()
    run(x)
    left = len(set[str]().union(*map(_decomposed, graphs)))  # now: other sizes make more graphs
    return Made(run, lambda _: left)


def _boxed(graph: fx.GraphModule) -> Callable[[list[Any]], Any]:
    """`graph` as inductor calls what it has compiled: with a list that is emptied."""

    def call(arguments: list[Any]) -> Any:
        given = [*arguments]
        arguments.clear()
        return graph(*given)

    call._boxed_call = True  # type: ignore[attr-defined]
    return call


def _decomposed(graph: fx.GraphModule) -> set[str]:
    """The BatchNorm modules of which a frozen graph has arithmetic left: (x - mean) * scale * gamma + beta there."""
    found = set()
    for node in graph.graph.nodes:
        if "batch_norm" in str(node.meta.get("original_aten")) and node.target in _ARITHMETIC:
            *_, (where, _) = node.meta["nn_module_stack"].values()
            found.add(where)
    return found


def by_own(module: nn.Module, _x: Tensor, _pair: tuple[str, str] = ("", "")) -> Made:
    """What the module's package brings: `fuse()` of ultralytics, `reparameterize_model` of timm.

    Raises:
        NothingToDoError: The package has nothing for this module.
    """
    if type(module).__module__.startswith("ultralytics"):
        return _module(module.fuse(verbose=False))  # type: ignore[operator]
    methods = ("fuse", "reparameterize", "switch_to_deploy")
    if not any(hasattr(part, name) for part in module.modules() for name in methods):
        raise NothingToDoError
    from timm.utils.model import reparameterize_model  # noqa: PLC0415

    return _module(reparameterize_model(module))


def by_fuse_modules(module: nn.Module, _x: Tensor, pair: tuple[str, str]) -> Made:
    """`torch.ao.quantization.fuse_modules` of the pair that the caller names."""
    return _module(torch.ao.quantization.fuse_modules(module, [[*pair]]))  # type: ignore[no-untyped-call]


def by_hand(module: nn.Module, _x: Tensor, pair: tuple[str, str]) -> Made:
    """`torch.nn.utils.fusion` on the pair that the caller names, put back into the module."""
    first, second = (module.get_submodule(name) for name in pair)
    if isinstance(first, nn.Linear):
        fused: nn.Module = fusion.fuse_linear_bn_eval(first, second)  # type: ignore[arg-type]
    else:
        is_transposed = isinstance(first, nn.ConvTranspose2d)
        fused = fusion.fuse_conv_bn_eval(first, second, transpose=is_transposed)  # type: ignore[arg-type, type-var]
    module.set_submodule(pair[0], fused)
    module.set_submodule(pair[1], nn.Identity())
    return _module(module)


#: The columns of the table of networks.
WHOLE: dict[str, Tool] = {
    "bnfold": by_bnfold,
    "torch.fx fuse": by_fx,
    "jit.freeze": by_freeze,
    "inductor freezing": by_inductor,
    "own fuse": by_own,
}
#: The columns of the table of small modules.
SMALL: dict[str, Tool] = {
    **{name: tool for name, tool in WHOLE.items() if name != "own fuse"},
    "ao fuse_modules": by_fuse_modules,
    "nn.utils.fusion": by_hand,
}
