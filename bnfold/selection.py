"""What a caller chooses by patterns and words: which BatchNorms may change, and what is left of those that stay."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import cast, get_args

from bnfold.errors import UsageError
from bnfold.leftover_forms import Form


def selection(only: str | None, keep: str | None) -> Callable[[str], bool]:
    """Whether a BatchNorm of a name may change.

    Raises:
        UsageError: A pattern is no regular expression.
    """
    include, exclude = _pattern(only, "only"), _pattern(keep, "keep")
    return lambda name: (include is None or bool(include.search(name))) and not (exclude and exclude.search(name))


def as_form(leftover: str) -> Form:
    """The form of that name.

    Raises:
        UsageError: There is none.
    """
    if leftover not in get_args(Form):
        raise UsageError(f"{leftover!r} is none of {', '.join(get_args(Form))}", where="leftover")
    return cast("Form", leftover)


def _pattern(text: str | None, option: str) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise UsageError(f"{text!r} is no regular expression: {error}", where=option) from error
