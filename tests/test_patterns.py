"""Constants, impulses and uniform numbers: what they are, and that the check is run on them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_models import parse

import bnfold
from bnfold.data import read_inputs
from bnfold.feeds import feeds_again
from bnfold.patterns import IMPULSE, PATTERNS, patterns
from bnfold.quickcheck import QuickCheck, quick_check


def made(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Every pattern by itself."""
    found = dict(patterns({"x": np.zeros((1, *shape), np.float32)}, (), 0))
    return {kind: feeds["x"][0] for (kind,), feeds in found.items()}


def test_the_patterns_are_what_they_are_called() -> None:
    found = made((3, 9, 8))
    assert tuple(found) == PATTERNS
    assert not found["zeros"].any()
    assert (found["ones"] == 1).all()
    uniform = found["uniform numbers"]
    assert (0 <= uniform.min() < 0.1, 0.9 < uniform.max() < 1) == (True, True)
    assert all(value.dtype == np.float32 for value in found.values())


def test_impulses_are_at_corners_and_in_the_middle_of_borders_and_of_both_signs() -> None:
    impulses = made((3, 9, 8))["impulses"]
    assert set(np.unique(impulses)) == {-IMPULSE, 0, IMPULSE}
    expected = {(h, w) for h in (0, 4, 8) for w in (0, 4, 7)} - {(4, 4)}
    for channel in impulses:
        assert {tuple(int(i) for i in place) for place in np.argwhere(channel)} == expected


@pytest.mark.parametrize(
    ("shape", "count"),
    [((9, 8, 3), 8 * 3), ((3, 9, 4), 3 * 8), ((9, 8, 7), 9 * 8), ((5, 9), 5 * 2), ((6,), 2), ((2, 4, 5, 6), 2 * 26),
     ((2, 4, 3, 6), 2 * 26), ((3, 1, 1), 3), ((), 1), ((9, 8, 1), 8), ((9, 8, 4), 8 * 4), ((1, 9, 4), 8),
     ((4, 9, 3), 4 * 8), ((9, 8, 2), 9 * 6)],
    ids=["channels last", "channels first, 4 wide", "many channels", "sequence", "features", "volume", "volume, 3 high",
         "one pixel", "nothing but samples", "grey, last", "with alpha, last", "grey, first", "with alpha, first",
         "two channels are no image"],
)  # fmt: skip
def test_impulses_fit_every_rank(shape: tuple[int, ...], count: int) -> None:
    assert np.count_nonzero(made(shape)["impulses"]) == count


def test_samples_share_a_run() -> None:
    feeds = {"x": np.zeros((3, 2, 4, 4), np.float32), "n": np.array([7], np.int64)}
    first, second = patterns(feeds, (), 0)
    assert [first[0], second[0]] == [PATTERNS[:3], PATTERNS[3:]]
    assert not first[1]["x"][1].any()
    assert (first[1]["x"][2] == 1).all()
    assert all(sample.any() for sample in second[1]["x"])  # impulses in every sample
    assert first[1]["n"] is feeds["n"]


def test_more_samples_than_patterns_take_them_in_turns() -> None:
    ((kinds, feeds),) = patterns({"x": np.zeros((6, 2, 4, 4), np.float32)}, (), 0)
    assert kinds == PATTERNS
    assert not feeds["x"][5].any()
    assert 0 < feeds["x"][4].min() < feeds["x"][4].max() < 1
    assert (feeds["x"][4] != feeds["x"][0]).all()


def test_inputs_with_fewer_samples_set_how_many_patterns_share_a_run() -> None:
    made = list(patterns({"x": np.zeros((3, 2)), "y": np.zeros((1, 2))}, (), 0))
    assert [kinds for kinds, _ in made] == [(kind,) for kind in PATTERNS]


@pytest.mark.parametrize("shape", [(), (0, 3)], ids=["a single number", "no sample"])
def test_an_input_without_samples_gets_every_pattern(shape: tuple[int, ...]) -> None:
    made = list(patterns({"x": np.zeros(shape)}, (), 0))
    assert [kinds for kinds, _ in made] == [(kind,) for kind in PATTERNS]
    assert {feeds["x"].shape for _, feeds in made} == {shape}


def test_two_inputs_get_numbers_of_their_own() -> None:
    (_, feeds), *_ = patterns({"x": np.zeros((1, 9)), "y": np.zeros((1, 9))}, (), 0)
    assert (feeds["x"] != feeds["y"]).all()


def test_whole_numbers_and_inputs_that_are_held_stay() -> None:
    whole, kept = np.array([[3]], np.int64), np.ones((1, 2), np.float32)
    assert list(patterns({"n": whole, "b": np.array([True])}, (), 0)) == []
    assert list(patterns({"x": kept}, ["x"], 0)) == []
    for _, feeds in patterns({"x": kept, "y": kept}, ["x"], 0):
        assert feeds["x"] is kept


def check(after: str, before: str = "y = Identity(x)", shape: str = "N,3,8,8", **values: object) -> QuickCheck:
    text = f"(float[{shape}] x) => (float[{shape}] y)"
    return quick_check(parse(f"{text} {{ {before} }}"), parse(f"{text} {after}", values=values))


def test_the_check_runs_on_every_pattern_and_says_so() -> None:
    found = check("{ y = Identity(x) }")
    assert found.passed
    assert found.kinds == PATTERNS
    assert found.notes == ()


def test_a_difference_that_only_a_large_constant_shows_is_found() -> None:
    """Beyond 3.9 standard deviations no number of the ordinary runs lies, and an impulse does."""
    wrong = check("<float low, float high> { y = Clip(x, low, high) }", shape="N,2,3,3", low=-3.9, high=3.9)
    assert wrong.failed
    assert check("<float low, float high> { y = Clip(x, low, high) }", shape="N,2,3,3", low=-4.1, high=4.1).passed


def test_what_vanishes_on_a_constant_input_is_judged_by_its_usual_scale() -> None:
    """On zeros and ones `x - mean(x)` is nothing but the rounding of the mean, which a right rewrite makes another."""
    before = "m = ReduceMean<axes=[1],keepdims=1>(x) y = Sub(x, m)"
    after = "<float w, float v> { a = Mul(x, w) k = ReduceMean<axes=[1],keepdims=1>(a) b = Sub(a, k) y = Mul(b, v) }"
    found = check(after, before, shape="1,97", w=1 / 3, v=3.0)
    assert found.passed
    assert check(after, before, shape="1,97", w=1 / 3, v=3.01).failed


def test_where_the_original_is_not_finite_a_pattern_shows_nothing() -> None:
    """0 / 0 on zeros: a right rewrite may have any number there."""
    before = "n = Abs(x) y = Div(x, n)"
    after = "<float tiny> { a = Abs(x) n = Add(a, tiny) y = Div(x, n) }"
    assert check(after, before, tiny=1e-30).passed
    inside = "n = Abs(x) d = Div(x, n) y = Relu(d)"
    assert check(f"{{ {inside} }}", inside).passed


def test_a_folded_model_that_is_not_finite_on_a_pattern_fails() -> None:
    assert check("{ n = Abs(x) d = Mul(x, n) y = Div(d, n) }").failed


def test_a_pattern_that_the_model_refuses_is_left_out_and_named() -> None:
    """Only where no number is zero there are as many of them as the Reshape wants."""
    before = parse(
        "(float[2,4] x) => (float[2,4] y) <int64[2] shape> { a = Abs(x) z = NonZero(a) r = Reshape(z, shape)"
        " f = Cast<to=1>(r) g = Sub(f, f) s = ReduceSum<keepdims=0>(g) y = Add(x, s) }",
        values={"shape": np.array([2, 8])},
    )
    found = quick_check(before, before)
    assert found.passed
    assert len(found.kinds) < len(PATTERNS)
    assert found.notes[0].startswith("The model refuses ")
    assert found.notes[0].endswith(" as input, so that was left out.")


def test_the_same_inputs_can_be_had_again() -> None:
    model = parse("(float[N,3,8,8] x, float[1] k) => (float[N,3,8,8] y) { y = Mul(x, k) }")
    fixed = {"k": np.array([2.0], np.float32)}
    found = quick_check(model, model, fixed=fixed)
    inputs = read_inputs(model)
    again = list(feeds_again(inputs, found.runs, seed=0, given=0, data=None, kinds=found.kinds, fixed=fixed))
    assert len(again) == 2 + 2
    assert all(feeds["k"] is fixed["k"] for feeds in again)
    assert not again[2]["x"][1].any()
    assert len(list(feeds_again(inputs, found.runs, seed=0, given=0, data=None))) == 2


def test_the_fold_of_a_net_is_compared_on_patterns() -> None:
    result = bnfold.fold("models/digits-darknet.onnx")
    assert result.report.verification is not None
    assert result.report.verification.quick[0].kinds == PATTERNS
