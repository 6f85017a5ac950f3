"""Grows an ONNX model node by node, with the shape of every value known and its constants stored in many ways.

The shapes are those of the feed that comes with the model; what the file declares may leave them open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper, shape_inference

Array = np.ndarray[Any, Any]

Key: TypeAlias = tuple[str, str, tuple[int, ...]]
#: Nodes, values and operators so far, the initializers, and the constants that may be shared.
Mark: TypeAlias = tuple[int, int, int, dict[str, Array], dict[Key, str]]

MOST_ELEMENTS = 6000


@dataclass(frozen=True)
class Value:
    """A value of the graph: its name, its shape at the feed, and its dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def rank(self) -> int:
        return len(self.shape)


class Misfit(Exception):  # noqa: N818  # no error: the operator does not fit the value, another is tried
    """The operator that was tried cannot be applied here."""


class Builder:
    """A graph under construction.

    Attributes:
        rng: Where every random choice comes from.
        opset: The version of the standard operators.
        values: Every value that a later node may read.
        operators: How many nodes that compute with data there are.
    """

    def __init__(self, rng: np.random.Generator, opset: int, dtype: np.dtype[Any]) -> None:
        self.rng = rng
        self.opset = opset
        self.dtype = dtype
        self.values: list[Value] = []
        self.operators = 0
        self.nodes: list[NodeProto] = []
        self.initializers: dict[str, Array] = {}
        self.inputs: list[ValueInfoProto] = []
        self.feeds: dict[str, Array] = {}
        self._constants: dict[Key, str] = {}
        self._count = 0

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def between(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def numbers(self, *shape: int, dtype: np.dtype[Any] | None = None) -> Array:
        return self.rng.normal(size=shape).astype(dtype or self.dtype)

    def name(self, stem: str) -> str:
        self._count += 1
        return f"{stem}{self._count}"

    def input(self, shape: tuple[int, ...], declared: list[int | str]) -> Value:
        value = Value(self.name("x"), shape, self.dtype)
        self.feeds[value.name] = self.numbers(*shape)
        self.inputs.append(helper.make_tensor_value_info(value.name, _element(self.dtype), declared))
        self.values.append(value)
        return value

    def constant(self, array: Array, kind: str = "") -> str:
        """The name of a constant; with a `kind` one of the same kind, dtype and shape may be shared, or wrapped."""
        key = (kind, array.dtype.name, array.shape)
        if kind and key in self._constants and self.chance(0.12):
            return self._constants[key]
        name = self._stored(array)
        if kind:
            name = self._constants[key] = self._wrapped(name, array)
        return name

    def _stored(self, array: Array) -> str:
        name = self.name("c")
        if self.chance(0.2):
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name)))
        else:
            self.initializers[name] = array
        return name

    def _wrapped(self, stored: str, array: Array) -> str:
        """Sometimes behind an Identity, a Cast to its own type or a Reshape to its own shape, as exporters write."""
        way = self.rng.random()
        if way > 0.12:
            return stored
        name = self.name("w")
        if way < 0.06:
            node = helper.make_node("Identity", [stored], [name])
        elif way < 0.09:
            node = helper.make_node("Cast", [stored], [name], to=_element(array.dtype))
        else:
            node = helper.make_node("Reshape", [stored, self._stored(np.array(array.shape, np.int64))], [name])
        self.nodes.append(node)
        return name

    def add(
        self,
        op_type: str,
        inputs: list[Value | str],
        outputs: int = 1,
        shape: tuple[int, ...] | None = None,
        **attributes: Any,
    ) -> Value:
        """Append a node and give its first output.

        Args:
            op_type: A standard operator.
            inputs: Values, names of constants, or "" for an input left out.
            outputs: How many outputs the node names; those after the first are read by nobody.
            shape: That of the output, with the dtype of the first input, where an input is no constant but computed.
            attributes: The node's attributes.

        Raises:
            Misfit: The output would be empty, too large, or of unknown shape.
        """
        names = [v.name if isinstance(v, Value) else v for v in inputs]
        made = [self.name("t") for _ in range(outputs)]
        node = helper.make_node(op_type, names, made, name=self._node_name(op_type), **attributes)
        given = {v for v in inputs if isinstance(v, Value)}
        value = self._inferred(node, given) if shape is None else _known(node, inputs[0], shape)
        self.nodes.append(node)
        self.values.append(value)
        self.operators += 1
        return value

    def add_all(self, op_type: str, inputs: list[Value | str], outputs: int, attributes: dict[str, Any]) -> list[Value]:
        """As `add`, where every output can be read.

        Raises:
            Misfit: As `add`.
        """
        first = self.add(op_type, inputs, outputs, **attributes)
        node, given = self.nodes[-1], {v for v in inputs if isinstance(v, Value)}
        others = [self._inferred(node, given, place) for place in range(1, outputs)]
        self.values += others
        return [first, *others]

    def _node_name(self, op_type: str) -> str:
        """Usually its own, sometimes none, or one that other nodes have too."""
        way = self.rng.random()
        return "" if way < 0.08 else "twin" if way < 0.12 else self.name(f"{op_type}_")

    def _inferred(self, node: NodeProto, inputs: set[Value], place: int = 0) -> Value:
        infos = [helper.make_tensor_value_info(v.name, _element(v.dtype), v.shape) for v in sorted(inputs, key=repr)]
        result = helper.make_empty_tensor_value_info(node.output[place])
        constants = self._constants_of(node)
        graph = helper.make_graph([*constants[1], node], "one", infos, [result], constants[0])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        try:
            inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        except shape_inference.InferenceError as error:
            raise Misfit(str(error)) from error
        kind = inferred.graph.output[0].type.tensor_type
        shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
        if not kind.HasField("shape") or any(d < 1 for d in shape) or np.prod(shape) > MOST_ELEMENTS:
            raise Misfit(f"{node.op_type} gives {shape}")
        return Value(node.output[place], shape, helper.tensor_dtype_to_np_dtype(kind.elem_type))

    def _constants_of(self, node: NodeProto) -> tuple[list[TensorProto], list[NodeProto]]:
        """The initializers and the nodes behind the constant inputs of `node`."""
        made_by = {name: n for n in self.nodes for name in n.output}
        wanted, nodes, tensors = list(node.input), list[NodeProto](), dict[str, TensorProto]()
        values = {v.name for v in self.values}
        while wanted:
            name = wanted.pop()
            if name in self.initializers:
                tensors[name] = numpy_helper.from_array(self.initializers[name], name)
            elif name and name not in values and name in made_by and made_by[name] not in nodes:
                nodes.insert(0, made_by[name])
                wanted += made_by[name].input
        return list(tensors.values()), nodes

    def rollback(self, mark: Mark) -> None:
        """Forget all that came after `mark`."""
        nodes, values, self.operators, initializers, constants = mark
        del self.nodes[nodes:]
        del self.values[values:]
        self.initializers, self._constants = dict(initializers), dict(constants)

    def mark(self) -> Mark:
        """Where the construction stands, for `rollback`."""
        return len(self.nodes), len(self.values), self.operators, dict(self.initializers), dict(self._constants)

    def finish(self, outputs: list[Value], ir_version: int, listed: list[str], static: bool) -> ModelProto:
        """The model; `listed` initializers are graph inputs too."""
        given = [numpy_helper.from_array(v, k) for k, v in self.initializers.items()]
        defaults = [
            helper.make_tensor_value_info(k, _element(self.initializers[k].dtype), self.initializers[k].shape)
            for k in listed
        ]
        results = [
            helper.make_tensor_value_info(v.name, _element(v.dtype), v.shape if static else [None] * v.rank)
            for v in outputs
        ]
        graph = helper.make_graph(self.nodes, "random", [*self.inputs, *defaults], results, given)
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, producer_name="random graphs")


def _known(node: NodeProto, first: Value | str, shape: tuple[int, ...]) -> Value:
    if not isinstance(first, Value) or np.prod(shape) > MOST_ELEMENTS:
        raise Misfit(f"{node.op_type} gives {shape}")
    return Value(node.output[0], shape, first.dtype)


def _element(dtype: np.dtype[Any]) -> int:
    return int(helper.np_dtype_to_tensor_dtype(dtype))


def check(model: ModelProto) -> None:
    """Raises what onnx.checker raises for a model that is not valid."""
    onnx.checker.check_model(model, full_check=True)
