"""What a captured graph demands of its inputs, as a graph of assertions, which can be pickled.

torch.export hands it out as a function made from text; the text is read back from the messages of its assertions.
"""

from __future__ import annotations

import ast
import inspect
import operator
from collections.abc import Callable, Iterator
from functools import reduce
from types import CodeType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.fx import GraphModule

#: What stands before the condition in the message of an assertion.
_PREFIX = "Guard failed: "

#: What may stand between two parts of a condition.
_ARITHMETIC: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv, ast.Mod: operator.mod, ast.Pow: operator.pow, ast.Eq: operator.eq,
    ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.And: operator.and_, ast.Or: operator.or_,
}  # fmt: skip


def guards_of(module: GraphModule, guards: Any) -> GraphModule | None:
    """The assertions of `guards`, the function that torch.export put into `module`; None where they cannot be read."""
    import torch  # noqa: PLC0415

    conditions = [text for code in _codes(guards.forward) for text in _texts(code)]
    (call,) = module.graph.find_nodes(op="call_module", target="_guards_fn")
    tracer = torch.fx.Tracer()
    tracer.root, tracer.graph, tracer.tensor_attrs = torch.nn.Module(), torch.fx.Graph(), {}
    inputs = [tracer.create_proxy("placeholder", f"input_{i}", (), {}) for i in range(len(call.args))]
    try:
        names = _names(module, inputs)
        for text in conditions:
            condition = _proxy(ast.parse(text, mode="eval").body, names)
            tracer.create_proxy("call_function", torch._assert, (condition, _PREFIX + text), {})
    except (AttributeError, KeyError, TypeError, ValueError, torch.fx.proxy.TraceError):
        return None
    tracer.graph.output(None)
    return torch.fx.GraphModule(tracer.root, tracer.graph) if conditions else None


def _codes(function: Any) -> Iterator[CodeType]:
    """The code of a function, and of those that it wraps."""
    yield function.__code__
    for cell in function.__closure__ or ():
        if hasattr(cell.cell_contents, "__code__"):
            yield from _codes(cell.cell_contents)


def _texts(code: CodeType) -> Iterator[str]:
    for constant in code.co_consts:
        if isinstance(constant, str) and constant.startswith(_PREFIX):
            yield constant.removeprefix(_PREFIX)


def _names(module: GraphModule, inputs: list[Any]) -> dict[str, Any]:
    """The inputs by the names of the parameters of the forward pass, in the structure that it takes."""
    from torch.utils import _pytree  # noqa: PLC0415

    args, kwargs = _pytree.tree_unflatten(inputs, module._in_spec)
    return {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}


def _proxy(tree: ast.expr, names: dict[str, Any]) -> Any:  # noqa: PLR0911
    """The condition as a graph of what torch puts into its guards; anything else is a ValueError."""
    import torch  # noqa: PLC0415

    match tree:
        case ast.Name(id=name):
            return names[name]
        case ast.Constant(value=value):
            return value
        case ast.Subscript(value=value, slice=index):
            return _proxy(value, names)[_proxy(index, names)]
        case ast.Call(func=ast.Attribute(value=value, attr=("size" | "stride" | "storage_offset") as name), args=[]):
            return getattr(_proxy(value, names), name)()
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_proxy(operand, names)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return torch.sym_not(_proxy(operand, names))  # type: ignore[no-untyped-call]
        case ast.Call(func=ast.Name(id=("max" | "min") as name), args=[first, second], keywords=[]):
            larger = torch.sym_max if name == "max" else torch.sym_min
            return larger(_proxy(first, names), _proxy(second, names))  # type: ignore[no-untyped-call]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _ARITHMETIC[type(op)](_proxy(left, names), _proxy(right, names))
        case ast.BoolOp(op=op, values=values):
            return reduce(_ARITHMETIC[type(op)], [_proxy(value, names) for value in values])
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _ARITHMETIC:
            return _ARITHMETIC[type(op)](_proxy(left, names), _proxy(right, names))
        case ast.Compare(left=left, ops=[op, following, *ops], comparators=[right, *rest]):
            first, others = ast.Compare(left, [op], [right]), ast.Compare(right, [following, *ops], rest)
            return operator.and_(_proxy(first, names), _proxy(others, names))
    raise ValueError(ast.unparse(tree))
