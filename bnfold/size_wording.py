"""Sizes and arithmetic of a model before and after, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnfold.flops import CONVENTION, Flops
from bnfold.sizes import data_size
from bnfold.wording import shapes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bnfold.report.model import Report, Size


def size_facts(report: Report) -> list[tuple[str, str]]:
    """What is known of both models: a label, and `before → after`, or `before` where nothing was folded."""
    sizes = _sizes(report)
    figures: list[tuple[str, Sequence[int | None], Callable[[int], str]]] = [
        ("BatchNorm operators", [size.batchnorms for size in sizes], "{:,}".format),
        ("operators", [size.nodes for size in sizes], "{:,}".format),
        ("parameters", [size.parameters for size in sizes], "{:,}".format),
        ("weights", [size.bytes for size in sizes], data_size),
        ("file", [size.file for size in sizes], data_size),
    ]
    facts = [(label, _both(values, say)) for label, values, say in figures if values[0] is not None]
    return [*facts, ("FLOPs", flops_both(report)), ("multiply-adds", multiply_adds_both(report))]


def flops_both(report: Report) -> str:
    """`8.22 G → 8.19 G`, with "at least" where something was left out; "unknown" where a size is not known."""
    return _both([size.flops for size in _sizes(report)], flops)


def multiply_adds_both(report: Report) -> str:
    """Likewise of convolutions and matrix products alone."""
    return _both([size.flops for size in _sizes(report)], _multiply_adds)


def flops(count: Flops | None) -> str:
    """All that one run computes."""
    if count is None or count.work is None:
        return "unknown"
    return f"{'at least ' if count.uncounted else ''}{large(count.work.flops)}"


def flops_notes(report: Report) -> list[str]:
    """What a reader of the figures must know, one sentence each without its full stop."""
    counts = [size.flops for size in _sizes(report) if size.flops is not None]
    if not counts:
        return ["FLOPs were not counted"]
    notes = [f"FLOPs are unknown: {count.unknown}" for count in counts if count.unknown]
    if not notes:
        notes = [f"FLOPs are those of one run at {flops_sizes(report)}: {CONVENTION}"]
    left = [(when, c) for when, c in zip(("before", "after"), counts, strict=False) if c.uncounted]
    return list(dict.fromkeys(notes)) + [f"not counted {when}: {', '.join(map(str, c.uncounted))}" for when, c in left]


def flops_sizes(report: Report) -> str:
    """The sizes of the inputs that the figures hold for."""
    counted = report.before.flops
    return "unknown sizes" if counted is None else shapes_of(counted.inputs) or "no inputs"


def large(number: int) -> str:
    """Four digits and a decimal prefix: `8.218 G`."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:#.4g} {prefix}"
    return f"{number:,}"


def _multiply_adds(count: Flops | None) -> str:
    return "unknown" if count is None or count.work is None else large(count.work.multiply_adds)


def _both(values: Sequence[object], say: Callable[..., str]) -> str:
    """A file that is not written has no size."""
    return " → ".join("not written" if value is None and say is data_size else say(value) for value in values)


def _sizes(report: Report) -> list[Size]:
    return [report.before] if report.after is None else [report.before, report.after]
