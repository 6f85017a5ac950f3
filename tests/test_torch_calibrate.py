"""`bnfold.fold(module, calibrate=...)` and `bnfold FILE --calibrate DATA`: recalibrated, folded, verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
import torch_file_models as models
from cli_run import Run, assert_one_sentence, batchnorms, names
from test_cli_torch import KINDS, NET, SHAPE, exported, folder, state
from test_cli_torch import computed as folded_output
from test_cli_torch_recalibrate import data, moved, truth
from torch import Tensor, nn

import bnfold
from bnfold.errors import UsageError, VerificationError
from bnfold.linear import LinearParams
from bnfold.recalibrating import RECORD
from bnfold.report.model import Report

__all__ = ["data", "folder"]


def batches() -> list[Tensor]:
    return list(moved().split(8))


def assert_calibrated(module: Any, tolerance: float = 2e-6) -> None:
    """It computes what the recalibrated module does, and not what the given one does."""
    x = torch.randn(3, 3, 12, 10, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, wanted, before = module(x), truth()(x.double()), models.live().double()(x.double())
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()
    assert (before - wanted).abs().max() > 1e-2 * wanted.abs().max()


@pytest.mark.parametrize("options", [{}, {"as_graph": True, "reduce": True}])
def test_a_copy_is_recalibrated_and_folded(options: dict[str, Any]) -> None:
    net = models.live()
    state_before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    result = bnfold.fold(net, calibrate=batches(), example_inputs=(models.sample(),), **options)
    assert_calibrated(result.module)
    assert not [part for part in result.module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    assert all(torch.equal(tensor, state_before[name]) for name, tensor in net.state_dict().items())
    report = result.report
    assert report.recalibration is not None
    assert report.verification is not None
    assert report.verification.passed
    assert (report.model, report.recalibration.model) == ("Net", "Net")
    assert {entry.name for entry in report.recalibration.recalibrated} == {"bn", "norm"}
    assert bnfold.fold(net, example_inputs=(models.sample(),)).report.recalibration is None


def test_a_calibration_says_how_and_names_choose() -> None:
    how = bnfold.Calibration(batches(), bessel=True)
    result = bnfold.fold(models.live(), calibrate=how, keep="^norm$", example_inputs=(models.sample(),))
    assert result.report.recalibration is not None
    assert result.report.recalibration.settings.bessel
    assert [entry.name for entry in result.report.recalibration.recalibrated] == ["bn"]
    assert torch.equal(result.module.norm.running_mean, models.live().norm.running_mean)


def wrong_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    right = LinearParams.absorb_output

    def wrong(self: LinearParams, *arguments: Any) -> LinearParams:
        folded = right(self, *arguments)
        return LinearParams(folded.weight * 1.001, folded.bias)

    monkeypatch.setattr(LinearParams, "absorb_output", wrong)


def test_a_failed_check_reports_both_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_fold(monkeypatch)
    for as_graph in (False, True):
        with pytest.raises(VerificationError) as caught:
            bnfold.fold(  # type: ignore[call-overload]
                models.live(), calibrate=batches(), example_inputs=(models.sample(),), as_graph=as_graph
            )
        assert isinstance(caught.value.report, Report)
        assert caught.value.report.recalibration is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inplace": True}, "calibrate folds a recalibrated copy, inplace changes the module that is given; call"),
        ({"example_inputs": None}, "a PyTorch module needs example_inputs"),
        ({"reduce": True}, "as_graph=True makes a graph of the module"),
        ({"calibrate": bnfold.Calibration([], unshare="all")}, "one place for their statistics"),
    ],
)
def test_what_contradicts_itself_is_refused_before_the_data_is_read(options: dict[str, Any], message: str) -> None:
    def never() -> Any:
        raise AssertionError("the data was read")

    given = {"calibrate": never, "example_inputs": (models.sample(),), **options}
    with pytest.raises(UsageError, match=message):
        bnfold.fold(models.live(), **given)


# The command line


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_onnx(run: Run, folder: Path, tmp_path: Path, data: Path, kind: str) -> None:
    make, options = KINDS[kind]
    outcome = run(make(folder), "--calibrate", data, "-o", tmp_path / "x.onnx", *options, "--json")
    report = json.loads(outcome.out)
    assert (outcome.code, batchnorms(tmp_path / "x.onnx"), report["summary"]["folded"]) == (0, 0, 2)
    found = {entry["name"] for entry in report["recalibration"]["recalibrated"]}
    assert found == (
        {"/bn/BatchNormalization", "/norm/BatchNormalization"} if kind == "TorchScript" else {"bn", "norm"}
    )
    assert report["recalibration"]["model"] == report["model"]
    assert RECORD in ir.load(tmp_path / "x.onnx").metadata_props
    assert_calibrated(lambda x: torch.from_numpy(folded_output(tmp_path / "x.onnx", x)))


@pytest.mark.parametrize(
    ("kind", "output"),
    [("state dict", "x.pt"), ("safetensors", "x.safetensors"), ("checkpoint", "x.pt2"), ("torch.export", "x.pt2")],
)
def test_and_files_of_torch(  # noqa: PLR0917
    run: Run, folder: Path, tmp_path: Path, data: Path, kind: str, output: str
) -> None:
    make, options = KINDS[kind]
    outcome = run(make(folder), "--calibrate", data, "-o", tmp_path / output, *options, "--json")
    report = json.loads(outcome.out)
    assert (outcome.code, report["summary"]["folded"]) == (0, 2)
    assert {entry["name"] for entry in report["recalibration"]["recalibrated"]} == {"bn", "norm"}
    assert_calibrated(lambda x: torch.from_numpy(folded_output(tmp_path / output, x)))


def test_one_call_gives_what_the_two_give(run: Run, folder: Path, tmp_path: Path, data: Path) -> None:
    path = exported(folder)
    assert run(path, "--calibrate", data, "-o", tmp_path / "one.onnx").code == 0
    assert run("recalibrate", path, "--data", data, "-o", tmp_path / "between.onnx").code == 0
    assert run(tmp_path / "between.onnx", "-o", tmp_path / "two.onnx").code == 0
    one, two = (ir.load(tmp_path / name) for name in ("one.onnx", "two.onnx"))
    assert one.metadata_props == two.metadata_props
    for name, value in one.graph.initializers.items():
        assert value.const_value.tobytes() == two.graph.initializers[name].const_value.tobytes()


def test_a_failed_check_shows_both_parts_and_writes_nothing(
    run: Run, folder: Path, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong_fold(monkeypatch)
    for output in ("x.onnx", "x.pt"):
        outcome = run(state(folder), "--calibrate", data, "-o", tmp_path / output, *NET, *SHAPE, "--json")
        assert (outcome.code, names(tmp_path)) == (1, ["data.npy", "in"])
        assert json.loads(outcome.out)["recalibration"]["samples"] == 48


def test_what_helps_is_told_as_flags(run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = models.live()
    nn.init.zeros_(net.head.weight)
    torch.save(net.state_dict(), folder / "dead.pt")
    for output in ("x.pt", "x.pt2"):
        outcome = run(folder / "dead.pt", "-o", tmp_path / output, *NET, *SHAPE, "--quiet")
        assert (outcome.code, names(tmp_path)) == (3, ["in"])
        assert_one_sentence(outcome.err, "--keep leaves a BatchNorm alone, --no-verify writes the model")
        assert run(folder / "dead.pt", "-o", tmp_path / output, *NET, *SHAPE, "--no-verify").code == 0
        (tmp_path / output).unlink()
