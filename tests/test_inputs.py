"""Inputs that the caller fixes: the same in every run, and one clear sentence for what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_models import PARAMETERS, STATS, parse, proto

import bnfold
from bnfold.data import read_inputs
from bnfold.errors import BnfoldError, DataError, UsageError
from bnfold.inputs import fixed_inputs

GATHER = f"""(float[N,3,8,8] x, int64[5] indices) => (float[N,5,6,6] y) <float[4,3,3,3] w, {PARAMETERS}>
    {{ c = Conv(x, w) b = BatchNormalization(c, {STATS}) g = Gather<axis=1>(b, indices) y = Relu(g) }}"""
INDICES = np.array([3, 2, 1, 0, 3])


def model() -> ir.Model:
    return ir.from_proto(parse(GATHER))


def test_a_fixed_input_is_the_same_in_every_run_and_shows_what_made_up_ones_do_not() -> None:
    """Channel 3 is wrong, which indices of 0 and 1 never take."""
    right, wrong = model(), model()
    shift = wrong.graph.initializers["beta"]
    assert shift.const_value is not None
    shift.const_value = ir.Tensor(shift.const_value.numpy() + np.float32([0, 0, 0, 1]), name="beta")
    found = bnfold.verify(right, wrong, inputs={"indices": INDICES})
    assert found.failed
    (output,) = found.quick[0].comparisons
    assert output.failed
    unseen = bnfold.verify(right, wrong)
    assert not unseen.quick[0].comparisons[0].failed
    assert bnfold.verify(right, right, inputs={"indices": INDICES}).passed


def test_a_fold_is_verified_with_fixed_inputs_and_with_data_for_the_others(tmp_path: Path) -> None:
    np.save(tmp_path / "indices.npy", INDICES.astype(np.int32))
    images = np.random.default_rng(0).standard_normal((6, 3, 8, 8)).astype(np.float32)
    report = bnfold.fold(
        model(), inputs={"indices": tmp_path / "indices.npy"}, data=[{"x": images}], oracle=True
    ).report
    assert report.verification is not None
    check = report.verification.quick[0]
    assert check.passed
    assert check.given == 1
    assert check.runs[-1] == {"x": (6, 3, 8, 8), "indices": (5,)}
    assert all(entry.oracle is not None for entry in check.comparisons)


def test_the_shape_of_a_fixed_input_fixes_the_sizes_of_the_others() -> None:
    net = parse("(float[N,3] x, float[N,3] k) => (float[N,3] y) { y = Mul(x, k) }")
    found = bnfold.verify(ir.from_proto(net), ir.from_proto(net), inputs={"k": np.ones((7, 3), np.float32)})
    assert {run["x"] for run in found.quick[0].runs} == {(7, 3)}


def written(folder: Path, array: Any) -> Path:
    file = folder / "a.npy"
    np.save(file, array)
    return file


@pytest.mark.parametrize(
    ("name", "array", "kind", "says"),
    [
        ("index", INDICES, UsageError, "the model has no input 'index'; its inputs are x, indices"),
        ("indices", INDICES[:4], DataError, "the shape for the input 'indices' is 4, the model takes 5"),
        ("indices", INDICES[None], DataError, "the shape for the input 'indices' is 1x5, the model takes 5"),
        ("indices", INDICES / 2, DataError, "the input 'indices' takes int64 and the data is float64"),
        ("x", np.ones((1, 3, 8, 8), np.int64), DataError, "the input 'x' takes float32 and the data is int64"),
        ("x", np.full((1, 3, 8, 8), np.nan), DataError, "holds NaN or infinity"),
    ],
)
def test_an_array_that_does_not_fit_is_one_sentence(
    tmp_path: Path, name: str, array: np.ndarray, kind: type[BnfoldError], says: str
) -> None:
    file = written(tmp_path, array)
    with pytest.raises(kind) as caught:
        fixed_inputs({name: str(file)}, read_inputs(proto(model())))
    assert says in str(caught.value)
    assert kind is UsageError or str(file) in str(caught.value)
    with pytest.raises(kind):
        fixed_inputs({name: array}, read_inputs(proto(model())))


def test_whole_numbers_of_another_width_become_the_models() -> None:
    (found,) = fixed_inputs({"indices": INDICES.astype(np.uint8)}, read_inputs(proto(model()))).values()
    assert found.dtype == np.int64
    assert np.array_equal(found, INDICES)


def test_a_file_that_is_missing_or_no_npy_is_one_sentence(tmp_path: Path) -> None:
    inputs = read_inputs(proto(model()))
    with pytest.raises(UsageError, match="there is no such file"):
        fixed_inputs({"indices": tmp_path / "none.npy"}, inputs)
    bad = tmp_path / "bad.npy"
    for content in (b"", b"no numbers", written(tmp_path, INDICES).read_bytes()[:-8]):
        bad.write_bytes(content)
        with pytest.raises(DataError, match=r"this is no \.npy file of numbers"):
            fixed_inputs({"indices": bad}, inputs)
    np.save(bad, np.array([None]), allow_pickle=True)
    with pytest.raises(DataError, match=r"this is no \.npy file of numbers"):
        fixed_inputs({"indices": bad}, inputs)


def test_with_every_input_fixed_nothing_could_be_proven() -> None:
    both = {"x": np.ones((1, 3, 8, 8), np.float32), "indices": INDICES}
    with pytest.raises(UsageError, match="with every input fixed"):
        bnfold.verify(model(), model(), inputs=both)
    assert fixed_inputs(None, read_inputs(proto(model()))) == {}
