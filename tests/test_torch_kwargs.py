"""Inputs by keyword: `example_kwargs` wherever `example_inputs` go, and clear words where they are wrong."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_run import Run
from test_torch_guards import conv
from torch import Tensor, nn
from torch_models import alive, names, sample

import bnfold
from bnfold.decision import Folded
from bnfold.errors import DataError, ModelError, UsageError
from bnfold.frontends.torch_arguments import read_arguments
from bnfold.frontends.torch_made_inputs import made_inputs

#: The example: an image by position or by name, the rest by name alone, in another order than that of the signature.
IMAGE = sample(2, 3, 9, 9)
MASK = sample(2, 1, 7, 7, seed=6)
REST: dict[str, Any] = {"scale": 0.5, "mask": MASK}


class Masked(nn.Module):
    """A convolution and a BatchNorm in a block, as numbers may be given as well, and a mask that is given by name."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(conv(), nn.BatchNorm2d(4))

    def forward(self, image: Tensor, *, mask: Tensor, scale: float = 1.0, flag: bool = False) -> Tensor:
        found: Tensor = self.block(image) * mask * scale
        return -found if flag else found


class Deciding(nn.Module):
    """One within, and a decision that torch.export cannot capture."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Masked()

    def forward(self, image: Tensor, *, mask: Tensor, scale: float = 1.0) -> Tensor:
        found: Tensor = self.inner(image, mask=mask) * scale
        return found.abs() if found.sum() > 0 else found + 1.0


class Free(Masked):
    """The same, with parameters that are not in the signature."""

    def forward(self, image: Tensor, **rest: Any) -> Tensor:
        return super().forward(image, **rest)


def live(module: nn.Module) -> nn.Module:
    """`module` in float64 and eval mode, with statistics of no special form."""
    module.double().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            with torch.no_grad():
                part.running_mean.copy_(torch.linspace(-0.5, 0.7, 4))  # type: ignore[union-attr]
                part.running_var.copy_(torch.linspace(0.5, 2, 4))  # type: ignore[union-attr]
                part.weight.copy_(torch.linspace(0.7, -1.3, 4))
    return module


def same(before: nn.Module, after: nn.Module) -> bool:
    """Equal to 1e-11 on new numbers, another batch size, and names in another order."""
    image, mask = sample(5, 3, 9, 9, seed=7), sample(5, 1, 7, 7, seed=8)
    with torch.no_grad():
        old, new = before(image, mask=mask, scale=0.25), after(image, scale=0.25, mask=mask)
    return bool((old - new).abs().max() <= 1e-11 * old.abs().max())


@pytest.mark.parametrize("as_graph", [False, True])
def test_inputs_by_keyword_are_handed_on(as_graph: bool) -> None:
    net = live(Masked())
    result = bnfold.fold(net, example_inputs=(IMAGE,), example_kwargs={"mask": MASK}, as_graph=as_graph)
    assert names(result.decisions, Folded) == ["block.1"]
    assert result.report.verification is not None
    assert result.report.verification.passed
    with torch.no_grad():
        before, after = (part(sample(5, 3, 9, 9), mask=sample(5, 1, 7, 7)) for part in (net, result.module))
    assert (before - after).abs().max() <= 1e-11 * before.abs().max()


def test_their_order_does_not_matter_and_all_may_be_by_keyword() -> None:
    net = live(Masked())
    assert same(net, bnfold.fold(net, example_inputs=(IMAGE,), example_kwargs=REST).module)
    everything = {**REST, "image": IMAGE}
    assert same(net, bnfold.fold(net, example_kwargs=everything).module)
    graph = bnfold.fold(net, example_kwargs=everything, as_graph=True).module
    with torch.no_grad():
        old, new = net(IMAGE, **REST), graph(**REST, image=IMAGE)
    assert (old - new).abs().max() <= 1e-11 * old.abs().max()


def test_they_are_put_into_the_order_of_the_signature() -> None:
    found = read_arguments(live(Masked()), (IMAGE,), REST)
    assert found is not None
    assert (list(REST), list(found.kwargs)) == (["scale", "mask"], ["mask", "scale"])


@pytest.mark.parametrize("as_graph", [False, True])
def test_inspect_says_the_same(as_graph: bool) -> None:
    net = live(Masked())
    report = bnfold.inspect(net, example_inputs=(IMAGE,), example_kwargs=REST, as_graph=as_graph)
    result = bnfold.fold(net, example_inputs=(IMAGE,), example_kwargs=REST, as_graph=as_graph)
    assert report.decisions == result.decisions


def test_another_value_by_keyword_is_another_way_through_the_code() -> None:
    net = live(Masked())
    graphs = [bnfold.fold(net, example_inputs=(IMAGE,), example_kwargs={"mask": MASK, "flag": flag}, as_graph=True)
              for flag in (False, True)]  # fmt: skip
    with torch.no_grad():
        one, other = (graphs[flag].module(IMAGE, mask=MASK, flag=flag) for flag in (False, True))
    assert (one + other).abs().max() <= 1e-12


def test_a_module_that_cannot_be_captured_is_observed_with_them() -> None:
    net = live(Deciding())
    result = bnfold.fold(net, example_inputs=(IMAGE,), example_kwargs=REST)
    assert names(result.decisions, Folded) == ["inner.block.1"]
    assert result.report.verification is not None
    assert result.report.verification.passed
    assert same(net, result.module)


def test_parameters_that_are_not_in_the_signature_cannot_be_captured() -> None:
    net = live(Free())
    result = bnfold.fold(net, example_inputs=(IMAGE,), example_kwargs={"mask": MASK})
    assert any("**parameter" in note for note in result.report.notes)
    assert names(result.decisions, Folded) == ["block.1"]
    with pytest.raises(ModelError, match=r"torch.export cannot capture it: what its \*\*parameter takes"):
        bnfold.fold(net, example_inputs=(IMAGE,), example_kwargs=REST, as_graph=True)


def test_verify_takes_them() -> None:
    net = live(Masked())
    wrong = copy.deepcopy(net)
    with torch.no_grad():
        wrong.block[0].weight[0, 0, 0, 0] += 0.1  # type: ignore[index,union-attr]
    for other, passes in (
        (bnfold.fold(net, example_inputs=(IMAGE,), example_kwargs=REST).module, True),
        (wrong, False),
    ):
        assert bnfold.verify(net, other, example_inputs=(IMAGE,), example_kwargs=REST).passed is passes


@pytest.mark.parametrize("inputs", [(IMAGE,), None])
def test_recalibration_takes_batches_by_name(inputs: tuple[Tensor, ...] | None) -> None:
    net = live(Masked())
    batches = [{"image": sample(8, 3, 9, 9, seed=k), "mask": MASK[:1].expand(8, 1, 7, 7)} for k in range(2)]
    by_name = {"mask": MASK} if inputs else {"mask": MASK, "image": IMAGE}
    result = bnfold.recalibrate(net, batches, example_inputs=inputs, example_kwargs=by_name)
    with torch.no_grad():
        seen = torch.cat([net.block[0](batch["image"]) for batch in batches])  # type: ignore[operator]
    assert torch.allclose(result.model.block[1].running_mean, seen.mean((0, 2, 3)), rtol=1e-12)  # type: ignore[union-attr]
    folded = bnfold.fold(net, calibrate=batches, example_inputs=inputs, example_kwargs=by_name)
    assert names(folded.decisions, Folded) == ["block.1"]
    assert same(result.model, folded.module)


def test_a_module_without_a_graph_is_recalibrated_with_them() -> None:
    net = live(Deciding())
    batches = [{"image": sample(8, 3, 9, 9, seed=k), "mask": MASK[:1].expand(8, 1, 7, 7)} for k in range(2)]
    result = bnfold.recalibrate(net, batches, example_inputs=(IMAGE,), example_kwargs={"mask": MASK})
    with torch.no_grad():
        seen = torch.cat([net.inner.block[0](batch["image"]) for batch in batches])  # type: ignore[union-attr,operator]
    assert "the module was run once for each BatchNorm" in result.report.notes[0]
    assert torch.allclose(result.model.inner.block[1].running_mean, seen.mean((0, 2, 3)), rtol=1e-12)  # type: ignore[union-attr]


def test_a_batch_without_one_of_them_is_an_error() -> None:
    with pytest.raises(DataError, match="mask"):
        bnfold.recalibrate(live(Masked()), [{"image": np.zeros((8, 3, 9, 9))}], example_inputs=(IMAGE,),
                           example_kwargs={"mask": MASK})  # fmt: skip


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ([MASK], "the keyword inputs of a PyTorch module are a mapping by name, not a list"),
        (
            {"msk": MASK},
            "the forward pass of Masked has no parameter 'msk'; its parameters are image, mask, scale, flag",
        ),
        ({1: MASK}, "the forward pass of Masked has no parameter 1"),
        ({}, "cannot be called like that: missing a required"),
        ({"mask": MASK, "image": IMAGE}, "cannot be called like that: multiple values for argument 'image'"),
    ],
)
@pytest.mark.parametrize("call", ["fold", "inspect", "verify", "recalibrate"])
def test_what_does_not_fit_the_forward_pass_is_one_clear_sentence(call: str, kwargs: Any, says: str) -> None:
    net = live(Masked())
    more = {"verify": (net,), "recalibrate": ([IMAGE],)}.get(call, ())
    with pytest.raises(UsageError, match=f"^example_kwargs: .*{says}"):
        getattr(bnfold, call)(net, *more, example_inputs=(IMAGE,), example_kwargs=kwargs)


def test_any_name_goes_where_the_forward_pass_takes_any() -> None:
    net = live(Free())
    assert same(net, bnfold.fold(net, example_inputs=(IMAGE,), example_kwargs=REST).module)
    with pytest.raises(UsageError, match="has no parameter 1"):
        bnfold.fold(net, example_inputs=(IMAGE,), example_kwargs={1: MASK})  # type: ignore[dict-item]


def test_they_are_for_modules_only() -> None:
    model = str(Path(__file__).parents[1] / "models" / "digits-darknet.onnx")
    for call, more in ((bnfold.fold, ()), (bnfold.inspect, ()), (bnfold.verify, (model,)), (bnfold.recalibrate, ([],))):
        with pytest.raises(UsageError, match="for PyTorch modules"):
            call(model, *more, example_kwargs={})  # type: ignore[operator]


def test_a_module_that_takes_no_names_needs_none() -> None:
    net = alive(nn.Sequential(conv(), nn.BatchNorm2d(4)))
    assert names(bnfold.fold(net, example_inputs=(IMAGE,), example_kwargs={}).decisions, Folded) == ["1"]


def test_an_archive_that_takes_them_becomes_one_that_takes_them(run: Run, tmp_path: Path) -> None:
    net = live(Masked())
    axes = {0: torch.export.Dim.AUTO}
    program = torch.export.export(net, (IMAGE,), {"mask": MASK}, dynamic_shapes={"image": axes, "mask": axes})
    torch.export.save(program, tmp_path / "net.pt2")
    assert run(tmp_path / "net.pt2", "-o", tmp_path / "fused.pt2").code == 0
    folded = torch.export.load(tmp_path / "fused.pt2")
    assert "batch_norm" not in str(folded.graph)
    image, mask = sample(5, 3, 9, 9, seed=7), sample(5, 1, 7, 7, seed=8)
    with torch.no_grad():
        old, new = net(image, mask=mask), folded.module()(image, mask=mask)
    assert (old - new).abs().max() <= 1e-11 * old.abs().max()


def test_shapes_by_name_make_inputs_by_keyword() -> None:
    made = made_inputs(live(Masked()), {"mask": (2, 1, 7, 7), "image": (2, 3, 9, 9)}, "x")
    assert [tuple(x.shape) for x in made.args] == [(2, 3, 9, 9)]
    assert {name: tuple(x.shape) for name, x in made.kwargs.items()} == {"mask": (2, 1, 7, 7)}
    with pytest.raises(UsageError, match="the shape of input 'mask' is not known"):
        made_inputs(live(Masked()), {"image": (2, 3, 9, 9)}, "x")
