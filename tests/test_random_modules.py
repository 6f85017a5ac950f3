"""Folding never changes what a module computes: random modules, written as source, against themselves in float64."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

import bnfold
from bnfold import RecalibrationResult
from bnfold.frontends.torch_capture import copied
from tests.random_module_checks import examine
from tests.random_module_layers import LINEAR_WAYS, NORM_WAYS
from tests.random_module_recalibration import recalibrated
from tests.random_module_steps import as_tensors
from tests.random_modules import random_module

SHARE = 20
EVERY = 5  # so many of which bnfold's own check sees in float32 too

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, of hooks that it will drop and of copies


@pytest.mark.parametrize("first", range(0, SHARE, 5))
def test_the_fold_of_a_random_module_is_exact_and_leaves_the_original_alone(first: int, tmp_path: Path) -> None:
    for seed in range(first, first + 5):
        found = examine(random_module(seed, tmp_path), checked=seed % EVERY == 0)
        assert not found.failures, (seed, found.failures)


@pytest.mark.parametrize("first", [100, 105])
def test_the_recalibration_of_a_random_module_is_a_fixed_point(first: int, tmp_path: Path) -> None:
    seen: Counter[tuple[str, str]] = Counter()
    for seed in range(first, first + 5):
        found = recalibrated(random_module(seed, tmp_path))
        assert not found.failures, (seed, found.failures)
        seen.update(found.counts)
    assert seen["recalibrate", "seen by hooks"] > 3


@pytest.mark.parametrize(("factor", "finding"), [(1 + 1e-6, "the variance is off by"), (0.0, "does not say so")])
def test_statistics_that_are_off_are_found(
    factor: float, finding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = bnfold.recalibrate

    def wrong(module: nn.Module, *arguments: object, **options: object) -> RecalibrationResult:
        result = right(module, *arguments, **options)
        moved = next(part for part in result.model.modules() if isinstance(part, nn.BatchNorm2d))
        moved.running_var.mul_(factor)
        report = result.report if factor else replace(result.report, recalibrated=())
        return replace(result, report=report)

    monkeypatch.setattr("bnfold.recalibrate", wrong)
    assert any(finding in line for line in recalibrated(random_module(107, tmp_path)).failures)


@dataclass
class Result:
    module: nn.Module
    decisions: tuple[()] = ()


@pytest.mark.parametrize(
    ("inplace", "finding"),
    [(False, "own: example: output 0 is off by"), (True, "the user's module changed")],
)
def test_a_fold_that_changes_a_number_or_the_original_is_found(
    inplace: bool, finding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(module: nn.Module, **_options: object) -> Result:
        changed = module if inplace else copied(module)
        with torch.no_grad():
            for parameter in changed.parameters():
                parameter.add_(1e-6)
        return Result(changed)

    monkeypatch.setattr("bnfold.fold", wrong)
    failures = examine(random_module(1, tmp_path)).failures
    assert any(line.startswith(finding) for line in failures), failures


def test_the_modules_are_a_pure_function_of_the_seed(tmp_path: Path) -> None:
    for seed in range(5):
        first, second = random_module(seed, tmp_path), random_module(seed, tmp_path)
        assert first.source == second.source
        assert all(torch.equal(a, b) for a, b in zip(first.inputs, second.inputs, strict=True))
        pairs = zip(first.module.state_dict().items(), second.module.state_dict().items(), strict=True)
        assert all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs)


def test_every_way_to_write_a_layer_is_among_them(tmp_path: Path) -> None:
    sources = [random_module(seed, tmp_path).source for seed in range(250)]
    written = (
        "weight_norm( spectral_norm( doubled) prune.l1 self.alias F.linear( F.conv2d( .weight.abs() Frozen( NormAct( "
        "F.batch_norm( track_running_stats=False SyncBatchNorm .running_mean.sum() nn.ConvTranspose Block( self.last "
        "register_buffer .mul_( .detach() view_as if input="
    )
    text = "\n".join(sources)
    assert [part for part in written.split() if part not in text] == []
    assert len(LINEAR_WAYS) + len(NORM_WAYS) == 17


def test_what_they_give_is_read_flat() -> None:
    x = torch.ones(2)
    assert as_tensors([x, (x, [x])]) == [x, x, x]
