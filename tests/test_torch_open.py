"""Numbers, flags and objects that a forward pass takes: a fold holds for all of their values, or is not made."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_models import alive, names, sample

import bnfold
from bnfold import TorchFoldResult, UsageError
from bnfold.decision import Folded, Kept, Reason
from bnfold.frontends.torch_arguments import Arguments
from bnfold.frontends.torch_open import open_parameters


class Whole(nn.Module):
    """A BatchNorm in front of a convolution, both in one forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)


class Scaled(Whole):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.conv(self.norm(x) * scale)  # type: ignore[no-any-return]


class Flagged(Whole):
    def forward(self, x: Tensor, flag: bool = False) -> Tensor:
        x = self.norm(x)
        if flag:
            x = x.relu()
        return self.conv(x)  # type: ignore[no-any-return]


class Masked(Whole):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.norm(x)
        return self.conv(x if mask is None else x * mask)  # type: ignore[no-any-return]


class Plain(Whole):
    def forward(self, x: Tensor, unread: bool = False) -> Tensor:
        return self.conv(self.norm(x))  # type: ignore[no-any-return]


class Nested(Whole):
    def forward(self, pair: tuple[Tensor, Any]) -> Tensor:
        return self.conv(self.norm(pair[0]) * pair[1])  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor, rescale: bool = False) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return y * (1 + rescale)


class Holder(nn.Module):
    """Blocks that take tensors alone, and one that takes a flag."""

    def __init__(self, code: Callable[..., Tensor]) -> None:
        super().__init__()
        self.code = code
        self.first = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
        self.second = Block()

    def forward(self, x: Tensor, flag: bool = False) -> Tensor:
        return self.code(self, x, flag)


def fold(net: nn.Module, *inputs: Any, **options: Any) -> TorchFoldResult:
    return bnfold.fold(alive(net), example_inputs=inputs or (sample(),), **options)


def same(result: TorchFoldResult, net: nn.Module, *inputs: Any) -> bool:
    with torch.no_grad():
        return bool(torch.allclose(net(*inputs), result.module(*inputs), rtol=1e-11, atol=1e-11))


def kept_for(result: TorchFoldResult) -> dict[str, tuple[Reason, str]]:
    return {k.subject.name: (k.refusals[0].reason, k.refusals[0].detail) for k in result.report.kept}


@pytest.mark.parametrize(
    ("net", "name", "values"),
    [
        (Scaled(), "scale", (1.0, 2.0)),
        (Flagged(), "flag", (False, True)),
        (Masked(), "mask", (None, torch.linspace(0, 1, 9, dtype=torch.float64))),
    ],
)
@pytest.mark.parametrize("is_given", [False, True])
def test_what_another_value_would_make_wrong_is_kept(
    net: nn.Module, name: str, values: tuple[Any, Any], is_given: bool
) -> None:
    net = alive(net)
    example = (sample(), values[0]) if is_given else (sample(),)
    result = bnfold.fold(net, example_inputs=example)
    assert kept_for(result) == {"norm": (Reason.ARGUMENTS_ARE_OPEN, name)}
    assert "as_graph=True" in result.report.kept[0].remedy
    assert any(note.startswith("not folded as a whole") for note in result.report.notes)
    assert all(same(result, net, sample(), value) for value in values)


def test_a_mask_that_the_example_gives_is_no_open_parameter() -> None:
    result = fold(Masked(), sample(), torch.ones(9, dtype=torch.float64))
    assert kept_for(result)["norm"][0] is not Reason.ARGUMENTS_ARE_OPEN


def test_what_the_code_does_not_read_may_have_any_value() -> None:
    net = alive(Plain())
    result = fold(net)
    assert names(result.decisions, Folded) == ["norm"]
    assert same(result, net, sample(), True)


@pytest.mark.parametrize(("second", "is_open"), [(torch.tensor(2.0, dtype=torch.float64), False), (2.0, True)])
def test_a_number_in_a_nest_of_tensors_is_open(second: Any, is_open: bool) -> None:
    assert bool(open_parameters(Nested(), Arguments(((sample(), second),), {}))) is is_open
    assert open_parameters(Nested(), Arguments(((),), {})) == ("pair",)


def test_parts_that_take_tensors_alone_fold_beside_an_open_parameter() -> None:
    def code(self: Holder, x: Tensor, flag: bool) -> Tensor:
        x = self.first(x)
        return x.relu() if flag else x

    net = alive(Holder(code))
    result = fold(net)
    assert names(result.decisions, Folded) == ["first.1"]
    assert all(same(result, net, sample(), flag) for flag in (False, True))


def test_code_that_another_value_would_run_keeps_the_part_that_it_reaches_into() -> None:
    def code(self: Holder, x: Tensor, flag: bool) -> Tensor:
        if flag:
            return self.first[0](x)  # type: ignore[no-any-return]
        return self.first(x)  # type: ignore[no-any-return]

    net = alive(Holder(code))
    result = fold(net)
    assert names(result.decisions, Kept) == ["first.1", "second.norm"]
    assert all(same(result, net, sample(), flag) for flag in (False, True))


@pytest.mark.parametrize("by_numbers", [False, True])
def test_methods_that_another_value_would_call_are_looked_into_only_where_numbers_decide_too(by_numbers: bool) -> None:
    class Trained(Holder):
        def loss(self, x: Tensor) -> Tensor:
            return self.first(x).sum()  # type: ignore[no-any-return]

    def code(self: Any, x: Tensor, flag: bool) -> Tensor:
        if flag:
            return self.loss(x)  # type: ignore[no-any-return]
        return self.first(x)  # type: ignore[no-any-return]

    def decided(self: Any, x: Tensor, flag: bool) -> Tensor:
        if x.sum() > 0:
            x = -x
        if flag:
            return self.loss(x)  # type: ignore[no-any-return]
        return self.first(x)  # type: ignore[no-any-return]

    net = alive(Trained(decided if by_numbers else code))
    result = fold(net)
    assert names(result.decisions, Folded) == ([] if by_numbers else ["first.1"])
    assert all(same(result, net, sample(), flag) for flag in (False, True))


@pytest.mark.parametrize(("shared", "folds"), [(nn.SiLU(), True), (nn.PReLU(), False)])
def test_an_activation_that_parts_share_is_no_way_into_them(shared: nn.Module, folds: bool) -> None:
    """As the convolutions of a YOLO do; what it takes from one that has numbers is another matter."""

    def block() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), shared)

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([block(), block()])

        def forward(self, x: Tensor, *options: Any) -> Tensor:
            for part in self.blocks:
                x = part(x, *options)
            return x

    assert names(fold(Shared()).decisions, Folded) == (["blocks.0.1", "blocks.1.1"] if folds else [])


def _handing_on(self: Holder, x: Tensor, flag: bool) -> Tensor:
    return self.second(x, flag)  # type: ignore[no-any-return]


def _keeping(self: Holder, x: Tensor, flag: bool) -> Tensor:
    return self.second(x) * (1 + flag)  # type: ignore[no-any-return]


@pytest.mark.parametrize("code", [_handing_on, _keeping])
def test_a_part_that_has_open_parameters_of_its_own_is_no_part(code: Callable[..., Tensor]) -> None:
    net = alive(Holder(code))
    result = fold(net)
    assert kept_for(result)["second.norm"] == (Reason.ARGUMENTS_ARE_OPEN, "rescale")
    assert all(same(result, net, sample(), flag) for flag in (False, True))


def test_a_flag_that_the_code_itself_gives_is_none_of_the_callers() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x, rescale=True)  # type: ignore[no-any-return]

    assert names(fold(Outer()).decisions, Folded) == ["block.norm"]


def test_any_further_arguments_are_open_and_what_is_called_without_them_folds() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

        def forward(self, *inputs: Tensor, **options: Any) -> Tensor:
            return self.net(*inputs, **options)  # type: ignore[no-any-return]

    assert open_parameters(Wrapper(), Arguments((sample(),), {})) == ("options",)
    assert names(fold(Wrapper()).decisions, Folded) == ["net.1"]


def test_code_behind_a_decorator_an_inner_function_and_locals_may_read_anything() -> None:
    def decorated(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(function)
        def call(*inputs: Any) -> Tensor:
            return function(*inputs)

        return call

    class Behind(Whole):
        @decorated
        def forward(self, x: Tensor, flag: bool = False) -> Tensor:
            return x

    class Inner(Whole):
        def forward(self, x: Tensor, flag: bool = False) -> Tensor:
            def inner() -> Tensor:
                return x if flag else -x

            return inner()

    class Locals(Whole):
        def forward(self, x: Tensor, flag: bool = False) -> Tensor:
            return x if locals()["flag"] else -x

    for net in (Behind(), Inner(), Locals()):
        assert open_parameters(net, Arguments((sample(),), {})) == ("flag",)
    assert open_parameters(Plain(), Arguments((sample(),), {})) == ()


def test_a_graph_is_for_the_values_of_the_example_and_refuses_others() -> None:
    net = alive(Scaled())
    graph = bnfold.fold(net, example_inputs=(sample(), 1.0), as_graph=True)
    assert names(graph.decisions, Folded) == ["norm"]
    assert same(graph, net, sample(), 1.0)
    with pytest.raises(AssertionError, match=r"scale == 1\.0"):
        graph.module(sample(), 2.0)


def test_without_example_inputs_an_open_parameter_is_asked_about() -> None:
    net = alive(Scaled())
    with pytest.raises(UsageError, match="may be called with other values of scale"):
        bnfold.fold(net)
