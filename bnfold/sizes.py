"""Bytes as people read them."""

from __future__ import annotations

_KIBI = 1024


def data_size(size: int) -> str:
    """Bytes in the unit that leaves three digits or so: `318 KiB`."""
    figure, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if figure < _KIBI:
            break
        figure, unit = figure / _KIBI, larger
    return f"{figure:.0f} {unit}" if unit == "bytes" or figure >= 100 else f"{figure:.1f} {unit}"
