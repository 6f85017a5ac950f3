"""A small model in memory for the tests of the core: built from views, evaluated in float64 before and after a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bnfold.affine import ChannelAffine
from bnfold.bench import Bench
from bnfold.changes import Fold
from bnfold.decision import Kept, Reason, Refusal
from bnfold.embedding import Geometry
from bnfold.graph import Bounds, Edit, Operator, PlacedAffine, Shape, Use, Value
from bnfold.linear import LinearParams, WeightLayout
from bnfold.sources import Source
from bnfold.views import (
    Arithmetic,
    Barrier,
    BatchNorm,
    Clamp,
    Concat,
    ConstantOperand,
    Homogeneous,
    Linear,
    Reshape,
    Sum,
    Transpose,
    View,
)
from bnfold.window_views import Average, Maximum, Pad

Array: TypeAlias = npt.NDArray[np.float64]
#: Computes the outputs of one operator; the second argument holds the constants, the net itself or a bench over it.
Run: TypeAlias = Callable[[Operator, Any, Sequence[Array]], Any]

FLOAT32, FLOAT16, FLOAT64 = (np.dtype(t) for t in (np.float32, np.float16, np.float64))
PADDED = Refusal(Reason.SHIFT_MEETS_PADDING, "conv", "zero padding")

ARITHMETIC: dict[Arithmetic, Callable[[Array, Array], Array]] = {
    Arithmetic.ADD: lambda x, c: x + c,
    Arithmetic.SUBTRACT: lambda x, c: x - c,
    Arithmetic.SUBTRACT_FROM: lambda x, c: c - x,
    Arithmetic.MULTIPLY: lambda x, c: x * c,
    Arithmetic.DIVIDE: lambda x, c: x / c,
}


class Net:
    """A `FoldGraph` that is evaluated while it is built: the samples give every value its shape."""

    def __init__(self, **feeds: Array) -> None:
        self.samples: dict[Value, Array] = dict(feeds)
        self.shapes: dict[Value, Shape | None] = {name: x.shape for name, x in feeds.items()}
        self.operators: list[Operator] = []
        self.unreachable: Sequence[Kept] = ()
        self.seen_by_caller: dict[Value, Refusal] = {}
        self.measured: set[Value] = set()
        self._inputs = tuple(feeds)
        self.runs: dict[int, Run] = {}
        self._params: dict[int, LinearParams] = {}
        self._constants: dict[int, Array] = {}
        self._bounds: dict[int, Bounds] = {}

    def add(
        self,
        view: View,
        *inputs: Value,
        run: Run,
        params: LinearParams | None = None,
        constant: npt.ArrayLike | None = None,
        bounds: Bounds | None = None,
        dtype: np.dtype[Any] = FLOAT32,
        name: str = "",
    ) -> Value:
        """One more operator; returns its first output."""
        index = len(self.operators)
        label = name or f"{type(view).__name__.lower()}{index}"
        if params is not None:
            self._params[index] = params
        if bounds is not None:
            self._bounds[index] = bounds
        if constant is not None:
            self._constants[index] = np.asarray(constant, np.float64)
        self.runs[index] = run
        bare = Operator(index, label, type(view).__name__, view, inputs, (), (), (), dtype)
        results = _several(run(bare, self, [self.samples[v] for v in inputs]))
        outputs = tuple(f"{label}.{i}" if i else f"{label}.out" for i in range(len(results)))
        self.samples.update(zip(outputs, results, strict=True))
        self.shapes.update((v, r.shape) for v, r in zip(outputs, results, strict=True))
        shapes = (tuple(self.shapes[v] for v in inputs), tuple(self.shapes[v] for v in outputs))
        self.operators.append(Operator(index, label, type(view).__name__, view, inputs, outputs, *shapes, dtype))
        return outputs[0]

    def output(self, value: Value) -> Value:
        """The caller sees `value`."""
        self.seen_by_caller[value] = Refusal(Reason.IS_MODEL_OUTPUT, value)
        return value

    def captured(self, value: Value) -> Value:
        """A body reads `value`."""
        self.seen_by_caller[value] = Refusal(Reason.CAPTURED_BY_SUBGRAPH, value)
        return value

    def producer(self, value: Value) -> Operator | None:
        return next((op for op in self.operators if value in op.outputs), None)

    def uses(self, value: Value) -> Sequence[Use]:
        return [Use(op, i) for op in self.operators for i, v in enumerate(op.inputs) if v == value]

    def visible(self, value: Value) -> Refusal | None:
        return self.seen_by_caller.get(value)

    def is_measured(self, value: Value) -> bool:
        return value in self.measured

    def linear_params(self, operator: Operator) -> LinearParams:
        return self._params[operator.index]

    def constant(self, operator: Operator) -> Array:
        return self._constants[operator.index]

    def has_constant(self, operator: Operator) -> bool:
        return operator.index in self._constants

    def bounds(self, operator: Operator) -> Bounds:
        return self._bounds[operator.index]

    @property
    def spends(self) -> bool:
        return False

    def affine(self, operator: Operator) -> ChannelAffine:
        assert isinstance(operator.view, BatchNorm)
        return operator.view.affine

    def evaluate(self, held: Net | Bench | None = None) -> dict[Value, Array]:
        """Every value, with the constants as `held` has them; an operator that a bench has removed passes its input."""
        values = {name: self.samples[name] for name in self._inputs}
        for op in self.operators:
            arrays = [values[v] for v in op.inputs]
            if isinstance(held, Bench) and op.index in held.removed:
                results = [arrays[held.passes.get(op.index, 0) or 0]]
            else:
                now = held.operator(op.index) if isinstance(held, Bench) else op
                results = _several(self.runs[op.index](now, held or self, arrays))
            values.update(zip((v for v in op.outputs if v), results, strict=True))
        return values

    def run(self, operator: Operator, held: Net | Bench, arrays: Sequence[Array]) -> list[Array]:
        """The outputs of one operator."""
        return _several(self.runs[operator.index](operator, held, arrays))

    # What follows adds one operator each.

    def bn(self, x: Value, affine: ChannelAffine, *, offset: float = 1.0, axis: int = 1, **more: Any) -> Value:
        channels = affine.channels
        mean, deviation = np.linspace(-1, 1, channels), np.linspace(0.5, 2, channels)
        sizes = {"before": 5.0, "after": 5.0, "stored_as": FLOAT32} | more
        stored = sizes["stored_as"]
        view = BatchNorm(affine, axis, stored, mean, deviation, offset, sizes["before"], sizes["after"])
        return self.add(view, x, run=_run_bn, dtype=more.get("dtype", FLOAT32), name=more.get("name", ""))

    def arithmetic(self, which: Arithmetic, x: Value, c: npt.ArrayLike, stored_as: Any = FLOAT32, **more: Any) -> Value:
        view = ConstantOperand(which, self.samples[x].ndim, stored_as)
        run: Run = lambda op, held, xs: ARITHMETIC[which](xs[0], held.constant(op))  # noqa: E731
        return self.add(view, x, run=run, constant=c, **more)

    def conv(self, x: Value, weight: Array, bias: Array | None = None, pad: int = 0, **more: Any) -> Value:
        """Conv of any rank, stride 1; `weight` as stored, groups follow from its shape."""
        inputs, outputs = self.samples[x].shape[1], weight.shape[0]
        layout = WeightLayout(output_first=True, groups=inputs // weight.shape[1])
        stored = more.pop("stored_as", FLOAT32)
        kernel, rank = weight.shape[2:], weight.ndim - 2
        geometry = Geometry(kernel, (1,) * rank, (1,) * rank, (pad,) * rank, (pad,) * rank)
        view = Linear(layout, 1, 1, outputs, inputs, stored, PADDED if pad else None, geometry=geometry)
        params = LinearParams(layout.canonical(weight), np.zeros(outputs) if bias is None else bias)
        return self.add(view, x, run=_run_conv, params=params, **more)

    def matmul(self, x: Value, weight: Array, bias: Array | None = None, **more: Any) -> Value:
        """MatMul with `weight` (in, out) on the right; without `bias` a shift needs an Add."""
        last, (inputs, outputs) = self.samples[x].ndim - 1, weight.shape
        layout = WeightLayout(output_first=False)
        point = Geometry.point(())
        view = Linear(layout, last, last, outputs, inputs, FLOAT32, None, bias is None, point)
        params = LinearParams(layout.canonical(weight), np.zeros(outputs) if bias is None else bias)

        def run(op: Operator, held: Any, xs: Sequence[Array]) -> Array:
            p = held.linear_params(op)
            return xs[0] @ layout.stored(p.weight) + p.bias

        return self.add(view, x, run=run, params=params, **more)

    def homogeneous(self, x: Value, slope: float = 0.0, **more: Any) -> Value:
        """LeakyRelu; a slope of 0 is Relu, one of -1 is Abs."""
        view = Homogeneous(is_even=slope == -1)
        return self.add(view, x, run=lambda _op, _held, xs: np.where(xs[0] > 0, xs[0], slope * xs[0]), **more)

    def clamp(
        self, x: Value, low: npt.ArrayLike = 0.0, high: npt.ArrayLike = np.inf, *, may_vary: bool = True, **more: Any
    ) -> Value:
        """Clip, Max, Min or Relu."""
        bounds = Bounds(np.asarray(low, np.float64), np.asarray(high, np.float64))
        axes = {a for side in (bounds.low, bounds.high) for a, n in enumerate(side.shape) if n > 1}
        view = Clamp(self.samples[x].ndim, FLOAT32, may_vary, tuple(sorted(axes)))

        def run(op: Operator, held: Any, xs: Sequence[Array]) -> Array:
            now = held.bounds(op)
            return np.minimum(np.maximum(xs[0], now.low), now.high)

        return self.add(view, x, run=run, bounds=bounds, **more)

    def concat(self, axis: int, *xs: Value, **more: Any) -> Value:
        return self.add(Concat(axis), *xs, run=lambda _op, _held, arrays: np.concatenate(arrays, axis), **more)

    def sum(self, x: Value, z: Value, sign: int = 1, **more: Any) -> Value:
        return self.add(Sum(sign), x, z, run=lambda _op, _held, xs: xs[0] + sign * xs[1], **more)

    def transpose(self, x: Value, *perm: int, **more: Any) -> Value:
        return self.add(Transpose(perm), x, run=lambda _op, _held, xs: xs[0].transpose(perm), **more)

    def reshape(self, x: Value, *shape: int, **more: Any) -> Value:
        return self.add(Reshape(), x, run=lambda _op, _held, xs: xs[0].reshape(shape), **more)

    def reduce(self, x: Value, view: Average | Maximum, **more: Any) -> Value:
        """ReduceMean or ReduceMax over the view's axes."""
        how = np.mean if isinstance(view, Average) else np.max
        return self.add(view, x, run=lambda _op, _held, xs: how(xs[0], axis=view.axes, keepdims=view.keeps_axes),
                        **more)  # fmt: skip

    def pool(self, x: Value, view: Average | Maximum, pad: int = 0, **more: Any) -> Value:
        """Windows of 2x2 over the last two axes; an average counts its padding if the view says so."""
        return self.add(view, x, run=lambda _op, _held, xs: pooled(xs[0], view, pad), **more)

    def pad(self, x: Value, view: Pad, mode: str = "constant", **more: Any) -> Value:
        widths = list(zip(view.begins, view.ends, strict=True))

        def run(op: Operator, held: Any, xs: Sequence[Array]) -> Array:
            if view.value is None:
                return np.asarray(np.pad(xs[0], widths, mode=mode))  # type: ignore[call-overload]
            return np.pad(xs[0], widths, constant_values=float(held.constant(op)))

        return self.add(view, x, run=run, constant=view.value, **more)

    def barrier(self, *xs: Value, **more: Any) -> Value:
        """The product of the sigmoids of all inputs."""
        view = Barrier(Refusal(Reason.OPERATOR_IS_NOT_LINEAR, more.get("name", "barrier")))
        run: Run = lambda _op, _held, arrays: np.prod([1 / (1 + np.exp(-a)) for a in arrays], axis=0)  # noqa: E731
        return self.add(view, *xs, run=run, **more)


def _several(result: Any) -> list[Array]:
    return list(result) if isinstance(result, tuple) else [np.asarray(result)]


def _run_bn(op: Operator, held: Any, xs: Sequence[Array]) -> Array:
    """By the numbers that would be stored, so that `stored` is tested too."""
    view = op.view
    assert isinstance(view, BatchNorm)
    gamma, beta = view.stored(held.affine(op))
    x = np.moveaxis(xs[0], view.axis, -1)
    return np.moveaxis(gamma * (x - view.mean) / view.deviation + beta, -1, view.axis)


def _run_conv(op: Operator, held: Any, xs: Sequence[Array]) -> Array:
    assert isinstance(op.view, Linear)
    assert op.view.geometry is not None
    pads = list(zip(op.view.geometry.begins, op.view.geometry.ends, strict=True))
    return convolve(xs[0], held.linear_params(op), pads)


def convolve(x: Array, params: LinearParams, pads: Sequence[tuple[int, int]] = ()) -> Array:
    """A convolution of stride 1 as its definition says, from the canonical weight."""
    groups, rank = params.weight.shape[0], x.ndim - 2
    padded = np.pad(x, [(0, 0), (0, 0), *(pads or [(0, 0)] * rank)])
    kernel = params.weight.shape[3:]
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=tuple(range(2, x.ndim)))
    grouped = windows.reshape(x.shape[0], groups, -1, *windows.shape[2:])
    space, taps = "xyz"[:rank], "uvw"[:rank]
    y = np.einsum(f"ngi{space}{taps},goi{taps}->ngo{space}", grouped, params.weight)
    return y.reshape(x.shape[0], -1, *y.shape[3:]) + params.bias.reshape(-1, *[1] * rank)


def pooled(x: Array, view: Average | Maximum, pad: int) -> Array:
    """Windows of 2x2 and stride 1."""
    average = isinstance(view, Average)
    filler = (0.0 if view.counts_padding else np.nan) if isinstance(view, Average) else -np.inf
    padded = np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)], constant_values=filler)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2, 2), axis=(2, 3))
    return np.asarray(np.nanmean(windows, axis=(4, 5)) if average else windows.max(axis=(4, 5)))


def edited(net: Net, edits: Sequence[Edit]) -> Bench:
    """A bench on which `edits` were made and nothing was taken out."""
    bench = Bench(net)
    nothing = PlacedAffine(ChannelAffine.identity(1), (), ())
    bench.apply(Fold(Source((), nothing, 0.0, 0.0, None, None), "pull", (), (), (), frozenset()), edits)
    return bench


def apply_placed(placed: PlacedAffine | None, x: Array) -> Array:
    """The affine, applied where it lives; none is the identity."""
    if placed is None:
        return x
    scale, shift = placed.arrays(x.ndim)
    return scale * x + shift


def draw(*shape: int, seed: int = 0) -> Array:
    """Standard normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape)


def affine(channels: int, seed: int = 1, *, positive: bool = True, shift: bool = True) -> ChannelAffine:
    """An affine whose scales are between 0.5 and 2, of both signs unless `positive`."""
    generator = np.random.default_rng(seed)
    signs = np.ones(channels) if positive else np.where(np.arange(channels) % 2, -1.0, 1.0)
    return ChannelAffine(signs * generator.uniform(0.5, 2, channels), shift * generator.standard_normal(channels))
