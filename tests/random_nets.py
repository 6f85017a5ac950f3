"""Random small graphs over all views, for the law that a fold never changes the function."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from fold_graph import FLOAT32, Net, draw
from fold_graph_pairs import (
    add_depth_to_space,
    add_negate,
    add_product,
    add_select,
    add_space_to_depth,
    add_sum,
    add_total,
)
from hypothesis import strategies as st

from bnfold.affine import ChannelAffine
from bnfold.bench import Bench
from bnfold.graph import Value
from bnfold.views import Arithmetic, BatchNorm, Cast, Clamp, Linear, Same
from bnfold.window_views import Average, Maximum, Pad, Resample

#: What may come next; BatchNorms and convolutions often.
STEPS = (
    "bn bn bn bn bn bn conv conv relu relu abs constant constant constant concat rows average maximum counted pad "
    "pad_channels transpose split split mean resize cast same matmul barrier sum sum product negate "
    "total half half chunk blocks branches branches clamp clamp clamp"
).split()


@st.composite
def affines(drawn: st.DrawFn, channels: int) -> ChannelAffine:
    """Of all kinds: signed, positive, pure, equal in all channels, with dead channels."""
    signs = drawn(st.sampled_from(((1.0,), (1.0,), (1.0, -1.0), (1.0, 0.0))))
    scale = [drawn(st.sampled_from((0.5, 1.0, 2.0))) * drawn(st.sampled_from(signs)) for _ in range(channels)]
    shift = [drawn(st.sampled_from((0.0, 1.0, -2.0))) for _ in range(channels)]
    if drawn(st.booleans()):
        shift = [0.0] * channels
    if drawn(st.booleans()):
        scale, shift = scale[:1] * channels, shift[:1] * channels
    return ChannelAffine(scale, shift)


class Grower:
    """Grows a net of values of rank 4 by one drawn step after the other."""

    def __init__(self, drawn: st.DrawFn) -> None:
        self.net = Net(x=draw(2, 2, 4, 4), y=draw(2, 4, 4, 4, seed=1))
        self.values: list[Value] = ["x", "y"]
        self._drawn = drawn

    def grow(self) -> None:
        # Mostly the newest value, for in chains affines travel; now and then an older one, which then branches.
        older = self._drawn(st.integers(0, 7)) == 0
        value = self._drawn(st.sampled_from(self.values)) if older else self.values[-1]
        step = self._drawn(st.sampled_from(STEPS))
        made = getattr(self, f"_{step}")(value)
        if self.net.samples[made].size <= 4096:
            self.values.append(made)

    def _size(self, value: Value, axis: int = 1) -> int:
        return int(self.net.samples[value].shape[axis])

    def _seed(self) -> int:
        return int(self._drawn(st.integers(0, 5)))

    def _bn(self, value: Value) -> Value:
        return self.net.bn(value, self._drawn(affines(self._size(value))))

    def _conv(self, value: Value) -> Value:
        inputs = self._size(value)
        groups = 2 if inputs % 2 == 0 and self._drawn(st.booleans()) else 1
        size = min(self._drawn(st.integers(1, 2)), *self.net.samples[value].shape[2:])
        weight = draw(self._drawn(st.sampled_from((2, 4))), inputs // groups, size, size, seed=self._seed())
        return self.net.conv(value, weight, pad=self._drawn(st.integers(0, size - 1)))

    def _matmul(self, value: Value) -> Value:
        weight = draw(self._size(value, 3), self._drawn(st.integers(1, 4)), seed=self._seed())
        return self.net.matmul(value, weight, draw(weight.shape[1]) if self._drawn(st.booleans()) else None)

    def _relu(self, value: Value) -> Value:
        return self.net.homogeneous(value, self._drawn(st.sampled_from((0.0, 0.1))))

    def _clamp(self, value: Value) -> Value:
        """Relu mostly; else bounds of one side or two, equal or one for each channel."""
        kind = self._drawn(st.integers(0, 4))
        if kind < 2:
            return self.net.clamp(value)
        low, high = np.array(-np.inf if kind == 3 else -0.5), np.array(np.inf if kind == 4 else 1.5)
        if self._drawn(st.booleans()):
            spread = np.arange(self._size(value)).reshape(1, -1, 1, 1) / 4
            low, high = low + spread, high + spread
        return self.net.clamp(value, low, high)

    def _abs(self, value: Value) -> Value:
        return self.net.homogeneous(value, -1.0)

    def _constant(self, value: Value) -> Value:
        shape = self.net.samples[value].shape
        kept = self._drawn(st.sampled_from(((), (1,), (1,), (3,), (2, 3), (0, 1, 2, 3))))
        values = draw(*(n if a in kept else 1 for a, n in enumerate(shape)), seed=self._seed())
        return self.net.arithmetic(
            self._drawn(st.sampled_from(Arithmetic)), value, np.sign(values) * (0.5 + abs(values))
        )

    def _concat(self, value: Value) -> Value:
        shape = self.net.samples[value].shape
        fits = [
            v for v in self.values if np.delete(self.net.samples[v].shape, 1).tolist() == np.delete(shape, 1).tolist()
        ]
        return self.net.concat(1, value, self._drawn(st.sampled_from(fits)))

    def _rows(self, value: Value) -> Value:
        shape = self.net.samples[value].shape
        fits = [
            v for v in self.values if np.delete(self.net.samples[v].shape, 2).tolist() == np.delete(shape, 2).tolist()
        ]
        return self.net.concat(2, value, self._drawn(st.sampled_from(fits)))

    def _average(self, value: Value) -> Value:
        return self.net.pool(value, Average((2, 3)), 1)

    def _counted(self, value: Value) -> Value:
        return self.net.pool(value, Average((2, 3), counts_padding=True), 1)

    def _maximum(self, value: Value) -> Value:
        return self.net.pool(value, Maximum((2, 3)), 1)

    def _mean(self, value: Value) -> Value:
        return self.net.reduce(value, self._drawn(st.sampled_from((Average((2, 3)), Average((1,)), Maximum((2,))))))

    def _pad(self, value: Value) -> Value:
        constant = self._drawn(st.sampled_from((None, 0.0, 1.0)))
        return self.net.pad(value, Pad((0, 0, 1, 0), (0, 0, 0, 1), constant, FLOAT32), "edge")

    def _pad_channels(self, value: Value) -> Value:
        across = self._drawn(st.integers(0, 1))
        return self.net.pad(
            value, Pad((0, 1, across, 0), (0, 1, 0, 0), self._drawn(st.sampled_from((0.0, 1.0))), FLOAT32)
        )

    def _transpose(self, value: Value) -> Value:
        return self.net.transpose(value, *self._drawn(st.sampled_from(((0, 2, 3, 1), (0, 3, 1, 2), (0, 1, 3, 2)))))

    def _split(self, value: Value) -> Value:
        """Split, maybe swap, and merge again, as a channel shuffle does; or another shape of rank 4."""
        n, c, h, w = self.net.samples[value].shape
        if c % 2 or self._drawn(st.booleans()):
            return self.net.reshape(
                value, *self._drawn(st.sampled_from(((n, c * h, w, 1), (n, c, w, h), (1, n * c, h, w))))
            )
        halves = self.net.reshape(value, n, 2, c // 2, h, w)
        if self._drawn(st.booleans()):
            halves = self.net.transpose(halves, 0, 2, 1, 3, 4)
        if self._drawn(st.booleans()):
            return self.net.reduce(halves, Average((1,), keeps_axes=False))
        return self.net.reshape(halves, n, c, h, w)

    def _resize(self, value: Value) -> Value:
        return self.net.add(Resample(frozenset({0, 1, 3})), value, run=lambda _op, _held, xs: xs[0].repeat(2, 2))

    def _cast(self, value: Value) -> Value:
        view = Cast(FLOAT32, np.dtype(self._drawn(st.sampled_from((np.float64, np.float16)))))
        return self.net.add(view, value, run=lambda _op, _held, xs: xs[0])

    def _same(self, value: Value) -> Value:
        return self.net.add(Same(), value, run=lambda _op, _held, xs: xs[0])

    def _alike(self, value: Value) -> Value:
        """A value of the same shape."""
        shape = self.net.samples[value].shape
        return self._drawn(st.sampled_from([v for v in self.values if self.net.samples[v].shape == shape]))

    def _sum(self, value: Value) -> Value:
        return add_sum(self.net, value, self._alike(value), self._drawn(st.sampled_from((1, -1))))

    def _branches(self, value: Value) -> Value:
        """A sum of convolutions of one value that keep its size, its BatchNorm, and itself."""
        total = self._branch(value)
        for _ in range(self._drawn(st.integers(1, 3))):
            pair = [total, self._branch(value)]
            total = add_sum(self.net, *(pair if self._drawn(st.booleans()) else pair[::-1]),
                            self._drawn(st.sampled_from((1, -1))))  # fmt: skip
        return total

    def _branch(self, value: Value) -> Value:
        size = self._size(value)
        kind = self._drawn(st.integers(0, 5))
        if kind < 2:
            return self._bn(value) if kind else value
        groups = size if kind == 2 else 1
        taps = self._drawn(st.sampled_from((1, 3)))
        made = self.net.conv(value, draw(size, size // groups, taps, taps, seed=self._seed()), pad=taps // 2)
        return self.net.homogeneous(made) if kind == 5 else made

    def _product(self, value: Value) -> Value:
        gate = self.net.barrier(self._alike(value))
        if self._drawn(st.booleans()):
            gate = self.net.reduce(gate, Average((2, 3)))
        return add_product(self.net, *((value, gate) if self._drawn(st.booleans()) else (gate, value)))

    def _negate(self, value: Value) -> Value:
        return add_negate(self.net, value)

    def _total(self, value: Value) -> Value:
        return add_total(self.net, value, (2,), known=self._drawn(st.booleans()))

    def _half(self, value: Value) -> Value:
        """Two selections of one value, perhaps of the same channels, both of which may be read."""
        size = self._size(value)
        first = [int(i) for i in np.arange(size)[: self._drawn(st.integers(1, size))]]
        second = [i for i in range(size) if i not in first] or [0]
        for part in (first, second):
            self.values += add_select(self.net, value, 1, part)
        return self.values[-1 - self._drawn(st.integers(0, 1))]

    def _chunk(self, value: Value) -> Value:
        size = self._size(value)
        cut = self._drawn(st.integers(1, max(size - 1, 1)))
        parts = add_select(self.net, value, 1, range(cut), range(cut, size)) if size > 1 else [value]
        self.values += parts
        return parts[0]

    def _blocks(self, value: Value) -> Value:
        _, c, h, w = self.net.samples[value].shape
        if c % 4 == 0:
            return add_depth_to_space(self.net, value, rows=self._drawn(st.booleans()))
        return self._negate(value) if h % 2 or w % 2 else add_space_to_depth(self.net, value)

    def _barrier(self, value: Value) -> Value:
        fits = [v for v in self.values if self.net.samples[v].shape == self.net.samples[value].shape]
        return self.net.barrier(value, self._drawn(st.sampled_from(fits)))


@st.composite
def nets(drawn: st.DrawFn) -> Net:
    """A net whose unread values are outputs, most of them behind one more convolution."""
    grower = Grower(drawn)
    for name in ("y", "x"):
        if drawn(st.integers(0, 3)):
            grower.values.append(grower._conv(name))
    for _ in range(drawn(st.integers(3, 16))):
        grower.grow()
    for value in [v for v in grower.values[2:] if not grower.net.uses(v)] or grower.values[-1:]:
        grower.net.output(grower._conv(value) if drawn(st.integers(0, 3)) else value)
    return grower.net


def written(net: Net, bench: Bench) -> Net:
    """The model as a front end would write it: removed operators are gone, constants are what they have become."""
    after = Net(**{v: x for v, x in net.samples.items() if net.producer(v) is None})
    for op in net.operators:
        if op.index in bench.removed:
            continue
        if op.index in bench.reduced:
            shift = bench.reduced[op.index].arrays(after.samples[bench.root(op.inputs[0])].ndim)[1]
            after.arithmetic(Arithmetic.ADD, bench.root(op.inputs[0]), shift, name=op.name)
            continue
        now = bench.operator(op.index).view
        view = replace(now, affine=bench.affine(op)) if isinstance(now, BatchNorm) else now
        after.add(
            view,
            *(bench.root(v) for v in op.inputs),
            run=net.runs[op.index],
            params=bench.linear_params(op) if isinstance(view, Linear) else None,
            constant=bench.constant(op) if net.has_constant(op) else None,
            bounds=bench.bounds(op) if isinstance(view, Clamp) else None,
            dtype=op.dtype or FLOAT32,
            name=op.name,
        )
    for value in net.seen_by_caller:
        after.output(bench.root(value))
    return after
