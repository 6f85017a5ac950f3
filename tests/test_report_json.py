"""The JSON report: one golden file, every key always there, no number that JSON does not have."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

import bnfold
from bnfold.agreement import Agreement, Count
from bnfold.comparison import TensorComparison
from bnfold.decision import Folded, Kept, Reason, Reduced, Refusal, Subject
from bnfold.deployed import Deployed, LevelErrors, Moved, Tf32
from bnfold.flops import Flops, Uncounted, Work
from bnfold.judging import Errors
from bnfold.localcheck import LocalCheck
from bnfold.quickcheck import QuickCheck
from bnfold.report import bench_report, json_report
from bnfold.report.bench_report import BenchReport, Measured
from bnfold.report.json_report import report_json, verification_json
from bnfold.report.model import Report, ScaleSpread, Size
from bnfold.stopwatch import Timing
from bnfold.verification import Verification

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "digits-darknet.onnx"
GOLDEN = Path(__file__).parent / "golden" / "report-1.json"


def subject(name: str, kind: str = "BatchNormalization", channels: int = 8) -> Subject:
    return Subject(name, kind, channels, kind == "BatchNormalization")


MEASURED = Measured(
    "cpu", "ENABLE_ALL", Timing(4e-3, 3e-3, 5e-3), Timing(2e-3, 1e-3, 3e-3), Timing(0.5, 0.25, 1.0), (3, 0)
)

REPORT = Report(
    "net.onnx",
    (
        Folded(subject("bn1"), "pull", ("conv1",), ("relu", "größe")),
        Reduced(
            subject("bn2"), "push", ("conv2",), (), "Add", (Refusal(Reason.SHIFT_MEETS_PADDING, "conv2", "pads 1"),)
        ),
        Kept(subject("bn3"), (Refusal(Reason.READS_MODEL_INPUT, "x"), Refusal(Reason.OPERATOR_IS_NOT_LINEAR, "sig"))),
        Kept(subject("scale", "Mul-Add", 0), (Refusal(Reason.AXIS_NOT_PROVEN),)),
    ),
    Size(40, 3, 4096, 1024, Flops(Work(500, 24), {"x": (2, 3, 8, 8), "n": ()}), 5000),
    Size(38, 1, 4000, 1000, Flops(None, uncounted=(Uncounted("If", 1, "why"),), unknown="a size is not known")),
    Verification(
        (LocalCheck(("bn1",), 0.5, "y"), LocalCheck(("bn2",), None, "", "no kernel for Foo")),
        (
            QuickCheck(
                "cpu",
                (TensorComparison("y", (2, 8), "float32", inf, 0.0, 0.001, 1, (0, 3), note="NaN where 1.0 was"),),
                (
                    TensorComparison(
                        "t", (2, 8, 4), "float32", 1e-6, 2.5, 0.001, passed=True, oracle=Errors(0.5, 2e-7, 1e-7)
                    ),
                ),
                ("A note.",),
                ({"x": (2, 3, 8, 8), "n": ()},),
                "y",
                failed=True,
                proves=True,
                kinds=("zeros", "ones"),
                agreement=Agreement("top1", "y", 10, Count(10, 8, 9, 1, "sample 4: class 1 became 7")),
                deployed=Deployed(
                    original=Moved((TensorComparison("y", (2, 8), "float32", 0.5, 1.0, 0.001),)),
                    folded=Moved((), "no kernel for Foo"),
                    errors=(LevelErrors("y", 1e-7, 2e-7, 0.5, None),),
                    notes=("Another note.",),
                ),
                tf32=Tf32(Moved(), Moved((TensorComparison("y", (2, 8), "float32", 1e-4, 1.0, 0.03125, passed=True),))),
            ),
        ),
    ),
    ("onnxsim left 40 of 52 nodes",),
    (ScaleSpread("bn1", 8, 3, 1, (0.0, 0.5, 1.0, 1.5, inf)),),
    bench=BenchReport("net.onnx", "fused.onnx", {"x": (2, 3, 8, 8)}, 1, 5, (MEASURED,)),
)


def test_the_report_is_the_golden_one_to_the_byte() -> None:
    assert report_json(REPORT) == GOLDEN.read_text(encoding="ascii")


def test_all_decisions_have_the_same_keys() -> None:
    assert len({tuple(decision) for decision in json.loads(report_json(REPORT))["decisions"]}) == 1


def test_inspect_and_fold_report_the_same_decisions_under_the_same_keys() -> None:
    inspected = json.loads(report_json(bnfold.inspect(MODEL)))
    folded = json.loads(report_json(bnfold.fold(MODEL, verify=False).report))
    assert list(inspected) == list(folded) == list(json.loads(report_json(REPORT)))
    assert inspected["decisions"] == folded["decisions"]
    assert (inspected["after"], inspected["verification"], folded["verification"]) == (None, None, None)
    assert folded["summary"] == {"folded": 11, "reduced": 0, "kept": 0}


def test_the_report_of_one_model_has_the_same_bytes_every_time() -> None:
    assert report_json(bnfold.inspect(MODEL)) == report_json(bnfold.inspect(MODEL))


@pytest.mark.parametrize(("number", "text"), [(inf, "Infinity"), (-inf, "-Infinity"), (nan, "NaN")])
def test_a_figure_that_is_not_finite_is_a_name(number: float, text: str) -> None:
    local = LocalCheck(("bn1",), number, "y")
    shown = json.loads(verification_json("a.onnx", "b.onnx", Verification((local,), ())))
    assert shown["verification"]["local"][0]["ratio"] == text


def test_every_key_is_documented() -> None:
    documentation = (json_report.__doc__ or "") + (bench_report.__doc__ or "")
    missing = {key for key in keys(json.loads(report_json(REPORT))) if key not in documentation}
    assert not missing


def keys(tree: Any) -> set[str]:
    if isinstance(tree, list):
        return {key for part in tree for key in keys(part)}
    if not isinstance(tree, dict):
        return set()
    inputs = {"x", "n"}  # keys of a run are names of inputs
    return {key for key in tree if key not in inputs} | {key for part in tree.values() for key in keys(part)}


def test_a_comparison_of_two_files_names_both() -> None:
    verification = REPORT.verification
    assert verification is not None
    shown = json.loads(verification_json("a.onnx", "b.onnx", verification))
    assert list(shown) == ["schema_version", "before", "after", "verification"]
    assert shown["verification"] == json.loads(report_json(REPORT))["verification"]


def test_a_changed_report_changes_the_json() -> None:
    assert report_json(replace(REPORT, notes=())) != report_json(REPORT)
