"""What the instructions that were not run might do: each condition on each side, in functions without a model."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from bnfold.frontends.torch_unseen import Unseen, covering, unseen


class Part(nn.Module):
    """What the functions below are the forward pass of."""

    factor = 2.0

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.flag = nn.Identity(), False

    @property
    def first(self) -> nn.Module:
        return self.conv

    def pieces(self) -> list[nn.Module]:
        return [self.conv]


LAYERS = [[nn.Identity()]]
RUN = nn.Identity().forward
NUMBERS = [[1.0]]


def look(code: Callable[..., Any], x: Any = 0.0) -> Unseen:
    """What was not run of `code`, called with a module in eval mode."""
    coverage: dict[str, Any] = {}
    with covering(coverage, lambda: "part"):
        code(Part().eval(), x)
    return unseen(coverage["part"], Part(), frozenset({"conv", "bn"}))


def made(body: str) -> Callable[..., Any]:
    """A forward pass of these lines, of which the caller's 0.0 never leads into the branch `if x > 1:`."""
    scope = {**globals(), "deque": deque, "partial": partial, "SimpleNamespace": SimpleNamespace}
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    exec(f"def forward(s, x):\n{lines}\n    return x\n", scope)
    return scope["forward"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("if s.flag:\n    s.conv(x)", True),
        ("if not s.flag:\n    return x\ns.conv(x)", True),
        ("if s.training:\n    s.conv(x)", False),
        ("if not s.training:\n    return x\ns.conv(x)", False),
        ("training = x > 1\nif training:\n    s.conv(x)", True),
        ("if s.training or x > 1:\n    s.conv(x)", True),
        ("if x > 1:\n    if s.training:\n        s.conv(x)", True),  # a jump that was not run: nothing is known of it
    ],
)
def test_only_what_eval_mode_fixes_is_taken_for_fixed(body: str, expected: bool) -> None:
    assert bool(look(made(body)).names) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("x = x + 1", False),
        ("if x > 1:\n    x = x + 1", True),
        ("if x > 1:\n    raise ValueError(x)", False),
        ("if x > 1:\n    pass", False),
        ("assert x < 1, f'{x}'", False),
        ("for x in [x]:\n    x = x + 1", False),
        ("for x in []:\n    x = x + 1", True),
        ("while x > 1:\n    x = x - 1", True),
        ("try:\n    x = x + 1\nexcept ValueError:\n    x = 2", True),
        ("x = (lambda v: v + 1)(x)", False),
        ("unused = lambda v: v + 1", True),
        ("unused = lambda v: (lambda w: s.conv(w))(v)", True),
    ],
)
def test_what_does_anything_is_told(body: str, expected: bool) -> None:
    assert bool(look(made(body)).at_all) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("s.factor * x", False),
        ("s.flag", False),
        ("s.conv", False),  # which is among the names
        ("s.pieces", True),
        ("s.first", True),
        ("s.modules", True),
        ("s.__dict__", True),
        ("x.float", False),  # tensors have it too
        ("s.other", False),
        ("helper(s)", True),
        ("held.other", True),
        ("held", True),
        ("x", False),
        ("method", True),
        ("number", False),
        ("nested", True),
        ("numbers", False),
        ("cyclic", True),
        ("deep", True),
        ("by_name", True),
        ("bound", True),
        ("round", False),
        ("queue", True),
        ("box", True),
        ("empty", False),
        ("steps", True),
        ("(held, number)", True),
        ("LAYERS", True),
        ("RUN", True),
        ("NUMBERS", False),
        ("abs", False),
        ("getattr", True),
        ("vars", True),
        ("[held for _ in x]", True),
        ("lambda: held", True),
        ("lambda: number", False),
    ],
)
def test_what_may_hold_a_module_is_told(line: str, expected: bool) -> None:
    code = made(
        "held, method, number, numbers, by_name = s.conv, s.conv.forward, 2.0, [[1.0], (2, 'a')], {'a': s.conv}\n"
        "nested, deep, steps, cyclic = [(s.conv,)], [[[[[s.conv]]]]], iter([]), []\n"
        "bound, round, queue = partial(abs, s.conv), partial(abs, x), deque([s.conv])\n"
        "box, empty = SimpleNamespace(layer=s.conv), SimpleNamespace(layer=x)\n"
        "cyclic.append(cyclic)\n"
        f"if x > 1:\n    {line}"
    )
    assert bool(look(code).anything) == expected


def test_writing_an_attribute_reaches_nothing() -> None:
    assert look(made("if x > 1:\n    s.flag = x")).anything == ""


def test_the_first_place_is_told_by_its_line() -> None:
    def forward(s: Any, x: float) -> Any:
        if x > 1:
            x = s.conv(x)
            x = s.pieces()[0](x)
            x = s.conv(x)
            x = s.modules()
        return x

    start = forward.__code__.co_firstlineno
    found = look(forward)
    assert found.names == {"conv": f"line {start + 2} of forward"}
    assert found.at_all == f"line {start + 2} of forward"
    assert found.anything == f"line {start + 3} of forward"


def test_a_name_that_is_only_handed_on_is_no_module() -> None:
    assert look(made("if x > 1:\n    bn = x\n    x = bn.conv")).names == {"conv": "line 4 of forward"}
    assert look(made("if x > 1:\n    bn = x\n    x = bn")).names == {}
