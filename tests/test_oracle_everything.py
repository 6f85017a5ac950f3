"""The oracle asked about everything: both errors of every tensor, a stricter rule, none where not believed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_models import PARAMETERS, STATS, parse

import bnfold
from bnfold import verdicts
from bnfold.errors import ModelError
from bnfold.judging import Errors, channel_scales, judge, worse
from bnfold.quickcheck import quick_check
from bnfold.wording import oracle_line, stage_line

TEXT = f"""(float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w, {PARAMETERS}>
    {{ c = Conv(x, w) b = BatchNormalization(c, {STATS}) y = Relu(b) }}"""


def folded(scale: float = 1.0) -> tuple[ir.Model, ir.Model]:
    """A net, and its fold with weights that are off by `scale`."""
    before = ir.from_proto(parse(TEXT))
    result = bnfold.fold(before, verify=False)
    value = result.model.graph.initializers["w_folded"]
    assert value.const_value is not None
    value.const_value = ir.Tensor(value.const_value.numpy() * np.float32(scale), name="w_folded")
    return before, result.model


def test_both_errors_of_every_tensor_are_reported() -> None:
    check = bnfold.verify(*folded(), oracle=True).quick[0]
    assert check.passed
    entries = (*check.comparisons, *check.inner)
    assert {entry.name for entry in entries} == {"b", "y"}
    for entry in entries:
        assert entry.oracle is not None
        assert entry.oracle.ratio <= 1
        assert 0 < entry.oracle.original < 1e-6
        assert 0 < entry.oracle.folded < 1e-6
    assert oracle_line(check).startswith("y is off by ")
    assert oracle_line(check).endswith("2 tensors asked about")


def test_a_fold_asks_nobody_without_need_and_verify_asks_about_the_stages() -> None:
    quick = bnfold.fold(ir.from_proto(parse(TEXT))).report.verification.quick[0]  # type: ignore[union-attr]
    assert all(entry.oracle is None for entry in (*quick.comparisons, *quick.inner))
    assert all(entry.stage is None for entry in (*quick.comparisons, *quick.inner))
    assert (oracle_line(quick), stage_line(quick)) == ("", "")
    check = bnfold.verify(*folded()).quick[0]
    assert all(entry.stage is not None and entry.stage.ratio <= 1 for entry in (*check.comparisons, *check.inner))
    assert oracle_line(check) == ""
    assert stage_line(check).startswith("2 tensors, each from the original's values before it, largest error 0.")


def test_a_fold_within_the_tolerance_that_is_less_accurate_than_the_original_fails() -> None:
    models = folded(1.0001)
    assert quick_check(*map(ir.to_proto, models)).passed
    for asks in (False, True):
        found = bnfold.verify(*models, oracle=asks)
        assert found.failed
        assert found.quick[0].first_divergence == "b"
        (output,) = found.quick[0].comparisons
        assert output.note.startswith("less accurate than the original: " if asks else "")


def test_an_oracle_that_is_not_believed_is_reported_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    right = verdicts.evaluate

    def wrong(*args: Any) -> dict[str, np.ndarray]:
        return {name: value + name.startswith("y") for name, value in right(*args).items()}

    monkeypatch.setattr(verdicts, "evaluate", wrong)
    check = bnfold.verify(*folded(), oracle=True).quick[0]
    known = {entry.name: entry.oracle is not None for entry in (*check.comparisons, *check.inner)}
    assert known == {"b": True, "y": False}
    assert check.passed  # the comparison with the original stands by itself
    assert "The float64 oracle is believed for 1 of 2 tensors." in check.notes
    assert oracle_line(check).startswith("b is off by ")


def test_without_an_oracle_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> None:
        raise ModelError("Foo cannot be computed in float64")

    monkeypatch.setattr(verdicts, "in_float64", refuses)
    check = bnfold.verify(*folded(), oracle=True).quick[0]
    assert check.passed
    assert check.notes == ("There is no oracle for these models: Foo cannot be computed in float64.",)


def test_what_follows_a_decision_is_judged_given_the_decision_and_whole_numbers_are_not_asked_about() -> None:
    text = """(float[N,9] x) => (float[N,2] y, int64[N,2] i) <int64[1] two>
        { a = Sigmoid(x) v, i = TopK(a, two) y = Neg(v) }"""
    model = ir.from_proto(parse(text, values={"two": np.array([2])}))
    check = bnfold.verify(model, model, oracle=True).quick[0]
    assert set(check.held) == {"v", "i"}
    assert {entry.name for entry in check.inner if entry.oracle is not None} == {"a"}
    assert all(entry.oracle is None and entry.stage is not None for entry in check.comparisons)


def test_a_fold_says_what_the_oracle_found() -> None:
    report = bnfold.fold(ir.from_proto(parse(TEXT)), oracle=True).report
    assert report.verification is not None
    assert all(entry.oracle is not None for entry in report.verification.quick[0].comparisons)


def test_errors_are_relative_to_the_scale_of_the_tensor() -> None:
    truth = np.array([[2.0, -4.0]])
    found = judge(*(channel_scales(values) for values in (truth, 0.004 + 0 * truth, 0.008 + 0 * truth)), 2.0**-24)
    assert (found.original, found.folded) == pytest.approx((0.001, 0.002))
    assert 0.49 < found.ratio < 0.5


def test_the_usual_scale_of_a_channel_is_a_floor_where_it_is_given() -> None:
    tiny, off = np.full(3, 1e-9), np.full(3, 1e-6)
    assert judge(tiny, 0 * off, off, 2.0**-24).ratio > 1
    assert judge(tiny, 0 * off, off, 2.0**-24, np.ones(3)).ratio < 1
    assert judge(tiny, 0 * off, off, 2.0**-24, np.ones(5)).ratio > 1


def test_of_several_runs_the_worst_counts() -> None:
    one, other = Errors(0.5, 1e-7, 3e-7), Errors(0.9, 2e-8, 1e-7)
    assert worse(one, other) == worse(other, one) == Errors(0.9, 1e-7, 3e-7)
    doubt = Errors(0.1, 0.5, 0.5, believed=False)
    assert not worse(one, doubt).believed
