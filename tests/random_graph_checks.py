"""What must hold for the fold of any model, examined on one random graph: a list of sentences that do not hold.

Exactness: with every stored number made double, `|folded - original| <= 1e-9 * scale` at each value of equal name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import ModelProto

import bnfold
from bnfold.decision import Decision, Folded, Reduced
from bnfold.folding import plan
from bnfold.frontends.onnx_float64 import evaluate, in_float64
from bnfold.frontends.onnx_graph import OnnxGraph
from bnfold.frontends.onnx_shapes import Shapes
from bnfold.leftover_forms import Form
from bnfold.leftovers import leave
from bnfold.localcheck import local_check
from bnfold.runtime import open_session
from tests.random_graphs import RandomGraph
from tests.undone import undone, whole

Array = np.ndarray[Any, Any]

EXACT = 1e-9  # of the scale of the slice along axis 1, in float64
FLOOR = 1e-3  # the least scale of a slice, of that of its tensor

#: And the smallest at all: behind a Relu whose inputs are all negative the original is 0, and a fold of it that adds
#: and subtracts numbers of size 1 is off by their rounding in float64.
SMALLEST = 1e-6
ROUNDOFF = {"float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}


@dataclass(frozen=True, eq=False)
class Findings:
    """What one graph showed.

    Attributes:
        decisions: Those of the model as it is.
        failures: Sentences that do not hold; none for a right fold.
        notes: What could not be examined.
        operators: How many nodes of each type the model has.
    """

    decisions: tuple[Decision, ...]
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    operators: Counter[str] = field(default_factory=Counter)

    @property
    def folded(self) -> list[Folded]:
        return [d for d in self.decisions if isinstance(d, Folded)]


def examine(graph: RandomGraph, *, runtime: bool = False, leftover: Form = "keep", reduce: bool = False) -> Findings:
    """Fold the graph in every way and look; with `runtime` also on onnxruntime in the model's own dtype."""
    onnx.checker.check_model(graph.model, full_check=True)
    fold = partial(bnfold.fold, verify=False, leftover=leftover, reduce=reduce, manifest="apart")
    folded = fold(ir.from_proto(graph.model))
    after = ir.to_proto(folded.model)
    found = Findings(folded.decisions, operators=Counter(node.op_type for node in graph.model.graph.node))
    found.failures.extend(_interface(graph.model, after))
    found.failures.extend(_repeated(graph.model, after, fold))
    found.failures.extend(_exact(graph, fold))
    _local(graph, folded.model, found, leftover, reduce)
    if runtime:
        _on_the_runtime(graph, after, found)
    return found


def _interface(before: ModelProto, after: ModelProto) -> list[str]:
    """The checker, the outputs and the inputs."""
    failures = []
    try:
        onnx.checker.check_model(after, full_check=True)
    except Exception as error:  # whatever it raises is a finding
        failures.append(f"checker: {error}")
    if list(before.graph.output) != list(after.graph.output):
        failures.append("the outputs changed")
    if _free_inputs(before) != _free_inputs(after):
        failures.append("the inputs changed")
    if list(before.opset_import) != list(after.opset_import) or before.ir_version != after.ir_version:
        failures.append("the opset or the IR version changed")
    return failures


def _free_inputs(model: ModelProto) -> list[onnx.ValueInfoProto]:
    defaults = {t.name for t in model.graph.initializer}
    return [v for v in model.graph.input if v.name not in defaults]


def _repeated(before: ModelProto, after: ModelProto, fold: Callable[[ir.Model], bnfold.FoldResult]) -> list[str]:
    """The same bytes again from the same model, and back; nothing more from the folded one."""
    failures = []
    second = fold(ir.from_proto(before))
    if _bytes(ir.to_proto(second.model)) != _bytes(after):
        failures.append("a second run gives other bytes")
    if whole(undone(second)) != whole(before):
        failures.append("undone, it is not the original")
    if any(prop.key == "bnfold.left" for prop in after.metadata_props):
        # shape inference learns sizes from a Mul that it does not learn from a BatchNorm: a chain may fold only then
        after = ir.to_proto(fold(ir.from_proto(after)).model)
    again = fold(ir.from_proto(after))
    if any(isinstance(d, Folded) for d in again.decisions):
        failures.append("a fold of the folded model folds more")
    if _bytes(ir.to_proto(again.model)) != _bytes(ir.to_proto(ir.from_proto(after))):
        failures.append("a fold of the folded model changes it")
    return failures


def _bytes(model: ModelProto) -> bytes:
    return bytes(model.SerializeToString(deterministic=True))


def _exact(graph: RandomGraph, fold: Callable[[ir.Model], bnfold.FoldResult]) -> list[str]:
    """In double all the way, every value of equal name is equal; and no shape was assumed wrongly."""
    wide = in_float64(graph.model)
    feeds = {name: value.astype(np.float64) for name, value in graph.feeds.items()}
    after = ir.to_proto(fold(ir.from_proto(wide)).model)
    names = _values(wide)
    left = set(_values(after))
    old = evaluate(wide, feeds, names)
    new = evaluate(after, feeds, [n for n in names if n in left])
    failures = [f"{name}: {wrong}" for name, value in new.items() if (wrong := difference(old[name], value))]
    return [*failures, *_assumed(wide, old)]


def _values(model: ModelProto) -> list[str]:
    """The names that nodes compute, those of constants and of unread second outputs left out."""
    constant = {t.name for t in model.graph.initializer}
    names = []
    for node in model.graph.node:
        if node.op_type == "Constant" or (node.input and all(not name or name in constant for name in node.input)):
            constant.update(node.output)
        elif node.output[0]:
            names.append(node.output[0])
    return names


def difference(old: Array, new: Array) -> str:
    """What is wrong with `new`; empty if it equals `old` to 1e-9 of the scale of its slice along axis 1."""
    if old.shape != new.shape or old.dtype != new.dtype:
        return f"{old.dtype}{old.shape} became {new.dtype}{new.shape}"
    if not np.array_equal(np.isfinite(old), np.isfinite(new)):
        return "other elements are finite"
    if not np.isfinite(old).all():
        return ""
    error = np.abs(old - new)
    others = tuple(axis for axis in range(old.ndim) if axis != 1)
    scale = np.abs(old).max(axis=others if old.ndim > 1 else None, keepdims=True, initial=0.0)
    ratio = error / np.maximum(scale, max(FLOOR * float(scale.max(initial=0.0)), SMALLEST))
    worst = float(ratio.max(initial=0.0))
    return "" if worst <= EXACT else f"off by {worst:.3g} of its scale"


def _assumed(model: ModelProto, values: dict[str, Array]) -> list[str]:
    shapes = Shapes(ir.from_proto(model))
    failures = []
    for name, value in values.items():
        claimed = shapes.by_name(name)
        if claimed is None:
            continue
        sizes = zip(claimed, value.shape, strict=False)
        if len(claimed) != value.ndim or any(isinstance(c, int) and c != n for c, n in sizes):
            failures.append(f"{name}: shape {value.shape} was taken for {claimed}")
    return failures


def _local(graph: RandomGraph, after: ir.Model, found: Findings, leftover: Form, reduce: bool) -> None:
    """Every region within one rounding of each stored number."""
    before = ir.from_proto(graph.model)
    reader = OnnxGraph(before)
    shapes = {name: value.shape for name, value in graph.feeds.items()}
    planned = leave(plan(reader, reduces=reduce), leftover)
    for check in local_check(before, after, planned, reader.spans(), shapes=shapes):
        if check.failed:
            found.failures.append(f"local: {check.ratio:.3g} at {check.tensor} ({', '.join(check.batchnorms)})")
        elif not check.passed:
            found.notes.append(f"local: {check.note}")


def _on_the_runtime(graph: RandomGraph, after: ModelProto, found: Findings) -> None:
    """`error(folded) <= 4*error(original) + 64*u*scale` of each output against float64."""
    try:
        before_run = _run(graph.model, graph.feeds)
    except Exception as error:  # no kernel, or a bug of the runtime: not about the fold
        found.notes.append(f"onnxruntime does not run the original: {str(error)[:120]}")
        return
    try:
        after_run = _run(after, graph.feeds)
    except Exception as error:
        # its CPU provider has no convolution of doubles: one that was asked for as a leftover does not run there
        asked = any(isinstance(d, Reduced) and "Conv" in d.to for d in found.decisions)
        wide = "float64" in _kinds(graph.model) and "kernel for Conv" in str(error)
        where = found.notes if asked and wide else found.failures
        where.append(f"onnxruntime does not run the folded model: {error}")
        return
    exact = evaluate(in_float64(graph.model), graph.feeds)
    u = max(ROUNDOFF[kind] for kind in _kinds(graph.model))
    for name, reference in exact.items():
        wrong = worse(reference, before_run[name], after_run[name], u)
        if wrong:
            found.failures.append(f"onnxruntime: {name} {wrong}")
    _verified(graph, after, found)


def _verified(graph: RandomGraph, after: ModelProto, found: Findings) -> None:
    """`bnfold verify`, which knows no fold, may find nothing that proves anything, and never a fault."""
    shapes = {name: value.shape for name, value in graph.feeds.items()}
    models = ir.from_proto(graph.model), ir.from_proto(after)
    try:
        said = bnfold.verify(*models, shapes=shapes, deployed=False)
    except bnfold.BnfoldError as error:
        found.notes.append(f"bnfold verify: {error}")
        return
    if said.failed:
        found.failures.append(f"bnfold verify: {said.culprit}")
    elif not said.passed:
        found.notes.append("bnfold verify: nothing is proven")


def _run(model: ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    named = ModelProto()
    named.CopyFrom(model)
    for position, node in enumerate(named.graph.node):
        node.name = f"node{position}"  # onnxruntime refuses two nodes of one name
    session = open_session(named, "cpu")
    outputs = [o.name for o in model.graph.output]
    return dict(zip(outputs, session.handle.run(outputs, feeds), strict=True))


def _kinds(model: ModelProto) -> set[str]:
    """The floating-point types in which the model computes."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    infos = (*inferred.input, *inferred.output, *inferred.value_info)
    kinds = {onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type).name for v in infos}
    return kinds & set(ROUNDOFF)


def worse(reference: Array, before: Array, after: Array, u: float) -> str:
    """What is wrong with `after`, measured by the error of `before` over the whole output.

    An output that is exactly zero is the difference of numbers of about size 1, of which it shows nothing.
    """
    if not np.isfinite(reference).all() or not np.isfinite(before).all():
        return ""
    errors = [float(np.abs(v.astype(np.float64) - reference).max(initial=0.0)) for v in (before, after)]
    allowed = 4 * errors[0] + 64 * u * (float(np.abs(reference).max(initial=0.0)) or 1.0)
    return "" if errors[1] <= allowed else f"is off by {errors[1]:.3g}, the original by {errors[0]:.3g}"
