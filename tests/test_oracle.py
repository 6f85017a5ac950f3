"""The float64 oracle: it clears what is rounding, and nothing else, and is not believed where it is wrong."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_models import PARAMETERS, STATS, parse, proto

import bnfold
from benchmarks.right_fold_nets import Style, grown
from bnfold import verdicts
from bnfold.errors import ModelError
from bnfold.judging import ERROR_FACTOR, Errors, channel_errors, channel_scales
from bnfold.judging import judge as judge_channels
from bnfold.oracle import settle
from bnfold.quickcheck import QuickCheck, quick_check

U = 2.0**-24
TEXT = f"""(float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w, {PARAMETERS}>
    {{ c = Conv(x, w) b = BatchNormalization(c, {STATS}) y = Relu(b) }}"""


def judge(truth: np.ndarray, original: np.ndarray, folded: np.ndarray, roundoff: float) -> Errors:
    errors = (channel_errors(truth, values) for values in (original, folded))
    return judge_channels(channel_scales(truth), *errors, roundoff)


def _truth() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 4, 5))


def test_a_result_as_accurate_as_the_original_passes() -> None:
    truth = _truth()
    original = truth + 1e-7
    assert judge(truth, original, original, U).ratio <= 1 / ERROR_FACTOR
    assert judge(truth, original, truth, U).ratio == 0
    assert judge(truth, original, truth + 3.9e-7, U).ratio < 1


@pytest.mark.parametrize("channel", range(4))
def test_one_channel_that_is_less_accurate_fails(channel: int) -> None:
    truth = _truth()
    folded = truth + 1e-7
    folded[1, channel, 2] += 1e-4
    assert judge(truth, truth + 1e-7, folded, U).ratio > 1


def test_64_roundings_of_the_channels_scale_are_granted_and_no_more() -> None:
    truth = _truth()
    scale = np.abs(truth).max(axis=(0, 2), keepdims=True)
    for part, passes in ((0.99, True), (1.01, False)):
        folded = truth + part * 64 * U * scale
        assert (judge(truth, truth, folded, U).ratio <= 1) == passes


def test_a_channel_that_is_zero_in_both_models_is_right_and_one_that_should_be_is_wrong() -> None:
    truth = _truth()
    truth[:, 1] = 0
    assert judge(truth, truth, truth, U).ratio == 0
    folded = truth.copy()
    folded[0, 1, 0] = 1e-30
    assert judge(truth, truth, folded, U).ratio > 1


def test_a_channel_in_which_the_original_is_exact_by_chance_gets_the_median_channels_error() -> None:
    truth = _truth() * 1e-9
    original = truth + 1e-7
    original[:, 0] = truth[:, 0]
    assert judge(truth, original, truth + 1e-7, U).ratio <= 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_result_that_is_not_finite_never_passes(bad: float) -> None:
    truth = _truth()
    folded = truth.copy()
    folded[0, 0, 0] = bad
    assert not judge(truth, truth, folded, U).ratio <= 1
    assert not judge(truth, folded, truth, U).original < 1


def test_a_tensor_of_one_axis_or_none_is_one_channel() -> None:
    assert judge(np.ones(3), np.ones(3), np.ones(3), U).ratio == 0
    assert judge(np.ones(()), np.ones(()), 2 * np.ones(()), U).ratio > 1


def _doubtful(scale: float = 1.0) -> tuple[QuickCheck, bnfold.FoldResult, ir.Model]:
    """A check in which every tensor is said to have failed, of a fold whose weights are off by `scale`."""
    before = ir.from_proto(parse(TEXT))
    result = bnfold.fold(before, verify=False)
    value = result.model.graph.initializers["w_folded"]
    assert value.const_value is not None
    value.const_value = ir.Tensor(value.const_value.numpy() * np.float32(scale), name="w_folded")
    check = quick_check(proto(before), proto(result.model))
    outputs, inner = (
        tuple(replace(c, passed=False, error=9.0) for c in group) for group in (check.comparisons, check.inner)
    )
    return replace(check, comparisons=outputs, inner=inner, failed=True, first_divergence="b"), result, before


def test_a_right_fold_is_cleared() -> None:
    check, result, before = _doubtful()
    assert check.failed
    told: list[str] = []
    settled = settle(check, proto(before), proto(result.model), seed=0, progress=told.append)
    assert settled.passed
    assert settled.first_divergence is None
    assert told == [
        "asking the float64 oracle about 2 tensors",
        "judging every stage by itself, in float64",
    ]
    assert "2 of 2 differences are rounding, by the float64 oracle." in settled.notes


def test_a_wrong_fold_is_not() -> None:
    check, result, before = _doubtful(1.001)
    settled = settle(check, proto(before), proto(result.model), seed=0)
    assert settled.failed
    assert settled.first_divergence == "b"


def test_an_oracle_that_disagrees_with_the_original_neither_clears_nor_blames(monkeypatch: pytest.MonkeyPatch) -> None:
    check, result, before = _doubtful()
    right = verdicts.evaluate

    def wrong(*args: object) -> dict[str, np.ndarray]:
        return {name: value + 1 for name, value in right(*args).items()}  # type: ignore[arg-type]

    monkeypatch.setattr(verdicts, "evaluate", wrong)
    settled = settle(check, proto(before), proto(result.model), seed=0)
    assert not settled.passed
    assert not settled.proves
    assert not settled.failed  # nor is it the fold's fault


def test_without_an_oracle_the_check_stays_as_it_was_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    check, result, before = _doubtful()

    def refuses(*_: object) -> None:
        raise ModelError("TopK cannot be computed in float64")

    monkeypatch.setattr(verdicts, "in_float64", refuses)
    settled = settle(check, proto(before), proto(result.model), seed=0)
    assert settled.failed
    assert settled.notes[-1] == "There is no oracle for the differences: TopK cannot be computed in float64."
    assert settled.comparisons == check.comparisons


def _mean_near_zero() -> tuple[QuickCheck, onnx.ModelProto, onnx.ModelProto]:
    """Channels whose mean over a large image almost vanishes, and the model with weights rounded once more."""
    text = """(float[N,16,96,96] x) => (float[N,512,1,1] y) <float[512,16,1,1] w>
        { p = Abs(x) c = Conv(p, w) y = GlobalAveragePool(c) }"""
    weights = np.random.default_rng(1).standard_normal((512, 16, 1, 1))
    before = parse(text, values={"w": weights - weights.mean(axis=1, keepdims=True)})
    after = verdicts._rounded_again(before, 99)
    check = quick_check(before, after)
    outputs = tuple(replace(c, passed=False, error=9.0) for c in check.comparisons)
    return replace(check, comparisons=outputs, inner=(), failed=True, first_divergence="y"), before, after


def test_the_rounding_of_the_weights_that_a_mean_over_the_image_shows_is_granted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check, before, after = _mean_near_zero()
    assert settle(check, before, after, seed=0).passed
    monkeypatch.setattr(verdicts, "_rounded_again", lambda model, _seed: model)
    assert settle(check, before, after, seed=0).failed  # the rounding of the sums alone averages out


def test_weights_that_are_off_by_more_than_their_rounding_are_not() -> None:
    check, before, after = _mean_near_zero()
    (tensor,) = (t for t in after.graph.initializer if t.name == "w")
    weight = onnx.numpy_helper.to_array(tensor).copy()
    weight[3] *= 1 + 1e-4
    weight[3, 0] += 1e-4
    tensor.CopyFrom(onnx.numpy_helper.from_array(weight, "w"))
    assert settle(check, before, after, seed=0).failed


def test_a_tensor_that_is_zero_throughout_is_granted_roundings_of_numbers_of_size_1() -> None:
    zero = np.zeros((2, 4, 5))
    for part, passes in ((0.99, True), (1.01, False)):
        verdict = judge(zero, zero, zero + part * 64 * U, U)
        assert (verdict.ratio <= 1) == passes
        assert verdict.original == 0


def test_a_model_whose_output_cancels_to_zero_is_judged_and_not_a_crash() -> None:
    """The first BatchNorm's mean is its input, whatever the data; the second's constants are rounded in the fold."""
    values = {
        "gamma": [0.9, -2.8, 0.7, 1.3], "beta": [0.0] * 4, "mean": [2.65, 0.48, 1.7, 3.1], "var": [0.9, 1.2, 3.0, 0.2],
        "g": [1.6, 0.8, 1.5, 0.7], "v": [0.29, 1.7, 2.0, 0.6], "zero": [0.0] * 4, "low": [[2.65], [0.48], [1.7], [3.1]],
    }  # fmt: skip
    model = parse(
        f"(float[N,4,5] x) => (float[N,4,5] y, float[N,4,5] z) <{PARAMETERS}, float[4] g, float[4] v, float[4] zero,"
        f" float[4,1] low> {{ q = Mul(x, x) r = Neg(q) s = Relu(r) a = Add(s, low) z = Sigmoid(x)"
        f" b = BatchNormalization(a, {STATS}) y = BatchNormalization(b, g, zero, zero, v) }}",
        values=values,
    )
    report = bnfold.fold(ir.from_proto(model)).report
    assert report.verification is not None
    assert report.verification.passed


@pytest.mark.parametrize(
    ("dtype", "least", "most"),
    [("float32", 0.07, 0.1), ("float16", 0.07, 0.1), (ml_dtypes.bfloat16, 0.07, 0.1), ("float64", 1, 1)],
)
def test_weights_of_every_floating_type_are_rounded_once_more(dtype: str, least: float, most: float) -> None:
    """Every twelfth number moves by one step up or down; in float64, where the oracle rounds as well, every one."""
    values = np.random.default_rng(0).standard_normal((64, 64)).astype(dtype)
    held = [onnx.numpy_helper.from_array(array, name) for name, array in
            (("w", values), ("codes", np.ones((4, 4), np.int8)), ("one", np.ones(())))]  # fmt: skip
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], held))
    moved, *others = (onnx.numpy_helper.to_array(t) for t in verdicts._rounded_again(model, 3).graph.initializer)
    assert least <= np.mean(moved != values) <= most
    steps = np.abs(moved.astype(np.float64) - values) / np.abs(values.astype(np.float64))
    assert 0 < steps.max() <= 2 * float(ml_dtypes.finfo(values.dtype).eps)
    assert [float(other.sum()) for other in others] == [16, 1]


def test_of_a_vector_every_number_is_rounded_once_more() -> None:
    model = parse("(float[N,4] x) => (float[N,4] y) <float[4] b> { y = Add(x, b) }")
    (was,) = (onnx.numpy_helper.to_array(t) for t in model.graph.initializer)
    signs = set()
    for seed in range(8):
        (now,) = (onnx.numpy_helper.to_array(t) for t in verdicts._rounded_again(model, seed).graph.initializer)
        assert ((now == np.nextafter(was, -np.inf)) | (now == np.nextafter(was, np.inf))).all()
        signs.add(tuple(now > was))
    assert len(signs) > 1


@pytest.mark.parametrize(("steps", "right"), [(2, True), (12, False)])
def test_the_rounding_of_a_bias_is_granted_where_it_is_all_that_is_left(steps: int, right: bool) -> None:
    """A dead channel whose beta takes back the mean but for the epsilon: 1e-4 is left, and luck must not decide."""
    deviation = np.sqrt(np.float64(0.5))
    text = f"""(float[N,3,5,5] x) => (float[N,4,5,5] y) <float[4,3,1,1] w, {PARAMETERS}>
        {{ c = Conv(x, w) y = BatchNormalization <epsilon=1e-4> (c, {STATS}) }}"""
    beta = np.full(4, 1 / deviation, np.float32)
    values = {"w": np.zeros((4, 3, 1, 1)), "gamma": np.ones(4), "mean": np.ones(4), "var": np.full(4, 0.5)}
    before = parse(text, values=values | {"beta": beta})
    after = parse(text, values=values | {"beta": beta + steps * np.spacing(beta)})
    runs = [({"x": np.ones((1, 3, 5, 5), np.float32)}, False)]
    assert (verdicts.verdicts(before, after, ["y"], runs, "cpu")["y"].ratio <= 1) is right


@pytest.mark.parametrize("inside", [False, True])
def test_the_scales_of_a_resize_stay(inside: bool) -> None:
    """There is no image of 1 + 2^-23 times the size, and onnxruntime refuses to make one in the first two axes."""
    resize = 'y = Resize <mode = "nearest"> (x, roi, scales)'
    body = (
        f"y = If(p) <then_branch = t () => (float y) {{ {resize} }}, else_branch = e () => (float y) {{ y = Abs(x) }}>"
    )
    text = f"""(float[1,1,4,4] x, bool p) => (float[1,1,A,B] y) <float[4] scales, float[4] roi, float[64] w>
        {{ {body if inside else resize} }}"""
    values = {"scales": np.array([1, 1, 1.5, 2]), "roi": np.ones(4), "w": np.ones(64)}
    model = parse(text, values=values)
    for seed in range(16):
        moved = {t.name: onnx.numpy_helper.to_array(t) for t in verdicts._rounded_again(model, seed).graph.initializer}
        assert all((moved[name] == values[name]).all() for name in ("scales", "roi"))
        assert (moved["w"] != values["w"]).any() or seed


def _in_float64() -> tuple[onnx.ModelProto, ir.Model]:
    """Means of 1000 standard deviations: original and oracle lose the same three digits, and the fold other ones."""
    original = grown(Style(ratio=1000, dtype="float64", dense=True), seed=4)
    return original, bnfold.fold(ir.from_proto(original), verify=False).model


def test_a_right_fold_in_float64_is_cleared_though_the_oracle_is_no_more_accurate_than_the_models() -> None:
    original, folded = _in_float64()
    check = quick_check(original, proto(folded))
    assert check.failed  # float64 against float64 would blame it
    assert settle(check, original, proto(folded), seed=0).passed


def test_a_wrong_fold_in_float64_is_not() -> None:
    original, folded = _in_float64()
    bias = folded.graph.initializers["c1_folded"]
    assert bias.const_value is not None
    bias.const_value = ir.Tensor(bias.const_value.numpy() + 1e-9, name="c1_folded")
    assert settle(quick_check(original, proto(folded)), original, proto(folded), seed=0).failed
