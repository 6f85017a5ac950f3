"""Writes model-local functions out at their calls: `y = f(x)` becomes the nodes of f with x and y in their places.

Each call gets a copy of its own whose nodes are named "call/inner" before onnx_ir's inliner, which knows attribute
references and their defaults, puts it in. A function means the operator set that it imports: it is written out only
where every operator of it means the same in the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from bnfold.frontends.onnx_context import is_standard, name_of
from bnfold.frontends.onnx_editor import names_in
from bnfold.frontends.onnx_scopes import bodies, own_values, rename_alone


def calls(model: ir.Model) -> list[ir.Node]:
    """The calls of functions in the main graph and in bodies, in order."""
    return [node for node in model.graph.all_nodes() if node.op_identifier() in model.functions]


def write_out(model: ir.Model, wanted: Callable[[int], bool] = lambda _call: True) -> dict[str, int]:
    """Write the calls out, in place, that are `wanted` by their position in `calls(model)` and can be written out.

    Functions that were called and are no longer are gone.

    Returns:
        The call from which each new node comes, by the node's name, which is unique.
    """
    if _is_cyclic(model):
        return {}
    reached = set(_reachable(model))
    writer = _Writer(model, names_in(model.graph))
    chosen = [(i, call) for i, call in enumerate(calls(model)) if wanted(i) and writer.can_write(call)]
    origin: dict[str, int] = {}
    for i, call in chosen:
        origin.update(dict.fromkeys(writer.specialise(call), i))
    if chosen:
        InlinePass(lambda function: function.identifier() in writer.made)(model)
        for unused in reached - set(_reachable(model)):
            del model.functions[unused]
    return origin


def _reachable(model: ir.Model) -> dict[ir.OperatorIdentifier, None]:
    """The functions that are called, directly or by others, in order."""
    found: dict[ir.OperatorIdentifier, None] = {}
    pending = [node.op_identifier() for node in reversed(calls(model))]
    while pending:
        identifier = pending.pop()
        if identifier not in found:
            found[identifier] = None
            inner = (node.op_identifier() for node in model.functions[identifier].all_nodes())
            pending += [i for i in inner if i in model.functions]
    return found


def _is_cyclic(model: ir.Model) -> bool:
    """Whether a function calls itself, which no specification allows."""
    graph = {key: [n.op_identifier() for n in f.all_nodes()] for key, f in model.functions.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError:
        return True
    return False


@dataclass(eq=False)
class _Writer:
    """Makes a function of its own for each call.

    Attributes:
        model: The model.
        names: Every name in its graphs.
    """

    model: ir.Model
    names: set[str]

    def __post_init__(self) -> None:
        self.imports = dict(self.model.opset_imports)
        self.taken = {"node": set(self.names), "value": set(self.names)}
        self.made: set[ir.OperatorIdentifier] = set()

    def can_write(self, call: ir.Node) -> bool:
        """Whether the call means the same written out: no body as argument, the same operators."""
        function = self.model.functions[call.op_identifier()]
        graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        given = (*call.attributes.values(), *function.attributes.values())
        if any(attribute.type in graphs for attribute in given):
            return False
        return all(self._means_the_same(node, function) for node in function.all_nodes())

    def _means_the_same(self, node: ir.Node, function: ir.Function) -> bool:
        if node.op_identifier() in self.model.functions:
            return self.can_write(node)
        there = _version(function.opset_imports, node)
        if there is None:
            return False
        here = _version(self.imports, node) or self.imports.setdefault(node.domain, there)
        return there == here or (is_standard(node) and _since(node.op_type, there) == _since(node.op_type, here))

    def specialise(self, call: ir.Node) -> list[str]:
        """Let `call` call a copy of its function, whose values and nodes are named after it; returns the nodes."""
        original = self.model.functions[call.op_identifier()]
        function, prefix = original.clone(), name_of(call)
        for value in call.outputs:
            value.name = value.name or self._fresh("value", f"{prefix}/unread")
        del function.outputs[len(call.outputs) :]
        _separate_outputs(function)
        nodes = list(function.all_nodes())
        for node in nodes:
            node.name = self._fresh("node", f"{prefix}/{name_of(node)}")
        for value in _values_in(function):
            rename_alone(value, self._fresh("value", f"{prefix}/{value.name}"))
        names = [node.name or "" for node in nodes]
        for node in nodes:
            if node.op_identifier() in self.model.functions:
                names += self.specialise(node)
        self._register(function, call)
        return names

    def _register(self, function: ir.Function, call: ir.Node) -> None:
        function.overload = f"{function.overload}bnfold{len(self.made)}"
        call.overload = function.overload
        domains = {node.domain for node in function.all_nodes()}
        function.opset_imports.clear()
        function.opset_imports.update({d: v for d, v in self.imports.items() if d in domains})
        self.made.add(function.identifier())
        self.model.functions[function.identifier()] = function

    def _fresh(self, kind: str, stem: str) -> str:
        name, count = stem, 1
        while name in self.taken[kind]:
            count += 1
            name = f"{stem}_{count}"
        self.taken[kind].add(name)
        return name


def _version(imports: Mapping[str, int], node: ir.Node) -> int | None:
    """The version of the node's domain; the standard one has two names."""
    return imports.get("", imports.get("ai.onnx")) if is_standard(node) else imports.get(node.domain)


def _since(op_type: str, version: int) -> int | None:
    """The operator set in which the operator got the meaning that it has in `version`."""
    try:
        return int(onnx.defs.get_schema(op_type, version).since_version)
    except onnx.defs.SchemaError:
        return None


def _separate_outputs(function: ir.Function) -> None:
    """Give an output that is an input, or another output as well, a value of its own to be renamed."""
    inputs, seen = set(function.inputs), set[ir.Value]()
    for i, value in enumerate(function.outputs):
        if value in inputs or value in seen:
            copy = ir.Value(name=f"{value.name}_copy", type=value.type, shape=value.shape)
            function.append(ir.Node("", "Identity", [value], outputs=[copy]))
            function.outputs[i] = copy
        seen.add(value)


def _values_in(function: ir.Function) -> Iterator[ir.Value]:
    """What the nodes of a function compute, and all values of the bodies in it."""
    for node in function:
        yield from (value for value in node.outputs if value.name)
        for _, _, body in bodies(node):
            yield from _values_of_body(body)


def _values_of_body(body: ir.Graph) -> Iterator[ir.Value]:
    yield from (value for value in list(own_values(body)) if value.name)
    for node in body:
        for _, _, inner in bodies(node):
            yield from _values_of_body(inner)
