"""Explicit pads of ONNX window operators: what `auto_pad` and `output_shape` mean in numbers.

SAME: `total = max((ceil(size / stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)` (ONNX specification, Conv).
ConvTranspose: `total = stride * (size - 1) + output_padding + (k - 1) * dilation + 1 - output`.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from bnfold.embedding import Geometry
from bnfold.errors import ModelError
from bnfold.frontends.onnx_context import ints_attr, name_of, str_attr
from bnfold.graph import Shape


@dataclass(frozen=True)
class Window:
    """The geometry of a window operator over its spatial axes.

    Attributes:
        kernel: Kernel sizes.
        strides: Strides.
        dilations: Dilations.
        pads: Begin pads and then end pads; None if they depend on sizes that are not known.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...] | None

    @property
    def is_unpadded(self) -> bool:
        """Whether it is proven that there is no padding."""
        return self.pads is not None and not any(self.pads)


def window(node: ir.Node, kernel: tuple[int, ...], shape: Shape | None) -> Window:
    """The window of a Conv or pooling node that reads a value of `shape`."""
    strides, dilations = (_per_axis(node, name, (1,) * len(kernel)) for name in ("strides", "dilations"))
    if shape is not None and len(shape) != len(kernel) + 2:
        raise ModelError(f"a kernel of {len(kernel)} axes for a value of {len(shape)}", where=name_of(node))
    pads: tuple[int, ...] | None
    match str_attr(node, "auto_pad", "NOTSET"):
        case "NOTSET" | "":
            pads = _per_axis(node, "pads", (0,) * 2 * len(kernel))
        case "VALID":
            pads = (0,) * 2 * len(kernel)
        case same:
            spatial = (None,) * len(kernel) if shape is None else shape[2:]
            totals = [_same(*axis) for axis in zip(spatial, kernel, strides, dilations, strict=True)]
            pads = _split(totals, same == "SAME_UPPER")
    return Window(kernel, strides, dilations, pads)


def conv_geometry(node: ir.Node, kernel: tuple[int, ...], shape: Shape | None) -> Geometry | None:
    """The window of a Conv node with its pads resolved; None if they depend on sizes that are not known."""
    found, half = window(node, kernel, shape), len(kernel)
    if found.pads is None:
        return None
    return Geometry(kernel, found.strides, found.dilations, found.pads[:half], found.pads[half:])


def _per_axis(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """A list of integers as long as its default.

    Raises:
        ModelError: The model has another number of them.
    """
    found = ints_attr(node, name) or default
    if len(found) != len(default):
        raise ModelError(f"{name} has {len(found)} entries and needs {len(default)}", where=name_of(node))
    return found


def _same(size: int | str | None, kernel: int, stride: int, dilation: int) -> int | None:
    span = (kernel - 1) * dilation
    if span == 0:
        return 0
    if isinstance(size, int):
        return max((-(-size // stride) - 1) * stride + span + 1 - size, 0)
    return span if stride == 1 else None


def _split(totals: list[int | None], upper: bool) -> tuple[int, ...] | None:
    """Half of each total before and half after; the odd one after for SAME_UPPER."""
    known = [t for t in totals if t is not None]
    if len(known) < len(totals):
        return None
    small, large = [t // 2 for t in known], [t - t // 2 for t in known]
    return (*small, *large) if upper else (*large, *small)


def transposed_sees_every_tap(node: ir.Node, kernel: tuple[int, ...], shape: Shape | None) -> bool:
    """Whether every output of a ConvTranspose receives every tap, so that a constant input gives a constant output.

    Stride 1, and on every axis begin pads >= dilation*(k-1) and end pads >= dilation*(k-1) + output_padding.
    """
    strides, dilations = (_per_axis(node, name, (1,) * len(kernel)) for name in ("strides", "dilations"))
    extra = _per_axis(node, "output_padding", (0,) * len(kernel))
    spans = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    pads = _transposed_pads(node, spans, extra, shape)
    if pads is None or any(s != 1 for s in strides):
        return False
    half = len(kernel)
    begins = all(p >= span for p, span in zip(pads[:half], spans, strict=True))
    return begins and all(p >= span + e for p, span, e in zip(pads[half:], spans, extra, strict=True))


def _transposed_pads(
    node: ir.Node, spans: list[int], extra: tuple[int, ...], shape: Shape | None
) -> tuple[int, ...] | None:
    """The pads of a ConvTranspose of stride 1."""
    wanted, auto = ints_attr(node, "output_shape"), str_attr(node, "auto_pad", "NOTSET")
    if wanted is None and auto in ("NOTSET", ""):
        return _per_axis(node, "pads", (0,) * 2 * len(spans))
    if wanted is None and auto == "VALID":
        return (0,) * 2 * len(spans)
    if wanted is None:
        return _split([span + e for span, e in zip(spans, extra, strict=True)], auto == "SAME_UPPER")
    sizes, outputs = () if shape is None else shape[2:], wanted[-len(spans) :]
    if not len(sizes) == len(outputs) == len(spans):
        return None
    totals = [
        size + e + span - out if isinstance(size, int) else None
        for size, e, span, out in zip(sizes, extra, spans, outputs, strict=True)
    ]
    return _split(totals, auto == "SAME_UPPER")
