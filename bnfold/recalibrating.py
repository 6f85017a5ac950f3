"""Recalibrates the BatchNorms of an ONNX model on the user's data: new mean and variance, everything else stays."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias, cast, get_args

import onnx_ir as ir

from bnfold.data import InputSpec, read_inputs
from bnfold.data_callable import Stream
from bnfold.data_sources import DataLike, Source, as_source
from bnfold.drift import Left, Recalibrated
from bnfold.errors import MachineError, ProviderError, UsageError
from bnfold.footprint import Footprint, demand_room, footprint
from bnfold.frontends.onnx_embedded import MANIFEST_KEY, embed
from bnfold.frontends.onnx_files import load
from bnfold.frontends.onnx_observe import OnnxObservable, Unshare
from bnfold.frontends.onnx_statistics import write_statistics
from bnfold.frontier import DEFAULT_MEMORY, Frontier
from bnfold.observation import State
from bnfold.recalibration import Method, Settings
from bnfold.recalibration import recalibrate as run_engine
from bnfold.report.recalibration_report import RecalibrationReport, by_drift
from bnfold.runtime import open_segment, require
from bnfold.selecting import selection

ModelLike: TypeAlias = "ir.Model | str | os.PathLike[str]"

#: Batches, however given.
Data: TypeAlias = "DataLike | Callable[[], Iterable[Any]]"

#: The metadata entry that says how the statistics came about.
RECORD = "bnfold.recalibrated"


_IN_FLOAT32 = ("bfloat16 was computed in float32, as onnxruntime has no kernels for it on the CPU",)

_SMALLER = "make the batches smaller with --batch-size, or give --memory less"


@dataclass(frozen=True, eq=False)
class RecalibrationResult:
    """A model with new statistics.

    Attributes:
        model: The model; the original is as it was.
        report: What moved, how far, and what stayed.
    """

    model: ir.Model
    report: RecalibrationReport


def recalibrate(  # noqa: PLR0913
    model: ModelLike,
    data: Data,
    *,
    method: str = "sequential",
    momentum: float = 0.1,
    bessel: bool = False,
    memory: int = DEFAULT_MEMORY,
    force: bool = False,
    unshare: str = "none",
    keep: str | None = None,
    only: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> RecalibrationResult:
    """Compute the running mean and variance of every BatchNorm of `model` anew, from `data` alone.

    Args:
        model: A model, which stays as it is, or the path of an ONNX file.
        data: What `DataRequest` names or its text; or batches, each a dict of one array per input, or one array for a
            model with a single input; or a function that returns them. They are read once, so an iterator will do.
        method: "sequential": every BatchNorm under already recalibrated ones, in eval mode, over all data at once; the
            batch size does not matter. "batch": upstream BatchNorms normalise by the batch, as in training. "ema": the
            running average of training, from the old statistics on.
        momentum: Of "ema", the weight of a new batch: PyTorch's 0.1; Keras' 0.99 is 0.01 here.
        bessel: Divide by n - 1, as PyTorch's training does (its `ema` needs this); normalisation divides by n.
        memory: Bytes of activations to hold in memory; the rest goes to a temporary file.
        force: Compute statistics from fewer than 32 values in a channel.
        unshare: Which BatchNorms that share all their parameters, as the calls of one module do, get statistics of
            their own at each place: "none" of them (they pool what they see; those one of which lies behind another
            keep their statistics), those that are "dependent" in that way, or "all".
        keep: A regular expression; BatchNorms in whose name it is found keep their statistics.
        only: A regular expression; BatchNorms in whose name it is not found keep their statistics.
        progress: Told what is being done, one clause at a time.

    Raises:
        UsageError: An option contradicts itself; the file does not exist.
        ModelError: The file is not an ONNX model that can be read.
        DataError: The batches do not fit the model, are none, too few, or lead to values that are not finite.
        MissingPackageError: onnxruntime is not installed, or Pillow for images.
        MachineError: The model cannot be run here, or the disk is full.
    """
    settings = Settings(_method(method), momentum, bessel, force)
    if not 0 < momentum <= 1 or memory < 0:
        raise UsageError("the momentum lies above 0 and not above 1, the memory not below 0", where="recalibrate")
    require("cpu")
    original, name = _opened(model)
    observable = OnnxObservable(original, open_segment, selection(only, keep), _unshare(unshare))
    source = _source(data, read_inputs(observable.proto))
    feed = _Counted(source, observable.fed)
    batches = iter(feed)
    first = next(batches, None) if observable.levels else None
    need = _needed(observable, first, _count(data, source, first), memory)
    demand_room(need)
    with Frontier(memory) as frontier, _explained():
        outcomes = run_engine(
            observable,
            batches if first is None else chain([first], batches),
            settings,
            frontier=frontier,
            tell=lambda clause: progress(f"{clause}; {need}" if need.batch else clause) if progress else None,
        )
    new = {
        tuple(places): (site, outcome.new)
        for places, site, outcome in zip(observable.nodes, observable.sites, outcomes, strict=True)
        if isinstance(outcome, Recalibrated)
    }
    changed = original.clone()
    write_statistics(changed, new)
    moved = by_drift([o for o in outcomes if isinstance(o, Recalibrated)])
    left = (*(o for o in outcomes if isinstance(o, Left)), *observable.left)
    done = (*_separated(observable, moved), *_IN_FLOAT32[: observable.widens])
    notes = (*_recorded(changed, settings, feed.samples), *done) if moved else ()
    report = RecalibrationReport(name, settings, feed.samples, feed.batches, moved, left, notes, need)
    return RecalibrationResult(changed, report)


def _needed(observable: OnnxObservable, first: State | None, batches: int | None, memory: int) -> Footprint:
    """What is kept between two levels, from the shapes of the first batch; all others are taken for as large."""
    shapes = {name: array.shape for name, array in (first or {}).items()}
    return footprint(observable.carried(shapes) if first else [], batches, memory)


def _count(data: Data, source: Source, first: State | None) -> int | None:
    """How many batches there are, if that is known."""
    samples = source.samples
    if samples is None and isinstance(data, Sequence):
        samples = sum(map(_length, data))
    return -(-samples // max(1, _length(first))) if samples is not None and first else None


def _length(batch: Any) -> int:
    """Samples in a batch: a dict of arrays, a sequence of them, or one."""
    parts = list(batch.values()) if isinstance(batch, Mapping) else batch
    shape = getattr(parts[0] if isinstance(parts, list | tuple) and parts else parts, "shape", ())
    return int(shape[0]) if shape else 1


@contextmanager
def _explained() -> Iterator[None]:
    """Say what helps here, where the runtime knows of its checks only."""
    try:
        yield
    except MemoryError as error:
        raise MachineError("the memory does not suffice", remedy=_SMALLER) from error
    except ProviderError as error:
        remedy = _SMALLER if "memory" in error.what else "recalibration runs the model, so take one that can be run"
        raise ProviderError(error.what, where=error.where, remedy=remedy) from error


def _opened(model: ModelLike) -> tuple[ir.Model, str]:
    """The model, and its name for the report."""
    if isinstance(model, ir.Model):
        return model, model.graph.name or "model"
    return load(model), Path(model).name


class _Counted:
    """The batches of one pass, counted, as `fed` gives them to the model.

    Attributes:
        samples: How many samples (axis 0 of the first input) came by.
        batches: How many batches they were in.
    """

    def __init__(self, source: Source, fed: Callable[[State], State]) -> None:
        self._source, self._fed = source, fed
        self.samples = self.batches = 0

    def __iter__(self) -> Iterator[State]:
        for batch in self._source:
            self.samples += _length(batch)
            self.batches += 1
            yield self._fed(batch)


def _source(data: Data, inputs: Sequence[InputSpec]) -> Source:
    """As `as_source`, but for what runs once, and functions."""
    if isinstance(data, Iterator):
        return Source(tuple(inputs), Stream("the given iterator", lambda: data, tuple(inputs), None))
    if callable(data) and not isinstance(data, Iterable):
        return Source(tuple(inputs), Stream("the given function", data, tuple(inputs), None))
    return as_source(data, inputs)


def _method(text: str) -> Method:
    if text not in get_args(Method):
        raise UsageError(f"{text!r} is none of {', '.join(get_args(Method))}", where="method")
    return cast("Method", text)


def _unshare(text: str) -> Unshare:
    if text not in get_args(Unshare):
        raise UsageError(f"{text!r} is none of {', '.join(get_args(Unshare))}", where="unshare")
    return cast("Unshare", text)


def _separated(observable: OnnxObservable, moved: Sequence[Recalibrated]) -> tuple[str, ...]:
    """What no longer shares its statistics, for the report."""
    names = sorted({entry.name for entry in moved}.intersection(observable.unshared), key=observable.unshared.index)
    return (f"they shared their statistics and have some of their own now: {', '.join(names)}",) if names else ()


def _recorded(model: ir.Model, settings: Settings, samples: int) -> tuple[str, ...]:
    """Say in the metadata how the statistics came about; and what no longer holds."""
    entry = {"method": settings.method, "variance": settings.variance, "samples": samples}
    model.metadata_props[RECORD] = json.dumps(entry)
    if MANIFEST_KEY not in model.metadata_props:
        return ()
    embed(model, None)
    return ("the manifest of an earlier fold does not fit the new statistics and was dropped",)
