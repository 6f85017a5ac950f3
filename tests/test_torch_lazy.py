"""Lazy modules that were not run yet: kept, with that reason; all else is folded, and nothing is initialised."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_run import Run, assert_one_sentence
from test_torch_guards import conv
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy
from torch_models import names, sample

import bnfold
from bnfold.decision import Folded, Kept, Reason
from bnfold.errors import ModelError, UsageError
from bnfold.frontends.torch_capture import copied


def live(*parts: nn.Module) -> nn.Sequential:
    """In float64 and eval mode; the BatchNorms that can have statistics have some of no special form."""
    return enlivened(nn.Sequential(*parts))


def enlivened(net: Any) -> Any:
    net.double().eval()
    for part in net.modules():
        if isinstance(part, nn.modules.batchnorm._NormBase) and not is_lazy(part.running_mean):  # type: ignore[arg-type]
            with torch.no_grad():
                part.running_mean.copy_(torch.linspace(-0.5, 0.7, part.num_features))
                part.running_var.copy_(torch.linspace(0.5, 2, part.num_features))
    return net


def lazy_names(net: nn.Module) -> list[str]:
    return [name for name, t in (*net.named_parameters(), *net.named_buffers()) if is_lazy(t)]


def kept(result: Any) -> dict[str, list[Reason]]:
    return {d.subject.name: [r.reason for r in d.refusals] for d in result.decisions if isinstance(d, Kept)}


def assert_same(before: nn.Module, after: nn.Module, *inputs: Tensor) -> None:
    """Both are initialised in the same way, by their first run, and give the same from then on."""
    results = []
    for net in (copied(before), copied(after)):
        with torch.no_grad():
            torch.manual_seed(0)
            net(*inputs)
            results.append(net(*inputs))
    assert (results[0] - results[1]).abs().max() <= 1e-11 * results[0].abs().max()


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv1d(3, 4, 3), nn.LazyBatchNorm1d, (2, 3, 9)),
        (nn.Conv2d(3, 4, 3), nn.LazyBatchNorm2d, (2, 3, 9, 9)),
        (nn.Conv3d(3, 4, 2), nn.LazyBatchNorm3d, (2, 3, 5, 5, 5)),
        (nn.Linear(3, 4), lambda: nn.LazyBatchNorm1d(affine=False), (6, 3)),
    ],
)
def test_every_lazy_batchnorm_is_kept_and_says_so(layer: nn.Module, norm: Any, shape: tuple[int, ...]) -> None:
    net = live(layer, norm())
    before = lazy_names(net)
    result = bnfold.fold(net, example_inputs=(sample(*shape),))
    (decision,) = result.report.kept
    assert [str(refusal) for refusal in decision.refusals] == ["the module is lazy and was not run yet at 1"]
    assert decision.remedy == "run the module once before, which gives it its parameters"
    assert (decision.subject.channels, decision.subject.is_batchnorm) == (0, True)
    assert lazy_names(net) == lazy_names(result.module) == before
    assert (result.report.before.batchnorms, result.report.after.batchnorms) == (1, 1)  # type: ignore[union-attr]
    assert_same(net, result.module, sample(*shape))


def test_run_once_it_is_folded() -> None:
    net = live(conv(), nn.LazyBatchNorm2d())
    with torch.no_grad():
        net(sample())
    assert names(bnfold.fold(enlivened(net), example_inputs=(sample(),)).decisions, Folded) == ["1"]


def test_what_is_around_lazy_modules_is_folded() -> None:
    net = live(conv(), nn.BatchNorm2d(4), nn.ReLU(), nn.LazyConv2d(5, 3), nn.LazyBatchNorm2d(), nn.ReLU(),
               nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4))  # fmt: skip
    state = copy.deepcopy({name: t for name, t in net.state_dict().items() if not is_lazy(t)})
    random = torch.get_rng_state()
    result = bnfold.fold(net, example_inputs=(sample(),))
    assert torch.equal(random, torch.get_rng_state())
    assert names(result.decisions, Folded) == ["1", "7"]
    assert kept(result) == {"4": [Reason.NOT_INITIALISED]}
    assert result.report.verification is not None
    assert result.report.verification.passed
    assert [type(net[i]) for i in (3, 4)] == [type(result.module[i]) for i in (3, 4)]  # type: ignore[index]
    assert type(net[3]) is nn.LazyConv2d
    assert all(torch.equal(state[name], net.state_dict()[name]) for name in state)
    assert_same(net, result.module, sample())
    assert bnfold.inspect(net, example_inputs=(sample(),)).decisions == result.decisions


def test_the_report_does_not_depend_on_the_seed_that_the_caller_has_set() -> None:
    net = live(conv(), nn.BatchNorm2d(4), nn.LazyConv2d(5, 3))
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(bnfold.fold(net, example_inputs=(sample(),)).report.verification)
    assert found[0] == found[1]


def test_no_batchnorm_goes_into_a_lazy_layer() -> None:
    for parts in ((nn.LazyConv2d(4, 3), nn.BatchNorm2d(4)), (nn.Sigmoid(), nn.BatchNorm2d(3), nn.LazyConv2d(4, 3))):
        net = live(*parts)
        result = bnfold.fold(net, example_inputs=(sample(),))
        (reasons,) = kept(result).values()
        assert Reason.NOT_INITIALISED in reasons
        assert_same(net, result.module, sample())


def test_the_module_itself_is_changed_on_request_and_not_initialised() -> None:
    net = live(conv(), nn.BatchNorm2d(4), nn.LazyBatchNorm2d())
    before, lazy = copied(net), lazy_names(net)
    result = bnfold.fold(net, example_inputs=(sample(),), inplace=True)
    assert result.module is net
    assert (type(net[1]), type(net[2]), lazy_names(net)) == (nn.Identity, nn.LazyBatchNorm2d, lazy)
    assert_same(before, net, sample())


def test_a_size_that_only_a_lazy_layer_fixes_is_not_known() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.bn, self.last = nn.Linear(7, 4), nn.BatchNorm1d(4), nn.LazyLinear(4)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.bn(self.first(x).sum(1)) + self.last(x.flatten(1))
            return found

    net = enlivened(Net())
    result = bnfold.fold(net, example_inputs=(sample(3, 5, 7),))
    assert_same(net, result.module, sample(3, 6, 7))  # the sum has one entry more, and so would the folded bias need
    assert names(result.decisions, Folded) == []
    with torch.no_grad():
        net(sample(3, 5, 7))
    assert names(bnfold.fold(net, example_inputs=(sample(3, 5, 7),)).decisions, Folded) == ["bn"]


class Own(LazyModuleMixin, nn.Module):
    """A lazy module of the caller's own, which builds what it holds when it first runs."""

    cls_to_become = None

    def __init__(self) -> None:
        super().__init__()
        self.weight = UninitializedParameter()
        self.count: Tensor = UninitializedBuffer()
        self.norm = nn.BatchNorm2d(4)

    def initialize_parameters(self, x: Tensor) -> None:
        if self.has_uninitialized_params():  # type: ignore[misc]
            with torch.no_grad():
                self.weight.materialize((x.shape[1],))
                self.weight.fill_(2)
            self.conv = nn.Conv2d(x.shape[1], 4, 3).double()
            self.inner = nn.BatchNorm2d(4).double().eval()
            self.extra = nn.Parameter(torch.ones(3, 4, 3, 3, dtype=torch.float64) / 9)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(self.inner(self.conv(x * self.weight[:, None, None])))
        return found


def test_what_a_lazy_module_holds_or_will_hold_is_kept() -> None:
    net = live(conv(), nn.BatchNorm2d(4), Own())
    del net[2].count  # type: ignore[operator]  # which nothing would fill
    result = bnfold.fold(net, example_inputs=(sample(),))
    assert names(result.decisions, Folded) == ["1"]
    assert kept(result) == {"2.inner": [Reason.NOT_INITIALISED], "2.norm": [Reason.NOT_INITIALISED]}
    assert not hasattr(net[2], "conv")
    assert_same(net, result.module, sample())


def test_a_parameter_that_a_lazy_module_will_make_may_be_read_elsewhere() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.bn = Own(), nn.BatchNorm2d(3)
            del self.own.count

        def forward(self, x: Tensor) -> Tensor:
            y = self.own(x)
            found: Tensor = self.bn(nn.functional.conv2d(y, self.own.conv.weight.transpose(0, 1)))
            return found + self.bn(nn.functional.conv2d(y, self.own.extra))

    net = enlivened(Net())
    result = bnfold.fold(net, example_inputs=(sample(),))
    assert names(result.decisions, Folded) == []
    assert_same(net, result.module, sample())


class Bare(nn.Module):
    """A parameter without a shape in a module that is not lazy."""

    def __init__(self, *, is_computed: bool) -> None:
        super().__init__()
        self.is_computed = is_computed
        self.conv, self.bn, self.other, self.norm = conv(), nn.BatchNorm2d(4), conv(), nn.BatchNorm2d(4)
        self.scale = UninitializedParameter()

    def forward(self, x: Tensor) -> Tensor:
        if is_lazy(self.scale):
            self.scale.materialize((4, 1, 1))
            nn.init.constant_(self.scale, math.pi)
        factor = 2 * self.scale if self.is_computed else self.scale
        found: Tensor = self.bn(self.conv(x)) * self.norm(self.other(x) * factor)
        return found


@pytest.mark.parametrize("is_computed", [False, True])
def test_what_reads_a_parameter_without_a_shape_is_kept_and_nothing_else(is_computed: bool) -> None:
    net = enlivened(Bare(is_computed=is_computed))
    result = bnfold.fold(net, example_inputs=(sample(),))
    assert names(result.decisions, Folded) == ["bn"]
    assert list(kept(result)) == ["norm"]
    assert (Reason.NOT_INITIALISED in kept(result)["norm"]) is not is_computed
    assert lazy_names(net) == lazy_names(result.module) == ["scale"]
    assert_same(net, result.module, sample())


def test_parts_that_the_run_does_not_reach_need_no_parameters() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.aux = conv(), nn.BatchNorm2d(4), nn.LazyBatchNorm2d()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.bn(self.conv(x))
            return y + self.aux(y) if self.training else y

    net = enlivened(Net())
    result = bnfold.fold(net, example_inputs=(sample(),))
    assert names(result.decisions, Folded) == ["bn"]
    assert kept(result) == {}
    assert len(lazy_names(result.module)) == 4


class Deciding(nn.Module):
    """A decision that torch.export cannot capture, with lazy modules on both ways, behind it, and on none."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.LazyConv2d(4, 1))
        self.b = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())
        self.behind, self.never = nn.LazyBatchNorm2d(), nn.LazyBatchNorm2d()

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x) if x.sum() > 0 else self.b(x)
        return self.behind(y)  # type: ignore[no-any-return]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_module_that_is_observed_may_be_lazy_on_every_way(sign: int) -> None:
    net = enlivened(Deciding())
    lazy = lazy_names(net)
    x = sign * sample().abs()
    result = bnfold.fold(net, example_inputs=(x,))
    assert names(result.decisions, Folded) == ["a.1"]
    assert set(kept(result)) == {"b.1", "behind", "never"}
    assert {reason for reasons in kept(result).values() for reason in reasons} == {Reason.NOT_INITIALISED}
    assert lazy_names(net) == lazy_names(result.module) == lazy
    assert result.report.verification is not None
    assert result.report.verification.passed
    assert len(result.report.verification.quick[0].runs) == 4  # both ways, two sizes
    for y in (x, -x):
        assert_same(net, result.module, y)


def test_made_up_inputs_come_from_layers_that_tell() -> None:
    net = live(conv(), nn.BatchNorm2d(4), nn.LazyBatchNorm2d())
    assert names(bnfold.fold(net).decisions, Folded) == ["1"]
    for first in (nn.LazyConv2d(4, 3), nn.LazyLinear(4)):
        with pytest.raises(UsageError, match="what its layers tell is not enough"):
            bnfold.fold(live(first, nn.Flatten(), nn.LazyBatchNorm1d()))


def test_a_wrong_example_is_an_error_as_it_is_for_other_modules() -> None:
    with pytest.raises(ModelError, match=r"module\(\*example_inputs\) raises"):
        bnfold.fold(live(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d()), example_inputs=(sample(2, 3),))


def test_a_lazy_module_with_loaded_numbers_only_has_to_run() -> None:
    net, source = live(conv(), nn.LazyBatchNorm2d()), live(conv(), nn.BatchNorm2d(4))
    net.load_state_dict(source.state_dict())
    result = bnfold.fold(net, example_inputs=(sample(),))
    assert kept(result) == {"1": [Reason.NOT_INITIALISED]}
    with torch.no_grad():
        net(sample())
    assert names(bnfold.fold(net, example_inputs=(sample(),)).decisions, Folded) == ["1"]


def test_a_graph_recalibration_and_comparison_need_the_parameters() -> None:
    net = live(conv(), nn.LazyBatchNorm2d())
    says = "^1: a lazy module has no parameters yet; run the module once$"
    for call, more, options in (
        (bnfold.fold, (), {"as_graph": True}),
        (bnfold.inspect, (), {"as_graph": True}),
        (bnfold.recalibrate, ([sample()],), {}),
        (bnfold.verify, (live(conv()),), {}),
    ):
        with pytest.raises(ModelError, match=says):
            call(net, *more, example_inputs=(sample(),), **options)  # type: ignore[operator]
    with pytest.raises(ModelError, match=says):
        bnfold.verify(live(conv()), net, example_inputs=(sample(),))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".pt2", ".onnx"])
def test_no_file_can_hold_parameters_without_shapes(run: Run, tmp_path: Path, suffix: str) -> None:
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyBatchNorm2d()).eval(), tmp_path / "net.pt")
    output = tmp_path / f"fused{suffix}"
    done = run(tmp_path / "net.pt", "-o", output, "--trust-pickle", "--shape", "input=2x3x9x9")
    assert (done.code, output.exists()) == (3, False)
    assert_one_sentence(done.err, "a lazy module has no parameters yet; run the module once")
