"""Cuts the region of a fold out of a model, as a small model of its own with the same boundary names.

A cut goes back from the outputs to the region's inputs. Shapes that are computed at run time are computed in the region
too, back to the tensor whose shape is asked for; any tensor of that shape will do there.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import onnx_ir as ir

from bnfold.frontends.onnx_constants import Constants
from bnfold.frontends.onnx_context import is_float
from bnfold.frontends.onnx_files import in_memory
from bnfold.frontends.onnx_kernels_run import inlined
from bnfold.frontends.onnx_scopes import Path, graph_at, proto_at, values_of
from bnfold.frontends.onnx_shapes import Shapes


class Cutter:
    """One graph of a model, ready to be cut; the model's functions are inlined.

    Values of the graphs around a body are inputs of the cut, or initializers where they are constant.
    """

    def __init__(self, model: ir.Model, path: Path = (), *, of: Cutter | None = None) -> None:
        """Prepare the graph that `path` leads to; `of` is a cutter of the same model, which has done most of it."""
        self.model = model
        self.path = path
        self._model: onnx.ModelProto = of._model if of else _whole(model)
        self._shapes: Shapes = of._shapes if of else Shapes(model)
        shapes = self._shapes
        self._constants: Constants = of._constants if of else Constants(model, shapes, keep_overridable=False)
        self._values = values_of(graph_at(model, path))
        self._dtypes = {name: shapes.dtype(value) for name, value in self._values.items()}
        self._nodes = list(proto_at(self._model.graph, path).node)
        self._places = {name: i for i, node in enumerate(self._nodes) for name in node.output if name}
        self._initializers = {tensor.name: tensor for tensor in proto_at(self._model.graph, path).initializer}

    def at(self, path: Path) -> Cutter:
        """The same for another graph of the model."""
        return Cutter(self.model, path, of=self) if path else self

    def is_float(self, name: str) -> bool:
        """Whether `name` is a floating-point value; a mask beside it holds no rounding that could be bounded."""
        return is_float(self._dtypes.get(name))

    def cut(self, inputs: Iterable[str], outputs: Iterable[str]) -> onnx.ModelProto:
        """The nodes between the floating-point values `inputs` and `outputs`; what else is read is an input as well."""
        wanted = list(outputs)
        ends = {name for name in inputs if self.is_float(name)}
        free, places, tensors, asked = self._walk(wanted, ends)
        computed = {name for i in places for name in self._nodes[i].output}
        free |= {name for name in asked if name not in computed and name not in self._initializers}
        tensors |= {name for name in asked if name in self._initializers}
        return self._assemble(sorted(places), sorted(free), sorted(tensors), wanted)

    def _walk(self, wanted: list[str], ends: set[str]) -> tuple[set[str], set[int], set[str], set[str]]:
        free: set[str] = set()
        places: set[int] = set()
        tensors: set[str] = set()
        asked: set[str] = set()
        pending, seen = list(wanted), set[str]()
        while pending:
            name = pending.pop()
            if name in seen or not name:
                continue
            seen.add(name)
            if name not in ends and self._is_constant(name):
                tensors.add(name)
            elif name in ends or name not in self._places:
                free.add(name)
            else:
                places.add(self._places[name])
                node = self._nodes[self._places[name]]
                (asked.update if _asks_for_shape(node) else pending.extend)(node.input)
        return free, places, tensors, asked

    def _is_constant(self, name: str) -> bool:
        """An initializer, or what is computed from constants; the latter is computed once and stored beside them."""
        array = None if name in self._initializers else self._constants.array(self._values.get(name))
        if array is not None:
            self._initializers[name] = onnx.numpy_helper.from_array(np.asarray(array), name)
        return name in self._initializers

    def _assemble(self, places: list[int], free: list[str], tensors: list[str], outputs: list[str]) -> onnx.ModelProto:
        nodes = [self._nodes[i] for i in places]
        graph = onnx.helper.make_graph(
            nodes,
            "region",
            [self._info(name) for name in free],
            [self._info(name) for name in outputs],
            [self._initializers[name] for name in tensors],
        )
        opsets, version = self._model.opset_import, self._model.ir_version
        return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=version)

    def _info(self, name: str) -> onnx.ValueInfoProto:
        dtype = self._dtypes.get(name)
        kind = onnx.TensorProto.FLOAT if dtype is None else onnx.helper.np_dtype_to_tensor_dtype(dtype)
        return onnx.helper.make_tensor_value_info(name, kind, None)


def _whole(model: ir.Model) -> onnx.ModelProto:
    proto = in_memory(model)
    return inlined(proto) if proto.functions else proto


def _asks_for_shape(node: onnx.NodeProto) -> bool:
    return node.op_type in ("Shape", "Size") and node.domain in ("", "ai.onnx")
