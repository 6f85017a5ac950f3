"""What a recalibration will keep between two levels is known before: to the byte where the shapes are known."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_models import parse
from recalibration_cases import CASES, IMAGE, Case, bn, parameters
from test_recalibration import samples

import bnfold
from bnfold import footprint as module
from bnfold.errors import MachineError, ProviderError
from bnfold.footprint import Footprint, demand_room, footprint
from bnfold.frontier import Frontier
from tests.recalibrated import cut_up

GIB = 1 << 30


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The largest amounts that a frontier held and had in its files."""
    most = {"held": 0, "spilled": 0}
    put = Frontier.put

    def watched(self: Any, state: Mapping[str, Any]) -> None:
        put(self, state)
        files = [os.fstat(file.fileno()).st_size for file in self._files if file is not None]
        most["held"] = max(most["held"], self.memory_before - self._budget)
        most["spilled"] = max(most["spilled"], sum(files))

    start = Frontier.__init__

    def started(self: Any, memory: int) -> None:
        start(self, memory)
        self.memory_before = memory

    monkeypatch.setattr(Frontier, "__init__", started)
    monkeypatch.setattr(Frontier, "put", watched)
    return most


@pytest.mark.parametrize("memory", [0, 3_000, 20_000, GIB])
@pytest.mark.parametrize(
    "name",
    ["branches of other depths that meet", "one value that is observed at two levels", "one module at two depths"],
)
def test_the_estimate_is_what_the_frontier_then_needs(name: str, memory: int, seen: dict[str, int]) -> None:
    case = CASES[name]
    batches = cut_up(samples(case, count=20), 4)
    need = bnfold.recalibrate(ir.from_proto(parse(case.text)), batches, memory=memory).report.footprint
    assert need is not None
    assert need.is_whole
    assert {"held": need.held, "spilled": need.spilled} == seen
    assert memory >= (need.held or 0)


@pytest.mark.parametrize("kept", ["Compress <axis = 2> (x, half)", "SplitToSequence <axis = 2> (x, two)"])
def test_what_inference_does_not_tell_makes_it_a_lower_bound(kept: str, seen: dict[str, int]) -> None:
    read = "Identity (k)" if kept.startswith("Compress") else "SequenceAt (k, index)"
    text = f"""{IMAGE} <{parameters("a", "b")}> {{
        half = Constant <value = bool[6] {{1, 0, 1, 0, 1, 0}}> ()
        two = Constant <value = int64 {{2}}> ()
        k = {kept}
        {bn("a", "x", "d")}
        m = ReduceMean <keepdims = 0> (d)
        z = Sub (m, m)
        index = Cast <to = 7> (z)
        f = {read}
        h = Add (f, m)
        {bn("b", "h", "y")}
    }}"""
    data = cut_up(samples(Case(text, []), count=16), 8)
    need = bnfold.recalibrate(ir.from_proto(parse(text)), data).report.footprint
    assert need is not None
    assert not need.is_whole
    assert seen["held"] > (need.held or 0)
    assert str(need).startswith("at least ")


def test_of_data_without_a_length_only_one_batch_is_known() -> None:
    case = CASES["a chain"]
    batches = cut_up(samples(case), 8)
    known = bnfold.recalibrate(ir.from_proto(parse(case.text)), batches).report.footprint
    found = bnfold.recalibrate(ir.from_proto(parse(case.text)), iter(batches)).report.footprint
    assert known is not None
    assert found == Footprint(known.batch, None, None, True)
    assert str(found) == "about 4.5 KiB of activations for each batch"


def test_a_list_of_uneven_batches_is_measured_by_its_samples() -> None:
    case = CASES["a chain"]
    x = samples(case, count=40)["x"]
    for form in ([{"x": x[:8]}, {"x": x[8:12]}, {"x": x[12:]}], [x[:8], x[8:12], x[12:]], [(x[:8],), (x[8:],)]):
        need = bnfold.recalibrate(ir.from_proto(parse(case.text)), form).report.footprint
        assert need is not None
        assert need.held == 5 * need.batch == 40 * 4 * 6 * 6 * 4


def test_both_files_count_and_each_level_takes_the_place_of_the_one_before() -> None:
    assert footprint([[10], [4], []], batches=3, memory=100) == Footprint(10, 30, 0, True)
    assert footprint([[10], [4], []], batches=3, memory=0) == Footprint(10, 0, 42, True)
    assert footprint([[10, 2], [4], []], batches=3, memory=14) == Footprint(12, 14, 22 + 0, True)
    assert footprint([], batches=3, memory=0) == Footprint(0, 0, 0, True)
    assert footprint([[None, 5]], batches=2, memory=5) == Footprint(5, 5, 5, False)


def test_the_need_is_told_from_the_first_level_on() -> None:
    case, told = CASES["a chain"], list[str]()
    batches = cut_up(samples(case, count=16), 8)
    bnfold.recalibrate(ir.from_proto(parse(case.text)), batches, memory=5_000, progress=told.append)
    assert told[0] == "statistics of level 1 of 2; about 4.5 KiB of activations in memory and 4.5 KiB on disk"


def test_a_disk_that_is_too_small_is_known_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _folder: SimpleNamespace(free=9_000))
    case, told = CASES["a chain"], list[str]()
    data = cut_up(samples(case, count=16), 8)
    with pytest.raises(MachineError) as caught:
        bnfold.recalibrate(ir.from_proto(parse(case.text)), data, memory=0, progress=told.append)
    assert str(caught.value) == (
        f"{tempfile.gettempdir()}: 9.0 KiB of activations would go to disk, and 8.8 KiB are free there; "
        "give --memory more or take fewer --samples, or name another folder in TMPDIR"
    )
    assert told == []
    bnfold.recalibrate(ir.from_proto(parse(case.text)), data, memory=5_000)  # 4.5 KiB would go to disk


@pytest.mark.parametrize(
    ("need", "remedy"),
    [
        (Footprint(10, 101, 0, True), "give --memory less"),
        (Footprint(101, 0, 0, True), "make the batches smaller"),
        (Footprint(101, None, None, True), "make the batches smaller"),
    ],
)
def test_more_than_the_machine_has_is_refused(monkeypatch: pytest.MonkeyPatch, need: Footprint, remedy: str) -> None:
    monkeypatch.setattr(module, "_memory", lambda: 100)
    with pytest.raises(MachineError, match=rf"take 101 bytes of memory, and the machine has 100 bytes; {remedy}"):
        demand_room(need)


def test_as_much_as_there_is_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_memory", lambda: 100)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _folder: SimpleNamespace(free=100))
    demand_room(Footprint(100, 100, 100, True))
    monkeypatch.setattr(module, "_memory", lambda: None)
    demand_room(Footprint(1000, 1000, None, True))


def test_the_memory_of_this_machine_is_known_or_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found = module._memory()
    assert found is None or found > 1 << 20
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert module._memory() is None


@pytest.mark.parametrize(
    ("fault", "kind", "remedy"),
    [
        (ProviderError("the cpu has too little memory to run the model"), ProviderError, "--batch-size"),
        (ProviderError("no kernel", remedy="use --no-verify"), ProviderError, "take one that can be run"),
        (MemoryError(), MachineError, "--batch-size"),
    ],
)
def test_what_helps_a_check_is_not_advised_to_a_recalibration(
    monkeypatch: pytest.MonkeyPatch, fault: Exception, kind: type[Exception], remedy: str
) -> None:
    def failing(*_: object) -> None:
        raise fault

    monkeypatch.setattr("bnfold.frontends.onnx_segments.OnnxSegment.reduce", failing)
    case = CASES["a chain"]
    with pytest.raises(kind, match=remedy) as caught:
        bnfold.recalibrate(ir.from_proto(parse(case.text)), [np.ones((4, 4, 6, 6), np.float32)])
    assert "--no-verify" not in str(caught.value)
