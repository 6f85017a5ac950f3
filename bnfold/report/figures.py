"""Figures as JSON has them: a number that is not finite is the string "Infinity", "-Infinity" or "NaN"."""

from __future__ import annotations

import json
import math
from typing import TypeAlias

Json: TypeAlias = "dict[str, Json] | list[Json] | str | float | bool | None"


def figure(number: float) -> Json:
    """A finite number as it is, any other by name."""
    if math.isfinite(number):
        return float(number)
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def text(tree: dict[str, Json]) -> str:
    """The same bytes for the same tree, keys in their order, with a newline at the end."""
    return json.dumps(tree, indent=2, allow_nan=False) + "\n"
