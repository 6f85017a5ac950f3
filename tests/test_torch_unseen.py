"""Code of a forward pass that no observed run reached: it keeps the parts that it may use in another way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_torch_observed import SCREEN, Block, fold, folded, lively, refusal
from torch import Tensor, nn
from torch_models import sample
from zoo.functional import Net, conv

import bnfold
from bnfold.decision import Reason


def test_code_that_no_run_reaches_and_that_names_a_piece_keeps_the_part() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = -x
        if x.sum().item() > 1e6:  # a number, which nothing can turn about
            return s.block.conv(x)
        result: Tensor = s.block(x)
        return result

    result = fold(lively(Net(forward, block=Block(3))))
    assert folded(result) == []
    assert refusal(result, "block.bn").reason is Reason.CODE_NOT_OBSERVED
    assert refusal(result, "block.bn").detail.endswith("of forward")
    assert "of forward" in str(refusal(result, "block.bn"))


def test_code_that_no_run_reaches_and_that_does_not_touch_the_part_keeps_nothing() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = -x
        if x.sum().item() > 1e6:
            x = x / 2
        result: Tensor = s.block(x)
        return result

    assert folded(fold(lively(Net(forward, block=Block(3))))) == ["block.bn"]


def test_code_that_only_raises_keeps_nothing() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        if x.sum().item() > 1e6:
            raise ValueError(f"too large for {s.block.conv}")
        y: Tensor = s.block(x)
        return y if y.sum() > 0 else -y

    assert folded(fold(lively(Net(forward, block=Block(3))))) == ["block.bn"]


def test_code_for_training_and_for_scripts_keeps_nothing() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        if s.training:
            x = s.block.conv(x)
        if torch.jit.is_scripting() or s.training:
            return s.block.conv(x)
        y: Tensor = s.block(x)
        return y if y.sum() > 0 else -y

    assert folded(fold(lively(Net(forward, block=Block(3))))) == ["block.bn"]


def test_code_that_answers_an_exception_counts() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        try:
            y: Tensor = s.block(x)
        except RuntimeError:
            y = s.block.conv(x)
        return y if y.sum() > 0 else -y

    assert refusal(fold(lively(Net(forward, block=Block(3)))), "block.bn").reason is Reason.CODE_NOT_OBSERVED


def test_code_under_no_grad_is_no_answer_to_an_exception() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        with torch.no_grad():
            y: Tensor = s.block(x)
        return y if y.sum() > 0 else -y

    assert folded(fold(lively(Net(forward, block=Block(3))))) == ["block.bn"]


def test_a_method_that_no_run_calls_may_do_anything() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block(3)

        def pieces(self, x: Tensor) -> Tensor:
            result: Tensor = next(iter(self.block.children()))(x)
            return result

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.pieces(x) if x.sum().item() > 1e6 else self.block(x)
            return result

    assert refusal(fold(lively(Whole())), "block.bn").reason is Reason.CODE_NOT_OBSERVED


@pytest.mark.parametrize(
    "elsewhere",
    [
        "part[0](x)",
        "s.block[0](x)",
        "getattr(s, 'block')[0](x)",
        "getattr(s, name)[0](x)",
        "s.get_submodule('block.0')(x)",
        "next(iter(s.children()))[0](x)",
        "helper(s, x)",
        "vars(s)['_modules']['block'][0](x)",
        "listed[0][0](x)",
        "(lambda: part[0](x))()",
        "[layer for layer in part][0](x)",
        "next(layers)(x)",
    ],
)
def test_code_that_may_reach_a_part_keeps_it(elsewhere: str) -> None:
    code = f"""
def forward(s, x):
    part, listed, name, layers = s.block, [s.block], "bl" + "ock", iter(s.block)
    if x.sum().item() > 1e6:
        return {elsewhere}
    y = part(x)
    return y if y.sum() > 0 else -y
"""
    scope: dict[str, Any] = {"helper": lambda s, x: s.block[0](x)}
    exec(code, scope)
    net = lively(Net(scope["forward"], block=nn.Sequential(conv(), nn.BatchNorm2d(4))))
    assert refusal(fold(net), "block.1").reason is Reason.CODE_NOT_OBSERVED


def test_a_part_that_is_never_called_is_kept_and_says_so() -> None:
    net = lively(Net(lambda s, x: s.a(x) if x.sum().item() > 1e6 else s.b(x), a=Block(3), b=Block(3)))
    result = bnfold.fold(net, example_inputs=(sample(*SCREEN),), verify=False)
    assert refusal(result, "a.bn").reason is Reason.NOT_REACHED
    (kept,) = [kept for kept in result.report.kept if kept.subject.name == "a.bn"]
    assert kept.remedy == "give example_inputs for which the forward pass calls it"
    assert kept.subject.channels == 4


def test_a_rank_that_was_not_seen_is_not_assumed_away() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        flat = x.flatten(1)[:, :4]
        if flat.sum().item() > 1e6:
            flat = flat[:, :, None].repeat(1, 1, 4)
        y: Tensor = s.part(flat)
        return y if y.sum() > 0 else -y

    part = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    assert refusal(fold(lively(Net(forward, part=part))), "part.1").reason is Reason.CODE_NOT_OBSERVED


def test_numbers_that_may_differ_from_call_to_call_are_no_constants() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = conv(), nn.BatchNorm2d(4)

        def forward(self, x: Tensor, factor: float) -> Tensor:
            result: Tensor = self.bn(self.conv(x) * factor)
            return result

    net = lively(Net(lambda s, x: s.part(x, x.sum().item()), part=Scaled()))
    result = fold(net)
    assert folded(result) == []


def test_flags_that_are_made_of_numbers_are_no_constants() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        return s.part(x, flag=x.sum().item() > 1e6)

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = conv(), nn.BatchNorm2d(4)

        def forward(self, x: Tensor, flag: bool) -> Tensor:
            y: Tensor = self.conv(x)
            return y if flag else self.bn(y)

    net = lively(Net(forward, part=Part()))
    result = bnfold.fold(net, example_inputs=(sample(*SCREEN),))
    assert folded(result) == []
    with torch.no_grad():
        x = sample(*SCREEN).abs() * 1e6
        assert torch.equal(net(x), result.module(x))


def test_a_decision_without_an_end_does_not_hang() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y: Tensor = s.block(x)
        while y.abs().max() > 1.0:
            y = y / 2
        return y

    result = bnfold.fold(lively(Net(forward, block=Block(3))), example_inputs=(sample(*SCREEN),))
    assert folded(result) == ["block.bn"]
