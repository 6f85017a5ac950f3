"""`bnfold verify` with PyTorch files: which pairs, what is equal, what differs, and each mistake as one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch_file_models as models
from cli_run import MODEL, Run, assert_one_sentence, names
from test_cli_torch import KINDS, NET, SHAPE, Maker, exported, folder, pickled, safe, script, state

__all__ = ["folder"]

PAIRS = {
    "state dict, folded ONNX": ("state dict", "x.onnx"),
    "state dict, folded state dict": ("state dict", "x.pt"),
    "safetensors, folded graph": ("safetensors", "x.pt2"),
    "checkpoint, folded safetensors": ("checkpoint", "x.safetensors"),
    "torch.export, folded graph": ("torch.export", "x.pt2"),
    "TorchScript, folded ONNX": ("TorchScript", "x.onnx"),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_what_was_folded_is_equivalent(run: Run, folder: Path, tmp_path: Path, pair: str) -> None:
    kind, output = PAIRS[pair]
    make, options = KINDS[kind]
    path = make(folder)
    assert run(path, "-o", tmp_path / output, *options).code == 0
    both = (*options, *(NET if output == "x.safetensors" else ()))
    outcome = run("verify", path, tmp_path / output, *both)
    where = "CPUExecutionProvider" if output == "x.onnx" else "torch"
    assert (outcome.code, outcome.out) == (0, f"{tmp_path / output}: equivalent to {path} on {where}\n")
    assert "end to end" in outcome.err
    assert all(len(line) <= 80 for line in outcome.err.splitlines())


@pytest.mark.parametrize("output", ["x.onnx", "x.pt", "x.pt2"])
def test_another_weight_is_a_difference(run: Run, folder: Path, tmp_path: Path, output: str) -> None:
    assert run(state(folder), "-o", tmp_path / output, *NET, *SHAPE).code == 0
    net = models.live()
    with torch.no_grad():
        net.conv.weight[:, 0] *= 1.01
    torch.save(net.state_dict(), folder / "net.pt")
    report = tmp_path / "report.json"
    outcome = run("verify", folder / "net.pt", tmp_path / output, *NET, *SHAPE, "--json", "--report", report)
    found = json.loads(outcome.out)
    assert (outcome.code, found["before"], found["after"]) == (1, "net.pt", output)
    assert json.loads(report.read_text()) == found
    assert not found["verification"]["passed"]


def test_what_proves_nothing_is_no_pass(run: Run, folder: Path) -> None:
    net = models.live()
    torch.nn.init.zeros_(net.head.weight)
    torch.save(net.state_dict(), folder / "dead.pt")
    outcome = run("verify", folder / "dead.pt", folder / "dead.pt", *NET, *SHAPE, "--quiet")
    assert outcome.code == 3
    assert_one_sentence(outcome.err, "nothing is proven")


CALLS: dict[str, tuple[Maker, Maker, tuple[str, ...], int, str]] = {
    "ONNX first": (lambda _: MODEL, state, (*NET, *SHAPE), 2, "a PyTorch file comes first"),
    "no --model": (state, exported, SHAPE, 2, "give --model package.module:factory"),
    "a --model for nothing": (exported, exported, (*NET, *SHAPE), 2, "neither of the two needs --model"),
    "a --model for ONNX": (lambda _: MODEL, lambda _: MODEL, NET, 2, "an ONNX model, which needs no --model"),
    "no --shape": (state, exported, NET, 2, "write it like --shape image="),
    "no trust": (pickled, pickled, SHAPE, 2, "runs code of whoever made it"),
    "data": (exported, exported, ("--verify-data", "x.npy"), 2, "--verify-data has no place here"),
    "a place for operators": (exported, lambda _: MODEL, ("--reproduce", "x"), 2, "--reproduce has no place here"),
    "the oracle": (exported, exported, ("--oracle",), 2, "--oracle has no place here"),
    "decisions": (exported, lambda _: MODEL, ("--metric", "top1"), 2, "--metric has no place here"),
    "the output for decisions": (exported, exported, ("--metric-output", "y"), 2, "--metric-output has no place here"),
    "an input": (exported, exported, ("--input", "image=x.npy"), 2, "--input has no place here"),
    "all providers for a module": (exported, exported, ("--provider", "all"), 2, "--provider has no place here"),
    "a provider for a module": (exported, exported, ("--provider", "cpu"), 2, "--provider has no place here"),
    "a deployed level of a module": (exported, exported, ("--no-deployed",), 2, "--no-deployed has no place here"),
    "other sizes": (state, state, (*NET, "--shape", "image=2x4x9x9"), 3, "give other sizes with --shape"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_mistake_is_one_sentence(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    first, second, options, code, said = CALLS[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.npy").touch()
    outcome = run("verify", first(folder), second(folder), *options, "--quiet")
    assert (outcome.code, outcome.out, names(tmp_path)) == (code, "", ["in", "x.npy"])
    assert_one_sentence(outcome.err, said)


def test_a_provider_is_for_the_onnx_model(run: Run, folder: Path, tmp_path: Path) -> None:
    assert run(safe(folder), "-o", tmp_path / "x.onnx", *NET, *SHAPE).code == 0
    call = ("verify", folder / "net.safetensors", tmp_path / "x.onnx", *NET, *SHAPE)
    assert run(*call, "--provider", "cpu").code == 0


def test_an_onnx_model_is_run_as_deployed_unless_told_not_to(run: Run, folder: Path, tmp_path: Path) -> None:
    assert run(safe(folder), "-o", tmp_path / "x.onnx", *NET, *SHAPE).code == 0
    call = ("verify", folder / "net.safetensors", tmp_path / "x.onnx", *NET, *SHAPE)
    assert "at ENABLE_ALL the optimiser moves the model by" in " ".join(run(*call).err.split())
    found = json.loads(run(*call, "--json").out)["verification"]["end_to_end"][0]["deployed"]
    assert [entry["name"][:8] for entry in found["folded"]["outputs"]] == ["output 0"]
    assert found["original"]["outputs"] == found["between"]["outputs"] == []
    left_out = json.loads(run(*call, "--json", "--no-deployed").out)["verification"]["end_to_end"][0]
    assert left_out["deployed"] is None


def test_one_of_two_files_may_need_the_model(run: Run, folder: Path) -> None:
    assert run("verify", exported(folder), state(folder), *NET).code == 0
    assert run("verify", state(folder), pickled(folder), *NET, *SHAPE, "--trust-pickle").code == 0
    assert run("verify", script(folder), state(folder), *NET, *SHAPE).code == 0
