"""Which instructions of forward passes were run, and what those that were not might do to the module tree.

What only leads to an exception does nothing. The rest may call a module, or a part of one, in a way that was not seen,
if it names one, or takes one out of a variable, or calls a method of the module that it belongs to.
"""

from __future__ import annotations

import dis
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, TypeAlias

from bnfold.frontends.torch_decisions import is_foreign

if TYPE_CHECKING:
    from torch import nn

#: Instructions that compute, store or hand on something.
_EFFECTS = ("STORE", "DELETE", "CALL", "BINARY", "UNARY", "COMPARE", "CONTAINS", "RETURN", "YIELD", "BUILD", "FORMAT",
            "LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER", "LIST", "SET", "DICT", "UNPACK", "GET_ITER", "FOR_ITER",
            "INPLACE")  # fmt: skip

#: Instructions that look an attribute up.
_LOOKS_UP = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "LOAD_SUPER_METHOD")

#: Attributes and functions that have one value in eval mode, and what may stand between them and a jump.
_CONSTANT = frozenset({"training", "is_scripting", "is_tracing"})
_BETWEEN = frozenset({"TO_BOOL", "UNARY_NOT", "PRECALL", "CALL", "PUSH_NULL", "CALL_FUNCTION", "CALL_METHOD"})

#: Functions with which code reaches what it does not name.
_INDIRECT = frozenset({"eval", "exec", "getattr", "globals", "locals", "vars"})


@dataclass(frozen=True)
class Unseen:
    """What the forward pass of a module holds that was not run.

    Attributes:
        names: Names of modules, parameters and buffers that it mentions, and where.
        anything: Where it may reach any of them; empty if it does not.
        at_all: Where it does anything but raise exceptions; empty if it does not.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    anything: str = ""
    at_all: str = ""


@dataclass(frozen=True, eq=False)
class _Run:
    """One function: which instructions were run, which variables held modules, and what its globals are."""

    offsets: set[int] = field(default_factory=set)
    holders: set[str] = field(default_factory=set)
    scope: dict[str, Any] = field(default_factory=dict)


Coverage: TypeAlias = dict[str, dict[CodeType, _Run]]


@contextmanager
def covering(coverage: Coverage, where: Callable[[], str]) -> Iterator[None]:
    """Note in `coverage` what is run of the user's code; `where` names the module whose forward pass is running."""

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        if is_foreign(frame.f_code.co_filename):
            return None
        frame.f_trace_opcodes = True
        run = coverage.setdefault(where(), {}).setdefault(frame.f_code, _Run(scope=frame.f_globals))
        run.offsets.add(frame.f_lasti)
        if event in ("line", "return"):
            run.holders.update(name for name, value in frame.f_locals.items() if _holds_module(value))
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # else Python 3.12 tells of no instructions
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def unseen(runs: Mapping[CodeType, _Run], part: nn.Module, names: frozenset[str]) -> Unseen:
    """What was not run in the functions that the forward pass of `part` ran; `names` are those of the module tree."""
    mentioned: dict[str, str] = {}
    anything = at_all = ""
    own = _own_names(part)
    for code, run in [*runs.items(), *_never_called(runs)]:
        listed = list(dis.get_instructions(code))
        lines = _lines(code)
        for place in _not_run(listed, run.offsets):
            found, where = listed[place], f"line {lines(listed[place].offset)} of {code.co_name}"
            at_all = at_all or (where if found.opname.startswith(_EFFECTS) else "")
            if found.opname.startswith(_LOOKS_UP) and found.argval in names:
                mentioned.setdefault(found.argval, where)
            if _reaches(listed, place, run, code, own):
                anything = anything or where
    return Unseen(mentioned, anything, at_all)


def _own_names(part: nn.Module) -> frozenset[str]:
    """Attributes through which code reaches modules without their names: methods of the class, and of every module."""
    import torch  # noqa: PLC0415

    classes = [kind for kind in type(part).__mro__ if kind not in (torch.nn.Module, object)]
    common = (set(dir(torch.nn.Module)) - set(dir(torch.Tensor))) | {"__dict__", "__getattr__", "__call__"}
    own = (name for kind in classes for name, value in vars(kind).items() if hasattr(type(value), "__get__"))
    return frozenset(common.union(own))


def _never_called(runs: Mapping[CodeType, _Run]) -> Iterable[tuple[CodeType, _Run]]:
    """The functions within those that ran, which did not: with no instruction that was run."""
    waiting = [(code, run) for code, run in runs.items()]
    while waiting:
        code, run = waiting.pop()
        for inner in (value for value in code.co_consts if isinstance(value, CodeType) and value not in runs):
            found = (inner, _Run(set(), run.holders, run.scope))
            yield found
            waiting.append(found)


def _not_run(listed: list[dis.Instruction], offsets: set[int]) -> list[int]:
    """The places of the instructions that were not run, may be, and do not only lead to an exception."""
    places = {entry.offset: place for place, entry in enumerate(listed)}
    after = [list(_next(listed, place, places)) for place in range(len(listed))]
    ran = {place for place, entry in enumerate(listed) if entry.offset in offsets}
    ends_well = ran | {place for place, entry in enumerate(listed) if "RETURN" in entry.opname}
    while more := {p for p in range(len(listed)) if p not in ends_well and not ends_well.isdisjoint(after[p])}:
        ends_well |= more
    starts = {
        place for place, entry in enumerate(listed) if entry.opname == "PUSH_EXC_INFO"
    }  # where an exception leads
    reached = ran | starts if ran else set(range(len(listed)))
    while more := {s for p in reached if not (p in ran and _is_constant(listed, p)) for s in after[p]} - reached:
        reached |= more
    return sorted((reached & ends_well) - ran)


def _is_constant(listed: list[dis.Instruction], place: int) -> bool:
    """Whether the jump depends on what is the same in every run: the module is in eval mode, and no script."""
    if "_IF_" not in listed[place].opname:
        return False
    before = place - 1
    while listed[before].opname in _BETWEEN:
        before -= 1
    return listed[before].opname.startswith(_LOOKS_UP) and listed[before].argval in _CONSTANT


def _next(listed: list[dis.Instruction], place: int, places: Mapping[int, int]) -> Iterator[int]:
    """The instructions that may come next."""
    entry = listed[place]
    name = entry.opname
    if name.startswith(("RAISE", "RERAISE", "RETURN")):
        return
    jumps = entry.opcode in dis.hasjrel or entry.opcode in dis.hasjabs
    if jumps and entry.argval in places:
        yield places[entry.argval]
    always = name.startswith("JUMP") and "_IF_" not in name
    if not always:
        yield place + 1  # no code ends otherwise than with one of those


def _reaches(listed: list[dis.Instruction], place: int, run: _Run, code: CodeType, own: frozenset[str]) -> bool:
    """Whether the instruction may give the code a module that it does not name."""
    entry = listed[place]
    if entry.opname.startswith(_LOOKS_UP):
        return entry.argval in own
    if entry.opname.startswith(("LOAD_GLOBAL", "LOAD_NAME")):
        return entry.argval in _INDIRECT or _holds_module(run.scope.get(str(entry.argval)))
    if not entry.opname.startswith(("LOAD_FAST", "LOAD_DEREF", "LOAD_CLOSURE")):
        return False
    loaded = entry.argval if isinstance(entry.argval, tuple) else (entry.argval,)
    myself = code.co_varnames[0] if code.co_argcount else ""
    looked_up = listed[place + 1].opname.startswith((*_LOOKS_UP, "STORE_ATTR"))
    if looked_up and loaded[-1] == myself:
        loaded = loaded[:-1]
    return any(name in run.holders for name in loaded)


def _holds_module(value: object, depth: int = 3) -> bool:
    """Whether the value is a module, a method of one, or holds one.

    It counts as one where nobody knows: of what is unpacked as it is used, and of what lies deeper than `depth`.
    """
    import torch  # noqa: PLC0415

    if isinstance(value, dict | list | tuple | set | frozenset | deque | partial):
        entries = _entries(value)
        return any(_holds_module(entry, depth - 1) for entry in entries) if depth else bool(entries)
    known = isinstance(value, torch.nn.Module) or isinstance(getattr(value, "__self__", None), torch.nn.Module)
    return known or hasattr(type(value), "__next__") or _has_module(value)


def _entries(value: Any) -> list[Any]:
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    return list(value.values() if isinstance(value, dict) else value)


def _has_module(value: object) -> bool:
    """Whether an attribute of an object is a module."""
    import torch  # noqa: PLC0415

    held = getattr(value, "__dict__", None)
    return isinstance(held, Mapping) and any(isinstance(entry, torch.nn.Module) for entry in held.values())


def _lines(code: CodeType) -> Callable[[int], int]:
    """The line of the instruction at an offset."""
    starts = sorted(dis.findlinestarts(code))
    return lambda offset: max((line for start, line in starts if start <= offset and line), default=code.co_firstlineno)
