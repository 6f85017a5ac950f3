"""Conditions of the PyTorch front end that no other test is about: each would let a wrong or unproven fold through."""

from __future__ import annotations

import functools
import types
from typing import Any

import pytest
import torch
from test_torch_guards import Net, conv
from test_torch_observed import Block, folded, lively, refusal
from test_torch_observed import fold as fold_observed
from torch import Tensor, nn
from torch.nn import functional as f
from torch_models import alive, fold, names, reasons, sample
from zoo.vision import _operators

import bnfold
from bnfold.decision import Folded, Reason
from bnfold.frontends import torch_decisions, torch_parts


class Scaled(Block):
    """A block that takes a number, or a flag."""

    def forward(self, x: Tensor, times: float = 1) -> Tensor:
        return super().forward(x) * times


def deciding(s: Net, x: Tensor, *more: object) -> Tensor:
    y: Tensor = s.a(x, *more)
    return y.relu() if x.sum() > 0 else -y


@pytest.mark.parametrize(("times", "expected"), [(2, []), (True, ["a.bn"])])
def test_a_part_that_is_called_with_a_number_may_be_called_with_another_one(times: float, expected: list[str]) -> None:
    result = fold_observed(lively(Net(lambda s, x: deciding(s, x, times), a=Scaled(3))))
    assert folded(result) == expected
    if not expected:
        found = refusal(result, "a.bn")
        assert (found.reason, found.detail[:24]) == (Reason.PART_ENDS_HERE, "it takes numbers or obje")


@pytest.mark.parametrize(("most", "expected"), [(1, []), (2, ["a.bn"])])
def test_a_part_that_is_called_in_too_many_ways_is_left(
    monkeypatch: pytest.MonkeyPatch, most: int, expected: list[str]
) -> None:
    monkeypatch.setattr(torch_parts, "_MOST_KINDS", most)

    def forward(s: Net, x: Tensor) -> Tensor:
        y: Tensor = s.a(x).mean((2, 3)) + s.a(x.float()).mean((2, 3)).double()
        return y.relu() if x.sum() > 0 else -y

    class Typed(Block):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.double())

    result = fold_observed(lively(Net(forward, a=Typed(3))))
    assert folded(result) == expected
    if not expected:
        assert refusal(result, "a.bn").reason is Reason.CALLS_DISAGREE


def test_a_loop_that_a_forced_decision_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_decisions, "_MOST", 8)

    def forward(s: Net, x: Tensor) -> Tensor:
        y: Tensor = s.a(x)
        while x.sum() > 0:
            x, y = x.abs(), s.a(y)
        return y

    net = lively(Net(forward, a=Block(3, 3)))
    result = bnfold.fold(net, example_inputs=(-sample(2, 3, 9, 9).abs(),))
    assert folded(result) == ["a.bn"]


def test_code_that_depends_on_a_size_is_not_taken_for_the_whole() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y: Tensor = s.bn(s.conv(x))
        return y.relu() if x.shape[2] == 9 else y.neg()

    net = alive(Net(forward, conv=conv(), bn=nn.BatchNorm2d(4)))
    result = fold(net)
    assert "what the module computes depends on the sizes of its inputs" in result.report.notes[0]
    assert reasons(result) == [Reason.PART_ENDS_HERE]


def test_a_rank_that_depends_on_a_size_is_not_taken_for_known() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y: Tensor = s.bn(s.conv(x))
        return y.reshape((-1, 4, 49) if x.shape[2] == 9 else (-1, 4, 16, 7)).sigmoid()

    net = alive(Net(forward, conv=conv(), bn=nn.BatchNorm2d(4)))
    result = fold(net)
    assert "the rank of a value depends on the sizes of the inputs" in result.report.notes[0]
    assert reasons(result) == [Reason.PART_ENDS_HERE]


def test_a_batchnorm_with_another_forward_pass_may_do_more() -> None:
    net = alive(nn.Sequential(conv(), nn.BatchNorm2d(4)))
    net[1].forward = types.MethodType(lambda self, x: 2 * nn.BatchNorm2d.forward(self, x), net[1])
    result = fold(net)
    assert reasons(result) == [Reason.MODULE_CANNOT_HOLD_IT]
    assert result.report.kept[0].refusals[0].detail == "BatchNorm2d may do more than normalise"


def test_a_layer_whose_weight_others_use_has_no_place_for_their_bias() -> None:
    net = alive(Net(lambda s, x: s.bn(f.conv2d(x, s.conv.weight)), conv=conv(), bn=nn.BatchNorm2d(4)))
    result = fold(net)
    assert reasons(result) == [Reason.MODULE_CANNOT_HOLD_IT]
    assert "no place for one" in result.report.kept[0].refusals[0].detail


def frozen() -> nn.Module:
    """A FrozenBatchNorm2d with numbers of no special form."""
    _operators()
    from torchvision.ops import FrozenBatchNorm2d  # noqa: PLC0415

    found: nn.Module = FrozenBatchNorm2d(4).double()
    for i, values in enumerate(found.buffers()):
        values.copy_(torch.linspace(0.5, 1.5 + i, 4))
    return found


def test_a_frozen_batchnorm_is_folded_where_it_is_called_once_and_nobody_looks() -> None:
    def twice(s: Net, x: Tensor) -> Tensor:
        y: Tensor = s.bn(s.a(x)) + s.bn(s.b(x)).sigmoid()
        return y

    assert names(fold(alive(Net(lambda s, x: s.bn(s.a(x)), a=conv(), bn=frozen()))).decisions, Folded) == ["bn"]
    assert names(fold(alive(Net(twice, a=conv(), b=conv(), bn=frozen()))).decisions, Folded) == []
    net = alive(Net(lambda s, x: s.bn(s.a(x)), a=conv(), bn=frozen()))
    net.bn.register_forward_hook(lambda *_: None)
    assert reasons(fold(net)) == [Reason.MODULE_CANNOT_HOLD_IT]


def scaled(
    norm: Any, x: Tensor, *, axis: int = 1, by_mean: bool = True, by_scale: bool = True, minus: bool = False
) -> Tensor:
    """The forward pass of a FrozenBatchNorm2d, or nearly so."""

    def placed(values: Tensor) -> Tensor:
        return values.reshape([-1 if i == axis else 1 for i in range(4)])

    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale * by_mean
    factor = placed(scale if by_scale else scale.abs() + 1)
    return x * factor - placed(-shift) if minus else x * factor + placed(shift)


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, []),
        ({"minus": True}, []),  # which is a product and a difference, and none for sure
        ({"axis": 2}, [Reason.PARAMETERS_MISMATCHED]),
        ({"by_mean": False}, [Reason.PARAMETERS_MISMATCHED]),
        ({"by_scale": False}, [Reason.PARAMETERS_MISMATCHED]),
    ],
)
def test_a_frozen_batchnorm_of_another_forward_pass_is_none_in_a_graph(
    options: dict[str, Any], expected: list[Reason]
) -> None:
    net = alive(Net(lambda s, x: s.bn(s.a(x)), a=conv(), bn=frozen()), 2, 3, 6, 6)
    net.bn.forward = types.MethodType(functools.partial(scaled, **options), net.bn)
    assert reasons(fold(net, 2, 3, 6, 6, as_graph=True)) == expected


def test_a_frozen_batchnorm_of_its_own_forward_pass_stays_in_a_module() -> None:
    net = alive(Net(lambda s, x: s.bn(s.a(x)), a=conv(), bn=frozen()))
    net.bn.forward = types.MethodType(scaled, net.bn)
    assert reasons(fold(net)) == [Reason.MODULE_CANNOT_HOLD_IT]


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")
def test_a_product_that_others_read_is_no_half_of_a_frozen_batchnorm() -> None:
    def both(norm: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        y = x * scale.reshape(-1, 1, 1)
        return y, y + (norm.bias - norm.running_mean * scale).reshape(-1, 1, 1)

    def forward(s: Net, x: Tensor) -> Tensor:
        half, whole = s.bn(s.a(x))
        return half.sigmoid() * whole.tanh()  # type: ignore[no-any-return]

    net = alive(Net(lambda s, x: s.bn(s.a(x)), a=conv(), bn=frozen()))
    net.code, net.bn.forward = forward, types.MethodType(both, net.bn)
    result = fold(net, as_graph=True)
    assert not [d for d in result.decisions if d.subject.kind == "FrozenBatchNorm2d"]


class Positive(nn.BatchNorm2d):
    """It computes its weight."""

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.raw.abs()  # type: ignore[union-attr,operator,return-value]


@pytest.mark.parametrize("is_computed", [False, True])
def test_a_batchnorm_that_computes_its_weight_has_no_place_for_another(is_computed: bool) -> None:
    net = alive(Net(lambda s, x: s.bn(s.conv(x)), conv=conv(), bn=nn.BatchNorm2d(4)))
    if is_computed:
        net.bn.raw = nn.Parameter(net.bn.weight.detach() - 0.5)
        del net.bn.weight
        net.bn.__class__ = Positive
    result = fold(net)
    assert reasons(result) == ([Reason.MODULE_CANNOT_HOLD_IT] if is_computed else [])


def test_a_batchnorm_in_a_branch_of_a_graph_is_kept() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y: Tensor = torch.cond(x.sum() > 0, lambda z: s.bn(z) + 1, lambda z: z.clone(), (s.conv(x),))
        return y.sigmoid()

    net = alive(Net(lambda s, x: s.bn(s.conv(x)), conv=conv(), bn=nn.BatchNorm2d(4)))
    net.code = forward
    report = bnfold.inspect(net, example_inputs=(sample(),), as_graph=True, static_shapes=True)
    (kept,) = report.kept
    assert (kept.subject.name, kept.refusals[0].reason) == ("batch_norm", Reason.OPERATOR_HOLDS_BODIES)
