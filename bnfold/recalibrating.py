"""Recalibrates the BatchNorms of a model on the user's data: new mean and variance, everything else stays."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, get_args, overload

import onnx_ir as ir

from bnfold.batches import Data, open_data
from bnfold.data import read_inputs
from bnfold.drift import Recalibrated
from bnfold.errors import UsageError
from bnfold.frontends.onnx_embedded import MANIFEST_KEY, embed
from bnfold.frontends.onnx_observe import OnnxObservable, Unshare
from bnfold.frontends.onnx_statistics import write_statistics
from bnfold.frontends.torch_arguments import read_arguments
from bnfold.frontier import DEFAULT_MEMORY
from bnfold.models import ModelLike, opened
from bnfold.observing import Work, observe
from bnfold.processes import Processes, linked
from bnfold.recalibration import Method, Settings
from bnfold.report.recalibration_report import RecalibrationReport, by_drift
from bnfold.runtime import open_segment, require
from bnfold.selecting import selection
from bnfold.torch_dispatch import is_module

if TYPE_CHECKING:
    from torch import nn

#: The metadata entry that says how the statistics came about.
RECORD = "bnfold.recalibrated"

Model = TypeVar("Model")


_IN_FLOAT32 = ("bfloat16 was computed in float32, as onnxruntime has no kernels for it on the CPU",)


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
    example_inputs: tuple[Any, ...] | None = ...,
    example_kwargs: Mapping[str, Any] | None = ...,
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
    example_kwargs: Mapping[str, Any] | None = None,
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
        example_kwargs: What it takes by keyword.
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
        ModelError: The file is not an ONNX model that can be read, the nodes of a model in memory are out of order, or
            the module is in training mode.
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
        work = Work(settings, wanted, memory, tell, link)
        if is_module(model):
            from bnfold.recalibrating_torch import recalibrate_module  # noqa: PLC0415

            if shared != "none":
                what = "the calls of a PyTorch module have one place for their statistics"
                raise UsageError(what, where="unshare", remedy="export the module to ONNX")
            example = read_arguments(model, example_inputs, example_kwargs)
            return recalibrate_module(model, data, example, work, inplace=inplace)
        if example_inputs is not None or example_kwargs is not None or inplace:
            what = "example_inputs, example_kwargs and inplace are for PyTorch modules"
            raise UsageError(what, where="recalibrate")
        return _recalibrate_onnx(cast("ModelLike", model), data, work, shared)


def _recalibrate_onnx(model: ModelLike, data: Data, work: Work, unshare: Unshare) -> RecalibrationResult[ir.Model]:
    require("cpu")
    original, name = opened(model)
    observable = OnnxObservable(original, open_segment, work.wanted, unshare)
    work.link.demand_same((name, work.settings, unshare, [site.calls for site in observable.sites]))
    found = observe(observable, data, open_data(data, read_inputs(observable.proto)), work, observable.fed)
    new = {
        tuple(places): (site, outcome.new)
        for places, site, outcome in zip(observable.nodes, observable.sites, found.outcomes, strict=True)
        if isinstance(outcome, Recalibrated)
    }
    changed = original.clone()
    write_statistics(changed, new)
    moved = by_drift(found.moved)
    done = (*_separated(observable, moved), *_IN_FLOAT32[: observable.widens])
    notes = (*recorded(changed, work.settings, found.samples), *done) if moved else ()
    left = (*found.left, *observable.left)
    report = RecalibrationReport(name, work.settings, found.samples, found.batches, moved, left, notes, found.need)
    return RecalibrationResult(changed, report)


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


def recorded(model: ir.Model, settings: Settings, samples: int) -> tuple[str, ...]:
    """Say in the metadata of `model` how its statistics came about; returns what no longer holds, for the report."""
    entry = {"method": settings.method, "variance": settings.variance, "samples": samples}
    model.metadata_props[RECORD] = json.dumps(entry)
    if MANIFEST_KEY not in model.metadata_props:
        return ()
    embed(model, None)
    return ("the manifest of an earlier fold does not fit the new statistics and was dropped",)
