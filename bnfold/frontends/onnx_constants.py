"""Which values of an ONNX graph are constant, and what they are: `array(value)` is their number for every input.

Initializers, Constant nodes, and whatever is computed from constants by the operators that exporters put between a
parameter and its reader (Identity, Cast, Unsqueeze, Expand, ...).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.reference
import onnx_ir as ir

from bnfold.decision import Reason, Refusal
from bnfold.frontends.onnx_shapes import KnownShapes

#: Deterministic operators whose value is worth knowing; DequantizeLinear is not among them, so that weights stay
#: quantised.
_COMPUTED = frozenset(
    """
    Add Cast Concat ConstantOfShape Div Exp Expand Flatten Gather Identity Max Min Mul Neg Pow QuantizeLinear Range
    Reciprocal ReduceL2 ReduceMean ReduceProd ReduceSum ReduceSumSquare Reshape Size Slice Sqrt Squeeze Sub Tile
    Transpose Unsqueeze
    """.split()
)

#: Larger results than this are not computed here; `--simplify` does it.
_MAX_ELEMENTS = 1 << 24


class Constants:
    """The constants of one model, of its main graph and of the bodies of its control flow.

    Attributes:
        keep_overridable: Whether an initializer that is also a graph input counts as variable.
        opset: The version of the standard operators.
    """

    def __init__(self, model: ir.Model, shapes: KnownShapes, *, keep_overridable: bool) -> None:
        self.keep_overridable = keep_overridable
        self._opsets = dict(model.opset_imports)
        self.opset = self._opsets.get("", self._opsets.get("ai.onnx", 1))
        self._shapes = shapes
        self._inputs = {id(value) for value in model.graph.inputs}
        self._entering = {id(value) for body in model.graph.subgraphs() for value in body.inputs}
        self._computed: dict[ir.Value, npt.NDArray[Any] | None] = {}

    def array(self, value: ir.Value | None) -> npt.NDArray[Any] | None:
        """The constant, in its stored dtype; None if the value is absent, variable or overridable."""
        if value is None or self.overridable(value):
            return None
        node = value.producer()
        if node is None:
            known = value.const_value is not None and id(value) not in self._entering
            return value.const_value.numpy() if known and value.const_value is not None else None
        if value not in self._computed:
            with np.errstate(all="ignore"):  # a constant that overflows is no news for the reader's terminal
                self._computed[value] = self._compute(node)
        return self._computed[value]

    def moved(self, node: ir.Node, data: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
        """What `node` computes with `data` in the place of its first input; None where another one is not constant."""
        others = [None if v is None else self.array(v) for v in node.inputs[1:]]
        if any(a is None and v is not None for a, v in zip(others, node.inputs[1:], strict=True)):
            return None
        return self._run(node, [data, *others])

    def overridable(self, value: ir.Value) -> bool:
        """Whether a caller may feed the initializer, and is to be left that right."""
        return self.keep_overridable and id(value) in self._inputs

    def why_not(self, value: ir.Value, where: str, variable: Reason) -> Refusal:
        """Why `array(value)` is None: overridable, quantised, or just `variable`."""
        node = value.producer()
        if node is not None and node.op_type == "DequantizeLinear":
            return Refusal(Reason.WEIGHTS_ARE_QUANTISED, where)
        return Refusal(
            Reason.PARAMETER_IS_OVERRIDABLE if self.overridable(value) else variable, where, value.name or ""
        )

    def _compute(self, node: ir.Node) -> npt.NDArray[Any] | None:
        if node.domain not in ("", "ai.onnx"):
            return None
        match node.op_type:
            case "Constant":
                return _stored(node)
            case "Shape":
                return self._static_shape(node)
            case "CastLike":
                return self._cast_like(node)
            case kind if kind in _COMPUTED and len(node.outputs) == 1:
                return self._evaluated(node)
        return None

    def _evaluated(self, node: ir.Node) -> npt.NDArray[Any] | None:
        inputs = [None if v is None else self.array(v) for v in node.inputs]
        if any(a is None and v is not None for a, v in zip(inputs, node.inputs, strict=True)):
            return None
        return None if _too_large(node, inputs) else self._run(node, inputs)

    def _static_shape(self, node: ir.Node) -> npt.NDArray[Any] | None:
        """The part of a shape that is asked for, where it is proven."""
        shape = self._shapes.shape(node.inputs[0])
        if shape is None:
            return None
        start, end = (node.attributes.get(name) for name in ("start", "end"))
        part = shape[None if start is None else start.as_int() : None if end is None else end.as_int()]
        sizes = [size for size in part if isinstance(size, int)]
        return np.array(sizes, np.int64) if len(sizes) == len(part) else None

    def _cast_like(self, node: ir.Node) -> npt.NDArray[Any] | None:
        """Only the type of the second input counts, which is known even where its values are not."""
        array, dtype = self.array(node.inputs[0]), self._shapes.dtype(node.inputs[1])
        return None if array is None or dtype is None else array.astype(dtype)

    def _run(self, node: ir.Node, inputs: list[npt.NDArray[Any] | None]) -> npt.NDArray[Any] | None:
        proto = ir.to_proto(node)
        feeds = {n: a for n, a in zip(proto.input, inputs, strict=True) if a is not None}
        infos = [onnx.helper.make_value_info(n, onnx.TypeProto()) for n in feeds]
        result = onnx.helper.make_value_info(proto.output[0], onnx.TypeProto())
        opsets = [onnx.helper.make_opsetid(d, v) for d, v in self._opsets.items()]
        model = onnx.helper.make_model(
            onnx.helper.make_graph([proto], "constant", infos, [result]), opset_imports=opsets
        )
        try:
            return np.asarray(onnx.reference.ReferenceEvaluator(model).run([proto.output[0]], feeds)[0])  # type: ignore[index]
        except Exception:  # the evaluator raises anything; then the value is simply not known
            return None


def _stored(node: ir.Node) -> npt.NDArray[Any] | None:
    """The number in a Constant node; `ir.convenience.get_const_tensor` would write a name into the tensor."""
    for name, attribute in node.attributes.items():
        match name:
            case "value":
                return attribute.as_tensor().numpy()
            case "value_float" | "value_floats":
                return np.asarray(attribute.value, np.float32)
            case "value_int" | "value_ints":
                return np.asarray(attribute.value, np.int64)
    return None


def _too_large(node: ir.Node, inputs: list[npt.NDArray[Any] | None]) -> bool:
    if node.op_type in ("Expand", "ConstantOfShape", "Tile"):
        shape = inputs[0] if node.op_type == "ConstantOfShape" else inputs[1]
        return shape is not None and bool(np.prod(shape.astype(np.float64)) > _MAX_ELEMENTS)
    return sum(a.size for a in inputs if a is not None) > _MAX_ELEMENTS
