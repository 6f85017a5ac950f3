"""`benchmarks/right_folds.py`: its truth is one, its models are what they are called, and no alarm is overlooked."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import bnfold
from benchmarks import right_fold_judge, right_folds
from benchmarks.right_fold_cases import KINDS, Case, Subject, cases
from benchmarks.right_fold_judge import RULES, Row, coarsest, examine, judge
from benchmarks.right_fold_nets import Style, grown
from benchmarks.right_fold_page import page
from benchmarks.right_fold_run import known
from benchmarks.right_fold_torch import truth
from benchmarks.wrong_folds import Caught
from bnfold.frontends.onnx_float64 import evaluate, in_float64

U = 2.0**-24
STYLES = {
    "float32": Style(ratio=1000, layers=(12, 12), zero=0.2),
    "float16": Style(dtype="float16"),
    "bfloat16": Style(dtype="bfloat16"),
    "float64": Style(dtype="float64", dense=True),
    "int8": Style(quantised=True, small=1e-8),
}
RIGHT = Row(
    "mean-1 #0", "mean-1", "right", folded=2, ratio=0.1, asked=3, local=0.5, stage=0.2, blamed=(next(iter(RULES)),)
)
CAUGHT = Caught("wrong channel", 0, 9, caught=True, local=True, first=True, named=True)


def noise(model: onnx.ModelProto, samples: int) -> dict[str, np.ndarray]:
    (value,) = model.graph.input
    shape = samples, *(d.dim_value for d in value.type.tensor_type.shape.dim[1:])
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return {value.name: np.random.default_rng(3).standard_normal(shape).astype(dtype)}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("seed", range(3))
def test_the_truth_by_torch_is_that_of_onnx_in_float64(style: str, seed: int) -> None:
    """Two implementations that share no code."""
    model = grown(STYLES[style], seed)
    onnx.checker.check_model(model, full_check=True)
    feeds = noise(model, 4)
    for name, expected in evaluate(in_float64(model), feeds).items():
        assert np.abs(truth(model, feeds)[name] - expected).max() <= 1e-11 * np.abs(expected).max()


@pytest.mark.parametrize("ratio", [10.0, 1000.0])
def test_the_means_are_as_many_standard_deviations_from_zero_as_asked(ratio: float) -> None:
    model = grown(Style(ratio=ratio, layers=(10, 10)), 1)
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    found = [np.abs(arrays[norm.input[3]]) / np.sqrt(arrays[norm.input[4]]) for norm in norms]
    assert len(norms) >= 10
    assert max(each.max() for each in found) > 0.5 * ratio
    assert np.median([np.median(each) for each in found]) > 0.25 * ratio


def test_there_are_1000_models_and_more_each_by_its_own_name() -> None:
    keys = [case.key for case in cases()]
    assert len(keys) == len(set(keys)) > 1000
    assert {case.kind for case in cases()} == set(KINDS)


@pytest.mark.parametrize("kind", ["mean-1000", "float64-1000", "int8", "random"])
def test_a_right_fold_passes_and_is_counted(kind: str, tmp_path: Path) -> None:
    row = examine(Case(kind, 1 if kind == "random" else 0), tmp_path)
    assert (row.state, row.alarm) == ("right", "")
    assert row.folded > 0
    assert row.ratio <= 1
    assert row.verified == ""
    for figure in (row.local, row.stage):
        assert figure is not None
        assert 0 < figure <= 1
    assert ("rtol 1e-4, atol 1e-5 (onnxsim)" in row.blamed) == (kind == "mean-1000")


def test_an_alarm_about_a_right_fold_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fold = bnfold.fold

    def alarmed(model: ir.Model, *, verify: bool = True, **options: object) -> bnfold.FoldResult:
        if verify:
            raise bnfold.VerificationError("the folded model differs")
        return fold(model, verify=False)

    monkeypatch.setattr(right_fold_judge.bnfold, "fold", alarmed)
    row = examine(Case("mean-1", 0), tmp_path)
    assert (row.state, row.alarm) == ("right", "VerificationError: the folded model differs")


def test_a_wrong_fold_is_not_right(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fold = bnfold.fold

    def damaged(model: ir.Model, **options: object) -> bnfold.FoldResult:
        made = fold(model, verify=False)
        for name, value in made.model.graph.initializers.items():
            if name.endswith("_folded") and value.const_value is not None and value.const_value.shape.rank() > 1:
                value.const_value = ir.Tensor(value.const_value.numpy() * np.float32(1.001), name=name)
        return made

    monkeypatch.setattr(right_fold_judge.bnfold, "fold", damaged)
    assert examine(Case("mean-1", 0), tmp_path).state == "WRONG"


def test_dead_and_chaotic_models_do_not_count() -> None:
    x = {"x": np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)}
    wide, narrow = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    rules = [
        ("dead", wide, lambda v: 0 * v + 1),
        ("chaotic", wide, lambda v: np.sin(1e6 * v)),
        ("", wide, lambda v: 3 * v),
        ("", wide, lambda v: 1 + 0.01 * np.tanh(3 * v)),
        ("dead", narrow, lambda v: 1 + 0.01 * np.tanh(3 * v)),  # two runs in float16 may differ by more
    ]
    for state, kind, rule in rules:
        model = onnx.ModelProto()
        model.graph.input.append(onnx.helper.make_tensor_value_info("x", kind, None))
        subject = Subject(model, {}, x, x, lambda feeds, rule=rule: {"y": rule(feeds["x"].astype(np.float64))})
        assert right_fold_judge._state(subject, subject.truth(x)) == state


def test_the_rule_grants_four_errors_of_the_original_and_64_roundings() -> None:
    exact = {"y": np.random.default_rng(0).standard_normal((16, 4, 5))}
    scale = np.abs(exact["y"]).max(axis=(0, 2), keepdims=True)
    for part, passes in ((0.99, True), (1.01, False)):
        assert (judge(exact, exact, {"y": exact["y"] + part * 64 * U * scale}, U) <= 1) == passes
        was = {"y": exact["y"] + 1e-3}
        assert (judge(exact, was, {"y": exact["y"] + part * (4e-3 + 64 * U * scale)}, U) <= 1) == passes
    spoilt = exact["y"].copy()
    spoilt[0, 0, 0] = np.nan
    assert judge(exact, exact, {"y": spoilt}, U) == np.inf
    assert judge(exact, exact, {"y": exact["y"][:8]}, U) == np.inf


def test_the_coarsest_stored_type_sets_the_unit() -> None:
    units = [coarsest(grown(STYLES[style], 0)) for style in STYLES]
    assert units == [U, 2.0**-11, 2.0**-8, 2.0**-53, U]


@pytest.mark.parametrize(
    ("rule", "passes", "fails"),
    [
        ("rtol 1e-5, atol 1e-8 (NumPy, torch)", 0.9e-5, 1.2e-5),
        ("rtol 1e-4, atol 1e-5 (onnxsim)", 1.0e-4, 1.2e-4),
        ("rtol 1e-3, atol 1e-4 (onnxslim)", 1.0e-3, 1.2e-3),
        ("rel 1e-5 or abs 1e-5 (Polygraphy)", 0.9e-5, 1.2e-5),
    ],
)
def test_the_rules_of_the_peers_are_theirs(rule: str, passes: float, fails: float) -> None:
    one = np.ones(3)
    assert not RULES[rule](one, one + np.array([0, passes, 0]))
    assert RULES[rule](one, one + np.array([0, fails, 0]))


def test_polygraphy_wants_both_errors_to_be_large() -> None:
    rule = RULES["rel 1e-5 or abs 1e-5 (Polygraphy)"]
    assert not rule(np.array([1e-3]), np.array([1e-3 + 9e-6]))  # relatively large
    assert not rule(np.array([1e3]), np.array([1e3 + 9e-3]))  # absolutely large


def test_rows_are_kept_and_a_line_that_was_cut_off_is_not(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert known(path) == {}
    line = json.dumps(asdict(RIGHT))
    path.write_text(f"{line}\n{line[:40]}", encoding="utf-8")
    assert known(path) == {RIGHT.key: RIGHT}


@pytest.mark.parametrize(
    ("row", "caught", "code"),
    [
        (RIGHT, CAUGHT, 0),
        (replace(RIGHT, state="dead", alarm="nothing is proven"), CAUGHT, 0),
        (replace(RIGHT, alarm="nothing is proven"), CAUGHT, 1),
        (replace(RIGHT, verified="nothing is proven"), CAUGHT, 1),
        (replace(RIGHT, state="WRONG"), CAUGHT, 1),
        (RIGHT, replace(CAUGHT, caught=False), 1),
    ],
    ids=["all is well", "not counted", "false alarm", "false alarm of verify", "wrong fold", "missed"],
)
def test_the_exit_code_says_whether_all_is_well(
    row: Row, caught: Caught, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target = tmp_path / "page.md"
    arguments = ["right_folds", "--only", "^mean-1$", "--cache", str(tmp_path), "--markdown", str(target)]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(right_folds, "examined", lambda *_: iter([row]))
    monkeypatch.setattr(right_folds, "tried", lambda *_: [caught])
    assert right_folds.main() == code
    assert target.read_text(encoding="utf-8").startswith("# Right folds, and wrong ones")


def test_the_page_counts_what_is_right_and_names_what_does_not_count() -> None:
    text = page(
        [RIGHT, replace(RIGHT, alarm="x"), replace(RIGHT, state="dead")], [CAUGHT, replace(CAUGHT, named=False)]
    )
    assert "**2 right folds, 1 false alarms, 0 by `bnfold verify`.** 0 folds of bnfold were not right." in text
    assert "In 2 the float64 oracle was asked first, about 6 tensors." in text
    assert "2 by rtol 1e-5, atol 1e-8 (NumPy, torch); 0 by" in text
    assert "**Of 2 folds made wrong on purpose 2 were caught and 1 named.**" in text
    assert "| means of 1 standard deviation | 2 | 1 | 0 | 2 / 6 | 0.50 | 0.20 | 0.10 | 2 | 0 | 0 | 0 |" in text
    assert "Not counted, of 3 models: dead: 1." in text
    assert "| wrong channel | 2 | 2 | 1 | 2 | 2 |" in text
