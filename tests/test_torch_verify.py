"""bnfold.verify with a PyTorch module: against another module, and against an ONNX model in onnxruntime."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx_models import parse
from spoilt_sessions import Change, doubled, opener
from test_torch_observed import Block, lively
from torch import Tensor, nn
from torch_models import sample
from zoo.functional import Net, conv

import bnfold
from bnfold import torch_deployed
from bnfold.comparison import compare
from bnfold.deployed import Deployed
from bnfold.errors import ModelError, UsageError
from bnfold.wording import quick_line
from bnfold.wording_deployed import deployed_line

SHAPE = (2, 3, 9, 9)


def pair(dtype: torch.dtype = torch.float32) -> nn.Module:
    return lively(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU())).to(dtype)


def x(*shape: int) -> Tensor:
    return sample(*(shape or SHAPE), dtype=torch.float32)


def as_onnx(module: nn.Module, size: str = "N,3,H,W", more: str = "", **changes: Any) -> ir.Model:
    """The same network as ONNX text, with the module's numbers."""
    conv, bn = module[0], module[1]
    values = {
        "w": conv.weight, "gamma": bn.weight, "beta": bn.bias, "mean": bn.running_mean, "var": bn.running_var, **changes
    }  # fmt: skip
    text = f"""(float[{size}] image) => (float[A,B,C,D] y{more})
        <float[4,3,3,3] w, float[4] gamma, float[4] beta, float[4] mean, float[4] var>
        {{ c = Conv(image, w) n = BatchNormalization <epsilon=0.00001> (c, gamma, beta, mean, var) y = Relu(n)
           {"z = Neg(y)" if more else ""} }}"""
    return ir.from_proto(parse(text, values={k: v.detach().numpy() for k, v in values.items()}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_a_folded_module_passes(dtype: torch.dtype) -> None:
    net = pair(dtype)
    folded = bnfold.fold(net, example_inputs=(x().to(dtype),)).module
    checked = bnfold.verify(net, folded, example_inputs=(x().to(dtype),))
    assert checked.passed
    assert len(checked.quick[0].runs) == 3  # as given, other numbers, other sizes
    assert checked.quick[0].provider == "torch"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_wrong_weight_fails(dtype: torch.dtype) -> None:
    net = pair(dtype)
    folded = bnfold.fold(net, example_inputs=(x().to(dtype),)).module
    folded[0].weight.data[:, 0, 0, 0] += 1e-3
    checked = bnfold.verify(net, folded, example_inputs=(x().to(dtype),))
    assert checked.failed
    assert checked.culprit == "the first tensor that differs on torch is output 0"


def test_inputs_are_made_up_where_they_are_left_out() -> None:
    net = pair()
    assert bnfold.verify(net, copy.deepcopy(net)).passed
    with pytest.raises(UsageError, match="needs example_inputs"):
        bnfold.verify(nn.ReLU().eval(), nn.ReLU().eval())


def test_an_onnx_model_of_the_module_passes(tmp_path: Path) -> None:
    net = pair()
    model = as_onnx(net)
    checked = bnfold.verify(net, model, example_inputs=(x(),))
    assert checked.passed
    assert checked.providers == ("cpu",)
    assert checked.quick[0].comparisons[0].name == "output 0 (y)"
    folded = bnfold.fold(model).model
    bnfold.save(folded, tmp_path / "folded.onnx")
    assert bnfold.verify(net, tmp_path / "folded.onnx", example_inputs=(x(),)).passed
    assert bnfold.verify(net, str(tmp_path / "folded.onnx")).passed


def test_an_onnx_model_with_another_number_fails() -> None:
    net = pair()
    wrong = net[0].weight.detach().clone()
    wrong[:, 0, 0, 0] += 1e-3
    assert bnfold.verify(net, as_onnx(net, w=wrong), example_inputs=(x(),)).failed


def test_an_onnx_model_of_fixed_sizes_is_compared_at_those() -> None:
    net = pair()
    (quick,) = bnfold.verify(net, as_onnx(net, "2,3,9,9"), example_inputs=(x(),)).quick
    assert quick.passed
    assert len(quick.runs) == 2
    assert [note for note in quick.notes if note == "The second of the two takes no inputs of 4x3x18x18."]


def test_an_onnx_model_of_other_sizes_proves_nothing() -> None:
    net = pair()
    checked = bnfold.verify(net, as_onnx(net, "2,3,8,8"), example_inputs=(x(),))
    assert not checked.passed
    assert not checked.failed
    assert "The second of the two cannot be run with inputs of 2x3x9x9" in checked.quick[0].notes[0]


def test_another_number_of_outputs_is_a_result() -> None:
    net = pair()
    checked = bnfold.verify(net, as_onnx(net, more=", float[E,F,G,I] z"), example_inputs=(x(),))
    assert checked.failed
    assert checked.quick[0].comparisons[0].note == "the number of outputs changed from 1 to 2"


def test_another_shape_of_an_output_is_a_result() -> None:
    net = pair()
    checked = bnfold.verify(net, nn.Sequential(net, nn.Flatten()).eval(), example_inputs=(x(),))
    assert checked.failed
    assert checked.quick[0].comparisons[0].note == "the shape changed from (2, 4, 7, 7) to (2, 196)"


def test_another_type_of_an_output_is_a_result() -> None:
    net = pair()
    wide = Net(lambda s, x: s.inner(x).double(), inner=net).eval()
    checked = bnfold.verify(net, wide, example_inputs=(x(),))
    assert checked.quick[0].comparisons[0].note == "the type changed from float32 to float64"
    assert checked.failed


def test_another_number_of_inputs_is_a_result() -> None:
    two = Net(lambda s, x: s.inner(x[0]) + x[1].sum(), inner=pair()).eval()
    checked = bnfold.verify(two, as_onnx(pair()), example_inputs=((x(), x()),))
    assert checked.failed
    assert checked.quick[0].comparisons[0].note == "the module takes 2 tensors and the model 1"


def test_outputs_that_do_not_follow_the_inputs_prove_nothing() -> None:
    dead = Net(lambda s, x: s.inner(x) * 0, inner=pair()).eval()
    checked = bnfold.verify(dead, copy.deepcopy(dead), example_inputs=(x(),))
    assert not checked.passed
    assert not checked.failed
    assert checked.doubt == "The outputs do not follow the inputs."


def test_an_original_that_overflows_proves_nothing() -> None:
    net = pair(torch.float16)
    net[0].weight.data.mul_(2e4)
    net[1].running_var.fill_(1e-3)
    loud = Net(lambda s, x: s.inner(x) * 6e4, inner=net).eval()
    other = Net(lambda s, x: s.inner(x) * 5e4, inner=net).eval()
    checked = bnfold.verify(loud, other, example_inputs=(x().half(),))
    assert not checked.passed


def test_a_module_that_cannot_be_captured_is_compared_all_the_same() -> None:
    net = lively(Net(lambda s, x: s.a(x) if x.sum() > 0 else s.b(x), a=Block(3), b=Block(3)))
    given = (sample(*SHAPE),)
    folded = bnfold.fold(net, example_inputs=given).module
    assert bnfold.verify(net, folded, example_inputs=given).passed


def test_the_modules_stay_as_they_are() -> None:
    net = pair()
    state = copy.deepcopy(net.state_dict())
    bnfold.verify(net, copy.deepcopy(net), example_inputs=(x(),))
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in state.items())


def test_wrong_arguments_are_clear_errors() -> None:
    net = pair()
    with pytest.raises(UsageError, match="verify: a PyTorch module is the first of the two; verify"):
        bnfold.verify(as_onnx(net), net)  # type: ignore[call-overload]
    with pytest.raises(
        UsageError,
        match="providers, seed, progress and, with an ONNX model, deployed, and nothing",
    ):
        bnfold.verify(net, net, shapes={"x": (1,)})  # type: ignore[call-overload]
    with pytest.raises(
        UsageError,
        match="providers, seed, progress and, with an ONNX model, deployed, and nothing",
    ):
        bnfold.verify(net, net, example_inputs=(x(),), deployed=False)  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="verify: example_inputs and example_kwargs are for PyTorch modules"):
        bnfold.verify(as_onnx(net), as_onnx(net), example_inputs=(x(),))  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="the inputs of a PyTorch module are a tuple, not a Tensor"):
        bnfold.verify(net, net, example_inputs=x())
    with pytest.raises(ModelError, match="training mode"):
        bnfold.verify(net, copy.deepcopy(net).train(), example_inputs=(x(),))
    with pytest.raises(
        ModelError, match=r"^Sequential: module\(\*example_inputs\) raises RuntimeError: .*; correct it"
    ):
        bnfold.verify(net, net, example_inputs=(x(2, 5, 9, 9),))
    with pytest.raises(UsageError, match=r"missing\.onnx: there is no such file"):
        bnfold.verify(net, "missing.onnx")


def test_the_line_counts_outputs_and_not_how_often_they_were_compared() -> None:
    net = pair()
    report = bnfold.fold(net, example_inputs=(x(),)).report
    assert report.verification is not None
    (folded,) = report.verification.quick
    assert quick_line(folded).startswith("1 output in 4 comparisons, largest error")  # in float64, as stored, two sizes
    (other,) = bnfold.verify(net, as_onnx(net), example_inputs=(x(),)).quick
    assert quick_line(other).startswith("1 output in 3 comparisons, largest error")
    two = Net(lambda s, x: (s.inner(x), x + 1), inner=net).eval()
    (both,) = bnfold.verify(two, copy.deepcopy(two), example_inputs=(x(),)).quick
    assert quick_line(both).startswith("2 outputs in 6 comparisons")


def twin() -> tuple[nn.Module, ir.Model]:
    """A network and its ONNX model."""
    net = pair()
    return net, as_onnx(net)


def as_deployed(monkeypatch: pytest.MonkeyPatch, change: Change | str, net: nn.Module, model: ir.Model) -> Deployed:
    """What is found where the optimiser does `change` to the model."""
    monkeypatch.setattr(torch_deployed, "open_session", opener(lambda setting: change if setting.optimised else None))
    checked = bnfold.verify(net, model, example_inputs=(x(),))
    (quick,) = checked.quick
    assert quick.passed  # without the optimiser
    assert quick.deployed is not None
    assert checked.failed == quick.deployed.failed != checked.passed
    assert not bnfold.verify(net, model, example_inputs=(x(),), deployed=False).failed
    return quick.deployed


def test_an_onnx_model_is_compared_as_deployed() -> None:
    (quick,) = bnfold.verify(*twin(), example_inputs=(x(),)).quick
    assert quick.deployed is not None
    (entry,) = quick.deployed.folded.comparisons
    assert entry.passed
    assert entry.name == "output 0 (y)"
    assert deployed_line(quick.deployed).startswith("at ENABLE_ALL the optimiser moves the model by ")


def test_what_the_optimiser_gets_wrong_fails_and_names_the_optimiser(monkeypatch: pytest.MonkeyPatch) -> None:
    found = as_deployed(monkeypatch, doubled, *twin())
    assert found.failure == (
        "as deployed, at ENABLE_ALL, the runtime's own optimiser gets output 0 (y) wrong; the model is right with the "
        "optimiser off"
    )


def test_a_model_that_only_the_optimiser_cannot_load_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    found = as_deployed(monkeypatch, "no kernel", *twin())
    assert found.failure == "the model cannot be run as deployed, at ENABLE_ALL: no kernel"


@pytest.mark.parametrize(("moved", "failed"), [(3e-4, False), (3e-3, True)])
def test_what_the_optimiser_may_move_is_a_thousandth(
    monkeypatch: pytest.MonkeyPatch, moved: float, failed: bool
) -> None:
    found = as_deployed(monkeypatch, lambda _, v: np.asarray(v * (1 + moved), v.dtype), *twin())
    assert found.failed == failed


class Pretended:
    """A session that always computes the same."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def run(self, names: tuple[str, ...], _feeds: Any) -> dict[str, Any]:
        return dict.fromkeys(names, self.values)


@pytest.mark.parametrize(
    ("size", "times", "kind", "failed"),
    [(2e-3, 1.0, None, False), (2e-3, 30.0, None, True), (4e-2, 1.0, "float16", False), (4e-2, 8.0, "float16", True)],
)
def test_where_they_differ_the_module_in_float64_tells_which_is_right(
    size: float, times: float, kind: str | None, failed: bool
) -> None:
    """The model errs by that part of its scale, and with the optimiser by `times` as much the other way.

    An output behind float16 is as exact as float16: more than a few thousandths are no reason to believe nothing.
    """
    truth = np.linspace(1.0, 2.0, 24).reshape(2, 3, 4)
    error = np.where(np.arange(24).reshape(truth.shape) % 2, size, -size)
    was, now = ((truth + factor * error).astype(np.float32) for factor in (1.0, -times))
    entry = compare("y", was, now, accuracy=kind)
    assert entry.failed
    seen = torch_deployed.Seen({"x": np.ones((2, 3), np.float32)}, [truth])
    judged = torch_deployed._judged(entry, Pretended(was), seen, ("y", truth, was, now), kind)  # type: ignore[arg-type]
    assert judged.failed == failed
    assert judged.compared


def test_whole_numbers_that_the_optimiser_moves_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(lambda s, x: x.argmax(1), inner=pair()).eval()
    text = "(float[N,3,H,W] x) => (int64[A,B,C] y) { y = ArgMax<axis = 1, keepdims = 0>(x) }"
    found = as_deployed(monkeypatch, lambda _, v: v[..., ::-1].copy(), net, ir.from_proto(parse(text, values={})))
    (entry,) = found.folded.comparisons
    assert (found.failed, entry.compared, entry.note) == (False, False, "whole numbers may hang on a rounding")


def test_another_shape_as_deployed_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert as_deployed(monkeypatch, lambda _, values: values[..., :1], *twin()).failed
