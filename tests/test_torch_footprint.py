"""What a recalibration of a module will keep between two levels is known before: to the byte where shapes are known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_footprint import GIB, seen
from test_torch_recalibration import batches, fresh, recalibrate, samples
from torch import Tensor, nn
from torch_recalibration_nets import CASES, Net, bn, conv

import bnfold
from bnfold import footprint as module
from bnfold.errors import MachineError
from bnfold.footprint import Footprint
from bnfold.frontends.torch_sizes import bytes_of

__all__ = ["seen"]


def assert_known(need: Footprint | None, seen: dict[str, int]) -> None:
    assert need is not None
    assert need.is_whole
    assert need.batch
    assert {"held": need.held, "spilled": need.spilled} == seen


@pytest.mark.parametrize("memory", [0, 9_000, GIB])
@pytest.mark.parametrize("name", [name for name in CASES if name != "sizes and lists between the levels"])
def test_the_estimate_is_what_the_frontier_then_needs(name: str, memory: int, seen: dict[str, int]) -> None:
    net, data = fresh(name)
    data = tuple(x[:32] for x in data)
    assert_known(recalibrate(net, data, memory=memory).report.footprint, seen)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_it_counts_the_bytes_of_the_type(dtype: torch.dtype, seen: dict[str, int]) -> None:
    net, data = fresh("a chain", dtype)
    assert_known(recalibrate(net, tuple(x[:32] for x in data), memory=2_000).report.footprint, seen)


def test_sizes_that_follow_from_those_of_the_batch_are_computed(seen: dict[str, int]) -> None:
    net = Net(
        lambda s, x: s.b(nn.functional.max_pool2d(s.a(x), 2).repeat(1, 1, 1, x.shape[0])), a=bn(), b=bn()
    ).eval()  # fmt: skip
    data = samples((4, 7, 9), count=12)
    need = bnfold.recalibrate(net, batches(data, 6), example_inputs=(data[0][:2, :, :6, :6],)).report.footprint
    assert_known(need, seen)
    assert need is not None
    assert need.batch == 4 * 6 * 4 * 7 * 9


def branching(x: Tensor, s: Any) -> Tensor:
    return s.b(s.a(x) if x.sum() > 0 else s.a(-x)).relu()


@pytest.mark.parametrize("memory", [0, 9_000, GIB])
@pytest.mark.parametrize("method", ["sequential", "batch"])
def test_without_a_graph_the_batches_are_kept_with_what_is_known_so_far(
    method: str, memory: int, seen: dict[str, int]
) -> None:
    net = Net(lambda s, x: s.c(branching(x, s)), a=bn(), b=bn(), c=bn()).eval()
    data = samples((4, 5, 5), count=16)
    result = bnfold.recalibrate(net, batches(data, 8), example_inputs=(data[0][:2],), memory=memory, method=method)
    assert "run once for each BatchNorm" in result.report.notes[0]
    assert_known(result.report.footprint, seen)
    assert result.report.footprint is not None
    assert result.report.footprint.batch == 8 * 4 * 5 * 5 * 4 + 2 * 4 * 8


def test_what_is_not_known_makes_it_a_lower_bound(seen: dict[str, int]) -> None:
    net = Net(
        lambda s, x: s.b(x + (torch.nonzero(x[:, :, 0, 0] > -9) * s.a(x).mean()).mean()), a=bn(), b=bn()
    ).eval()  # fmt: skip
    data = samples((4, 6, 6), count=16)
    need = bnfold.recalibrate(net, batches(data, 8), example_inputs=(data[0][:2],)).report.footprint
    assert need is not None
    assert not need.is_whole
    assert seen["held"] > (need.held or 0)
    assert str(need).startswith("at least ")


@pytest.mark.parametrize(
    ("value", "size"),
    {
        "numbers": (torch.zeros(3, 5, dtype=torch.int16), 30),
        "no shape": (torch.zeros(()), 4),
        "a whole number": (7, 0),
        "a list": ([torch.zeros(3)], None),
        "of no type of NumPy's": (torch.zeros(3).to(torch.float8_e5m2), None),
        "sparse": (torch.zeros(3).to_sparse(), None),
    }.values(),
)
def test_only_what_becomes_an_array_has_a_known_size(value: Any, size: int | None) -> None:
    node: Any = SimpleNamespace(meta={"val": value})
    assert bytes_of(node, {}) == size


def test_of_data_without_a_length_only_one_batch_is_known() -> None:
    net, data = fresh("a chain")
    known = recalibrate(net, data).report.footprint
    found = bnfold.recalibrate(net, iter(batches(data, 8)), example_inputs=(data[0][:2],)).report.footprint
    assert known is not None
    assert found == Footprint(known.batch, None, None, True)


def test_the_need_is_told_from_the_first_level_on() -> None:
    net, data = fresh("a chain")
    told = list[str]()
    recalibrate(net, (data[0][:32],), 16, memory=20_000, progress=told.append)
    assert told[0] == "statistics of level 1 of 2; about 10.5 KiB of activations in memory and 10.5 KiB on disk"


def test_a_disk_that_is_too_small_is_known_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _folder: SimpleNamespace(free=9_000))
    net, data = fresh("a chain")
    told = list[str]()
    with pytest.raises(MachineError, match=r"21\.0 KiB of activations would go to disk, and 8\.8 KiB are free there"):
        recalibrate(net, (data[0][:32],), 16, memory=0, progress=told.append)
    assert told == []
    recalibrate(net, (data[0][:32],), 16, memory=20_000_000)


def test_too_little_memory_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("bnfold.frontends.torch_segments.TorchSegment.reduce", failing)
    net, data = fresh("a chain")
    with pytest.raises(MachineError, match="the memory does not suffice; make the batches smaller"):
        recalibrate(net, data)


def test_a_module_without_levels_reads_no_data() -> None:
    net = nn.Sequential(conv(), nn.ReLU()).eval()
    data = samples()
    report = bnfold.recalibrate(net, batches(data, 8), example_inputs=(data[0][:2],)).report
    assert report.footprint == Footprint(0, None, None, True)
    assert (report.samples, report.recalibrated) == (0, ())
