"""Texts in a torch.export archive that torch evaluates as Python: whether they can do no more than arithmetic.

torch reads the sizes in an archive by `sympy.sympify`, which is an `eval`; it compiles the guards, and the names of
inputs and nodes, into Python source; it finds operators by attribute, any in `torch`; and it imports the modules that
a tree names. So each of these must be of a form that is known to be harmless.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_QUALIFIED = re.compile(r"[A-Za-z0-9_.]*", re.ASCII)
#: No quote, no backslash, no line break: nothing that could end the literal it is written into.
_PLAIN = re.compile(r"[\w .,:;/+*<>=()\[\]#@|&%~!?$^{}-]*", re.ASCII)
_ARITHMETIC = re.compile(r"[\w '+*/%(),.<>=!&|~-]*", re.ASCII)

_OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims|torchvision|quantized_decomposed)\.(?!from_file\b|save\b|warn\b|_print\b)\w+(\.\w+)?"
    r"|torch\.ops\.higher_order\.(cond|while_loop|map_impl|scan|associative_scan|invoke_subgraph"
    r"|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|lt|le|gt|ge|eq|ne|and_|or_|xor|not_"
    r"|lshift|rshift)"
    r"|math\.[a-z0-9]+|torch\._?sym_\w+",
    re.ASCII,
)

#: What sympy and torch's own functions of sizes are called; all of them compute numbers.
_FUNCTIONS = frozenset(
    "FloorDiv ModularIndexing Where PythonMod Mod CleanDiv CeilToInt FloorToInt CeilDiv LShift RShift PowByNatural "
    "FloatPow FloatTrueDiv IntTrueDiv IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt "
    "RoundDecimal ToFloat Identity BitwiseFn_bitwise_and BitwiseFn_bitwise_or Max Min Eq Ne Lt Le Gt Ge And Or Not "
    "Abs Pow Mul Add Integer Float Rational Symbol Equality Unequality StrictLessThan LessThan StrictGreaterThan "
    "GreaterThan floor ceiling sqrt exp log Piecewise ExprCondPair".split()
)
_GUARD_FUNCTIONS = frozenset(
    "math.floor math.ceil math.trunc math.isnan math.sqrt max min abs int float round bool Max Min "
    "IsNonOverlappingAndDenseIndicator cast_symbool_to_symint_guardless torch.sym_float torch.sym_int torch.sym_max "
    "torch.sym_min torch.sym_not torch.sym_ite".split()
)
_GUARD_METHODS = frozenset({"size", "stride", "storage_offset"})

_ALGEBRA = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp,
    ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context, ast.keyword,
)  # fmt: skip


def is_identifier(text: str) -> bool:
    """A name of a node or an input, or none."""
    return not text or bool(_IDENTIFIER.fullmatch(text))


def is_plain(text: str) -> bool:
    """Nothing that ends the string literal it may be written into."""
    return bool(_PLAIN.fullmatch(text))


def is_known_operator(text: str) -> bool:
    """An operator of torch that computes from its arguments alone; it touches no file."""
    return bool(_OPERATORS.fullmatch(text))


def is_expression(text: str) -> bool:
    """Arithmetic of symbols and numbers, as sizes are; `Symbol('s0', integer=True)` is a symbol too."""
    return bool(_ARITHMETIC.fullmatch(text)) and all(
        isinstance(node, _ALGEBRA) or _is_constant(node) or _is_symbol(node) or _is_call(node, _FUNCTIONS)
        for node in _nodes(text)
    )


def is_guard(text: str) -> bool:
    """A comparison of sizes of inputs, `L['x'].size()[0] >= 2`."""
    return "\n" not in text and all(
        isinstance(node, (*_ALGEBRA, ast.Subscript))
        or _is_constant(node)
        or _is_part_of_call(node)
        or _is_call(node, _GUARD_FUNCTIONS)
        or _is_method(node)
        for node in _nodes(text)
    )


def is_tree(text: str) -> bool:
    """A nest of tuples, lists and dicts, whose names are names."""
    try:
        return all(_QUALIFIED.fullmatch(leaf) and "__enum__" not in leaf for leaf in _leaves(json.loads(text)))
    except (ValueError, RecursionError):
        return False


def _leaves(value: object) -> Iterator[str]:
    """The strings in a nest; those that are JSON again are read too."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield key
            yield from _leaves(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _leaves(entry)
    elif isinstance(value, str):
        try:
            inner = json.loads(value)
        except ValueError:
            yield value
        else:
            yield from _leaves(inner)


def _nodes(text: str) -> Iterator[ast.AST]:
    """The syntax tree; of what is no expression, a node that nothing allows."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return iter((ast.Pass(),))
    return ast.walk(tree)


def _is_constant(node: ast.AST) -> bool:
    """A number, or a name in quotes."""
    if not isinstance(node, ast.Constant):
        return False
    return isinstance(node.value, int | float) or (
        isinstance(node.value, str) and bool(_QUALIFIED.fullmatch(node.value))
    )


def _is_symbol(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and not node.id.startswith("_")


def _is_call(node: ast.AST, functions: frozenset[str]) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in functions


def _is_method(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _GUARD_METHODS


def _is_part_of_call(node: ast.AST) -> bool:
    """`L`, a function's name, the modules they are in, and the methods: where they are called is checked there."""
    if isinstance(node, ast.Name):
        return node.id in {"L", "math", "torch", "inf"} | _GUARD_FUNCTIONS
    return isinstance(node, ast.Attribute) and (node.attr in _GUARD_METHODS or ast.unparse(node) in _GUARD_FUNCTIONS)
