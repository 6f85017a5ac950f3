"""Recalibrates the BatchNorms of a PyTorch module; `bnfold.recalibrating` hands them on to here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bnfold.api_torch import check_initialised, check_module
from bnfold.batches import Data, open_data
from bnfold.data import InputSpec
from bnfold.data_sources import DataRequest, Source
from bnfold.drift import Recalibrated
from bnfold.errors import ModelError
from bnfold.frontends.torch_agreement import Agreement
from bnfold.frontends.torch_arguments import Arguments, demanded
from bnfold.frontends.torch_capture import captured_once, copied
from bnfold.frontends.torch_hooks import HookObservable
from bnfold.frontends.torch_inputs import ModuleInputs, input_shapes, read_inputs
from bnfold.frontends.torch_observe import TorchObservable
from bnfold.frontends.torch_statistics import write_statistics
from bnfold.frontends.torch_tensors import to_array
from bnfold.graph import Shape
from bnfold.observation import State
from bnfold.observing import Work, observe
from bnfold.recalibrating import RecalibrationResult
from bnfold.report.recalibration_report import RecalibrationReport, by_drift

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, eq=False)
class _Opened:
    """A module that can be watched.

    Attributes:
        observable: Its BatchNorms.
        shapes: Of its inputs, open sizes as symbols.
        checked: Gives a batch back; raises an error if the observable does not hold for it.
        notes: For the report.
    """

    observable: TorchObservable | HookObservable
    shapes: tuple[Shape, ...]
    checked: Callable[[State], State]
    notes: tuple[str, ...] = ()


def recalibrate_module(
    module: nn.Module, data: Data, example_inputs: Arguments | None, work: Work, *, inplace: bool
) -> RecalibrationResult[nn.Module]:
    """Compute the running mean and variance of every BatchNorm of `module` anew; in a copy, unless `inplace`.

    Raises:
        UsageError: There are no example inputs.
        ModelError: The module is in training mode, cannot be watched, or does not take a batch.
        DataError, MachineError: As `bnfold.recalibrate`.
    """
    check_module(module)
    check_initialised(module)
    example = demanded(example_inputs)
    inputs, name = read_inputs(module, example), type(module).__name__
    opened = _opened(module, inputs, example, work.wanted)
    observable = opened.observable
    work.link.demand_same((name, work.settings, [site.calls for site in observable.sites]))
    source = open_data(_as_arrays(data), list(_specs(inputs, opened.shapes)))
    found = observe(observable, data, source, work, opened.checked)
    moved = [
        (names, o) for names, o in zip(observable.names, found.outcomes, strict=True) if isinstance(o, Recalibrated)
    ]
    target = module if inplace else copied(module)
    write_statistics(target, [(names, outcome.new) for names, outcome in moved])
    left, ranked = (*found.left, *observable.left), by_drift(found.moved)
    report = RecalibrationReport(
        name, work.settings, found.samples, found.batches, ranked, left, opened.notes, found.need
    )
    return RecalibrationResult(target, report)


def _opened(
    module: nn.Module, inputs: ModuleInputs, example_inputs: Arguments, wanted: Callable[[str], bool]
) -> _Opened:
    """By its graph; where that cannot be had, or not be cut, as it runs."""
    try:
        captured = captured_once(module, example_inputs)
        observable = TorchObservable(module, captured, wanted)
    except ModelError as error:
        note = f"{error.what}; so the module was run once for each BatchNorm"
        shapes = tuple(_open_shape(tensor) for tensor in inputs.examples)
        return _Opened(HookObservable(module, inputs, wanted), shapes, lambda batch: batch, (note,))
    return _Opened(observable, tuple(input_shapes(captured)), Agreement(module, captured, inputs).demanded)


def _open_shape(tensor: Any) -> Shape:
    """All that may be another size: not the channels of images."""
    return tuple(size if axis == 1 and tensor.ndim == 4 else None for axis, size in enumerate(tensor.shape))


def _specs(inputs: ModuleInputs, shapes: tuple[Shape, ...]) -> Iterator[InputSpec]:
    """The inputs as data has them."""
    for name, tensor, shape in zip(inputs.names, inputs.examples, shapes, strict=True):
        yield InputSpec(name, to_array(tensor[:0] if tensor.ndim else tensor).dtype, tuple(shape))


def _as_arrays(data: Data) -> Data:
    """Batches of tensors as batches of arrays."""
    if isinstance(data, Source | DataRequest | str | os.PathLike | Mapping):
        return data
    if isinstance(data, Iterable):
        return (_array_tree(batch) for batch in data)
    make = data
    return (lambda: map(_array_tree, make())) if callable(make) else data


def _array_tree(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return {name: to_array(value) for name, value in batch.items()}
    return to_array(batch)
