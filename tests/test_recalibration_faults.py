"""What cannot be recalibrated is refused in one sentence, and nothing is left behind."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_models import parse
from recalibration_cases import CASES, IMAGE, bn, parameters

import bnfold
from bnfold.drift import Hindrance, Left, Recalibrated, Statistics
from bnfold.errors import BnfoldError, DataError, MachineError, UsageError
from bnfold.frontier import Frontier
from tests.recalibrated import assert_expected, cut_up, expected

Array = np.ndarray[Any, Any]


def model() -> ir.Model:
    return ir.from_proto(parse(CASES["branches of other depths that meet"].text))


def images(count: int = 16) -> Array:
    return np.random.default_rng(0).standard_normal((count, 4, 6, 6)).astype(np.float32)


def open_files() -> int:
    gc.collect()
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


@pytest.mark.parametrize(
    ("data", "message"),
    {
        "nothing": ([], "the given list: it yields no batch"),
        "an empty batch": ([images(0)], "the array for the input 'x' is empty"),
        "one batch instead of several": ({"x": images()}, "a dict is no iterable of batches"),
        "another name": ([{"z": images()}], "batch 0, sample 0: the model has no input 'z'; its inputs are x"),
        "a name too many": ([{"x": images(), "z": images()}], "the model has no input 'z'"),
        "another rank": ([images()[0]], r"the input 'x' is 4x6x6, the model takes \?x4x6x6"),
        "another size": ([images(), images()[:, :3]], "batch 1, sample 0: the shape for the input 'x' is 16x3x6x6"),
        "pixels": ([images().astype(np.uint8)], "takes float32 and the data is uint8; convert and scale"),
        "text": ([np.full((2, 4, 6, 6), "a")], "it is no array of numbers"),
        "a NaN": ([np.where(images() > 2, np.nan, images())], "holds NaN or infinity"),
        "too few": ([images(1)], "a: only 16 values in each channel reach this BatchNorm"),
    }.values(),
)
def test_data_that_do_not_fit_are_refused(data: Any, message: str) -> None:
    with pytest.raises((DataError, UsageError), match=message):
        bnfold.recalibrate(model(), data)


def test_values_that_become_infinite_in_the_model_are_refused_with_the_place() -> None:
    text = f"{IMAGE} <{parameters('a', 'b')}> {{ {bn('a', 'x', 'c')} z = Log (c) {bn('b', 'z', 'y')} }}"
    with pytest.raises(DataError, match=r"^b: values that are not finite reach this BatchNorm"):
        bnfold.recalibrate(ir.from_proto(parse(text)), [images()])


def test_force_allows_few_values_but_not_the_impossible() -> None:
    result = bnfold.recalibrate(model(), [images(1)], force=True)
    assert {entry.samples for entry in result.report.recalibrated} == {16}
    text = f"(float[n, 4] x) => (float[n, 4] y) <{parameters('a')}> {{ {bn('a', 'x', 'y')} }}"
    with pytest.raises(DataError, match="no unbiased variance"):
        bnfold.recalibrate(ir.from_proto(parse(text)), [np.ones((1, 4), np.float32)], force=True, bessel=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "exact"}, "'exact' is none of sequential, batch, ema"),
        ({"momentum": 0.0}, "the momentum lies above 0"),
        ({"momentum": 1.5}, "the momentum lies above 0"),
        ({"memory": -1}, "the memory"),
        ({"only": "("}, "no regular expression"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bnfold.recalibrate(model(), [images()], **options)


def test_data_are_read_once_so_that_any_iterable_will_do() -> None:
    passes = []

    def batches() -> Iterator[Array]:
        passes.append(1)
        yield from (images()[i : i + 4] for i in range(0, 16, 4))

    ways = [
        batches,
        batches(),
        list(batches()),
        [{"x": x} for x in batches()],
        [x.astype(np.float64) for x in batches()],
    ]
    results = [bnfold.recalibrate(model(), way) for way in ways]
    assert len(passes) == 5
    first = ir.to_proto(results[0].model).graph
    assert all(ir.to_proto(result.model).graph == first for result in results)
    assert {(result.report.samples, result.report.batches) for result in results} == {(16, 4)}


@pytest.mark.parametrize("memory", [0, 5_000, 1 << 30])
def test_the_memory_budget_does_not_change_the_result(memory: int) -> None:
    proto, data = parse(CASES["branches of other depths that meet"].text), {"x": images(33)}
    result = bnfold.recalibrate(ir.from_proto(proto), cut_up(data, 4), memory=memory)
    assert_expected(result, expected(proto, data, [["a"], ["b"], ["c"], ["d"], ["e"]]))


@pytest.mark.parametrize("fault", [KeyboardInterrupt, ValueError])
def test_what_fails_leaves_no_file_behind(
    fault: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = open_files()
    told: list[str] = []

    def tell(clause: str) -> None:
        told.append(clause)
        if "kept on disk" in clause:
            raise fault("stop")

    with pytest.raises(fault, match="stop"):
        bnfold.recalibrate(model(), [images()], memory=0, progress=tell)
    assert told[-1].startswith("statistics of level 2 of 4, kept on disk in part; about 0 bytes of activations in ")
    assert list(tmp_path.iterdir()) == []
    assert open_files() <= before


def test_a_disk_that_is_full_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(MachineError, match="cannot be kept on disk: No space left on device; free some space"):
        bnfold.recalibrate(model(), [images()], memory=0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full; the case above raises itself")
def test_a_disk_that_fills_up_under_the_activations_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def always_full(**_: object) -> IO[bytes]:
        return Path("/dev/full").open("r+b", buffering=0)

    monkeypatch.setattr("tempfile.TemporaryFile", always_full)
    before = open_files()
    with pytest.raises(MachineError, match="cannot be kept on disk: No space left on device; free some space"):
        bnfold.recalibrate(model(), [images()], memory=0)
    assert open_files() <= before


def test_a_model_that_cannot_be_run_is_one_sentence() -> None:
    text = f"{IMAGE} <{parameters('a')}> {{ z = unknown.operator (x) {bn('a', 'z', 'y')} }}"
    with pytest.raises(BnfoldError, match="operator"):
        bnfold.recalibrate(ir.from_proto(parse(text, domains=["unknown"])), [images()])


# The frontier


def test_a_frontier_gives_back_what_was_put_in_order_and_lets_go_of_it() -> None:
    generator = np.random.default_rng(0)
    states = [{"a": generator.standard_normal((3, k)), "b": np.arange(k), "c": [np.ones(k)]} for k in range(6)]
    with Frontier(memory=200) as frontier:
        for _ in range(3):
            for state in states:
                frontier.put(state)
            for found, state in zip(frontier.turn(), states, strict=True):
                assert (found["a"] == state["a"]).all()
                assert (found["b"] == state["b"]).all()
                assert (found["c"][0] == state["c"][0]).all()
            assert list(frontier.turn()) == []
        assert 0 < frontier.spilled < 3 * sum(s["a"].nbytes + s["b"].nbytes for s in states)


def test_a_frontier_can_be_filled_while_it_is_emptied() -> None:
    with Frontier(memory=0) as frontier:
        frontier.put({"a": np.arange(5)})
        frontier.put({"a": np.arange(7)})
        for state in frontier.turn():
            frontier.put({"a": state["a"] * 2})
        assert [state["a"].tolist() for state in frontier.turn()] == [list(range(0, 2 * n, 2)) for n in (5, 7)]


# The figures


def entry(old: tuple[float, float], new: tuple[float, float], epsilon: float = 0.0) -> Recalibrated:
    before, after = (Statistics(np.array([mean]), np.array([variance])) for mean, variance in (old, new))
    return Recalibrated("bn", ("bn",), epsilon, before, after, 100)


def test_drift_is_measured_in_old_deviations() -> None:
    moved = entry((1.0, 3.75), (3.0, 7.75), epsilon=0.25)
    assert (moved.largest_drift, moved.rms_drift, moved.variance_ratio.tolist()) == (1.0, 1.0, [2.0])


def test_drift_from_no_deviation_is_infinite_unless_nothing_moved() -> None:
    assert entry((1.0, 0.0), (2.0, 1.0)).largest_drift == np.inf
    assert entry((1.0, 0.0), (1.0, 1.0)).largest_drift == 0.0
    assert entry((1.0, -1.0), (2.0, 1.0)).largest_drift == np.inf
    assert entry((1.0, np.nan), (2.0, 1.0)).variance_ratio.tolist() == [np.inf]


def test_what_stayed_says_why() -> None:
    assert str(Left("bn", Hindrance.SAW_NO_SAMPLE)) == "no sample reached it"
    assert str(Left("bn", Hindrance.INSIDE_BODY, "y")) == "it is in the body of an If, Loop or Scan (y)"
