"""What a fold of a PyTorch module must not do: each of these is a bug that another tool had, or nearly this one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch_models import Counting, alive, assert_same, fold, names, reasons, sample
from zoo.functional import Net, conv

import bnfold
from bnfold.decision import Folded, Kept, Reason, Refusal
from bnfold.errors import ModelError, UsageError

HELD = Reason.MODULE_CANNOT_HOLD_IT


def test_a_convolution_called_twice_is_left_alone() -> None:
    net = Net(lambda s, x: s.bn(s.conv(x)) + s.conv(x), conv=conv(), bn=nn.BatchNorm2d(4))
    assert reasons(fold(alive(net))) == [HELD]


def test_a_convolution_called_twice_with_two_batchnorms_is_left_alone() -> None:
    net = Net(lambda s, x: s.a(s.conv(x)) * s.b(s.conv(x)), conv=conv(), a=nn.BatchNorm2d(4), b=nn.BatchNorm2d(4))
    assert reasons(fold(alive(net))) == [HELD, HELD]


def test_a_batchnorm_called_twice_is_left_alone() -> None:
    net = Net(lambda s, x: s.bn(s.c(x)) + s.bn(s.d(x)), c=conv(), d=conv(), bn=nn.BatchNorm2d(4))
    assert reasons(fold(alive(net))) == [HELD, HELD]


def test_a_convolution_whose_output_is_read_twice_is_left_alone() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.conv(x)
        return s.bn(y) + y.sigmoid()

    result = fold(alive(Net(forward, conv=conv(), bn=nn.BatchNorm2d(4))))
    assert reasons(result) == [Reason.VALUE_HAS_OTHER_READERS]


def test_linear_and_a_batchnorm_on_the_other_axis_are_not_folded() -> None:
    net = alive(nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(4)), 2, 4, 7)
    assert reasons(fold(net, 2, 4, 7)) == [Reason.OPERATOR_MIXES_CHANNELS]


def test_linear_and_a_batchnorm_on_the_other_axis_of_the_same_length_are_not_folded() -> None:
    net = alive(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), 2, 4, 4)
    assert reasons(fold(net, 2, 4, 4)) == [Reason.OPERATOR_MIXES_CHANNELS]


def test_a_batchnorm_in_training_mode_is_kept_and_the_module_is_not_touched() -> None:
    net = alive(nn.Sequential(conv(), nn.BatchNorm2d(4), conv(4, 4), nn.BatchNorm2d(4)))
    net[1].train()
    before = copy.deepcopy(net.state_dict())
    result = bnfold.fold(net, example_inputs=(sample(),))
    assert reasons(result) == [Reason.NORMALISES_BY_BATCH_STATISTICS]
    assert names(result.decisions, Folded) == ["3"]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_batchnorm_without_running_statistics_is_kept() -> None:
    net = nn.Sequential(conv(), nn.BatchNorm2d(4, track_running_stats=False)).double().eval()
    result = bnfold.fold(net, example_inputs=(sample(),))
    assert reasons(result) == [Reason.NORMALISES_BY_BATCH_STATISTICS]


def test_a_module_in_training_mode_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"training mode; call \.eval\(\)"):
        bnfold.fold(nn.Sequential(conv(), nn.BatchNorm2d(4)), example_inputs=(sample(),))


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrised_weights_are_left_alone(wrap: Callable[[nn.Module], nn.Module]) -> None:
    net = alive(nn.Sequential(conv(), nn.BatchNorm2d(4)))
    net[0] = wrap(net[0]).eval()
    assert reasons(fold(net)) == [HELD]


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_weights_that_a_hook_computes_are_left_alone() -> None:
    net = alive(nn.Sequential(conv(), nn.BatchNorm2d(4), conv(4, 4), nn.BatchNorm2d(4)))
    net[0] = nn.utils.weight_norm(net[0])
    with torch.no_grad():
        net(sample())
    held = net[0].weight
    result = bnfold.fold(net, example_inputs=(sample(),))
    assert [decision.into for decision in result.report.folded] == [("2",), ("2",)]
    assert net[0].weight is held


def test_tied_weights_are_left_alone() -> None:
    first, second = conv(4, 4), conv(4, 4)
    second.weight = first.weight
    net = alive(nn.Sequential(conv(), first, nn.BatchNorm2d(4), second), 2, 3, 12, 12)
    assert reasons(fold(net, 2, 3, 12, 12)) == [HELD]


def test_weights_that_share_memory_are_left_alone() -> None:
    first, second = conv(4, 4).double(), conv(4, 4).double()
    net = alive(nn.Sequential(conv(), first, nn.BatchNorm2d(4), second), 2, 3, 12, 12)
    second.weight.data = first.weight.data
    assert reasons(fold(net, 2, 3, 12, 12)) == [HELD]


def test_a_module_of_two_names_is_left_alone() -> None:
    net = Net(lambda s, x: s.bn(s.conv(x)), conv=conv(), bn=nn.BatchNorm2d(4))
    net.other = net.conv
    assert reasons(fold(alive(net))) == [HELD]


@pytest.mark.parametrize("which", ["conv", "bn"])
def test_what_a_forward_hook_sees_stays(which: str) -> None:
    net = alive(Net(lambda s, x: s.bn(s.conv(x)), conv=conv(), bn=nn.BatchNorm2d(4)))
    net.get_submodule(which).register_forward_hook(lambda _module, _inputs, _output: None)
    assert reasons(fold(net)) == [HELD]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_transposed_convolution_with_groups_absorbs_what_comes_behind_it(groups: int) -> None:
    net = nn.Sequential(conv(), nn.ConvTranspose2d(4, 8, 3, stride=2, groups=groups), nn.BatchNorm2d(8))
    assert names(fold(alive(net)).decisions, Folded) == ["2"]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_transposed_convolution_with_groups_absorbs_what_comes_before_it(groups: int) -> None:
    net = nn.Sequential(
        nn.Sigmoid(), nn.BatchNorm2d(4, affine=True), nn.ConvTranspose2d(4, 8, 3, padding=2, groups=groups)
    )
    result = fold(alive(net, 2, 4, 9, 9), 2, 4, 9, 9)
    assert names(result.decisions, Folded) + names(result.decisions, Kept) == ["1"]


def test_a_sum_over_space_stays_right_at_other_sizes() -> None:
    net = alive(Net(lambda s, x: s.fc(s.bn(x.sigmoid()).sum((2, 3))), bn=nn.BatchNorm2d(3), fc=nn.Linear(3, 5)))
    result = fold(net, 2, 3, 8, 8)
    assert_same(net, result.module, 2, 3, 16, 16)
    assert Reason.AXIS_NOT_PROVEN in [r.reason for r in result.report.kept[0].refusals]


def test_a_sum_over_space_that_the_capture_holds_to_be_fixed_stays_right_at_other_sizes() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        total = s.bn(x.sigmoid()).sum((2, 3)) / (int(x.shape[2]) * int(x.shape[3]))
        result: Tensor = s.fc(total)
        return result

    net = alive(Net(forward, bn=nn.BatchNorm2d(3), fc=nn.Linear(3, 5)), 2, 3, 8, 8)
    result = bnfold.fold(net, example_inputs=(sample(2, 3, 8, 8),))
    assert_same(net, result.module, 2, 3, 16, 16)


def test_an_example_of_one_image_proves_nothing_about_batches() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.bn(x.sigmoid()).flatten(0, 1)  # (N*3, H, W): with N = 1 the channels seem to be an axis
        result: Tensor = s.conv(y[None, :3])
        return result

    net = alive(Net(forward, bn=nn.BatchNorm2d(3), conv=conv()))
    assert_same(net, fold(net, 1, 3, 9, 9).module, 4, 3, 9, 9)


def test_a_batchnorm_whose_copy_is_written_in_place_stays() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.conv(x).sigmoid()
        z = functional.relu(s.bn(y), inplace=True)
        return s.last(z) + y[:, :, 2:, 2:].sum()

    net = alive(Net(forward, conv=conv(), bn=nn.BatchNorm2d(4), last=conv(4, 4)))
    with torch.no_grad():  # an identity, which every rule would take out
        net.bn.weight.copy_(torch.sqrt(net.bn.running_var + net.bn.eps))
        net.bn.bias.copy_(net.bn.running_mean)
        net.bn.eps = 0.0
        net.bn.weight.copy_(net.bn.running_var.sqrt())
    result = fold(net)
    assert reasons(result) == [Reason.VALUE_HAS_OTHER_READERS]


def test_a_value_that_is_written_in_place_keeps_its_meaning() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.bn(s.conv(x))
        view = y[:, 1:]
        view.mul_(2.0)
        return y.sigmoid()

    result = fold(alive(Net(forward, conv=conv(), bn=nn.BatchNorm2d(4))))
    assert names(result.decisions, Folded) in ([], ["bn"])


def test_a_sum_that_is_written_in_place_is_folded_all_the_same() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.one(s.a(x))
        y += s.two(s.b(x))
        return y.relu_()

    net = Net(forward, a=conv(), b=conv(), one=nn.BatchNorm2d(4), two=nn.BatchNorm2d(4))
    assert names(fold(alive(net)).decisions, Folded) == ["one", "two"]


def test_an_input_that_is_written_in_place_is_the_callers() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        return s.conv(s.bn(x).relu_())

    net = alive(Net(forward, bn=nn.BatchNorm2d(3), conv=conv()))
    with torch.no_grad():
        net.bn.bias.copy_(net.bn.running_mean * net.bn.weight / torch.sqrt(net.bn.running_var + net.bn.eps))
        net.bn.weight.abs_()
        net.bn.bias.copy_(net.bn.running_mean * net.bn.weight / torch.sqrt(net.bn.running_var + net.bn.eps))
    x = sample()
    held = x.clone()
    result = bnfold.fold(net, example_inputs=(x,))
    with torch.no_grad():
        result.module(x)
    assert torch.equal(x, held)


def test_a_buffer_that_the_forward_pass_writes_is_no_constant() -> None:
    result = bnfold.fold(alive(Counting()), example_inputs=(sample(),))
    assert names(result.decisions, Kept) == ["bn"]


def test_a_convolution_with_a_forward_pass_of_its_own_gets_no_new_bias() -> None:
    class Own(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return functional.conv2d(x, self.weight)

    net = alive(nn.Sequential(Own(3, 4, 3, bias=False), nn.BatchNorm2d(4)))
    assert reasons(fold(net)) == [HELD]


def test_a_batchnorm_with_a_forward_pass_of_its_own_stays() -> None:
    class Own(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    net = alive(nn.Sequential(conv(), Own(4)))
    assert reasons(fold(net)) == [HELD]


def test_constants_in_the_code_stay() -> None:
    net = alive(Net(lambda s, x: s.bn(s.conv(x) + 1.5), conv=conv(), bn=nn.BatchNorm2d(4)))
    assert reasons(fold(net)) == [HELD]


def test_a_weight_that_depends_on_the_input_is_no_constant() -> None:
    net = alive(Net(lambda s, x: s.bn(functional.conv2d(x, x[:1, :, :3, :3])), bn=nn.BatchNorm2d(1)))
    assert reasons(fold(net)) == [Reason.WEIGHTS_NOT_CONSTANT]


def test_a_slope_that_depends_on_the_value_is_a_reader_of_it() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.bn(s.conv(x))
        return s.last(functional.prelu(y, y.mean((0, 2, 3))))

    fold(alive(Net(forward, conv=conv(), bn=nn.BatchNorm2d(4), last=conv(4, 4))))


def test_a_module_that_was_given_another_forward_pass_keeps_its_path() -> None:
    class Block(nn.Module):
        def __init__(self, act: nn.Module) -> None:
            super().__init__()
            self.conv, self.bn, self.act = conv(3, 3), nn.BatchNorm2d(3), act

        def other(self, x: Tensor) -> Tensor:
            y: Tensor = self.act(self.bn(self.conv(x)))
            return y

    shared = nn.SiLU()  # at two places: torch.export then writes "bn" for "1.bn"
    net = nn.Sequential(Block(shared), Block(shared))
    for block in net:
        block.forward = block.other  # as ultralytics does before an export
    alive(net)
    assert names(fold(net).decisions, Folded) == ["0.bn", "1.bn"]


@pytest.mark.parametrize("name", ["reshape_as", "view_as"])
def test_of_what_gives_its_shape_to_a_reshape_no_number_is_read(name: str) -> None:
    def forward(s: Net, x: Tensor) -> Tensor:  # as in timm's LeViT
        y = s.fc(x)
        result: Tensor = getattr(s.bn(y.flatten(0, 1)), name)(y)
        return result

    net = alive(Net(forward, fc=nn.Linear(5, 4, bias=False), bn=nn.BatchNorm1d(4)), 2, 7, 5)
    assert names(fold(net, 2, 7, 5).decisions, Folded) == ["bn"]


def test_a_reshape_to_another_order_of_the_axes_is_not_passed() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.conv(x)
        result: Tensor = s.bn(y.reshape_as(y.transpose(1, 2)))
        return result

    net = alive(Net(forward, conv=nn.Conv1d(3, 4, 3), bn=nn.BatchNorm1d(6)), 2, 3, 8)
    assert names(bnfold.fold(net, example_inputs=(sample(2, 3, 8),)).decisions, Kept) == ["bn"]


def test_a_value_that_gives_its_shape_to_a_reshape_may_be_read_for_its_numbers_too() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.fc(x)
        result: Tensor = s.bn(y.flatten(0, 1)).reshape_as(y) + y.sigmoid()
        return result

    net = alive(Net(forward, fc=nn.Linear(5, 4), bn=nn.BatchNorm1d(4)), 2, 7, 5)
    assert reasons(fold(net, 2, 7, 5)) == [Reason.VALUE_HAS_OTHER_READERS]


def test_a_deep_module_in_float64_is_not_blamed_for_its_roundings() -> None:
    layers = [
        layer for i in range(12) for layer in (nn.Conv2d(8 if i else 3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    ]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 81, 3))
    for seed in range(3):  # seed 1 errs by more than 64 roundings, where the original, its own truth, errs by none
        assert len(names(fold(alive(copy.deepcopy(net), seed=seed)).decisions, Folded)) == 12


def test_example_inputs_are_a_tuple_and_a_module_takes_no_onnx_options() -> None:
    net = nn.Sequential(conv(), nn.BatchNorm2d(4)).eval()
    with pytest.raises(UsageError, match="example_inputs: the inputs of a PyTorch module are a tuple, not a Tensor"):
        bnfold.inspect(net, example_inputs=sample())
    with pytest.raises(UsageError, match="and nothing else"):
        bnfold.inspect(net, example_inputs=(sample(),), simplify=True)
    with pytest.raises(UsageError, match="no place in a module tree; as_graph=True"):
        bnfold.inspect(net, example_inputs=(sample(),), merge=False)


def test_what_a_module_remembers_of_its_runs_is_not_touched() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = conv(), nn.BatchNorm2d(4)
            self.seen: dict[str, Tensor] = {}

        def forward(self, x: Tensor) -> Tensor:
            if "weight" not in self.seen:
                self.seen["weight"] = self.conv.weight * 1.0
            result: Tensor = self.bn(self.conv(x)) + self.seen["weight"].sum()
            return result

    net = alive(Caching())
    net.seen.clear()
    result = bnfold.fold(net, example_inputs=(sample(),))
    assert reasons(result) == [HELD]
    assert net.seen == {}


def test_the_remedy_for_what_a_module_cannot_hold_is_told() -> None:
    net = alive(Net(lambda s, x: s.bn(s.conv(x)) + s.conv(x), conv=conv(), bn=nn.BatchNorm2d(4)))
    (kept,) = fold(net).report.kept
    assert kept.remedy.startswith("try as_graph=True, which makes a graph of the module")


def test_the_remedy_for_a_bound_of_each_channel_is_what_helps() -> None:
    norm = Net(
        lambda s, x: torch.cat([x, s.next(torch.relu(s.bn(x)))], 1), bn=nn.BatchNorm2d(4), next=conv(4, 4, padding=1)
    )
    net = alive(nn.Sequential(conv(), nn.MaxPool2d(2), norm), 2, 3, 12, 12)
    asked = {"example_inputs": (sample(2, 3, 12, 12),)}
    (kept,) = bnfold.inspect(net, **asked).kept
    assert kept.refusals[-1] == Refusal(HELD, "2/relu", "a bound for each channel has no place there")
    assert "reduce=True with it where an activation would get a bound for each channel" in kept.remedy
    assert bnfold.inspect(net, **asked, as_graph=True).kept  # by itself that is no remedy
    assert not bnfold.inspect(net, **asked, as_graph=True, reduce=True).kept


def test_a_forward_pass_that_asks_for_sizes_says_for_which_it_was_captured() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        if x.shape[2] > 40:
            return s.conv(x)
        return s.bn(s.conv(x))

    net = alive(Net(forward, conv=conv(), bn=nn.BatchNorm2d(4)))
    report = bnfold.inspect(net, example_inputs=(sample(),))
    assert [note for note in report.notes if "axis 2 of x from" in note and note.endswith(" to 40")]
    assert not bnfold.inspect(alive(nn.Sequential(nn.Conv2d(3, 4, 1))), example_inputs=(sample(),)).notes
