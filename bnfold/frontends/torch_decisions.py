"""What a forward pass decides by the numbers of a tensor (`if x.sum() > 0`): outcomes are noted, and can be forced."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TypeAlias

#: The module that decides, the code, and the place in it.
Site: TypeAlias = tuple[str, CodeType, int]

#: Of one run; a loop that goes on as long as a forced outcome says so has no other end.
_MOST = 256


class TooLongError(Exception):
    """A forward pass decides without an end."""


class Decisions:
    """The outcomes of one run: those that are forced, in the order of asking, then those that come out by themselves.

    Attributes:
        made: Each decision so far, and its outcome.

    Args:
        forced: The first outcomes.
        where: Names the module whose forward pass is running.
    """

    def __init__(self, forced: Sequence[bool] = (), where: Callable[[], str] = str) -> None:
        self.made: list[tuple[Site, bool]] = []
        self._forced, self._where = tuple(forced), where

    def settle(self, outcome: bool) -> bool:
        """What the forward pass is told in the place of `outcome`.

        Raises:
            TooLongError: Outcomes were forced, and it asks for more without an end.
        """
        place = len(self.made)
        if self._forced and place >= max(_MOST, len(self._forced)):
            raise TooLongError
        told = self._forced[place] if place < len(self._forced) else outcome
        self.made.append((self._site(), told))
        return told

    def _site(self) -> Site:
        frame: FrameType | None = sys._getframe()
        while frame is not None and frame.f_back is not None and is_foreign(frame.f_code.co_filename):
            frame = frame.f_back
        assert frame is not None  # somebody called us
        return self._where(), frame.f_code, frame.f_lasti


def asks(function: Any) -> bool:
    """Whether a function of torch turns the numbers of tensors into one Python truth value."""
    import torch  # noqa: PLC0415

    one = torch.Tensor
    return function in (one.__bool__, one.is_nonzero, one.equal, one.allclose, torch.equal, torch.allclose,
                        torch.is_nonzero)  # fmt: skip


@cache
def is_foreign(filename: str) -> bool:
    """Whether the code is of torch, of Python itself or of bnfold, and so no forward pass of the user's."""
    import torch  # noqa: PLC0415

    homes = [Path(torch.__file__).parent, Path(__file__).parents[1]]
    if any(filename.startswith(f"{home}{os.sep}") for home in homes):
        return True
    installed = any(part in ("site-packages", "dist-packages") for part in Path(filename).parts)
    return filename.startswith("<frozen") or (
        filename.startswith(f"{Path(os.__file__).parent}{os.sep}") and not installed
    )


@contextmanager
def intercepted(answer: Callable[[Any, tuple[Any, ...], Mapping[str, Any]], Any]) -> Iterator[None]:
    """Let `answer` give the result of every function of torch that Python code calls."""
    from torch.overrides import TorchFunctionMode  # noqa: PLC0415

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return answer(func, args, kwargs or {})

    with Mode():
        yield


@contextmanager
def forced(outcomes: Sequence[bool]) -> Iterator[None]:
    """Let forward passes decide so."""
    decisions = Decisions(outcomes)

    def answer(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        found = function(*args, **kwargs)
        return decisions.settle(found) if asks(function) else found

    with intercepted(answer):
        yield
