"""Where batches come from: files and functions, what fits the model and what is refused, the same in every pass."""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bnfold.data import InputSpec
from bnfold.data_files import Table
from bnfold.data_rows import Sampled
from bnfold.data_sources import DataRequest, Source, as_source, open_source
from bnfold.errors import BnfoldError, DataError, UsageError

Array = np.ndarray[Any, Any]

F32 = np.dtype("float32")
#: One input of a free batch of 2 numbers.
ONE = (InputSpec("x", F32, ("N", 2)),)
#: The same, in batches of 4.
FOURS = (InputSpec("x", F32, (4, 2)),)
#: Two inputs that share their batch; whole numbers are the second.
TWO = (InputSpec("x", F32, ("N", 2)), InputSpec("ids", np.dtype("int64"), ("N",)))


def numbers(count: int, *shape: int, dtype: Any = np.float32) -> Array:
    """`count` samples of which the k-th begins with k times its size."""
    return np.arange(count * int(np.prod(shape)), dtype=dtype).reshape(count, *shape)


def saved(path: Path, array: Array) -> str:
    np.save(path, array)
    return str(path)


def batches(source: Source, name: str = "x") -> list[Array]:
    return [batch[name] for batch in source]


def refused(kind: type[BnfoldError], text: str | Path, inputs: Sequence[InputSpec] = ONE, **options: Any) -> str:
    """The sentence with which the data is refused, by a first pass at the latest; it names what and where."""
    with pytest.raises(kind) as caught:
        list(open_source(str(text), inputs, **options))
    assert caught.value.where, "an error says where"
    assert type(caught.value) is kind
    return str(caught.value)


# Files


def test_an_npy_comes_in_batches_and_the_uneven_last_one_is_kept(tmp_path: Path) -> None:
    x = numbers(19, 2)
    source = open_source(saved(tmp_path / "x.npy", x), ONE)
    assert [len(batch) for batch in batches(source)] == [8, 8, 3]
    assert np.array_equal(np.concatenate(batches(source)), x)
    assert source.samples == 19
    assert source.describe() == "19 samples of x.npy (batches of 8)"


def test_every_pass_gives_the_same_bits(tmp_path: Path) -> None:
    source = open_source(saved(tmp_path / "x.npy", numbers(50, 2)), ONE, samples=20, seed=3)
    first, second = batches(source), batches(source)
    assert [batch.tobytes() for batch in first] == [batch.tobytes() for batch in second]


def test_two_passes_may_be_interleaved(tmp_path: Path) -> None:
    source = open_source(saved(tmp_path / "x.npy", numbers(20, 2)), ONE)
    for (one,), (other,) in zip(map(dict.values, source), map(dict.values, source), strict=True):
        assert np.array_equal(one, other)


def test_a_batch_may_be_written_to_and_the_next_pass_is_as_before(tmp_path: Path) -> None:
    source = open_source(saved(tmp_path / "x.npy", numbers(4, 2)), ONE)
    next(iter(source))["x"][:] = -1
    assert np.array_equal(next(iter(source))["x"], numbers(4, 2))


def test_an_npy_is_mapped_and_not_loaded(tmp_path: Path) -> None:
    assert_mapped(open_source(saved(tmp_path / "x.npy", numbers(4, 2)), ONE))


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_uncompressed_npz_is_mapped_and_a_compressed_one_is_as_good(tmp_path: Path, order: Any) -> None:
    x, ids = np.asarray(numbers(9, 2), order=order), np.arange(9)
    np.savez(tmp_path / "stored.npz", ids=ids, x=x)
    np.savez_compressed(tmp_path / "small.npz", ids=ids, x=x)
    stored, small = (open_source(str(tmp_path / name), TWO, batch_size=4) for name in ("stored.npz", "small.npz"))
    assert_mapped(stored)
    for one, other in zip(stored, small, strict=True):
        assert list(one) == ["x", "ids"]  # the model's order
        assert all(np.array_equal(one[name], other[name]) for name in one)
    assert np.array_equal(np.concatenate(batches(stored)), x)
    assert np.array_equal(np.concatenate(batches(stored, "ids")), ids)


def assert_mapped(source: Source) -> None:
    assert isinstance(source.feed, Sampled)
    assert isinstance(source.feed.rows, Table)
    assert all(isinstance(array, np.memmap) for array in source.feed.rows._open(0).values())


def test_a_folder_may_hold_samples_and_batches_by_their_rank(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    saved(tmp_path / "b.npy", np.array([9, 9], np.float32))
    saved(tmp_path / "a.npy", numbers(3, 2))
    saved(tmp_path / "below" / "a.npy", np.array([7, 7], np.float32))
    saved(tmp_path / ".hidden.npy", numbers(3, 2))
    (tmp_path / "notes.txt").write_text("not data")
    source = open_source(str(tmp_path), ONE, batch_size=2)
    assert [batch.tolist() for batch in batches(source)] == [[[0, 1], [2, 3]], [[4, 5], [9, 9]], [[7, 7]]]
    assert source.describe() == f"5 samples of 3 files in {tmp_path.name} (batches of 2)"


def test_a_folder_of_npz_takes_each_array_by_its_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "0.npz", x=np.zeros(2, np.float32), ids=np.int64(5))
    np.savez_compressed(tmp_path / "1.npz", x=np.ones((2, 2), np.float32), ids=np.array([6, 7]))
    (batch,) = open_source(str(tmp_path), TWO)
    assert batch["ids"].tolist() == [5, 6, 7]
    assert batch["x"].tolist() == [[0, 0], [1, 1], [1, 1]]


def test_a_folder_is_read_through_links_and_a_loop_ends(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "far").mkdir()
    saved(tmp_path / "far" / "x.npy", numbers(1, 2))
    (tmp_path / "data" / "link").symlink_to(tmp_path / "far", target_is_directory=True)
    (tmp_path / "far" / "loop").symlink_to(tmp_path / "data", target_is_directory=True)
    assert open_source(str(tmp_path / "data"), ONE).samples == 1


def test_only_the_rows_of_a_batch_are_read(tmp_path: Path) -> None:
    """A file of 4 TiB, sparse on the disk, yields its last row at once."""
    path = tmp_path / "huge.npy"
    rows = 2**39
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (rows, 2)})
        stream.truncate(stream.tell() + rows * 8)
    inputs = (InputSpec("x", F32, ("N", 2)),)
    assert next(iter(open_source(str(path), inputs, batch_size=3)))["x"].tolist() == [[0, 0]] * 3


# Batches, samples, shards


def test_the_models_fixed_batch_is_the_batch_size(tmp_path: Path) -> None:
    source = open_source(saved(tmp_path / "x.npy", numbers(8, 2)), FOURS)
    assert [batch.shape for batch in batches(source)] == [(4, 2), (4, 2)]


def test_a_fixed_batch_that_the_samples_do_not_fill_is_an_error_that_says_how_many_do(tmp_path: Path) -> None:
    text = saved(tmp_path / "x.npy", numbers(10, 2))
    assert "give --samples 8" in refused(DataError, text, FOURS)
    assert "give --samples 4" in refused(DataError, text, FOURS, samples=7)
    assert "at least 4 samples" in refused(DataError, text, FOURS, samples=3)
    assert len(list(open_source(text, FOURS, samples=8))) == 2


def test_another_batch_size_than_the_models_is_a_contradiction(tmp_path: Path) -> None:
    text = saved(tmp_path / "x.npy", numbers(8, 2))
    assert "exactly 4, not 2" in refused(UsageError, text, FOURS, batch_size=2)
    assert len(list(open_source(text, FOURS, batch_size=4))) == 2


def test_samples_are_a_seeded_subset_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = saved(tmp_path / "x.npy", numbers(100, 2))
    drawn = {seed: np.concatenate(batches(open_source(text, ONE, samples=10, seed=seed)))[:, 0] for seed in (0, 1)}
    for rows in drawn.values():
        assert len(set(rows)) == 10
        assert np.all(np.diff(rows) > 0)
        assert rows.tolist() != list(range(0, 20, 2)), "the first ten are no random subset"
    assert drawn[0].tolist() != drawn[1].tolist()
    source = open_source(text, ONE, samples=10, seed=1)
    assert source.samples == 10
    assert source.describe() == "10 of 100 samples of x.npy (drawn with seed 1, batches of 8)"


def test_more_samples_than_there_are_is_an_error(tmp_path: Path) -> None:
    text = saved(tmp_path / "x.npy", numbers(5, 2))
    assert "6 samples were asked for and there are 5; give --samples 5" in refused(UsageError, text, samples=6)
    assert open_source(text, ONE, samples=5).samples == 5


@pytest.mark.parametrize("world", [1, 2, 3, 4, 9])
def test_shards_hold_every_batch_once_with_its_number(tmp_path: Path, world: int) -> None:
    source = open_source(saved(tmp_path / "x.npy", numbers(13, 2)), ONE, batch_size=2)
    whole = batches(source)
    shards = [source.shard(rank, world) for rank in range(world)]
    for _ in range(2):  # a shard, too, is read in several passes
        found = [(number, batch["x"]) for shard in shards for number, batch in shard]
        assert sorted(number for number, _ in found) == list(range(7))
        assert all(np.array_equal(batch, whole[number]) for number, batch in found)
    assert [number for number, _ in shards[-1]] == list(range(world - 1, 7, world))


def test_a_shard_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    source = open_source(saved(tmp_path / "x.npy", numbers(3, 2)), ONE)
    for rank, world in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(UsageError, match="no rank"):
            source.shard(rank, world)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"samples": 0}])
def test_nothing_at_a_time_is_an_error(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="give at least 1"):
        DataRequest("x.npy", **options)


# Types and values


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ("float64", "float32"),
        ("float16", "float32"),
        (">f4", "float32"),
        ("float32", "float16"),
        ("int32", "int64"),
        ("int64", "uint8"),
        ("uint64", "int32"),
        ("bool", "bool"),
    ],
)
def test_a_number_that_keeps_its_kind_is_converted(tmp_path: Path, stored: str, wanted: str) -> None:
    inputs = (InputSpec("x", np.dtype(wanted), ("N", 2)),)
    (found,) = batches(open_source(saved(tmp_path / "x.npy", numbers(1, 2).astype(stored)), inputs))
    assert found.dtype == np.dtype(wanted)
    assert found.tolist() == [[0, 1]]


def test_float32_is_rounded_to_bfloat16(tmp_path: Path) -> None:
    inputs = (InputSpec("x", np.dtype(ml_dtypes.bfloat16), ("N", 2)),)
    (found,) = batches(open_source(saved(tmp_path / "x.npy", np.array([[1.0, 1.0 + 2**-12]], np.float32)), inputs))
    assert found.dtype == ml_dtypes.bfloat16
    assert found.astype(np.float64).tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("stored", "wanted", "expected"),
    [
        ("uint8", "float32", "takes float32 and the data is uint8; convert and scale it"),
        ("float32", "int64", "takes int64 and the data is float32; convert it"),
        ("complex64", "float32", "takes float32 and the data is complex64"),
        ("bool", "float32", "takes float32 and the data is bool"),
        ("int64", "bool", "takes bool and the data is int64"),
    ],
)
def test_another_kind_of_number_is_refused(tmp_path: Path, stored: str, wanted: str, expected: str) -> None:
    text = saved(tmp_path / "x.npy", numbers(1, 2).astype(stored))
    assert expected in refused(DataError, text, (InputSpec("x", np.dtype(wanted), ("N", 2)),))


@pytest.mark.parametrize(
    ("value", "stored", "wanted", "expected"),
    [
        (np.nan, "float32", "float32", "holds NaN or infinity"),
        (np.inf, "float64", "float32", "holds NaN or infinity"),
        (1e39, "float64", "float32", "does not fit into float32"),
        (7e4, "float32", "float16", "does not fit into float16"),
        (300, "int64", "uint8", "does not fit into uint8"),
        (-1, "int64", "uint64", "does not fit into uint64"),
    ],
)
def test_a_value_that_is_lost_is_refused_with_its_sample(
    tmp_path: Path, value: float, stored: str, wanted: str, expected: str
) -> None:
    x = numbers(12, 2).astype(stored)
    x[10, 1] = value
    text = saved(tmp_path / "x.npy", x)
    said = refused(DataError, text, (InputSpec("x", np.dtype(wanted), ("N", 2)),))
    assert expected in said
    assert "x.npy, sample 10:" in said


# What does not fit


@pytest.mark.parametrize(
    ("array", "dims", "expected"),
    [
        (numbers(4, 3), ("N", 2), "is 4x3, the model takes ?x2"),
        (numbers(4), ("N", 2), "is 4, the model takes ?x2"),
        (numbers(4, 2, 1), ("N", 2), "is 4x2x1, the model takes ?x2"),
        (np.float32(1), ("N",), "is scalar, the model takes ?"),
        (np.float32(1), None, "is scalar"),
        (numbers(0, 2), ("N", 2), "there is no sample in it"),
        (numbers(3, 0), ("N", None), "is empty"),
        (numbers(4, 3), ("N", "N"), "which the model calls N, and that is 4 elsewhere"),
        (numbers(4, 3), (), "no axis for samples"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(tmp_path: Path, array: Array, dims: Any, expected: str) -> None:
    assert expected in refused(DataError, saved(tmp_path / "x.npy", array), (InputSpec("x", F32, dims),))


def test_an_input_of_open_rank_takes_any_samples(tmp_path: Path) -> None:
    source = open_source(saved(tmp_path / "x.npy", numbers(3, 2, 5)), (InputSpec("x", F32, None),))
    assert [batch.shape for batch in batches(source)] == [(3, 2, 5)]


@pytest.mark.parametrize(
    ("arrays", "expected"),
    {
        "unknown": (
            {"x": numbers(2, 2), "ids": np.arange(2), "y": np.arange(2)},
            "no input 'y'; its inputs",
        ),
        "missing": ({"x": numbers(2, 2)}, "no array for the input 'ids'"),
        "uneven": ({"x": numbers(2, 2), "ids": np.arange(3)}, "different numbers of samples (2 of x, 3 of ids)"),
        "text": ({"x": numbers(2, 2), "ids": np.array(["a", "b"])}, "takes int64 and the data is str"),
        "objects": ({"x": numbers(2, 2), "ids": np.array([{}, []], dtype=object)}, "Python objects, not numbers"),
    }.values(),
)
def test_an_npz_that_does_not_fit_is_refused(tmp_path: Path, arrays: dict[str, Array], expected: str) -> None:
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **arrays)
        assert expected in refused(DataError, tmp_path / "x.npz", TWO)


def test_one_array_cannot_feed_two_inputs(tmp_path: Path) -> None:
    text = saved(tmp_path / "x.npy", numbers(2, 2))
    assert "cannot feed 2 inputs; give a .npz with x, ids" in refused(DataError, text, TWO)


def test_samples_of_two_shapes_cannot_share_a_batch(tmp_path: Path) -> None:
    inputs = (InputSpec("x", F32, ("N", "L")),)
    saved(tmp_path / "a.npy", numbers(2, 3))
    saved(tmp_path / "b.npy", numbers(2, 4))
    assert "samples of 4 float32 cannot share a batch with samples of 3" in refused(DataError, tmp_path, inputs)
    assert [batch.shape[1] for batch in batches(open_source(str(tmp_path), inputs, batch_size=1))] == [3, 3, 4, 4]


def test_inputs_that_fix_different_batches_need_a_function(tmp_path: Path) -> None:
    inputs = (InputSpec("x", F32, (2, 2)), InputSpec("size", F32, (1, 2)))
    np.savez(tmp_path / "x.npz", x=numbers(2, 2), size=numbers(2, 2))
    assert "fix different batch sizes (2, 1)" in refused_anywhere(str(tmp_path / "x.npz"), inputs)
    assert "no inputs" in refused_anywhere(str(tmp_path / "x.npz"), ())


def refused_anywhere(text: str, inputs: Sequence[InputSpec]) -> str:
    with pytest.raises(DataError) as caught:
        open_source(text, inputs)
    return str(caught.value)


# What cannot be read


def test_what_is_not_there_is_a_mistake_in_the_call(tmp_path: Path) -> None:
    assert "no such file or folder" in refused(UsageError, tmp_path / "gone.npy")
    assert UsageError.exit_code == 2


def damaged(path: Path, how: str) -> Path:
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"x, y\n1, 2\n"}[how])
    return path


@pytest.mark.parametrize("how", ["cut", "empty", "text"])
@pytest.mark.parametrize("name", ["x.npy", "stored.npz", "small.npz"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str, how: str) -> None:
    path = tmp_path / name
    save = {"x.npy": saved, "stored.npz": lambda p, x: np.savez(p, x=x)}.get(
        name, lambda p, x: np.savez_compressed(p, x=x)
    )
    save(path, np.random.default_rng(0).standard_normal((300, 2)).astype(np.float32))
    said = refused(DataError, damaged(path, how))
    assert said.startswith(f"{path}: the file cannot be read: it is damaged, or no NumPy file")
    assert DataError.exit_code == 3


def test_a_compressed_member_that_fails_its_checksum_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((300, 2)).astype(np.float32))
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "x.npz").write_bytes(bytes(data))
    assert "it is damaged" in refused(DataError, tmp_path / "x.npz")


def test_an_npy_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    class Mine:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    np.save(tmp_path / "x.npy", np.array([Mine()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "x.npz", allow_pickle=True, x=np.array([Mine()], dtype=object))
    for name in ("x.npy", "x.npz"):
        assert "it holds Python objects, not numbers" in refused(DataError, tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_an_archive_called_npy_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=numbers(2, 2))
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    assert "no .npy file but an archive; call it .npz" in refused(DataError, tmp_path / "x.npy")


def test_a_member_that_is_no_array_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x", "hello")
    assert "cannot be read" in refused(DataError, tmp_path / "x.npz")


def test_a_folder_without_data_or_of_two_kinds_is_refused(tmp_path: Path) -> None:
    assert "there is none in this folder" in refused(DataError, tmp_path)
    saved(tmp_path / "x.npy", numbers(2, 2))
    np.savez(tmp_path / "x.npz", x=numbers(2, 2))
    assert "the folder holds .npy and .npz; give a folder of one kind" in refused(DataError, tmp_path)
    (tmp_path / "x.csv").write_text("1")
    assert "this is none" in refused(DataError, tmp_path / "x.csv")


# Functions


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Writes the module `mine` into the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(text: str) -> None:
        sys.modules.pop("mine", None)
        (tmp_path / "mine.py").write_text(
            "import numpy as np\nx = np.arange(6, dtype=np.float32).reshape(3, 2)\n" + text
        )

    yield write
    sys.modules.pop("mine", None)


@pytest.mark.parametrize(
    "batch", {"dict": "{'x': x}", "array": "x", "tuple": "(x,)", "list": "[x]", "double": "x.astype(float)"}.values()
)
def test_a_function_yields_batches_and_is_called_for_every_pass(module: Callable[[str], None], batch: str) -> None:
    module(f"calls = []\ndef load():\n    calls.append(1)\n    yield {batch}\n    yield {batch}\n")
    source = open_source("mine:load", ONE)
    assert source.samples is None
    assert source.describe() == "mine:load"
    for passes in (1, 2, 3):
        assert [found.tolist() for found in batches(source)] == [[[0, 1], [2, 3], [4, 5]]] * 2
        assert len(sys.modules["mine"].calls) == passes


def test_a_function_may_return_a_list_and_lie_in_a_class(module: Callable[[str], None]) -> None:
    module("class Data:\n    @staticmethod\n    def load():\n        return [(x, [1, 2, 3])]\n")
    (batch,) = open_source("mine:Data.load", TWO)
    assert list(batch) == ["x", "ids"]
    assert batch["ids"].tolist() == [1, 2, 3]


def test_tensors_of_torch_are_arrays(module: Callable[[str], None]) -> None:
    module(
        "import torch\nfrom torch.utils.data import DataLoader, TensorDataset\n"
        "def load():\n    return DataLoader(TensorDataset(torch.from_numpy(x)), batch_size=2)\n"
        "def wrong():\n    yield torch.ones(1, 2, requires_grad=True)\n"
    )
    assert [len(batch) for batch in batches(open_source("mine:load", ONE))] == [2, 1]
    assert "cannot become an array (RuntimeError" in refused(DataError, "mine:wrong")


def test_samples_of_a_function_are_the_first_ones(module: Callable[[str], None]) -> None:
    module("def load():\n    yield x\n    yield x + 9\n    raise AssertionError('read too far')\n")
    source = open_source("mine:load", ONE, samples=4)
    assert [batch.tolist() for batch in batches(source)] == [[[0, 1], [2, 3], [4, 5]], [[9, 10]]]
    assert source.samples == 4
    assert source.describe() == "the first 4 samples of mine:load"


def test_a_function_with_too_few_samples_is_an_error(module: Callable[[str], None]) -> None:
    module("def load():\n    yield x\n")
    assert "7 samples were asked for and there are 3; give --samples 3" in refused(UsageError, "mine:load", samples=7)


def test_samples_of_a_function_must_fill_the_models_batch(module: Callable[[str], None]) -> None:
    module("def load():\n    yield np.zeros((4, 2))\n    yield np.zeros((4, 2))\n")
    assert "batches of exactly 4, which 6 samples do not fill" in refused(DataError, "mine:load", FOURS, samples=6)
    assert len(list(open_source("mine:load", FOURS, samples=4))) == 1


def test_samples_that_cannot_be_counted_are_an_error(module: Callable[[str], None]) -> None:
    module("def load():\n    yield {'x': x, 'ids': np.arange(2)}\n")
    assert "different numbers of samples" in refused(DataError, "mine:load", TWO, samples=1)


@pytest.mark.parametrize("world", [1, 2, 5])
def test_shards_of_a_function_hold_every_batch_once(module: Callable[[str], None], world: int) -> None:
    module("def load():\n    for i in range(4):\n        yield x + i\n")
    source = open_source("mine:load", ONE)
    found = {number: batch["x"][0, 0] for rank in range(world) for number, batch in source.shard(rank, world)}
    assert found == {i: i for i in range(4)}


@pytest.mark.parametrize(
    ("text", "batch", "expected"),
    [
        ("a label too many", "(x, [0, 1, 2])", "yields 2 arrays and the model has 1 inputs (x); yield only what"),
        ("an unknown name", "{'y': x}", "the model has no input 'y'; its inputs are x"),
        ("a wrong shape", "x[:, :1]", "is 3x1, the model takes ?x2"),
        ("whole numbers", "x.astype(int)", "takes float32 and the data is int64"),
        ("NaN", "x / np.float32([[1, 1], [1, np.nan], [1, 1]])", "mine:load, batch 0, sample 1: "),
        ("text", "'hello'", "no array of numbers but a str"),
        ("nothing", "None", "no array of numbers but a NoneType"),
        ("no samples", "x[:0]", "is empty"),
        ("ragged", "{'x': [[1.0], [1.0, 2.0]]}", "cannot become an array (ValueError"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(
    module: Callable[[str], None], text: str, batch: str, expected: str
) -> None:
    module(f"def load():\n    yield {batch}\n")
    assert expected in refused(DataError, "mine:load"), text


@pytest.mark.parametrize(
    ("kind", "text", "body", "expected"),
    [
        (UsageError, "mine:gone", "", "there is no gone in mine"),
        (UsageError, "mine:np.gone", "", "there is no gone in numpy"),
        (UsageError, "nowhere.mine:load", "", "there is no module nowhere; run bnfold where the module lies"),
        (UsageError, "mine.deeper:load", "", "there is no module mine.deeper"),
        (UsageError, "mine:x", "", "no function but a ndarray"),
        (UsageError, "mine:made", "def load():\n    yield x\nmade = load()", "a generator that has been started"),
        (UsageError, "mine:3", "", "no such file or folder; a function is written package.module:callable"),
        (DataError, "mine:load", "import gone_entirely", "needs the module gone_entirely"),
        (DataError, "mine:load", "1 / 0", "importing it raised ZeroDivisionError: division by zero"),
        (DataError, "mine:load", "def load(path):\n    yield x", "it raised TypeError: load() missing 1 required"),
        (DataError, "mine:load", "def load():\n    return 3", "it raised TypeError: 'int' object is not iterable"),
        (
            DataError,
            "mine:load",
            "def load():\n    yield x\n    raise KeyError('k')",
            "batch 1: it raised KeyError: 'k'",
        ),
        (DataError, "mine:load", "def load():\n    yield from []", "it yields no batch"),
    ],
)
def test_a_function_that_cannot_be_used_is_one_sentence(
    module: Callable[[str], None], kind: type[BnfoldError], text: str, body: str, expected: str
) -> None:
    module(body)
    assert expected in refused(kind, text)


def test_a_function_makes_its_own_batches(module: Callable[[str], None]) -> None:
    module("def load():\n    yield x\n")
    assert "leave out --batch-size" in refused(UsageError, "mine:load", batch_size=2)


@pytest.mark.parametrize(
    ("body", "expected"),
    {
        "one iterator": ("made = iter([x])\ndef load():\n    return made", "gave the same iterator again"),
        "other numbers": (
            "r = np.random.default_rng()\ndef load():\n    yield r.random((3, 2))",
            "batch 0 is not the one of the pass before",
        ),
        "fewer batches": ("n = [3, 2]\ndef load():\n    yield from [x] * n.pop(0)", "batch 2 is not the one"),
        "more batches": ("n = [2, 3]\ndef load():\n    yield from [x] * n.pop(0)", "batch 3 is not the one"),
        "another shape": ("n = [2, 3]\ndef load():\n    yield np.zeros((n.pop(0), 2))", "batch 0 is not the one"),
    }.values(),
)
def test_a_second_pass_that_is_not_the_first_is_an_error(
    module: Callable[[str], None], body: str, expected: str
) -> None:
    module(body)
    source = open_source("mine:load", ONE)
    list(source)
    with pytest.raises(DataError) as caught:
        list(source)
    assert expected in str(caught.value)
    assert caught.value.remedy


# What the library takes


def test_a_list_of_batches_a_request_a_text_and_a_source_are_sources(tmp_path: Path) -> None:
    text = saved(tmp_path / "x.npy", numbers(3, 2))
    request = DataRequest(text, batch_size=3)
    given: list[Any] = [[{"x": numbers(3, 2)}], [numbers(3, 2)], text, Path(text), request, request.open(ONE)]
    for data in given:
        source = as_source(data, ONE)
        for _ in range(2):
            assert [batch.tolist() for batch in batches(source)] == [numbers(3, 2).tolist()]


def test_an_iterator_that_starts_anew_may_be_the_same_object(module: Callable[[str], None]) -> None:
    """A DataLoader with persistent workers gives one iterator again and again, and each time from the beginning."""
    module(
        "class Loader:\n    def __init__(self):\n        self.inner = Inner()\n"
        "    def __iter__(self):\n        self.inner.left = [x, x]\n        return self.inner\n"
        "class Inner:\n    def __iter__(self):\n        return self\n"
        "    def __next__(self):\n        if not self.left:\n            raise StopIteration\n"
        "        return self.left.pop()\n"
        "loader = Loader()\ndef load():\n    return loader\n"
    )
    source = open_source("mine:load", ONE)
    assert [len(batches(source)) for _ in range(3)] == [2, 2, 2]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (iter([numbers(3, 2)]), "an iterator (list_iterator) runs once"),
        ((x for x in [numbers(3, 2)]), "an iterator (generator) runs once"),
        ({"x": numbers(3, 2)}, "a dict is no iterable of batches; give a list of dicts"),
        (5, "a int is no iterable of batches"),
    ],
)
def test_what_runs_once_or_not_at_all_is_no_source(data: Any, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        as_source(data, ONE)
    assert expected in str(caught.value)
