"""`bnfold recalibrate` of PyTorch files: every kind in, every suffix out, and each mistake as one sentence."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import safetensors
import safetensors.torch
import torch
import torch_file_models as models
from cli_run import MODEL, Run, assert_one_sentence, batchnorms, names
from test_cli_torch import KINDS, NET, SHAPE, Maker, exported, folder, pickled, script, state
from test_torch_graph_mode import frozen
from torch import nn

import bnfold
from bnfold.calibrating import Choice
from bnfold.errors import InternalError
from bnfold.frontends.torch_graph_module import with_tensors
from bnfold.frontends.torch_kinds import FileKind
from bnfold.recalibrating import RECORD
from bnfold.runtime import open_session
from bnfold.torch_files import TorchFile
from bnfold.torch_recalibrated import recalibrate_file
from tests.recalibrated_torch import expected

__all__ = ["folder"]

ORDER = ("bn", "norm")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Samples far from what the model knows."""
    np.save(tmp_path / "data.npy", moved().numpy())
    return tmp_path / "data.npy"


def moved(count: int = 48) -> torch.Tensor:
    return 2 + 3 * torch.randn(count, 3, 9, 9, generator=torch.Generator().manual_seed(4))


def truth(module: nn.Module | None = None, *order: str) -> nn.Module:
    """The module with the statistics of the definition, in float64."""
    wide = copy.deepcopy(module or models.live()).double()
    for path, (mean, variance) in expected(wide, (moved().double(),), order or ORDER).items():
        wide.get_submodule(path).running_mean.copy_(torch.from_numpy(mean))
        wide.get_submodule(path).running_var.copy_(torch.from_numpy(variance))
    return wide


def assert_right(path: Path) -> None:
    """What the written file computes is what the recalibrated module computes, at other sizes than the data's."""
    x = torch.randn(3, 3, 12, 10, generator=torch.Generator().manual_seed(1))
    if path.suffix == ".onnx":
        import onnxruntime  # noqa: PLC0415

        found = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": x.numpy()})[
            0
        ]
    else:
        with torch.no_grad():
            found = loaded(path)(x).numpy()
    with torch.no_grad():
        wanted = truth()(x.double()).numpy()
        before = models.live().double()(x.double()).numpy()
    assert np.abs(found - wanted).max() <= 2e-6 * np.abs(wanted).max()
    assert np.abs(before - wanted).max() > 1e-2 * np.abs(wanted).max()


def loaded(path: Path) -> nn.Module:
    """As a user loads it: a state dict strictly into its class."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    module = models.net()
    tensors = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else torch.load(path)
    module.load_state_dict(tensors, strict=True)
    return module.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_onnx_with_its_batchnorms(
    run: Run, folder: Path, tmp_path: Path, data: Path, kind: str
) -> None:
    make, options = KINDS[kind]
    path, output = make(folder), tmp_path / "out.onnx"
    before = path.read_bytes()
    outcome = run("recalibrate", path, "--data", data, "-o", output, *options)
    assert (outcome.code, outcome.out.count("2 of 2 BatchNorms recalibrated on 48 samples")) == (0, 1)
    assert outcome.err.splitlines()[0] == path.name
    assert batchnorms(output) == 2
    assert json.loads(ir.load(output).metadata_props[RECORD])["samples"] == 48
    assert_right(output)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["data.npy", "in", "out.onnx"]


@pytest.mark.parametrize("kind", ["state dict", "safetensors", "checkpoint", "torch.export"])
def test_every_kind_but_torchscript_becomes_a_graph(
    run: Run, folder: Path, tmp_path: Path, data: Path, kind: str
) -> None:
    make, options = KINDS[kind]
    outcome = run("recalibrate", make(folder), "--data", data, "-o", tmp_path / "out.pt2", *options)
    assert (outcome.code, outcome.out.count("2 of 2 BatchNorms recalibrated on 48 samples")) == (0, 1)
    program = torch.export.load(tmp_path / "out.pt2")
    assert sum("batch_norm" in str(node.target) for node in program.graph.nodes) == 2
    assert_right(tmp_path / "out.pt2")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("kind", ["state dict", "safetensors", "checkpoint"])
def test_modules_become_state_dicts_of_their_class(  # noqa: PLR0917
    run: Run, folder: Path, tmp_path: Path, data: Path, kind: str, suffix: str
) -> None:
    make, options = KINDS[kind]
    output = tmp_path / f"out{suffix}"
    assert run("recalibrate", make(folder), "--data", data, "-o", output, *options).code == 0
    assert_right(output)
    after, before = loaded(output).state_dict(), models.live().state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert set(before) - same == {f"{path}.running_{which}" for path in ORDER for which in ("mean", "var")}
    if suffix == ".safetensors":
        with safetensors.safe_open(output, "pt") as file:
            assert file.metadata()["bnfold"] == "recalibrated by bnfold"


def test_a_graph_keeps_all_else_bit_by_bit(run: Run, folder: Path, tmp_path: Path, data: Path) -> None:
    path = exported(folder)
    assert run("recalibrate", path, "--data", data, "-o", tmp_path / "out.pt2").code == 0
    before, after = torch.export.load(path), torch.export.load(tmp_path / "out.pt2")
    assert str(before.graph) == str(after.graph)
    assert before._guards_code == after._guards_code
    assert str(before.range_constraints) == str(after.range_constraints)
    changed = {name for name, old in before.state_dict.items() if not torch.equal(old, after.state_dict[name])}
    assert changed == {f"{path}.running_{which}" for path in ORDER for which in ("mean", "var")}
    assert run("recalibrate", tmp_path / "out.pt2", "--data", data, "-o", tmp_path / "again.pt2").code == 0
    again = torch.export.load(tmp_path / "again.pt2").state_dict
    assert all(torch.equal(tensor, again[name]) for name, tensor in after.state_dict.items())


def test_the_report_is_that_of_an_onnx_model(run: Run, folder: Path, tmp_path: Path, data: Path) -> None:
    options = ("--keep", "^norm$", "--variance", "bessel", "--json", "--batch-size", "7", "--samples", "40")
    reports = ("--report", tmp_path / "report.json")
    outcome = run(
        "recalibrate", state(folder), "--data", data, "-o", tmp_path / "x.pt", *NET, *SHAPE, *options, *reports
    )
    report = json.loads(outcome.out)
    assert (outcome.err, report["model"], report["samples"], report["batches"]) == ("", "net.pt", 40, 6)
    assert [entry["name"] for entry in report["recalibrated"]] == ["bn"]
    assert [(entry["name"], entry["hindrance"]) for entry in report["left"]] == [("norm", "EXCLUDED_BY_CALLER")]
    assert report["footprint"]["is_whole"]
    assert json.loads((tmp_path / "report.json").read_text()) == report


def test_data_is_named_as_forward_names_it(run: Run, folder: Path, tmp_path: Path) -> None:
    torch.save(models.pair().state_dict(), folder / "pair.pt")
    options = ("--model", "torch_file_models:pair", "--shape", "image=2x3x9x9", "--shape", "side=2x5")
    np.savez(tmp_path / "right.npz", image=moved().numpy(), side=np.ones((48, 5), np.float32))
    np.savez(tmp_path / "wrong.npz", input=moved().numpy(), side=np.ones((48, 5), np.float32))
    call = ("recalibrate", folder / "pair.pt", "-o", tmp_path / "x.pt", *options)
    wrong = run(*call, "--data", tmp_path / "wrong.npz")
    assert (wrong.code, (tmp_path / "x.pt").exists()) == (3, False)
    assert_one_sentence(wrong.err, "image")
    assert run(*call, "--data", tmp_path / "right.npz").code == 0
    module = models.pair()
    module.load_state_dict(torch.load(tmp_path / "x.pt"))
    with torch.no_grad():
        seen = module.conv(moved())
    assert torch.allclose(module.bn.running_mean, seen.mean((0, 2, 3)), atol=1e-5)


def test_a_graph_for_some_sizes_only_says_so(run: Run, folder: Path, tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4)).eval(), folder / "net.pt")
    np.save(tmp_path / "x.npy", moved(48)[:, :, :2, :2].numpy())
    call = ("recalibrate", folder / "net.pt", "--data", tmp_path / "x.npy", "--trust-pickle", "--json")
    report = json.loads(run(*call, "--shape", "input=2x3x2x2", "-o", tmp_path / "x.pt2").out)
    assert report["samples"] == 48
    assert torch.export.load(tmp_path / "x.pt2").module()(torch.ones(5, 3, 2, 2)).shape == (5, 4)


def test_calls_of_one_module_get_their_own_statistics_in_onnx_only(
    run: Run, folder: Path, tmp_path: Path, data: Path
) -> None:
    call = ("recalibrate", exported(folder), "--data", data, "--unshare", "all")
    outcome = run(*call, "-o", tmp_path / "x.pt2")
    assert (outcome.code, (tmp_path / "x.pt2").exists()) == (2, False)
    assert_one_sentence(outcome.err, "one place for their statistics")
    assert run(*call, "-o", tmp_path / "x.onnx").code == 0
    assert_right(tmp_path / "x.onnx")


@pytest.mark.parametrize("output", ["x.onnx", "x.pt2", "x.pt"])
def test_a_frozen_batchnorm_is_recalibrated_in_every_form(tmp_path: Path, output: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), frozen(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).eval()
    file, shapes = TorchFile("net.pt", FileKind.PICKLED, net), {"input": (2, 3, 9, 9)}
    how = bnfold.Calibration(list(moved().split(12)))
    report, write = recalibrate_file(file, tmp_path / output, shapes, how, Choice())
    write()
    assert {entry.name for entry in report.recalibrated} == {"1", "4"}
    x, fresh = moved(5), bnfold.recalibrate(net, how.data, example_inputs=(moved(2),)).model
    with torch.no_grad():
        wanted, before = fresh(x), net(x)
        if output == "x.onnx":
            model = onnx.load(tmp_path / output)
            (found,) = map(
                torch.from_numpy,
                open_session(model).run([model.graph.output[0].name], {"input": x.numpy()}).values(),
            )
        elif output == "x.pt2":
            found = torch.export.load(tmp_path / output).module()(x)
        else:
            net.load_state_dict(torch.load(tmp_path / output), strict=True)
            found = net(x)
    assert (found - wanted).abs().max() <= 2e-6 * wanted.abs().max()
    assert (before - wanted).abs().max() > 1e-2 * wanted.abs().max()


def test_a_graph_takes_its_tensors_from_a_module_that_has_all_of_them() -> None:
    program = torch.export.export(models.live(), (models.sample(),), strict=False)
    changed = models.live()
    changed.bn.running_mean.add_(1)
    assert torch.equal(with_tensors(program, changed).state_dict["bn.running_mean"], changed.bn.running_mean)
    assert torch.equal(program.state_dict["bn.running_mean"], models.live().bn.running_mean)
    changed.mid = nn.Identity()
    with pytest.raises(InternalError, match=r"mid\.weight: a parameter of the graph has no place in the module"):
        with_tensors(program, changed)


CALLS: dict[str, tuple[Maker, tuple[str, ...], str, int, str]] = {
    "no --model": (state, SHAPE, "x.pt", 2, "give --model package.module:factory"),
    "no --shape": (state, NET, "x.pt", 2, "write it like --shape image="),
    "no trust": (pickled, SHAPE, "x.pt", 2, "runs code of whoever made it"),
    "no suffix": (state, (*NET, *SHAPE), "x", 2, "its suffix does not say what to write"),
    "unknown suffix": (state, (*NET, *SHAPE), "x.pkl", 2, "its suffix does not say what to write"),
    "script to graph": (script, SHAPE, "x.pt2", 2, "TorchScript cannot be changed; name a file in .onnx"),
    "script to state dict": (script, SHAPE, "x.pt", 2, "TorchScript cannot be changed; name a file in .onnx"),
    "graph to state dict": (exported, (), "x.pt", 2, "no class that could load a state dict; name a file in .pt2"),
    "ONNX to torch": (lambda _: MODEL, (), "x.pt2", 2, "an ONNX model cannot become a PyTorch file"),
    "ONNX with --model": (lambda _: MODEL, NET, "x.onnx", 2, "this is an ONNX model, which needs no --model"),
    "ONNX with --shape": (lambda _: MODEL, SHAPE, "x.onnx", 2, "--shape is for PyTorch files"),
    "graph with --model": (exported, NET, "x.pt2", 2, "needs no --model"),
    "data of another shape": (state, (*NET, "--shape", "image=2x3x9x9", "--data", "other.npy"), "x.pt", 3, "other.npy"),
    "too few samples": (state, (*NET, *SHAPE, "--samples", "4"), "x.pt", 3, "norm: only 4 values in each channel"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_mistake_is_one_sentence_and_writes_nothing(  # noqa: PLR0917
    run: Run, folder: Path, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make, options, output, code, said = CALLS[name]
    monkeypatch.chdir(tmp_path)
    np.save("other.npy", moved()[:, :1].numpy())
    path, given = make(folder), () if "--data" in options else ("--data", data)
    outcome = run("recalibrate", path, "-o", tmp_path / output, *given, *options)
    assert (outcome.code, outcome.out) == (code, "")
    assert_one_sentence(outcome.err, said)
    assert names(tmp_path) == ["data.npy", "in", "other.npy"]


@pytest.mark.parametrize(
    ("package", "output"), [("safetensors", "x.safetensors"), ("onnxscript", "x.onnx")]
)  # fmt: skip
def test_what_cannot_be_written_is_known_before_the_work(  # noqa: PLR0917
    run: Run, folder: Path, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, package: str, output: str
) -> None:
    def never(*_: object, **__: object) -> Any:
        raise AssertionError("the data was read")

    path = state(folder)
    monkeypatch.setitem(__import__("sys").modules, package, None)
    monkeypatch.setattr("bnfold.torch_recalibrated.calibrated", never)
    outcome = run("recalibrate", path, "--data", data, "-o", tmp_path / output, *NET, *SHAPE, "--quiet")
    assert (outcome.code, names(tmp_path)) == (3, ["data.npy", "in"])
    assert_one_sentence(outcome.err, f"bnfold[{'torch' if package == 'onnxscript' else package}]")


def test_what_the_exporter_changes_is_found(
    run: Run, folder: Path, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bnfold.frontends import torch_to_onnx  # noqa: PLC0415

    right = torch_to_onnx.program_to_onnx

    def wrong(*arguments: Any) -> Any:
        model = right(*arguments)
        mean = model.graph.initializers["bn.running_mean"]
        mean.const_value = ir.tensor(mean.const_value.numpy() + np.float32(0.1), name="bn.running_mean")
        return model

    monkeypatch.setattr(torch_to_onnx, "program_to_onnx", wrong)
    outcome = run("recalibrate", exported(folder), "--data", data, "-o", tmp_path / "x.onnx", "--quiet")
    assert (outcome.code, names(tmp_path)) == (1, ["data.npy", "in"])
    assert_one_sentence(outcome.err, "torch.onnx.export changed what the model computes")


def test_a_graph_that_is_not_the_module_is_found(
    run: Run, folder: Path, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bnfold.frontends import torch_graph_module  # noqa: PLC0415

    monkeypatch.setattr(torch_graph_module, "with_tensors", lambda program, _module: program)
    outcome = run("recalibrate", state(folder), "--data", data, "-o", tmp_path / "x.pt2", *NET, *SHAPE, "--quiet")
    assert (outcome.code, names(tmp_path)) == (1, ["data.npy", "in"])
    assert_one_sentence(outcome.err, "torch.export captures something else than it computes")


def test_two_processes_write_the_file_of_one(tmp_path: Path, data: Path, folder: Path) -> None:
    from test_processes import torchrun  # noqa: PLC0415

    path = state(folder)
    call = ("-m", "bnfold", "recalibrate", path, "--data", data, *NET, *SHAPE, "--batch-size", "6", "-o")
    for output in ("x.pt", "x.onnx"):
        done = torchrun(2, *call, tmp_path / output, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("2 of 2 BatchNorms recalibrated on 48 samples") == 1
        assert_right(tmp_path / output)
    one = bnfold.recalibrate(
        models.live(), [x.numpy() for x in moved().split(6)], example_inputs=(moved(2),)
    ).model.state_dict()  # fmt: skip
    both = torch.load(tmp_path / "x.pt")
    assert all(torch.equal(tensor, both[name]) for name, tensor in one.items())
    assert onnx.load(tmp_path / "x.onnx").graph.name == "net.pt"
