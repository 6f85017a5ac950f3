"""Models in ONNX's text syntax with seeded weights, and the one assertion that every fold has to pass.

`error(folded) <= 4*error(original) + 64*u*scale` per output channel, both against the original in float64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

import bnfold
from bnfold.data import read_inputs, synthesise
from bnfold.decision import Reason
from bnfold.frontends.onnx_float64 import evaluate, in_float64
from bnfold.runtime import open_session
from tests.undone import undone, whole

Array = np.ndarray[Any, Any]

#: The newest operator set that onnxruntime, which has to run the models, was built for.
NEWEST = min(onnx.defs.onnx_opset_version(), 25)

#: IR versions that go with old operator sets; newer ones go with 8.
_IR_VERSIONS = {7: 3, 8: 3, 9: 4, 10: 5, 11: 6, 12: 7}

_UNITS = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}

#: The four parameters of a BatchNorm of 4 channels, and the inputs that read them.
PARAMETERS = "float[4] gamma, float[4] beta, float[4] mean, float[4] var"
STATS = "gamma, beta, mean, var"


def parse(
    text: str,
    *,
    opset: int = 17,
    ir_version: int | None = None,
    seed: int = 0,
    functions: str = "",
    domains: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
) -> onnx.ModelProto:
    """`text` is "(inputs) => (outputs) <constants> {nodes}"; a constant without a value is filled at random.

    Args:
        text: The main graph without its name.
        opset: Version of the standard operators.
        ir_version: IR version; by default one that goes with `opset`.
        seed: Seed of the constants.
        functions: Model-local functions, in the text syntax.
        domains: Further operator domains, each at version 1.
        values: Constants by name, in place of random ones.
    """
    imports = ", ".join([f'"" : {opset}', *(f'"{domain}" : 1' for domain in domains)])
    version = ir_version or _IR_VERSIONS.get(opset, 8)
    model = onnx.parser.parse_model(f"<ir_version: {version}, opset_import: [{imports}]> main {text} {functions}")
    generator, graph = np.random.default_rng(seed), model.graph
    inner = list(graph.value_info)
    graph.ClearField("value_info")
    for info in inner:
        given = (values or {}).get(info.name)
        graph.initializer.append(_constant(info, generator) if given is None else _given(info, given))
    if version < 4:
        listed = {info.name for info in graph.input}
        graph.input.extend(_described(t) for t in graph.initializer if t.name not in listed)
    return model


def _described(tensor: onnx.TensorProto) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))


def _constant(info: onnx.ValueInfoProto, generator: np.random.Generator) -> onnx.TensorProto:
    """Variances above 0.5, gammas of both signs and away from zero, anything else normal with a small fan-in."""
    kind = info.type.tensor_type
    shape = tuple(dim.dim_value for dim in kind.shape.dim)
    drawn = generator.standard_normal(shape)
    if info.name.startswith("var"):
        drawn = 0.5 + np.abs(drawn)
    elif info.name.startswith("gamma"):
        drawn = drawn + np.where(drawn < 0, -0.3, 0.3)
    elif len(shape) > 1:
        drawn = drawn / np.sqrt(np.prod(shape[1:]))
    return _stored(np.asarray(drawn), kind.elem_type, info.name)


def _given(info: onnx.ValueInfoProto, value: Any) -> onnx.TensorProto:
    kind = info.type.tensor_type
    shape = tuple(dim.dim_value for dim in kind.shape.dim)
    return _stored(np.broadcast_to(np.asarray(value), shape), kind.elem_type, info.name)


def _stored(values: Array, kind: int, name: str) -> onnx.TensorProto:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    return onnx.numpy_helper.from_array(np.ascontiguousarray(values.astype(dtype)).reshape(values.shape), name)


def proto(model: ir.Model) -> onnx.ModelProto:
    """The model as protobuf."""
    return ir.to_proto(model)


def as_bytes(model: ir.Model) -> bytes:
    """The model as it would stand in a file."""
    return bytes(proto(model).SerializeToString(deterministic=True))


def reasons(result: bnfold.FoldResult | bnfold.Report) -> list[Reason]:
    """Every reason in the result, in order, each once per decision."""
    report = result.report if isinstance(result, bnfold.FoldResult) else result
    return [refusal.reason for left in (*report.kept, *report.reduced) for refusal in left.refusals]


def assert_fold(
    model: onnx.ModelProto,
    x: Mapping[str, Array] | None = None,
    *,
    folded: int,
    kept: Sequence[Reason] = (),
    runs: bool = True,
    **options: Any,
) -> bnfold.FoldResult:
    """Fold `model` and hold the result to every promise of an ONNX fold.

    Args:
        model: The model; not changed.
        x: Its inputs; made up where left out.
        folded: How many decisions must be `Folded`.
        kept: Reasons that the `Kept` and `Reduced` decisions must give, in any order; those not listed may be there as
            well, but only beside a listed one of the same decision; none: nothing may be left.
        runs: Whether onnxruntime has the kernels; otherwise both models are compared in float64 arithmetic.
        options: As `bnfold.fold`.
    """
    original = ir.from_proto(model)
    untouched = as_bytes(original)
    result = bnfold.fold(original, verify=runs, **options)
    assert as_bytes(original) == untouched, "the original was changed"
    _assert_decisions(result, folded, kept)
    after = proto(result.model)
    onnx.checker.check_model(after, full_check=True)
    _assert_interface(model, after)
    again = bnfold.fold(ir.from_proto(model), verify=False, manifest="apart", **options)
    if not options.get("simplify"):
        assert whole(undone(again)) == whole(model), "cannot be undone"
    assert _without_record(again.model) == _without_record(result.model), "not deterministic"
    twice = bnfold.fold(result.model, verify=False, **options)
    assert as_bytes(twice.model) == as_bytes(result.model), "not idempotent"
    assert_as_accurate(model, after, x, runs=runs)
    return result


def _without_record(model: ir.Model) -> bytes:
    """Bytes without the one entry in which a verified fold and an unverified one may differ."""
    copy = model.clone()
    copy.metadata_props.pop("bnfold.verified", None)
    return as_bytes(copy)


def _assert_decisions(result: bnfold.FoldResult, folded: int, kept: Sequence[Reason]) -> None:
    report = result.report
    told = [f"{d.subject.name}: {'; '.join(map(str, getattr(d, 'refusals', ['folded'])))}" for d in report.decisions]
    assert len(report.folded) == folded, told
    expected = Counter(kept)
    for decision in (*report.kept, *report.reduced):
        found = next((r.reason for r in decision.refusals if expected[r.reason] > 0), None)
        assert found is not None, told
        expected[found] -= 1
    assert not +expected, told


def _assert_interface(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    old, new = before.graph, after.graph
    assert [v.SerializeToString() for v in new.output] == [v.SerializeToString() for v in old.output]
    held = [{t.name for t in graph.initializer} for graph in (old, new)]
    fed = [[v.SerializeToString() for v in g.input if v.name not in h] for g, h in zip((old, new), held, strict=True)]
    assert fed[1] == fed[0]
    assert after.opset_import == before.opset_import
    assert after.ir_version == before.ir_version
    assert after.doc_string == before.doc_string
    assert {p.key: p.value for p in before.metadata_props}.items() <= {
        p.key: p.value for p in after.metadata_props
    }.items()


def assert_as_accurate(
    before: onnx.ModelProto, after: onnx.ModelProto, x: Mapping[str, Array] | None = None, *, runs: bool = True
) -> None:
    """`after` errs at most four times as much as `before`, and 64 roundings, in every channel of every output."""
    specs = read_inputs(before)
    for seed in (11, 12):
        feeds = dict(x) if x is not None else synthesise(specs, seed=seed, batch=seed - 9, spatial=32, overrides={})
        names = [value.name for value in before.graph.output]
        truth = evaluate(in_float64(before), feeds, names)
        results = [run(model, feeds, names, runs) for model in (before, after)]
        for name in names:
            assert results[1][name].dtype == results[0][name].dtype
            _assert_close(name, truth[name], results[0][name], results[1][name], _roundoff(before))


def run(model: onnx.ModelProto, feeds: Mapping[str, Array], names: list[str], runs: bool) -> Mapping[str, Array]:
    """The outputs by onnxruntime, unoptimised, or in float64 arithmetic where it has no kernel."""
    return open_session(model, "cpu").run(names, feeds) if runs else evaluate(in_float64(model), feeds, names)


def _assert_close(name: str, truth: Array, original: Array, folded: Array, roundoff: float) -> None:
    assert folded.shape == original.shape == truth.shape
    assert (np.isfinite(folded) | ~np.isfinite(truth)).all(), f"{name} is not finite where the truth is"
    axes = tuple(axis for axis in range(truth.ndim) if axis != 1)
    good = np.isfinite(truth)
    with np.errstate(all="ignore"):
        scale, was, now = (
            np.where(good, np.abs(a), 0).max(axis=axes, initial=0.0)
            for a in (truth, original.astype(np.float64) - truth, folded.astype(np.float64) - truth)
        )
    assert (now <= 4 * was + 64 * roundoff * scale).all(), f"{name}: {now.max()} against {was.max()}"


def _roundoff(model: onnx.ModelProto) -> float:
    """The coarsest of the stored floating-point types, float32 where nothing is stored."""
    kinds = {onnx.helper.tensor_dtype_to_np_dtype(t.data_type).name for t in model.graph.initializer}
    return max((_UNITS[kind] for kind in kinds if kind in _UNITS), default=_UNITS["float32"])


def stored(model: ir.Model | onnx.ModelProto, name: str) -> Array:
    """An initializer by name, in float64."""
    graph = (proto(model) if isinstance(model, ir.Model) else model).graph
    tensor = next(t for t in graph.initializer if t.name == name)
    return np.asarray(onnx.numpy_helper.to_array(tensor).astype(np.float64))


def ops(model: ir.Model) -> list[str]:
    """The operators of the main graph, in order."""
    return [node.op_type for node in model.graph]


BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
