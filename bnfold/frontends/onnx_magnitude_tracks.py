"""The two tracks of a region under construction: for every float tensor its magnitude M and its error E.

`M >= |x|` and `E >= |x~ - x| / u`; no error track means `E = 0`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from bnfold.errors import ModelError
from bnfold.frontends.onnx_kernels_run import evaluate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx import ValueInfoProto

Array: TypeAlias = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Bound:
    """The tracks of one float tensor, as tensor names of the model under construction.

    Attributes:
        magnitude: Name of M.
        error: Name of E, or None where the tensor does not depend on a stored number.
    """

    magnitude: str
    error: str | None

    @property
    def rounds_once(self) -> bool:
        """Whether E = M: stored numbers, or exact ones times one stored number each."""
        return self.error == self.magnitude


class TracksBuilder:
    """The nodes and initializers that compute the tracks, while the region is walked in order.

    Attributes:
        roundoff: The unit roundoff u, for second-order terms.
        smallest_normal: Below it a number is rounded as if it were that large.
        nodes: The nodes so far.
        initializers: The initializers so far.
        constants: The values of the constant tensors of the region, float or not.
    """

    def __init__(self, model: ModelProto, roundoff: float, smallest_normal: float) -> None:
        self.roundoff = roundoff
        self.smallest_normal = smallest_normal
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.constants: dict[str, Array] = {}
        self._opsets = list(model.opset_import)
        self._bounds: dict[str, Bound] = {}
        self._exact: set[str] = set()
        values = (*model.graph.input, *model.graph.output, *model.graph.initializer)
        self._taken = {v.name for v in values} | {o for n in model.graph.node for o in n.output}

    def add_constant(self, name: str, value: Array) -> None:
        """A constant tensor; only one that is not float is copied as it is."""
        self.constants[name] = value
        if value.dtype.kind != "f" or value.dtype.itemsize == 1:  # float8 numbers are codes, as integers are
            self._exact.add(name)
            self.initializers.append(onnx.numpy_helper.from_array(value, name))

    def add_input(self, name: str, is_float: bool) -> None:
        """A fed tensor: its magnitude is what is fed, and it has no error."""
        if is_float:
            self._bounds[name] = Bound(name, None)
        else:
            self._exact.add(name)

    def add_exact(self, node: NodeProto, inputs: Sequence[str]) -> None:
        """A node without float data, copied as it is."""
        copy = NodeProto()
        copy.CopyFrom(node)
        del copy.input[:]
        copy.input.extend(inputs)
        self.nodes.append(copy)
        self._exact.update(node.output)

    def is_exact(self, name: str) -> bool:
        """Whether the tensor is copied from the region as it is."""
        return name in self._exact

    def any_track(self, name: str) -> str:
        """A tensor of the shape of `name`."""
        return name if name in self._exact else self.bound(name).magnitude

    def exact(self, name: str, node: NodeProto) -> str:
        """The name itself, if its value is exact: a shape, an index, a scale.

        Raises:
            ModelError: It is computed from floats.
        """
        if not name or name in self._exact:
            return name
        if name in self.constants:
            return self.constant(self.constants[name])
        if self._bounds.get(name) == Bound(name, None):
            return name  # fed: scales are positive, so |scales| = scales
        raise ModelError(
            f"no rounding bound is known for {node.op_type} with a computed '{name}'", where=where_of(node)
        )

    def bound(self, name: str) -> Bound:
        """The tracks of a tensor of the region.

        Raises:
            ModelError: There are none: a second output such as the indices of MaxPool.
        """
        if name not in self._bounds:
            if name in self._exact:
                self._bounds[name] = Bound(self.node("Abs", [name]), None)
            elif name in self.constants:
                size, rounded = np.abs(self.constants[name]), self.rounded(self.constants[name])
                magnitude = self.constant(size)
                error = magnitude if np.array_equal(size, rounded) else self.constant(rounded)
                self._bounds[name] = Bound(magnitude, error)
            else:
                raise ModelError("no rounding bound is known for this tensor", where=name)
        return self._bounds[name]

    def rounded(self, stored: Array) -> Array:
        """By how much, in units of u, storing the numbers may change them."""
        return np.maximum(np.abs(stored), self.smallest_normal)

    def set_bound(self, name: str, bound: Bound) -> None:
        """Records the tracks of a node's output."""
        self._bounds[name] = bound

    def constant(self, value: Array) -> str:
        """A new initializer."""
        name = self._fresh()
        self.initializers.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op_type: str, inputs: Sequence[str], attributes: Sequence[AttributeProto] = ()) -> str:
        """A new node with one output, whose name is returned."""
        return self.outputs(op_type, inputs, attributes, 1)[0]

    def outputs(
        self, op_type: str, inputs: Sequence[str], attributes: Sequence[AttributeProto], count: int, domain: str = ""
    ) -> list[str]:
        """A new node with `count` outputs, whose names are returned."""
        names = [self._fresh() for _ in range(count)]
        node = onnx.helper.make_node(op_type, list(inputs), names, domain=domain)
        node.attribute.extend(attributes)
        self.nodes.append(node)
        return names

    def zeros_like(self, name: str) -> str:
        """A tensor of zeros."""
        return self.node("Mul", [name, self.constant(np.zeros(()))])

    def error_or_zeros(self, bound: Bound) -> str:
        """E, as zeros where there is none."""
        return bound.error or self.zeros_like(bound.magnitude)

    def enlarged(self, bound: Bound, factor: float) -> str:
        """`M + factor*E`."""
        if bound.error is None or not factor:
            return bound.magnitude
        return self.node("Add", [bound.magnitude, self.node("Mul", [bound.error, self.constant(np.asarray(factor))])])

    def constant_outputs(self, node: NodeProto) -> dict[str, Array]:
        """The values of a node whose inputs are all constant."""
        names = dict.fromkeys(name for name in node.input if name)
        weights = [onnx.numpy_helper.from_array(self.constants[name], name) for name in names]
        wanted = [name for name in node.output if name]
        outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in wanted]
        graph = GraphProto(name="constant", node=[node], initializer=weights, output=outputs)
        return evaluate(ModelProto(graph=graph, opset_import=self._opsets), {})

    def finish(self, name: str, where: str) -> ValueInfoProto:
        """The graph output `name`: E under the name of the original tensor.

        Raises:
            ModelError: The output is an input or has no bound.
        """
        if name in self._exact:
            return onnx.helper.make_empty_tensor_value_info(name)
        if self.bound(name).magnitude == name:
            raise ModelError("an output of the region is one of its inputs", where=where)
        self.nodes.append(onnx.helper.make_node("Identity", [self.error_or_zeros(self.bound(name))], [name]))
        return onnx.helper.make_tensor_value_info(name, TensorProto.DOUBLE, None)

    def _fresh(self) -> str:
        name = f"bnfold/{len(self._taken)}"
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def where_of(node: NodeProto) -> str:
    """The node's name, or its outputs when it has none."""
    return node.name or ", ".join(node.output)


def stored_at(tracks: TracksBuilder, node: NodeProto, index: int) -> Array:
    """The constant at an input of the node.

    Raises:
        ModelError: It is computed.
    """
    found = tracks.constants.get(node.input[index])
    if found is None:
        what = f"no rounding bound is known for {node.op_type} with a computed '{node.input[index]}'"
        raise ModelError(what, where=where_of(node))
    return found


def attribute_of(node: NodeProto, name: str, default: Any) -> Any:
    """An attribute's value, or the default."""
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)
