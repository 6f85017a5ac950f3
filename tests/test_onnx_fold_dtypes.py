"""float16, bfloat16, float64: what fits is folded with one rounding, what does not is kept with its reason.

Bugs of other tools that are covered here: float16 folds that write inf (four tools, PEERS 4; pytorch#106576), float16
folds of other layers (tensorflow-onnx#1104).
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_models import BFLOAT16, PARAMETERS, STATS, assert_fold, parse, stored

import bnfold
from bnfold.decision import Reason


def _model(kind: str, nodes: str = "", **values: object) -> onnx.ModelProto:
    text = f"""({kind}[N,3,8,8] x) => ({kind}[N,4,P,Q] y) <{kind}[4,3,3,3] w, {PARAMETERS.replace("float", kind)}>
        {{ c = Conv(x, w) {nodes or f"y = BatchNormalization(c, {STATS})"} }}"""
    return parse(text, opset=22 if kind == "bfloat16" else 17, values=values)


def test_float16_is_folded_and_checked_on_the_cpu() -> None:
    result = assert_fold(_model("float16"), folded=1)
    assert result.report.verification is not None
    assert "float32 arithmetic" in " ".join(result.report.verification.quick[0].notes)


@pytest.mark.parametrize("kind", ["bfloat16", "double"])
def test_what_onnxruntime_has_no_kernel_for_is_a_provider_error_that_names_the_way_out(kind: str) -> None:
    model = ir.from_proto(_model(kind))
    with pytest.raises(bnfold.MachineError, match="--no-verify") as caught:
        bnfold.fold(model)
    assert isinstance(caught.value, bnfold.ProviderError)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("kind", ["bfloat16", "double", "float16", "float"])
def test_the_stored_number_is_the_exact_one_rounded_once(kind: str) -> None:
    model = _model(kind)
    result = assert_fold(model, folded=1, runs=False)
    dtype = {"bfloat16": BFLOAT16, "double": np.float64, "float16": np.float16, "float": np.float32}[kind]
    gamma, beta, mean, var = (stored(model, name) for name in ("gamma", "beta", "mean", "var"))
    scale = gamma / np.sqrt(var + np.float64(np.float32(1e-5)))
    weight = stored(model, "w") * scale[:, None, None, None]
    half_step = np.spacing(np.abs(stored(result.model, "w_folded")).astype(dtype)).astype(np.float64) / 2
    assert (np.abs(stored(result.model, "w_folded") - weight) <= half_step * (1 + 1e-9)).all()
    bias = stored(result.model, "w_bias_folded")
    half_step = np.spacing(np.abs(bias).astype(dtype)).astype(np.float64) / 2
    assert (np.abs(bias - (beta - mean * scale)) <= half_step * (1 + 1e-9)).all()


@pytest.mark.parametrize(("kind", "fits", "breaks"), [("float16", 6e4, 7e4), ("float", 3e38, None)])
def test_what_would_overflow_is_kept(kind: str, fits: float, breaks: float | None) -> None:
    one = {"gamma": 1, "mean": 0, "var": 1, "w": 0.01}
    for beta in (fits, -fits):
        model = _model(kind, **one, beta=[0, 0, beta, 0])
        assert len(bnfold.inspect(ir.from_proto(model)).folded) == 1
    if breaks is not None:  # beta cannot store it, but the folded bias may need it: -mean * scale
        model = _model(kind, gamma=[1, 1, 7, 1], beta=0, mean=[0, 0, 1e4, 0], var=1, w=0.01)
        assert_fold(model, folded=0, kept=[Reason.OVERFLOWS_DTYPE], runs=False)
        model = _model(kind, gamma=[1, 1, 7, 1], beta=0, mean=[0, 0, 9e3, 0], var=1, w=0.01)
        assert len(bnfold.inspect(ir.from_proto(model)).folded) == 1
    weight = _model("float", gamma=[1, 1e30, 1, 1], beta=0, mean=0, var=1, w=1e9)
    assert_fold(weight, folded=0, kept=[Reason.OVERFLOWS_DTYPE], runs=False)


def test_what_would_lose_its_bits_as_subnormals_is_kept_and_a_zero_is_not() -> None:
    # 2^10 times the smallest subnormal of float16 is 6.1e-5.
    for scale, folds in ((5e-4, True), (3e-4, False), (0, True)):
        model = _model("float16", w=0.2, gamma=[1, scale, 1, 1], beta=0, mean=0, var=1)
        kept = [] if folds else [Reason.UNDERFLOWS_DTYPE]
        assert_fold(model, folded=int(folds), kept=kept, runs=False)


def test_weights_that_were_subnormal_before_are_no_reason_to_stay() -> None:
    model = _model("float16", w=3e-6, gamma=1.5, beta=0, mean=0, var=1)
    assert_fold(model, folded=1, runs=False)


def test_float16_activations_that_a_pull_would_enlarge_are_kept() -> None:
    pooled = f"d = AveragePool <kernel_shape=[2,2]> (c) y = BatchNormalization(d, {STATS})"
    large = _model("float16", pooled, w=0.1, gamma=1500, beta=0, mean=0, var=1)
    assert_fold(large, folded=0, kept=[Reason.ACTIVATIONS_MIGHT_OVERFLOW])
    small = _model("float16", pooled, w=0.1, gamma=2, beta=0, mean=0, var=1)
    assert_fold(small, folded=1)
    direct = _model("float16", w=0.1, gamma=1500, beta=0, mean=0, var=1)
    assert_fold(direct, folded=1)
    wide = _model("float", pooled, w=0.1, gamma=1500, beta=0, mean=0, var=1)
    assert_fold(wide, folded=1)


def test_a_shift_that_cancels_is_pulled_and_not_pushed() -> None:
    pull = parse(
        f"""(float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w, {PARAMETERS}>
        {{ c = Conv(x, w) y = BatchNormalization(c, {STATS}) }}""",
        values={"mean": 30, "var": 1},
    )
    assert_fold(pull, folded=1)
    text = f"""(float[N,4,8,8] x) => (float[N,5,6,6] y) <float[5,4,3,3] w, {PARAMETERS}>
        {{ b = BatchNormalization(x, {STATS}) y = Conv(b, w) }}"""
    assert_fold(parse(text, values={"mean": [0, 7.9, 0, 0], "var": 1}), folded=1)
    assert_fold(parse(text, values={"mean": [0, 8.1, 0, 0], "var": 1}), folded=0, kept=[Reason.ILL_CONDITIONED])


def test_a_cast_behind_a_float16_conv_folds_into_float16() -> None:
    text = f"""(float16[N,3,8,8] x) => (float[N,4,6,6] y) <float16[4,3,3,3] w, {PARAMETERS}>
        {{ c = Conv(x, w) d = Cast <to=1> (c) y = BatchNormalization(d, {STATS}) }}"""
    result = assert_fold(parse(text), folded=1)
    assert result.model.graph.initializers["w_folded"].dtype == ir.DataType.FLOAT16
