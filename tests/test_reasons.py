"""One model for each reason: every reason can be met, and none is without a test."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_models import PARAMETERS, STATS, parse, reasons

import bnfold
from bnfold.decision import REMEDIES, Kept, Reason, Reduced

WEIGHT = "float[4,3,3,3] w"


def _pull(nodes: str, more: str = "", inputs: str = "", outputs: str = "") -> str:
    """Conv -> `nodes` from c to d -> BatchNorm."""
    return f"""(float[N,3,8,8] x{inputs}) => (float[A,B,C,D] y{outputs}) <{WEIGHT}, {PARAMETERS}{more}>
        {{ c = Conv(x, w) {nodes or "d = Identity(c)"} y = BatchNormalization(d, {STATS}) }}"""


def _push(nodes: str, more: str = "", conv: str = "Conv(d, w)", image: str = "8,8") -> str:
    """BatchNorm on the input -> `nodes` from c to d -> Conv."""
    return f"""(float[N,4,{image}] x) => (float[A,B,C,D] y) <float[5,4,2,2] w, {PARAMETERS}{more}>
        {{ c = BatchNormalization(x, {STATS}) {nodes or "d = Identity(c)"} y = {conv} }}"""


def _function() -> str:
    """One that nothing calls."""
    return """<domain: "local", opset_import: ["" : 17]>
        block (x, g, b, m, v) => (y) { y = BatchNormalization(x, g, b, m, v) }"""


_IF = f"""(float[N,3,8,8] x, bool q) => (float[N,4,6,6] y, float[N,4,6,6] z) <{WEIGHT}, {PARAMETERS}>
    {{ c = Conv(x, w) OUTER z = If (q) <then_branch = g () => (float[N,4,6,6] t) {{ INNER }},
                                        else_branch = h () => (float[N,4,6,6] u) {{ u = Relu(c) }}> }}"""

_DISAGREE = f"""(float[N,3,8,8] x) => (float[A,B,C,D] y) <{WEIGHT}, {PARAMETERS.replace("[4]", "[8]")}>
    {{ c = Conv(x, w) d = Concat <axis=1> (c, c) y = BatchNormalization(d, {STATS}) }}"""

_TWELVE = PARAMETERS.replace("[4]", "[12]")
_COSTS = f"""(float[N,7] x) => (float[N,12] y) <float[7,4] u, float[7,4] v, float[7,4] w, {_TWELVE}>
    {{ a = MatMul(x, u) b = MatMul(x, v) c = MatMul(x, w) d = Concat <axis=1> (a, b, c)
       y = BatchNormalization(d, {STATS}) }}"""

_HALF = f"""(float16[N,3,8,8] x) => (float16[A,B,C,D] y) <float16[4,3,3,3] w, {PARAMETERS.replace("float", "float16")}>
    {{ c = Conv(x, w) d = AveragePool <kernel_shape=[2,2]> (c) y = BatchNormalization(d, {STATS}) }}"""

_QUANTISED = f"""(float[N,3,8,8] x) => (float[A,B,C,D] y) <int8[4,3,3,3] q, float s, {PARAMETERS}>
    {{ w = DequantizeLinear(q, s) c = Conv(x, w) y = BatchNormalization(c, {STATS}) }}"""

_BIASED = _QUANTISED.replace("float s,", "float s, int8[4] k, float j,").replace(
    "c = Conv(x, w)", "b = DequantizeLinear(k, j) c = Conv(x, w, b)"
)

_INTEGERS = f"""(uint8[N,3,8,8] x) => (float[A,B,C,D] y) <int8[4,3,3,3] q, float s, uint8 a, int8 z, {PARAMETERS}>
    {{ i = QLinearConv(x, s, a, q, s, z, s, a) c = DequantizeLinear(i, s, a) y = BatchNormalization(c, {STATS}) }}"""

#: Codes that take the whole range in every channel.
_WHOLE = np.resize([-128, 127], (4, 3, 3, 3))

_ALONE = f"(float[N,4,8] x) => (float[N,4,8] y) <{PARAMETERS}> {{ y = BatchNormalization(x, {STATS}) }}"

#: A sum of fifty activations, none of which takes the shift.
_LONG = " ".join(
    (
        "s0 = LeakyRelu(c)",
        *(f"r{i} = LeakyRelu(c)" for i in range(1, 50)),
        *(f"s{i} = Add(s{i - 1}, r{i})" for i in range(1, 50)),
        "d = Identity(s49)",
    )
)

#: By reason: the model's text, and what makes it meet the reason (values, opset, functions) or not.
ROWS: dict[Reason, tuple[str, dict[str, object]]] = {
    Reason.NORMALISES_BY_BATCH_STATISTICS: (
        _pull("").replace("BatchNormalization(", "BatchNormalization <training_mode=1> ("),
        {},
    ),
    Reason.PARAMETERS_NOT_CONSTANT: (_pull("").replace("(d, gamma", "(d, g").replace("x)", "x, float[4] g)", 1), {}),
    Reason.PARAMETER_IS_OVERRIDABLE: (_pull(""), {"opset": 8, "keep_overridable": True}),
    Reason.STATISTICS_NOT_FINITE: (_pull(""), {"var": -1}),
    Reason.PARAMETERS_MISMATCHED: (_pull("").replace("[4] var", "[5] var"), {}),
    Reason.NORMALISES_PER_ELEMENT: (
        _pull("").replace("BatchNormalization(", "BatchNormalization <spatial=0> ("),
        {"opset": 7},
    ),
    Reason.EXCLUDED_BY_CALLER: (_pull(""), {"keep": "y"}),
    Reason.INSIDE_FUNCTION: (_ALONE, {"functions": _function(), "domains": ["local"]}),
    Reason.READS_MODEL_INPUT: (_ALONE, {}),
    Reason.IS_CONSTANT: (_ALONE.replace("(x, gamma", "(k, gamma").replace("<float", "<float[2,4,8] k, float", 1), {}),
    Reason.IS_MODEL_OUTPUT: (_ALONE, {}),
    Reason.ENTERS_BODY: (
        _IF.replace("INNER", f"t = BatchNormalization(c, {STATS})").replace("OUTER", "y = Relu(c)"),
        {},
    ),
    Reason.LEAVES_BODY: (
        _IF.replace("INNER", f"t = BatchNormalization(c, {STATS})").replace("OUTER", "y = Relu(c)"),
        {},
    ),
    Reason.OPERATOR_HOLDS_BODIES: (
        _IF.replace("z = If", "e = If")
        .replace("OUTER", "y = Relu(c)")
        .replace("INNER", "t = Neg(c)")
        .replace("}> }", f"}}> z = BatchNormalization(e, {STATS}) }}"),
        {},
    ),
    Reason.CAPTURED_BY_SUBGRAPH: (
        _IF.replace("INNER", "t = Neg(c)").replace("OUTER", f"y = BatchNormalization(c, {STATS})"),
        {},
    ),
    Reason.VALUE_HAS_OTHER_READERS: (_pull("d = Identity(c) z = Relu(c)", outputs=", float[A,B,C,D] z"), {}),
    Reason.NOTHING_READS_IT: (_pull("").replace("y = Batch", "y = Relu(d) e = Batch"), {}),
    Reason.READERS_DISAGREE: (_DISAGREE, {}),
    Reason.TOO_MANY_WAYS: (_pull(_LONG), {}),
    Reason.OPERATOR_IS_NOT_LINEAR: (_pull("d = Sigmoid(c)"), {}),
    Reason.OPERATOR_HAS_NO_RULE: (_pull("d = CumSum(c, two)", ", int32 two"), {"two": 2}),
    Reason.OPERATOR_IS_UNKNOWN: (_pull("d = strange.Thing(c)"), {"domains": ["strange"]}),
    Reason.WEIGHTS_NOT_CONSTANT: (
        _pull("").replace("Conv(x, w)", "Conv(x, z)").replace("x)", "x, float[4,3,3,3] z)", 1),
        {},
    ),
    Reason.WEIGHTS_ARE_QUANTISED: (_BIASED, {"s": 0.1, "j": 0.1}),
    Reason.QUANTISATION_IS_TOO_COARSE: (_QUANTISED, {"s": 0.1, "opset": 11}),
    Reason.SIGN_DOES_NOT_FIT_INTEGERS: (_QUANTISED, {"s": 0.1, "q": _WHOLE, "gamma": [1, -1, 1, 1]}),
    Reason.BIAS_STEP_NOT_KNOWN: (_BIASED.replace("int8[4]", "int32[4]"), {"s": 0.1, "j": 0.01}),
    Reason.QUANTISED_BIAS_OVERFLOWS: (
        _BIASED.replace("int8[4]", "int32[4]")
        .replace("(x, w", "(d, w")
        .replace("{", "{ i = QuantizeLinear(x, s) d = DequantizeLinear(i, s)"),
        {"s": 0.1, "j": 0.01, "beta": 1e9},
    ),
    Reason.ROUNDED_TO_A_GRID: (_pull("i = QuantizeLinear(c, s) d = DequantizeLinear(i, s)", ", float s"), {"s": 0.1}),
    Reason.COMPUTES_IN_INTEGERS: (_INTEGERS, {"s": 0.1}),
    Reason.OPERATOR_MIXES_CHANNELS: (_pull("d = ReduceMean <axes=[1]> (c)").replace("[4]", "[1]"), {}),
    Reason.AXIS_NOT_PROVEN: (_pull("d = Reshape(c, r)", inputs=", int64[4] r"), {}),
    Reason.SHIFT_MEETS_PADDING: (_push("", conv="Conv <pads=[1,1,1,1]> (d, w)"), {}),
    Reason.SHIFT_MEETS_ACTIVATION: (_pull("d = LeakyRelu(c)"), {"gamma": 1}),
    Reason.SCALE_IS_ON_ONE_OPERAND: (_push("d = Add(c, z)").replace("x)", "x, float[N,4,8,8] z)", 1), {}),
    Reason.SHIFT_MEETS_PRODUCT: (_pull("d = Mul(c, p)", ", float[6,6] p"), {}),
    Reason.SCALE_IS_NOT_POSITIVE: (_pull("d = MaxPool <kernel_shape=[2,2]> (c)"), {"gamma": -1}),
    Reason.SCALE_IS_ZERO: (_push("d = Add(c, p)", ", float[4,8,8] p"), {"gamma": [0, 1, 2, 3]}),
    Reason.INDICES_ARE_READ: (
        _pull("d, i = MaxPool <kernel_shape=[2,2]> (c)", outputs=", int64[A,B,C,D] i"),
        {"gamma": 1},
    ),
    Reason.CAST_NARROWS: (_pull("e = Cast <to=10> (c) d = Cast <to=1> (e)"), {}),
    Reason.OVERFLOWS_DTYPE: (_pull(""), {"gamma": 1e30, "w": 1e30}),
    Reason.UNDERFLOWS_DTYPE: (_pull(""), {"gamma": 1e-30, "w": 1e-12, "mean": 0}),
    Reason.ACTIVATIONS_MIGHT_OVERFLOW: (_HALF, {"gamma": 1000, "w": 0.01, "mean": 0}),
    Reason.ILL_CONDITIONED: (_push(""), {"mean": 100}),
    Reason.COSTS_MORE: (_COSTS, {}),
}

#: Of PyTorch alone: tests/test_torch_guards.py, tests/test_torch_observed.py.
OF_MODULES = (
    Reason.MODULE_CANNOT_HOLD_IT,
    Reason.PART_ENDS_HERE,
    Reason.ARGUMENTS_ARE_OPEN,
    Reason.NOT_REACHED,
    Reason.CODE_NOT_OBSERVED,
    Reason.CALLS_DISAGREE,
    Reason.NOT_INITIALISED,
)

_PARSING, _FOLDING = ("opset", "functions", "domains"), ("keep", "keep_overridable")


def _decided(reason: Reason) -> bnfold.Report:
    text, options = ROWS[reason]
    values = {k: v for k, v in options.items() if k not in (*_PARSING, *_FOLDING)}
    model = parse(text, values=values, **{k: v for k, v in options.items() if k in _PARSING})  # type: ignore[arg-type]
    return bnfold.inspect(ir.from_proto(model), **{k: v for k, v in options.items() if k in _FOLDING})  # type: ignore[arg-type]


def test_there_is_a_row_for_every_reason() -> None:
    assert list(ROWS) == [reason for reason in Reason if reason not in OF_MODULES]


@pytest.mark.parametrize("reason", ROWS, ids=lambda reason: reason.name)
def test_every_reason_can_be_met(reason: Reason) -> None:
    report = _decided(reason)
    assert reason in reasons(report)
    kept = next(d for d in (*report.kept, *report.reduced) if reason in [r.reason for r in d.refusals])
    refusal = next(r for r in kept.refusals if r.reason is reason)
    assert str(refusal).startswith(reason.value)
    assert len(kept.refusals) <= 2


@pytest.mark.parametrize("reason", [r for r in REMEDIES if r in ROWS], ids=lambda reason: reason.name)
def test_a_remedy_is_told_with_its_reason(reason: Reason) -> None:
    kept = Kept(_decided(reason).decisions[0].subject, (bnfold.Refusal(reason, "somewhere"),))
    assert kept.remedy == REMEDIES[reason]


def test_reasons_are_clauses_that_differ() -> None:
    assert len({reason.value for reason in Reason}) == len(list(Reason))
    assert all(reason.value[0].islower() and not reason.value.endswith(".") for reason in Reason)
    assert Reduced.__dataclass_fields__.keys() >= {"refusals", "to"}
