"""`ema` is PyTorch's and Keras' running average, `batch` is precise BN, and neither is `sequential`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx_models import parse
from recalibration_cases import CASES, bn, parameters
from torch import nn

import bnfold
from bnfold.frontends.onnx_float64 import evaluate, in_float64
from tests.recalibrated import TOLERANCE, assert_expected, cut_up, expected, statistics_in

Array = np.ndarray[Any, Any]

MODEL = CASES["a chain"]


def data() -> dict[str, Array]:
    generator = np.random.default_rng(8)
    contrast = np.exp(generator.standard_normal((37, 1, 1, 1)))
    return {"x": (3 + contrast * generator.standard_normal((37, 4, 6, 6))).astype(np.float32)}


class Chain(nn.Module):
    """The case "a chain" in torch, in train mode."""

    def __init__(self, model: onnx.ModelProto, momentum: float | None, dtype: torch.dtype) -> None:
        super().__init__()
        arrays = {t.name: torch.tensor(onnx.numpy_helper.to_array(t)) for t in model.graph.initializer}
        self.convolutions = [nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(2)]
        self.norms = [nn.BatchNorm2d(4, momentum=momentum) for _ in range(2)]
        for k, (convolution, norm, name) in enumerate(zip(self.convolutions, self.norms, "ab", strict=True)):
            convolution.weight.data = arrays[f"w{k + 1}"]
            norm.weight.data, norm.bias.data = arrays[f"gamma_{name}"], arrays[f"beta_{name}"]
            norm.running_mean, norm.running_var = arrays[f"mean_{name}"].clone(), arrays[f"var_{name}"].clone()
        for module in (*self.convolutions, *self.norms):
            module.to(dtype).train()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = torch.relu(norm(convolution(x)))
        return x


def found(result: bnfold.RecalibrationResult) -> Iterator[tuple[Array, Array]]:
    entries = {entry.name: entry for entry in result.report.recalibrated}
    return ((entries[name].new.mean, entries[name].new.variance) for name in "ab")


@pytest.mark.parametrize("momentum", [0.1, 0.5, 1.0])
def test_ema_with_bessel_is_what_torch_keeps_in_training(momentum: float) -> None:
    model, batches = parse(MODEL.text), cut_up(data(), 8)
    network = Chain(model, momentum, torch.float64)
    with torch.no_grad():
        for batch in batches:
            network(torch.tensor(batch["x"], dtype=torch.float64))
    result = bnfold.recalibrate(ir.from_proto(model), batches, method="ema", momentum=momentum, bessel=True)
    for (mean, variance), norm in zip(found(result), network.norms, strict=True):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        np.testing.assert_allclose(mean, norm.running_mean.numpy(), rtol=0, atol=TOLERANCE * np.sqrt(variance.max()))
        np.testing.assert_allclose(variance, norm.running_var.numpy(), rtol=TOLERANCE)


def test_ema_with_one_hundredth_is_what_keras_keeps_with_0_99() -> None:
    """Keras: `moving = moving * 0.99 + batch * (1 - 0.99)`, the variance of the population."""
    text = f"(float[n, 4, 6, 6] x) => (float[n, 4, h, w] y) <{parameters('a')}> {{ {bn('a', 'x', 'y')} }}"
    model, batches = parse(text), cut_up(data(), 8)
    moving = [a.astype(np.float64) for a in statistics_in(model, "a")]
    for batch in batches:
        x = batch["x"].astype(np.float64)
        seen = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
        moving = [was * 0.99 + now * (1 - 0.99) for was, now in zip(moving, seen, strict=True)]
    result = bnfold.recalibrate(ir.from_proto(model), batches, method="ema", momentum=0.01)
    (entry,) = result.report.recalibrated
    np.testing.assert_allclose(entry.new.mean, moving[0], rtol=1e-6)
    np.testing.assert_allclose(entry.new.variance, moving[1], rtol=1e-6)


def precise(model: onnx.ModelProto, batches: Sequence[dict[str, Array]]) -> list[tuple[Array, Array]]:
    """Precise BN by its definition: `mean = E[x]`, `var = E[x^2] - mean^2` over batches in train mode, in float64."""
    network, sums = Chain(model, 0.1, torch.float64), [np.zeros((3, 4)) for _ in range(2)]

    def watch(total: Array) -> Any:
        def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0].movedim(1, -1).reshape(-1, 4).numpy()
            np.add(total, [np.full(4, len(rows)), rows.sum(axis=0), (rows**2).sum(axis=0)], out=total)

        return hook

    for norm, total in zip(network.norms, sums, strict=True):
        norm.register_forward_pre_hook(watch(total))
    with torch.no_grad():
        for batch in batches:
            network(torch.tensor(batch["x"], dtype=torch.float64))
    return [(t[1] / t[0], t[2] / t[0] - (t[1] / t[0]) ** 2) for t in sums]


@pytest.mark.parametrize("size", [4, 8, 37])
def test_batch_is_precise_bn(size: int) -> None:
    model, batches = parse(MODEL.text), cut_up(data(), size)
    result = bnfold.recalibrate(ir.from_proto(model), batches, method="batch")
    for (mean, variance), (wanted, spread) in zip(found(result), precise(model, batches), strict=True):
        np.testing.assert_allclose(mean, wanted, rtol=0, atol=TOLERANCE * np.sqrt(spread.max()))
        np.testing.assert_allclose(variance, spread, rtol=TOLERANCE)


def test_batch_agrees_with_sequential_on_the_first_level_and_in_one_batch_only() -> None:
    model = parse(MODEL.text)
    exact = expected(model, data(), MODEL.order)
    whole = bnfold.recalibrate(ir.from_proto(model), cut_up(data(), 37), method="batch")
    assert_expected(whole, exact)
    small = list(found(bnfold.recalibrate(ir.from_proto(model), cut_up(data(), 4), method="batch")))
    np.testing.assert_allclose(small[0][1], exact["a"][1], rtol=TOLERANCE)
    assert np.abs(small[1][1] / exact["b"][1] - 1).max() > 0.02, "the batch size should show at the second level"


def test_calls_of_one_module_normalise_by_their_own_batch_in_training() -> None:
    """`batch`, two calls: what lies behind each sees its own statistics, the module itself those of both."""
    case = CASES["one module on two inputs"]
    generator = np.random.default_rng(2)
    x, z = 5 + generator.standard_normal((40, 4, 5, 5)), 3 * generator.standard_normal((40, 4, 7))
    model = parse(case.text)
    feeds = {"x": x.astype(np.float32), "z": z.astype(np.float32)}
    result = bnfold.recalibrate(ir.from_proto(model), [feeds], method="batch")
    wide = in_float64(model)
    for name, source in (("one", feeds["x"]), ("two", feeds["z"])):
        node = next(node for node in wide.graph.node if node.name == name)
        axes = tuple(axis for axis in range(source.ndim) if axis != 1)
        own = source.astype(np.float64)
        for position, value in ((3, own.mean(axis=axes)), (4, own.var(axis=axes))):
            node.input[position] = f"{name}{position}"
            wide.graph.initializer.append(onnx.numpy_helper.from_array(value, f"{name}{position}"))
    v = evaluate(wide, feeds, ["v"])["v"]
    entry = next(entry for entry in result.report.recalibrated if entry.name == "b")
    np.testing.assert_allclose(entry.new.mean, v.mean(axis=0), atol=TOLERANCE * v.std())
    np.testing.assert_allclose(entry.new.variance, v.var(axis=0), rtol=TOLERANCE)


def test_ema_is_keras_training_through_two_levels() -> None:
    """Keras' rule, transcribed: `moving -= (moving - batch) * (1 - 0.99)`; upstream the batch normalises by itself."""
    text = f"""(float[n, 4] x) => (float[n, 4] y) <float[4, 4] w, {parameters("a", "b")}> {{
        {bn("a", "x", "c")}
        d = Relu (c)
        e = MatMul (d, w)
        {bn("b", "e", "y")}
    }}"""
    model = parse(text)
    arrays = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    moving = {name: [arrays[f"mean_{name}"].copy(), arrays[f"var_{name}"].copy()] for name in "ab"}
    batches = cut_up({"x": data()["x"][:, :, 0, 0]}, 8)

    def trained(name: str, x: Array) -> Array:
        seen = x.mean(axis=0), x.var(axis=0)
        moving[name] = [was - (was - now) * (1 - 0.99) for was, now in zip(moving[name], seen, strict=True)]
        scale = arrays[f"gamma_{name}"] / np.sqrt(seen[1] + np.float64(np.float32(1e-5)))
        return scale * (x - seen[0]) + arrays[f"beta_{name}"]

    for batch in batches:
        hidden = trained("a", batch["x"].astype(np.float64))
        trained("b", np.maximum(hidden, 0) @ arrays["w"])
    result = bnfold.recalibrate(ir.from_proto(model), batches, method="ema", momentum=0.01)
    for (mean, variance), name in zip(found(result), "ab", strict=True):
        np.testing.assert_allclose(mean, moving[name][0], rtol=0, atol=TOLERANCE * np.sqrt(variance.max()))
        np.testing.assert_allclose(variance, moving[name][1], rtol=TOLERANCE)


@pytest.mark.parametrize("bessel", [False, True])
def test_the_variance_is_that_of_torch_with_or_without_its_correction(bessel: bool) -> None:
    text = f"(float[n, 4, 6, 6] x) => (float[n, 4, h, w] y) <{parameters('a')}> {{ {bn('a', 'x', 'y')} }}"
    few = {"x": data()["x"][:3, :, :2, :2]}  # 12 values: the two differ by a twelfth
    result = bnfold.recalibrate(
        ir.from_proto(parse(text.replace("6, 6", "2, 2"))), cut_up(few, 2), bessel=bessel, force=True
    )
    (entry,) = result.report.recalibrated
    wide = torch.tensor(few["x"], dtype=torch.float64)
    np.testing.assert_allclose(
        entry.new.variance, wide.var(dim=(0, 2, 3), correction=int(bessel)).numpy(), rtol=TOLERANCE
    )
    norm = nn.BatchNorm2d(4, momentum=1.0, dtype=torch.float64).train()
    norm(wide)
    assert norm.running_var is not None
    assert np.allclose(entry.new.variance, norm.running_var.numpy(), rtol=TOLERANCE) == bessel
