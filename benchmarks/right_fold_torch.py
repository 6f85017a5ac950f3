"""What a model computes in float64, by torch: the truth that right folds are judged by, with none of bnfold's code.

y = op(x) for each node in turn, every stored number converted to float64 as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional

Attributes: TypeAlias = Mapping[str, Any]
Operator: TypeAlias = Callable[[Attributes, list[Tensor]], Tensor]


def _square(sizes: list[int]) -> int:
    """The one number of a list of equal ones: the nets of this benchmark have no others."""
    (size,) = set(sizes)
    return size


def _window(attributes: Attributes) -> dict[str, int]:
    return {"stride": _square(attributes.get("strides", [1])), "padding": _square(attributes.get("pads", [0]))}


def _bias(xs: list[Tensor]) -> Tensor | None:
    return xs[2] if len(xs) > 2 else None


def _conv(a: Attributes, xs: list[Tensor]) -> Tensor:
    return functional.conv2d(xs[0], xs[1], _bias(xs), **_window(a), groups=a.get("group", 1))


def _conv_transpose(a: Attributes, xs: list[Tensor]) -> Tensor:
    return functional.conv_transpose2d(xs[0], xs[1], _bias(xs), **_window(a), groups=a.get("group", 1))


def _batch_norm(a: Attributes, xs: list[Tensor]) -> Tensor:
    x, gamma, beta, mean, variance = xs
    # the file stores epsilon in float32
    epsilon = float(torch.tensor(a.get("epsilon", 1e-5), dtype=torch.float32))
    return functional.batch_norm(x, mean, variance, gamma, beta, eps=epsilon)


def _gemm(a: Attributes, xs: list[Tensor]) -> Tensor:
    return functional.linear(xs[0], xs[1] if a.get("transB", 0) else xs[1].T, _bias(xs))


def _max_pool(a: Attributes, xs: list[Tensor]) -> Tensor:
    return functional.max_pool2d(xs[0], _square(a["kernel_shape"]), **_window(a))


def _average_pool(a: Attributes, xs: list[Tensor]) -> Tensor:
    return functional.avg_pool2d(xs[0], _square(a["kernel_shape"]), **_window(a), count_include_pad=False)


def _dequantize(_: Attributes, xs: list[Tensor]) -> Tensor:
    """With a scale, and perhaps a zero point, for each entry of the first axis."""
    codes, scale, *rest = (x.reshape(-1, *(1,) * (xs[0].ndim - 1)) if x.ndim == 1 else x for x in xs)
    return (codes - (rest[0] if rest else 0)) * scale


OPERATORS: Mapping[str, Operator] = {
    "Add": lambda _, xs: xs[0] + xs[1],
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": lambda _, xs: xs[0],
    "Concat": lambda a, xs: torch.cat(xs, dim=a["axis"]),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DequantizeLinear": _dequantize,
    "Flatten": lambda _, xs: xs[0].flatten(1),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda _, xs: xs[0].mean((2, 3), keepdim=True),
    "MatMul": lambda _, xs: xs[0] @ xs[1],
    "MaxPool": _max_pool,
    "Mul": lambda _, xs: xs[0] * xs[1],
    "Relu": lambda _, xs: xs[0].relu(),
    "Sigmoid": lambda _, xs: xs[0].sigmoid(),
}


def computed(node: onnx.NodeProto, values: Mapping[str, Tensor]) -> Tensor:
    """The output of one node.

    Raises:
        KeyError: The operator is none of those above.
    """
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return OPERATORS[node.op_type](attributes, [values[name] for name in node.input])


def constants(model: onnx.ModelProto) -> dict[str, Tensor]:
    """The stored numbers in float64."""
    arrays = {t.name: numpy_helper.to_array(t).astype("float64") for t in model.graph.initializer}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def truth(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """The outputs of a model of the operators above, float64 arrays by name."""
    values = constants(model) | {name: torch.from_numpy(x.astype("float64")) for name, x in feeds.items()}
    with torch.no_grad():
        for node in model.graph.node:
            values[node.output[0]] = computed(node, values)
    return {output.name: values[output.name].numpy() for output in model.graph.output}
