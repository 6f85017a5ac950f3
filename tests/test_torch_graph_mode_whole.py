"""A fold as a graph from outside: sizes it holds for, structure, dtypes, copies, what is chosen, and its check."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from test_torch_graph_mode import frozen
from torch import Tensor, nn
from torch_graph_mode import fold_graph, operators
from torch_models import alive, names, reasons, sample
from zoo.functional import Net, conv

import bnfold
from bnfold.decision import Folded, Reason
from bnfold.errors import UsageError, VerificationError
from bnfold.frontends import torch_program_constants

#: torch's own specifications of inputs and outputs warn when they are copied.
pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")


def summing() -> nn.Module:
    return alive(Net(lambda s, x: s.fc(s.bn(x.sigmoid()).sum((2, 3))), bn=nn.BatchNorm2d(3), fc=nn.Linear(3, 5)))


def test_without_static_shapes_no_size_is_a_fact() -> None:
    net = summing()
    result = fold_graph(net, 2, 3, 8, 8)
    assert Reason.AXIS_NOT_PROVEN in [r.reason for r in result.report.kept[0].refusals]
    with torch.no_grad():
        old, new = net(sample(3, 3, 16, 12)), result.module(sample(3, 3, 16, 12))
    assert (old - new).abs().max() <= 1e-11 * old.abs().max()


@pytest.mark.parametrize("other", [(2, 3, 16, 8), (2, 3, 8, 16), (3, 3, 8, 8), (1, 3, 8, 8)])
def test_with_static_shapes_the_sizes_are_facts_and_others_are_refused(other: tuple[int, ...]) -> None:
    net = summing()
    result = fold_graph(net, 2, 3, 8, 8, static_shapes=True)
    assert names(result.decisions, Folded) == ["bn"]
    assert "captured for the sizes of the example only" in result.report.notes
    x = sample(2, 3, 8, 8)
    with torch.no_grad():
        assert (net(x) - result.module(x)).abs().max() <= 1e-11 * net(x).abs().max()
    with pytest.raises(AssertionError, match=r"Guard failed: x\.size\(\)"):
        result.module(sample(*other))


def test_a_size_that_the_forward_pass_fixes_is_told_and_others_are_refused() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        total = s.bn(x.sigmoid()).sum((2, 3)) / (int(x.shape[2]) * int(x.shape[3]))
        result: Tensor = s.fc(total)
        return result

    net = alive(Net(forward, bn=nn.BatchNorm2d(3), fc=nn.Linear(3, 5)), 2, 3, 8, 8)
    result = fold_graph(net, 2, 3, 8, 8)
    assert "captured for axis 2 of x of length 8 only" in result.report.notes
    with pytest.raises(AssertionError, match=r"Guard failed: x\.size\(\)\[2\] == 8"):
        result.module(sample(2, 3, 16, 16))


def test_an_example_of_one_image_gives_a_graph_for_batches() -> None:
    net = alive(nn.Sequential(conv(), nn.BatchNorm2d(4)))
    result = fold_graph(net, 1, 3, 9, 9)
    with torch.no_grad():
        for batch in (1, 5):
            old, new = net(sample(batch, 3, 9, 9)), result.module(sample(batch, 3, 9, 9))
            assert (old - new).abs().max() <= 1e-11 * old.abs().max()


class Structured(nn.Module):
    """A dictionary in, a dictionary with a tuple out, a number with a default, a constant and a hidden buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.pool = conv(), nn.BatchNorm2d(4), nn.MaxPool2d(2)
        self.register_buffer("hidden", torch.linspace(1, 2, 4).reshape(4, 1, 1), persistent=False)
        self.constant = torch.tensor(0.5, dtype=torch.float64)

    def forward(self, given: dict[str, Tensor], factor: int = 2) -> dict[str, object]:
        y = self.bn(self.conv(given["image"])) * self.hidden
        return {"pooled": self.pool(y.sigmoid()) * factor + self.constant, "rest": (given["other"], y)}


def structured() -> tuple[nn.Module, nn.Module]:
    net = Structured().double().eval()
    with torch.no_grad():
        net.bn.running_mean.copy_(torch.linspace(-1, 1, 4))
        net.bn.bias.copy_(torch.linspace(0, 1, 4))
    example = {"image": sample(2, 3, 10, 10), "other": sample(2, 5)}
    return net, bnfold.fold(net, example_inputs=(example,), as_graph=True).module


def assert_alike(net: nn.Module, graph: nn.Module) -> None:
    given = {"image": sample(4, 3, 12, 16, seed=9), "other": sample(4, 7, seed=9)}
    with torch.no_grad():
        old, new = net(given), graph(given)
    assert old.keys() == new.keys()
    for a, b in ((old["pooled"], new["pooled"]), (old["rest"][1], new["rest"][1])):
        assert (a - b).abs().max() <= 1e-11 * a.abs().max()
    assert torch.equal(old["rest"][0], new["rest"][0])


def test_the_structure_of_inputs_and_outputs_stays() -> None:
    net, graph = structured()
    assert_alike(net, graph)
    with pytest.raises(AssertionError, match=r"given\['image'\]\.size\(\)\[1\] == 3"):
        graph({"image": sample(2, 4, 10, 10), "other": sample(2, 5)})
    assert set(graph.state_dict()) == {"conv.weight", "conv.bias"}


def test_the_graph_can_be_copied_pickled_and_exported_again() -> None:
    net, graph = structured()
    for other in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert_alike(net, other)
        with pytest.raises(AssertionError, match=r"given\['image'\]\.size\(\)\[1\] == 3"):
            other({"image": sample(2, 4, 10, 10), "other": sample(2, 5)})
    example = {"image": sample(2, 3, 10, 10), "other": sample(2, 5)}
    auto = torch.export.Dim.AUTO
    sizes = {"image": dict.fromkeys((0, 2, 3), auto), "other": dict.fromkeys((0, 1), auto)}
    program = torch.export.export(graph, (example,), dynamic_shapes=(sizes,))
    assert_alike(net, program.module())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_dtype_stays_and_each_number_is_rounded_once(dtype: torch.dtype) -> None:
    net = alive(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 4), nn.BatchNorm2d(4))).to(dtype)
    state = fold_graph(net).module.state_dict()
    exact = fold_graph(copy.deepcopy(net).double()).module.state_dict()
    assert state.keys() == exact.keys()
    u = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[dtype]
    for name, value in state.items():
        assert value.dtype == dtype
        assert bool(((value.double() - exact[name]).abs() <= u * exact[name].abs() * (1 + 1e-12) + 2.0**-25).all())


ROWS = torch.linspace(-1, 1, 4, dtype=torch.float64).reshape(4, 1, 1)


def test_a_type_that_the_code_names_is_none_in_float64() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.bn(s.conv(x))
        return s.last(y.to(torch.float32) * ROWS.to(torch.float32))

    net = alive(Net(lambda s, x: s.last(s.bn(s.conv(x))), conv=conv(), bn=nn.BatchNorm2d(4), last=conv(4, 4))).float()
    net.code = forward
    assert names(fold_graph(net).decisions, Folded) == ["bn", "mul"]


def test_a_weight_that_is_computed_in_float32_is_the_one_that_is_folded() -> None:
    net = alive(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.Sigmoid(), frozen(4), nn.Conv2d(4, 4, 1))).float()
    net[0] = nn.utils.parametrizations.weight_norm(net[0]).eval()
    assert names(fold_graph(net).decisions, Folded) == ["1", "3"]


def test_memory_format_and_gradients_stay() -> None:
    net = alive(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    net = net.float().to(memory_format=torch.channels_last)
    net[0].weight.requires_grad_(False)
    held = dict(fold_graph(net, merge=False).module.named_parameters())
    assert held["0.weight"].stride() == net[0].weight.stride()
    assert {name: p.requires_grad for name, p in held.items()} == {
        "0.weight": False, "0.bias": False, "2.weight": True, "2.bias": True,
    }  # fmt: skip


def test_only_and_keep_choose_by_the_module_path() -> None:
    net = alive(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.Sigmoid(), conv(4, 4), nn.BatchNorm2d(4)))
    assert names(fold_graph(net, only="^1$").decisions, Folded) == ["1"]
    result = fold_graph(net, keep="^1$", leftover="affine")
    assert (names(result.decisions, Folded), reasons(result)) == (["4"], [Reason.EXCLUDED_BY_CALLER])
    assert "batch_norm" in operators(result)


def test_a_batchnorm_in_training_mode_is_kept() -> None:
    net = alive(nn.Sequential(conv(), nn.BatchNorm2d(4), conv(4, 4), nn.BatchNorm2d(4)))
    net[1].train()
    result = bnfold.fold(net, example_inputs=(sample(),), as_graph=True)
    assert reasons(result) == [Reason.NORMALISES_BY_BATCH_STATISTICS]
    assert names(result.decisions, Folded) == ["3"]


def test_a_convolution_whose_output_is_read_twice_is_left_alone() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.conv(x)
        return s.bn(y) + y.sigmoid()

    result = fold_graph(alive(Net(forward, conv=conv(), bn=nn.BatchNorm2d(4))))
    assert reasons(result) == [Reason.VALUE_HAS_OTHER_READERS]


def test_linear_and_a_batchnorm_on_the_other_axis_of_the_same_length_are_not_folded() -> None:
    net = alive(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), 2, 4, 4)
    assert reasons(fold_graph(net, 2, 4, 4)) == [Reason.OPERATOR_MIXES_CHANNELS]


def test_a_wrong_weight_fails_the_check_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    net = alive(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 4), nn.BatchNorm2d(4), nn.Sigmoid()))
    right = torch_program_constants.store

    def wrong(tensor: Tensor, values: object) -> None:
        right(tensor, values)
        if tensor.shape == (4, 4, 3, 3):
            tensor.detach()[0, 0, 0, 0] += 1e-6

    monkeypatch.setattr(torch_program_constants, "store", wrong)
    with pytest.raises(VerificationError, match=r"is 4$"):
        bnfold.fold(net, example_inputs=(sample(),), as_graph=True)


def test_a_graph_that_is_not_what_the_module_computes_is_refused() -> None:
    class Sly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = conv(), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.bn(self.conv(x))
            return result * (2.0 if torch.compiler.is_exporting() else 1.0)

    with pytest.raises(VerificationError, match=r"torch\.export captures something else than it computes: output 0"):
        bnfold.fold(alive(Sly()), example_inputs=(sample(),), as_graph=True)


def test_arguments_that_mean_nothing_are_refused() -> None:
    net, example = nn.Sequential(conv(), nn.BatchNorm2d(4)).eval(), (sample(),)
    with pytest.raises(UsageError, match="as_graph makes another module"):
        bnfold.fold(net, example_inputs=example, as_graph=True, inplace=True)  # type: ignore[call-overload]
    for options in ({"static_shapes": True}, {"merge": False}, {"reduce": True}, {"leftover": "affine"}):
        with pytest.raises(UsageError, match="no place in a module tree; as_graph=True"):
            bnfold.fold(net, example_inputs=example, **options)
    with pytest.raises(UsageError, match="and nothing else"):
        bnfold.fold(net, example_inputs=example, as_graph=True, manifest="apart")  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="is none of keep, affine, depthwise"):
        bnfold.inspect(net, example_inputs=example, as_graph=True, leftover="gone")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="are for PyTorch modules"):
        bnfold.fold("model.onnx", as_graph=True)  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="needs example_inputs"):
        bnfold.inspect(net, as_graph=True)
