"""Seeded inputs for a model whose shapes may be open: floats from N(0, 1), whole numbers 0 or 1, one draw per seed.

Whole numbers stay below 2 because they may be indices into an embedding of any size; images of uint8 take 0 to 255.
An open dimension is filled by its place: axis 0 is the batch, channels come from the weights that read the input,
spatial axes take the given size, everything else 16. Equal symbols get equal values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from bnfold.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx
    from numpy.typing import NDArray

#: Sizes of an open spatial axis to try, in this order: some models refuse sizes.
SPATIAL_SIZES = (64, 224, 299, 32, 640)
SEQUENCE = 16
_PASSING = frozenset({"Add", "BatchNormalization", "Cast", "Div", "Identity", "Mul", "Pad", "Sub"})


@dataclass(frozen=True)
class InputSpec:
    """What a model asks for at one input.

    Attributes:
        name: The input's name.
        dtype: Element type as NumPy has it.
        dims: Sizes: a number, a symbol, or None for an unnamed open size; None instead of the tuple if even the rank is
            open.
        channels: The channel axis and its size according to the weights that read the input, if they tell.
    """

    name: str
    dtype: np.dtype[np.generic]
    dims: tuple[int | str | None, ...] | None
    channels: tuple[int, int] | None = None

    @property
    def has_open_batch(self) -> bool:
        """Axis 0 may have any size."""
        return bool(self.dims) and not isinstance((self.dims or (0,))[0], int)

    @property
    def open_spatial_axes(self) -> tuple[int, ...]:
        """Axes of open size that are spatial: 2 onwards of rank 4 and 5; 1 and 2 before a last axis of 1, 3 or 4."""
        dims = self.dims or ()
        if len(dims) < 4:
            return ()
        last_is_channel = len(dims) == 4 and dims[-1] in (1, 3, 4) and not isinstance(dims[1], int)
        axes = (1, 2) if last_is_channel else range(2, len(dims))
        return tuple(axis for axis in axes if not isinstance(dims[axis], int))


def read_inputs(model: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """The inputs a caller must feed: graph inputs that are not initializers.

    Raises:
        DataError: An input is no tensor (a sequence or a map), or holds text.
    """
    held = {tensor.name for tensor in model.graph.initializer}
    return tuple(_read_input(model.graph, value) for value in model.graph.input if value.name not in held)


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """The name and sizes in `input=1x3x224x224`; `input=` is a scalar.

    Raises:
        UsageError: The text is not of that form, or a size is negative.
    """
    name, equals, sizes = text.rpartition("=")
    if not name or not equals or not re.fullmatch(r"(\d+([x,]\d+)*)?", sizes):
        raise UsageError(f"{text!r} is no shape", remedy="write it like input=1x3x224x224")
    return name, tuple(int(size) for size in re.split("[x,]", sizes) if size)


def fill_shapes(
    inputs: Sequence[InputSpec], *, batch: int, spatial: int, overrides: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """A full shape for every input.

    Args:
        inputs: What the model asks for.
        batch: Size of an open axis 0.
        spatial: Size of open spatial axes (16 at most for volumes).
        overrides: Whole shapes by name; they win, and fix their symbols for every other input.

    Raises:
        UsageError: An override names no input, or contradicts the model or another override.
        DataError: An input's rank is open and no override tells it.
    """
    symbols = _check_overrides(inputs, overrides)
    shapes = {}
    for spec in inputs:
        if spec.name in overrides:
            shapes[spec.name] = overrides[spec.name]
            continue
        if spec.dims is None:
            raise DataError(
                "the shape of this input is unknown", where=spec.name, remedy=f"give --shape {spec.name}=1x3x..."
            )
        shape = []
        for axis, size in enumerate(spec.dims):
            chosen = size if isinstance(size, int) else symbols.get(size or "", _choose(spec, axis, batch, spatial))
            if isinstance(size, str) and size:
                symbols.setdefault(size, chosen)
            shape.append(chosen)
        shapes[spec.name] = tuple(shape)
    return shapes


def size_choices(
    inputs: Sequence[InputSpec], overrides: Mapping[str, tuple[int, ...]], previous: tuple[int, int] | None
) -> list[tuple[int, int]]:
    """Batch and image sizes to try for a run, best first; none when a further run would be the same again.

    Args:
        inputs: What the model asks for.
        overrides: Whole shapes by name; those inputs have nothing left to choose.
        previous: Batch and image size of the run before; None for the first run.
    """
    free = [spec for spec in inputs if spec.name not in overrides]
    open_batch = any(spec.has_open_batch for spec in free)
    open_space = any(spec.open_spatial_axes for spec in free)
    if previous is None:
        batches = [2, 1] if open_batch else [1]
        sizes = [*SPATIAL_SIZES] if open_space else [SPATIAL_SIZES[0]]
    else:
        batch, size = previous
        batches = [3, batch] if open_batch else [batch]
        sizes = [size + 32, size] if open_space else [size]
    return [choice for choice in product(batches, sizes) if choice != previous]


def synthesise(
    inputs: Sequence[InputSpec],
    *,
    seed: int,
    batch: int,
    overrides: Mapping[str, tuple[int, ...]],
    spatial: int = SPATIAL_SIZES[0],
) -> dict[str, NDArray[np.generic]]:
    """One seeded array per input; the same arguments give the same bits. Errors as `fill_shapes`."""
    shapes = fill_shapes(inputs, batch=batch, spatial=spatial, overrides=overrides)
    return {spec.name: _draw(spec.dtype, shapes[spec.name], seed, place) for place, spec in enumerate(inputs)}


def _draw(dtype: np.dtype[np.generic], shape: tuple[int, ...], seed: int, place: int) -> NDArray[np.generic]:
    generator = np.random.default_rng([seed, place])
    if dtype.kind in "iu":
        highest = 256 if dtype == np.uint8 and len(shape) >= 3 else 2
        return generator.integers(0, highest, size=shape).astype(dtype)
    if dtype.kind == "b":
        return generator.integers(0, 2, size=shape).astype(dtype)
    return np.asarray(generator.standard_normal(shape)).astype(dtype)


def _choose(spec: InputSpec, axis: int, batch: int, spatial: int) -> int:
    """The size of an open axis, by its place."""
    rank = len(spec.dims or ())
    if axis == 0:
        return batch
    if axis in spec.open_spatial_axes:
        return spatial if rank == 4 else min(spatial, SEQUENCE)
    if spec.channels is not None and axis == spec.channels[0]:
        return spec.channels[1]
    return 3 if axis == 1 and rank == 4 else SEQUENCE


def _check_overrides(inputs: Sequence[InputSpec], overrides: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The symbols that the overrides fix."""
    known = {spec.name: spec for spec in inputs}
    symbols: dict[str, int] = {}
    for name, shape in overrides.items():
        if name not in known:
            raise UsageError(f"the model has no input {name!r}", remedy=f"its inputs are {', '.join(known) or 'none'}")
        dims = known[name].dims
        if dims is None:
            continue
        if len(dims) != len(shape):
            raise UsageError(
                f"the shape has {len(shape)} axes, the model wants {len(dims)}", where=name, remedy=_wish(dims)
            )
        for size, given in zip(dims, shape, strict=True):
            wanted = symbols.setdefault(size, given) if isinstance(size, str) and size else size
            if isinstance(wanted, int) and wanted != given:
                raise UsageError(f"the shape says {given} where the model has {wanted}", where=name, remedy=_wish(dims))
    return symbols


def _wish(dims: tuple[int | str | None, ...]) -> str:
    return "the model's shape is " + "x".join("?" if size in (None, "") else str(size) for size in dims)


def _read_input(graph: onnx.GraphProto, value: onnx.ValueInfoProto) -> InputSpec:
    import onnx  # noqa: PLC0415

    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or tensor.elem_type in (0, onnx.TensorProto.STRING):
        raise DataError(
            "this input is no tensor of numbers, so none can be made up", where=value.name, remedy="use --no-verify"
        )
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    if not tensor.HasField("shape"):
        return InputSpec(value.name, dtype, None)
    dims = tuple(_size(dim) for dim in tensor.shape.dim)
    return InputSpec(value.name, dtype, dims, _channels(graph, value.name, len(dims)))


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    """A number, a symbol or None; exporters also write -1 for an open size."""
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return int(dim.dim_value)
    return str(dim.dim_param) or None


def _channels(graph: onnx.GraphProto, name: str, rank: int) -> tuple[int, int] | None:
    """Axis and size of the channels of the first linear operator behind the value, past operators that keep them."""
    weights = {tensor.name: tensor.dims for tensor in graph.initializer}
    names = {name}
    for node in graph.node:
        if not names & set(node.input[:1]):
            continue
        dims = weights.get(node.input[1]) if len(node.input) > 1 else None
        numbers = {attribute.name: int(attribute.i) for attribute in node.attribute}
        if node.op_type in ("Conv", "ConvTranspose") and dims:
            return 1, int(dims[1]) * numbers.get("group", 1) if node.op_type == "Conv" else int(dims[0])
        if node.op_type in ("MatMul", "Gemm") and len(dims or ()) == 2 and dims:
            return rank - 1, int(dims[1] if numbers.get("transB") else dims[0])
        if node.op_type in _PASSING:
            names.update(node.output)
    return None
