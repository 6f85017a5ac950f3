"""Recalibrates the BatchNorms of a model on the user's data: new mean and variance, everything else stays."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, cast, get_args, overload

import onnx_ir as ir

from bnfold.batches import Counted, Data, count_batches, open_data
from bnfold.data import read_inputs
from bnfold.drift import Left, Recalibrated
from bnfold.errors import MachineError, ProviderError, UsageError
from bnfold.footprint import Footprint, demand_room, footprint
from bnfold.frontends.onnx_embedded import MANIFEST_KEY, embed
from bnfold.frontends.onnx_files import load
from bnfold.frontends.onnx_observe import OnnxObservable, Unshare
from bnfold.frontends.onnx_statistics import write_statistics
from bnfold.frontier import DEFAULT_MEMORY, Frontier
from bnfold.observation import State
from bnfold.processes import Link, Processes, linked
from bnfold.recalibration import Method, Settings
from bnfold.recalibration import recalibrate as run_engine
from bnfold.report.recalibration_report import RecalibrationReport, by_drift
from bnfold.runtime import open_segment, require
from bnfold.selecting import selection
from bnfold.torch_dispatch import is_module

if TYPE_CHECKING:
    from torch import nn

ModelLike: TypeAlias = "ir.Model | str | os.PathLike[str]"

#: The metadata entry that says how the statistics came about.
RECORD = "bnfold.recalibrated"

Model = TypeVar("Model")


_IN_FLOAT32 = ("bfloat16 was computed in float32, as onnxruntime has no kernels for it on the CPU",)

_SMALLER = "make the batches smaller with --batch-size, or give --memory less"


@dataclass(frozen=True, eq=False)
class RecalibrationResult(Generic[Model]):
    """A model with new statistics.

    Attributes:
        model: The model, an ONNX model or a PyTorch module; the original is as it was, unless `inplace` was asked for.
        report: What moved, how far, and what stayed.
    """

    model: Model
    report: RecalibrationReport


@overload
def recalibrate(
    model: nn.Module,
    data: Data,
    *,
    example_inputs: tuple[Any, ...],
    inplace: bool = ...,
    method: str = ...,
    momentum: float = ...,
    bessel: bool = ...,
    memory: int = ...,
    force: bool = ...,
    keep: str | None = ...,
    only: str | None = ...,
    processes: Processes | None = ...,
    progress: Callable[[str], None] | None = ...,
) -> RecalibrationResult[nn.Module]: ...


@overload
def recalibrate(
    model: ModelLike,
    data: Data,
    *,
    method: str = ...,
    momentum: float = ...,
    bessel: bool = ...,
    memory: int = ...,
    force: bool = ...,
    unshare: str = ...,
    keep: str | None = ...,
    only: str | None = ...,
    processes: Processes | None = ...,
    progress: Callable[[str], None] | None = ...,
) -> RecalibrationResult[ir.Model]: ...


def recalibrate(  # noqa: PLR0913
    model: ModelLike | nn.Module,
    data: Data,
    *,
    example_inputs: tuple[Any, ...] | None = None,
    inplace: bool = False,
    method: str = "sequential",
    momentum: float = 0.1,
    bessel: bool = False,
    memory: int = DEFAULT_MEMORY,
    force: bool = False,
    unshare: str = "none",
    keep: str | None = None,
    only: str | None = None,
    processes: Processes | None = None,
    progress: Callable[[str], None] | None = None,
) -> RecalibrationResult[Any]:
    """Compute the running mean and variance of every BatchNorm of `model` anew, from `data` alone.

    Args:
        model: A model, which stays as it is, the path of an ONNX file, or a PyTorch module in eval mode.
        data: What `DataRequest` names or its text; or batches, each a dict of one array per input, or one array for a
            model with a single input; or a function that returns them. They are read once, so an iterator will do.
            A module's inputs are called as its forward pass calls them; their arrays may be tensors.
        example_inputs: What the forward pass of a PyTorch module takes, with the sizes of the data.
        inplace: Whether to change the given module rather than a copy.
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
        processes: That this is one of several processes, which all make this call and share the data: each gets the
            batches `rank`, `rank + size`, ..., and all get the same result. "ema" takes one process.
        progress: Told what is being done, one clause at a time.

    Raises:
        UsageError: An option contradicts itself; the file does not exist.
        ModelError: The file is not an ONNX model that can be read, or the module is in training mode.
        DataError: The batches do not fit the model, are none, too few, or lead to values that are not finite.
        MissingPackageError: onnxruntime is not installed, or Pillow for images.
        MachineError: The model cannot be run here, the disk is full, or another process has ended.
    """
    settings = Settings(_method(method), momentum, bessel, force)
    if not 0 < momentum <= 1 or memory < 0:
        raise UsageError("the momentum lies above 0 and not above 1, the memory not below 0", where="recalibrate")
    wanted, tell = selection(only, keep), progress or (lambda _clause: None)
    shared = _unshare(unshare)
    with linked(processes) as link:
        if method == "ema" and link.size > 1:
            what = "a running average depends on the order of the batches, so it takes one process"
            raise UsageError(what, where="ema", remedy="take sequential or batch, or one process")
        if is_module(model):
            from bnfold.recalibrating_torch import Work, recalibrate_module  # noqa: PLC0415

            if shared != "none":
                what = "the calls of a PyTorch module have one place for their statistics"
                raise UsageError(what, where="unshare", remedy="export the module to ONNX")
            work = Work(settings, wanted, memory, tell, link)
            return recalibrate_module(model, data, example_inputs, work, inplace=inplace)
        if example_inputs is not None or inplace:
            raise UsageError("example_inputs and inplace are for PyTorch modules", where="recalibrate")
        return _recalibrate_onnx(cast("ModelLike", model), data, settings, wanted, shared, memory, tell, link)


def _recalibrate_onnx(  # noqa: PLR0913, PLR0917
    model: ModelLike,
    data: Data,
    settings: Settings,
    wanted: Callable[[str], bool],
    unshare: Unshare,
    memory: int,
    tell: Callable[[str], None],
    link: Link,
) -> RecalibrationResult[ir.Model]:
    require("cpu")
    original, name = _opened(model)
    observable = OnnxObservable(original, open_segment, wanted, unshare)
    link.demand_same((name, settings, unshare, [site.calls for site in observable.sites]))
    source = open_data(data, read_inputs(observable.proto))
    feed = Counted(source, link, observable.fed)
    batches = iter(feed)
    first = next(batches, None) if observable.levels else None
    need = _needed(observable, first, count_batches(data, source, first, link), memory)
    demand_room(need)
    with Frontier(memory) as frontier, _explained():
        outcomes = run_engine(
            observable,
            batches if first is None else chain([first], batches),
            settings,
            frontier=frontier,
            tell=lambda clause: tell(f"{clause}; {need}" if need.batch else clause),
            share=link.share,
        )
    samples, count = link.total(feed.samples, feed.batches)
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
    notes = (*_recorded(changed, settings, samples), *done) if moved else ()
    report = RecalibrationReport(name, settings, samples, count, moved, left, notes, need)
    return RecalibrationResult(changed, report)


def _needed(observable: OnnxObservable, first: State | None, batches: int | None, memory: int) -> Footprint:
    """What is kept between two levels, from the shapes of the first batch; all others are taken for as large."""
    shapes = {name: array.shape for name, array in (first or {}).items()}
    return footprint(observable.carried(shapes) if first else [], batches, memory)


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
