"""ONNX operators that compute the moments of each sample and channel of a value, so that little leaves the runtime.

    m = mean(x),  d = x - m,  r = mean(d),  q = mean(d * d);   mean = m + r,  variance = q - r^2

`r` is what rounding has left out of `m`. A float32 sum of n numbers one after the other can be off by a good part of
n roundings where these are alike, as behind a ReLU (4e-4 of the variance was measured for 256 x 256 values). So images
are averaged row by row and then over the rows, and what has no rows is averaged in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper

from bnfold.moments import ChannelMoments

#: From this operator set on, the axes of a reduction are an input.
_AXES_ARE_INPUT = 18


@dataclass(frozen=True, eq=False)
class Reduction:
    """The operators for one value, with the constants that they need.

    Attributes:
        source: The value, (N, C, ...).
        stem: What the names of the results begin with.
        rank: How many axes the value has; None if unknown.
        dtype: Its dtype; None if unknown.
        opset: The version of the standard operators.
        nodes: The operators, in order.
        constants: Their constants.
    """

    source: str
    stem: str
    rank: int | None
    dtype: np.dtype[Any] | None
    opset: int
    nodes: list[NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)

    @property
    def results(self) -> tuple[str, str, str, str]:
        """The names of m, r, q and the shape of the value."""
        return self._name("mean"), self._name("rest"), self._name("square"), self._name("shape")

    def build(self) -> Reduction:
        """Fill in the operators."""
        mean, rest, square, shape = self.results
        self._add("Shape", [self.source], shape)
        wide = self._widened()
        if self.rank is not None and self.rank > 3:
            self._average(wide, range(2, self.rank), mean)
            away = self._add("Sub", [wide, mean], self._name("away"))
            self._by_rows(away, rest)
            self._by_rows(self._add("Mul", [away, away], self._name("squares")), square)
        else:
            flat = self._add("Flatten", [wide], self._name("flat"), axis=2)  # of (N, C) as well: N*C rows of one
            self._average(flat, [1], mean)
            away = self._add("Sub", [flat, mean], self._name("away"))
            away = self._add("Cast", [away], self._name("double"), to=TensorProto.DOUBLE)
            self._average(away, [1], rest)
            self._average(self._add("Mul", [away, away], self._name("squares")), [1], square)
        return self

    def _name(self, what: str) -> str:
        return f"{self.stem}.{what}"

    def _widened(self) -> str:
        if self.dtype is not None and self.dtype.name in ("float32", "float64"):
            return self.source
        return self._add("Cast", [self.source], self._name("wide"), to=TensorProto.FLOAT)

    def _by_rows(self, value: str, result: str) -> None:
        """Average the last axis, then what is left of the spatial ones."""
        assert self.rank is not None
        self._average(value, [self.rank - 1], f"{result}.rows")
        self._add("Flatten", [f"{result}.rows"], f"{result}.flat", axis=2)
        self._average(f"{result}.flat", [1], result)

    def _average(self, value: str, axes: Sequence[int], result: str) -> None:
        if self.opset < _AXES_ARE_INPUT:
            self._add("ReduceMean", [value], result, axes=list(axes))
            return
        name = f"{result}.axes"
        self.constants.append(numpy_helper.from_array(np.array(axes, np.int64), name))
        self._add("ReduceMean", [value, name], result)

    def _add(self, kind: str, inputs: Sequence[str], result: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [result], **attributes))
        return result


def reduced(results: Sequence[npt.NDArray[Any]], channels: int) -> ChannelMoments:
    """All samples together, in float64, from the four results of a `Reduction`."""
    mean, rest, square = (np.asarray(array, np.float64).reshape(-1, channels) for array in results[:3])
    size = int(np.prod(results[3][2:], dtype=np.int64))
    if not size or not len(mean):
        return ChannelMoments.none(channels)
    with np.errstate(all="ignore"):  # what is not finite is for the caller to judge
        return ChannelMoments.of_groups(size, mean + rest, size * np.maximum(square - rest * rest, 0.0))
