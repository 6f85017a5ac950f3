"""Which BatchNorms the caller chooses by name: those in which `only` is found, and `keep` is not."""

from __future__ import annotations

import re
from collections.abc import Callable

from bnfold.errors import UsageError


def selection(only: str | None, keep: str | None) -> Callable[[str], bool]:
    """Whether a name is chosen.

    Raises:
        UsageError: One of them is no regular expression.
    """
    include, exclude = _pattern(only, "only"), _pattern(keep, "keep")
    return lambda name: (include is None or bool(include.search(name))) and not (exclude and exclude.search(name))


def _pattern(text: str | None, option: str) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise UsageError(f"{text!r} is no regular expression: {error}", where=option) from error
