"""bnfold's own column of `benchmarks/frontier.py`, and the judge that fills the table. The peers are not run."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import bnfold
from benchmarks import frontier
from benchmarks.frontier_cases import CASES, Case
from benchmarks.frontier_judge import Verdict, judge, verified

BY_KEY = {case.key: case for case in CASES}


def every_case() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)


def fold(case: Case, *, keep_overridable: bool = False) -> tuple[bnfold.Report, onnx.ModelProto]:
    result = bnfold.fold(ir.from_proto(case.model()), keep_overridable=keep_overridable)
    return result.report, ir.to_proto(result.model)


@every_case()
def test_bnfold_leaves_what_it_is_designed_to_leave(case: Case) -> None:
    report, model = fold(case)
    assert case.left_in(model) == case.left
    assert report.reduced == ()
    assert len(report.kept) == case.left
    folded = [d for d in report.folded if d.subject.is_batchnorm or case.disguised]
    assert len(folded) == (1 if case.disguised else case.batchnorms - case.left)
    assert [case.reason for _ in report.kept] == [_reason(kept, case) for kept in report.kept]


def _reason(kept: bnfold.Kept, case: Case) -> bnfold.Reason | None:
    """The expected reason if it is among those given, else the first one given."""
    given = [refusal.reason for refusal in kept.refusals]
    return case.reason if case.reason in given else given[0]


@every_case()
def test_every_fold_passes_the_local_test(case: Case) -> None:
    report, _ = fold(case)
    assert report.verification is not None
    proven = {name for check in report.verification.local if check.passed for name in check.batchnorms}
    assert proven == {folded.subject.name for folded in report.folded}
    assert report.verification.passed


@every_case()
def test_the_judge_finds_what_bnfold_made_right(case: Case) -> None:
    _, model = fold(case)
    verdict = judge(case, model)
    assert (verdict.kind, verdict.left, verdict.of) == ("right", case.left, case.batchnorms), verdict.detail
    assert verdict.added == 0
    assert verified(case, model) == "passed"


@every_case()
def test_the_original_is_judged_right_and_untouched(case: Case) -> None:
    verdict = judge(case, case.model())
    assert (verdict.kind, verdict.left, verdict.lost) == ("right", case.batchnorms, 0), verdict.detail


@every_case()
def test_one_wrong_weight_is_judged_wrong(case: Case) -> None:
    model = case.model()
    integers = (onnx.TensorProto.INT64, onnx.TensorProto.INT8)
    held = max(model.graph.initializer, key=lambda t: (t.data_type not in integers, len(t.dims)))
    array = onnx.numpy_helper.to_array(held).copy()
    array.reshape(-1)[0] *= 1.1
    held.CopyFrom(onnx.numpy_helper.from_array(array, held.name))
    assert judge(case, model).kind == "WRONG"
    assert verified(case, model) == "failed"


def test_verdicts_of_verify_that_are_not_the_judges_are_named() -> None:
    right, wrong = Verdict("right", 0, 1, verified="passed"), Verdict("WRONG", 0, 1, detail="off", verified="failed")
    others = {case.key: Verdict("ERROR", 0, 1) for case in CASES}
    found = {"one": others | {"conv": right}, "two": others | {"conv": wrong}}
    said = "`bnfold verify`, which knows no tool, passes {} of these 1 right results and {} of the 1 WRONG ones{}."
    assert frontier.agreement(found) == said.format(1, 0, "")
    title = BY_KEY["conv"].title
    found["one"]["conv"] = replace(right, verified="unproven", detail="error 0")
    assert frontier.agreement(found) == said.format(0, 0, f" (one, {title}: unproven, error 0)")
    found |= {"one": others | {"conv": right}, "two": others | {"conv": replace(wrong, verified="passed")}}
    assert frontier.agreement(found) == said.format(1, 1, f" (two, {title}: passed, off)")


def test_overridable_parameters_go_with_a_note_or_stay_on_request() -> None:
    case = BY_KEY["overridable"]
    report, model = fold(case)
    assert judge(case, model).lost == 5
    assert sum("is gone" in note for note in report.notes) == 5
    report, model = fold(case, keep_overridable=True)
    assert str(judge(case, model)) == "1 of 1"
    assert [kept.refusals[0].reason for kept in report.kept] == [bnfold.Reason.PARAMETER_IS_OVERRIDABLE]


def test_a_parameter_that_is_still_an_input_and_no_longer_read_is_wrong() -> None:
    case = BY_KEY["overridable"]
    _, model = fold(case)
    lost = next(value for value in case.model().graph.input if value.name == "gamma")
    model.graph.input.append(lost)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4, np.float32), "gamma"))
    assert judge(case, model).kind == "WRONG"


def test_weights_that_overflow_in_float16_arithmetic_are_wrong() -> None:
    case = BY_KEY["overflow"]
    model = case.model()
    gamma = next(t for t in model.graph.initializer if t.name == "gamma")
    array = onnx.numpy_helper.to_array(gamma)
    model.graph.initializer.remove(gamma)
    halves = [array / np.float16(6e4), np.full(4, 6e4, np.float16), np.full(4, 2, np.float16)]
    for name, half in zip(("g", "up", "twice"), halves, strict=True):
        model.graph.initializer.append(onnx.numpy_helper.from_array(half, name))
    for node in reversed(
        [
            onnx.helper.make_node("Mul", ["up", "twice"], ["huge"]),
            onnx.helper.make_node("Mul", ["g", "huge"], ["gamma"]),
        ]
    ):
        model.graph.node.insert(0, node)
    verdict = judge(case, model)
    assert verdict.kind == "WRONG"
    assert "not finite" in verdict.detail


def test_other_output_names_are_invalid() -> None:
    case = BY_KEY["conv"]
    model = case.model()
    model.graph.output[0].name = model.graph.node[-1].output[0] = "z"
    assert judge(case, model).kind == "INVALID"


def test_a_model_the_checker_refuses_is_invalid() -> None:
    case = BY_KEY["conv"]
    model = case.model()
    model.graph.node[0].input[1] = "nowhere"
    assert judge(case, model).kind == "INVALID"


@pytest.mark.parametrize(
    ("script", "kind"),
    [("import os; os.abort()", "CRASH"), ("import time; time.sleep(60)", "TIMEOUT"), ("", "CRASH")],
    ids=["aborts", "hangs", "does nothing"],
)
def test_a_tool_that_leaves_nothing_is_named_for_it(tmp_path: Path, script: str, kind: str) -> None:
    verdicts = frontier.run_tool([sys.executable, "-c", script], tmp_path, CASES[:2], limit=1.0)
    assert [verdict.kind for verdict in verdicts.values()] == [kind, kind]


def test_a_tool_that_dies_is_started_again_behind_the_case(tmp_path: Path) -> None:
    first, second, third = CASES[:3]
    script = (
        "import os, pathlib, sys\n"
        "for key in sys.argv[2:]:\n"
        f"    if key == {second.key!r}: os.abort()\n"
        "    (pathlib.Path(sys.argv[1]) / f'{key}.error').write_text('ValueError: no')\n"
    )
    verdicts = frontier.run_tool([sys.executable, "-c", script, str(tmp_path)], tmp_path, [first, second, third])
    assert [(key, verdict.kind) for key, verdict in verdicts.items()] == [
        (first.key, "ERROR"), (second.key, "CRASH"), (third.key, "ERROR"),
    ]  # fmt: skip


def test_the_benchmark_runs_bnfold_in_a_process_and_judges_its_file(tmp_path: Path) -> None:
    case = BY_KEY["conv"]
    onnx.save(case.model(), tmp_path / "conv.onnx")
    command = [sys.executable, "-m", "benchmarks.frontier_tools", "bnfold", str(tmp_path)]
    verdicts = frontier.run_tool(command, tmp_path / "bnfold", [case])
    assert {key: str(verdict) for key, verdict in verdicts.items()} == {"conv": "0 of 1"}


def test_the_table_has_a_row_for_each_case_and_sums_up() -> None:
    column = {case.key: Verdict("right", case.left, case.batchnorms) for case in CASES}
    column["conv"] = Verdict("WRONG", 0, 1)
    table = frontier.rows({"bnfold": column}, markdown=True)
    assert table[1] == ["Conv → BN", "**WRONG**"]
    assert [row[0] for row in table[-2:]] == ["nothing left, where everything can go", "wrong, invalid or failed"]
    can_go = [case for case in CASES if case.can_go]
    assert table[-2][1] == f"{sum(case.left == 0 for case in can_go) - 1} of {len(can_go)} rows"
    assert table[-1][1] == f"1 of {len(CASES)} rows"
    assert len(frontier.as_markdown(table).splitlines()) == len(CASES) + 4
