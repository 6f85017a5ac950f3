"""What the tests of other tools' bugs share: a fold held against torch in float64, and against the peer's mistake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import onnx
import torch
from onnx_models import assert_fold, parse, proto
from torch import Tensor

import bnfold
from bnfold.data import read_inputs, synthesise
from bnfold.decision import Reason
from bnfold.frontends.onnx_float64 import evaluate, in_float64
from bnfold.runtime import open_session

F = torch.nn.functional

#: From the inputs and the constants by name, in float64, to the first output.
Compute: TypeAlias = Callable[[Any], Tensor]

IMAGE, WEIGHT = "float[N,3,8,8] x", "float[4,3,3,3] w"
OUT = "float[A,B,C,D] y"
SECOND = "float[4] gamma2, float[4] beta2, float[4] mean2, float[4] var2"
STATS2 = "gamma2, beta2, mean2, var2"

#: Of the output's scale: what float32 may be off by, and what a mistake is off by at least.
CLOSE, FAR = 2e-5, 1e-2


def norm(x: Tensor, c: Any, number: str = "", epsilon: float = 1e-5) -> Tensor:
    """An inference BatchNorm as its definition says, over axis 1."""
    gamma, beta, mean, var = (
        getattr(c, f"{name}{number}").reshape(-1, *[1] * (x.ndim - 2)) for name in ("gamma", "beta", "mean", "var")
    )
    return gamma * (x - mean) / torch.sqrt(var + epsilon) + beta


def scale_of(c: Any, number: str = "") -> Tensor:
    """gamma / sqrt(var + epsilon)."""
    return getattr(c, f"gamma{number}") / torch.sqrt(getattr(c, f"var{number}") + 1e-5)


def holds(
    text: str,
    right: Compute,
    wrong: Compute | None = None,
    *,
    folded: int,
    kept: Sequence[Reason] = (),
    **options: Any,
) -> bnfold.FoldResult:
    """Fold, by every promise of a fold, and compare with `right`; `wrong`, the peer's mistake, must be far from it."""
    chosen = {k: options.pop(k) for k in ("values", "opset", "seed", "ir_version") if k in options}
    model = parse(text, **chosen)
    result = assert_fold(model, folded=folded, kept=kept, **options)
    compare(model, proto(result.model), right, wrong)
    return result


def compare(model: onnx.ModelProto, after: onnx.ModelProto, right: Compute, wrong: Compute | None) -> None:
    """`after` on onnxruntime and in float64 against `right`."""
    feeds = synthesise(read_inputs(model), seed=5, batch=2, spatial=8, overrides={})
    numbers = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer} | feeds
    known = SimpleNamespace(**{k: torch.from_numpy(np.array(v, np.float64)) for k, v in numbers.items()})
    name = model.graph.output[0].name
    expected = right(known).numpy()
    scale = np.abs(expected).max()
    assert scale > 0
    for got in (open_session(after, "cpu").run([name], feeds), evaluate(in_float64(after), feeds, [name])):
        assert got[name].shape == expected.shape
        assert np.abs(got[name] - expected).max() <= CLOSE * scale
    if wrong is not None:
        assert np.abs(wrong(known).numpy() - expected).max() > FAR * scale
