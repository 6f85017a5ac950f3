"""The models of `benchmarks/right_folds.py`, each with its inputs and its truth in float64, by kind and seed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.right_fold_nets import Style, grown
from benchmarks.right_fold_torch import truth

Arrays: TypeAlias = Mapping[str, np.ndarray[Any, Any]]

_ROOT = Path(__file__).resolve().parents[1]
#: How many samples the truth is computed on.
SAMPLES = 16
#: Height and width of the images that a ResNet-101 gets, in pixels: its last stage then has 2x2 places.
RESNET_SIZE = 64
_ZOO = ("unet", "unet_norm_after_concat", "shufflenet_v2")


@dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
        kind: A key of `KINDS`.
        seed: Which one of that kind.
    """

    kind: str
    seed: int

    @property
    def key(self) -> str:
        """Its name in the cache."""
        return f"{self.kind} #{self.seed}"


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and all that is needed to judge a fold of it.

    Attributes:
        model: The original.
        shapes: Shapes of the inputs that bnfold is told where the file leaves sizes open.
        normal: Standard normal inputs.
        uniform: Inputs in [0, 1), as the peers draw them.
        truth: The outputs in float64 on the weights of the file.
    """

    model: onnx.ModelProto
    shapes: Mapping[str, tuple[int, ...]]
    normal: Arrays
    uniform: Arrays
    truth: Callable[[Arrays], Arrays]


@dataclass(frozen=True)
class Kind:
    """A row of the table: what it is for people, how many, and how one is made from its seed and a cache folder."""

    title: str
    count: int
    make: Callable[[int, Path], Subject]


def _drawn(shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, Any], seed: int) -> tuple[Arrays, Arrays]:
    """Standard normal inputs, and uniform ones."""
    rng = np.random.default_rng([seed, 11])
    normal = {name: rng.standard_normal(shape).astype(dtypes[name]) for name, shape in shapes.items()}
    return normal, {name: rng.random(shape).astype(dtypes[name]) for name, shape in shapes.items()}


def _grown(style: Style, seed: int, _: Path) -> Subject:
    model = grown(style, seed)
    (value,) = model.graph.input
    shape = SAMPLES, *(d.dim_value for d in value.type.tensor_type.shape.dim[1:])
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return Subject(model, {}, *_drawn({value.name: shape}, {value.name: dtype}, seed), partial(truth, model))


def _random(seed: int, _: Path) -> Subject:
    """A graph of tests/random_graphs.py. Its truth is the float64 rewrite, for torch knows not all its operators."""
    from tests.random_graphs import random_graph  # noqa: PLC0415

    graph = random_graph(seed)
    shapes = {name: value.shape for name, value in graph.feeds.items()}
    dtypes = {name: value.dtype for name, value in graph.feeds.items()}
    return Subject(graph.model, shapes, *_drawn(shapes, dtypes, seed), partial(_rewritten, graph.model))


def _rewritten(model: onnx.ModelProto, feeds: Arrays) -> Arrays:
    from bnfold.frontends.onnx_float64 import evaluate, in_float64  # noqa: PLC0415

    return evaluate(in_float64(model), dict(feeds))


def _digits(seed: int, _: Path) -> Subject:
    """The trained digit classifier; but for seed 0 with the statistics and affines of another run of training."""
    model = onnx.load(_ROOT / "models" / "digits-darknet.onnx")
    rng = np.random.default_rng([seed, 13])
    stored = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node if seed else ():
        if node.op_type == "BatchNormalization":
            _jitter([stored[name] for name in node.input[1:]], rng)
    (value,) = model.graph.input
    shape = SAMPLES, *(d.dim_value for d in value.type.tensor_type.shape.dim[1:])
    return Subject(model, {}, *_drawn({value.name: shape}, {value.name: np.float32}, seed), partial(_rewritten, model))


def _jitter(tensors: list[onnx.TensorProto], rng: np.random.Generator) -> None:
    """Gamma, beta, mean and variance as if estimated from other data: off by 5 % of their size."""
    gamma, beta, mean, var = (numpy_helper.to_array(t).astype(np.float64) for t in tensors)
    moved = (gamma * np.exp(0.05 * rng.standard_normal(gamma.shape)), beta + 0.05 * rng.standard_normal(beta.shape),
             mean + 0.05 * np.sqrt(var) * rng.standard_normal(mean.shape),
             var * np.exp(0.05 * rng.standard_normal(var.shape)))  # fmt: skip
    for tensor, array in zip(tensors, moved, strict=True):
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))


def _zoo(seed: int, _: Path) -> Subject:
    """Small networks of tests/zoo, one after the other; tests/test_zoo_folds.py verifies the fold of all of them."""
    from tests.zoo import load  # noqa: PLC0415

    network = load(_ZOO[seed])
    shape = network.input_shape[1:]
    drawn = _drawn({network.input_name: (SAMPLES, *shape)}, {network.input_name: np.float32}, seed)
    return Subject(network.proto, {network.input_name: (2, *shape)}, *drawn,
                   lambda feeds: {"scores": network.reference(feeds[network.input_name])})  # fmt: skip


def _resnet(seed: int, cache: Path) -> Subject:
    from benchmarks.right_fold_resnet import calibrated, reference  # noqa: PLC0415

    model = calibrated(seed, cache, RESNET_SIZE)
    drawn = _drawn({"image": (SAMPLES, 3, RESNET_SIZE, RESNET_SIZE)}, {"image": np.float32}, seed)
    return Subject(model, {"image": (2, 3, RESNET_SIZE, RESNET_SIZE)}, *drawn, partial(reference, model))


def _nets(title: str, count: int, **style: Any) -> Kind:
    return Kind(title, count, functools.partial(_grown, Style(**style)))


KINDS: Mapping[str, Kind] = {
    "mean-1": _nets("means of 1 standard deviation", 60, ratio=1),
    "mean-10": _nets("means of 10", 60, ratio=10),
    "mean-100": _nets("means of 100", 60, ratio=100),
    "mean-1000": _nets("means of 1000", 120, ratio=1000),
    "small-variance": _nets("variances of 1e-8 beside 1", 50, small=1e-8),
    "no-epsilon": _nets("variances of 1e-8 beside 1, epsilon 0", 30, small=1e-8, epsilons=(0.0,)),
    "large-epsilon": _nets("epsilons of 0.1 and 1", 40, epsilons=(0.1, 1.0)),
    "negative": _nets("all gammas negative", 30, negative=1),
    "zero": _nets("every fourth gamma zero", 40, zero=0.25),
    "deep": _nets("20 to 40 BatchNorms", 30, layers=(20, 40)),
    "deep-1000": _nets("20 to 40 BatchNorms, means of 1000", 30, layers=(20, 40), ratio=1000),
    "float16": _nets("float16", 50, dtype="float16"),
    "float16-10": _nets("float16, means of 10", 30, dtype="float16", ratio=10),
    "bfloat16": _nets("bfloat16 weights, float32 arithmetic", 50, dtype="bfloat16"),
    "float64": _nets("float64, matrices", 40, dtype="float64", dense=True),
    "float64-1000": _nets("float64, matrices, means of 1000", 30, dtype="float64", dense=True, ratio=1000),
    "int8": _nets("int8 weights", 50, quantised=True),
    "int8-1000": _nets("int8 weights, means of 1000", 30, quantised=True, ratio=1000),
    "random": Kind("random graphs of all operators that bnfold knows", 400, _random),
    "digits": Kind("the trained digit classifier, its statistics moved", 20, _digits),
    "zoo": Kind("small networks of the tests, calibrated", len(_ZOO), _zoo),
    "resnet101": Kind("ResNet-101, calibrated", 5, _resnet),
}


def cases() -> Iterator[Case]:
    """All of them, the long ones first, so that no process works alone at the end."""
    for kind in reversed(KINDS):
        yield from (Case(kind, seed) for seed in range(KINDS[kind].count))
