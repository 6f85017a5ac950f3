"""Modules that torch.export cannot capture: folded part by part from observed runs, and right on every path."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_models import names, sample
from zoo.functional import Net, conv

import bnfold
from bnfold import TorchFoldResult
from bnfold.decision import Folded, Reason, Refusal
from bnfold.errors import ModelError

SCREEN = (2, 3, 9, 9)


class Block(nn.Module):
    """A convolution and its BatchNorm."""

    def __init__(self, inputs: int = 4, outputs: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.bn(self.conv(x))
        return result


def lively(module: nn.Module) -> nn.Module:
    """In float64 and eval mode, with parameters and statistics of no special form, whether or not they are called."""
    generator = torch.Generator().manual_seed(3)
    for part in module.double().eval().modules():
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
            for tensor in (part.running_mean, part.weight, part.bias):
                if tensor is not None:
                    tensor.data.normal_(generator=generator)
            if part.running_var is not None:
                part.running_var.uniform_(0.5, 2.0, generator=generator)
    return module


def fold(module: nn.Module, *inputs: Any, **options: Any) -> TorchFoldResult:
    """Fold, and compare both ways through the module: on inputs of positive, negative and any numbers."""
    given = inputs or (sample(*SCREEN),)
    result = bnfold.fold(module, example_inputs=given, **options)
    for turn in (Tensor.abs, lambda x: -x.abs(), Tensor.clone, lambda x: 3 * x.flip(0)):
        turned = [turn(x) if isinstance(x, Tensor) else x for x in given]
        with torch.no_grad():
            old, new = copy.deepcopy(module)(*turned), copy.deepcopy(result.module)(*turned)
        assert (old - new).abs().max() <= 1e-11 * old.abs().max(), "the folded module differs"
    return result


def folded(result: TorchFoldResult) -> list[str]:
    return sorted(names(result.decisions, Folded))


def refusal(result: TorchFoldResult, name: str) -> Refusal:
    (found,) = [kept for kept in result.report.kept if kept.subject.name == name]
    return found.refusals[0]


def test_both_branches_are_folded_and_the_report_says_how() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.a(x) if x.sum() > 0 else s.b(x)
        return s.last(y)

    net = lively(Net(forward, a=Block(3), b=Block(3), last=Block()))
    result = fold(net)
    assert folded(result) == ["a.bn", "b.bn", "last.bn"]
    assert type(result.module) is Net
    first, second = result.report.notes
    assert first.startswith("torch.export cannot capture the whole: Could not guard on data-dependent expression")
    assert second == "folded from observed runs on the example inputs, part by part: " + ", ".join(
        d.subject.name.removesuffix(".bn") for d in result.report.folded
    )
    assert result.report.before.batchnorms == 3
    assert result.report.after is not None
    assert result.report.after.batchnorms == 0
    assert bnfold.inspect(net, example_inputs=(sample(*SCREEN),)).decisions == result.decisions


def test_the_original_stays_as_it_is_and_inplace_changes_it() -> None:
    net = lively(Net(lambda s, x: s.a(x) if x.sum() > 0 else s.b(x), a=Block(3), b=Block(3)))
    before = copy.deepcopy(net.state_dict())
    fold(net)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert bnfold.fold(net, example_inputs=(sample(*SCREEN),), inplace=True).module is net
    assert isinstance(net.a.bn, nn.Identity)
    assert isinstance(net.b.bn, nn.Identity)


def test_the_check_runs_both_ways() -> None:
    net = lively(Net(lambda s, x: s.a(x) if x.sum() > 0 else s.b(x), a=Block(3), b=Block(3)))
    checked = bnfold.fold(net, example_inputs=(sample(*SCREEN),)).report.verification
    assert checked is not None
    assert len(checked.quick[0].runs) == 4  # two ways, two sizes


def test_a_wrong_fold_of_the_branch_that_the_example_does_not_take_fails_the_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from bnfold.frontends import torch_write  # noqa: PLC0415

    x = sample(*SCREEN)
    net = lively(Net(lambda s, x: s.a(x) if x.sum() > 0 else s.b(x), a=Block(3), b=Block(3)))
    other = "b" if x.sum() > 0 else "a"
    right = torch_write._write_linear

    def wrong(target: nn.Module, site: Any, params: Any) -> None:
        right(target, site, params)
        if site.weight.startswith(other):
            torch_write._named(target, site.weight).data[0, 0, 0, 0] += 1e-3

    monkeypatch.setattr(torch_write, "_write_linear", wrong)
    with pytest.raises(bnfold.VerificationError, match="the folded module differs"):
        bnfold.fold(net, example_inputs=(x,))


def test_a_size_that_roundings_decide_is_not_held_against_the_fold() -> None:
    def forward(s: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        y = s.block(x)
        return y, y.flatten()[(y.flatten() > 0) | (y.dtype == torch.float32)]

    net = lively(Net(forward, block=Block(3))).float()
    result = bnfold.fold(net, example_inputs=(sample(*SCREEN, dtype=torch.float32),))
    checked = result.report.verification
    assert checked is not None
    assert checked.passed
    compared = {entry.name for entry in checked.quick[0].comparisons if entry.compared}
    assert compared == {"output 0 in float64", "output 0 as stored", "output 1 in float64"}


def test_a_part_that_is_used_in_pieces_on_another_path_stays() -> None:
    net = lively(Net(lambda s, x: s.block.conv(x) if x.sum() > 0 else s.block(x), block=Block(3)))
    result = fold(net)
    assert folded(result) == []
    assert refusal(result, "block.bn").reason is Reason.PART_ENDS_HERE
    assert "the whole calls block.conv" in refusal(result, "block.bn").detail


def test_a_part_whose_weight_is_read_from_outside_stays() -> None:
    net = lively(Net(lambda s, x: s.block(x) if x.sum() > 0 else s.block.conv.weight.sum() * x, block=Block(3, 3)))
    result = fold(net)
    assert folded(result) == []
    assert "the whole reads a parameter of block.conv" in refusal(result, "block.bn").detail


def test_asking_for_the_type_of_a_weight_is_no_reading() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = x.to(s.block.conv.weight.dtype)
        result: Tensor = s.block(x) if x.sum() > 0 else x
        return result

    assert folded(fold(lively(Net(forward, block=Block(3, 3))))) == ["block.bn"]


def test_parts_of_parts_are_folded() -> None:
    def inner(s: Net, x: Tensor) -> Tensor:
        return s.block(x) if x.mean() > 0.1 else -s.other(x)

    def outer(s: Net, x: Tensor) -> Tensor:
        return s.deep(x) if x.max() > 0 else s.deep(x) * 2

    deep = Net(inner, block=Block(3), other=nn.Sequential(nn.Dropout(), Block(3)))
    result = fold(lively(Net(outer, deep=deep)))
    assert folded(result) == ["deep.block.bn", "deep.other.1.bn"]
    assert [note.split(":")[0] for note in result.report.notes[:2]] == [
        "torch.export cannot capture the whole",
        "torch.export cannot capture deep",
    ]


def test_a_batchnorm_that_the_uncaptured_code_calls_itself_is_kept() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.bn(s.conv(x))
        return y if y.sum() > 0 else -y

    result = fold(lively(Net(forward, conv=conv(), bn=nn.BatchNorm2d(4))))
    assert refusal(result, "bn").reason is Reason.PART_ENDS_HERE
    (kept,) = result.report.kept
    assert kept.remedy.startswith("let one module hold the BatchNorm")


def test_a_batchnorm_in_the_code_itself_is_kept() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv()
            self.register_buffer("mean", torch.zeros(4))
            self.register_buffer("var", torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            y = nn.functional.batch_norm(self.conv(x), self.mean, self.var)
            return y if y.sum() > 0 else -y

    (kept,) = fold(lively(Whole())).report.kept
    assert kept.subject.name == "batch_norm"
    assert kept.refusals[0].reason is Reason.PART_ENDS_HERE


def test_the_ends_of_a_part_are_no_ends_of_the_model() -> None:
    net = lively(Net(lambda s, x: s.a(x) if x.sum() > 0 else -s.a(x), a=nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())))
    result = fold(net)
    reasons = {r.reason for kept in result.report.kept for r in kept.refusals}
    assert Reason.PART_ENDS_HERE in reasons
    assert not reasons & {Reason.READS_MODEL_INPUT, Reason.IS_MODEL_OUTPUT}


def test_a_part_that_only_copies_goes_on_copying() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.block(x)
        y.mul_(2.0)
        return x + y if x.sum() > 0 else x - y

    net = lively(Net(forward, block=nn.Sequential(nn.BatchNorm2d(3, eps=0.0), nn.Dropout())))
    norm = net.block[0]
    norm.running_mean.zero_()
    norm.running_var.fill_(1.0)
    nn.init.ones_(norm.weight)
    nn.init.zeros_(norm.bias)
    result = fold(net)
    assert refusal(result, "block.0").reason is Reason.VALUE_HAS_OTHER_READERS


def test_a_part_that_is_called_twice_as_a_whole_is_folded() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.block(s.block(x))
        return y if y.sum() > 0 else s.block(y)

    assert folded(fold(lively(Net(forward, block=Block(3, 3))))) == ["block.bn"]


def test_tied_weights_between_parts_stay() -> None:
    first, second = Block(3), Block(3)
    second.conv.weight = first.conv.weight
    net = lively(Net(lambda s, x: s.a(x) if x.sum() > 0 else s.b(x), a=first, b=second))
    result = fold(net)
    assert {refusal(result, name).reason for name in ("a.bn", "b.bn")} == {Reason.MODULE_CANNOT_HOLD_IT}


def test_one_module_in_two_parts_stays() -> None:
    first, second = Block(3), Block(3)
    second.conv = first.conv
    net = lively(Net(lambda s, x: s.a(x) if x.sum() > 0 else s.b(x), a=first, b=second))
    assert refusal(fold(net), "a.bn").reason is Reason.MODULE_CANNOT_HOLD_IT


def test_one_part_of_two_names_stays() -> None:
    net = lively(Net(lambda s, x: s.a(x) if x.sum() > 0 else s.b(x), a=Block(3), b=nn.Identity()))
    net.b = net.a
    assert refusal(fold(net), "a.bn").reason is Reason.MODULE_CANNOT_HOLD_IT


@pytest.mark.parametrize("path", ["block", "block.bn"])
def test_what_a_hook_on_a_part_sees_stays(path: str) -> None:
    net = lively(Net(lambda s, x: s.block(x) if x.sum() > 0 else s.other(x), block=Block(3), other=Block(3)))
    net.get_submodule(path).register_forward_hook(lambda _module, _inputs, _output: None)
    result = fold(net)
    assert folded(result) == ["other.bn"]
    assert refusal(result, "block.bn").reason is Reason.MODULE_CANNOT_HOLD_IT


def test_a_part_that_sees_two_ranks_keeps_what_they_do_not_agree_on() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        flat = x.flatten(1)[:, :4]
        return s.part(flat) if x.sum() > 0 else s.part(flat[:, :, None].repeat(1, 1, 4)).mean(2)

    part = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    result = fold(lively(Net(forward, part=part)))
    assert refusal(result, "part.1").reason is Reason.CALLS_DISAGREE


def test_a_part_that_sees_two_sizes_is_folded() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        return s.part(x) if x.sum() > 0 else s.part(x[:, :, 1:-2, 1:-3]).repeat(1, 1, 3, 3)[:, :, :9, :9]

    assert folded(fold(lively(Net(forward, part=Block(3))))) == ["part.bn"]


class Picky(nn.Module):
    """Takes tensors in many ways."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block(3, 3)

    def forward(
        self,
        x: Tensor | dict[str, Tensor],
        pair: tuple[Tensor, Tensor | None] | None = None,
        *,
        more: Tensor | None = None,
        flag: bool = False,
        factor: float = 1.0,
    ) -> Tensor:
        y: Tensor = self.block(x["x"] if isinstance(x, dict) else x)
        y = y if pair is None else y + pair[0]
        y = y if more is None else y * more
        return factor * (y.relu() if flag else y)


@pytest.mark.parametrize(
    "call",
    [
        lambda s, x: s.part({"x": x}),
        lambda s, x: s.part(x, (x, None)),
        lambda s, x: s.part(x, more=x),
        lambda s, x: s.part(x, None, more=None, flag=True),
        lambda s, x: s.part(x, flag=bool(x.sum() > 0)),
    ],
)
def test_parts_take_dictionaries_tuples_nothing_and_keywords(call: Callable[[Net, Tensor], Tensor]) -> None:
    net = Net(lambda s, x: call(s, x) if x.mean() > 0 else -call(s, x), part=Picky())
    assert folded(fold(lively(net))) == ["part.block.bn"]


def test_what_a_caller_wants_to_keep_stays() -> None:
    net = lively(Net(lambda s, x: s.a(x) if x.sum() > 0 else s.b(x), a=Block(3), b=Block(3)))
    result = fold(net, keep="^b")
    assert folded(result) == ["a.bn"]
    assert refusal(result, "b.bn").reason is Reason.EXCLUDED_BY_CALLER


def test_a_loop_over_modules_is_folded_module_by_module() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Block(3, 3) for _ in range(3)])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
                if x.abs().max() < 1e-3:
                    break
            return x

    net = lively(Loop())
    result = bnfold.fold(net, example_inputs=(sample(*SCREEN),))
    assert folded(result) == [f"layers.{i}.bn" for i in range(3)]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("wrap", [torch.jit.script, lambda part: torch.jit.trace(part, (sample(*SCREEN),))])
def test_a_script_in_a_module_is_kept_and_the_rest_is_folded(wrap: Callable[[nn.Module], nn.Module]) -> None:
    script = wrap(lively(nn.Sequential(conv(), nn.BatchNorm2d(4))))
    result = fold(nn.Sequential(lively(Block(3, 3)), script).eval())
    assert folded(result) == ["0.bn"]
    assert refusal(result, "1.1").reason is Reason.MODULE_CANNOT_HOLD_IT
    assert refusal(result, "1.1").detail == "TorchScript holds 1"
    assert [kept.subject.channels for kept in result.report.kept] == [4]


def test_a_batchnorm_of_a_part_in_training_mode_is_kept() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        return s.block(x) if x.sum() > 0 else s.bn(s.other(x))

    net = lively(Net(forward, block=Block(3), other=Block(3), bn=nn.BatchNorm2d(4)))
    net.block.bn.train()
    net.bn.train()
    result = fold(net)
    assert folded(result) == ["other.bn"]
    assert {refusal(result, name).reason for name in ("block.bn", "bn")} == {Reason.NORMALISES_BY_BATCH_STATISTICS}


def test_a_module_that_does_not_run_is_a_clear_error() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        result: Tensor = s.block(x)[:, :, :, :, 0]
        return result

    with pytest.raises(
        ModelError, match=r"^Net: module\(\*example_inputs\) raises IndexError: too many indices.*; correct it"
    ):
        bnfold.fold(lively(Net(forward, block=Block(3))), example_inputs=(sample(*SCREEN),))


def test_inputs_of_the_wrong_number_are_a_clear_error() -> None:
    with pytest.raises(ModelError, match=r"module\(\*example_inputs\) raises TypeError"):
        bnfold.fold(lively(Block(3)), example_inputs=(sample(*SCREEN), sample(*SCREEN)))


def test_nothing_is_printed_about_what_cannot_be_captured(capfd: pytest.CaptureFixture[str]) -> None:
    net = lively(Net(lambda s, x: s.a(x) if x.sum() > 0 else s.b(x), a=Block(3), b=Block(3)))
    bnfold.inspect(net, example_inputs=(sample(*SCREEN),))
    assert capfd.readouterr() == ("", "")
