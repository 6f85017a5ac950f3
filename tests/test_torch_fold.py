"""What a fold of a PyTorch module does: every kind of BatchNorm, and all that is kept as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_models import alive, assert_same, fold, names, reasons, sample
from zoo.functional import Net, conv
from zoo.vision import _operators

import bnfold
from bnfold.decision import Folded, Kept, Reason
from bnfold.errors import MachineError, VerificationError
from bnfold.frontends import torch_write


def block(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv(), norm, nn.ReLU(inplace=True))


def test_the_caller_gets_the_own_class_back() -> None:
    net = alive(Net(lambda s, x: s.act(s.bn(s.conv(x))), conv=conv(), bn=nn.BatchNorm2d(4), act=nn.ReLU(inplace=True)))
    result = fold(net)
    assert type(result.module) is Net
    assert type(result.module.bn) is nn.Identity
    assert result.module.conv.bias is not None
    assert result.report.verification is not None
    assert result.report.verification.passed


@pytest.mark.parametrize("as_graph", [False, True])
def test_the_report_holds_the_scales_of_every_batchnorm(as_graph: bool) -> None:
    net = alive(block(nn.BatchNorm2d(4)))
    norm, example = net[1], (sample(),)
    expected = (norm.weight.detach() / (norm.running_var + norm.eps).sqrt()).abs()
    for report in (bnfold.inspect(net, example_inputs=example, as_graph=as_graph),
                   bnfold.fold(net, example_inputs=example, as_graph=as_graph).report):  # fmt: skip
        (found,) = report.scales
        assert (found.name, found.channels) == ("1", 4)
        assert found.quantiles[0] == pytest.approx(float(expected.min()), rel=1e-6)
        assert found.quantiles[4] == pytest.approx(float(expected.max()), rel=1e-6)


def test_a_copy_is_folded_and_the_original_stays_as_it_is() -> None:
    net = alive(block(nn.BatchNorm2d(4)))
    before = copy.deepcopy(net.state_dict())
    result = fold(net)
    assert result.module is not net
    assert type(net[1]) is nn.BatchNorm2d
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_the_module_itself_is_folded_on_request() -> None:
    net = alive(block(nn.BatchNorm2d(4)))
    before, weight = copy.deepcopy(net), net[0].weight
    result = bnfold.fold(net, example_inputs=(sample(),), inplace=True)
    assert result.module is net
    assert net[0].weight is weight
    assert type(net[1]) is nn.Identity
    assert_same(before, net)


def test_inspect_changes_nothing_and_says_the_same_as_fold() -> None:
    net = alive(block(nn.BatchNorm2d(4)))
    report = bnfold.inspect(net, example_inputs=(sample(),))
    assert report.decisions == fold(net).decisions
    assert (report.before.batchnorms, report.after) == (1, None)
    assert type(net[1]) is nn.BatchNorm2d


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), (2, 3, 9)),
        (nn.Linear(7, 4, bias=False), nn.BatchNorm1d(4), (4, 7)),
        (nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect"), nn.BatchNorm2d(4), (2, 3, 9, 9)),
        (nn.Conv2d(3, 6, (3, 1), stride=2, dilation=2, padding=1, groups=3), nn.BatchNorm2d(6), (2, 3, 9, 9)),
        (nn.Conv3d(3, 4, 2, bias=False), nn.BatchNorm3d(4), (2, 3, 5, 5, 5)),
        (nn.ConvTranspose1d(3, 4, 3, stride=2, output_padding=1), nn.BatchNorm1d(4), (2, 3, 9)),
        (nn.ConvTranspose3d(3, 4, 2, bias=False), nn.BatchNorm3d(4), (2, 3, 4, 4, 4)),
        (nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4), (2, 3, 9, 9)),
        (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False, eps=0.1), (2, 3, 9, 9)),
    ],
)
def test_every_layer_absorbs_every_batchnorm(layer: nn.Module, norm: nn.Module, shape: tuple[int, ...]) -> None:
    if isinstance(norm, nn.SyncBatchNorm):
        norm.eval()
        net = nn.Sequential(layer, norm).double().eval()
        with torch.no_grad():
            norm.running_mean.copy_(torch.linspace(-1, 1, 4))
            norm.running_var.copy_(torch.linspace(0.5, 2, 4))
            norm.bias.copy_(torch.linspace(1, 2, 4))
    else:
        net = alive(nn.Sequential(layer, norm), *shape)
    assert names(fold(net, *shape).decisions, Folded) == ["1"]


@pytest.mark.parametrize(
    "between",
    [
        nn.AvgPool2d(2),
        nn.AdaptiveAvgPool2d((2, 3)),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Upsample(scale_factor=2),
        nn.Dropout(),
        nn.ReflectionPad2d(1),
        nn.Identity(),
        nn.PixelUnshuffle(1),
        nn.Flatten(2),
    ],
)
def test_a_batchnorm_passes(between: nn.Module) -> None:
    norm = nn.BatchNorm1d(4) if isinstance(between, nn.Flatten) else nn.BatchNorm2d(4)
    assert names(fold(alive(nn.Sequential(conv(), between, norm))).decisions, Folded) == ["2"]


@pytest.mark.parametrize("act", [nn.SiLU(), nn.GELU(), nn.Sigmoid(), nn.Hardswish(), nn.Softplus(), nn.ELU()])
def test_nothing_passes_what_is_not_linear(act: nn.Module) -> None:
    net = alive(nn.Sequential(conv(), act, nn.BatchNorm2d(4), nn.Tanh()))
    assert reasons(fold(net)) == [Reason.OPERATOR_IS_NOT_LINEAR]


def test_joins_slices_sums_and_shuffles_pass_what_they_may() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = torch.cat([s.a(x), s.b(x)], 1)
        y = functional.channel_shuffle(y, 2)
        one, two = y.chunk(2, 1)
        y = torch.cat([two, one, y[:, 1:3]], 1) + s.c(x)
        return s.bn(y.permute(0, 2, 3, 1).transpose(1, 3).transpose(2, 3).contiguous()).sigmoid()

    net = Net(forward, a=conv(3, 4), b=conv(3, 4), c=conv(3, 10), bn=nn.BatchNorm2d(10))
    assert len(fold(alive(net)).decisions) == 1


def test_a_residual_stream_is_folded_whole() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.bn1(s.a(x))
        return (y + s.bn2(s.b(x))).relu_()

    net = Net(forward, a=conv(), b=conv(), bn1=nn.BatchNorm2d(4), bn2=nn.BatchNorm2d(4))
    assert names(fold(alive(net)).decisions, Folded) == ["bn1", "bn2"]


def test_a_batchnorm_before_a_convolution_is_pushed_into_it() -> None:
    net = alive(nn.Sequential(nn.Sigmoid(), nn.BatchNorm2d(3), conv()))
    with torch.no_grad():
        net[1].running_mean.fill_(0.5)
        net[1].running_var.fill_(0.1)
    (decision,) = fold(net).decisions
    assert isinstance(decision, Folded)
    assert (decision.direction, decision.into) == ("push", ("2",))


def test_a_batchnorm_that_stays_takes_another_one_in_even_without_parameters() -> None:
    net = alive(
        nn.Sequential(nn.Sigmoid(), nn.BatchNorm2d(3, affine=False), nn.AvgPool2d(2), nn.BatchNorm2d(3), nn.Tanh())
    )
    result = fold(net)
    assert len(names(result.decisions, Folded)) == 1
    assert sum(isinstance(part, nn.BatchNorm2d) for part in result.module.modules()) == 1


def test_a_batchnorm_with_an_activation_leaves_the_activation() -> None:
    _operators()
    from timm.layers import BatchNormAct2d  # noqa: PLC0415

    net = alive(nn.Sequential(conv(), BatchNormAct2d(4), conv(4, 4), BatchNormAct2d(4, apply_act=False)))
    result = fold(net)
    assert names(result.decisions, Folded) == ["1", "3"]
    assert [type(result.module[i]) for i in (1, 3)] == [nn.ReLU, nn.Identity]


def test_a_frozen_batchnorm_is_a_batchnorm() -> None:
    _operators()
    from torchvision.ops import FrozenBatchNorm2d  # noqa: PLC0415

    frozen = FrozenBatchNorm2d(4)
    for i, values in enumerate((frozen.weight, frozen.bias, frozen.running_mean, frozen.running_var)):
        values.copy_(torch.linspace(0.5, 1.5 + i, 4))
    net = alive(nn.Sequential(conv(), frozen, nn.ReLU(), conv(4, 4), nn.BatchNorm2d(4)))
    result = fold(net)
    assert names(result.decisions, Folded) == ["1", "4"]
    assert type(result.module[1]) is nn.Identity


def test_a_frozen_batchnorm_that_stays_takes_another_one_in() -> None:
    _operators()
    from torchvision.ops import FrozenBatchNorm2d  # noqa: PLC0415

    frozen = FrozenBatchNorm2d(3)
    frozen.running_mean.copy_(torch.tensor([0.4, 0.5, 0.6]))
    frozen.running_var.fill_(0.1)
    net = alive(nn.Sequential(nn.Sigmoid(), frozen, nn.AvgPool2d(2), nn.BatchNorm2d(3), nn.Tanh()))
    assert len(names(fold(net).decisions, Folded)) == 1


def test_a_functional_batchnorm_has_a_decision() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        return functional.batch_norm(s.conv(x), s.bn.running_mean, s.bn.running_var, s.bn.weight, s.bn.bias)

    assert reasons(fold(alive(Net(forward, conv=conv(), bn=nn.BatchNorm2d(4))))) == [Reason.MODULE_CANNOT_HOLD_IT]


def test_a_batchnorm_in_a_block_without_gradients_is_folded_and_in_a_body_of_a_graph_is_kept() -> None:
    for block, expected in ((torch.no_grad, []), (torch.enable_grad, [Reason.OPERATOR_HOLDS_BODIES])):

        def forward(s: Net, x: Tensor, block: Callable[[], Any] = block) -> Tensor:
            with block():  # the capture runs without gradients: only what turns them on makes a graph of its own
                y = s.bn(s.conv(x))
            return s.last(y)

        result = fold(alive(Net(forward, conv=conv(), bn=nn.BatchNorm2d(4), last=conv(4, 4))))
        assert reasons(result) == expected
        assert names(result.decisions, Kept if expected else Folded) == ["bn"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_dtype_stays_and_each_number_is_rounded_once(dtype: torch.dtype) -> None:
    net = alive(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 4), nn.BatchNorm2d(4))).to(dtype)
    result = bnfold.fold(net, example_inputs=(sample(dtype=dtype),))
    exact = bnfold.fold(copy.deepcopy(net).double(), example_inputs=(sample(),)).module
    assert names(result.decisions, Folded) == ["1", "4"]
    for (name, value), (_, whole) in zip(result.module.named_parameters(), exact.named_parameters(), strict=True):
        assert value.dtype == dtype
        # NumPy's: torch goes from float64 to float16 by way of float32, and errs in one number of 2^14
        nearest = (
            torch.from_numpy(whole.detach().numpy().astype(str(dtype).removeprefix("torch.")))
            if dtype != torch.bfloat16
            else None
        )
        gap = (value.double() - whole).abs() <= 2.0 ** {torch.float32: -24, torch.float16: -11, torch.bfloat16: -8}[
            dtype
        ] * whole.abs() * (1 + 1e-12) + 2.0**-25
        assert bool(gap.all()), name
        assert nearest is None or torch.equal(value, nearest)


def test_memory_format_gradients_flags_and_names_stay() -> None:
    net = alive(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    net = net.float().to(memory_format=torch.channels_last)
    net[0].weight.requires_grad_(False)
    result = bnfold.fold(net, example_inputs=(sample(dtype=torch.float32).to(memory_format=torch.channels_last),))
    first, second = result.module[0], result.module[3]
    assert first.weight.is_contiguous(memory_format=torch.channels_last)
    assert first.weight.stride() == net[0].weight.stride()
    assert (first.weight.requires_grad, first.bias.requires_grad) == (False, False)
    assert (second.weight.requires_grad, second.bias.requires_grad) == (True, True)
    assert not any(part.training for part in result.module.modules())
    assert set(result.module.state_dict()) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert type(result.module[2]) is nn.Dropout


def test_only_and_keep_choose_by_the_module_path() -> None:
    net = alive(nn.Sequential(block(nn.BatchNorm2d(4)), nn.Sequential(conv(4, 4), nn.BatchNorm2d(4))))
    assert names(fold(net, only=r"^0\.").decisions, Folded) == ["0.1"]
    result = fold(net, keep=r"^0\.")
    assert (names(result.decisions, Folded), reasons(result)) == (["1.1"], [Reason.EXCLUDED_BY_CALLER])


def test_a_module_without_batchnorm_comes_back_as_it_is() -> None:
    result = fold(alive(nn.Sequential(conv(), nn.ReLU())))
    assert result.decisions == ()


def test_a_wrong_weight_fails_the_check_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    net = alive(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 4), nn.BatchNorm2d(4)))
    right = torch_write.store

    def wrong(tensor: Tensor, values: object) -> None:
        right(tensor, values)
        if tensor.shape == (4, 4, 3, 3):
            tensor.detach()[0, 0, 0, 0] += 1e-6

    monkeypatch.setattr(torch_write, "store", wrong)
    with pytest.raises(VerificationError, match=r"is 4$") as caught:
        bnfold.fold(net, example_inputs=(sample(),), inplace=True)
    assert caught.value.report is not None
    assert type(net[1]) is nn.BatchNorm2d


def test_a_module_whose_output_does_not_follow_its_input_proves_nothing() -> None:
    net = alive(Net(lambda s, x: s.bn(s.conv(x)) * 0, conv=conv(), bn=nn.BatchNorm2d(4)))
    with pytest.raises(MachineError, match="do not follow the inputs"):
        bnfold.fold(net, example_inputs=(sample(),))
    assert len(bnfold.fold(net, example_inputs=(sample(),), verify=False).decisions) == 1


def test_several_inputs_and_outputs_are_taken() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.bn = conv(), conv(), nn.BatchNorm2d(4)

        def forward(self, pair: tuple[Tensor, Tensor], third: Tensor) -> dict[str, Tensor]:
            y = self.bn(self.a(pair[0]) + self.b(pair[1]))
            return {"sum": y, "other": pair[0] * third}

    net = Two().double().eval()
    with torch.no_grad():
        net.bn.running_mean.fill_(0.3)
    result = bnfold.fold(net, example_inputs=((sample(), sample(seed=6)), sample(seed=7)))
    assert names(result.decisions, Folded) == ["bn"]
    assert names(result.decisions, Kept) == []
