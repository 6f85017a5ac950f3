"""Random regions, built operator by operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

Array = np.ndarray[Any, Any]


class Region:
    """Builds a region on a (2, 4, 6, 5) input, operator by operator."""

    def __init__(self, seed: int, opset: int = 19) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, Array] = {}
        self.last = "x"
        self.channels = 4

    def const(self, value: Array) -> str:
        name = f"c{len(self.weights)}"
        self.weights[name] = np.asarray(value)
        return name

    def random(self, *shape: int) -> str:
        return self.const(self.rng.normal(size=shape).astype(np.float32))

    def add(self, op_type: str, *others: str, first: bool = True, **attributes: Any) -> None:
        output = f"t{len(self.nodes)}"
        inputs = [self.last, *others] if first else [*others, self.last]
        self.nodes.append(helper.make_node(op_type, inputs, [output], **attributes))
        self.last = output

    def batch_norm(self) -> None:
        c = self.channels
        var = self.const(self.rng.uniform(0.1, 2.0, c).astype(np.float32))
        self.add("BatchNormalization", self.random(c), self.random(c), self.random(c), var, epsilon=1e-3)

    def conv(self, group: int = 1) -> None:
        c = self.channels
        self.add("Conv", self.random(c, c // group, 3, 2), self.random(c), group=group, pads=[1, 1, 1, 0])

    def model(self) -> ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "region",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4, None, None])],
            [helper.make_tensor_value_info(self.last, TensorProto.FLOAT, None)],
            [onnx.numpy_helper.from_array(v, k) for k, v in self.weights.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])


def _conv_transpose(r: Region) -> None:
    r.add("ConvTranspose", r.random(4, 4, 2, 2), r.random(4), strides=[2, 2])


def _matmul(r: Region) -> None:
    r.add("Transpose", perm=[0, 2, 3, 1])
    r.add("MatMul", r.random(4, 4))
    r.add("Transpose", perm=[0, 3, 1, 2])


def _matmul_on_the_left(r: Region) -> None:
    r.add("Transpose", perm=[0, 2, 1, 3])
    r.add("MatMul", r.random(4, 4), first=False)
    r.add("Transpose", perm=[0, 2, 1, 3])


def _split_and_join(r: Region) -> None:
    output = [f"s{len(r.nodes)}a", f"s{len(r.nodes)}b"]
    r.nodes.append(helper.make_node("Split", [r.last], output, axis=1, num_outputs=2))
    r.last = output[0]
    r.add("Concat", output[1], first=False, axis=1)


def _square(r: Region) -> None:
    r.add("Mul", r.last)


def _prelu_by_the_mean(r: Region) -> None:
    before = r.last
    r.add("ReduceMean", r.const(np.array([2, 3])))
    slope, r.last = r.last, before
    r.add("PRelu", slope)


def _gate_of_the_input(r: Region) -> None:
    before = r.last
    r.add("ReduceMean", r.const(np.array([2, 3])))
    r.add("Mul", before)


def _computed_weight(r: Region) -> None:
    codes = r.const(r.rng.integers(-127, 127, (4, 4, 1, 1)).astype(np.int8))
    scale = r.const(r.rng.uniform(0.01, 0.1, 4).astype(np.float32))
    weight = f"w{len(r.nodes)}"
    r.nodes.append(helper.make_node("DequantizeLinear", [codes, scale], [weight], axis=0))
    r.nodes.append(helper.make_node("Sub", [weight, r.random(4, 4, 1, 1)], [weight + "d"]))
    r.add("Conv", weight + "d")


def _flat_gemm(r: Region) -> None:
    r.add("GlobalAveragePool")
    r.add("Flatten")
    r.add("Gemm", r.random(4, 4), r.random(4), alpha=-0.5, beta=2.0, transB=1)
    r.add("Reshape", r.const(np.array([0, 4, 1, 1])))
    r.add("Expand", r.const(np.array([2, 4, 6, 5])))


def _larger_of_two(r: Region) -> None:
    before = r.last
    r.add("Neg")
    r.add("Max", r.random(4, 1, 1), before)


#: Low bounds: none, zero, above and below zero.
_BOUNDS = np.array([-np.inf, 0, 0.3, -0.7], np.float32).reshape(4, 1, 1)

STEPS = {
    "conv": Region.conv,
    "grouped conv": lambda r: r.conv(2),
    "depthwise conv": lambda r: r.conv(4),
    "conv transpose": _conv_transpose,
    "batch norm": Region.batch_norm,
    "matmul": _matmul,
    "matmul on the left": _matmul_on_the_left,
    "gemm": _flat_gemm,
    "computed weight": _computed_weight,
    "relu": lambda r: r.add("Relu"),
    "negated": lambda r: r.add("Neg"),
    "absolute": lambda r: r.add("Abs"),
    "leaky relu": lambda r: r.add("LeakyRelu", alpha=-1.5),
    "prelu with a computed slope": _prelu_by_the_mean,
    "gentle leaky relu": lambda r: r.add("LeakyRelu", alpha=0.1),
    "prelu": lambda r: r.add("PRelu", r.random(4, 1, 1)),
    "clip": lambda r: r.add("Clip", r.const(np.array(-0.5, np.float32)), r.const(np.array(1.5, np.float32))),
    "clip away from zero": lambda r: r.add("Clip", r.const(np.array(0.25, np.float32)), ""),
    "added constant": lambda r: r.add("Add", r.random(4, 1, 1)),
    "subtracted from a constant": lambda r: r.add("Sub", r.random(4, 1, 1), first=False),
    "multiplied": lambda r: r.add("Mul", r.random(4, 1, 1)),
    "divided": lambda r: r.add("Div", r.const(r.rng.uniform(0.5, 2, (4, 1, 1)).astype(np.float32))),
    "square": _square,
    "gate": _gate_of_the_input,
    "maximum with a constant": lambda r: r.add("Max", r.random(4, 1, 1)),
    "minimum with a constant": lambda r: r.add("Min", r.random(4, 1, 1)),
    "maximum in some channels": lambda r: r.add("Max", r.const(_BOUNDS)),
    "minimum in some channels": lambda r: r.add("Min", r.const(-_BOUNDS)),
    "maximum of two variables and a constant": _larger_of_two,
    "clip to a negative range": lambda r: r.add("Clip", "", r.const(np.array(-0.25, np.float32))),
    "max pool": lambda r: r.add("MaxPool", kernel_shape=[2, 2], pads=[1, 1, 0, 0]),
    "average pool": lambda r: r.add("AveragePool", kernel_shape=[2, 2], pads=[1, 1, 0, 0], count_include_pad=1),
    "padded": lambda r: r.add("Pad", r.const(np.array([0, 0, 1, 0, 0, 0, 0, 1])), r.random()),
    "reflected": lambda r: r.add("Pad", r.const(np.array([0, 0, 1, 0, 0, 0, 0, 1])), mode="reflect"),
    "nearest": lambda r: r.add("Resize", "", r.const(np.array([1, 1, 0.9, 1.5], np.float32)), mode="nearest"),
    "linear": lambda r: r.add("Resize", "", r.const(np.array([1, 1, 0.9, 1.5], np.float32)), mode="linear"),
    "cubic": lambda r: r.add("Resize", "", r.const(np.array([1, 1, 1.3, 0.9], np.float32)), mode="cubic"),
    "split and join": _split_and_join,
    "gathered": lambda r: r.add("Gather", r.const(np.array([3, 1, 0, 2])), axis=1),
}
