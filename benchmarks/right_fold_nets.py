"""Nets with statistics of any kind, grown and calibrated operator by operator in float64: a function of style and seed.

The mean of what a BatchNorm normalises is moved to `ratio` standard deviations from zero, by the bias of the operator
before it or by a constant that its input carries; the statistics are those of a batch of noise, moved by 3 %.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from benchmarks.right_fold_torch import computed

Array = np.ndarray[Any, Any]

#: How many images of noise the statistics are of.
CALIBRATION = 32
_MOVE = 0.03
_ELEMENTS = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16, "float32": TensorProto.FLOAT,
             "float64": TensorProto.DOUBLE}  # fmt: skip


@dataclass(frozen=True)
class Style:
    """What the nets of one kind have in common.

    Attributes:
        ratio: |mean|/std of what the BatchNorms normalise, of the largest channel; the others have half and more of it.
        dtype: Of everything that is stored; bfloat16 weights are cast to float32, in which the net computes.
        layers: The fewest and the most BatchNorms.
        small: The variance of about every third channel of what is normalised; 1 where they are like the others.
        epsilons: From which each BatchNorm takes one.
        negative: Share of the negative gammas.
        zero: Share of the gammas that are zero.
        quantised: Weights of convolutions and matrices are int8 behind DequantizeLinear.
        dense: Matrices instead of convolutions.
    """

    ratio: float = 1.0
    dtype: str = "float32"
    layers: tuple[int, int] = (2, 6)
    small: float = 1.0
    epsilons: tuple[float, ...] = (1e-5, 1e-3)
    negative: float = 0.3
    zero: float = 0.0
    quantised: bool = False
    dense: bool = False


class Grower:
    """A net under construction, with the values that its newest tensor has on noise."""

    def __init__(self, style: Style, seed: int) -> None:
        self.style = style
        self.rng = np.random.default_rng([seed, 7])
        self.stored = np.dtype(ml_dtypes.bfloat16 if style.dtype == "bfloat16" else style.dtype)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, Array] = {}
        self.values: dict[str, Tensor] = {}
        size = int(self.rng.integers(8, 13))
        self.shape = (24,) if style.dense else (3, size, size)
        self.values["x"] = torch.from_numpy(self.rng.standard_normal((CALIBRATION, *self.shape)))
        self.now = "x"

    @property
    def channels(self) -> int:
        """Of the newest tensor."""
        return int(self.values[self.now].shape[1])

    @property
    def size(self) -> int:
        """Height of the newest tensor, in pixels."""
        return int(self.values[self.now].shape[2])

    def constant(self, array: Array) -> str:
        """The name of a constant, rounded to the dtype of the net."""
        if self.stored.name != "bfloat16":
            return self.kept(array.astype(self.stored))
        stored = self.kept(array.astype(np.float32).astype(self.stored))
        return self.node("Cast", stored, to=TensorProto.FLOAT)

    def kept(self, array: Array) -> str:
        """The name of a constant, stored as it is."""
        name = f"c{len(self.initializers)}"
        self.initializers[name] = array
        self.values[name] = torch.from_numpy(np.asarray(array.astype(np.float64)))
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The output of another node."""
        made = helper.make_node(kind, inputs, [f"t{len(self.nodes)}"], name=f"{kind}_{len(self.nodes)}", **attributes)
        self.values[made.output[0]] = computed(made, self.values)
        self.nodes.append(made)
        return made.output[0]

    def then(self, kind: str, *inputs: str, **attributes: Any) -> None:
        """Another node, which reads the newest tensor first."""
        self.now = self.node(kind, self.now, *inputs, **attributes)

    def weight(self, array: Array) -> str:
        """A weight, about every third output channel small; quantised with a scale for each."""
        small = np.where(self.rng.random(array.shape[0]) < 1 / 3, np.sqrt(self.style.small), 1.0)
        array = array * small.reshape(-1, *(1,) * (array.ndim - 1))
        if not self.style.quantised:
            return self.constant(array)
        scale = np.abs(array).reshape(len(array), -1).max(axis=1) / 127
        codes = np.rint(array / scale.reshape(-1, *(1,) * (array.ndim - 1))).astype(np.int8)
        zero = self.kept(np.zeros(len(array), np.int8))
        return self.node("DequantizeLinear", self.kept(codes), self.constant(scale), zero, axis=0)

    def finished(self) -> onnx.ModelProto:
        """The model; its batch is open."""
        kind = _ELEMENTS["float32" if self.style.dtype == "bfloat16" else self.style.dtype]
        shape, rank = ["N", *self.shape], self.values[self.now].ndim
        graph = helper.make_graph(
            self.nodes, "net", [helper.make_tensor_value_info("x", kind, shape)],
            [helper.make_tensor_value_info(self.now, kind, ["N", *self.values[self.now].shape[1:rank]])],
            [numpy_helper.from_array(array, name) for name, array in self.initializers.items()],
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _convolve(g: Grower, outputs: int, kernel: int, *, bias: Array | None = None, **attributes: Any) -> None:
    groups = attributes.get("group", 1)
    weight = g.rng.standard_normal((outputs, g.channels // groups, kernel, kernel))
    name = g.weight(weight / np.sqrt(weight[0].size))
    g.then("Conv", name, *([] if bias is None else [g.constant(bias)]), **attributes)


def _normalise(g: Grower) -> None:
    """A BatchNorm with the statistics of the newest tensor, whose means the bias before it has moved."""
    x, style = g.values[g.now], g.style
    axes = [axis for axis in range(x.ndim) if axis != 1]
    channels, spread = g.channels, np.sqrt(x.var(axes, correction=0).numpy())
    mean = x.mean(axes).numpy() + _MOVE * spread * g.rng.standard_normal(channels)
    variance = spread**2 * np.exp(_MOVE * g.rng.standard_normal(channels))
    gamma = g.rng.uniform(0.5, 1.5, channels) * np.where(g.rng.random(channels) < style.negative, -1, 1)
    gamma = gamma * (g.rng.random(channels) >= style.zero)
    beta = 0.2 + 0.2 * g.rng.standard_normal(channels)
    g.then("BatchNormalization", *(g.constant(a) for a in (gamma, beta, mean, variance)),
           epsilon=float(g.rng.choice(style.epsilons)))  # fmt: skip


def _moved(g: Grower) -> None:
    """The newest operator gets a bias that moves each mean to the wanted number of standard deviations."""
    last = g.nodes.pop()
    x = g.values.pop(g.now)
    axes = [axis for axis in range(x.ndim) if axis != 1]
    mean, spread = x.mean(axes).numpy(), np.sqrt(x.var(axes, correction=0).numpy())
    far = g.style.ratio * g.rng.uniform(0.5, 1, len(mean)) * g.rng.choice([-1, 1], len(mean))
    attributes = {a.name: helper.get_attribute_value(a) for a in last.attribute}
    g.now = g.node(last.op_type, *last.input[:2], g.constant(far * spread - mean), **attributes)


def _plain(g: Grower) -> None:
    """Conv, BatchNorm, ReLU: the most common sequence there is."""
    pad = int(g.rng.integers(0, 2)) if g.size > 4 else 1
    _convolve(g, int(g.rng.integers(4, 13)), 3, pads=[pad] * 4)
    _moved(g)
    _normalise(g)
    g.then("Relu")


def _carried(g: Grower) -> None:
    """The mean comes from a constant that the value carries, which a 1x1 convolution without a bias passes on."""
    g.then("Add", g.constant(np.full((1, g.channels, 1, 1), g.style.ratio / 4)))
    _convolve(g, int(g.rng.integers(4, 13)), 1)
    _normalise(g)
    g.then("Relu")


def _strided(g: Grower) -> None:
    if g.size < 6:
        return _plain(g)
    _convolve(g, int(g.rng.integers(4, 13)), 3, strides=[2, 2], pads=[1] * 4)
    _moved(g)
    _normalise(g)
    swish = g.node("Sigmoid", g.now)
    return g.then("Mul", swish)


def _depthwise(g: Grower) -> None:
    _convolve(g, g.channels, 3, pads=[1] * 4, group=g.channels)
    _moved(g)
    _normalise(g)
    g.then("Relu")


def _residual(g: Grower) -> None:
    """Two convolutions beside the identity, the second BatchNorm right before the sum."""
    source, channels = g.now, g.channels
    _plain_at(g, channels)
    _convolve(g, channels, 3, pads=[1] * 4)
    _moved(g)
    _normalise(g)
    g.then("Add", source)
    g.then("Relu")


def _plain_at(g: Grower, channels: int) -> None:
    _convolve(g, channels, 3, pads=[1] * 4)
    _moved(g)
    _normalise(g)
    g.then("Relu")


def _concatenated(g: Grower) -> None:
    """Two branches, and a BatchNorm behind both of them."""
    source = g.now
    _convolve(g, 4, 1)
    _moved(g)
    left, g.now = g.now, source
    _convolve(g, 4, 3, pads=[1] * 4)
    _moved(g)
    g.then("Concat", left, axis=1)
    _normalise(g)
    g.then("Relu")


def _pooled(g: Grower) -> None:
    """A BatchNorm behind an average, which lies between it and the convolution."""
    _convolve(g, int(g.rng.integers(4, 13)), 3, pads=[1] * 4)
    _moved(g)
    g.then("AveragePool", kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1])
    _normalise(g)
    g.then("Relu")


def _before(g: Grower) -> None:
    """A BatchNorm that the next convolution absorbs at its input, where no border is seen."""
    g.then("Relu")
    _normalise(g)
    _convolve(g, int(g.rng.integers(4, 13)), 1)


def _matrix(g: Grower) -> None:
    outputs = int(g.rng.integers(6, 25))
    weight = g.rng.standard_normal((outputs, g.channels)) / np.sqrt(g.channels)
    g.then("Gemm", g.weight(weight), transB=1)
    _moved(g)
    _normalise(g)
    g.then("Relu")


#: Blocks of nets of convolutions; each has a BatchNorm or two.
BLOCKS: tuple[Callable[[Grower], None], ...] = (
    _plain, _plain, _carried, _strided, _depthwise, _residual, _concatenated, _pooled, _before,
)  # fmt: skip


def grown(style: Style, seed: int) -> onnx.ModelProto:
    """The net of that style and seed: blocks of one to two BatchNorms, and a matrix at the end of it."""
    g = Grower(style, seed)
    wanted = int(g.rng.integers(style.layers[0], style.layers[1] + 1))
    while sum(node.op_type == "BatchNormalization" for node in g.nodes) < wanted:
        (_matrix if style.dense else BLOCKS[int(g.rng.integers(len(BLOCKS)))])(g)
    if not style.dense and g.rng.random() < 0.7:
        g.then("GlobalAveragePool")
        g.then("Flatten")
    if g.values[g.now].ndim == 2:
        g.style = replace(style, small=1.0)
        g.then("Gemm", g.weight(g.rng.standard_normal((5, g.channels))), transB=1)
    return g.finished()
