"""Which tensors the float64 oracle is asked about, what it grants, and what its verdicts make of a check."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import onnx_ir as ir
import pytest
from onnx_models import parse

import bnfold
from bnfold import oracle
from bnfold.comparison import TensorComparison
from bnfold.judging import Errors
from bnfold.oracle import settle
from bnfold.quickcheck import QuickCheck

TEXT = """(float[N,9] x) => (float[N,2] y, int64[N,2] i) <int64[1] two>
    { a = Sigmoid(x) v, i = TopK(a, two) y = Neg(v) }"""
MODEL = parse(TEXT, values={"two": [2]})


def entry(name: str, *, dtype: str = "float32", passed: bool = True, compared: bool = True) -> TensorComparison:
    return TensorComparison(name, (2,), dtype, 0.5, 1.0, 1e-3, compared=compared, passed=passed)


def checked(*inner: TensorComparison, **values: Any) -> QuickCheck:
    failed = any(one.failed for one in inner)
    check = QuickCheck("cpu", (entry("z"),), inner, (), ({"x": (2, 9)},), None, failed=failed, proves=True)
    return replace(check, **values)


def asked(check: QuickCheck, *, everything: bool) -> set[str]:
    return set(oracle._asked(check, MODEL, everything=everything))


def test_what_differs_is_asked_about_and_the_rest_on_request() -> None:
    check = checked(
        entry("a"), entry("b", passed=False), entry("c", compared=False), entry("v"), entry("y", passed=False),
        held=("v",),
    )  # fmt: skip
    assert asked(check, everything=False) == {"b", "y"}
    assert asked(check, everything=True) == {"a", "b", "y", "z"}


@pytest.mark.parametrize("everything", [True, False])
def test_whole_numbers_are_never_asked_about(everything: bool) -> None:
    check = checked(entry("i", dtype="int64", passed=False), entry("j", dtype="int64"))
    assert asked(check, everything=everything) == ({"z"} if everything else set())


def test_where_nothing_can_be_asked_the_check_stays_as_it_is() -> None:
    check = checked(entry("i", dtype="int64", passed=False))
    assert settle(check, MODEL, MODEL, seed=0) is check


def verdict(ratio: float, *, believed: bool = True) -> Errors:
    return Errors(ratio, 0.25, 0.5, believed)


def settled(
    monkeypatch: pytest.MonkeyPatch,
    check: QuickCheck,
    verdicts: dict[str, Errors],
    stages: dict[str, Errors | None] | None = None,
    **asks: Any,
) -> QuickCheck:
    monkeypatch.setattr(oracle, "verdicts", lambda *_: verdicts)
    monkeypatch.setattr(oracle, "judge_stages", lambda *_: stages or {})
    return settle(check, MODEL, MODEL, seed=0, **asks)


def test_a_difference_within_what_is_granted_passes_and_one_beyond_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    check = checked(entry("a", passed=False), entry("b", passed=False), first_divergence="a")
    found = settled(monkeypatch, check, {"a": verdict(1.0), "b": verdict(1.01)})
    assert [one.failed for one in found.inner] == [False, True]
    assert (found.failed, found.first_divergence) == (True, "b")
    assert found.notes == ("1 of 2 differences are rounding, by the float64 oracle.",)
    assert not settled(monkeypatch, check, {"a": verdict(1.0), "b": verdict(1.0)}).failed


def test_the_first_divergence_stays_the_first_while_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    check = checked(entry("a", passed=False), entry("b", passed=False), first_divergence="b")
    assert settled(monkeypatch, check, {"a": verdict(2.0), "b": verdict(2.0)}).first_divergence == "b"
    assert settled(monkeypatch, check, {"a": verdict(2.0), "b": verdict(1.0)}).first_divergence == "a"
    assert settled(monkeypatch, check, {"a": verdict(1.0), "b": verdict(1.0)}).first_divergence is None


def test_what_agrees_stays_as_it_is_unless_it_is_less_accurate(monkeypatch: pytest.MonkeyPatch) -> None:
    check = checked(entry("a"), entry("b"))
    found = settled(monkeypatch, check, {"a": verdict(1.0), "b": verdict(1.01)}, everything=True)
    assert [(one.failed, bool(one.note)) for one in found.inner] == [(False, False), (True, True)]


def test_a_difference_without_an_oracle_to_believe_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    check = checked(entry("a", passed=False), entry("b", passed=False))
    found = settled(monkeypatch, check, {"a": verdict(0.1), "b": verdict(9.0, believed=False)})
    assert [(one.compared, one.failed) for one in found.inner] == [(True, False), (False, False)]
    assert found.notes[-1] == "Rounding alone moves the original by 0.25 of the scale: 1 tensor without proof."
    assert len(settled(monkeypatch, check, {"a": verdict(0.1), "b": verdict(9.0)}).notes) == 1


def test_what_overflows_in_the_original_already_asks_for_numbers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    check = checked(entry("a", passed=False), entry("b", passed=False))
    endless = Errors(9.0, float("inf"), float("inf"), believed=False)
    found = settled(monkeypatch, check, {"a": verdict(0.1), "b": endless})
    assert found.notes[-1] == (
        "The original itself is not finite where float64 is: 1 tensor without proof. Numbers of the size that the model"
        " expects help: give your own with --verify-data."
    )
    found = settled(monkeypatch, check, {"a": verdict(9.0, believed=False), "b": endless})
    assert found.notes[-1] == "Rounding alone moves the original by 0.25 of the scale: 2 tensors without proof."


def test_an_output_that_differs_and_cannot_be_judged_proves_nothing_whatever_the_others_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    doubt, output = {"z": verdict(9.0, believed=False)}, (entry("z", passed=False),)
    assert not settled(monkeypatch, checked(comparisons=output, failed=True), doubt).proves
    two = (*output, entry("y"))
    assert not settled(monkeypatch, checked(comparisons=two, failed=True), doubt).proves
    empty = (entry("y", passed=False, compared=False), entry("z", passed=False))
    assert settled(monkeypatch, checked(comparisons=empty, failed=True), {"z": verdict(0.1)}).proves
    inner = checked(entry("a", passed=False), comparisons=())
    assert settled(monkeypatch, inner, {"a": verdict(0.1)}).proves
    assert not settled(monkeypatch, replace(inner, proves=False), {"a": verdict(0.1)}).proves


def test_how_many_verdicts_are_believed_is_said_where_everything_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    check, note = checked(entry("a", passed=False)), "The float64 oracle is believed for 1 of 2 tensors."
    mixed = {"a": verdict(0.1), "z": verdict(9.0, believed=False)}
    assert note in settled(monkeypatch, check, mixed, everything=True).notes
    assert note not in settled(monkeypatch, check, mixed).notes
    sure = {"a": verdict(0.1), "z": verdict(0.2)}
    assert not any("is believed for" in note for note in settled(monkeypatch, check, sure, everything=True).notes)


SHAPES = {
    "shape": ("float[A,B,C,D] y", "y = Conv(x, w)", "y = Conv<pads=[1,1,1,1]>(x, w)"),
    "whole numbers": ("int64[4] y", "s = Shape(x) y = Add(s, k)", "s = Shape(x) y = Mul(s, k)"),
}


@pytest.mark.parametrize("asks", [True, False])
@pytest.mark.parametrize("case", SHAPES)
def test_outputs_of_another_shape_and_other_whole_numbers_are_a_difference_and_no_crash(case: str, asks: bool) -> None:
    output, *nodes = SHAPES[case]
    text = "(float[N,3,H,W] x) => (float[A,B,C,D] z, OUT) <float[4,3,3,3] w, int64[4] k> { z = Abs(x) NODES }"
    before, after = (
        ir.from_proto(parse(text.replace("OUT", output).replace("NODES", node), values={"k": [3, 4, 5, 6]}))
        for node in nodes
    )
    found = bnfold.verify(before, after, oracle=asks)
    assert found.failed
    why = ": the shape changed from (2, 4, 62, 62) to (2, 4, 64, 64)" if case == "shape" else ""
    assert found.culprit == f"the first tensor that differs on cpu is y{why}"
    assert bnfold.verify(before, before, oracle=asks).passed
