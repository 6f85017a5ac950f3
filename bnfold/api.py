"""What bnfold does, as functions: load, inspect, fold, verify, save.

The command line calls these and nothing else. Nothing here prints; long work tells a `progress` callback.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, overload

from bnfold.batches import Data
from bnfold.calibrating import Calibration, Choice, as_calibration, calibrated
from bnfold.checking import demand, prepare_check
from bnfold.data_sources import DataLike
from bnfold.errors import UsageError
from bnfold.fold_result import FoldResult
from bnfold.frontends.onnx_files import load, save
from bnfold.frontends.onnx_fold import Settings, plan_model
from bnfold.frontends.onnx_readers import Reader
from bnfold.frontends.onnx_simplify import prepared
from bnfold.frontends.torch_arguments import read_arguments
from bnfold.history import History, Wish
from bnfold.inputs import InputsLike
from bnfold.leftover_forms import Form
from bnfold.model_size import scales_of, size_of, with_flops
from bnfold.models import ModelLike, opened
from bnfold.notes import plan_notes
from bnfold.report.model import Report
from bnfold.selecting import as_form, selection
from bnfold.torch_dispatch import check_wishes, fold_torch, inspect_torch, is_module, refuse_onnx, refuse_torch
from bnfold.torch_result import TorchFoldResult
from bnfold.verification import Verification
from bnfold.verifying import verify
from bnfold.wishes import Progress, Proof, Where, Wishes

if TYPE_CHECKING:
    from torch import nn

__all__ = ["FoldResult", "fold", "inspect", "load", "save", "verify"]

Readers: TypeAlias = Mapping[tuple[str, str], Reader]


def inspect(  # noqa: PLR0913
    model: ModelLike | nn.Module,
    *,
    example_inputs: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    as_graph: bool = False,
    static_shapes: bool = False,
    only: str | None = None,
    keep: str | None = None,
    keep_overridable: bool = False,
    reduce: bool = False,
    merge: bool = True,
    leftover: Form = "keep",
    simplify: bool = False,
    readers: Readers | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Report:
    """What `fold` would do with `model`, which stays as it is.

    Args:
        model: A model, the path of an ONNX file, or a PyTorch module in eval mode.
        example_inputs: What the forward pass of a PyTorch module takes; by default made up where its layers tell, and
            the notes say so (not with `as_graph`). Such a module takes `only` and `keep` besides, with `as_graph` also
            `static_shapes`, `reduce`, `merge` and `leftover`, and nothing else.
        example_kwargs: What it takes by keyword.
        as_graph: Whether a PyTorch module becomes a GraphModule, where every fold has a place, and not its own class.
        static_shapes: Whether that graph may hold for the sizes of the example only, and refuse others.
        only: A regular expression; BatchNorms in whose name it is not found are kept.
        keep: A regular expression; BatchNorms in whose name it is found are kept.
        keep_overridable: Leave initializers alone that are also graph inputs, which a caller may override.
        reduce: Where that makes a BatchNorm vanish, give an activation behind it a bound for each channel, and where
            only the shift cannot move, leave an Add in its place: fewer BatchNorms for a compiler that lacks them,
            though not a faster model.
        merge: Whether parallel linear branches of one value become one operator (RepVGG, MobileOne, ACNet).
        leftover: What is written for a BatchNorm that stays: "keep" leaves it as it is; "affine" writes Mul and Add,
            without what does nothing, and after a Sub where the mean would cancel; "depthwise" a depthwise 1x1 Conv
            where the value has a spatial axis. What `keep` and `only` exclude stays a BatchNorm.
        simplify: Run onnxsim first (without its own BatchNorm fusion), to uncover constants.
        readers: Your own readers of operators, by domain ("" for the standard ones) and operator type; they come
            before bnfold's. `examples/own_carrier.py` shows one.
        shapes: Shapes of inputs by name, where the model leaves them open, to count what it computes.

    Raises:
        UsageError: `only` or `keep` is no regular expression, `leftover` is no form; the file does not exist; `shapes`
            contradicts the model.
        ModelError: The file is not an ONNX model that can be read; the nodes of a model in memory are out of order;
            the module is in training mode, or does not run.
        MissingPackageError: onnxsim is wanted and not installed.
    """
    form = as_form(leftover)
    if is_module(model):
        refuse_torch((keep_overridable, simplify, readers, shapes))
        graph = (as_graph, static_shapes, reduce, merge, form)
        example = read_arguments(model, example_inputs, example_kwargs)
        return inspect_torch(model, example, selection(only, keep), graph)
    refuse_onnx(example_inputs is not None, example_kwargs is not None, as_graph, static_shapes)
    given, name = opened(cast("ModelLike", model))
    original, notes = prepared(given, simplify, keep_overridable)
    settings = Settings(selection(only, keep), keep_overridable, readers or {}, reduce, merge, form)
    planned = plan_model(original.clone(), settings)
    notes += plan_notes(planned)
    report = Report(name, planned.decisions, size_of(original), notes=notes, scales=scales_of(planned.parts))
    return with_flops(report, original, None, shapes)


@overload
def fold(
    model: nn.Module,
    *,
    example_inputs: tuple[Any, ...] | None = ...,
    example_kwargs: Mapping[str, Any] | None = ...,
    as_graph: Literal[False] = ...,
    inplace: bool = ...,
    calibrate: Calibration | Data | None = ...,
    only: str | None = ...,
    keep: str | None = ...,
    verify: bool = ...,
    seed: int = ...,
    progress: Progress | None = ...,
) -> TorchFoldResult: ...


@overload
def fold(
    model: nn.Module,
    *,
    example_inputs: tuple[Any, ...] | None = ...,
    example_kwargs: Mapping[str, Any] | None = ...,
    as_graph: Literal[True],
    static_shapes: bool = ...,
    calibrate: Calibration | Data | None = ...,
    only: str | None = ...,
    keep: str | None = ...,
    reduce: bool = ...,
    merge: bool = ...,
    leftover: Form = ...,
    verify: bool = ...,
    seed: int = ...,
    progress: Progress | None = ...,
) -> TorchFoldResult: ...


@overload
def fold(
    model: ModelLike,
    *,
    calibrate: Calibration | Data | None = ...,
    only: str | None = ...,
    keep: str | None = ...,
    keep_overridable: bool = ...,
    reduce: bool = ...,
    merge: bool = ...,
    leftover: Form = ...,
    simplify: bool = ...,
    readers: Readers | None = ...,
    verify: bool = ...,
    manifest: Wish = ...,
    providers: Sequence[str] = ...,
    shapes: Mapping[str, tuple[int, ...]] | None = ...,
    inputs: InputsLike | None = ...,
    seed: int = ...,
    data: DataLike | None = ...,
    oracle: bool = ...,
    metric: str | None = ...,
    metric_output: str | None = ...,
    self_test: bool = ...,
    deployed: bool = ...,
    progress: Progress | None = ...,
) -> FoldResult: ...


def fold(  # noqa: PLR0913
    model: ModelLike | nn.Module,
    *,
    example_inputs: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    as_graph: bool = False,
    static_shapes: bool = False,
    inplace: bool = False,
    calibrate: Calibration | Data | None = None,
    only: str | None = None,
    keep: str | None = None,
    keep_overridable: bool = False,
    reduce: bool = False,
    merge: bool = True,
    leftover: Form = "keep",
    simplify: bool = False,
    readers: Readers | None = None,
    verify: bool = True,
    manifest: Wish = None,
    providers: Sequence[str] = ("cpu",),
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    inputs: InputsLike | None = None,
    seed: int = 0,
    data: DataLike | None = None,
    oracle: bool = False,
    metric: str | None = None,
    metric_output: str | None = None,
    self_test: bool = False,
    deployed: bool = True,
    progress: Progress | None = None,
) -> FoldResult | TorchFoldResult:
    """Fold every BatchNorm of `model` that exact arithmetic allows, and prove the result equivalent.

    Args:
        model: A model, which stays as it is, the path of an ONNX file, or a PyTorch module in eval mode.
        example_inputs: As `inspect`. A PyTorch module takes `inplace`, `calibrate`, `only`, `keep`, `verify`, `seed`
            and `progress` besides, with `as_graph` also `static_shapes`, `reduce`, `merge` and `leftover` though not
            `inplace`, and nothing else.
        example_kwargs: As `inspect`.
        as_graph: As `inspect`.
        static_shapes: As `inspect`.
        inplace: Whether the PyTorch module itself is changed, and not a copy of it.
        calibrate: Data to recalibrate on first, as `recalibrate` takes it, or a `Calibration`, which also says how; the
            result is compared with the recalibrated model. A PyTorch module needs `example_inputs` and is copied.
        only: As `inspect`; what it or `keep` excludes is not recalibrated either.
        keep: As `inspect`.
        keep_overridable: As `inspect`.
        reduce: As `inspect`.
        merge: As `inspect`.
        leftover: As `inspect`.
        simplify: As `inspect`.
        readers: As `inspect`.
        verify: Whether to check the result; without it, the metadata of the model says that it was not.
        manifest: How to note for `bnfold.unfold` what was done: "apart" in the result alone, "embed" in the metadata
            of the model too. A model that carries a manifest goes on carrying one.
        providers: Execution providers of onnxruntime to check on: "cpu", "cuda", or "all" that it has.
        shapes: As `inspect`; the check runs at these sizes.
        inputs: Inputs that are the same in every run (indices, sizes), by name: arrays, or paths of .npy files.
        seed: Seed of the inputs of the check.
        data: Your own data, to compare on as well: a `DataRequest` or its text, or a list of batches.
        oracle: Whether to ask the float64 oracle about every tensor; one that became less accurate then fails.
        metric: What both models must decide alike on `data`, but for rounding: "top1", "boxes" (of a YOLO) or "mask".
        metric_output: The output that the decisions are taken from, where there are several.
        self_test: Whether the check tries itself: in every fold a weight is damaged by a thousandth, which it must see.
        deployed: Whether to compare at ORT_ENABLE_ALL as well; what is wrong there in the folded model alone fails.
        progress: Told what is being done, one clause at a time.

    Raises:
        UsageError, ModelError, MissingPackageError: As `inspect`; also, data without `verify`, or no data there.
        DataError: The data cannot be read, or does not fit the model.
        VerificationError: The folded model is not equivalent; its `report` says where, its `models` are both models.
        MachineError: The check cannot be run here (no kernel, no device), or proves nothing.
    """
    form, wishes = as_form(leftover), Wishes(inputs, oracle, metric, metric_output, self_test, deployed)
    if is_module(model):
        refuse_torch((keep_overridable, simplify, readers, manifest, shapes, tuple(providers) != ("cpu",),
                      data is not None, wishes, not deployed))  # fmt: skip
        graph = (as_graph, static_shapes, reduce, merge, form)
        check_wishes(graph, inplace=inplace, calibrates=calibrate is not None)
        example = read_arguments(model, example_inputs, example_kwargs)
        wanted, proof = selection(only, keep), Proof(verify, seed, progress)
        if calibrate is not None:
            choice, name = Choice(only, keep, progress=progress), type(model).__name__
            model, moved = calibrated(model, name, as_calibration(calibrate), choice, example)
            proof = replace(proof, recalibration=moved)
        return fold_torch(model, example, wanted, graph, proof, inplace=inplace)
    refuse_onnx(example_inputs is not None, example_kwargs is not None, as_graph, static_shapes, inplace)
    given, name = opened(cast("ModelLike", model))
    if (data is not None or wishes) and not verify:
        what = f"{'data' if data is not None else wishes.first} is for the check, which is left out"
        raise UsageError(what, where=name, remedy="leave out one of the two")
    check = prepare_check(given, Where(providers if verify else (), shapes, seed), data, wishes, progress)
    recalibration = None
    if calibrate is not None:
        choice = Choice(only, keep, progress=progress)
        given, recalibration = calibrated(given, name, as_calibration(calibrate), choice)
    original, notes = prepared(given, simplify, keep_overridable)
    folded = original.clone()
    history = History(manifest, original, folded, simplified=simplify)
    settings = Settings(selection(only, keep), keep_overridable, readers or {}, reduce, merge, form)
    planned = plan_model(folded, settings)
    spans = [graph.spans() for graph, _ in planned.parts]
    notes += plan_notes(planned)
    history.note(planned)
    written = planned.write()
    notes += history.notes
    notes += tuple(f"input {lost} was the default of a folded parameter and is gone" for lost in written.dropped_inputs)
    notes += (f"{written.cloned_bytes} bytes of weights are shared and were copied",) if written.cloned_bytes else ()
    sizes = size_of(original), size_of(folded)
    report = Report(name, planned.decisions, *sizes, None, notes, scales_of(planned.parts), recalibration)
    if verify:
        checked = Verification(check.local(original, planned, spans), check.quick(given, folded))
        report = replace(report, verification=checked)
    report = with_flops(report, original, folded, shapes)
    if verify:
        demand(report, models=(given, folded))
    planned.record(report.verification.providers if report.verification else ())
    return FoldResult(folded, report, history.extended(folded))
