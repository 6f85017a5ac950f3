"""Stage by stage: what rounding hides in a deep network is judged from the values before it, and only that."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_models import parse, proto

import bnfold
from benchmarks.right_fold_nets import Style, grown
from bnfold import verdicts
from bnfold.oracle import settle
from bnfold.quickcheck import QuickCheck, quick_check
from bnfold.staging import established, judge_stages, shared_values, staged
from bnfold.verdicts import Repeat

#: Deep networks with means of 1000 standard deviations: rounding alone moves the last tensors by hundredths of their
#: scale.
DEEP = {
    "matrices": (Style(ratio=1000, layers=(30, 30), dense=True), 1),
    "images": (Style(ratio=1000, layers=(20, 40)), 16),
}  # fmt: skip


@cache
def original(name: str) -> onnx.ModelProto:
    style, seed = DEEP[name]
    return grown(style, seed=seed)


@cache
def folded(name: str) -> onnx.ModelProto:
    return proto(bnfold.fold(ir.from_proto(original(name)), verify=False).model)


def mutated(name: str, place: float, part: float) -> onnx.ModelProto:
    """The fold with the median weight of one layer off by `part` of the largest; `place` runs from 0 to 1."""
    model = onnx.ModelProto()
    model.CopyFrom(folded(name))
    weights = [t for t in model.graph.initializer if t.name.endswith("_folded") and len(t.dims) > 1]
    tensor = weights[round(place * (len(weights) - 1))]
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.ravel()[np.argsort(np.abs(values).ravel())[values.size // 2]] += part * np.abs(values).max()
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return model


def settled(before: onnx.ModelProto, after: onnx.ModelProto) -> QuickCheck:
    return settle(quick_check(before, after), before, after, seed=0)


@pytest.mark.parametrize("name", DEEP)
def test_a_right_fold_is_cleared_where_rounding_alone_moves_the_original_far(name: str) -> None:
    found = settled(original(name), folded(name))
    assert found.passed
    assert found.proves
    for entry in (*found.inner, *found.comparisons):
        assert entry.stage is not None
        assert entry.stage.ratio <= 0.5
        assert entry.stage.original < 1e-3
        assert entry.oracle is None or entry.oracle.original <= 16e-3
    assert found.notes[-1].endswith("judged stage by stage.")


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", DEEP)
def test_one_weight_off_by_a_thousandth_is_seen_there_and_nowhere_else(name: str, place: float) -> None:
    before, after = original(name), mutated(name, place, 1e-3)
    found = settled(before, after)
    assert found.failed
    stages = judge_stages(Repeat(quick_check(before, after), before, 0), before, after)
    wrong = [stage for stage, verdict in stages.items() if verdict is None or verdict.ratio > 1]
    assert wrong == [found.first_divergence]


def test_an_oracle_that_is_wrong_is_not_believed_at_any_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    right = verdicts.evaluate

    def wrong(*args: object) -> dict[str, np.ndarray]:
        return {name: value + 0.03 * np.abs(value).max() for name, value in right(*args).items()}  # type: ignore[arg-type]

    monkeypatch.setattr(verdicts, "evaluate", wrong)
    found = settled(original("matrices"), folded("matrices"))
    assert not found.proves
    assert not found.failed


TEXT = """(float[N,4] x) => (float[N,4] z, int64[N,2] i) <float[4,4] w, int64[1] two>
    { a = MatMul(x, w) b = Relu(a) v, i = TopK(b, two) c = ReduceSum(v) d = Add(b, c) z = Sigmoid(d) }"""
MODEL = parse(TEXT, values={"two": [2]})


def test_a_staged_model_computes_every_shown_value_from_the_values_that_it_is_fed() -> None:
    held = {"a": "float32", "b": "float32", "v": "float32", "i": "int64"}
    model = staged(MODEL, held, ["a", "b"])
    assert [value.name for value in model.graph.output] == ["a as computed", "b as computed"]
    assert [value.name for value in model.graph.input] == ["x", *held]
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((3, 4)).astype(np.float32) for name in ("x", "a", "b")}
    feeds |= {"v": np.ones((3, 2), np.float32), "i": np.ones((3, 2), np.int64)}
    found = verdicts.open_session(model).run(["a as computed", "b as computed"], feeds)
    weight = onnx.numpy_helper.to_array(next(t for t in MODEL.graph.initializer if t.name == "w"))
    np.testing.assert_allclose(found["a as computed"], feeds["x"] @ weight, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["b as computed"], np.maximum(feeds["a"], 0))
    assert MODEL.graph.node[0].output[0] == "a"


def test_floats_that_both_compute_and_no_decision_are_shared() -> None:
    check = quick_check(MODEL, MODEL)
    assert set(check.held) == {"v", "i"}
    assert shared_values(check, MODEL, MODEL) == ["a", "b", "c", "d", "z"]
    other = parse(TEXT.replace("c", "e"), values={"two": [2]})
    assert shared_values(check, MODEL, other) == ["a", "b", "d", "z"]


def test_an_output_that_no_node_computes_is_no_stage() -> None:
    """Computed from constants before, and a constant after: there is nothing to feed."""
    text = "(float[N,4] x) => (float[N,4] y, float[4] k) <float[4] CONSTANTS> { y = Abs(x) NODE }"
    before = parse(text.replace("CONSTANTS", "c").replace("NODE", "k = Neg(c)"), values={"c": [1, 2, 3, 4]})
    after = parse(text.replace("CONSTANTS", "k").replace("NODE", ""), values={"k": [-1, -2, -3, -4]})
    assert shared_values(quick_check(before, after), before, after) == ["y"]
    assert bnfold.verify(ir.from_proto(before), ir.from_proto(after)).passed


def test_what_is_not_finite_on_a_pattern_is_judged_on_the_others() -> None:
    """Of zeros the logarithm is none, and a hundredth of an ordinary number is what rounding moves on ones."""
    model = parse("(float[N,4] x) => (float[N,4] y) { a = Abs(x) b = Log(a) y = Exp(b) }")
    (check,) = bnfold.verify(ir.from_proto(model), ir.from_proto(model), oracle=True).quick
    assert check.passed
    for entry in (*check.inner, *check.comparisons):
        assert entry.stage is not None
        assert entry.stage.ratio <= 0.5


def test_what_follows_a_decision_is_judged_given_the_decision() -> None:
    stages = judge_stages(Repeat(quick_check(MODEL, MODEL), MODEL, 0), MODEL, MODEL)
    assert set(stages) == {"a", "b", "c", "d", "z"}
    for verdict in stages.values():
        assert verdict is not None
        assert verdict.believed
        assert verdict.ratio <= 0.3


def test_a_number_alone_is_a_stage_as_well() -> None:
    """A mean over everything: NumPy makes scalars of such arrays where it can."""
    text = "(float[N,4] x) => (float[N,4] y) { m = ReduceMean <keepdims=0> (x) e = Exp(m) y = Div(x, e) }"
    model = parse(text)
    check = bnfold.verify(ir.from_proto(model), ir.from_proto(model)).quick[0]
    assert {entry.name: entry.shape for entry in check.inner} == {"m": (), "e": ()}
    assert all(entry.stage is not None and entry.stage.ratio <= 0.5 for entry in (*check.inner, *check.comparisons))


GRAPH = parse("(float[4] x) => (float[4] d) { a = Abs(x) b = Neg(a) n = Exp(b) c = Add(n, a) d = Add(c, b) }").graph
ALL = dict.fromkeys("abcd", True)


@pytest.mark.parametrize(
    ("stages", "sure", "held", "equal"),
    [
        (ALL, "", (), "abcd"),
        (ALL | {"a": False}, "", (), ""),
        (ALL | {"a": False}, "a", (), "abcd"),
        (ALL | {"b": False}, "", (), "a"),  # c and d start from b
        (ALL | {"b": False}, "b", (), "abcd"),
        (ALL | {"c": False}, "", (), "ab"),
        (ALL | {"d": False}, "", (), "abc"),
        (ALL | {"b": False}, "", ("b",), "acd"),  # fed to both: nothing hangs on how it came about
        ({"d": True}, "", (), "d"),  # from the input to d is one stage
        ({"a": False, "n": True}, "", ("b",), "n"),
        ({"a": False, "n": True}, "", (), ""),
    ],
)
def test_a_stage_counts_where_it_starts_from_what_is_equal(
    stages: dict[str, bool], sure: str, held: tuple[str, ...], equal: str
) -> None:
    assert established(GRAPH, stages, set(sure), held) == set(equal)


def _entry(check: QuickCheck, name: str) -> str:
    entry = next(e for e in (*check.inner, *check.comparisons) if e.name == name)
    return "failed" if entry.failed else entry.note.split()[0] if entry.compared else "unknown"


def test_nothing_is_cleared_that_follows_what_no_stage_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """One stage in the middle without a verdict: what comes before it is cleared, and what follows it is not."""
    before, after = original("matrices"), folded("matrices")
    check = quick_check(before, after)
    entries = [e.name for e in (*check.inner, *check.comparisons) if e.failed]
    first, middle, last = entries[-9], entries[-5], entries[-1]
    assert {_entry(settle(check, before, after, seed=0), name) for name in (first, middle, last)} == {"rounding:"}

    def lacking(*args: object) -> dict[str, object]:
        found = judge_stages(*args)  # type: ignore[arg-type]
        verdict = found[middle]
        assert verdict is not None
        return found | {middle: replace(verdict, believed=False)}

    monkeypatch.setattr("bnfold.oracle.judge_stages", lacking)
    found = settle(check, before, after, seed=0)
    assert [_entry(found, name) for name in (first, middle, last)] == ["rounding:", "unknown", "unknown"]
    assert not found.proves


@pytest.mark.parametrize(("off", "passes"), [(7, True), (10, False)])
def test_at_a_stage_the_coarsest_type_on_the_way_counts(off: int, passes: bool) -> None:
    """A float32 output behind float16 that no tensor shows: a factor off by 14 of its roundings passes, by 20 not."""
    text = """(float[N,64] x) => (float[N,64] y) <float16 k>
        { HALF = Cast <to=10> (x) OFF = Mul(HALF, k) y = Cast <to=1> (OFF) }"""
    before, after = (
        ir.from_proto(parse(text.replace("HALF", half).replace("OFF", twice), values={"k": np.array(factor)}))
        for half, twice, factor in (("h", "g", 1.0), ("p", "q", 1.0 + off * 2.0**-10))
    )
    (check,) = bnfold.verify(before, after, deployed=False).quick
    assert check.comparisons[0].stage is not None
    assert check.passed is passes
