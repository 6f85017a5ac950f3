"""The verifier tries itself: a damaged weight is seen in every kind of fold, and a blind verifier proves nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_run import MODEL, Run, assert_one_sentence, names
from onnx_models import parse
from test_localcheck import CASES, folded

import bnfold
from bnfold import localcheck
from bnfold.localcheck import LocalCheck, local_check
from bnfold.selftest import TRIES, VISIBLE, SelfTest, try_itself
from bnfold.verification import Verification

OLD = parse("(float[N,3] x) => (float[N,3] y) <float[5,3] w, float[3] same> { a = Add(x, same) y = Gemm(a, w) }")


def changed() -> onnx.ModelProto:
    new = onnx.ModelProto()
    new.CopyFrom(OLD)
    (weight,) = (tensor for tensor in new.graph.initializer if tensor.name == "w")
    weight.CopyFrom(onnx.numpy_helper.from_array(np.arange(15, dtype=np.float32).reshape(5, 3), "w"))
    return new


def difference(other: onnx.ModelProto) -> np.ndarray:
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in other.graph.initializer}
    before = {t.name: onnx.numpy_helper.to_array(t) for t in changed().graph.initializer}
    assert (arrays["same"] == before["same"]).all()
    return np.asarray(arrays["w"] - before["w"])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["float", "float16", "double"])
def test_a_damaged_weight_is_seen_in_every_kind_of_fold(case: str, kind: str) -> None:
    before, after, graph, planned = folded(CASES[case], kind)
    (result,) = local_check(before, after, planned, graph.spans(), tries=True)
    assert result.passed
    assert result.tried is not None
    assert result.tried.weight == "w_folded"
    assert result.tried.ratio > 1


def test_nobody_damages_anything_unasked() -> None:
    before, after, graph, planned = folded(CASES["conv"])
    (result,) = local_check(before, after, planned, graph.spans())
    assert result.tried is None


def test_one_number_of_the_changed_constant_is_off_by_a_thousandth_of_the_largest() -> None:
    seen = []
    try_itself(("b",), OLD, changed(), lambda _, damaged: seen.append(difference(damaged)) or 2.0)  # type: ignore[func-returns-value]
    (step,) = seen
    assert np.flatnonzero(step).tolist() == [14]
    assert step.ravel()[14] == pytest.approx(VISIBLE * 14, rel=1e-3)


def test_a_blind_verifier_is_tried_on_several_channels_and_found_out() -> None:
    seen = []
    found = try_itself(("b",), OLD, changed(), lambda _, damaged: seen.append(np.argmax(difference(damaged))) or 0.5)  # type: ignore[func-returns-value]
    assert seen == [14, 11, 8, 5]
    assert len(seen) == TRIES
    assert not found.seen
    check = LocalCheck(("b",), 0.5, "y", "the test does not see w when it is damaged", found)
    assert not check.passed
    assert "does not see w" in Verification((check,), ()).doubt


def test_a_channel_that_is_not_seen_is_not_the_last_word() -> None:
    answers = iter([0.5, 3.0])
    assert try_itself(("b",), OLD, changed(), lambda *_: next(answers)) == SelfTest(("b",), "w", 3.0)


def test_of_several_channels_that_are_not_seen_the_one_with_the_largest_error_is_told() -> None:
    answers = iter([0.2, 0.9, 0.5, 0.1])
    assert try_itself(("b",), OLD, changed(), lambda *_: next(answers)).ratio == 0.9


def holding(**arrays: np.ndarray) -> onnx.ModelProto:
    held = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    return onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], held))


def damage(**arrays: np.ndarray) -> tuple[str, float]:
    """The first number that is damaged of constants that all changed: its constant's name, and by how much."""
    new, seen = holding(**arrays), []

    def compare(_: onnx.ModelProto, damaged: onnx.ModelProto) -> float:
        seen.append({t.name: onnx.numpy_helper.to_array(t) for t in damaged.graph.initializer})
        return 2.0

    weight = try_itself(("b",), holding(), new, compare).weight
    if not weight:
        assert seen == []
        return "", 0.0
    assert all((seen[0][name] == array).all() for name, array in arrays.items() if name != weight)
    moved = seen[0][weight].astype(np.float64) - arrays[weight].astype(np.float64)
    return weight, float(moved.sum())


def test_the_largest_changed_constant_of_floating_type_is_damaged() -> None:
    small, large = np.ones(3, np.float32), np.ones((2, 3), np.float32)
    assert damage(small=small, large=large)[0] == damage(large=large, small=small)[0] == "large"
    assert damage(small=small, codes=np.ones((9, 9), np.int8))[0] == "small"


@pytest.mark.parametrize(
    "array",
    [np.ones((), np.float32), np.ones((3, 0), np.float32), np.ones(4, np.int8)],
    ids=["scalar", "empty", "codes"],
)
def test_what_has_no_channels_no_numbers_or_no_floating_ones_is_not_damaged(array: np.ndarray) -> None:
    assert damage(w=array) == ("", 0.0)


@pytest.mark.parametrize(("dtype", "step"), [("float64", 1e-3), ("float32", 1e-3), ("float16", 16 * 2.0**-11)])
def test_the_damage_is_a_thousandth_of_the_largest_or_sixteen_roundings(dtype: str, step: float) -> None:
    assert damage(w=np.array([1.0, -4.0, 2.0], dtype)) == ("w", pytest.approx(4 * step, rel=0.05))


def test_a_constant_that_is_zero_throughout_is_damaged_as_well() -> None:
    assert damage(w=np.zeros(3, np.float32)) == ("w", 1.0)


def test_an_error_without_end_is_seen() -> None:
    assert try_itself(("b",), OLD, changed(), lambda *_: float("nan")).seen


def test_where_no_constant_changed_there_is_nothing_to_damage() -> None:
    found = try_itself(("b",), OLD, OLD, lambda *_: 0.0)
    assert found == SelfTest(("b",), "", 0.0)
    assert found.seen


def test_the_command_tries_its_check_and_says_what_it_saw(run: Run, tmp_path: Path) -> None:
    outcome = run(MODEL, "-o", tmp_path / "fused.onnx", "--self-test")
    assert outcome.code == 0
    assert "a damaged weight is seen in 11 of 11" in " ".join(outcome.err.split())
    printed = run(MODEL, "-o", tmp_path / "fused.onnx", "--self-test", "--json")
    trials = [check["damaged"] for check in json.loads(printed.out)["verification"]["local"]]
    assert all(trial["seen"] and trial["ratio"] > 1 and trial["weight"] for trial in trials)
    assert len(trials) == 11


def test_a_check_that_does_not_see_the_damage_proves_nothing_and_nothing_is_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localcheck, "_ratio", lambda *_: 0.0)
    outcome = run(MODEL, "-o", tmp_path / "fused.onnx", "--self-test", "--quiet")
    assert outcome.code == 3
    assert_one_sentence(outcome.err, "the test does not see")
    assert names(tmp_path) == []


def test_without_a_check_there_is_nothing_to_try() -> None:
    with pytest.raises(bnfold.UsageError, match="self_test is for the check, which is left out"):
        bnfold.fold(MODEL, verify=False, self_test=True)
