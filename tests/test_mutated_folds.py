"""Every kind of wrong fold, somewhere in a network of twenty layers, is caught and localised; the right one is not."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_models import parse

import bnfold
from bnfold.checking import Check
from bnfold.frontends.onnx_fold import Settings, plan_model
from bnfold.localcheck import LocalCheck
from bnfold.verification import Verification

Array = np.ndarray[Any, Any]
Values = dict[str, Array]

LAYERS, CHANNELS, EPSILON = 20, 8, 1e-3

#: Where something is wrong: at the beginning, in the middle, at the end.
PLACES = [0, 9, 18]


@cache
def values() -> Values:
    """Weights that neither die out nor blow up, statistics that fit them, small variances among them."""
    generator, made = np.random.default_rng(7), Values()
    for i in range(LAYERS):
        weight = generator.standard_normal((CHANNELS, CHANNELS, 3, 3)) * np.sqrt(2 / (9 * CHANNELS))
        small = np.where(np.arange(CHANNELS) == 2, 1e-2, 1.0)
        made[f"w{i}"] = weight * np.sqrt(small)[:, None, None, None]
        made[f"v{i}"] = generator.uniform(0.7, 1.4, CHANNELS) * small
        made[f"m{i}"] = generator.standard_normal(CHANNELS) * 0.3 * np.sqrt(small)
        made[f"g{i}"] = generator.uniform(0.7, 1.3, CHANNELS) * np.where(np.arange(CHANNELS) == 5, -1, 1)
        made[f"b{i}"] = generator.standard_normal(CHANNELS) * 0.3
    return {name: array.astype(np.float32) for name, array in made.items()}


def built(order: Callable[[int], str], held: Values, reads: Callable[[int], str] = lambda i: f"r{i}") -> ir.Model:
    """Twenty layers; `order` writes what comes behind the Conv, from c to r of the next layer, which `reads` it."""
    shapes = {name: ",".join(map(str, array.shape)) for name, array in held.items()}
    constants = ", ".join(f"float[{shape}] {name}" for name, shape in shapes.items())
    lines = []
    for i in range(LAYERS):
        bias = f", k{i}" if f"k{i}" in held else ""
        lines.append(f"[conv{i}] c{i} = Conv <pads=[1,1,1,1]> ({reads(i)}, w{i}{bias}) {order(i)}")
    text = (
        f"(float[N,{CHANNELS},12,12] r0) => (float[N,{CHANNELS},12,12] r{LAYERS}) <{constants}> {{ {' '.join(lines)} }}"
    )
    return ir.from_proto(parse(text, values=held))


def norm(i: int, source: str, target: str) -> str:
    parameters = f"g{i}, b{i}, m{i}, v{i}"
    return f"[bn{i}] {target} = BatchNormalization <epsilon={EPSILON}> ({source}, {parameters})"


@cache
def network() -> ir.Model:
    """Twenty times Conv, BatchNorm and ReLU."""
    return built(lambda i: f"{norm(i, f'c{i}', f'n{i}')} [relu{i}] r{i + 1} = Relu(n{i})", values())


def _weights(arrays: Values, i: int) -> tuple[Array, Array]:
    return arrays[f"w{i}_folded"], arrays[f"w{i}_bias_folded"]


def _scale(i: int, epsilon: float = EPSILON) -> Array:
    held = values()
    result: Array = held[f"g{i}"] / np.sqrt(held[f"v{i}"] + epsilon)
    return result


def wrong_channel(arrays: Values, i: int) -> None:
    weight, bias = _weights(arrays, i)
    weight[[0, 1]], bias[[0, 1]] = weight[[1, 0]], bias[[1, 0]]


def missing_bias(arrays: Values, i: int) -> None:
    _weights(arrays, i)[1][:] = 0


def wrong_axis(arrays: Values, i: int) -> None:
    arrays[f"w{i}_folded"][:] = values()[f"w{i}"] * _scale(i)[None, :, None, None]


def epsilon_dropped(arrays: Values, i: int) -> None:
    weight, bias = _weights(arrays, i)
    ratio = _scale(i, 0.0) / _scale(i)
    weight *= ratio[:, None, None, None]
    bias[:] = values()[f"b{i}"] - values()[f"m{i}"] * _scale(i, 0.0)


def one_weight_off(arrays: Values, i: int) -> None:
    weight = arrays[f"w{i}_folded"]
    median = np.argsort(np.abs(weight).ravel())[weight.size // 2]
    weight.ravel()[median] += 1e-3 * np.abs(weight).max()


MUTATIONS: dict[str, Callable[[Values, int], None]] = {
    "wrong channel": wrong_channel, "missing bias": missing_bias, "wrong axis": wrong_axis,
    "epsilon dropped": epsilon_dropped, "one weight off by a thousandth": one_weight_off,
}  # fmt: skip


def folded(change: Callable[[Values], None] = lambda _: None) -> tuple[ir.Model, tuple[LocalCheck, ...]]:
    """The folded network with some constants changed, and what the local test says to it."""
    model = network().clone()
    planned = plan_model(model, Settings())
    spans = [graph.spans() for graph, _ in planned.parts]
    planned.write()
    held = planned.model.graph.initializers
    arrays = {name: np.array(value.const_value.numpy()) for name, value in held.items() if value.const_value}
    change(arrays)
    for name, array in arrays.items():
        held[name].const_value = ir.Tensor(array, name=name)
    return planned.model, Check(("cpu",), None, 0, None, None).local(network(), planned, spans)


def test_the_right_fold_passes_both_tests() -> None:
    model, local = folded()
    found = Verification(local, bnfold.verify(network(), model).quick)
    assert len(local) == LAYERS
    assert found.passed


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", MUTATIONS)
def test_a_wrong_fold_is_caught_by_the_local_test_which_names_its_batchnorm(kind: str, place: int) -> None:
    _, local = folded(lambda arrays: MUTATIONS[kind](arrays, place))
    assert [check.batchnorms for check in local if check.failed] == [(f"bn{place}",)]
    assert Verification(local, ()).culprit.startswith(f"the fold of bn{place} is wrong at n{place} (")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", [kind for kind in MUTATIONS if not kind.startswith("one weight")])
def test_a_wrong_fold_is_caught_end_to_end_at_the_tensor_behind_it(kind: str, place: int) -> None:
    """A single weight off by a thousandth is what rounding does to other numbers; the local test is for that."""
    model, _ = folded(lambda arrays: MUTATIONS[kind](arrays, place))
    (quick,) = bnfold.verify(network(), model).quick
    assert quick.failed
    assert quick.first_divergence == f"n{place}"


@pytest.mark.parametrize("place", PLACES)
def test_a_shift_that_is_moved_into_zero_padding_is_caught_at_the_convolution_that_sees_the_border(place: int) -> None:
    """A BatchNorm behind the ReLU, folded into the next Conv as if that saw no border: right everywhere but there."""
    held = values()

    def order(i: int, *, is_folded: bool) -> str:
        if i != place:
            return f"{norm(i, f'c{i}', f'n{i}')} [relu{i}] r{i + 1} = Relu(n{i})"
        return f"[relu{i}] n{i} = Relu(c{i}) " + ("" if is_folded else norm(i, f"n{i}", f"r{i + 1}"))

    shift, weight = held[f"b{place}"] - held[f"m{place}"] * _scale(place), held[f"w{place + 1}"]
    scaled = {f"w{place + 1}": weight * _scale(place)[None, :, None, None]}
    bias = {f"k{place + 1}": np.einsum("oihw,i->o", weight, shift).astype(np.float32)}
    original = built(lambda i: order(i, is_folded=False), held)
    naive = built(
        lambda i: order(i, is_folded=True), held | scaled | bias, lambda i: f"n{place}" if i == place + 1 else f"r{i}"
    )
    (quick,) = bnfold.verify(original, naive).quick
    assert quick.failed
    assert quick.first_divergence == f"c{place + 1}"
    kept = [d.subject.name for d in bnfold.fold(original).decisions if not isinstance(d, bnfold.Folded)]
    assert kept == [f"bn{place}"]
