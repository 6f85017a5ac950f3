"""Judges what a tool made of a model: `max|y - y64| <= 1e-3 * max|y64|`, y64 the original in float64, of every output.

The result runs in onnxruntime without its optimiser. Where onnxruntime has no kernel for the original either, the
result runs in the float64 evaluator. Weights must be finite in the types that the result declares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.reference
import onnx_ir as ir

import bnfold
from benchmarks.frontier_cases import Case, data_path
from bnfold.errors import BnfoldError
from bnfold.frontends.onnx_float64 import evaluate, in_float64

Array = npt.NDArray[Any]

#: The largest error, relative to the largest element of the output, that is no wrong result.
TOLERANCE = 1e-3
BATCHES = (2, 3)


@dataclass(frozen=True)
class Verdict:
    """What became of one model in one tool's hands.

    Attributes:
        kind: "right", "WRONG", "INVALID" (the checker or onnxruntime refuses the result), "ERROR" (the tool raised),
            "CRASH" (the tool's process died) or "TIMEOUT".
        left: How many BatchNorms are left; 0 where there is no result.
        of: How many there were.
        added: How many nodes more than the original the result has; 0 for fewer.
        lost: How many inputs that a caller could override are gone.
        error: The largest error relative to the scale of its output; None where there is no result to run.
        detail: A sentence for people.
        verified: What `bnfold verify` says to it: "passed", "failed", "unproven", or "refused" (it cannot be run);
            empty where it was not asked.
    """

    kind: str
    left: int
    of: int
    added: int = 0
    lost: int = 0
    error: float | None = None
    detail: str = ""
    verified: str = ""

    def __str__(self) -> str:
        """The cell of the table."""
        if self.kind != "right":
            return self.kind
        grown = f" (+{self.added} node{'s' if self.added > 1 else ''})" if self.added else ""
        lost = f" (-{self.lost} inputs)" if self.lost else ""
        return f"{self.left} of {self.of}{grown}{lost}"


def judge(case: Case, result: onnx.ModelProto) -> Verdict:
    """The verdict on `result`, which a tool made of `case`."""
    original = case.model()
    grown = max(0, len(result.graph.node) - len(original.graph.node))
    lost = len(original.graph.input) - len(result.graph.input)
    counted = Verdict("right", case.left_in(result), case.batchnorms, grown, lost)
    if refusal := invalidity(original, result):
        return replace(counted, kind="INVALID", detail=refusal)
    try:
        error = max(_errors(case, original, result))
    except RefusedError as refused:
        return replace(counted, kind="INVALID", detail=str(refused))
    if infinite := _infinite_parameters(result):
        return replace(counted, kind="WRONG", error=error, detail=f"{infinite[0]} is not finite")
    kind = "right" if error <= TOLERANCE else "WRONG"
    return replace(counted, kind=kind, error=error, detail=f"error {error:.2g} of the output's scale")


def verified(case: Case, result: onnx.ModelProto) -> str:
    """What `bnfold verify` says, which knows nothing of the tool; as in `Verdict`."""
    try:
        found = bnfold.verify(ir.from_proto(case.model()), ir.from_proto(result), deployed=False)
    except BnfoldError:
        return "refused"
    return "passed" if found.passed else "failed" if found.failed else "unproven"


def _errors(case: Case, original: onnx.ModelProto, result: onnx.ModelProto) -> Iterator[float]:
    """The error of every output on every feed."""
    for feeds in _feeds(case, original, result):
        truth = evaluate(in_float64(original), feeds)
        outcome = _run(original, result, feeds)
        yield from (_error(truth[name], outcome[name]) for name in truth)


def _infinite_parameters(model: onnx.ModelProto) -> list[str]:
    """Weights that are not finite once they are computed in the types that the model declares.

    onnxruntime's CPU provider computes float16 in float32, which hides what float16 arithmetic would do.
    """
    running = data_path(model.graph)
    data = {name for node in running for name in node.output} | set(_data(model))
    names = sorted({name for node in running for name in node.input if name} - data)
    constant = onnx.ModelProto()
    constant.CopyFrom(model)
    del constant.graph.node[:], constant.graph.input[:], constant.graph.output[:]
    constant.graph.node.extend(node for node in model.graph.node if not data.intersection(node.output))
    constant.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    with np.errstate(all="ignore"):
        values = onnx.reference.ReferenceEvaluator(constant).run(names, {}) if names else []
    return [name for name, value in zip(names, values, strict=True) if not np.isfinite(value).all()]


class RefusedError(Exception):
    """The runtime refuses a model that it ought to run."""


def invalidity(original: onnx.ModelProto, result: onnx.ModelProto) -> str:
    """Why `result` is no valid model that can stand in for `original`; empty when it is."""
    try:
        onnx.checker.check_model(result, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return f"the checker refuses it: {error}"
    if _types(original.graph.output) != _types(result.graph.output):
        return "its outputs have other names or types"
    wanted = _data(original)
    return "" if wanted == _data(result) else "its inputs have other names or types"


def _types(values: Any) -> dict[str, int]:
    return {value.name: value.type.tensor_type.elem_type for value in values}


def _data(model: onnx.ModelProto) -> dict[str, int]:
    held = {tensor.name for tensor in model.graph.initializer}
    return {name: kind for name, kind in _types(model.graph.input).items() if name not in held}


def _feeds(case: Case, original: onnx.ModelProto, result: onnx.ModelProto) -> list[dict[str, Array]]:
    """Seeded data at two batch sizes; and with every parameter that a caller may still override, overridden."""
    inputs = {value.name: value.type.tensor_type for value in original.graph.input}
    plain = [{n: _draw(inputs[n], batch, case.amplitude) for n in case.data} for batch in BATCHES]
    defaults = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in original.graph.initializer}
    still = [value.name for value in result.graph.input if value.name in defaults and value.name in inputs]
    return [*plain, *([plain[0] | {name: defaults[name] * 2 for name in still}] if still else [])]


def _draw(kind: onnx.TypeProto.Tensor, batch: int, amplitude: float) -> Array:
    shape = [dim.dim_value or batch for dim in kind.shape.dim]
    numbers = amplitude * np.random.default_rng(batch).standard_normal(shape)
    return np.asarray(numbers, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))


def _run(original: onnx.ModelProto, result: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs of `result`; by the float64 evaluator where onnxruntime cannot run the original either."""
    try:
        return by_onnxruntime(result, feeds)
    except RefusedError as refused:
        try:
            by_onnxruntime(original, feeds)
        except RefusedError:
            return _in_double(result, feeds)
        raise refused


def by_onnxruntime(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs of a model on the CPU without onnxruntime's optimiser; raises RefusedError where it refuses."""
    import onnxruntime as ort  # type: ignore[import-untyped]  # noqa: PLC0415

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    names = [value.name for value in model.graph.output]
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))
    except Exception as error:  # onnxruntime's errors have no common base of their own
        raise RefusedError(f"onnxruntime refuses it: {error}") from error


def _in_double(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    try:
        return evaluate(in_float64(model), feeds)
    except BnfoldError as error:
        raise RefusedError(f"the float64 evaluator refuses it: {error}") from error


def _error(truth: Array, outcome: Array) -> float:
    """The largest error relative to the largest true element; infinite where the shape or the kind differs."""
    if truth.shape != outcome.shape:
        return np.inf
    with np.errstate(all="ignore"):
        difference = np.abs(outcome.astype(np.float64) - truth).max() / np.abs(truth).max()
    return float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf))
