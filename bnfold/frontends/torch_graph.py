"""A captured PyTorch module as a `FoldGraph`: aten operators as views, values by their nodes' names, uses as edges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bnfold.affine import Float64Array
from bnfold.decision import Kept, Reason, Refusal, Subject
from bnfold.frontends.torch_aliases import Aliases, find_aliases
from bnfold.frontends.torch_capture import Captured
from bnfold.frontends.torch_constants import TorchConstants, inputs_of
from bnfold.frontends.torch_context import (
    LEFT,
    Context,
    barrier,
    base_name,
    class_of,
    dtype_of,
    is_tensor,
    kind_of,
    name_of,
    path_of,
)
from bnfold.frontends.torch_fixed import fixed
from bnfold.frontends.torch_lazy import not_there
from bnfold.frontends.torch_modules import Modules
from bnfold.frontends.torch_read_batchnorm import (
    BATCHNORMS,
    TorchBatchNorm,
    frozen_pairs,
    read_batchnorm,
    read_frozen,
)
from bnfold.frontends.torch_read_linear import ReadLinear, TorchLinear
from bnfold.frontends.torch_readers import ASKS_FOR_SHAPE, numbers_of, read, shapes_of
from bnfold.frontends.torch_reading import Reading
from bnfold.graph import Bounds, Operator, Use, Value
from bnfold.linear import LinearParams
from bnfold.views import Barrier, BatchNorm, Clamp, ConstantOperand
from bnfold.window_views import Pad

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import Node


class TorchGraph:
    """A captured module, read-only.

    Attributes:
        operators: All operators in topological order; what is computed from constants alone is none.
        unreachable: BatchNorms in the bodies of control flow.
        linears: Where the constants of each linear operator stand.
        batchnorms: Where those of each BatchNorm stand.
        aliases: What may not change because something is written in place.
        nodes: The first and the last node of each operator, which differ where a BatchNorm is a product and a sum.

    Args:
        module: The module, if only what has a place in its tree may change; None if anything may.
        captured: Its graph.
    """

    def __init__(self, module: nn.Module | None, captured: Captured) -> None:
        nodes = captured.nodes
        modules = None if module is None else Modules(module)
        self._lazy: frozenset[Node] = frozenset()
        if module is not None:
            self._lazy = not_there(module, captured.program, nodes)
        plain = Context(captured.shapes, TorchConstants(captured.program, nodes, self._lazy), modules)
        self._pairs = frozen_pairs(nodes, plain)
        self.aliases = self._find_aliases(nodes)
        constants = TorchConstants(captured.program, nodes, self.aliases.written | self._lazy)
        self.context = Context(captured.shapes, constants, modules)
        self.operators: list[Operator] = []
        self.linears: dict[int, TorchLinear] = {}
        self.batchnorms: dict[int, TorchBatchNorm] = {}
        self.nodes: list[tuple[Node, Node]] = []
        self._constants: dict[int, Float64Array] = {}
        self._bounds: dict[int, Bounds] = {}
        self._measured = {source.name for node in nodes for source in shapes_of(node)}
        self._read_all(nodes)
        self._producers = {v: op for op in self.operators for v in op.outputs if v is not None}
        self._uses: dict[Value, list[Use]] = {}
        for operator in self.operators:
            for position, value in enumerate(operator.inputs):
                self._uses.setdefault(value, []).append(Use(operator, position))
        self._visible = dict(self._visible_values(nodes))
        self.unreachable: Sequence[Kept] = tuple(bodies(nodes))

    def producer(self, value: Value) -> Operator | None:
        """The operator that computes `value`; None for an input of the module."""
        return self._producers.get(value)

    def uses(self, value: Value) -> Sequence[Use]:
        """Every edge from `value` to an operator that reads its numbers."""
        return self._uses.get(value, ())

    def visible(self, value: Value) -> Refusal | None:
        """Why `value` must keep its meaning: an output, a constant, or written in place under somebody's eyes."""
        return self._visible.get(value)

    def is_measured(self, value: Value) -> bool:
        """Whether a size of `value` is asked for, or a reshape takes its shape."""
        return value in self._measured

    def linear_params(self, operator: Operator) -> LinearParams:
        """The stored constants of a linear operator, in float64."""
        return self.linears[operator.index].read()

    def constant(self, operator: Operator) -> Float64Array:
        """The stored constant of an operator with a constant operand, or of a Pad."""
        return self._constants[operator.index]

    def bounds(self, operator: Operator) -> Bounds:
        """The stored bounds of a clamp."""
        return self._bounds[operator.index]

    def _find_aliases(self, nodes: tuple[Node, ...]) -> Aliases:
        norms = [node for node in nodes if base_name(node) in BATCHNORMS]
        return find_aliases(nodes, [*norms, *self._pairs, *self._pairs.values()])

    def _read_all(self, nodes: tuple[Node, ...]) -> None:
        sums = set(self._pairs.values())
        for node in nodes:
            computes = node.op == "call_function" and node not in self.context.constants and node not in sums
            if computes and base_name(node) not in ASKS_FOR_SHAPE and not _is_part(node):
                self._read(node)

    def _read(self, node: Node) -> None:
        if node in self._pairs or base_name(node) in BATCHNORMS:
            self._read_batchnorm(node)
            return
        what = self._must_stay(node) or self._left(node) or read(node, self.context)
        variables = tuple(v for v in numbers_of(node) if v not in self.context.constants and _holds_numbers(v))
        inputs = () if isinstance(what, Barrier) else (what.data,) if isinstance(what, ReadLinear) else what.inputs
        if isinstance(what, Barrier) or sorted(inputs, key=id) != sorted(variables, key=id) or not _is_whole(node):
            detail = "one of its inputs or outputs is not known to the rules"
            other = what if isinstance(what, Barrier) else barrier(node, Reason.OPERATOR_HAS_NO_RULE, detail)
            self._append(node, other, variables)
        elif isinstance(what, ReadLinear):
            self.linears[len(self.operators)] = what.site
            # A size that is asked for must stay, so that nothing else may take this operator's place.
            self._append(
                node, replace(what.view, geometry=None) if self.is_measured(node.name) else what.view, (what.data,)
            )
        else:
            self._append_reading(node, what)

    def _append_reading(self, node: Node, what: Reading) -> None:
        index, view = len(self.operators), what.view
        if what.constant is not None:
            self._constants[index] = what.constant
        if what.bounds is not None:
            self._bounds[index] = what.bounds
        if self.context.modules is not None and isinstance(view, ConstantOperand | Clamp | Pad):
            view = fixed(view, what.constant, what.bounds)
        self._append(node, view, what.inputs)

    def _read_batchnorm(self, node: Node) -> None:
        if self._is_lazy(node):
            what: BatchNorm | Barrier = Barrier(Refusal(Reason.NOT_INITIALISED, name_of(node)), True, 0)
            place = TorchBatchNorm(path_of(node), None)
        else:
            what, place = (read_frozen if node in self._pairs else read_batchnorm)(node, self.context)
        last = self._pairs.get(node, node)
        parts = _outputs(last)
        if isinstance(what, BatchNorm) and (parts[0] is None or any(part is not None for part in parts[1:])):
            detail = "the statistics that it hands on are read"
            what = Barrier(Refusal(Reason.VALUE_HAS_OTHER_READERS, name_of(node), detail), True, what.affine.channels)
        last = last if parts[0] is None else parts[0]
        is_fixed = self.context.modules is not None
        if isinstance(what, BatchNorm) and is_fixed and {node, last} & self.aliases.copies:
            detail = "its output is written in place, and what it is a copy of is read as well"
            what = Barrier(Refusal(Reason.VALUE_HAS_OTHER_READERS, name_of(node), detail), True, what.affine.channels)
        against = self._must_stay(node)
        if isinstance(what, BatchNorm) and against is not None:
            what = Barrier(against.refusal, True, what.affine.channels)
        self.batchnorms[len(self.operators)] = place
        kind = class_of(node).rpartition(".")[2] if place.path else "batch_norm"
        self._append(node, what, (next(inputs_of(node)),), last, kind)

    def _must_stay(self, node: Node) -> Barrier | None:
        """In a module tree what a hook or a script sees; in a graph what others see because it is written in place."""
        if self._is_lazy(node):
            return barrier(node, Reason.NOT_INITIALISED)
        if self.context.modules is None:
            unstable = node in self.aliases.writers or any(v in self.aliases.stale for v in inputs_of(node))
            detail = "it is written in place"
            return barrier(node, Reason.VALUE_HAS_OTHER_READERS, detail) if unstable else None
        why = self.context.modules.seen_by_others(path_of(node)) if path_of(node) else ""
        return Barrier(Refusal(Reason.MODULE_CANNOT_HOLD_IT, name_of(node), why)) if why else None

    def _is_lazy(self, node: Node) -> bool:
        """Whether it needs parameters that the module does not have yet, or is within a lazy module."""
        modules = self.context.modules
        if modules is None:
            return False
        return modules.not_initialised(path_of(node)) is not None or any(v in self._lazy for v in inputs_of(node))

    def _left(self, node: Node) -> Barrier | None:
        """What an earlier fold left of a BatchNorm."""
        names = [name for value in inputs_of(node) if (name := self.context.constants.name(value)) is not None]
        if not any(LEFT in name for name in names):
            return None
        return barrier(node, Reason.OPERATOR_HAS_NO_RULE, "an earlier fold left it of a BatchNorm")

    def _append(
        self, node: Node, view: Any, inputs: tuple[Node, ...], last: Node | None = None, kind: str = ""
    ) -> None:
        shapes = self.context.shapes
        outputs = _outputs(last or node)
        operator = Operator(
            len(self.operators),
            name_of(node),
            kind or kind_of(node),
            view,
            tuple(value.name for value in inputs),
            tuple(None if value is None else value.name for value in outputs),
            tuple(shapes.get(value) for value in inputs),
            tuple(None if value is None else shapes.get(value) for value in outputs),
            next((dtype_of(value) for value in outputs if value is not None), None),
        )
        self.operators.append(operator)
        self.nodes.append((node, last or node))

    def _visible_values(self, nodes: tuple[Node, ...]) -> Iterator[tuple[Value, Refusal]]:
        for value in self.aliases.frozen:
            yield value.name, Refusal(Reason.VALUE_HAS_OTHER_READERS, value.name, "it is written in place")
        for node in nodes:
            if node in self.context.constants:
                yield node.name, Refusal(Reason.IS_CONSTANT, node.name)
            if node.op == "output":
                for value in inputs_of(node):
                    yield value.name, Refusal(Reason.IS_MODEL_OUTPUT, value.name)


def _is_part(node: Node) -> bool:
    """Whether the node only names one of several outputs."""
    return node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem"


def _holds_numbers(node: Node) -> bool:
    value = node.meta.get("val")
    return is_tensor(node) or isinstance(value, list | tuple)


def _outputs(node: Node) -> tuple[Node | None, ...]:
    """The values that the node computes: itself, or what is taken out of it."""
    value = node.meta.get("val")
    if not isinstance(value, list | tuple):
        return (node,)
    found: list[Node | None] = [None] * len(value)
    for user in node.users:
        if _is_part(user) and isinstance(user.args[1], int):
            found[user.args[1]] = user
    return tuple(found)


def _is_whole(node: Node) -> bool:
    """Whether each of several outputs is taken out once, and nothing else is done with them."""
    if not isinstance(node.meta.get("val"), list | tuple):
        return True
    taken = [user.args[1] for user in node.users if _is_part(user)]
    return len(taken) == len(node.users) == len(set(taken))


def bodies(nodes: tuple[Node, ...]) -> Iterator[Kept]:
    """The BatchNorms in the bodies of higher-order operators."""
    for node in nodes:
        if node.op != "get_attr":
            continue
        body: Any = getattr(node.graph.owning_module, str(node.target), None)
        for inner in getattr(getattr(body, "graph", None), "nodes", ()):
            if base_name(inner) in BATCHNORMS:
                subject = Subject(path_of(inner) or inner.name, "batch_norm", 0, True)
                yield Kept(subject, (Refusal(Reason.OPERATOR_HOLDS_BODIES, node.name),))
