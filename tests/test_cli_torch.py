"""PyTorch files on the command line: every kind in, every suffix out, and each mistake as one sentence."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import safetensors.torch
import torch
import torch_file_models as models
from cli_run import MODEL, Run, assert_one_sentence, batchnorms, names
from torch import nn
from torch_archives import Touch

import bnfold
from bnfold import api
from bnfold.linear import LinearParams

NET = ("--model", "torch_file_models:net")
SHAPE = ("--shape", "image=2x3x9x9")


def state(folder: Path) -> Path:
    torch.save(models.live().state_dict(), folder / "net.pt")
    return folder / "net.pt"


def safe(folder: Path) -> Path:
    safetensors.torch.save_file(models.live().state_dict(), folder / "net.safetensors")
    return folder / "net.safetensors"


def pickled(folder: Path) -> Path:
    torch.save({"model": models.Net(), "ema": models.live()}, folder / "checkpoint.pt")
    return folder / "checkpoint.pt"


def exported(folder: Path) -> Path:
    sizes = ({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
    torch.export.save(
        torch.export.export(models.live(), (models.sample(),), dynamic_shapes=sizes, strict=False), folder / "net.pt2"
    )
    return folder / "net.pt2"


def script(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.script(models.live()).save(folder / "script.pt")
    return folder / "script.pt"


Maker = Callable[[Path], Path]
KINDS: dict[str, tuple[Maker, tuple[str, ...]]] = {
    "state dict": (state, (*NET, *SHAPE)),
    "safetensors": (safe, (*NET, *SHAPE)),
    "checkpoint": (pickled, ("--trust-pickle", *SHAPE)),
    "torch.export": (exported, ()),
    "TorchScript": (script, SHAPE),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def computed(path: Path, x: torch.Tensor) -> np.ndarray[Any, Any]:
    """What the written file computes, each kind by its own loader."""
    if path.suffix == ".onnx":
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": x.numpy()})[0]
    module = torch.export.load(path).module() if path.suffix == ".pt2" else bnfold.load_folded(models.net(), path)
    with torch.no_grad():
        return module(x).numpy()


def assert_right(path: Path) -> None:
    """As the original in float64, to float32 accuracy, at another batch and image size than the example's."""
    x = torch.randn(3, 3, 12, 10, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        truth = models.live().double()(x.double()).numpy()
    assert np.abs(computed(path, x) - truth).max() <= 2e-6 * np.abs(truth).max()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_becomes_onnx_without_batchnorms(run: Run, folder: Path, tmp_path: Path, kind: str) -> None:
    make, options = KINDS[kind]
    path = make(folder)
    before = path.read_bytes()
    outcome = run(path, "-o", tmp_path / "fused.onnx", *options, "--require-all")
    assert (outcome.code, outcome.out.count("2 of 2 BatchNorms folded, verified on CPUExecutionProvider")) == (0, 1)
    assert outcome.err.startswith(path.name)
    assert batchnorms(tmp_path / "fused.onnx") == 0
    assert_right(tmp_path / "fused.onnx")
    assert path.read_bytes() == before
    assert names(tmp_path) == ["fused.onnx", "in"]


@pytest.mark.parametrize("kind", ["state dict", "safetensors", "checkpoint", "torch.export"])
def test_every_kind_but_torchscript_becomes_a_graph(run: Run, folder: Path, tmp_path: Path, kind: str) -> None:
    make, options = KINDS[kind]
    outcome = run(make(folder), "-o", tmp_path / "fused.pt2", *options)
    assert (outcome.code, outcome.out.count("2 of 2 BatchNorms folded, verified on torch")) == (0, 1)
    program = torch.export.load(tmp_path / "fused.pt2")
    assert not [node for node in program.graph.nodes if "batch_norm" in str(node.target)]
    assert_right(tmp_path / "fused.pt2")
    assert names(tmp_path) == ["fused.pt2", "in"]


@pytest.mark.parametrize(
    ("kind", "suffix"), [("state dict", ".pt"), ("safetensors", ".safetensors"), ("checkpoint", ".pth")]
)
def test_modules_become_state_dicts(run: Run, folder: Path, tmp_path: Path, kind: str, suffix: str) -> None:
    make, options = KINDS[kind]
    outcome = run(make(folder), "-o", tmp_path / f"fused{suffix}", *options)
    assert (outcome.code, outcome.out.count("2 of 2 BatchNorms folded")) == (0, 1)
    assert_right(tmp_path / f"fused{suffix}")
    assert names(tmp_path) == [f"fused{suffix}", "in"]
    (tmp_path / "fresh").touch()
    assert (tmp_path / f"fused{suffix}").stat().st_mode == (tmp_path / "fresh").stat().st_mode


def test_a_graph_that_was_written_can_be_read_again(run: Run, folder: Path, tmp_path: Path) -> None:
    assert run(exported(folder), "-o", tmp_path / "once.pt2").code == 0
    assert "no BatchNorm to fold" in run(tmp_path / "once.pt2", "-o", tmp_path / "twice.pt2").out
    assert run(tmp_path / "once.pt2", "-o", tmp_path / "fused.onnx").code == 0
    assert_right(tmp_path / "fused.onnx")


def test_names_choose_batchnorms_and_options_of_onnx_work(run: Run, folder: Path, tmp_path: Path) -> None:
    options = ("--keep", "^norm$", "--leftover", "affine", "--manifest", "embed", "--json", "--provider", "cpu")
    outcome = run(state(folder), "-o", tmp_path / "fused.onnx", *NET, *SHAPE, *options)
    assert outcome.code == 0
    decisions = {entry["subject"]["name"]: entry["kind"] for entry in json.loads(outcome.out)["decisions"]}
    assert decisions == {"bn": "folded", "norm": "kept"}
    restored = run("unfold", tmp_path / "fused.onnx", "-o", tmp_path / "restored.onnx")
    assert (restored.code, batchnorms(tmp_path / "restored.onnx")) == (0, 2)


def test_the_users_data_is_compared_too(run: Run, folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", models.sample().numpy())
    outcome = run(exported(folder), "-o", tmp_path / "fused.onnx", "--verify-data", tmp_path / "data.npy")
    assert outcome.code == 0


@pytest.mark.parametrize("to", ["onnx", "pt2", "pt", "safetensors"])
def test_inspect_says_what_a_fold_into_that_would_do(run: Run, folder: Path, to: str) -> None:
    outcome = run("inspect", state(folder), *NET, *SHAPE, "--to", to, "--json")
    report = json.loads(outcome.out)
    assert (outcome.code, report["model"], names(folder)) == (0, "net.pt", ["net.pt"])
    assert [entry["subject"]["name"] for entry in report["decisions"]] == ["bn", "norm"]
    assert [entry["into"] for entry in report["decisions"]] == [["conv"], ["mid"]]


@pytest.mark.parametrize("kind", ["safetensors", "torch.export", "TorchScript"])
def test_inspect_reads_every_kind(run: Run, folder: Path, kind: str) -> None:
    make, options = KINDS[kind]
    outcome = run("inspect", make(folder), *options)
    assert (outcome.code, outcome.out.count("2 of 2 BatchNorms would fold")) == (0, 1)


# Mistakes

CALLS: dict[str, tuple[Maker, tuple[str, ...], str, int, str]] = {
    "no --model": (state, SHAPE, "x.onnx", 2, "give --model package.module:factory"),
    "no --shape": (state, NET, "x.onnx", 2, "write it like --shape image="),
    "unknown input": (state, (*NET, "--shape", "x=1x3x9x9"), "x.onnx", 2, "no input 'x'; its inputs are image"),
    "unknown factory": (state, ("--model", "nowhere:net", *SHAPE), "x.onnx", 2, "no module nowhere"),
    "no factory": (state, ("--model", "net", *SHAPE), "x.onnx", 2, "names no function"),
    "factory raises": (
        state,
        ("--model", "torch_file_models:broken", *SHAPE),
        "x.pt",
        3,
        "ValueError: no such weights",
    ),
    "other module": (state, ("--model", "torch_file_models:pair", *SHAPE), "x.pt", 3, "does not fit the module"),
    "impossible shape": (state, (*NET, "--shape", "image=2x4x9x9"), "x.onnx", 3, "torch.export cannot capture it"),
    "a size that the graph refuses": (
        exported,
        ("--shape", "image=2x3x2x9"),
        "x.onnx",
        3,
        "cannot be run with these inputs",
    ),
    "no trust": (pickled, SHAPE, "x.onnx", 2, "runs code of whoever made it"),
    "no suffix": (state, (*NET, *SHAPE), "x", 2, "its suffix does not say what to write"),
    "unknown suffix": (state, (*NET, *SHAPE), "x.pkl", 2, "its suffix does not say what to write"),
    "script to graph": (script, SHAPE, "x.pt2", 2, "TorchScript cannot be changed; name a file in .onnx"),
    "graph to state dict": (exported, (), "x.pt", 2, "no class that could load a state dict"),
    "ONNX to torch": (lambda _: MODEL, (), "x.pt2", 2, "an ONNX model cannot become a PyTorch file"),
    "ONNX with --model": (lambda _: MODEL, NET, "x.onnx", 2, "this is an ONNX model, which needs no --model"),
    "graph with --model": (exported, NET, "x.pt2", 2, "needs no --model"),
    "--simplify": (exported, ("--simplify",), "x.pt2", 2, "--simplify has no place here; fold into .onnx"),
    "--provider": (exported, ("--provider", "cpu"), "x.pt2", 2, "--provider has no place here"),
    "--self-test": (exported, ("--self-test",), "x.pt2", 2, "--self-test has no place here"),
    "--manifest": (exported, ("--manifest", "embed"), "x.pt2", 2, "--manifest has no place here"),
    "--reproduce": (exported, ("--reproduce", "made"), "x.pt2", 2, "--reproduce has no place here; fold into .onnx"),
    "--bench": (state, (*NET, *SHAPE, "--bench"), "x.pt", 2, "--bench has no place here; fold into .onnx"),
    "--oracle": (exported, ("--oracle",), "x.pt2", 2, "--oracle has no place here; fold into .onnx"),
    "--oracle, state dict": (state, (*NET, *SHAPE, "--oracle"), "x.safetensors", 2, "--oracle has no place here"),
    "--metric": (exported, ("--metric", "top1"), "x.pt2", 2, "--metric has no place here; fold into .onnx"),
    "--metric-output": (exported, ("--metric-output", "y"), "x.pt2", 2, "--metric-output has no place here"),
    "--input": (state, (*NET, *SHAPE, "--input", "image=a.npy"), "x.pt", 2, "--input has no place here; fold into"),
    "--provider all": (exported, ("--provider", "all"), "x.pt2", 2, "--provider has no place here; fold into .onnx"),
    "--verify-data": (exported, ("--verify-data", "DATA"), "x.pt2", 2, "--verify-data has no place here; fold into"),
    "--metric without data": (exported, ("--metric", "top1"), "x.onnx", 2, "there is none; give --verify-data as well"),
    "--input of no name": (exported, ("--input", "x=a.npy"), "x.onnx", 2, "the model has no input 'x'; its inputs are"),
    "--reproduce without a check": (
        exported,
        ("--reproduce", "made", "--no-verify"),
        "x.onnx",
        2,
        "is for a check that fails, and the check is left out",
    ),
    "--reduce": (state, (*NET, *SHAPE, "--reduce"), "x.pt", 2, "--reduce has no place here; fold into .pt2 or .onnx"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_mistake_is_one_sentence_and_writes_nothing(run: Run, folder: Path, tmp_path: Path, name: str) -> None:
    make, options, output, code, expected = CALLS[name]
    path = make(folder)
    data = folder / "data.npy"
    np.save(data, np.zeros((2, 3, 9, 9), np.float32))
    outcome = run(path, "-o", tmp_path / output, *(data if word == "DATA" else word for word in options))
    assert (outcome.code, outcome.out) == (code, "")
    assert_one_sentence(outcome.err, expected)
    assert names(tmp_path) == ["in"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_asks_more_of_the_check_works_into_onnx(run: Run, folder: Path, tmp_path: Path, kind: str) -> None:
    make, options = KINDS[kind]
    np.save(tmp_path / "data.npy", np.random.default_rng(0).standard_normal((6, 3, 9, 9)).astype(np.float32))
    asked = ("--oracle", "--self-test", "--provider", "all", "--metric", "top1", "--verify-data", tmp_path / "data.npy")
    given = (*asked, "--bench", "--rounds", "1", "--reproduce", tmp_path / "made", "--report", tmp_path / "r.json")
    outcome = run(make(folder), "-o", tmp_path / "x.onnx", *options, *given)
    assert outcome.code == 0
    found = json.loads((tmp_path / "r.json").read_text())
    (check,) = found["verification"]["end_to_end"]
    assert check["agreement"]["samples"] == 6
    assert all(entry["oracle"] for entry in check["outputs"])
    assert all(entry["damaged"]["seen"] for entry in found["verification"]["local"])
    assert len(found["bench"]["measured"]) == 2
    assert found["before"]["flops"]["total"] > found["after"]["flops"]["total"] > 0
    assert found["before"]["file"] > 0 < found["after"]["file"]
    assert "made" not in names(tmp_path)


def test_a_failed_fold_into_onnx_is_reproduced(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = LinearParams.absorb_output
    monkeypatch.setattr(LinearParams, "absorb_output", lambda *a: LinearParams(right(*a).weight * 1.05, right(*a).bias))
    outcome = run(state(folder), "-o", tmp_path / "x.onnx", *NET, *SHAPE, "--reproduce", tmp_path / "made", "--quiet")
    assert (outcome.code, outcome.out, names(tmp_path)) == (1, "", ["in", "made"])
    assert "of both models, which differ, and their inputs" in outcome.err
    assert names(tmp_path / "made") == ["after.onnx", "before.onnx", "inputs.npz"]


@pytest.mark.parametrize("output", ["x.pt2", "x.pt"])
def test_a_report_of_a_fold_into_a_pytorch_file_is_written(run: Run, folder: Path, tmp_path: Path, output: str) -> None:
    reports = [tmp_path / f"r.{suffix}" for suffix in ("html", "md", "json")]
    given = [word for report in reports for word in ("--report", report)]
    assert run(state(folder), "-o", tmp_path / output, *NET, *SHAPE, *given).code == 0
    assert "Equivalent" in reports[0].read_text(encoding="utf-8")
    assert "Equivalent" in reports[1].read_text(encoding="utf-8")
    assert json.loads(reports[2].read_text())["after"]["parameters"] > 0


def test_a_hostile_pickle_does_not_run_its_code_without_trust(run: Run, folder: Path, tmp_path: Path) -> None:
    torch.save(Touch(tmp_path / "touched"), folder / "net.pt")
    for command in ((folder / "net.pt", "-o", tmp_path / "x.onnx"), ("inspect", folder / "net.pt")):
        outcome = run(*command, *NET, *SHAPE)
        assert (outcome.code, names(tmp_path)) == (2, ["in"])
        assert_one_sentence(outcome.err, "give --trust-pickle if you trust them")
    assert run(folder / "net.pt", "-o", tmp_path / "x.onnx", "--trust-pickle").code == 3
    assert names(tmp_path) == ["in", "touched"]


@pytest.mark.parametrize("output", ["x.onnx", "x.pt2", "x.pt", "x.safetensors"])
def test_what_is_kept_against_require_all_leaves_no_file(run: Run, folder: Path, tmp_path: Path, output: str) -> None:
    torch.save(nn.Sequential(nn.Sigmoid(), nn.BatchNorm2d(3), nn.Sigmoid()).eval(), folder / "stuck.pt")
    options = ("--trust-pickle", "--shape", "input=2x3x4x4", "--require-all", "--quiet")
    outcome = run(folder / "stuck.pt", "-o", tmp_path / output, *options)
    assert (outcome.code, outcome.out, names(tmp_path)) == (1, "", ["in"])
    assert "1 of 1 BatchNorm would be kept and --require-all was given" in outcome.err


@pytest.mark.parametrize("output", ["x.onnx", "x.pt2", "x.pt"])
def test_a_failed_check_writes_nothing(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    right = LinearParams.absorb_output

    def wrong(self: LinearParams, *arguments: Any) -> LinearParams:
        folded = right(self, *arguments)
        return LinearParams(folded.weight * 1.001, folded.bias)

    monkeypatch.setattr(LinearParams, "absorb_output", wrong)
    outcome = run(state(folder), "-o", tmp_path / output, *NET, *SHAPE, "--quiet")
    assert (outcome.code, outcome.out, names(tmp_path)) == (1, "", ["in"])
    assert "differs" in outcome.err


def test_what_the_exporter_changes_is_found(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bnfold.frontends import torch_to_onnx  # noqa: PLC0415

    right = torch_to_onnx.program_to_onnx

    def wrong(*arguments: Any) -> Any:
        model = right(*arguments)
        bias = model.graph.initializers["head.bias"]
        bias.const_value = ir.tensor(bias.const_value.numpy() + np.float32(0.1), name="head.bias")
        return model

    monkeypatch.setattr(torch_to_onnx, "program_to_onnx", wrong)
    path = exported(folder)
    outcome = run(path, "-o", tmp_path / "x.onnx", "--quiet")
    assert (outcome.code, names(tmp_path)) == (1, ["in"])
    assert_one_sentence(outcome.err, "torch.onnx.export changed what the model computes")
    assert run(path, "-o", tmp_path / "x.onnx", "--no-verify").code == 0


@pytest.mark.parametrize("output", ["x.pt2", "x.pt", "x.safetensors", "x.onnx"])
def test_a_full_disk_leaves_what_was_there(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    (tmp_path / output).write_bytes(b"before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bnfold.frontends.onnx_files._settle", full)
    outcome = run(state(folder), "-o", tmp_path / output, *NET, *SHAPE, "--quiet")
    assert outcome.code == 3
    assert_one_sentence(outcome.err, "the disk is full")
    assert (tmp_path / output).read_bytes() == b"before"
    assert names(tmp_path) == ["in", output]


def test_the_input_is_never_overwritten(run: Run, folder: Path) -> None:
    path = state(folder)
    before = path.read_bytes()
    outcome = run(path, "-o", path, *NET, *SHAPE)
    assert (outcome.code, path.read_bytes()) == (2, before)
    assert_one_sentence(outcome.err, "the output is the input")


@pytest.mark.parametrize(
    ("package", "output", "expected"),
    [("torch", "x.onnx", "bnfold[torch]"), ("safetensors", "x.safetensors", "bnfold[safetensors]"),
     ("onnxscript", "x.onnx", "bnfold[torch]")],
)  # fmt: skip
def test_a_missing_package_is_named(  # noqa: PLR0917
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, output: str, expected: str
) -> None:
    path = state(folder)
    monkeypatch.setitem(sys.modules, package, None)
    outcome = run(path, "-o", tmp_path / output, *NET, *SHAPE, "--quiet")
    assert (outcome.code, names(tmp_path)) == (3, ["in"])
    assert_one_sentence(outcome.err, expected)


def test_other_commands_say_what_kind_of_file_it_is(run: Run, folder: Path, tmp_path: Path) -> None:
    outcome = run("unfold", state(folder), "-o", tmp_path / "x.onnx")
    assert outcome.code == 3
    assert_one_sentence(outcome.err, "this is a file of torch.save, not an ONNX model")


def test_the_exported_model_has_its_batchnorms_and_names_of_modules(folder: Path) -> None:
    from bnfold.torch_files import open_torch  # noqa: PLC0415

    shapes = {"image": (2, 3, 9, 9)}
    for path, factory in ((state(folder), models.net), (exported(folder), None), (script(folder), None)):
        model = open_torch(path, model=factory).to_onnx(shapes, verify=True)
        proto = onnx.ModelProto.FromString(ir.to_proto(model).SerializeToString())
        kinds = [node.op_type for node in proto.graph.node]
        assert kinds.count("BatchNormalization") == 2
        assert kinds.count("Conv") == 1
        assert [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim][1] in (0, 3)
        assert model.graph.inputs[0].name == "image"
        assert model.graph.name == path.name
        assert str(Path(__file__).parent) not in str(proto)
    assert api.inspect(model).decisions
