"""A network of twenty layers whose right fold is made wrong in one way at one layer, and what the check says to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

import bnfold
from bnfold.checking import Check
from bnfold.frontends.onnx_fold import Settings, plan_model
from bnfold.localcheck import LocalCheck
from bnfold.verification import Verification
from tests.onnx_models import parse

Array = np.ndarray[Any, Any]
Values = dict[str, Array]
Mutation: TypeAlias = Callable[[Values, Values, int], None]

LAYERS, CHANNELS, EPSILON = 20, 8, 1e-3

#: Where something is wrong: at the beginning, in the middle, at the end.
PLACES = (0, 9, 18)
_SEED = 7


@cache
def values(seed: int = _SEED) -> Values:
    """Weights that neither die out nor blow up, statistics that fit them, small variances among them."""
    generator, made = np.random.default_rng(seed), Values()
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
def network(seed: int = _SEED) -> ir.Model:
    """Twenty times Conv, BatchNorm and ReLU."""
    return built(lambda i: f"{norm(i, f'c{i}', f'n{i}')} [relu{i}] r{i + 1} = Relu(n{i})", values(seed))


def _weights(arrays: Values, i: int) -> tuple[Array, Array]:
    return arrays[f"w{i}_folded"], arrays[f"w{i}_bias_folded"]


def _scale(held: Values, i: int, epsilon: float = EPSILON) -> Array:
    result: Array = held[f"g{i}"] / np.sqrt(held[f"v{i}"] + epsilon)
    return result


def wrong_channel(_: Values, arrays: Values, i: int) -> None:
    weight, bias = _weights(arrays, i)
    weight[[0, 1]], bias[[0, 1]] = weight[[1, 0]], bias[[1, 0]]


def missing_bias(_: Values, arrays: Values, i: int) -> None:
    _weights(arrays, i)[1][:] = 0


def wrong_axis(held: Values, arrays: Values, i: int) -> None:
    arrays[f"w{i}_folded"][:] = held[f"w{i}"] * _scale(held, i)[None, :, None, None]


def epsilon_dropped(held: Values, arrays: Values, i: int) -> None:
    weight, bias = _weights(arrays, i)
    ratio = _scale(held, i, 0.0) / _scale(held, i)
    weight *= ratio[:, None, None, None]
    bias[:] = held[f"b{i}"] - held[f"m{i}"] * _scale(held, i, 0.0)


def one_weight_off(_: Values, arrays: Values, i: int) -> None:
    weight = arrays[f"w{i}_folded"]
    median = np.argsort(np.abs(weight).ravel())[weight.size // 2]
    weight.ravel()[median] += 1e-3 * np.abs(weight).max()


#: Wrong constants of the folded model, by what went wrong.
MUTATIONS: Mapping[str, Mutation] = {
    "wrong channel": wrong_channel, "missing bias": missing_bias, "wrong axis": wrong_axis,
    "epsilon dropped": epsilon_dropped, "one weight off by a thousandth": one_weight_off,
}  # fmt: skip

#: Wrong beside the border alone; no plan of bnfold makes it, so that only the runs end to end can see it.
BORDER = "wrong border"


def folded(
    change: Callable[[Values], None] = lambda _: None, seed: int = _SEED
) -> tuple[ir.Model, tuple[LocalCheck, ...]]:
    """The folded network with some constants changed, and what the local test says to it."""
    model = network(seed).clone()
    planned = plan_model(model, Settings())
    spans = [graph.spans() for graph, _ in planned.parts]
    planned.write()
    held = planned.model.graph.initializers
    arrays = {name: np.array(value.const_value.numpy()) for name, value in held.items() if value.const_value}
    change(arrays)
    for name, array in arrays.items():
        held[name].const_value = ir.Tensor(array, name=name)
    return planned.model, Check(("cpu",), None, 0, None, None).local(network(seed), planned, spans)


def mutated(kind: str, place: int, seed: int = _SEED) -> tuple[ir.Model, tuple[LocalCheck, ...]]:
    """The network folded wrongly at one layer, and what the local test says to it."""
    return folded(lambda arrays: MUTATIONS[kind](values(seed), arrays, place), seed)


def into_the_border(place: int, seed: int = _SEED) -> tuple[ir.Model, ir.Model]:
    """A BatchNorm behind the ReLU, and its fold into the next Conv as if that saw no border: right everywhere else."""
    held = values(seed)

    def order(i: int, *, is_folded: bool) -> str:
        if i != place:
            return f"{norm(i, f'c{i}', f'n{i}')} [relu{i}] r{i + 1} = Relu(n{i})"
        return f"[relu{i}] n{i} = Relu(c{i}) " + ("" if is_folded else norm(i, f"n{i}", f"r{i + 1}"))

    shift, weight = held[f"b{place}"] - held[f"m{place}"] * _scale(held, place), held[f"w{place + 1}"]
    scaled = {f"w{place + 1}": weight * _scale(held, place)[None, :, None, None]}
    bias = {f"k{place + 1}": np.einsum("oihw,i->o", weight, shift).astype(np.float32)}
    naive = built(
        partial(order, is_folded=True), held | scaled | bias, lambda i: f"n{place}" if i == place + 1 else f"r{i}"
    )
    return built(partial(order, is_folded=False), held), naive


def verified(kind: str, place: int, seed: int = _SEED) -> Verification:
    """Both tests of a wrong fold, as `bnfold.fold` would run them on its own."""
    if kind == BORDER:
        return bnfold.verify(*into_the_border(place, seed))
    model, local = mutated(kind, place, seed)
    return Verification(local, bnfold.verify(network(seed), model).quick)


def behind(kind: str, place: int) -> str:
    """The first tensor that differs: the BatchNorm's output, or that of the Conv that sees the border."""
    return f"c{place + 1}" if kind == BORDER else f"n{place}"
