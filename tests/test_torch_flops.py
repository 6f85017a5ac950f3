"""FLOPs of PyTorch modules: by hand, as those of the same model in ONNX, and what is unknown or left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_models import alive

import bnfold
from bnfold.flops import Flops, Uncounted, Work
from bnfold.frontends import onnx_flops
from bnfold.frontends.torch_arguments import Arguments
from bnfold.frontends.torch_flops import count_flops
from bnfold.frontends.torch_operations import ARITHMETIC, FREE
from bnfold.frontends.torch_to_onnx import module_to_onnx


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def count(module: nn.Module | Callable[..., Any], *shapes: tuple[int, ...]) -> Flops:
    made = module if isinstance(module, nn.Module) else Function(module)
    return count_flops(made.eval(), Arguments(tuple(torch.ones(shape) for shape in shapes), {}))


#: A module, the shape of its input, and its multiply-adds and other operations, counted by hand.
BY_HAND: dict[str, tuple[nn.Module | Callable[..., Any], tuple[int, ...], Work]] = {
    "a convolution without a bias": (nn.Conv2d(3, 4, 3, bias=False), (2, 3, 8, 8), Work(2 * 4 * 36 * 27)),
    "with padding, stride and a bias": (
        nn.Conv2d(3, 4, 3, 2, 1),
        (1, 3, 8, 8),
        Work(4 * 16 * 27, 4 * 16),
    ),
    "in groups": (nn.Conv2d(4, 4, 3, groups=4, bias=False), (1, 4, 8, 8), Work(4 * 36 * 9)),
    "transposed, where every input meets all of its part": (
        nn.ConvTranspose2d(4, 6, 3, 2, groups=2),
        (1, 4, 5, 5),
        Work(4 * 25 * 3 * 9, 6 * 121),
    ),
    "of sequences": (nn.Conv1d(3, 4, 5), (2, 3, 9), Work(2 * 4 * 5 * 15, 2 * 4 * 5)),
    "of volumes": (nn.Conv3d(1, 2, 2, bias=False), (1, 1, 3, 3, 3), Work(2 * 8 * 8)),
    "Linear": (nn.Linear(8, 3), (5, 8), Work(5 * 3 * 8, 5 * 3)),
    "Linear without a bias, of a sequence": (nn.Linear(8, 3, bias=False), (2, 5, 8), Work(2 * 5 * 3 * 8)),
    "a product of batches": (lambda x: x @ x.mT, (2, 3, 4), Work(2 * 9 * 4)),
    "a matrix and a vector": (lambda x: x @ x[0], (3, 4), Work(3 * 4)),
    "two vectors": (lambda x: x @ x, (7,), Work(7)),
    "a sum and a product of batches": (lambda x: torch.baddbmm(x, x, x), (2, 3, 3), Work(2 * 9 * 3, 18)),
    "a product to which nothing is added": (lambda x: torch.addmm(x, x, x, beta=0), (3, 3), Work(27)),
    "BatchNorm": (nn.BatchNorm2d(4), (2, 4, 3, 3), Work(0, 2 * 72)),
    "InstanceNorm": (nn.InstanceNorm2d(4), (2, 4, 3, 3), Work(0, 7 * 72)),
    "InstanceNorm with statistics of its own": (
        nn.InstanceNorm2d(4, track_running_stats=True),
        (2, 4, 3, 3),
        Work(0, 2 * 72),
    ),
    "LayerNorm": (nn.LayerNorm(8), (2, 8), Work(0, 7 * 16)),
    "GroupNorm": (nn.GroupNorm(2, 4), (2, 4, 3), Work(0, 7 * 24)),
    "a function of one element": (nn.SiLU(), (2, 8), Work(0, 16)),
    "the same in place": (nn.ReLU(inplace=True), (2, 8), Work(0, 16)),
    "a sum": (lambda x: x + x, (2, 8), Work(0, 16)),
    "a sum with a factor": (lambda x: torch.add(x, x, alpha=2), (2, 8), Work(0, 32)),
    "a number that is added": (lambda x: 1 - x, (2, 8), Work(0, 16)),
    "Softmax": (nn.Softmax(1), (2, 8), Work(0, 3 * 16)),
    "an average over windows": (nn.AvgPool2d(2), (1, 3, 8, 8), Work(0, 3 * 16 * 4)),
    "a maximum over windows": (nn.MaxPool2d(3, 2), (1, 3, 9, 9), Work(0, 3 * 16 * 9)),
    "of sequences, windows": (nn.MaxPool1d(3), (1, 3, 9), Work(0, 3 * 3 * 3)),
    "an average over all": (nn.AdaptiveAvgPool2d(1), (2, 3, 4, 4), Work(0, 2 * 3 * 17)),
    "windows of 3, 4 and 3 over an axis of 8": (nn.AdaptiveAvgPool2d(3), (1, 2, 8, 8), Work(0, 2 * 100)),
    "the largest of those": (nn.AdaptiveMaxPool2d((3, 1)), (1, 2, 8, 8), Work(0, 2 * 10 * 8)),
    "a sum over an axis": (lambda x: x.sum(1), (2, 8), Work(0, 16)),
    "a mean": (lambda x: x.mean(1), (2, 8), Work(0, 18)),
    "a variance": (lambda x: x.var(1), (2, 8), Work(0, 4 * 16 + 2 * 2)),
    "a norm": (lambda x: x.norm(dim=1), (2, 8), Work(0, 34)),
    "a linear resize": (nn.Upsample(scale_factor=2, mode="bilinear"), (1, 1, 3, 3), Work(0, 36 * 2 * 4)),
    "of one axis": (nn.Upsample(size=(3, 6), mode="bilinear"), (1, 1, 3, 3), Work(0, 18 * 2 * 2)),
    "a cubic resize": (nn.Upsample(scale_factor=2, mode="bicubic"), (1, 1, 3, 3), Work(0, 36 * 2 * 16)),
    "a resize that picks": (nn.Upsample(scale_factor=2), (1, 1, 3, 3), Work()),
    "what moves and compares": (
        lambda x: torch.where(x.flip(0) > 0, functional.pad(x, (1, 1))[:, 1:-1], torch.cat([x[:1], x[1:]])),
        (2, 8),
        Work(),
    ),
    "whole numbers": (lambda x: (x > 0).long() * 3 + torch.arange(8), (2, 8), Work()),
    "attention is its products": (
        lambda x: functional.scaled_dot_product_attention(x, x, x),
        (1, 2, 5, 4),  # q and k are scaled, then a Softmax
        Work(2 * 2 * 25 * 4, 2 * 40 + 3 * 50),
    ),
}


@pytest.mark.parametrize(("module", "shape", "work"), BY_HAND.values(), ids=BY_HAND)
def test_a_count_is_that_by_hand(module: nn.Module, shape: tuple[int, ...], work: Work) -> None:
    assert count(module, shape) == Flops(work, {"input 0": shape})


def test_the_tables_hold_operators_of_torch_each_once() -> None:
    assert not ARITHMETIC & FREE
    assert [name for name in (*ARITHMETIC, *FREE) if not hasattr(torch.ops.aten, name)] == []


class Block(nn.Module):
    """All in it is one operator in ONNX as in torch, whose exporter writes a bias for each convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.left = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.BatchNorm2d(8), nn.Sigmoid())
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 6, 2, 2), nn.BatchNorm2d(6), nn.LeakyReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5), nn.Softmax(1))

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        return self.head(self.up(self.left(x) + x))


def in_onnx(module: nn.Module, shape: tuple[int, ...]) -> Flops:
    model: ir.Model = module_to_onnx(module, Arguments((torch.ones(shape),), {}), "net")
    return onnx_flops.count_flops(model, {str(model.graph.inputs[0].name): shape})


def test_a_network_counts_as_much_as_it_does_in_onnx() -> None:
    net, shape = Block().eval(), (2, 3, 32, 32)
    here, there = count(net, shape), in_onnx(net, shape)
    assert here.work == there.work
    assert not here.uncounted
    assert not there.uncounted


def test_attention_has_the_multiply_adds_that_it_has_in_onnx() -> None:
    net, shape = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), (2, 5, 8)
    here, there = count(net, shape), in_onnx(net, shape)
    assert here.work is not None
    assert there.work is not None
    assert here.work.multiply_adds == there.work.multiply_adds == 2 * 5 * 8 * (3 * 8 + 8 + 2 * 16 + 2 * 5)


@pytest.mark.parametrize("as_graph", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_fold_takes_two_operations_from_each_element_and_leaves_a_bias(as_graph: bool, batch: int) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.SiLU())
    example = (torch.randn(batch, 3, 8, 8),)
    report = bnfold.fold(alive(net, 4, 3, 8, 8).float(), example_inputs=example, as_graph=as_graph).report
    n = batch * 4 * 36
    assert report.before.flops == Flops(Work(n * 27, 3 * n), {"input 0": (batch, 3, 8, 8)})
    assert report.after is not None
    assert report.after.flops == Flops(Work(n * 27, 2 * n), {"input 0": (batch, 3, 8, 8)})


class Asks(nn.Module):
    """What torch.export cannot capture, and which remembers that it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
        self.register_buffer("runs", torch.zeros(()))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Any:
        self.runs += 1  # type: ignore[operator]
        self.seen.append(1)
        return self.body(x) if x.sum() > -1e9 else x


def test_a_module_that_cannot_be_captured_is_counted_and_left_as_it_was() -> None:
    net = Asks().eval()
    flops = bnfold.inspect(net, example_inputs=(torch.ones(1, 3, 5, 5),)).before.flops
    assert flops == Flops(
        Work(4 * 9 * 27, 2 * 36 + 75 + 1), {"input 0": (1, 3, 5, 5)}
    )  # the sum, and the 1 that it adds
    assert not net.seen
    assert net.runs == 0


def test_counting_leaves_the_callers_random_numbers_and_settings_alone() -> None:
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    assert count(lambda x: x + torch.randn(8), (2, 8)).work == Work(0, 16)
    assert torch.equal(torch.randn(2), expected)
    assert torch.backends.mha.get_fastpath_enabled()


class Inferring(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        with torch.inference_mode():
            return self.inner(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("wrap", [torch.jit.script, torch.compile, Inferring], ids=["script", "compile", "inference"])
def test_what_is_compiled_is_counted_as_what_it_was_compiled_of(wrap: Callable[[nn.Module], nn.Module]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    assert count(wrap(net), (2, 3, 8, 8)) == count(net, (2, 3, 8, 8))


def branch(x: Tensor) -> Any:
    return torch.cond(x.sum() > 0, lambda v: v @ v, lambda v: v, (x,)) + 1


#: What is left out, with its reason; the rest is counted.
LEFT_OUT: dict[str, tuple[Callable[..., Any], Work, Uncounted]] = {
    "no formula": (lambda x: torch.cdist(x, x) + 1, Work(0, 9), Uncounted("_cdist_forward", 1, "formula")),
    "not of aten": (
        lambda x: torch.ops.bnfold_test.twice(x) + 1,
        Work(0, 9),
        Uncounted("bnfold_test::twice", 1, "formula"),
    ),
    "complex numbers": (lambda x: torch.complex(x, x) * 2, Work(), Uncounted("mul", 1, "of complex numbers")),
    "a body": (branch, Work(0, 18), Uncounted("cond", 1, "not looked into")),
}


@pytest.fixture(scope="module", autouse=True)
def own_operator() -> Any:
    library = torch.library.Library("bnfold_test", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: 2 * x, "CPU")
    yield
    library._destroy()


@pytest.mark.parametrize(("function", "work", "left"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_what_has_no_formula_is_listed_and_the_rest_counted(
    function: Callable[..., Any], work: Work, left: Uncounted
) -> None:
    found = count(function, (3, 3))
    assert found.work == work
    entry = next(entry for entry in found.uncounted if entry.operator == left.operator)
    assert entry.number == left.number
    assert left.why in entry.why


def test_a_module_that_cannot_be_run_has_no_figure() -> None:
    def fails(x: Tensor) -> Any:
        raise ValueError("no\nmore")

    found = count(fails, (2, 3))
    assert found.work is None
    assert found.unknown == "the module cannot be run to be counted: no"
    assert found.inputs == {"input 0": (2, 3)}


def test_a_lazy_module_is_counted_as_what_it_becomes() -> None:
    net = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d()).eval()
    assert count(net, (1, 3, 5, 5)) == Flops(Work(36 * 27, 3 * 36), {"input 0": (1, 3, 5, 5)})
    assert isinstance(net[0].weight, nn.UninitializedParameter)
