"""The published JSON schemas: they describe every key that is there, and what bnfold prints fits them."""

from __future__ import annotations

import copy
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_run import MODEL, Run
from jsonschema import Draft202012Validator, ValidationError

import bnfold

GOLDEN = Path(__file__).parent / "golden"


def schema(name: str) -> Draft202012Validator:
    """The published schema, made so strict that a key which it does not describe is an error."""
    published = json.loads((files("bnfold.report") / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(published)
    return Draft202012Validator(_closed(published))


def _closed(tree: Any) -> Any:
    if isinstance(tree, list):
        return [_closed(entry) for entry in tree]
    if isinstance(tree, dict):
        return {key: False if key == "additionalProperties" and value is True else _closed(value)
                for key, value in tree.items()}  # fmt: skip
    return tree


def test_the_golden_report_fits_its_schema() -> None:
    schema("fold-1").validate(json.loads((GOLDEN / "report-1.json").read_text(encoding="ascii")))


@pytest.mark.parametrize("key", ["recalibration", "summary", "decisions", "verification", "scales"])
def test_a_report_without_a_key_does_not_fit(key: str) -> None:
    tree = json.loads((GOLDEN / "report-1.json").read_text(encoding="ascii"))
    lacking = copy.deepcopy(tree)
    del lacking[key]
    for wrong in (lacking, tree | {key: 1}, tree | {"unknown": 1}):
        with pytest.raises(ValidationError):
            schema("fold-1").validate(wrong)


def test_what_the_commands_print_fits_the_schemas(run: Run, tmp_path: Path) -> None:
    output, data = tmp_path / "fused.onnx", tmp_path / "data.npy"
    np.save(data, np.random.default_rng(0).random((64, 1, 8, 8), dtype=np.float32))
    schema("fold-1").validate(json.loads(run(MODEL, "-o", output, "--json").out))
    schema("fold-1").validate(json.loads(run("inspect", MODEL, "--json").out))
    schema("verify-1").validate(json.loads(run("verify", MODEL, output, "--json").out))
    moved = run("recalibrate", MODEL, "--data", data, "-o", tmp_path / "moved.onnx", "--json")
    schema("recalibrate-1").validate(json.loads(moved.out))
    both = json.loads(run(MODEL, "--calibrate", data, "-o", output, "--json").out)
    schema("fold-1").validate(both)
    schema("recalibrate-1").validate(both["recalibration"])


def test_an_average_over_batches_says_its_momentum() -> None:
    batch = np.random.default_rng(0).random((64, 1, 8, 8), dtype=np.float32)
    report = bnfold.recalibrate(MODEL, [batch], method="ema").report
    schema("recalibrate-1").validate(json.loads(report.to_json()))
