"""What a fold as a graph does besides moving BatchNorms: clamps, leftovers, merges, and what is written in place."""

from __future__ import annotations

import copy

import pytest
import torch
from test_torch_agreement import RepVgg
from torch import Tensor, nn
from torch.nn import functional
from torch_graph_mode import assert_settled, fold_graph, operators
from torch_models import Counting, alive, names, reasons, sample
from zoo.functional import Net, conv

import bnfold
from bnfold.decision import Folded, Reason, Reduced
from bnfold.folding import plan
from bnfold.frontends.torch_arguments import Arguments
from bnfold.frontends.torch_capture import capture_graph, captured_program
from bnfold.frontends.torch_graph import TorchGraph

#: torch's own specifications of inputs and outputs warn when they are copied.
pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")


def uniform(norm: nn.Module) -> nn.Module:
    """The same affine for each channel, with a negative scale."""
    with torch.no_grad():
        for name, value in (("weight", -0.7), ("bias", 0.3), ("running_mean", 0.2), ("running_var", 0.8)):
            getattr(norm, name).fill_(value)
    return norm


CLAMPS = [
    nn.ReLU(), nn.ReLU6(inplace=True), nn.Hardtanh(-0.5, 0.75),
    Net(lambda _s, x: x.clamp(min=-0.5)), Net(lambda _s, x: torch.clamp_max(x, 0.5)),
    Net(lambda _s, x: x.clamp_(-0.25, 0.5)),
]  # fmt: skip


@pytest.mark.parametrize("act", CLAMPS)
def test_a_clamp_gets_other_numbers_as_bounds(act: nn.Module) -> None:
    net = alive(nn.Sequential(conv(), act, nn.BatchNorm2d(4)))
    uniform(net[2])
    result = fold_graph(net)
    assert names(result.decisions, Folded) == ["2"]
    assert operators(result) == ["conv2d", "clamp"]
    assert not list(result.module.buffers())
    assert_settled(result)


@pytest.mark.parametrize("act", CLAMPS)
def test_a_clamp_gets_a_bound_for_each_channel_on_request(act: nn.Module) -> None:
    net = alive(nn.Sequential(conv(), copy.deepcopy(act), nn.BatchNorm2d(4)))
    assert reasons(fold_graph(net)) == [Reason.COSTS_MORE]
    result = fold_graph(net, reduce=True)
    assert names(result.decisions, Folded) == ["2"]
    assert operators(result) == ["conv2d", "clamp"]
    assert all(buffer.shape == (4, 1, 1) for buffer in result.module.buffers())
    assert_settled(result, reduce=True)


def test_a_clamp_with_tensors_as_bounds_takes_further_folds() -> None:
    low = torch.linspace(-0.5, 0.1, 4, dtype=torch.float64).reshape(4, 1, 1)
    net = Net(lambda s, x: s.bn(torch.clamp(s.conv(x), low, None)), conv=conv(), bn=nn.BatchNorm2d(4))
    assert names(fold_graph(alive(net)).decisions, Folded) == ["bn"]


def test_a_clamp_whose_bounds_depend_on_the_value_is_a_barrier() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.conv(x)
        return s.bn(torch.clamp(y, y.mean((0, 2, 3), keepdim=True), None))

    assert reasons(fold_graph(alive(Net(forward, conv=conv(), bn=nn.BatchNorm2d(4))))) == [
        Reason.OPERATOR_IS_NOT_LINEAR
    ]


def stuck(norm: nn.Module | None = None) -> nn.Module:
    """A BatchNorm of which only the scale can move on: zero padding sees the shift."""
    return alive(nn.Sequential(nn.Sigmoid(), norm or nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1), nn.Tanh()))


def test_an_add_is_left_on_request() -> None:
    net = stuck()
    assert reasons(fold_graph(net)) == [Reason.OPERATOR_IS_NOT_LINEAR]
    result = fold_graph(net, reduce=True)
    assert isinstance(result.decisions[0], Reduced)
    assert operators(result) == ["sigmoid", "add", "conv2d", "tanh"]
    assert_settled(result, reduce=True)


@pytest.mark.parametrize(
    ("form", "offset", "expected"),
    [
        ("affine", 0.0, ["mul", "add"]),
        ("affine", 40.0, ["sub", "mul", "add"]),
        ("depthwise", 0.0, ["conv2d"]),
        ("depthwise", 40.0, ["sub", "conv2d"]),
    ],
)
def test_what_is_left_is_written_as_the_caller_wants_it(form: str, offset: float, expected: list[str]) -> None:
    net = alive(nn.Sequential(nn.Sigmoid(), nn.BatchNorm2d(3)))
    with torch.no_grad():
        net[1].running_mean.add_(offset * torch.sqrt(net[1].running_var))
    result = fold_graph(net, leftover=form)
    assert isinstance(result.decisions[0], Reduced)
    assert operators(result) == ["sigmoid", *expected]
    assert_settled(result, leftover=form)


def test_what_is_left_is_not_taken_for_a_batchnorm_in_disguise() -> None:
    net = alive(nn.Sequential(nn.Sigmoid(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)))
    with torch.no_grad():  # so far from zero that its shift would cancel in the next layer
        net[1].running_mean.copy_(200 * torch.sqrt(net[1].running_var + net[1].eps))
    result = bnfold.fold(net, example_inputs=(sample(),), as_graph=True, leftover="affine", verify=False)
    assert operators(result) == ["sigmoid", "sub", "mul", "add", "conv2d"]
    assert_settled(result)


def test_parallel_branches_become_one_convolution() -> None:
    net = alive(RepVgg())
    result = fold_graph(net)
    assert len(result.report.folded) == 4
    assert operators(result) == ["conv2d", "relu", "conv2d", "relu", "mean", "linear"]
    assert "parallel branches become one operator in 1 places" in result.report.notes
    assert_settled(result)


def test_nothing_is_merged_where_the_caller_does_not_want_it() -> None:
    result = fold_graph(alive(RepVgg()), merge=False)
    assert len(result.report.folded) == 3
    assert operators(result).count("conv2d") == 3


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (nn.Conv2d(3, 5, 1), nn.Conv2d(5, 4, 3, bias=False), ["conv2d"]),
        (nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 1), ["conv2d"]),
        (nn.Conv2d(3, 5, 1), nn.Conv2d(5, 4, 3, padding=1), ["conv2d", "conv2d"]),
        (nn.Conv2d(3, 4, (3, 2), padding="same"), nn.Conv2d(4, 4, 1), ["constant_pad_nd", "conv2d"]),
    ],
)
def test_convolutions_in_a_row_become_one(first: nn.Module, second: nn.Module, expected: list[str]) -> None:
    result = fold_graph(alive(nn.Sequential(first, second, nn.BatchNorm2d(4))))
    assert operators(result) == expected
    assert_settled(result)


def test_an_operator_whose_size_is_asked_for_keeps_its_place() -> None:
    net = alive(Net(lambda s, x: functional.interpolate(s.b(s.a(x)), x.shape[2:]), a=nn.Conv2d(3, 5, 1), b=conv(5, 4)))
    captured = capture_graph(net, Arguments((sample(),), {}), static_shapes=False)
    assert len(plan(TorchGraph(None, captured)).merges) == 1
    first = next(node for node in captured.nodes if "conv2d" in node.name)
    for size in [node for node in captured.nodes if "sym_size" in node.name]:
        size.args = (first, *size.args[1:])
        first.append(size)
    captured = captured_program(captured.program, captured.inputs)
    assert not plan(TorchGraph(None, captured)).merges


@pytest.mark.parametrize(("shape_of", "convolutions"), [("reshape_as", 3), ("view_as", 3), (None, 2)])
def test_convolutions_in_a_row_stay_apart_where_the_shape_between_them_is_read(
    shape_of: str | None, convolutions: int
) -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        between, other = s.a(x), s.c(x).flatten(1).sigmoid()
        shaped = other if shape_of is None else getattr(other, shape_of)(between).flatten(1)
        found: Tensor = s.bn(s.b(between)).flatten(1).mean(1, keepdim=True) * shaped
        return found

    net = alive(Net(forward, a=nn.Conv2d(3, 4, 1), b=conv(4, 5), bn=nn.BatchNorm2d(5), c=nn.Conv2d(3, 4, 1)))
    result = fold_graph(net)
    assert (operators(result).count("conv2d"), len(result.report.folded)) == (convolutions, 1)


def test_layers_in_a_row_become_one() -> None:
    net = alive(nn.Sequential(nn.Linear(7, 9), nn.Linear(9, 4, bias=False), nn.BatchNorm1d(4)), 4, 7)
    result = fold_graph(net, 4, 7)
    assert operators(result) == ["linear"]
    assert result.module.state_dict()["0.weight"].shape == (4, 7)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_a_branch_with_pads_that_differ_is_merged_into_one() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        return s.a(x) + s.b(functional.relu(x) * 0 + x) + s.c(x)

    net = Net(forward, a=nn.Conv2d(3, 4, (2, 3), padding="same"), b=nn.Conv2d(3, 4, 1), c=nn.Conv2d(3, 4, 3, padding=1))
    result = fold_graph(alive(net))
    assert operators(result).count("conv2d") == 2


def test_a_sum_in_place_that_others_see_is_not_merged() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.a(x)
        view = y[:, 1:]
        y += s.b(x)
        return s.last(y) + view.sum()

    net = Net(forward, a=conv(), b=conv(), last=conv(4, 4))
    assert operators(fold_graph(alive(net))).count("conv2d") == 3


def test_what_reads_a_value_before_and_after_it_is_written_is_not_merged() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = x.sigmoid()
        view = y[:, :]
        first = s.a(view)
        y.mul_(2.0)
        return first + s.b(view)

    fold_graph(alive(Net(forward, a=conv(), b=conv())))


def test_an_input_that_is_written_in_place_is_written_as_before() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        x.mul_(torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64).reshape(3, 1, 1))
        return s.conv(s.bn(x))

    net = alive(Net(forward, bn=nn.BatchNorm2d(3), conv=conv()))
    result = fold_graph(net)
    old, new = sample(), sample()
    with torch.no_grad():
        net(old)
        result.module(new)
    assert torch.equal(old, new)


def test_what_a_batchnorm_was_a_copy_of_is_not_written() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.conv(x).sigmoid()
        z = functional.relu(s.bn(y), inplace=True)
        return s.last(z) + y[:, :, 2:, 2:].sum()

    net = alive(Net(forward, conv=conv(), bn=nn.BatchNorm2d(4), last=conv(4, 4)))
    with torch.no_grad():  # an identity, which goes
        net.bn.eps = 0.0
        net.bn.weight.copy_(net.bn.running_var.sqrt())
        net.bn.bias.copy_(net.bn.running_mean)
    result = fold_graph(net)
    assert names(result.decisions, Folded) == ["bn"]
    assert "clone" in operators(result)


def test_a_buffer_that_is_written_is_written_as_before() -> None:
    net = alive(Counting())
    result = bnfold.fold(net, example_inputs=(sample(),), as_graph=True)
    with torch.no_grad():
        old, new = [(net(sample()), result.module(sample())) for _ in range(2)][-1]
    assert (old - new).abs().max() <= 1e-11 * old.abs().max()
    assert torch.equal(net.scale, result.module.scale)
