"""Clip, Relu, Max and Min through ONNX: bounds move with the affine, and are written as the cheapest operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_models import NEWEST, PARAMETERS, STATS, assert_fold, ops, parse, proto, stored

import bnfold
from bnfold.decision import Reason
from bnfold.localcheck import local_check

UP, DOWN, MIXED = [1, 2, 0.5, 3], [-1, -2, -0.5, -3], [1, -2, 0.5, -3]
#: Scale and shift the same in all channels: 2 and 0.5.
EQUAL = {"gamma": 2, "beta": 0.5, "mean": 0, "var": 1}


def before(node: str, *, rank: int = 3, dtype: str = "float", more: str = "", inputs: str = "") -> str:
    """BatchNorm, `node` from b to r, and a Conv without padding."""
    image, kernel = ",8" * (rank - 2), ",2" * (rank - 2)
    parameters = PARAMETERS.replace("float", dtype)
    return f"""({dtype}[N,4{image}] x{inputs}) => ({dtype}[N,3{image.replace("8", "7")}] y)
        <{dtype}[3,4{kernel}] w, {parameters}{more}>
        {{ b = BatchNormalization <epsilon=0.0> (x, {STATS}) {node} y = Conv(r, w) }}"""


def after(node: str, *, rank: int = 3, more: str = "") -> str:
    """Conv, `node` from c to d, and a BatchNorm."""
    image, kernel = ",8" * (rank - 2), ",2" * (rank - 2)
    return f"""(float[N,3{image}] x) => (float[N,4{image.replace("8", "7")}] y)
        <float[4,3{kernel}] w, {PARAMETERS}{more}>
        {{ c = Conv(x, w) {node} y = BatchNormalization <epsilon=0.0> (d, {STATS}) }}"""


@pytest.mark.parametrize("opset", [8, 11, 17, NEWEST])
@pytest.mark.parametrize(("gamma", "kind"), [(UP, "Max"), (DOWN, "Min")])
def test_before_a_relu_a_batchnorm_vanishes_into_one_bound_for_each_channel(
    gamma: Sequence[float], kind: str, opset: int
) -> None:
    result = assert_fold(parse(before("r = Relu(b)"), opset=opset, values={"gamma": gamma}), folded=1)
    assert ops(result.model) == [kind, "Conv"]
    (decision,) = result.report.folded
    assert decision.through == ("r",)


def test_the_same_before_a_gemm() -> None:
    text = f"""(float[N,4] x) => (float[N,3] y) <float[4,3] w, {PARAMETERS}>
        {{ b = BatchNormalization(x, {STATS}) r = Relu(b) y = Gemm(r, w) }}"""
    assert ops(assert_fold(parse(text, values={"gamma": UP}), folded=1).model) == ["Max", "Gemm"]


def test_scales_of_both_signs_need_two_operators_which_cost_more() -> None:
    model = parse(before("r = Relu(b)"), values={"gamma": MIXED})
    assert_fold(model, folded=0, kept=[Reason.COSTS_MORE])
    assert ops(assert_fold(model, folded=1, reduce=True).model) == ["Max", "Min", "Conv"]


@pytest.mark.parametrize("gamma", [UP, DOWN, MIXED])
def test_in_an_image_a_relu_stays_unless_fewer_batchnorms_are_asked_for(gamma: Sequence[float]) -> None:
    model = parse(before("r = Relu(b)", rank=4), values={"gamma": gamma})
    assert_fold(model, folded=0, kept=[Reason.COSTS_MORE])
    result = assert_fold(model, folded=1, reduce=True)
    assert "BatchNormalization" not in ops(result.model)


def test_two_batchnorms_pay_for_two_operators() -> None:
    text = before("r = Clip(b, low, high)", more=", float low, float high")
    model = parse(text, values={"gamma": UP, "low": 0, "high": 6})
    assert_fold(model, folded=0, kept=[Reason.COSTS_MORE])
    disguised = text.replace(f"BatchNormalization <epsilon=0.0> (x, {STATS})", "Mul(x, m)").replace(
        "r = Clip", "q = Add(b, a) r = Clip"
    )
    disguised = disguised.replace("Clip(b,", "Clip(q,").replace("float low", "float[4,1] m, float[4,1] a, float low")
    values = {"m": np.reshape(UP, (4, 1)), "a": np.reshape(MIXED, (4, 1)), "low": 0, "high": 6}
    assert ops(assert_fold(parse(disguised, values=values), folded=1).model) == ["Max", "Min", "Conv"]


@pytest.mark.parametrize("rank", [3, 4])
def test_behind_a_conv_that_the_runtime_merges_it_with_a_relu_stays(rank: int) -> None:
    model = parse(after("d = Relu(c)", rank=rank), values={"gamma": UP})
    assert_fold(model, folded=0, kept=[Reason.COSTS_MORE])
    result = assert_fold(model, folded=1, reduce=True)
    assert ops(result.model) == ["Conv", "Max"]


def test_a_relu_is_not_made_dearer_where_another_way_costs_nothing() -> None:
    text = f"""(float[N,3,8] x) => (float[N,4,7] y) <float[4,3,2] v, float[4,3,2] w, {PARAMETERS}>
        {{ c = Conv(x, v) a = Sigmoid(c) n = Neg(a) p = Relu(n) e = Conv(x, w) d = Add(p, e)
           y = BatchNormalization(d, {STATS}) }}"""
    assert_fold(parse(text, values={"gamma": UP}), folded=0, kept=[Reason.OPERATOR_IS_NOT_LINEAR])
    model = parse(text.replace("Sigmoid(c)", "Identity(c)"), values={"gamma": UP})
    assert "Max" not in ops(assert_fold(model, folded=1).model)


#: By operator sets: Clip with bounds of both sides and of one.
_AS_ATTRIBUTES = ("r = Clip <min=-0.5, max=1.5> (b)", "r = Clip <min=-0.5> (b)", "r = Clip <max=1.5> (b)")
_AS_INPUTS = ("r = Clip(b, low, high)", "r = Clip(b, low)", 'r = Clip(b, "", high)')


@pytest.mark.parametrize("gamma", [2, -2])
@pytest.mark.parametrize(
    ("node", "opset"),
    [*((n, o) for n in _AS_ATTRIBUTES for o in (7, 10)), *((n, o) for n in _AS_INPUTS for o in (11, NEWEST))],
)
def test_bounds_that_are_equal_for_all_channels_stay_a_clip(node: str, opset: int, gamma: int) -> None:
    more = ", float low, float high" if opset > 10 else ""
    values = EQUAL | {"gamma": gamma} | ({"low": -0.5, "high": 1.5} if more else {})
    model = parse(before(node, rank=4, more=more), opset=opset, values=values)
    result = assert_fold(model, folded=1)
    assert ops(result.model) == ["Clip", "Conv"]
    low, high = clip_of(proto(result.model))
    sides = [
        v for v, given in ((-0.5, "low" in node or "min" in node), (1.5, "high" in node or "max" in node)) if given
    ]
    assert sorted([(v - 0.5) / gamma for v in sides]) == [v for v in (low, high) if v is not None]


def clip_of(model: onnx.ModelProto) -> tuple[float | None, float | None]:
    """The bounds of the one Clip."""
    node = next(n for n in model.graph.node if n.op_type == "Clip")
    attributes = {a.name: a.f for a in node.attribute}
    inputs = dict(zip(("min", "max"), node.input[1:], strict=False))
    tensors = {t.name: float(onnx.numpy_helper.to_array(t)) for t in model.graph.initializer if not t.dims}
    found = {**attributes, **{name: tensors[value] for name, value in inputs.items() if value}}
    return found.get("min"), found.get("max")


@pytest.mark.parametrize("opset", [7, 10, 11, NEWEST])
def test_a_relu_with_one_bound_for_all_channels_becomes_a_clip(opset: int) -> None:
    result = assert_fold(parse(before("r = Relu(b)", rank=4), opset=opset, values=EQUAL), folded=1)
    assert ops(result.model) == ["Clip", "Conv"]
    assert clip_of(proto(result.model)) == (-0.25, None)


def test_before_max_broadcasts_a_relu_holds_no_bounds() -> None:
    model = parse(before("r = Relu(b)"), opset=7, values={"gamma": UP})
    assert_fold(model, folded=0, kept=[Reason.SHIFT_MEETS_ACTIVATION], reduce=False)


@pytest.mark.parametrize("dtype", ["float16", "double"])
@pytest.mark.parametrize("opset", [10, NEWEST])
def test_a_bound_has_the_dtype_of_the_model(dtype: str, opset: int) -> None:
    for values, expected in (({"gamma": UP, "mean": 0.5}, "Max"), (EQUAL, "Max" if opset == 10 else "Clip")):
        model = parse(before("r = Relu(b)", dtype=dtype), opset=opset, values=values)
        result = assert_fold(model, folded=1, runs=dtype != "double")
        assert ops(result.model) == [expected, "Conv"]
        bound = next(n for n in result.model.graph if n.op_type == expected).inputs[1]
        assert bound is not None
        assert bound.dtype == {"float16": ir.DataType.FLOAT16, "double": ir.DataType.DOUBLE}[dtype]


def test_a_bound_that_float16_cannot_hold_is_refused() -> None:
    text = before("r = Relu(b)", dtype="float16")
    for beta, reason in ((1000, None), (-30000, Reason.ACTIVATIONS_MIGHT_OVERFLOW)):
        values = {"gamma": [1, 1, 0.02, 1], "beta": [0, 0, beta / 50, 0], "mean": 0, "var": 1}
        model = parse(text, values=values)
        assert_fold(model, folded=int(reason is None), kept=[reason] if reason else [], runs=False)
    values = {"gamma": [1, 1, 0.001, 1], "beta": [0, 0, 100, 0], "mean": 0, "var": 1}
    assert_fold(parse(text, values=values), folded=0, kept=[Reason.OVERFLOWS_DTYPE], runs=False)


@pytest.mark.parametrize("kind", ["Max", "Min"])
@pytest.mark.parametrize("node", ["r = KIND(b, k)", "r = KIND(k, b)", "r = KIND(k, b, k2)"])
def test_max_and_min_with_constants_are_clamps(node: str, kind: str) -> None:
    text = before(node.replace("KIND", kind), rank=4, more=", float[4,1,1] k" + ", float k2" * ("k2" in node))
    other = {"Max": "Min", "Min": "Max"}[kind]
    for gamma, expected in ((UP, kind), (DOWN, other)):
        assert ops(assert_fold(parse(text, values={"gamma": gamma}), folded=1).model) == [expected, "Conv"]
    assert_fold(parse(text, values={"gamma": MIXED}), folded=0, kept=[Reason.COSTS_MORE])


def test_a_bound_for_each_place_moves_with_the_affine() -> None:
    text = before("r = Max(b, k)", rank=4, more=", float[4,8,8] k")
    assert ops(assert_fold(parse(text, values={"gamma": UP}), folded=1).model) == ["Max", "Conv"]


def test_a_dead_channel_is_the_clamped_shift() -> None:
    values = {"gamma": [1, 0, 2, 0], "beta": [0.5, -1, 0.25, 3]}
    result = assert_fold(parse(before("r = Relu(b)"), values=values), folded=1)
    assert ops(result.model) == ["Max", "Conv"]
    assert np.isfinite(np.concatenate([t.const_value.numpy().ravel() for t in initializers(result.model)])).all()


def initializers(model: ir.Model) -> list[Any]:
    return list(model.graph.initializers.values())


def test_an_infinite_bound_is_none() -> None:
    text = before("r = Clip(b, low, high)", rank=4, more=", float low, float high")
    for high in (np.inf, float(np.finfo(np.float32).max)):
        result = assert_fold(parse(text, values=EQUAL | {"low": 0, "high": high}), folded=1)
        assert clip_of(proto(result.model)) == (-0.25, None)


def test_a_bound_that_another_node_reads_is_never_written() -> None:
    text = f"""(float[N,4,8,8] x) => (float[N,3,7,7] y, float[N,4,8,8] z) <float[3,4,2,2] w, {PARAMETERS}, float low>
        {{ b = BatchNormalization <epsilon=0.0> (x, {STATS}) r = Clip(b, low) y = Conv(r, w) z = Add(x, low) }}"""
    result = assert_fold(parse(text, values=EQUAL | {"low": 0.25}), folded=1)
    assert stored(result.model, "low") == 0.25
    assert clip_of(proto(result.model)) == (-0.125, None)
    two = text.replace("z = Add(x, low)", "q = Clip(x, low) z = Neg(q)")
    assert stored(assert_fold(parse(two, values=EQUAL | {"low": 0.25}), folded=1).model, "low") == 0.25


def test_bounds_that_a_run_decides_and_bounds_that_cross_are_barriers() -> None:
    node = "r = Clip(b, low, high)"
    fed = parse(before(node, rank=4, inputs=", float low", more=", float high"), values=EQUAL | {"high": 6})
    assert_fold(fed, {"x": np.ones((2, 4, 8, 8), np.float32), "low": np.zeros((), np.float32)}, folded=0,
                kept=[Reason.OPERATOR_IS_NOT_LINEAR])  # fmt: skip
    crossing = parse(before(node, rank=4, more=", float low, float high"), values=EQUAL | {"low": 1, "high": 0.5})
    (kept,) = bnfold.inspect(ir.from_proto(crossing)).kept
    assert kept.refusals[-1].reason is Reason.OPERATOR_HAS_NO_RULE
    pair = parse(before("r = Max(b, x)", rank=4), values=EQUAL)
    assert_fold(pair, folded=0, kept=[Reason.OPERATOR_HAS_NO_RULE])


def test_a_bound_that_the_caller_may_override_stays_on_request() -> None:
    text = before("r = Clip(b, low, high)", rank=4, more=", float low, float high")
    model = parse(text, opset=11, ir_version=3, values=EQUAL | {"low": 0, "high": 6})
    assert_fold(model, folded=1)
    keep = bnfold.inspect(ir.from_proto(model), keep_overridable=True).kept
    assert keep[0].refusals[0].reason is Reason.PARAMETER_IS_OVERRIDABLE


def test_a_clamp_whose_output_the_caller_gets_stays() -> None:
    text = before("r = Relu(b)").replace("float[N,3,7] y", "float[N,3,7] y, float[N,4,8] r")
    assert_fold(parse(text, values={"gamma": UP}), folded=0, kept=[Reason.IS_MODEL_OUTPUT])


def test_a_wrong_bound_fails_the_local_test() -> None:
    for kind, gamma in (("Max", UP), ("Min", DOWN)):
        model = ir.from_proto(parse(before("r = Relu(b)"), values={"gamma": gamma}))
        result = bnfold.fold(model)
        assert all(check.passed for check in checked(model, result.model))
        bound = next(n for n in result.model.graph if n.op_type == kind).inputs[1]
        assert bound is not None
        assert bound.const_value is not None
        wrong = bound.const_value.numpy().copy()
        wrong[1] += 1e-3 * np.abs(wrong).max()
        bound.const_value = ir.Tensor(wrong, name=bound.name)
        assert all(check.failed for check in checked(model, result.model))


def checked(model: ir.Model, folded: ir.Model) -> list[Any]:
    """The local test of the fold of `model` on another result."""
    from bnfold.folding import plan  # noqa: PLC0415
    from bnfold.frontends.onnx_graph import OnnxGraph  # noqa: PLC0415

    graph = OnnxGraph(model)
    return list(local_check(model, folded, plan(graph), graph.spans()))


def test_relu6_networks_fold_as_before() -> None:
    text = f"""(float[N,3,8,8] x) => (float[N,3,6,6] y) <float[4,3,1,1] v, float[4,1,3,3] d, float[3,4,1,1] w,
        {PARAMETERS}, float[4] gamma2, float[4] beta2, float[4] mean2, float[4] var2, float low, float high>
        {{ a = Conv(x, v) b = BatchNormalization(a, {STATS}) c = Clip(b, low, high) e = Conv <group=4> (c, d)
           f = BatchNormalization(e, gamma2, beta2, mean2, var2) g = Clip(f, low, high) y = Conv(g, w) }}"""
    result = assert_fold(parse(text, values={"low": 0, "high": 6}), folded=2)
    assert ops(result.model) == ["Conv", "Clip", "Conv", "Clip", "Conv"]
