"""`verify --reproduce`: the smallest pair of models that differs, and nothing else of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cli_run import MODEL, Run, assert_one_sentence, names

import bnfold
from bnfold.reproduction import FILES, check_folder, reproduce
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
