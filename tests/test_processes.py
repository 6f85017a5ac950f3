"""Several processes: the same bits in each of them and in a single one, the same error in all, and no torch for one."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
from cli_run import MODEL, ROOT, names
from process_worker import arrays, of_module, of_onnx

import bnfold
from bnfold import launch
from bnfold.errors import UsageError

FEEDS = """
import os
import signal
import numpy as np

def batches(count=5):
    for number in range(count):
        yield np.random.default_rng(number).random((7, 1, 8, 8)).astype(np.float32)

def broken():
    for number, batch in enumerate(batches()):
        batch[2] = np.nan if number == 3 else batch[2]
        yield batch

def dying():
    for number, batch in enumerate(batches()):
        if number == 1 and os.environ.get("RANK") == "1":
            os._exit(7)
        yield batch

def ended():
    for number, batch in enumerate(batches()):
        if number == 1:
            try:
                signal.raise_signal(signal.SIGTERM)  # as torchrun does, in the midst of anything
            except Exception:
                pass
        yield batch
"""


def torchrun(count: int, *command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `command` in so many processes."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    return subprocess.run(
        [*program, *map(str, command)],
        cwd=cwd,
        env=environment,
        text=True,
        capture_output=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of three processes found; they are started once, as that takes long."""
    folder = tmp_path_factory.mktemp("processes")
    done = torchrun(3, ROOT / "tests" / "process_worker.py", folder, cwd=folder)
    assert done.returncode == 0, done.stderr
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(3)]


def assert_same_bits(found: list[dict[str, Any]], name: str, alone: list[Any]) -> None:
    for each in found:
        assert len(each[name]) == len(alone) > 1
        assert all(a.tobytes() == b.tobytes() for a, b in zip(each[name], alone, strict=True)), name


def test_three_processes_find_what_one_finds(found: list[dict[str, Any]]) -> None:
    module = of_module(list(arrays()))
    assert module[0].tolist() == [38, 7]
    assert_same_bits(found, "module", module)
    assert_same_bits(found, "onnx", of_onnx(list(arrays())))


def test_one_process_of_torch_distributed_is_alone() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        found = of_onnx(list(arrays()), processes=bnfold.Processes())
        kept = of_onnx(list(arrays()), processes=bnfold.Processes(), method="ema")
    finally:
        dist.destroy_process_group()
    assert all(np.array_equal(a, b) for a, b in zip(found, of_onnx(list(arrays())), strict=True))
    assert not np.array_equal(found[1], kept[1])


def test_so_they_do_by_the_batch(found: list[dict[str, Any]]) -> None:
    assert_same_bits(found, "module, batch", of_module(list(arrays()), method="batch"))


def test_a_process_may_have_no_data(found: list[dict[str, Any]]) -> None:
    assert_same_bits(found, "onnx, nothing for one", of_onnx(list(arrays(2))))


@pytest.mark.parametrize(
    ("name", "sentence"),
    {
        "order": ("ema", "UsageError: ema: a running average depends on the order of the batches"),
        "data of one": ("not a number", "DataError: the given iterator, batch 4, sample 1: the data for the input"),
        "shape of one": (
            "another shape",
            "DataError: the given list, batch 5, sample 0: the shape for the input 'x' is 6x3x6x6",
        ),
        "seen by the first": ("too large", "DataError: a: values that are not finite reach this BatchNorm"),
        "work": ("other work", "UsageError: processes: process 1 was asked for something else than process 0"),
    }.values(),
)
def test_an_error_of_one_is_the_error_of_all(found: list[dict[str, Any]], name: str, sentence: str) -> None:
    said = {each[name] for each in found}
    assert len(said) == 1
    assert said.pop().startswith(sentence)


def test_after_errors_they_still_work_together(found: list[dict[str, Any]]) -> None:
    assert_same_bits(found, "in the end", of_module(list(arrays())))


def test_processes_need_torch_distributed() -> None:
    with pytest.raises(UsageError, match="not initialised"):
        of_onnx(list(arrays()), processes=bnfold.Processes())
    with pytest.raises(UsageError, match="timeout is 0"):
        bnfold.Processes(timeout=0)


# On the command line


@pytest.fixture
def feeds(tmp_path: Path) -> Path:
    (tmp_path / "feeds.py").write_text(FEEDS, encoding="utf-8")
    return tmp_path


def recalibrate(folder: Path, feed: str) -> subprocess.CompletedProcess[str]:
    command = ("-m", "bnfold", "recalibrate", MODEL, "--data", f"feeds:{feed}", "-o", "out.onnx", "--timeout", "120")
    return torchrun(2, *command, cwd=folder)


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What bnfold itself says; torchrun has much to say of processes that fail."""
    return [line for line in done.stderr.splitlines() if line.startswith("bnfold: ")]


def test_torchrun_writes_the_file_of_one_process_and_prints_once(feeds: Path) -> None:
    done = recalibrate(feeds, "batches")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith("out.onnx: 11 of 11 BatchNorms recalibrated on 35 samples")
    assert done.stderr.count("/stem/bn/BatchNormalization") == 1
    whole = subprocess.run(
        [sys.executable, "-m", "bnfold", "recalibrate", MODEL, "--data", "feeds:batches", "-o", "one.onnx", "--quiet"],
        cwd=feeds, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=300, capture_output=True,
    )  # fmt: skip
    assert whole.stderr == b""
    assert (feeds / "out.onnx").read_bytes() == (feeds / "one.onnx").read_bytes()


@pytest.mark.parametrize(
    ("feed", "sentence"),
    {
        "data": ("broken", "feeds:broken, batch 3, sample 2: the data for the input 'images' holds NaN or infinity"),
        "death": ("dying", "process 0 of 2: another process of this run has ended, or was silent for 120 seconds"),
        "end": ("ended", "the run was ended, because another of its processes has failed"),
    }.values(),
)
def test_a_process_that_fails_or_dies_ends_the_run_with_one_sentence_and_no_file(
    feeds: Path, feed: str, sentence: str
) -> None:
    done = recalibrate(feeds, feed)
    assert done.returncode != 0
    assert done.stdout == ""
    (line,) = said(done)
    assert line.startswith(f"bnfold: {sentence}") or (feed == "dying" and "another of its processes has failed" in line)
    assert not [name for name in names(feeds) if "onnx" in name]


def test_one_process_needs_no_torch() -> None:
    script = (
        "import sys, numpy as np, bnfold\n"
        f"bnfold.recalibrate({str(MODEL)!r}, [np.zeros((40, 1, 8, 8), np.float32)])\n"
        "assert 'torch' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-W", "error", "-c", script], env=environment, check=True, timeout=300)


@pytest.mark.parametrize(
    ("given", "wanted"),
    {
        "no torchrun": ({}, None),
        "one process": ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        "the second of three": ({"RANK": "1", "WORLD_SIZE": "3"}, launch.Place(1, 3)),
        "no number": ({"RANK": "first", "WORLD_SIZE": "3"}, None),
    }.values(),
)
def test_the_place_of_a_process_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], wanted: launch.Place | None
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", **given}.items():
        monkeypatch.setenv(name, value)
    assert launch.place() == wanted
    assert launch.is_first() == (wanted is None or wanted.rank == 0)
    monkeypatch.delenv("MASTER_PORT")
    assert launch.place() is None
