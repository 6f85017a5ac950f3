"""Changes to an onnx_ir model that never write a tensor that another node reads.

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
        constants: float64, by how they are called after that value; None for an input that is left out.
        attributes: Its attributes.
    """

    op_type: str
    stem: str
    constants: Mapping[str, Float64Array | None] = field(default_factory=dict)
    attributes: Sequence[ir.Attr] = ()


class Editor:
    """Edits the graphs of one model, and remembers what may have lost its last reader.

    A new constant belongs to the graph of the node that reads it.

    Attributes:
        model: The model.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        # Files of IR version 3 must list every initializer as a graph input too, which a body cannot.
        self._initializers_are_inputs = model.ir_version < 4
        self._names = names_in(model.graph)
        self._made: dict[tuple[ir.Graph, str, bytes, tuple[int, ...]], ir.Value] = {}
        self._copies: dict[tuple[int, ...], ir.Value] = {}
        self._loose: list[ir.Value] = []
        self._replaced: dict[int, ir.Value] = {}

    @property
    def cloned_bytes(self) -> int:
        """Bytes of the replaced initializers that stay, because another node reads them; ask after `sweep`."""
        stays = [v for v in self._replaced.values() if _stands_in(v) is not None]
        return sum(v.const_value.nbytes for v in stays if v.const_value is not None)

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
        name = stem or (old.name if old is not None else None) or f"{node.name or node.op_type}_constant"
        new = self._constant(self._home(node), name, round_once(values, dtype), old)
        if position >= len(node.inputs):
            node.resize_inputs(position + 1)
        node.replace_input_with(position, new)
        self.loosen(old)

    def _constant(self, graph: ir.Graph, name: str, array: npt.NDArray[Any], old: ir.Value | None) -> ir.Value:
        """An initializer in the place of `old`; the one that was made from `name` before, if it is the same."""
        key = (graph, name, array.tobytes(), array.shape)
        if key not in self._made:
            self._made[key] = self._initializer(graph, self.fresh(f"{name}_folded"), array)
        if old is not None and old.is_initializer():
            self._replaced[id(old)] = old
        return self._made[key]

    def set_dequantised(
        self,
        node: ir.Node,
        position: int,
        chain: tuple[ir.Node, ...],
        arrays: tuple[npt.NDArray[Any] | None, ...],
        axis: int,
    ) -> None:
        """Make input `position` of `node` what copies of the nodes of `chain` make of `arrays`.

        Args:
            node: The node.
            position: Which of its inputs.
            chain: A QuantizeLinear, if there is one, a DequantizeLinear, and what moves its numbers. In the model they
                stay as they are while anything reads them.
            arrays: What the first of them reads, scale and zero point; each None where it stays as it is.
            axis: The axis of the scales, if there are several.
        """
        data, *grid = arrays
        axes = axis if grid[0] is not None and grid[0].ndim else None
        old, value = node.inputs[position], self._with(chain[0], (data, None, None))[0]
        for part in chain:
            if part.op_type in ("QuantizeLinear", "DequantizeLinear"):
                value = self._copied(part, [value, *self._with(part, (None, *grid))[1:]], axes)
            else:
                value = self._copied(part, [value, *part.inputs[1:]])
        node.replace_input_with(position, value)
        self.loosen(old)

    def _with(self, node: ir.Node, arrays: tuple[npt.NDArray[Any] | None, ...]) -> list[ir.Value | None]:
        """The inputs of a QuantizeLinear or DequantizeLinear with new constants in the place of some."""
        inputs: list[ir.Value | None] = [*node.inputs, None][:3]
        stem = (node.outputs[0].name or node.op_type) + "_zero_point"
        for place, array in enumerate(arrays):
            if array is not None:
                old = inputs[place]
                name = (old.name if old is not None else None) or stem
                inputs[place] = self._constant(self._home(node), name, array, old)
        return inputs if inputs[-1] is not None else inputs[:-1]

    def _copied(self, node: ir.Node, inputs: list[ir.Value | None], axis: int | None = None) -> ir.Value:
        """The output of a copy of `node` that reads `inputs`; one copy for all that ask for the same."""
        key = (id(node), *(id(value) for value in inputs))
        if key not in self._copies:
            attributes = [a for a in node.attributes.values() if a.name != "axis" or axis is None]
            attributes += [] if axis is None else [ir.AttrInt64("axis", axis)]
            old = node.outputs[0]
            out = ir.Value(name=self.fresh(f"{old.name}_folded"), shape=old.shape, type=old.type)
            name = self.fresh(f"{node.name or old.name}_folded")
            copy = ir.Node(
                node.domain, node.op_type, inputs, attributes, outputs=[out], name=name, version=node.version
            )
            _graph_of(node).insert_after(node, copy)
            self._copies[key] = out
        return self._copies[key]

    def _home(self, node: ir.Node) -> ir.Graph:
        """Where a new constant of `node` is stored."""
        assert node.graph is not None
        return self.model.graph if self._initializers_are_inputs else node.graph

    def _initializer(self, graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
        tensor = ir.Tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
        if self._initializers_are_inputs:
            graph.inputs.append(value)
        return value

    def add_after(self, node: ir.Node, values: Float64Array, dtype: np.dtype[Any]) -> None:
        """Put `Add(output, values)` behind `node`; the sum takes the output's name, readers and place."""
        old = node.outputs[0]
        name = old.name or node.op_type
        constant = self._initializer(self._home(node), self.fresh(f"{name}_bias"), round_once(values, dtype))
        total = ir.Value(name=name, shape=old.shape, type=old.type, doc_string=old.doc_string)
        old.replace_all_uses_with(total, replace_graph_outputs=True)
        old.name = self.fresh(f"{name}_folded")
        add = ir.Node("", "Add", [old, constant], outputs=[total], name=self.fresh(f"{node.name or name}_bias"))
        _graph_of(node).insert_after(node, add)

    def replace(
        self, node: ir.Node, chain: Sequence[Replacement], dtype: np.dtype[Any], *, position: int = 0
    ) -> list[ir.Value]:
        """Put `chain` in the place of a node; its end takes over the names of node and output, and the readers.

        Args:
            node: The node; its first output comes out.
            chain: At least one operator.
            dtype: To which the constants are rounded, once.
            position: Which of its inputs goes in.

        Returns:
            The output of each operator of the chain.
        """
        old = node.outputs[0]
        name, parameters = old.name or node.op_type, [v for i, v in enumerate(node.inputs) if i != position]
        value, last, made = node.inputs[position], node, list[ir.Value]()
        for part in chain:
            constants = [
                None
                if values is None
                else self._initializer(self._home(node), self.fresh(f"{name}_{stem}"), round_once(values, dtype))
                for stem, values in part.constants.items()
            ]
            is_end = part is chain[-1]
            own = name if is_end else self.fresh(f"{name}_{part.stem}")
            called = node.name if is_end and node.name else self.fresh(f"{node.name or name}_{part.stem}")
            out = ir.Value(name=own, shape=old.shape, type=old.type, doc_string=old.doc_string if is_end else None)
            new = ir.Node("", part.op_type, [value, *constants], part.attributes, outputs=[out], name=called)
            _graph_of(last).insert_after(last, new)
            made.append(out)
            value, last = out, new
        old.replace_all_uses_with(made[-1], replace_graph_outputs=True)
        old.name = None
        _graph_of(node).remove(node, safe=True)
        for parameter in parameters:
            self.loosen(parameter)
        return made

    def replace_by_constant(self, node: ir.Node, values: Float64Array, dtype: np.dtype[Any]) -> None:
        """Put an initializer in the place of `node`; it takes over the first output's name and readers."""
        old, parameters = node.outputs[0], [value for value in node.inputs if value is not None]
        name, old.name = old.name or node.op_type, None
        home = self._home(node)
        # Outside its body the name may be that of another value.
        own = name if home is node.graph else self.fresh(f"{name}_folded")
        constant = self._initializer(home, own, round_once(values, dtype))
        old.replace_all_uses_with(constant)
        _graph_of(node).remove(node, safe=True)
        for value in parameters:
            self.loosen(value)

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
        _graph_of(node).remove(node, safe=True)
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
            elif node.graph is not None and not any(v.uses() or v.is_graph_output() for v in node.outputs):
                self._loose.extend(v for v in node.inputs if v is not None)
                node.graph.remove(node, safe=True)
        return dropped

    def _drop_initializer(self, value: ir.Value) -> list[str]:
        name, graph = value.name or "", _stands_in(value)
        if graph is None:
            return []
        del graph.initializers[name]
        positions = [i for i, v in enumerate(graph.inputs) if v is value]
        for i in reversed(positions):
            del graph.inputs[i]
        return [name] * len(positions)


def _graph_of(node: ir.Node) -> ir.Graph:
    assert node.graph is not None
    return node.graph


def _stands_in(value: ir.Value) -> ir.Graph | None:
    """The graph of which `value` is an initializer."""
    graph = value.graph
    return graph if graph is not None and graph.initializers.get(value.name or "") is value else None


def names_in(graph: ir.Graph) -> set[str]:
    """Every name of a value or node in the graph and its subgraphs."""
    names: set[str] = {
        v.name for g in (graph, *graph.subgraphs()) for v in (*g.inputs, *g.initializers.values()) if v.name
    }
    for node in graph.all_nodes():
        names.update(v.name for v in node.outputs if v.name)
        names.update([node.name] if node.name else [])
    return names
