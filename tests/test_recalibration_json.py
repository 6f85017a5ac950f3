"""The JSON of a recalibration: one golden file, every key always there, no number that JSON does not have."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from bnfold.drift import Hindrance, Left, Recalibrated, Statistics
from bnfold.footprint import Footprint
from bnfold.recalibration import Settings
from bnfold.report import recalibration_report
from bnfold.report.json_report import report_json
from bnfold.report.model import Report, Size
from bnfold.report.recalibration_report import RecalibrationReport, by_drift

GOLDEN = Path(__file__).parent / "golden" / "recalibration-1.json"


def statistics(mean: list[float], variance: list[float]) -> Statistics:
    return Statistics(np.array(mean), np.array(variance))


REPORT = RecalibrationReport(
    "net.onnx",
    Settings("ema", 0.25, bessel=True),
    samples=37,
    batches=5,
    recalibrated=by_drift(
        [
            Recalibrated(
                "bn1",
                ("bn1", "größe"),
                0.25,
                statistics([0.5, 1.0], [3.75, 0.0]),
                statistics([2.5, 1.0], [7.75, 0.0]),
                37,
                (1,),
            ),
            Recalibrated("bn2", ("bn2",), 0.0, statistics([1.0], [0.0]), statistics([2.0], [nan]), 1332),
        ]
    ),
    left=(Left("bn3", Hindrance.INSIDE_BODY, "loop"), Left("bn4", Hindrance.SAW_NO_SAMPLE)),
    notes=("A note",),
    footprint=Footprint(1024, 4096, 512, is_whole=True),
)


def test_the_report_is_the_golden_one_to_the_byte() -> None:
    assert REPORT.to_json() == GOLDEN.read_text(encoding="ascii")


def test_the_golden_report_fits_its_schema() -> None:
    schema = json.loads((files("bnfold.report") / "schemas" / "recalibrate-1.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator(schema).validate(json.loads(GOLDEN.read_text(encoding="ascii")))


def test_every_key_is_documented() -> None:
    documentation = recalibration_report.__doc__ or ""
    assert not {key for key in keys(json.loads(REPORT.to_json())) if key not in documentation}


def keys(tree: Any) -> set[str]:
    if isinstance(tree, list):
        return {key for part in tree for key in keys(part)}
    return set(tree) | {key for part in tree.values() for key in keys(part)} if isinstance(tree, dict) else set()


def test_the_keys_and_their_order_do_not_depend_on_what_there_is_to_say() -> None:
    bare = RecalibrationReport("net", Settings(), 0, 0, ())
    assert list(json.loads(bare.to_json())) == list(json.loads(REPORT.to_json()))
    assert json.loads(bare.to_json())["momentum"] is None
    assert json.loads(bare.to_json())["footprint"] is None


def test_the_one_that_drifted_most_comes_first_and_equal_ones_in_the_order_of_the_model() -> None:
    assert [entry.name for entry in REPORT.recalibrated] == ["bn2", "bn1"]
    twins = [replace(REPORT.recalibrated[1], name=name) for name in ("z", "a", "m")]
    assert [entry.name for entry in by_drift(twins)] == ["z", "a", "m"]


@pytest.mark.parametrize(("number", "text"), [(inf, "Infinity"), (-inf, "-Infinity"), (nan, "NaN"), (0.5, 0.5)])
def test_a_figure_that_is_not_finite_is_a_name(number: float, text: str | float) -> None:
    entry = replace(REPORT.recalibrated[1], new=statistics([number, 1.0], [1.0, 1.0]))
    (shown,) = json.loads(replace(REPORT, recalibrated=(entry,)).to_json())["recalibrated"]
    assert shown["new"]["mean"][0] == text


def test_inside_the_report_of_a_fold_it_is_the_same() -> None:
    size = Size(1, 1, 8)
    fold = Report("net.onnx", (), size, size, recalibration=REPORT)
    assert json.loads(report_json(fold))["recalibration"] == json.loads(REPORT.to_json())
