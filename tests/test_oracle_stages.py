"""What the verdicts on the stages make of a check: what they clear, what they blame, and what stays without proof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_models import parse

from bnfold import oracle
from bnfold.comparison import TensorComparison
from bnfold.data_sources import Source
from bnfold.errors import ModelError
from bnfold.judging import Errors
from bnfold.oracle import settle
from bnfold.quickcheck import QuickCheck
from bnfold.verdicts import Repeat

MODEL = parse("(float[2] x) => (float[2] y) { a = Abs(x) b = Neg(a) y = Exp(b) }")
RIGHT, WRONG = Errors(1.0, 1e-7, 1e-7), Errors(1.01, 1e-7, 1e-7)
DOUBT = Errors(0.5, 0.2, 0.2, believed=False)
#: As an oracle that is asked about the whole network, or about one stage: no verdict at all where None.
VERDICTS: Mapping[str, Errors | None] = {"right": RIGHT, "wrong": WRONG, "doubt": DOUBT, "none": None}


def check(*states: str, shape: tuple[int, ...] = (2,)) -> QuickCheck:
    """Of a, b and y: "agrees", "differs" or "empty"."""
    entries = [TensorComparison(name, (0,) if state == "empty" else shape, "float32", 0.5, 1.0, 1e-3,
                                compared=state != "empty", passed=state == "agrees")
               for name, state in zip("aby", states, strict=True)]  # fmt: skip
    failed = [entry.name for entry in entries if entry.failed]
    return QuickCheck("cpu", (entries[-1],), tuple(entries[:-1]), (), ({"x": (2,)},), next(iter(failed), None),
                      failed=bool(failed), proves=True)  # fmt: skip


def found(
    monkeypatch: pytest.MonkeyPatch, given: QuickCheck, whole: Sequence[str], each: Sequence[str], **asks: Any
) -> QuickCheck:
    """The check with verdicts on a, b and y, the whole network's and each stage's."""
    judged = {name: VERDICTS[said] for name, said in zip("aby", whole, strict=True) if VERDICTS[said] is not None}
    monkeypatch.setattr(oracle, "verdicts", lambda *_: judged)
    monkeypatch.setattr(oracle, "judge_stages", lambda *_: dict(zip("aby", map(VERDICTS.get, each), strict=True)))
    return settle(given, MODEL, MODEL, seed=0, **asks)


def states(done: QuickCheck) -> list[str]:
    entries = (*done.inner, *done.comparisons)
    return ["failed" if entry.failed else "passed" if entry.compared else "unknown" for entry in entries]


AGREE, DIFFER = ("agrees",) * 3, ("differs",) * 3
NONE, DOUBTFUL, FINE = ("none",) * 3, ("doubt",) * 3, ("right",) * 3


@pytest.mark.parametrize(
    ("quick", "whole", "stages", "expected"),
    [
        (DIFFER, DOUBTFUL, FINE, ["passed"] * 3),
        (DIFFER, DOUBTFUL, ("right", "doubt", "right"), ["passed", "unknown", "unknown"]),
        (DIFFER, DOUBTFUL, ("right", "none", "right"), ["passed", "unknown", "unknown"]),
        (DIFFER, DOUBTFUL, ("right", "wrong", "right"), ["passed", "failed", "unknown"]),
        (DIFFER, DOUBTFUL, ("doubt", "right", "right"), ["unknown"] * 3),
        (("agrees", "differs", "differs"), DOUBTFUL, ("doubt", "right", "right"), ["passed"] * 3),
        (("agrees", "differs", "differs"), DOUBTFUL, ("wrong", "right", "right"), ["failed", "unknown", "unknown"]),
        (("empty", "differs", "differs"), DOUBTFUL, ("none", "right", "right"), ["unknown", "passed", "passed"]),
        (("empty", "differs", "differs"), DOUBTFUL, FINE, ["unknown", "passed", "passed"]),
        (DIFFER, ("right", "doubt", "doubt"), ("none", "right", "right"), ["passed"] * 3),
        (DIFFER, ("wrong", "doubt", "doubt"), FINE, ["failed", "unknown", "unknown"]),
        (DIFFER, ("wrong",) * 3, FINE, ["failed"] * 3),
        (DIFFER, ("none", "doubt", "doubt"), ("none", "right", "right"), ["failed", "unknown", "unknown"]),
    ],
)  # fmt: skip
def test_a_stage_clears_what_starts_from_what_is_equal_and_blames_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, quick: Sequence[str], whole: Sequence[str], stages: Sequence[str],
    expected: Sequence[str],
) -> None:  # fmt: skip
    done = found(monkeypatch, check(*quick), whole, stages)
    assert states(done) == list(expected)
    assert done.failed == ("failed" in expected)
    assert done.proves == (expected[-1] != "unknown")


def test_the_first_tensor_that_is_wrong_by_itself_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others differ because of it, also one before it that went wrong end to end alone."""
    done = found(monkeypatch, check(*DIFFER), ("wrong", "wrong", "wrong"), ("right", "wrong", "wrong"))
    assert done.first_divergence == "b"
    done = found(monkeypatch, check(*DIFFER), ("right", "wrong", "wrong"), FINE)
    assert done.first_divergence == "b"


def test_without_doubt_stages_are_judged_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    given = check(*AGREE)
    assert found(monkeypatch, given, NONE, ("wrong",) * 3) is given
    done = found(monkeypatch, given, NONE, ("right", "wrong", "right"), stages=True)
    assert states(done) == ["passed", "failed", "passed"]
    assert [entry.stage for entry in (*done.inner, *done.comparisons)] == [RIGHT, WRONG, RIGHT]
    done = found(monkeypatch, given, NONE, ("right", "doubt", "none"), stages=True)
    assert states(done) == ["passed"] * 3
    assert [entry.stage for entry in (*done.inner, *done.comparisons)] == [RIGHT, None, None]


def test_where_stages_cannot_be_judged_the_rest_stands_and_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> None:
        raise ModelError("Foo cannot be computed in float64")

    monkeypatch.setattr(oracle, "judge_stages", refuses)
    done = settle(check(*AGREE), MODEL, MODEL, seed=0, stages=True)
    assert done.passed
    assert done.notes == ("The stages cannot be judged by themselves: Foo cannot be computed in float64.",)


class Given(Source):
    """Two batches."""

    def __iter__(self) -> Any:
        return iter([{"x": np.full(2, value, np.float32)} for value in (7.0, 8.0)])


@pytest.mark.parametrize(
    ("state", "runs"),
    [("agrees", ["first", "data", "data"]), ("differs", ["first", "second", "data", "data", "pattern"])],
)
def test_without_doubt_stages_are_judged_in_the_first_run_and_on_the_data(
    monkeypatch: pytest.MonkeyPatch, state: str, runs: list[str]
) -> None:
    given = replace(check(state, state, state), runs=({"x": (2,)},) * 4, given=2, kinds=("uniform numbers", "zeros"))
    seen: list[str] = []
    drawn = [feeds["x"] for feeds, _ in Repeat(replace(given, runs=given.runs[:2], given=0, kinds=()), MODEL, 0)]

    def watches(repeat: Repeat, *_: object) -> dict[str, Errors]:
        for feeds, is_pattern in repeat:
            places = [
                name for name, values in zip(("first", "second"), drawn, strict=True) if (feeds["x"] == values).all()
            ]
            seen.append("pattern" if is_pattern else next(iter(places), "data"))
        return {}

    monkeypatch.setattr(oracle, "verdicts", lambda *_: {})
    monkeypatch.setattr(oracle, "judge_stages", watches)
    settle(given, MODEL, MODEL, seed=0, data=Given.__new__(Given), stages=True)
    assert seen == runs


def test_models_are_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = onnx.ModelProto()
    before.CopyFrom(MODEL)
    oracle.settle(check(*DIFFER), MODEL, MODEL, seed=0)
    assert before == MODEL
