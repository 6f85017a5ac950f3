"""Small hand-made models, one for each thing that a BatchNorm may stand next to: `y = BatchNorm(linear(x))` and kin.

Each is written in ONNX's text form. Inputs that are not data are parameters: they become initializers with seeded
numbers, drawn by name, so that every scale has both signs unless its name says otherwise.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser

from bnfold.decision import Reason

Array = npt.NDArray[Any]

_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})


@dataclass(frozen=True, eq=False)
class Case:
    """One model, and what bnfold is designed to do with it.

    Attributes:
        key: A name for files and tests.
        title: The row of the table.
        inputs: Data and parameters with their types, in ONNX's text form.
        body: The nodes, in ONNX's text form.
        outputs: The outputs with their types.
        data: Names of the inputs that are data; every other input is a parameter.
        constants: Further initializers.
        batchnorms: How many BatchNorms there are; operators, where the BatchNorm is disguised.
        left: How many of them bnfold leaves.
        reason: Why it leaves them; None where it leaves none.
        must_stay: No exact fold exists, or none that keeps the model's promises.
        disguised: The BatchNorm is written as Mul, Add, Sub and Div.
        overridable: The parameters are graph inputs too, so that a caller may override them.
        amplitude: Standard deviation of the data.
        opset: Version of the operator set.
        ir_version: Version of the file format.
        note: What the figures do not say; printed under the table.
    """

    key: str
    title: str
    inputs: str
    body: str
    outputs: str = "float[N,4,?,?] y"
    data: tuple[str, ...] = ("x",)
    constants: Mapping[str, Array] = field(default_factory=dict)
    batchnorms: int = 1
    left: int = 0
    reason: Reason | None = None
    must_stay: bool = False
    disguised: bool = False
    overridable: bool = False
    amplitude: float = 1.0
    opset: int = 17
    ir_version: int = 8
    note: str = ""

    def model(self) -> onnx.ModelProto:
        """The model, the same bits at every call."""
        header = f'<ir_version: {self.ir_version}, opset_import: ["": {self.opset}]>'
        text = f"{header} {self.key.replace('-', '_')} ({self.inputs}) => ({self.outputs}) {{ {self.body} }}"
        model = onnx.parser.parse_model(text)
        for node in model.graph.node:
            node.name = f"{node.op_type}_{node.output[0]}"
        parameters = [value for value in model.graph.input if value.name not in self.data]
        held = {value.name: _draw(value) for value in parameters} | dict(self.constants)
        model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in held.items())
        if not self.overridable:
            for value in parameters:
                model.graph.input.remove(value)
        return model

    @property
    def can_go(self) -> bool:
        """Whether every BatchNorm ought to go; for parameters that may be overridden, keeping it is as good."""
        return not self.must_stay and not self.overridable

    def left_in(self, model: onnx.ModelProto) -> int:
        """How many BatchNorms are left in what a tool made of the model: those that the data still runs through."""
        kinds = [inner.op_type for node in data_path(model.graph) for inner in _with_bodies(node)]
        if self.disguised:
            return sum(kind in _ARITHMETIC or kind == "BatchNormalization" for kind in kinds)
        return kinds.count("BatchNormalization")


def data_path(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that compute something from the data, not from parameters alone."""
    reached = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if reached.intersection(node.input):
            reached.update(node.output)
            nodes.append(node)
    return nodes


def _with_bodies(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """The node, and the nodes in the bodies of a control-flow operator."""
    yield node
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _with_bodies(inner)


def _draw(value: onnx.ValueInfoProto) -> Array:
    """Seeded numbers for a parameter: variances positive, all others of both signs, magnitudes by name."""
    kind = value.type.tensor_type
    shape = [dim.dim_value for dim in kind.shape.dim]
    generator = np.random.default_rng(zlib.crc32(value.name.encode()))
    numbers = generator.uniform(0.5, 2.0, shape)
    if not re.search("var|positive", value.name):
        numbers = numbers * generator.choice([-1.0, 1.0], shape)
    numbers = numbers * {"large": 300.0, "tiny": 1e-5}.get(value.name.split("_")[0], 1.0)
    return np.asarray(numbers, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))


def _norm(channels: int, number: str = "", dtype: str = "float") -> str:
    return ", ".join(f"{dtype}[{channels}] {part}{number}" for part in ("gamma", "beta", "mean", "var"))


def _bn(result: str, data: str, number: str = "") -> str:
    return f"{result} = BatchNormalization ({data}, gamma{number}, beta{number}, mean{number}, var{number})"


def _ints(*values: int) -> Array:
    return np.array(values, np.int64)


_X = "float[N,3,8,8] x"
_CONV = f"{_X}, float[4,3,3,3] w"
_KEPT_PADDING = Reason.SHIFT_MEETS_PADDING

BACKWARD = (
    Case("conv", "Conv → BN", f"{_CONV}, float[4] b, {_norm(4)}",
         f"c = Conv <pads=[1,1,1,1]> (x, w, b) {_bn('y', 'c')}"),
    Case("conv3d", "Conv3d → BN", f"float[N,2,5,5,5] x, float[4,2,3,3,3] w, {_norm(4)}",
         f"c = Conv (x, w) {_bn('y', 'c')}", "float[N,4,?,?,?] y"),
    Case("grouped-convtranspose", "grouped ConvTranspose → BN", f"float[N,4,5,5] x, float[4,3,3,3] w, {_norm(6)}",
         f"c = ConvTranspose <group=2, strides=[2,2]> (x, w) {_bn('y', 'c')}", "float[N,6,?,?] y"),
    Case("gemm", "Gemm (alpha, beta, scalar C) → BN", f"float[N,6] x, float[4,6] w, float[] b, {_norm(4)}",
         f"c = Gemm <alpha=0.5, beta=2.0, transB=1> (x, w, b) {_bn('y', 'c')}", "float[N,4] y"),
    Case("matmul-add-transpose", "MatMul → Add → Transpose → BN → Transpose",
         f"float[N,5,6] x, float[6,4] w, float[4] b, {_norm(4)}",
         f"m = MatMul (x, w) a = Add (m, b) t = Transpose <perm=[0,2,1]> (a) {_bn('n', 't')}"
         "y = Transpose <perm=[0,2,1]> (n)", "float[N,5,4] y"),
    Case("levit", "MatMul → Reshape → BN → Reshape (LeViT)", f"float[N,5,6] x, float[6,4] w, {_norm(4)}",
         f"m = MatMul (x, w) r = Reshape (m, flat) {_bn('n', 'r')} y = Reshape (n, back)", "float[N,5,4] y",
         constants={"flat": _ints(-1, 4), "back": _ints(-1, 5, 4)},
         note="a MatMul has no bias: the BatchNorm's shift is left as one Add"),
    Case("conv-gap", "Conv → GlobalAveragePool → BN", f"{_CONV}, {_norm(4)}",
         f"c = Conv (x, w) p = GlobalAveragePool (c) {_bn('y', 'p')}"),
    Case("conv-maxpool", "Conv → MaxPool → BN, gamma > 0",
         f"{_CONV}, float[4] positive_gamma, float[4] beta, float[4] mean, float[4] var",
         "c = Conv (x, w) p = MaxPool <kernel_shape=[2,2], strides=[2,2], pads=[1,1,1,1]> (c)"
         "y = BatchNormalization (p, positive_gamma, beta, mean, var)"),
    Case("conv-resize", "Conv → Resize (linear) → BN", f"{_CONV}, {_norm(4)}",
         f'c = Conv (x, w) p = Resize <mode="linear"> (c, roi, scales) {_bn("y", "p")}',
         constants={"roi": np.zeros(0, np.float32), "scales": np.array([1, 1, 2, 2], np.float32)}),
    Case("concat", "Concat(Conv, Conv) → BN", f"{_CONV}, float[2,3,3,3] u, {_norm(6)}",
         f"c = Conv (x, w) d = Conv (x, u) k = Concat <axis=1> (c, d) {_bn('y', 'k')}", "float[N,6,?,?] y"),
    Case("bn-bn", "Conv → BN → BN", f"{_CONV}, {_norm(4)}, {_norm(4, '2')}",
         f"c = Conv (x, w) {_bn('n', 'c')} {_bn('y', 'n', '2')}", batchnorms=2),
    Case("keras", "Conv → Transpose → Sub → Mul → Add (Keras)",
         f"{_CONV}, float[4] mean, float[4] factor, float[4] beta",
         "c = Conv (x, w) t = Transpose <perm=[0,2,3,1]> (c) s = Sub (t, mean) m = Mul (s, factor) y = Add (m, beta)",
         "float[N,?,?,4] y", batchnorms=3, disguised=True),
    Case("decomposed", "Conv → Mul → Add, constant first", f"{_CONV}, float[4,1,1] factor, float[4,1,1] beta",
         "c = Conv (x, w) m = Mul (factor, c) y = Add (beta, m)", batchnorms=2, disguised=True),
    Case("shared-weight", "two Convs share one weight, two BNs", f"{_CONV}, {_norm(4)}, {_norm(4, '2')}",
         f"c = Conv (x, w) d = Conv <strides=[2,2]> (x, w) {_bn('y', 'c')} {_bn('z', 'd', '2')}",
         "float[N,4,?,?] y, float[N,4,?,?] z", batchnorms=2),
)  # fmt: skip

FORWARD = (
    Case("bn-conv", "BN → Conv, no padding", f"{_CONV}, {_norm(3)}", f"{_bn('n', 'x')} y = Conv (n, w)"),
    Case("bn-grouped-conv", "BN → grouped Conv, no padding", f"float[N,4,8,8] x, float[4,2,3,3] w, {_norm(4)}",
         f"{_bn('n', 'x')} y = Conv <group=2> (n, w)"),
    Case("bn-flatten-gemm", "BN → Flatten → Gemm", f"float[N,3,2,2] x, float[4,12] w, float[4] b, {_norm(3)}",
         f"{_bn('n', 'x')} f = Flatten (n) y = Gemm <transB=1> (f, w, b)", "float[N,4] y"),
    Case("avgpool-flatten-gemm", "Conv → AveragePool → Flatten → BN → Gemm",
         f"{_CONV}, {_norm(36)}, float[5,36] v",
         f"c = Conv (x, w) p = AveragePool <kernel_shape=[2,2], strides=[2,2]> (c) f = Flatten (p) {_bn('n', 'f')}"
         "y = Gemm <transB=1> (n, v)", "float[N,5] y"),
)  # fmt: skip

TRAPS = (
    Case("epsilon-zero", "Conv → BN, epsilon 0",
         f"{_CONV}, float[4] gamma, float[4] beta, float[4] mean, float[4] tiny_var",
         "c = Conv (x, w) y = BatchNormalization <epsilon=0.0> (c, gamma, beta, mean, tiny_var)"),
    Case("mixed-dtype", "float16 Conv → BN with float32 statistics",
         f"float16[N,3,8,8] x, float16[4,3,3,3] w, {_norm(4)}", f"c = Conv (x, w) {_bn('y', 'c')}",
         "float16[N,4,?,?] y", opset=15),
    Case("overridable", "weights the caller may override (IR 4)", f"{_CONV}, {_norm(4)}",
         f"c = Conv (x, w) {_bn('y', 'c')}", overridable=True, opset=9, ir_version=4,
         note="folding takes these inputs away, keeping is as good, so the sums leave it out; bnfold says so, "
         "and with keep_overridable=True it keeps them"),
    Case("overflow", "float16 fold that would overflow",
         "float16[N,3,8,8] x, float16[4,3,3,3] large_w, float16[4] gamma, float16[4] beta, float16[4] mean, "
         "float16[4] tiny_var", "c = Conv (x, large_w) y = BatchNormalization (c, gamma, beta, mean, tiny_var)",
         "float16[N,4,?,?] y", left=1, must_stay=True, reason=Reason.OVERFLOWS_DTYPE, amplitude=1e-3),
    Case("model-output", "the Conv is also a model output", f"{_CONV}, {_norm(4)}",
         f"c = Conv (x, w) {_bn('y', 'c')}", "float[N,4,?,?] y, float[N,4,?,?] c",
         left=1, must_stay=True, reason=Reason.IS_MODEL_OUTPUT),
    Case("training", "BN in training mode", f"{_CONV}, {_norm(4)}",
         "c = Conv (x, w) y, next_mean, next_var = BatchNormalization <training_mode=1> (c, gamma, beta, mean, var)",
         left=1, must_stay=True, reason=Reason.NORMALISES_BY_BATCH_STATISTICS),
    Case("matmul-rows", "MatMul → Transpose → BN over the rows", f"float[4,6] x, float[6,4] w, {_norm(4)}",
         f"m = MatMul (x, w) t = Transpose <perm=[1,0]> (m) {_bn('y', 't')}", "float[4,4] y",
         left=1, must_stay=True, reason=Reason.OPERATOR_MIXES_CHANNELS),
    Case("bn-padded-conv", "BN → Conv, zero padding", f"{_CONV}, {_norm(3)}",
         f"{_bn('n', 'x')} y = Conv <pads=[1,1,1,1]> (n, w)", left=1, must_stay=True, reason=_KEPT_PADDING),
    Case("bn-same-conv", "BN → Conv, auto_pad SAME", f"{_CONV}, {_norm(3)}",
         f'{_bn("n", "x")} y = Conv <auto_pad="SAME_UPPER"> (n, w)', left=1, must_stay=True, reason=_KEPT_PADDING),
)  # fmt: skip

BODIES = (
    Case("if-body", "Conv → BN in the body of an If", f"{_CONV}, bool[1] flag, {_norm(4)}",
         "y = If (flag) <then_branch = yes () => (float[N,4,6,6] t) "
         f"{{ c = Conv (x, w) {_bn('t', 'c')} }}, else_branch = no () => (float[N,4,6,6] e) {{ e = Conv (x, w) }}>",
         data=("x", "flag")),
)  # fmt: skip

_SAME = "pads=[1,1,1,1]"
_SQUARE = "float[N,4,8,8] x, float[4,4,3,3] w"

BLOCKS = (
    Case("repvgg", "RepVGG block: 3x3, 1x1 and identity, each with its BN",
         f"{_SQUARE}, float[4,4,1,1] u, {_norm(4)}, {_norm(4, '2')}, {_norm(4, '3')}",
         f"c = Conv <{_SAME}> (x, w) {_bn('a', 'c')} d = Conv (x, u) {_bn('b', 'd', '2')} {_bn('i', 'x', '3')}"
         "s = Add (a, b) y = Add (s, i)", batchnorms=3),
    Case("repmixer", "RepMixer block (FastViT): x + scale*(dw(x) - BN(x))",
         f"float[N,4,8,8] x, float[4,1,3,3] w, float[4,1,1] scale, {_norm(4)}, {_norm(4, '2')}",
         f"c = Conv <{_SAME}, group=4> (x, w) {_bn('a', 'c')} {_bn('b', 'x', '2')} d = Sub (a, b)"
         "m = Mul (d, scale) y = Add (x, m)", batchnorms=2),
    Case("sum", "Add(Conv, Conv) → BN", f"{_SQUARE}, float[4,4,3,3] u, {_norm(4)}",
         f"r = Relu (x) c = Conv (x, w) d = Conv (r, u) s = Add (c, d) {_bn('y', 's')}"),
    Case("two-readers", "Conv → BN and, beside it, Conv → Conv", f"{_CONV}, float[4,4,3,3] u, {_norm(4)}",
         f"c = Conv (x, w) {_bn('n', 'c')} y = Sigmoid (n) d = Conv (c, u) z = Relu (d)",
         "float[N,4,?,?] y, float[N,4,?,?] z"),
    Case("dense", "dense block: two BNs → ReLU → Conv read one Concat",
         f"{_CONV}, float[2,3,3,3] u, float[3,6,3,3] v, {_norm(6)}, {_norm(6, '2')}",
         f"c = Conv (x, w) d = Conv (x, u) k = Concat <axis=1> (c, d) {_bn('a', 'k')} r = Relu (a)"
         f"y = Conv <{_SAME}> (r, v) {_bn('b', 'k', '2')} q = Relu (b) z = Conv <{_SAME}> (q, v)",
         "float[N,3,?,?] y, float[N,3,?,?] z", batchnorms=2, left=1, reason=Reason.VALUE_HAS_OTHER_READERS),
    Case("relu1d", "BN → ReLU → Conv1d", "float[N,3,20] x, float[4,3,3] w, float[3] positive_gamma, "
         "float[3] beta, float[3] mean, float[3] var",
         "n = BatchNormalization (x, positive_gamma, beta, mean, var) r = Relu (n) y = Conv (r, w)",
         "float[N,4,?] y"),
    Case("pixel-shuffle", "Conv → DepthToSpace → BN", f"{_X}, float[8,3,3,3] w, {_norm(2)}",
         f'c = Conv (x, w) p = DepthToSpace <blocksize=2, mode="CRD"> (c) {_bn("y", "p")}', "float[N,2,?,?] y"),
    Case("halves", "Conv → Split → BN on one half", f"{_CONV}, {_norm(2)}",
         f"c = Conv (x, w) p, q = Split <axis=1> (c, halves) {_bn('n', 'p')} y = Concat <axis=1> (n, q)",
         constants={"halves": _ints(2, 2)}),
    Case("quantised", "int8 weights → DequantizeLinear → Conv → BN",
         f"{_X}, int8[4,3,3,3] q, float[4] positive_scale, {_norm(4)}",
         f"w = DequantizeLinear <axis=0> (q, positive_scale) c = Conv (x, w) {_bn('y', 'c')}",
         opset=19),
)  # fmt: skip

CASES: tuple[Case, ...] = (*BACKWARD, *FORWARD, *BLOCKS, *TRAPS, *BODIES)
