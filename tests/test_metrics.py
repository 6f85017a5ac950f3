"""Decisions of two models: what rounding may change is counted, and anything else fails."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_models import PARAMETERS, STATS, parse

import bnfold
from bnfold.agreement import Agreement, Count
from bnfold.checking import prepare_check
from bnfold.data import read_inputs
from bnfold.data_sources import as_source
from bnfold.errors import MachineError, UsageError, VerificationError
from bnfold.metrics import Metric, choose_metric, measure
from bnfold.verification import Verification
from bnfold.wishes import Where, Wishes

U = 2.0**-24


def pair(shape: str, change: np.ndarray) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The data as the output, and the data with `change` added to it."""
    text = f"(float[{shape}] x) => (float[{shape}] y)"
    sizes = ",".join(map(str, change.shape))
    before = parse(f"{text} {{ y = Identity(x) }}")
    return before, parse(f"{text} <float[{sizes}] change> {{ y = Add(x, change) }}", values={"change": change})


def agree(kind: str, data: np.ndarray, change: np.ndarray) -> Agreement:
    shape = ",".join(["N", *map(str, data.shape[1:])])
    before, after = pair(shape, np.asarray(change, np.float32))
    source = as_source([{"x": np.asarray(data, np.float32)}], read_inputs(before))
    return measure(Metric(kind, "y"), before, after, provider="cpu", data=source, fixed={})


def test_the_same_class_in_every_sample_passes() -> None:
    found = agree("top1", np.random.default_rng(0).standard_normal((20, 5)), np.zeros((20, 5)))
    assert (found.count.decisions, found.count.same, found.count.different, found.samples) == (20, 20, 0, 20)
    assert found.proves
    assert not found.failed


def test_a_class_that_leads_by_more_than_rounding_may_not_change() -> None:
    scores, change = np.eye(4), np.zeros((4, 4))
    change[2, 1] = 1.5
    found = agree("top1", scores, change)
    assert found.failed
    assert found.count == Count(4, 3, 4, 1, "sample 2: class 2 became 1")
    assert (
        str(found) == "3 of 4 classes of y are the same (75.00%), 1 beyond it (sample 2: class 2 became 1); 4 samples"
    )


@pytest.mark.parametrize(("lead", "fails"), [(100 * U, False), (600 * U, True)])
def test_two_classes_that_are_almost_equal_may_change_places(lead: float, fails: bool) -> None:
    # An input moved by 64 roundings moves the scores by 64 u, so 2 * 2 * 64 u are granted to the lead.
    scores, change = np.array([[1.0, 1 - lead, 0.1]]), np.array([[0.0, 2 * lead, 0.0]])
    found = agree("top1", scores, change)
    assert found.count.same == 0
    assert found.failed == fails
    assert ("within rounding" in str(found)) != fails


THROUGH = {
    "float32": "(float[N,3] x) => (float[N,3] y) <float[1,3] k> { y = Add(x, k) }",
    "float16": """(float[N,3] x) => (float[N,3] y) <float16[1,3] k>
        { h = Cast <to=10> (x) s = Add(h, k) y = Cast <to=1> (s) }""",
}


@pytest.mark.parametrize(
    ("before", "after", "lead", "fails"),
    [
        ("float32", "float32", 0.01, True),
        ("float16", "float16", 0.01, False),
        ("float16", "float16", 0.2, True),
        ("float32", "float16", 0.01, False),
        ("float16", "float32", 0.01, False),
        ("float32", "float16", 0.2, True),
    ],
)
def test_scores_that_come_through_float16_are_as_exact_as_float16(
    before: str, after: str, lead: float, fails: bool
) -> None:
    models = [
        parse(THROUGH[kind], values={"k": np.array([[0, by, 0]])}) for kind, by in ((before, 0.0), (after, 2 * lead))
    ]
    source = as_source([{"x": np.array([[1, 1 - lead, 0.1]], np.float32)}], read_inputs(models[0]))
    found = measure(Metric("top1", "y"), models[0], models[1], provider="cpu", data=source, fixed={})
    assert found.count.same == 0
    assert found.failed is fails


def test_a_third_class_out_of_the_blue_fails_even_where_the_first_two_are_almost_equal() -> None:
    found = agree("top1", np.array([[1.0, 1 - 100 * U, 0.1]]), np.array([[0.0, 0.0, 5.0]]))
    assert (found.failed, found.count.clear, found.count.different) == (True, 1, 1)


def test_decisions_that_are_all_within_rounding_prove_nothing() -> None:
    found = agree("top1", np.ones((3, 4)), np.zeros((3, 4)))
    assert not found.proves
    assert not found.failed


def test_a_score_that_became_nan_is_another_decision() -> None:
    change = np.zeros((2, 3))
    change[1, 2] = np.nan
    assert agree("top1", np.array([[3.0, 1, 0], [3.0, 1, 0]]), change).failed


@pytest.mark.parametrize(
    ("shape", "decisions"), [((2, 5), 2), ((2, 5, 1, 1), 2), ((2, 7, 5), 14)], ids=["flat", "pooled", "sequence"]
)
def test_classes_are_on_the_last_axis_or_on_axis_1_with_nothing_behind_it(
    shape: tuple[int, ...], decisions: int
) -> None:
    data = np.random.default_rng(0).standard_normal(shape)
    assert agree("top1", data, np.zeros(shape)).count.decisions == decisions


def test_a_mask_is_compared_pixel_by_pixel() -> None:
    data, change = np.random.default_rng(0).standard_normal((2, 3, 4, 5)), np.zeros((2, 3, 4, 5))
    same = agree("mask", data, change)
    assert (same.count.decisions, same.count.same, same.failed) == (40, 40, False)
    old = int(data[1, :, 2, 3].argmax())
    new = (old + 1) % 3
    change[1, new, 2, 3] = 10
    found = agree("mask", data, change)
    assert (found.count.same, found.count.different) == (39, 1)
    assert found.count.first == f"sample 1: class {old} became {new} at 2, 3"


@pytest.mark.parametrize(
    ("kind", "shape"), [("top1", (4,)), ("top1", (2, 1)), ("mask", (2, 3)), ("mask", (2, 1, 4, 4))]
)
def test_an_output_of_another_shape_is_refused(kind: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=f"is none for {kind}"):
        agree(kind, np.ones(shape), np.zeros(shape))


@pytest.mark.parametrize("kind", ["top1", "mask"])
def test_what_is_refused_says_what_would_do(kind: str) -> None:
    with pytest.raises(UsageError) as caught:
        agree(kind, np.ones((2, 1)), np.zeros((2, 1)))
    form = {"top1": "(samples, classes)", "mask": "(samples, classes, height, width)"}[kind]
    assert str(caught.value) == f"y: an output of shape (2, 1) is none for {kind}; {form} is one"


@pytest.mark.parametrize("shape", [(2, 2), (2, 2, 1)])
def test_two_classes_are_enough(shape: tuple[int, ...]) -> None:
    data = np.arange(4.0).reshape(shape)
    assert agree("top1", data, np.zeros(shape)).count == Count(2, 2, 2)


def test_a_mask_needs_one_axis_of_pixels() -> None:
    data = np.random.default_rng(0).standard_normal((2, 3, 4))
    assert agree("mask", data, np.zeros((2, 3, 4))).count.decisions == 8


def test_classes_lie_on_the_last_axis_where_only_some_of_what_is_behind_has_one_entry() -> None:
    data = np.random.default_rng(0).standard_normal((2, 3, 1, 5))
    assert agree("top1", data, np.zeros((2, 3, 1, 5))).count.decisions == 6


def test_the_place_is_named_where_there_are_several() -> None:
    data, change = np.zeros((2, 3, 2)), np.zeros((2, 3, 2))
    data[..., 0], change[1, 2, 1] = 1, 5
    assert agree("top1", data, change).count.first == "sample 1: class 0 became 1 at 2"


def test_outputs_of_other_shapes_are_one_decision_that_differs() -> None:
    before = parse("(float[N,4] x) => (float[A,B] y) { y = Identity(x) }")
    after = parse("(float[N,4] x) => (float[A,B] y) { y = Concat <axis=1> (x, x) }")
    data = [{"x": np.eye(4, dtype=np.float32)[:2]}, {"x": np.eye(4, dtype=np.float32)}]
    source = as_source(data, read_inputs(before))
    found = measure(Metric("top1", "y"), before, after, provider="cpu", data=source, fixed={})
    assert found.count == Count(2, 0, 2, 2, "sample 0: the shape of y differs")
    assert (found.samples, found.failed) == (6, True)


@pytest.mark.parametrize(("kind", "number"), [("float", 1), ("float16", 10), ("double", 11), ("bfloat16", 16)])
def test_every_floating_point_output_can_have_a_metric(kind: str, number: int) -> None:
    model = parse(f"({kind}[N,4] x) => ({kind}[N,4] y) {{ y = Identity(x) }}")
    assert model.graph.output[0].type.tensor_type.elem_type == number
    assert choose_metric("top1", None, model) == Metric("top1", "y")


def test_an_output_that_became_whole_numbers_is_counted_and_no_crash() -> None:
    head = "(float[N,4] x, int64[N,4] k) =>"
    before = parse(f"{head} (float[N,4] y) {{ y = Identity(x) }}")
    after = parse(f"{head} (int64[N,4] y) {{ y = Identity(k) }}")
    data = [{"x": np.eye(4, dtype=np.float32), "k": np.eye(4, dtype=np.int64)}]
    source = as_source(data, read_inputs(before))
    found = measure(Metric("top1", "y"), before, after, provider="cpu", data=source, fixed={})
    assert found.count == Count(4, 4, 4)


def test_progress_tells_where_it_is() -> None:
    before, after = pair("N,4", np.zeros((1, 4)))
    source = as_source([{"x": np.eye(4, dtype=np.float32)}] * 2, read_inputs(before))
    told: list[str] = []
    measure(Metric("top1", "y"), before, after, provider="cpu", data=source, fixed={}, progress=told.append)
    assert told == ["counting decisions from sample 0 on", "counting decisions from sample 4 on"]


@pytest.mark.parametrize(("lead", "clear"), [(0.99, 0), (1.01, 1)])
def test_rounding_may_move_both_of_two_scores(lead: float, clear: int) -> None:
    """64 roundings of the input move a score of 1 by 64 u; twice that is granted to each of the two classes."""
    scores = np.array([[1.0, 1 - lead * 2 * 2 * 64 * U, 0.1, 0]])
    assert agree("top1", scores, np.zeros((1, 4))).count.clear == clear


@pytest.mark.parametrize(("lead", "clear"), [(0.99, 0), (1.01, 1)])
def test_what_the_input_does_not_move_is_granted_roundings_of_the_largest_score(lead: float, clear: int) -> None:
    before = parse(
        "(float[N,3] x) => (float[N,3] y) <float[1,3] zero, float[1,3] k> { z = Mul(x, zero) y = Add(z, k) }",
        values={"zero": np.zeros((1, 3)), "k": np.array([[0.5, 0.5 - lead * 2 * 64 * U * 8, -8]])},
    )
    source = as_source([{"x": np.ones((1, 3), np.float32)}], read_inputs(before))
    found = measure(Metric("top1", "y"), before, before, provider="cpu", data=source, fixed={})
    assert found.count.clear == clear


def test_samples_are_numbered_through_all_batches() -> None:
    scores, change = np.eye(4, dtype=np.float32), np.array([[0.0, 0.0, 0.0, -3.0]], np.float32)
    before, after = pair("N,4", change)
    source = as_source([{"x": scores[:2]}, {"x": scores[2:]}], read_inputs(before))
    found = measure(Metric("top1", "y"), before, after, provider="cpu", data=source, fixed={})
    assert (found.samples, found.count.first) == (4, "sample 3: class 3 became 0")


TWO = "(float[N,4] x) => (float[N,4] y, int64[N,1] k) { y = Identity(x) k = ArgMax<axis=1>(x) }"


@pytest.mark.parametrize(
    ("kind", "output", "says"),
    [
        ("top5", None, "there is no metric 'top5'; choose one of top1, boxes, mask"),
        ("top1", None, "the model has several outputs; the outputs are y, k: name one"),
        ("top1", "z", "the model has no output 'z'; the outputs are y, k"),
        ("top1", "k", "k: this output holds no scores"),
    ],
)
def test_a_metric_that_cannot_be_is_one_sentence(kind: str, output: str | None, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose_metric(kind, output, parse(TWO))
    assert says in str(caught.value)


def test_the_output_is_named_or_the_only_one() -> None:
    assert choose_metric("top1", "y", parse(TWO)) == Metric("top1", "y")
    assert choose_metric("mask", None, pair("N,3", np.zeros((1, 3)))[0]) == Metric("mask", "y")


NET = f"""(float[N,3,8,8] x) => (float[N,4] y) <float[4,3,3,3] w, {PARAMETERS}>
    {{ c = Conv(x, w) b = BatchNormalization(c, {STATS}) g = GlobalAveragePool(b) y = Flatten(g) }}"""


def data(samples: int = 12) -> list[Mapping[str, np.ndarray]]:
    return [{"x": np.random.default_rng(1).standard_normal((samples, 3, 8, 8)).astype(np.float32)}]


def test_a_fold_is_judged_by_its_decisions_too() -> None:
    report = bnfold.fold(ir.from_proto(parse(NET)), data=data(), metric="top1").report
    assert report.verification is not None
    found = report.verification.quick[0].agreement
    assert found is not None
    assert (found.metric, found.output, found.samples) == ("top1", "y", 12)
    assert found.count.same == found.count.decisions == 12
    assert report.verification.passed


def test_a_metric_without_data_an_output_without_a_metric_and_either_without_a_check_are_refused() -> None:
    model = ir.from_proto(parse(NET))
    with pytest.raises(UsageError, match="--metric top1 counts decisions on your data, and there is none"):
        bnfold.fold(model, metric="top1")
    with pytest.raises(UsageError, match="no decision is asked for"):
        bnfold.verify(model, model, metric_output="y")
    with pytest.raises(UsageError, match="for the check, which is left out"):
        bnfold.fold(model, metric="top1", verify=False)
    with pytest.raises(UsageError, match="for the check, which is left out"):
        bnfold.fold(model, oracle=True, verify=False)


def test_a_decision_that_differs_fails_though_every_tensor_is_within_its_tolerance() -> None:
    """The lead is 5e-4 of the scale: beyond rounding, and within what any tensor of a fold may be off by."""
    text = "(float[N,3] x) => (float[N,3] y) <float[3] s> { y = Mul(x, s) }"
    before, after = (ir.from_proto(parse(text, values={"s": [1.0, s, 1.0]})) for s in (1.0, 1.0006))
    near = [{"x": np.array([[1.0, 0.9995, 0.2], [0.1, 0.2, 1.0]], np.float32)}]

    def checked(metric: str | None) -> Verification:
        """As of a fold, whose local test is for what is smaller."""
        check = prepare_check(before, Where(("cpu",), None, 0), near, Wishes(metric=metric), None)
        return Verification((), check.quick(before, after))

    assert checked(None).passed
    found = checked("top1")
    assert found.failed
    assert "sample 0: class 0 became 1" in found.culprit
    assert found.quick[0].first_divergence == "y"


def test_data_without_a_clear_decision_proves_nothing() -> None:
    model = ir.from_proto(pair("N,3", np.zeros((1, 3), np.float32))[0])
    found = bnfold.verify(model, model, data=[{"x": np.ones((2, 3), np.float32)}], metric="top1")
    assert (found.passed, found.failed) == (False, False)
    assert "there is no decision that is not within rounding" in found.doubt
    net = ir.from_proto(parse(NET))
    with pytest.raises(MachineError, match="no decision that is not within rounding"):
        bnfold.fold(net, data=[{"x": np.full((2, 3, 8, 8), 3e38, np.float32)}], metric="top1")


YOLO = f"""(float[N,3,8,8] x) => (float[N,7,64] y) <float[4,3,1,1] w, {PARAMETERS}, float[3,3,1,1] v, int64[3] flat,
    float[1] high, float[1] gain> {{
    c = Conv(x, w) b = BatchNormalization(c, {STATS}) r = Relu(b) boxes = Mul(r, high)
    p = Conv(x, v) q = Sigmoid(p) scores = Mul(q, gain)
    a = Concat<axis=1>(boxes, scores) y = Reshape(a, flat) }}"""


def yolo(gain: float) -> onnx.ModelProto:
    return parse(YOLO, values={"flat": np.array([0, 7, 64]), "high": [640.0], "gain": [gain]})


def test_a_yolo_output_with_all_class_scores_zeroed_is_caught() -> None:
    right, zeroed = ir.from_proto(yolo(1.0)), ir.from_proto(yolo(0.0))
    found = bnfold.verify(right, zeroed, data=data(3), metric="boxes")
    assert found.failed
    assert any(entry.failed for entry in found.quick[0].comparisons)  # one scale for each channel shows it
    assert found.quick[0].agreement is not None
    assert found.quick[0].agreement.failed  # and so do the boxes, by themselves
    assert "is gone" in found.quick[0].agreement.count.first
    same = bnfold.verify(right, right, data=data(3), metric="boxes").quick[0].agreement
    assert same is not None
    assert same.count.same == same.count.decisions > 10


def test_a_fold_whose_decisions_differ_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Agreement("top1", "y", 1, Count(1, 0, 1, 1, "sample 0: class 0 became 1"))
    monkeypatch.setattr("bnfold.checking.measure", lambda *_args, **_options: wrong)
    with pytest.raises(VerificationError, match="sample 0: class 0 became 1"):
        bnfold.fold(ir.from_proto(parse(NET)), data=data(), metric="top1")
