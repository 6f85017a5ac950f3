"""BatchNorms that share their statistics get some of their own at each place, where the caller asks for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_models import parse
from recalibration_cases import CASES, IMAGE, Case, bn, parameters
from test_recalibration import samples

import bnfold
from bnfold.drift import Hindrance
from bnfold.errors import UsageError
from tests.recalibrated import assert_expected, cut_up, expected, statistics_in

#: Each node by itself, in an order in which they can be computed.
ORDERS = {
    "one module behind itself, and another one behind that": [["first"], ["second"], ["b"]],
    "two modules that cross": [["a1"], ["b1"], ["b2"], ["a2"], ["c"]],
    "one module at two depths": [["early"], ["b"], ["late"], ["c"]],
    "one value that is observed at two levels": [["early"], ["a"], ["b"], ["late"]],
}
TANGLED = tuple(ORDERS)[:2]


def recalibrate(name: str, **options: Any) -> tuple[onnx.ModelProto, dict[str, Any], bnfold.RecalibrationResult]:
    model, data = parse(CASES[name].text), samples(CASES[name])
    return model, data, bnfold.recalibrate(ir.from_proto(model), cut_up(data, 8), **options)


@pytest.mark.parametrize("name", TANGLED)
def test_those_behind_each_other_get_what_each_place_sees(name: str) -> None:
    model, data, result = recalibrate(name, unshare="dependent")
    assert_expected(result, expected(model, data, ORDERS[name]))
    assert result.report.left == ()
    separated = [node for (node, *_) in ORDERS[name] if node in CASES[name].left]
    note = f"they shared their statistics and have some of their own now: {', '.join(sorted(separated))}"
    assert result.report.notes == (note,)


@pytest.mark.parametrize("name", ORDERS)
def test_all_get_what_each_place_sees(name: str) -> None:
    model, data, result = recalibrate(name, unshare="all")
    assert_expected(result, expected(model, data, ORDERS[name]))
    assert result.report.left == ()


@pytest.mark.parametrize("name", tuple(ORDERS)[2:])
def test_those_that_can_pool_go_on_pooling_unless_all_are_asked_for(name: str) -> None:
    model, data, result = recalibrate(name, unshare="dependent")
    assert_expected(result, expected(model, data, CASES[name].order))
    assert result.report.notes == ()


@pytest.mark.parametrize("name", TANGLED)
def test_without_it_they_stay_and_the_report_says_what_helps(name: str) -> None:
    left = recalibrate(name)[2].report.left
    assert {entry.name: entry.hindrance for entry in left} == CASES[name].left
    assert all(str(entry).endswith("(--unshare dependent gives each its own)") for entry in left)


@pytest.mark.parametrize("name", ORDERS)
def test_the_result_is_a_sound_model_and_a_second_time_changes_nothing(name: str) -> None:
    model, data, result = recalibrate(name, unshare="all")
    after = ir.to_proto(result.model)
    onnx.checker.check_model(after, full_check=True)
    for entry in result.report.recalibrated:
        mean, variance = statistics_in(after, entry.name)
        assert (mean == entry.new.mean).all()
        assert (variance == entry.new.variance).all()
    again = bnfold.recalibrate(result.model, cut_up(data, 8))
    assert ir.to_proto(again.model).graph == after.graph
    assert again.report.left == ()
    gammas = {node.input[1] for node in after.graph.node if node.op_type == "BatchNormalization"}
    assert gammas == {node.input[1] for node in model.graph.node if node.op_type == "BatchNormalization"}, "unasked"


def test_what_is_excluded_keeps_the_shared_statistics() -> None:
    name = "one module at two depths"
    model, data, result = recalibrate(name, unshare="all", keep="late")
    assert [(e.name, e.hindrance) for e in result.report.left] == [("late", Hindrance.EXCLUDED_BY_CALLER)]
    old, stays = statistics_in(model, "late"), statistics_in(ir.to_proto(result.model), "late")
    assert (old[0] == stays[0]).all()
    assert (old[1] == stays[1]).all()
    wanted = expected(model, data, [["early"]])["early"]
    np.testing.assert_allclose(statistics_in(ir.to_proto(result.model), "early")[0], wanted[0], rtol=1e-5)


def test_a_fold_afterwards_gives_each_place_its_own_weights() -> None:
    text = f"""{IMAGE} <float[4, 4, 1, 1] w, {parameters("a")}> {{
        c = Conv (x, w)
        {bn("first", "c", "d", "a")}
        r = Relu (d)
        e = Conv (r, w)
        {bn("second", "e", "f", "a")}
        y = Sigmoid (f)
    }}"""
    model, data = parse(text), samples(Case(text, []))
    wish = bnfold.Calibration(cut_up(data, 8), unshare="dependent")
    result = bnfold.fold(ir.from_proto(model), calibrate=wish, data=cut_up(data, 8))
    assert [folded.subject.name for folded in result.report.folded] == ["first", "second"]
    assert result.report.verification is not None
    assert result.report.verification.passed
    assert result.report.recalibration is not None
    assert len(result.report.recalibration.recalibrated) == 2
    weights = [node.input[1] for node in ir.to_proto(result.model).graph.node if node.op_type == "Conv"]
    assert len(set(weights)) == 2


def test_statistics_that_are_inputs_of_an_old_file_can_be_separated() -> None:
    name = TANGLED[0]
    model, data = parse(CASES[name].text, opset=8, ir_version=3), samples(CASES[name])
    result = bnfold.recalibrate(ir.from_proto(model), cut_up(data, 8), unshare="dependent")
    after = ir.to_proto(result.model)
    onnx.checker.check_model(after, full_check=True)
    for entry in result.report.recalibrated:
        assert (statistics_in(after, entry.name)[0] == entry.new.mean).all()


def test_another_wish_is_refused() -> None:
    with pytest.raises(UsageError, match="'some' is none of none, dependent, all"):
        recalibrate(TANGLED[0], unshare="some")
