"""Conditions on what was observed of a module and what is written into one: both sides of each, without a capture."""

from __future__ import annotations

import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree

import bnfold
from bnfold.affine import ChannelAffine
from bnfold.decision import Reason, Refusal
from bnfold.errors import InternalError
from bnfold.frontends import torch_decisions
from bnfold.frontends.torch_decisions import Decisions, TooLongError, is_foreign
from bnfold.frontends.torch_guards import _codes, _texts
from bnfold.frontends.torch_observed import Call, _equal, _kept, _kind, _turned
from bnfold.frontends.torch_parts import _channels, _fixes_ranks, _is_batchnorm, _is_plain, ends_of
from bnfold.frontends.torch_read_batchnorm import TorchBatchNorm
from bnfold.frontends.torch_write import _write_batchnorm, _write_linear, take_out, write
from bnfold.views import BatchNorm


def call(*args: Any, **kwargs: Any) -> Call:
    leaves, spec = _pytree.tree_flatten((args, kwargs))
    return Call(tuple(map(_kept, leaves)), spec, tuple(map(_kind, leaves)))


SOME, MANY = torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.float64)


class Thing:
    """It equals every other one."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (call(SOME), call(SOME + 1), True),
        (call(SOME), call(MANY), False),
        (call(SOME), call(SOME.float()), False),
        (call(SOME), call(x=SOME), False),
        (call([SOME, 1]), call([SOME, 1]), True),
        (call(SOME, 1), call(SOME, 2), False),
        (call(SOME, 1), call(SOME, True), False),
        (call(SOME, 1), call(SOME, 1.0), False),
        (call(SOME, "a"), call(SOME, "a"), True),
        (call(Thing()), call(Thing()), False),
        (call(math), call(math), True),
    ],
)
def test_calls_are_alike_whose_inputs_are_of_one_kind(one: Call, other: Call, expected: bool) -> None:
    assert _equal(one, other) == expected


def test_numbers_are_kept_of_indices_only() -> None:
    assert _kept(SOME).is_meta
    assert _kept(torch.tensor([1, 2])).tolist() == [1, 2]
    assert _kept("a") == "a"


def test_only_tensors_by_position_are_of_tensors() -> None:
    assert call(SOME, MANY).is_of_tensors
    assert not call(SOME, 1).is_of_tensors
    assert not call(x=SOME).is_of_tensors
    assert not call((SOME, MANY)).is_of_tensors


@pytest.mark.parametrize(("given", "expected"), [(None, True), (True, True), ("a", True), (1, False), (1.5, False)])
def test_numbers_are_no_plain_inputs(given: object, expected: bool) -> None:
    assert _is_plain(call(SOME, given)) == expected


def test_each_decision_is_turned_once() -> None:
    code = test_each_decision_is_turned_once.__code__
    first, second = ("", code, 0), ("", code, 8)
    made = [(first, True), (second, False)]
    assert list(_turned(made, 0, set())) == [(False,), (True, True)]
    assert list(_turned(made, 1, set())) == [(True, True)]
    assert list(_turned(made, 0, {(first, False)})) == [(True, True)]
    assert list(_turned([(first, True), (first, True)], 0, set())) == [(False,)]


def test_forced_decisions_have_an_end_and_others_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_decisions, "_MOST", 3)
    free, forced, many = Decisions(), Decisions((True,)), Decisions((True,) * 5)
    assert [free.settle(False) for _ in range(5)] == [False] * 5
    assert [many.settle(False) for _ in range(5)] == [True] * 5
    assert [forced.settle(False) for _ in range(3)] == [True, False, False]
    for decisions in (forced, many):
        with pytest.raises(TooLongError):
            decisions.settle(False)
    sites = [site for site, _ in free.made]
    assert sites[0][1].co_filename == __file__


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        (torch.nn.__file__, True),
        (bnfold.__file__, True),
        (os.__file__, True),
        ("<frozen importlib._bootstrap>", True),
        (__file__, False),
        ("<string>", False),
        (np.__file__, False),
        (str(Path(os.__file__).parent / "site-packages" / "models" / "net.py"), False),
        (str(Path(os.__file__).parent / "dist-packages" / "net.py"), False),
    ],
)
def test_code_of_users_and_of_their_libraries_is_not_foreign(filename: str, expected: bool) -> None:
    assert is_foreign(filename) == expected


def test_a_demand_is_read_of_the_assertions_alone() -> None:
    def documented(x: float) -> None:
        """No demand."""
        assert x > 1, "Guard failed: x > 1"

    number = 3
    codes = list(_codes(lambda: (documented, number)))
    assert documented.__code__ in codes
    assert len(codes) == 2
    assert [text for code in codes for text in _texts(code)] == ["x > 1"]


class BatchNormOptions(nn.Module):
    """By its name, and nothing else, a BatchNorm."""


class OwnBatchNorm(nn.Module):
    def __init__(self, mean: torch.Tensor | None) -> None:
        super().__init__()
        self.running_mean = mean


class OwnNorm(OwnBatchNorm):
    pass


class Renamed(nn.BatchNorm2d):
    pass


@pytest.mark.parametrize(
    ("part", "expected", "channels"),
    [
        (nn.BatchNorm2d(4), True, 4),
        (nn.BatchNorm1d(4, track_running_stats=False), True, 4),
        (Renamed(4), True, 4),
        (nn.InstanceNorm2d(4), False, 4),
        (OwnBatchNorm(torch.zeros(3)), True, 3),
        (OwnBatchNorm(None), True, 0),
        (nn.LazyBatchNorm2d(), True, 0),
        (BatchNormOptions(), False, 0),
        (OwnNorm(torch.zeros(3)), False, 3),
        (nn.LayerNorm(4), False, 0),
    ],
)
def test_a_batchnorm_is_known_by_its_class_and_statistics(part: nn.Module, expected: bool, channels: int) -> None:
    assert (_is_batchnorm(part), _channels(part)) == (expected, channels)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([nn.BatchNorm2d(4), nn.BatchNorm3d(4), nn.LayerNorm(4)], True),
        ([nn.BatchNorm2d(4), nn.BatchNorm1d(4)], False),
        ([OwnBatchNorm(torch.zeros(3))], False),
        ([nn.LayerNorm(4)], False),
    ],
)
def test_ranks_are_fixed_by_batchnorms_that_refuse_others(parts: list[nn.Module], expected: bool) -> None:
    assert _fixes_ranks(nn.Sequential(*parts)) == expected


def test_only_the_ends_of_a_part_are_told_as_its_ends() -> None:
    ends, lazy = Refusal(Reason.PART_ENDS_HERE, "a", "why"), Refusal(Reason.NOT_INITIALISED, "a")
    other = Refusal(Reason.OPERATOR_HAS_NO_RULE, "b")
    for reason in (Reason.READS_MODEL_INPUT, Reason.IS_MODEL_OUTPUT):
        assert ends_of(Refusal(reason, "b"), ends) == Refusal(Reason.PART_ENDS_HERE, "b", "why")
        assert ends_of(Refusal(reason, "b"), lazy) == lazy
    assert ends_of(other, ends) == other


@pytest.mark.parametrize("what", ["constants", "clamps", "reduced", "merged", ""])
def test_what_has_no_place_in_a_module_is_not_written(what: str) -> None:
    empty: dict[str, Any] = dict.fromkeys(("constants", "clamps", "reduced", "merged"), ())
    bench = SimpleNamespace(**{**empty, **({what: (1,)} if what else {})}, absorbed=(), affines={}, removed=())
    plan: Any = SimpleNamespace(bench=bench)
    if not what:
        write(nn.Module(), SimpleNamespace(), plan)  # type: ignore[arg-type]
        return
    with pytest.raises(InternalError, match="what has no place in it"):
        write(nn.Module(), SimpleNamespace(), plan)  # type: ignore[arg-type]


def with_rest(**rest: nn.Module) -> nn.Sequential:
    """A module in eval mode, at the place "0" of one in training mode, which holds what is left of a BatchNorm."""
    norm = nn.BatchNorm2d(4).eval()
    for name, part in rest.items():
        norm.add_module(name, part)
    return nn.Sequential(norm)


def test_what_is_left_of_a_batchnorm_takes_its_place() -> None:
    act, drop = nn.ReLU(), nn.Dropout()
    for rest, expected in (
        ({}, nn.Identity),
        ({"drop": nn.Identity()}, nn.Identity),
        ({"drop": nn.Identity(), "act": act}, nn.ReLU),
        ({"drop": drop, "act": act}, nn.Sequential),
    ):
        target = with_rest(**rest)
        take_out(target, TorchBatchNorm("0", tuple(rest)))
        assert type(target[0]) is expected
        assert target[0].training == (target[0] is act)  # what is left stays as it is, what is new is as the BatchNorm
    assert act.training
    assert list(target[0]) == [drop, act]


@pytest.mark.parametrize("place", [TorchBatchNorm("0", None), TorchBatchNorm("", ())])
def test_what_is_no_module_is_not_taken_out(place: TorchBatchNorm) -> None:
    with pytest.raises(InternalError, match="takes out what is no module"):
        take_out(with_rest(), place)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_a_bias_is_written_only_where_it_has_a_place(shift: float) -> None:
    target, layout = nn.Linear(2, 2, bias=False).double(), SimpleNamespace(stored=lambda weight: weight)
    site: Any = SimpleNamespace(weight="weight", bias="", layout=layout, owner=None)
    params: Any = SimpleNamespace(weight=np.eye(2), bias=np.full(2, shift))
    with torch.no_grad():
        if not shift:
            _write_linear(target, site, params)
            assert target.bias is None
        else:
            with pytest.raises(InternalError, match="adds a bias that has no place in it"):
                _write_linear(target, site, params)


@pytest.mark.parametrize("affine", [False, True])
def test_the_parameters_of_a_batchnorm_that_stays_are_the_same_objects(affine: bool) -> None:
    part = nn.BatchNorm2d(2, affine=affine).double()
    held = part.weight, part.bias
    view = BatchNorm.of_statistics(np.ones(2), np.zeros(2), np.zeros(2), np.ones(2), 0.0, np.dtype(np.float64))
    graph: Any = SimpleNamespace(operators=[SimpleNamespace(view=view)], batchnorms=[TorchBatchNorm("0", ())])
    with torch.no_grad():
        _write_batchnorm(nn.Sequential(part), graph, 0, ChannelAffine(np.array([2.0, 3.0]), np.array([4.0, 5.0])))
    assert (part.weight.tolist(), part.bias.tolist()) == ([2.0, 3.0], [4.0, 5.0])
    assert part.affine
    assert (part.weight is held[0], part.bias is held[1]) == (affine, affine)
