"""Folds a PyTorch module by inductor's freezing.

Inductor takes BatchNorms apart; left are the BatchNorm modules of which its frozen graph has arithmetic left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from benchmarks.torch_made import Made

#: What inductor makes of a BatchNorm.
_ARITHMETIC = {torch.ops.aten.sub.Tensor, torch.ops.aten.mul.Tensor, torch.ops.aten.add.Tensor}


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
