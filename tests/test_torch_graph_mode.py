"""What a fold of a PyTorch module as a graph does: every kind of change, and all that is kept as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional
from torch_graph_mode import assert_settled, fold_graph, graph_of, operators
from torch_models import alive, names, sample
from zoo.functional import Net, conv
from zoo.vision import _operators

import bnfold
from bnfold.decision import Folded

#: torch's own specifications of inputs and outputs warn when they are copied.
pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")


def block() -> nn.Sequential:
    return nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(inplace=True), conv(4, 4), nn.BatchNorm2d(4))


def test_the_caller_gets_a_graph_and_the_module_stays_as_it_is() -> None:
    net = alive(block())
    result = fold_graph(net)
    assert isinstance(result.module, GraphModule)
    assert operators(result) == ["conv2d", "relu_", "conv2d"]
    assert set(graph_of(result).state_dict()) == {"0.weight", "3.weight", "0.bias", "3.bias"}
    assert result.report.verification is not None
    assert result.report.verification.passed
    assert (result.report.before.batchnorms, result.report.after.batchnorms) == (2, 0)
    assert type(net[1]) is nn.BatchNorm2d
    assert_settled(result)


def test_a_graph_and_a_module_tree_get_the_same_numbers() -> None:
    net = alive(block())
    tree = bnfold.fold(net, example_inputs=(sample(),)).module.state_dict()
    graph = fold_graph(net).module.state_dict()
    assert tree.keys() == graph.keys()
    assert all(torch.equal(tree[name], graph[name]) for name in tree)


def test_inspect_says_the_same_as_fold() -> None:
    net = alive(block())
    report = bnfold.inspect(net, example_inputs=(sample(),), as_graph=True)
    assert report.decisions == fold_graph(net).decisions
    assert (report.before.batchnorms, report.after) == (2, None)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), (2, 3, 9)),
        (nn.Linear(7, 4, bias=False), nn.BatchNorm1d(4), (4, 7)),
        (nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect"), nn.BatchNorm2d(4), (2, 3, 9, 9)),
        (nn.Conv2d(3, 6, (3, 2), padding="same", groups=3), nn.BatchNorm2d(6), (2, 3, 9, 9)),
        (nn.Conv3d(3, 4, 2, bias=False), nn.BatchNorm3d(4), (2, 3, 5, 5, 5)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2), nn.BatchNorm2d(6), (2, 4, 6, 6)),
        (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False, eps=0.1), (2, 3, 9, 9)),
    ],
)
def test_every_layer_absorbs_every_batchnorm(layer: nn.Module, norm: nn.Module, shape: tuple[int, ...]) -> None:
    assert names(fold_graph(alive(nn.Sequential(layer, norm), *shape), *shape).decisions, Folded) == ["1"]


class Product(nn.Module):
    """`x @ W`, with or without a bias."""

    def __init__(self, *, biased: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 28).reshape(7, 4))
        self.bias = nn.Parameter(torch.linspace(-1, 2, 4)) if biased else None

    def forward(self, x: Tensor) -> Tensor:
        return torch.mm(x, self.weight) if self.bias is None else torch.addmm(self.bias, x, self.weight)


@pytest.mark.parametrize(("biased", "expected"), [(True, ["addmm"]), (False, ["mm", "add"])])
def test_a_matrix_product_absorbs_a_batchnorm_and_gets_a_bias(biased: bool, expected: list[str]) -> None:
    result = fold_graph(alive(nn.Sequential(Product(biased=biased), nn.BatchNorm1d(4)), 4, 7), 4, 7)
    assert names(result.decisions, Folded) == ["1"]
    assert operators(result) == expected
    assert_settled(result, 4, 7)


def test_a_functional_batchnorm_is_folded() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        return functional.batch_norm(s.conv(x), s.bn.running_mean, s.bn.running_var, s.bn.weight, s.bn.bias)

    result = fold_graph(alive(Net(forward, conv=conv(), bn=nn.BatchNorm2d(4))))
    assert len(result.report.folded) == 1
    assert operators(result) == ["conv2d"]


def frozen(channels: int) -> nn.Module:
    _operators()
    from torchvision.ops import FrozenBatchNorm2d  # noqa: PLC0415

    norm = FrozenBatchNorm2d(channels)
    for i, values in enumerate((norm.weight, norm.bias, norm.running_mean, norm.running_var)):
        values.copy_(torch.linspace(0.5, 0.7 + i / 10, channels))
    return norm


def test_a_frozen_batchnorm_is_folded() -> None:
    result = fold_graph(alive(nn.Sequential(conv(), frozen(4), nn.ReLU(), conv(4, 4), nn.BatchNorm2d(4))))
    assert names(result.decisions, Folded) == ["1", "4"]
    assert operators(result) == ["conv2d", "relu", "conv2d"]


def test_a_frozen_batchnorm_that_stays_takes_another_one_in() -> None:
    net = alive(nn.Sequential(nn.Sigmoid(), nn.BatchNorm2d(3), nn.AvgPool2d(2), frozen(3), nn.Tanh()))
    result = fold_graph(net)
    assert len(result.report.folded) == 1
    assert operators(result)[-5:] == ["sigmoid", "avg_pool2d", "mul", "add", "tanh"]


@pytest.mark.parametrize("affine", [True, False])
def test_a_batchnorm_that_stays_takes_another_one_in(affine: bool) -> None:
    parts = (nn.Sigmoid(), nn.BatchNorm2d(3), nn.AvgPool2d(2), nn.BatchNorm2d(3, affine=affine), nn.Tanh())
    result = fold_graph(alive(nn.Sequential(*parts)))
    assert len(result.report.folded) == 1
    assert operators(result) == ["sigmoid", "avg_pool2d", "batch_norm", "tanh"]
    assert result.report.after is not None
    assert result.report.after.batchnorms == 1
    assert_settled(result)


def test_a_convolution_called_twice_gets_a_copy_of_its_weight() -> None:
    net = Net(lambda s, x: s.bn(s.conv(x)).sigmoid() + s.conv(x), conv=conv(), bn=nn.BatchNorm2d(4))
    result = fold_graph(alive(net))
    assert names(result.decisions, Folded) == ["bn"]
    assert set(result.module.state_dict()) == {"conv.weight", "conv.weight_folded", "conv.bias"}
    assert torch.equal(result.module.state_dict()["conv.weight"], net.state_dict()["conv.weight"])


def test_a_batchnorm_called_twice_is_folded_twice() -> None:
    net = Net(lambda s, x: s.bn(s.c(x)).sigmoid() * s.bn(s.d(x)), c=conv(), d=conv(), bn=nn.BatchNorm2d(4))
    assert names(fold_graph(alive(net)).decisions, Folded) == ["bn", "bn"]


def test_a_convolution_and_a_batchnorm_called_twice_have_one_weight_still() -> None:
    net = Net(lambda s, x: s.bn(s.c(x)).sigmoid() * s.bn(s.c(x + 1)), c=conv(), bn=nn.BatchNorm2d(4))
    result = fold_graph(alive(net))
    assert names(result.decisions, Folded) == ["bn", "bn"]
    assert [name for name in result.module.state_dict() if "weight" in name] == ["c.weight"]


def test_tied_weights_are_parted() -> None:
    first, second = conv(4, 4), conv(4, 4)
    second.weight = first.weight
    net = alive(nn.Sequential(conv(), first, nn.BatchNorm2d(4), nn.Sigmoid(), second), 2, 3, 12, 12)
    result = fold_graph(net, 2, 3, 12, 12)
    assert names(result.decisions, Folded) == ["2"]
    assert set(result.module.state_dict()) == {"0.weight", "1.weight", "1.bias", "4.weight"}


def test_weights_that_share_memory_are_parted() -> None:
    first, second = conv(4, 4).double(), conv(4, 4).double()
    net = alive(nn.Sequential(conv(), first, nn.BatchNorm2d(4), nn.Sigmoid(), second), 2, 3, 12, 12)
    second.weight.data = first.weight.data
    assert names(fold_graph(net, 2, 3, 12, 12).decisions, Folded) == ["2"]


def test_a_weight_that_is_computed_is_written_out() -> None:
    net = alive(nn.Sequential(conv(), nn.BatchNorm2d(4)))
    net[0] = nn.utils.parametrizations.weight_norm(net[0]).eval()
    result = fold_graph(net)
    assert operators(result) == ["conv2d"]
    assert dict(result.module.named_parameters()).keys() == {"0.weight", "0.bias"}


ROWS = torch.linspace(-1, 1, 196, dtype=torch.float64).reshape(4, 7, 7)


@pytest.mark.parametrize(
    "between",
    [
        lambda y: y + 1.5,
        lambda y: 1.5 - y,
        lambda y: torch.rsub(y, 1.5),
        lambda y: torch.add(y, 1.5, alpha=3),
        lambda y: torch.sub(y, ROWS[:, :, :1], alpha=2),
        lambda y: y.add_(ROWS[0, 0]),
        lambda y: (y - ROWS) / 3.0,
        lambda y: functional.pad(y, (1, 0, 2, 1), value=0.25),
    ],
)
def test_a_constant_between_takes_its_part(between: object) -> None:
    net = alive(Net(lambda s, x: s.bn(between(s.conv(x)) if x.shape else x), conv=conv(), bn=nn.BatchNorm2d(4)))  # type: ignore[operator]
    if "pad" in str(between.__code__.co_names):  # type: ignore[attr-defined]
        with torch.no_grad():  # one border for all channels
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(net.bn, name).fill_(0.7)
    shape = (2, 3, 9, 9)
    result = fold_graph(net, *shape, static_shapes=True)
    assert names(result.decisions, Folded) == ["bn"]
    with torch.no_grad():
        x = sample(*shape, seed=8)
        old, new = net(x), result.module(x)
    assert (old - new).abs().max() <= 1e-11 * old.abs().max()
