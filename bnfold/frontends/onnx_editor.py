"""Changes to an onnx_ir graph that never write a tensor that another node reads.

A folded constant is a new initializer under a new name; equal ones made from the same tensor are stored once. What
nothing reads any more afterwards is removed, and only that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bnfold.affine import Float64Array
from bnfold.rounding import round_once


@dataclass(frozen=True, eq=False)
class Replacement:
    """One of the operators that replace a node; it reads the value before it, then constants.

    Attributes:
        op_type: The operator.
        stem: What is put behind the names of value and node; the last operator takes these names themselves.
        constants: float64, by how they are called after that value.
        attributes: Its attributes.
    """

    op_type: str
    stem: str
    constants: Mapping[str, Float64Array] = field(default_factory=dict)
    attributes: Sequence[ir.Attr] = ()


class Editor:
    """Edits one graph, and remembers what may have lost its last reader.

    Attributes:
        graph: The graph.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._initializers_are_inputs = False
        self._names = names_in(graph)
        self._made: dict[tuple[str, bytes, tuple[int, ...]], ir.Value] = {}
        self._loose: list[ir.Value] = []
        self._replaced: dict[int, ir.Value] = {}

    @property
    def cloned_bytes(self) -> int:
        """Bytes of the replaced initializers that stay, because another node reads them; ask after `sweep`."""
        stays = [v for v in self._replaced.values() if self.graph.initializers.get(v.name or "") is v]
        return sum(v.const_value.nbytes for v in stays if v.const_value is not None)

    def initializers_are_inputs(self) -> None:
        """From now on every new initializer is listed as a graph input too, as files of IR version 3 must."""
        self._initializers_are_inputs = True

    def fresh(self, stem: str) -> str:
        """A name that nothing in the model has."""
        name, count = stem, 1
        while name in self._names:
            count += 1
            name = f"{stem}_{count}"
        self._names.add(name)
        return name

    def rename(self, value: ir.Value) -> None:
        """Give `value`, whose meaning changes, a new name, so that equal names stay equal values."""
        value.name = self.fresh(f"{value.name}_folded")

    def set_constant(
        self, node: ir.Node, position: int, values: Float64Array, dtype: np.dtype[Any], stem: str = ""
    ) -> None:
        """Make input `position` of `node` the constant `values`, rounded once to `dtype`."""
        old = node.inputs[position] if position < len(node.inputs) else None
        array = round_once(values, dtype)
        name = stem or (old.name if old is not None else None) or f"{node.name or node.op_type}_constant"
        key = (name, array.tobytes(), array.shape)
        if key not in self._made:
            self._made[key] = self._initializer(self.fresh(f"{name}_folded"), array)
        if position >= len(node.inputs):
            node.resize_inputs(position + 1)
        node.replace_input_with(position, self._made[key])
        self.loosen(old)
        if old is not None and old.is_initializer():
            self._replaced[id(old)] = old

    def _initializer(self, name: str, array: npt.NDArray[Any]) -> ir.Value:
        tensor = ir.Tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        if self._initializers_are_inputs:
            self.graph.inputs.append(value)
        return value

    def add_after(self, node: ir.Node, values: Float64Array, dtype: np.dtype[Any]) -> None:
        """Put `Add(output, values)` behind `node`; the sum takes the output's name, readers and place."""
        old = node.outputs[0]
        name = old.name or node.op_type
        constant = self._initializer(self.fresh(f"{name}_bias"), round_once(values, dtype))
        total = ir.Value(name=name, shape=old.shape, type=old.type, doc_string=old.doc_string)
        old.replace_all_uses_with(total, replace_graph_outputs=True)
        old.name = self.fresh(f"{name}_folded")
        add = ir.Node("", "Add", [old, constant], outputs=[total], name=self.fresh(f"{node.name or name}_bias"))
        self.graph.insert_after(node, add)

    def replace(self, node: ir.Node, chain: Sequence[Replacement], dtype: np.dtype[Any]) -> list[ir.Value]:
        """Put `chain` in the place of a BatchNorm; its end takes over the names of node and output, and the readers.

        Args:
            node: The node; its first input goes in, its first output comes out.
            chain: At least one operator.
            dtype: To which the constants are rounded, once.

        Returns:
            The output of each operator of the chain.
        """
        old = node.outputs[0]
        name, parameters = old.name or node.op_type, [value for value in node.inputs[1:] if value is not None]
        value, last, made = node.inputs[0], node, list[ir.Value]()
        for part in chain:
            constants = [
                self._initializer(self.fresh(f"{name}_{stem}"), round_once(values, dtype))
                for stem, values in part.constants.items()
            ]
            is_end = part is chain[-1]
            own = name if is_end else self.fresh(f"{name}_{part.stem}")
            called = node.name if is_end and node.name else self.fresh(f"{node.name or name}_{part.stem}")
            out = ir.Value(name=own, shape=old.shape, type=old.type, doc_string=old.doc_string if is_end else None)
            new = ir.Node("", part.op_type, [value, *constants], part.attributes, outputs=[out], name=called)
            self.graph.insert_after(last, new)
            made.append(out)
            value, last = out, new
        old.replace_all_uses_with(made[-1], replace_graph_outputs=True)
        old.name = None
        self.graph.remove(node, safe=True)
        for parameter in parameters:
            self.loosen(parameter)
        return made

    def replace_by_chain(
        self,
        node: ir.Node,
        data: ir.Value,
        steps: Sequence[tuple[str, Sequence[Float64Array | None]]],
        dtype: np.dtype[Any],
        attributes: Sequence[ir.Attr] = (),
    ) -> None:
        """Put operators with constants, each applied to the one before, in the place of `node`.

        The last one takes over the output's name and readers, and has the `attributes`.
        """
        old, before = node.outputs[0], node
        name, label = old.name or node.op_type, node.name or old.name or node.op_type
        for number, (kind, constants) in enumerate(steps, start=1):
            made = [None if c is None else self._bound(name, c, dtype) for c in constants]
            last = number == len(steps)
            out = ir.Value(name=name if last else self.fresh(f"{name}_{kind}"), shape=old.shape, type=old.type)
            called = node.name if last else self.fresh(f"{label}_{kind}")
            added = ir.Node("", kind, [data, *made], attributes if last else (), outputs=[out], name=called)
            self.graph.insert_after(before, added)
            before, data = added, out
        data.doc_string = old.doc_string
        old.replace_all_uses_with(data, replace_graph_outputs=True)
        old.name = None
        lost = list(node.inputs)
        self.graph.remove(node, safe=True)
        for value in lost:
            self.loosen(value)

    def _bound(self, name: str, values: Float64Array, dtype: np.dtype[Any]) -> ir.Value:
        return self._initializer(self.fresh(f"{name}_bound"), round_once(values, dtype))

    def leave_out(self, node: ir.Node, position: int) -> None:
        """Take away an optional input, if it is there."""
        if position < len(node.inputs):
            old = node.inputs[position]
            node.replace_input_with(position, None)
            self.loosen(old)

    def bypass(self, node: ir.Node, data: ir.Value, *, takes_name: bool) -> None:
        """Take `node` out: the readers of its output read `data`, which takes the output's name if it now equals it."""
        out = node.outputs[0]
        name, doc = out.name, out.doc_string if out.is_graph_output() else None
        out.replace_all_uses_with(data, replace_graph_outputs=True)
        others = [v for v in node.inputs if v is not None and v is not data]
        self.graph.remove(node, safe=True)
        for value in others:
            self.loosen(value)
        if takes_name:
            out.name = None
            data.name, data.doc_string = name, doc or data.doc_string
            data.shape, data.type = out.shape or data.shape, out.type or data.type

    def loosen(self, value: ir.Value | None) -> None:
        """Note that `value` has lost a reader."""
        if value is not None:
            self._loose.append(value)

    def sweep(self) -> list[str]:
        """Remove what lost its last reader by these edits; returns the names of graph inputs that went with it."""
        dropped: list[str] = []
        while self._loose:
            value = self._loose.pop()
            if value.uses() or value.is_graph_output():
                continue
            node = value.producer()
            if node is None:
                dropped += self._drop_initializer(value)
            elif node.graph is self.graph and not any(v.uses() or v.is_graph_output() for v in node.outputs):
                self._loose.extend(v for v in node.inputs if v is not None)
                self.graph.remove(node, safe=True)
        return dropped

    def _drop_initializer(self, value: ir.Value) -> list[str]:
        name = value.name or ""
        if self.graph.initializers.get(name) is not value:
            return []
        del self.graph.initializers[name]
        positions = [i for i, v in enumerate(self.graph.inputs) if v is value]
        for i in reversed(positions):
            del self.graph.inputs[i]
        return [name] * len(positions)


def names_in(graph: ir.Graph) -> set[str]:
    """Every name of a value or node in the graph and its subgraphs."""
    names: set[str] = {
        v.name for g in (graph, *graph.subgraphs()) for v in (*g.inputs, *g.initializers.values()) if v.name
    }
    for node in graph.all_nodes():
        names.update(v.name for v in node.outputs if v.name)
        names.update([node.name] if node.name else [])
    return names
