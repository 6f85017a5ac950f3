"""`--reproduce` of `verify` and of `fold`: the smallest pair of models that differs, and nothing else of them."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cli_run import MODEL, Run, assert_one_sentence, names, written

import bnfold
from bnfold import checking
from bnfold.agreement import Agreement, Count
from bnfold.comparison import TensorComparison
from bnfold.judging import Errors
from bnfold.linear import LinearParams
from bnfold.quickcheck import QuickCheck
from bnfold.reproduction import FILES, _cuts, check_folder, reproduce, reproduce_failure
from bnfold.runtime import open_session


def damaged(model: ir.Model, place: int) -> ir.Model:
    """A copy in which one channel of the convolution at this place is off."""
    proto = ir.to_proto(model)
    weight = [tensor for tensor in proto.graph.initializer if len(tensor.dims) == 4][place]
    values = onnx.numpy_helper.to_array(weight).copy()
    values[3] *= 1.05
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    return ir.from_proto(proto)


def fused() -> ir.Model:
    return bnfold.fold(MODEL, verify=False).model


@pytest.mark.parametrize("place", [0, 5, 10])
def test_the_operators_that_differ_are_written_and_do_differ_on_the_inputs_beside_them(
    tmp_path: Path, place: int
) -> None:
    wrong = damaged(fused(), place)
    found = bnfold.verify(MODEL, wrong)
    operators = reproduce(MODEL, wrong, found, tmp_path / "made")
    assert names(tmp_path / "made") == sorted(FILES)
    before, after = (onnx.load(tmp_path / "made" / name) for name in FILES[:2])
    assert [node.op_type for node in before.graph.node] == ["Conv", "BatchNormalization"]
    assert [node.op_type for node in after.graph.node] == ["Conv"]
    assert operators == (after.graph.node[0].name,)
    with np.load(tmp_path / "made" / FILES[2]) as feeds:
        results = [open_session(part).run([found.quick[0].first_divergence], dict(feeds)) for part in (before, after)]
    (old,), (new,) = (result.values() for result in results)
    moved = np.abs(old - new).max(axis=(0, 2, 3))
    assert moved.argmax() == 3
    assert moved[3] > 1000 * np.delete(moved, 3).max()


def test_of_a_weight_that_is_off_by_a_thousandth_its_stage_is_written(tmp_path: Path) -> None:
    """No tensor differs by more than is allowed end to end, and what comes before the stage is not needed."""
    proto = ir.to_proto(fused())
    weight = [tensor for tensor in proto.graph.initializer if len(tensor.dims) == 4][6]
    values = onnx.numpy_helper.to_array(weight).copy()
    values[3, 3, 1 % values.shape[2], 1 % values.shape[3]] += 1e-3 * np.abs(values).max()
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    wrong = ir.from_proto(proto)
    found = bnfold.verify(MODEL, wrong)
    reproduce(MODEL, wrong, found, tmp_path)
    parts = [[node.op_type for node in onnx.load(tmp_path / name).graph.node] for name in FILES[:2]]
    assert parts == [["Conv", "BatchNormalization"], ["Conv"]]


@pytest.mark.parametrize(("ratio", "from_all"), [(1.5, True), (0.5, False), (None, False)])
def test_a_stage_is_cut_out_only_where_it_is_wrong(ratio: float | None, from_all: bool) -> None:
    """Of a tensor that differs end to end and not from what comes before it the fault lies before that."""
    stage = None if ratio is None else Errors(ratio, 0.0, 1e-3, believed=True)
    far = {"tolerance": 1e-3, "scale": 1.0, "error": 0.1}
    entries = (
        TensorComparison("a", (1,), "float32", 0.0, 1.0, 1e-3, passed=True),
        TensorComparison("b", (1,), "float32", **far),
        TensorComparison("c", (1,), "float32", **far, stage=stage),
    )
    check = QuickCheck("cpu", (), entries, (), ({"x": (1,)},), "c", failed=True, proves=True)
    first, *others = _cuts(bnfold.Verification((), (check,)), check)
    assert (first.ends, first.tensor, first.least) == ((("a", "b"), "c", 0.0) if from_all else (("a",), "c", 1e-3))
    assert [cut.ends for cut in others] == ([("a",), ()] if from_all else [()])


def test_the_callers_data_is_what_the_difference_is_shown_on(tmp_path: Path) -> None:
    wrong, batch = damaged(fused(), 0), np.full((2, 1, 8, 8), 100, np.float32)
    found = bnfold.verify(MODEL, wrong, data=[batch])
    reproduce(MODEL, wrong, found, tmp_path, data=[batch])
    with np.load(tmp_path / FILES[2]) as feeds:
        assert (feeds["images"] == batch).all()


def test_models_that_agree_have_nothing_to_reproduce(tmp_path: Path) -> None:
    model = fused()
    with pytest.raises(bnfold.UsageError, match="no difference inside the models"):
        reproduce(MODEL, model, bnfold.verify(MODEL, model), tmp_path)
    assert names(tmp_path) == []


def test_a_folder_with_something_in_it_is_refused_and_an_empty_or_new_one_is_not(tmp_path: Path) -> None:
    check_folder(tmp_path)
    check_folder(tmp_path / "new")
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(bnfold.UsageError, match="empty folder"):
            check_folder(path)


def test_the_command_writes_a_reproduction_only_of_what_differs(run: Run, tmp_path: Path) -> None:
    right, wrong, made = tmp_path / "right.onnx", tmp_path / "wrong.onnx", tmp_path / "made"
    bnfold.save(fused(), right)
    bnfold.save(damaged(fused(), 5), wrong)
    assert run("verify", MODEL, right, "--reproduce", made).code == 0
    assert not made.exists()
    outcome = run("verify", MODEL, wrong, "--reproduce", made, "--quiet")
    assert outcome.code == 1
    assert "/stage1/residual2/expand/conv/Conv of both models, which differ" in outcome.err
    assert names(made) == sorted(FILES)


def test_the_command_refuses_a_full_folder_before_any_work(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outcome = run("verify", MODEL, MODEL, "--reproduce", tmp_path)
    assert outcome.code == 2
    assert_one_sentence(outcome.err, "a reproduction needs an empty folder; name another one")


# Of a fold that fails


def break_folds(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Every weight that takes in a BatchNorm is off by this factor."""
    right = LinearParams.absorb_output

    def wrong(self: LinearParams, *arguments: Any) -> LinearParams:
        folded = right(self, *arguments)
        return LinearParams(folded.weight * factor, folded.bias)

    monkeypatch.setattr(LinearParams, "absorb_output", wrong)


def differences(folder: Path) -> float:
    """The largest difference of what the two files compute on the inputs beside them, relative to its size."""
    with np.load(folder / FILES[2]) as archive:
        feeds = dict(archive)
    parts = [onnx.load(folder / name) for name in FILES[:2]]
    (name,) = (value.name for value in parts[0].graph.output)
    old, new = (
        open_session(part).run([name], {v.name: feeds[v.name] for v in part.graph.input})[name] for part in parts
    )
    return float(np.abs(old - new).max() / np.abs(old).max())


def test_a_fold_that_fails_writes_the_reproduction_and_nothing_else(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_folds(monkeypatch, 1.05)
    made, output = tmp_path / "made", tmp_path / "fused.onnx"
    outcome = run(MODEL, "-o", output, "--reproduce", made, "--quiet")
    assert (outcome.code, outcome.out, names(tmp_path)) == (1, "", ["made"])
    first, last = outcome.err.splitlines()
    assert first.startswith(f"bnfold: {made}: /stem/conv/Conv of both models, which differ, and their inputs")
    assert "the folded model differs" in last
    assert names(made) == sorted(FILES)
    assert [node.op_type for node in onnx.load(made / FILES[0]).graph.node] == ["Conv", "BatchNormalization"]
    assert differences(made) > 0.01


def test_a_fold_that_only_its_own_test_finds_wrong_is_reproduced_where_that_says(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_folds(monkeypatch, 1 + 2e-5)
    made = tmp_path / "made"
    outcome = run(MODEL, "-o", tmp_path / "fused.onnx", "--reproduce", made, "--quiet")
    assert outcome.code == 1
    assert "is wrong at" in outcome.err
    assert names(made) == sorted(FILES)
    assert 1e-6 < differences(made) < 1e-3


def test_of_small_errors_that_add_up_all_operators_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no stage shows the first of them."""
    with monkeypatch.context() as broken:
        break_folds(broken, 1 + 2e-5)
        wrong = fused()
    fine = Errors(0.5, 1e-7, 1e-7)
    monkeypatch.setattr("bnfold.oracle.judge_stages", lambda repeat, *_: {e.name: fine for e in repeat.check.inner})
    found = bnfold.verify(MODEL, wrong)
    assert found.failed
    operators = reproduce(MODEL, wrong, found, tmp_path / "made")
    assert operators[0].startswith("/stem/conv/Conv")
    assert len(operators) > 5
    assert differences(tmp_path / "made") > 1e-4


def test_a_fold_that_passes_makes_no_folder(run: Run, tmp_path: Path) -> None:
    assert run(MODEL, "-o", tmp_path / "fused.onnx", "--reproduce", tmp_path / "made").code == 0
    assert names(tmp_path) == ["fused.onnx"]


def test_a_fold_after_a_recalibration_is_reproduced_against_the_recalibrated_model(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "data.npy", np.random.default_rng(0).random((64, 1, 8, 8), dtype=np.float32))
    break_folds(monkeypatch, 1.05)
    made = tmp_path / "made"
    outcome = run(
        MODEL, "-o", tmp_path / "fused.onnx", "--calibrate", tmp_path / "data.npy", "--reproduce", made, "--quiet"
    )
    assert outcome.code == 1
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(MODEL).graph.initializer}
    parts = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(made / FILES[0]).graph.initializer}
    means = [name for name in parts if "running_mean" in name]
    assert means
    assert not any(np.array_equal(parts[name], stored[name]) for name in means)


def test_decisions_that_alone_differ_have_no_part_to_cut_out_and_exit_with_1(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Agreement("top1", "logits", 4, Count(4, 3, 4, 1, "sample 2: class 1 became 7"))
    monkeypatch.setattr(checking, "measure", lambda *_, **__: found)
    np.save(tmp_path / "data.npy", np.random.default_rng(0).random((4, 1, 8, 8), dtype=np.float32))
    given = ("--metric", "top1", "--verify-data", tmp_path / "data.npy", "--reproduce", tmp_path / "made", "--quiet")
    bnfold.save(fused(), tmp_path / "right.onnx")
    for call in ((MODEL, "-o", tmp_path / "fused.onnx"), ("verify", MODEL, tmp_path / "right.onnx")):
        outcome = run(*call, *given)
        assert outcome.code == 1
        says = "no reproduction is written: " + str(tmp_path / "made") + ": decisions differ, and no tensor by more"
        assert outcome.err.count(says) == 1
        assert names(tmp_path) == ["data.npy", "right.onnx"]


def test_what_lies_in_a_body_is_not_cut_out_and_says_so(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    f (float[2,1,6,6] x, bool c) => (float[2,1,4,4] y)
    <float[1,1,3,3] w = {1,2,3,4,5,6,7,8,9}, float[1] g = {2}, float[1] b = {1}, float[1] m = {3}, float[1] v = {4}> {
      y = If(c) <
        then_branch = t () => (float[2,1,4,4] p) { q = Conv(x, w) p = BatchNormalization(q, g, b, m, v) },
        else_branch = e () => (float[2,1,4,4] r) { s = Conv(x, w) r = Neg(s) }>
    }"""
    break_folds(monkeypatch, 1 + 2e-5)
    model = written(tmp_path, text)
    outcome = run(model, "-o", tmp_path / "fused.onnx", "--reproduce", tmp_path / "made", "--quiet")
    assert outcome.code == 1
    assert "no reproduction is written" in outcome.err
    assert "no part of the main graph differs on cpu" in outcome.err
    assert names(tmp_path) == ["model.onnx"]


def test_models_of_other_outputs_have_nothing_to_cut_out(tmp_path: Path) -> None:
    graph = '<ir_version: 8, opset_import: ["" : 17]> f (float[2] x) => (float[2] {0}) {{ {0} = Relu(x) }}'
    paths = [written(tmp_path, graph.format(name), f"{name}.onnx") for name in ("y", "z")]
    found = bnfold.verify(*paths)
    assert found.failed
    with pytest.raises(bnfold.UsageError, match="inputs or outputs of the models differ"):
        reproduce(*paths, found, tmp_path / "made")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--reproduce", "FULL"), "a reproduction needs an empty folder; name another one"),
        (("--reproduce", "FULL/file"), "a reproduction needs an empty folder; name another one"),
        (("--reproduce", "FULL/file/below"), "is no folder; name another one"),
        (("--reproduce", "made", "--no-verify"), "is for a check that fails, and the check is left out"),
        (("--reproduce", "made", "--manifest", "made"), "a reproduction has a folder to itself"),
        (("--reproduce", "made", "--report", "made.html", "--report", "made/r.html"), "does not exist"),
    ],
)
def test_a_place_that_cannot_be_is_refused_before_any_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], says: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    monkeypatch.chdir(tmp_path)
    outcome = run(MODEL, "-o", "fused.onnx", *(word.replace("FULL", "full") for word in options))
    assert (outcome.code, outcome.out) == (2, "")
    assert_one_sentence(outcome.err, says)
    assert names(tmp_path) == ["full"]


def test_the_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in (".", tmp_path):
        with pytest.raises(bnfold.UsageError, match="empty folder"):
            check_folder(place)


@pytest.mark.parametrize("there", [True, False])
def test_a_full_disk_leaves_no_part_of_a_reproduction_and_the_code_is_that_of_the_check(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    break_folds(monkeypatch, 1.05)
    monkeypatch.setattr(np, "savez", full)
    made = tmp_path / "made"
    if there:
        made.mkdir()
    outcome = run(MODEL, "-o", tmp_path / "fused.onnx", "--reproduce", made, "--quiet")
    assert outcome.code == 1
    assert f"no reproduction is written: {made}: the disk is full" in outcome.err
    assert names(tmp_path) == (["made"] if there else [])
    assert not there or names(made) == []


def test_what_came_into_the_folder_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, save = tmp_path / "made", np.savez
    made.mkdir()

    def busy(*arguments: Any, **arrays: Any) -> None:
        (made / "other").write_text("mine")
        save(*arguments, **arrays)

    wrong = damaged(fused(), 0)
    found = bnfold.verify(MODEL, wrong)
    monkeypatch.setattr(np, "savez", busy)
    with pytest.raises(bnfold.MachineError, match="cannot be written"):
        reproduce(MODEL, wrong, found, made)
    assert names(tmp_path) == ["made"]
    assert (made / "other").read_text() == "mine"


def test_a_failure_carries_what_python_needs_to_reproduce_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_folds(monkeypatch, 1.05)
    with pytest.raises(bnfold.VerificationError) as caught:
        bnfold.fold(MODEL)
    reproduce_failure(caught.value, tmp_path / "made")
    assert differences(tmp_path / "made") > 0.01


def test_a_failure_without_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(bnfold.UsageError, match="no fold of an ONNX model"):
        reproduce_failure(bnfold.VerificationError("the export differs"), tmp_path / "made")
