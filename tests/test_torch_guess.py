"""Modules without example inputs: they are made up where the layers tell, and a guess never changes a number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_torch_observed import Block, lively
from torch import Tensor, nn
from torch_models import names, reasons, sample
from zoo.functional import Net, conv

import bnfold
from bnfold.decision import Folded, Reason
from bnfold.errors import UsageError


def both(net: nn.Module, *shapes: tuple[int, ...]) -> bnfold.TorchFoldResult:
    """Fold without example inputs; the result is right for inputs of these shapes."""
    result = bnfold.fold(net)
    for shape in shapes:
        x = sample(*shape)
        with torch.no_grad():
            old, new = net(x), result.module(x)
        assert (old - new).abs().max() <= 1e-11 * old.abs().max()
    return result


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU()), (2, 3, 9, 11)),
        (nn.Sequential(nn.ReflectionPad2d(1), conv(), nn.BatchNorm2d(4)), (2, 3, 9, 11)),
        (nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), (2, 3, 9)),
        (nn.Sequential(nn.ConvTranspose3d(3, 4, 2), nn.BatchNorm3d(4)), (2, 3, 4, 5, 6)),
        (nn.Sequential(conv(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 26 * 26, 5)), (3, 3, 28, 28)),
        (nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.BatchNorm1d(5)), (3, 48)),
    ],
)  # fmt: skip
def test_inputs_are_made_up_from_the_first_layer(net: nn.Module, shape: tuple[int, ...]) -> None:
    result = both(lively(net), shape)
    assert len(names(result.decisions, Folded)) == 1
    assert result.report.notes[0].startswith("example_inputs were made up: float64 (2, ")


def test_the_type_of_the_inputs_is_that_of_the_module() -> None:
    report = bnfold.inspect(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval())
    assert report.notes == ("example_inputs were made up: float32 (2, 3, 64, 64) or float32 (2, 3, 64, 96)",)


def test_inputs_are_made_up_for_a_module_that_insists_on_a_size() -> None:
    net = Net(lambda s, x: s.bn(s.conv(x.view(-1, 3, 224, 224))), conv=conv(), bn=nn.BatchNorm2d(4))
    result = both(lively(net), (2, 3, 224, 224))
    assert names(result.decisions, Folded) == ["bn"]


def test_inputs_are_made_up_for_two_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.fc = Block(3), nn.Linear(5, 4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            result: Tensor = self.a(x) + self.fc(y)[:, :, None, None]
            return result

    net = lively(Two())
    result = bnfold.inspect(net)
    assert names(result.decisions, Folded) == ["a.bn"]
    assert "(2, 5)" in result.notes[0]


def test_a_module_without_a_symbolic_trace_is_known_by_its_first_layer() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise ValueError("no image")
        result: Tensor = s.block(x)
        return result

    assert names(both(lively(Net(forward, block=Block(3))), (2, 3, 9, 9)).decisions, Folded) == ["block.bn"]


def test_ranks_that_do_not_agree_keep_the_batchnorm() -> None:
    net = lively(nn.Sequential(nn.Linear(7, 4), nn.BatchNorm1d(4)))
    result = both(net, (3, 7), (3, 4, 7))
    assert reasons(result) == [Reason.CALLS_DISAGREE]
    (kept,) = result.report.kept
    assert kept.refusals[0].detail == "made-up inputs: give example_inputs"
    assert names(bnfold.fold(net, example_inputs=(sample(3, 7),)).decisions, Folded) == ["1"]


def test_a_module_that_does_something_else_at_other_sizes_gets_no_guess() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        return s.conv(x) if x.shape[2] > 80 else s.bn(s.conv(x))

    net = lively(Net(forward, conv=conv(), bn=nn.BatchNorm2d(4)))
    with pytest.raises(UsageError, match="it may do something else for axis 2 of x of size 81"):
        bnfold.fold(net)


def test_a_module_that_cannot_be_captured_is_not_observed_on_made_up_inputs() -> None:
    net = lively(Net(lambda s, x: s.a(x) if x.sum() > 0 else s.b(x), a=Block(3), b=Block(3)))
    with pytest.raises(UsageError, match=r"needs example_inputs.*it cannot be captured whole"):
        bnfold.fold(net)


@pytest.mark.parametrize(
    "net",
    [
        Net(lambda s, x: s.act(x), act=nn.ReLU()),
        Net(lambda s, x: s.bn(s.conv(x["image"])), conv=conv(), bn=nn.BatchNorm2d(4)),
        nn.Sequential(conv(), nn.BatchNorm2d(5)),
    ],
)
def test_where_the_layers_do_not_tell_example_inputs_are_asked_for(net: Any) -> None:
    with pytest.raises(UsageError, match="needs example_inputs, the tuple of what its forward pass takes"):
        bnfold.inspect(net.eval())
