"""CUDA: TF32 is reported apart, and where there is no CUDA every command says so; on a GPU, what a GPU does.

Where no GPU is, made-up sessions stand in for CUDA's: what is tested there is bnfold's own logic, not a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from cli_run import MODEL, Run
from onnx_models import PARAMETERS, STATS, parse
from spoilt_sessions import Change, Setting, doubled, opener
from test_report_schema import schema

import bnfold
from bnfold.checking import Check
from bnfold.comparison import TOLERANCE
from bnfold.deployed import Tf32
from bnfold.deploying import tf32_check
from bnfold.frontends.onnx_files import in_memory
from bnfold.quickcheck import QuickCheck, quick_check
from bnfold.report.json_report import verification_json
from bnfold.rerunning import prepare_rerun
from bnfold.wording_deployed import setting_lines, tf32_line

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
on_gpu = pytest.mark.skipif(not HAS_CUDA, reason="this onnxruntime has no CUDA")

NET = f"""(KIND[n, 3, h, w] x) => (KIND[n, 4, p, q] y) <KIND[4, 3, 3, 3] k, {PARAMETERS.replace("float[", "KIND[")}> {{
    c = Conv (x, k) b = BatchNormalization (c, {STATS}) y = Relu (b) }}"""


def pair(kind: str = "float") -> tuple[onnx.ModelProto, onnx.ModelProto]:
    before = ir.from_proto(parse(NET.replace("KIND", kind), opset=22 if kind == "bfloat16" else 17))
    return in_memory(before), in_memory(bnfold.fold(before, verify=False).model)


def under_tf32(change: Callable[[Setting], Change | str | None]) -> Tf32:
    before, after = pair()
    check = quick_check(before, after)
    rerun = prepare_rerun(check, before, after, seed=0, data=None, fixed={}, opener=opener(change))
    return tf32_check(rerun)


def eleven_bits(_name: str, values: Any) -> Any:
    return values.astype(np.float16).astype(np.float32)


def test_what_tf32_does_to_each_model_is_told_apart() -> None:
    found = under_tf32(lambda setting: eleven_bits if setting.tf32 and setting.folded else None)
    assert found.original.worst is not None
    assert found.folded.worst is not None
    assert found.original.worst.error == 0
    assert 1e-5 < found.folded.worst.error < 2.0**-10
    assert not found.folded.differs  # eleven bits explain it
    assert tf32_line(found).startswith(
        "TF32, which CUDA computes in by default, moves the original by 0 of its scale, "
    )
    assert tf32_line(found).endswith("; everything else here is without it")


def test_tf32_is_compared_without_the_runtimes_own_optimiser() -> None:
    found = under_tf32(lambda setting: doubled if setting.optimised else None)
    assert not found.original.differs
    assert not found.folded.differs


def test_a_model_that_cannot_be_run_with_tf32_is_said_to_be_so() -> None:
    found = under_tf32(lambda setting: "no memory" if setting.tf32 and setting.folded else None)
    assert tf32_line(found) == "the folded model cannot be run with TF32: no memory"


def checked(monkeypatch: pytest.MonkeyPatch, provider: str, *, deployed: bool = True) -> QuickCheck:
    """The check of right folds, where TF32 is far off, on sessions that say they are on a provider."""

    def prepared(*given: Any, **named: Any) -> Any:
        return prepare_rerun(*given, **named, opener=opener(lambda setting: doubled if setting.tf32 else None))

    monkeypatch.setattr("bnfold.checking.prepare_rerun", prepared)
    monkeypatch.setattr(
        "bnfold.checking.quick_check",
        lambda *given, provider, **named: replace(quick_check(*given, **named), provider=provider),
    )
    before, after = (ir.from_proto(model) for model in pair())
    return Check((provider,), None, 0, None, None, deployed=deployed).quick(before, after)[0]


@pytest.mark.parametrize("deployed", [True, False])
def test_tf32_is_run_on_cuda_and_is_no_part_of_the_verdict(monkeypatch: pytest.MonkeyPatch, deployed: bool) -> None:
    check = checked(monkeypatch, "cuda", deployed=deployed)
    assert check.tf32 is not None
    assert check.tf32.original.differs
    assert check.tf32.folded.differs
    verification = bnfold.Verification((), (check,))
    assert (verification.passed, verification.failed) == (True, False)
    assert [label for label, _ in setting_lines(check)] == ["deployed", "TF32"][1 - deployed :]


def test_there_is_no_tf32_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked(monkeypatch, "cpu").tf32 is None


def test_tf32_has_a_key_in_the_json_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = json.loads(verification_json("a.onnx", "b.onnx", bnfold.Verification((), (checked(monkeypatch, "cuda"),))))
    schema("verify-1").validate(tree)
    shown = tree["verification"]["end_to_end"][0]["tf32"]
    assert [entry["name"] for entry in shown["folded"]["outputs"]] == ["y"]
    assert shown["original"]["outputs"][0]["error"] == pytest.approx(1.0)


@pytest.mark.parametrize(("kind", "dtype"), [("float16", "float16"), ("float", "float32")])
def test_every_precision_is_compared_by_a_scale_of_its_own(kind: str, dtype: str) -> None:
    check = quick_check(*pair(kind))
    assert check.passed
    assert {entry.tolerance for entry in check.comparisons} == {TOLERANCE[dtype]}


CALLS = {
    "fold": (MODEL, "-o", "OUT"),
    "fold with data": (MODEL, "-o", "OUT", "--calibrate", "DATA"),
    "verify": ("verify", MODEL, MODEL),
    "bench": ("bench", MODEL, MODEL),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_cuda_asked_for_on_a_machine_without_it_is_one_sentence_and_exit_code_3(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: tuple[object, ...]
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    np.save(tmp_path / "data.npy", np.zeros((64, 1, 8, 8), np.float32))
    names = {"OUT": tmp_path / "out.onnx", "DATA": tmp_path / "data.npy"}
    for providers in (("cuda",), ("cpu", "cuda")):
        options = [word for provider in providers for word in ("--provider", provider)]
        found = run(*(names.get(str(word), word) for word in call), *options, "--quiet")
        assert (found.code, found.out, names["OUT"].exists()) == (3, "", False)
        (line,) = found.err.strip().splitlines()
        assert line.startswith("bnfold: this onnxruntime has no CUDAExecutionProvider; pip install")


def test_cuda_is_refused_before_any_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    told: list[str] = []
    data = [np.ones((64, 1, 8, 8), np.float32)]
    with pytest.raises(bnfold.ProviderError, match="has no CUDAExecutionProvider"):
        bnfold.fold(MODEL, calibrate=data, providers=("cpu", "cuda"), progress=told.append)
    with pytest.raises(bnfold.ProviderError, match="has no CUDAExecutionProvider"):
        bnfold.verify(MODEL, MODEL, providers=("cpu", "cuda"), progress=told.append)
    assert told == []


def test_recalibration_takes_no_provider_so_that_none_is_ignored(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", np.zeros((64, 1, 8, 8), np.float32))
    call = ("recalibrate", MODEL, "--data", tmp_path / "data.npy", "-o", tmp_path / "out.onnx")
    found = run(*call, "--provider", "cuda")
    assert (found.code, (tmp_path / "out.onnx").exists()) == (2, False)
    assert "No such option" in found.err


def test_all_providers_are_named_where_they_were_run(run: Run, tmp_path: Path) -> None:
    found = run(MODEL, "-o", tmp_path / "fused.onnx", "--provider", "all")
    assert found.code == 0
    assert "verified on CPUExecutionProvider" in found.out
    assert ("CUDAExecutionProvider" in found.out) == HAS_CUDA


@on_gpu
@pytest.mark.parametrize("kind", ["float", "float16", "bfloat16"])
def test_a_fold_is_verified_on_the_gpu_in_its_own_precision_with_tf32_apart(kind: str) -> None:
    before = ir.from_proto(parse(NET.replace("KIND", kind), opset=22 if kind == "bfloat16" else 17))
    found = bnfold.fold(before, providers=("cuda",)).report.verification
    assert found is not None
    assert found.passed
    (check,) = found.quick
    assert check.provider == "cuda"
    assert check.tf32 is not None
    assert check.deployed is not None
    assert {entry.tolerance for entry in check.comparisons} == {TOLERANCE["float32" if kind == "float" else kind]}
    assert "computed in float32 arithmetic" not in " ".join(check.notes)


@on_gpu
def test_a_wrong_fold_is_caught_on_the_gpu() -> None:
    before, after = pair()
    tensor = next(t for t in after.graph.initializer if len(t.dims) == 4)
    wrong = np.array(onnx.numpy_helper.to_array(tensor))
    wrong[0] *= 1.01
    tensor.CopyFrom(onnx.numpy_helper.from_array(wrong, tensor.name))
    assert quick_check(before, after, provider="cuda").failed
