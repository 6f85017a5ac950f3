"""Whether a batch is what the model takes: every input by name, shape, element type, and no NaN or infinity.

Floating-point numbers are rounded to the model's width, whole numbers converted where that is exact; nothing else is
converted, because whole numbers for a floating-point input mean that nobody said how they are to be scaled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.dataflow import FLOATS
from bnfold.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from bnfold.data import InputSpec

    Batch = dict[str, NDArray[np.generic]]
    #: The sample of a batch to the place it came from, for messages.
    Where = Callable[[int], str]


def fit_batch(batch: Mapping[str, NDArray[Any]], inputs: Sequence[InputSpec], where: Where) -> Batch:
    """`batch` in the order and the element types of the model's inputs.

    Args:
        batch: Arrays by name, samples on axis 0 where the input has a batch axis.
        inputs: What the model takes.
        where: Names the place of the i-th sample of the batch.

    Raises:
        DataError: A name is unknown or missing, or a shape, type or value does not fit.
    """
    check_names(batch, inputs, where(0))
    symbols: dict[str, int] = {}
    for spec in inputs:
        _check_shape(batch[spec.name], spec, symbols, where(0))
    return {spec.name: _converted(batch[spec.name], spec, where) for spec in inputs}


def check_names(names: Mapping[str, object], inputs: Sequence[InputSpec], where: str) -> None:
    """Raise a DataError unless the names are those of the inputs."""
    wanted = [spec.name for spec in inputs]
    for name in names:
        if name not in wanted:
            raise DataError(
                f"the model has no input {name!r}", where=where, remedy=f"its inputs are {', '.join(wanted)}"
            )
    for name in wanted:
        if name not in names:
            raise DataError(f"there is no array for the input {name!r}", where=where, remedy=f"add one called {name}")


def fixed_batch(inputs: Sequence[InputSpec]) -> int | None:
    """The batch size that the model fixes; None where it is open.

    Raises:
        DataError: There is no input, an input has no batch axis, or two inputs fix different sizes.
    """
    if not inputs:
        raise DataError("the model has no inputs, so no data can be fed to it")
    sizes = {}
    for spec in inputs:
        if spec.dims == ():
            raise DataError(
                "this input has no axis for samples", where=spec.name, remedy="yield whole batches from a callable"
            )
        if spec.dims and isinstance(spec.dims[0], int):
            sizes[spec.dims[0]] = spec.name
    if len(sizes) > 1:
        raise DataError(
            f"the inputs {', '.join(sizes.values())} fix different batch sizes ({', '.join(map(str, sizes))})",
            remedy="yield whole batches from a callable",
        )
    return next(iter(sizes), None)


def shape_text(shape: Sequence[int | str | None]) -> str:
    """`8x3x?x?`."""
    return "x".join(str(size) if isinstance(size, int) else "?" for size in shape) or "scalar"


def _check_shape(array: NDArray[Any], spec: InputSpec, symbols: dict[str, int], where: str) -> None:
    """The rank, the sizes that the model fixes, and equal sizes for equal symbols of one batch."""
    if not array.size:
        raise DataError(f"the array for the input {spec.name!r} is empty", where=where, remedy="leave it out")
    if spec.dims is None:
        return
    if array.ndim != len(spec.dims) or any(
        isinstance(size, int) and size != given for size, given in zip(spec.dims, array.shape, strict=True)
    ):
        raise DataError(
            f"the shape for the input {spec.name!r} is {shape_text(array.shape)}, the model takes "
            f"{shape_text(spec.dims)}",
            where=where,
            remedy="axis 0 is the samples; reshape the data as the model wants it",
        )
    for axis, (size, given) in enumerate(zip(spec.dims, array.shape, strict=True)):
        if isinstance(size, str) and symbols.setdefault(size, given) != given:
            raise DataError(
                f"axis {axis} of the input {spec.name!r} has size {given}, which the model calls {size}, and that is "
                f"{symbols[size]} elsewhere in the batch",
                where=where,
                remedy="axes that the model gives one name must have one size",
            )


def _converted(array: NDArray[Any], spec: InputSpec, where: Where) -> NDArray[np.generic]:
    """`array` in the model's type; finite."""
    floating = spec.dtype.name in FLOATS
    kinds = "f" if floating else "iu" if spec.dtype.kind in "iu" else spec.dtype.kind
    if array.dtype != spec.dtype and array.dtype.kind not in kinds:
        remedy = "convert and scale it as it was for the training" if floating else "convert it first"
        raise DataError(
            f"the input {spec.name!r} takes {spec.dtype.name} and the data is {array.dtype.name}",
            where=where(0),
            remedy=remedy,
        )
    if floating:
        _check_all(np.isfinite(array), "holds NaN or infinity", spec, where)
    with np.errstate(over="ignore", invalid="ignore"):
        converted = np.asarray(array).astype(spec.dtype)
    if floating:
        _check_all(np.isfinite(converted), f"does not fit into {spec.dtype.name}", spec, where)
    elif array.dtype != spec.dtype:
        _check_all(converted == array, f"does not fit into {spec.dtype.name}", spec, where)
    return converted


def _check_all(good: NDArray[Any], fault: str, spec: InputSpec, where: Where) -> None:
    if not good.all():
        sample = int(np.argwhere(~good)[0][0]) if good.ndim else 0
        remedy = "leave this sample out, or repair it"
        raise DataError(f"the data for the input {spec.name!r} {fault}", where=where(sample), remedy=remedy)
