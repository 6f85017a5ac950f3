"""The float64 oracle over the runs of a check: whose errors are granted, which runs count, and what they must have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from onnx_models import parse

from bnfold import verdicts
from bnfold.judging import Errors
from bnfold.quickcheck import QuickCheck

Results = Mapping[str, np.ndarray]
ONES = np.ones((2, 4), np.float32)
MODEL = parse("(float[2,4] x) => (float[2,4] y) { y = Abs(x) }")


@dataclass(frozen=True)
class Session:
    """What a model computes in every run, by its name."""

    model: str
    runs: Sequence[Results]
    types: Mapping[str, str] = field(default_factory=dict)

    def run(self, _: Sequence[str], feeds: Results) -> Results:
        run = self.runs[int(feeds["run"])]
        who = "nudged" if "nudged" in feeds and self.model == "before" else self.model
        return {"y": run.get(who, np.asarray(run["truth"], np.float32))}


def judged(monkeypatch: pytest.MonkeyPatch, *runs: Results, patterns: int = 0) -> Errors | None:
    """The verdict on runs in which each result that is not named is what is right; the last ones are on patterns."""
    names = iter(["before", "after", "again 0", "again 1"])
    feeds: list[dict[str, Any]] = [{"run": np.int64(place)} for place in range(len(runs))]

    def every(*_: object, **__: object) -> Iterator[dict[str, Any]]:
        return iter(feeds)

    monkeypatch.setattr(verdicts, "exposing", lambda *_: next(names))
    monkeypatch.setattr(verdicts, "open_session", lambda model, _: Session(model, runs))
    monkeypatch.setattr(verdicts, "feeds_again", every)
    monkeypatch.setattr(verdicts, "nudged", lambda feeds: [dict(feeds, nudged=1)])
    monkeypatch.setattr(verdicts, "evaluate", lambda _, feeds, __: {"y": np.float64(runs[int(feeds["run"])]["truth"])})
    ordinary: tuple[Mapping[str, tuple[int, ...]], ...] = tuple({"x": (2, 4)} for _ in runs[: len(runs) - patterns])
    check = QuickCheck("cpu", (), (), (), ordinary, None, failed=True, proves=True)
    return verdicts.verdicts(MODEL, MODEL, ["y"], verdicts.Repeat(check, MODEL, 0), "cpu").get("y")


def ratio(monkeypatch: pytest.MonkeyPatch, *runs: Results, patterns: int = 0) -> float:
    found = judged(monkeypatch, *runs, patterns=patterns)
    assert found is not None
    return found.ratio


@pytest.mark.parametrize("who", ["before", "nudged", "again 0", "again 1"])
def test_the_largest_error_of_the_original_is_granted_however_it_is_rounded(
    monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    wrong = {"truth": ONES, "after": ONES + np.float32(1e-4)}
    assert ratio(monkeypatch, wrong) > 1
    assert ratio(monkeypatch, wrong | {who: ONES + np.float32(1e-4)}) <= 0.26


def test_the_worst_of_the_runs_counts_whichever_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = {"truth": ONES}, {"truth": ONES, "after": ONES + np.float32(1e-4)}
    assert ratio(monkeypatch, right, right) == 0
    assert ratio(monkeypatch, right, wrong) == ratio(monkeypatch, wrong, right) > 1


def test_the_scale_of_the_first_run_is_a_floor_on_patterns_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"truth": 1e-6 * ONES, "after": 2e-6 * ONES}
    assert ratio(monkeypatch, {"truth": ONES}, small, patterns=1) < 1
    assert ratio(monkeypatch, {"truth": ONES}, small) > 1
    assert ratio(monkeypatch, {"truth": ONES}, {"truth": 1e-3 * ONES}, small, patterns=1) < 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_shows_nothing_on_a_pattern_and_fails_elsewhere(
    monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    endless = {"truth": ONES * np.float32(bad), "after": ONES}
    assert ratio(monkeypatch, {"truth": ONES}, endless, patterns=1) == 0
    assert ratio(monkeypatch, {"truth": ONES}, endless) == np.inf


@pytest.mark.parametrize("other", [ONES[:1], ONES.astype(np.int64), ONES.astype(np.float16)])
@pytest.mark.parametrize("who", ["before", "nudged", "after"])
def test_of_another_shape_or_type_in_any_run_there_is_no_verdict(
    monkeypatch: pytest.MonkeyPatch, other: np.ndarray, who: str
) -> None:
    right = {"truth": ONES}
    for runs in ((right, right | {who: other}), (right | {who: other}, right)):
        assert judged(monkeypatch, *runs) is None
    assert judged(monkeypatch, right, right) is not None


def test_inputs_are_moved_by_one_rounding_and_whole_numbers_are_not() -> None:
    feeds = {"x": np.ones(64, np.float32), "h": np.ones(64, np.float16), "i": np.arange(4)}
    draws = list(verdicts.nudged(feeds))
    for draw in draws:
        assert (draw["i"] == feeds["i"]).all()
        assert draw["i"].dtype == feeds["i"].dtype
        for name, eps in (("x", 2.0**-23), ("h", 2.0**-10)):
            assert draw[name].dtype == feeds[name].dtype
            assert set(np.float64(draw[name]) - 1) == {eps, -eps / 2}
    assert len({draw["x"].tobytes() for draw in draws}) == 3


@pytest.mark.parametrize(("off", "believed"), [(0.0159, True), (0.0161, False)])
@pytest.mark.parametrize("who", range(3))
def test_an_original_is_believed_within_sixteen_tolerances(off: float, believed: bool, who: int) -> None:
    originals = [ONES, ONES, ONES]
    originals[who] = ONES * np.float32(1 - off)
    found = verdicts.verdict_on(np.float64(ONES), originals, ONES)
    assert found is not None
    assert found.believed is believed


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_original_that_is_not_finite_is_not_believed(bad: float) -> None:
    found = verdicts.verdict_on(np.float64(ONES), [ONES, ONES * np.float32(bad)], ONES)
    assert found is not None
    assert not found.believed


@pytest.mark.parametrize(("roundings", "right"), [(50, True), (90, False)])
def test_what_is_known_to_be_coarser_than_its_type_is_judged_so(roundings: int, right: bool) -> None:
    after = ONES * np.float32(1 + roundings * 2.0**-11)
    found = verdicts.verdict_on(np.float64(ONES), [ONES], after, "float16")
    assert found is not None
    assert (found.ratio <= 1) is right
    plain = verdicts.verdict_on(np.float64(ONES), [ONES], after)
    assert plain is not None
    assert plain.ratio > 1


THROUGH = {
    "float32": "(float[2,4] x) => (float[2,4] y) <float k> { y = Mul(x, k) }",
    "float16": "(float[2,4] x) => (float[2,4] y) <float16 k> { h = Cast <to=10> (x) m = Mul(h, k) y = Cast <to=1>(m) }",
}


def through(kinds: Sequence[str], roundings: int) -> Errors | None:
    """The verdict on a factor that is off by so many roundings of float16, in models that compute in such types."""
    before = parse(THROUGH[kinds[0]], values={"k": np.array(1.0)})
    after = parse(THROUGH[kinds[1]], values={"k": np.array(1 + roundings * 2.0**-11)})
    return verdicts.verdicts(before, after, ["y"], [({"x": ONES}, False)], "cpu").get("y")


@pytest.mark.parametrize("after", THROUGH)
@pytest.mark.parametrize(("roundings", "right"), [(30, True), (90, False)])
def test_a_tensor_behind_float16_is_as_exact_as_float16(after: str, roundings: int, right: bool) -> None:
    found = through(("float16", after), roundings)
    assert found is not None
    assert (found.ratio <= 1) is right


def test_there_is_no_verdict_on_what_the_folded_model_alone_computes_through_a_coarser_type() -> None:
    assert through(("float32", "float16"), 0) is None
    found = through(("float32", "float32"), 30)
    assert found is not None
    assert found.ratio > 1
