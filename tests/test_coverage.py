"""`benchmarks/coverage.py` end to end on two small architectures; nothing wrong or missing passes for right there."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks import coverage, coverage_run, coverage_table
from benchmarks.coverage_build import Facts, Truth
from benchmarks.coverage_judge import Outcome, judge, judge_files
from benchmarks.coverage_nets import NETS, PROMISED, Net
from benchmarks.coverage_run import Examined, Limits, examine, process, run_tool

BY_NAME = {net.name: net for net in NETS}
UNET = BY_NAME["unet"]
TOOLS = ["bnfold", "bnfold --reduce", "onnxruntime"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("coverage")


@pytest.fixture(scope="module")
def unet(cache: Path) -> Examined:
    return examine(UNET, cache, Limits(), TOOLS)


@pytest.fixture(scope="module")
def folder(unet: Examined, cache: Path) -> Path:
    (found,) = cache.glob("unet-*")
    return found


def parts(folder: Path) -> tuple[onnx.ModelProto, Truth, Facts]:
    facts = Facts(**json.loads((folder / "facts.json").read_text(encoding="utf-8")))
    return onnx.load(folder / "original.onnx"), Truth.load(folder / "truth.npz"), facts


def scaled(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """The model with every element of its last weight multiplied."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    name = changed.graph.node[-1].input[1]
    held = next(tensor for tensor in changed.graph.initializer if tensor.name == name)
    array = onnx.numpy_helper.to_array(held) * np.float32(factor)
    held.CopyFrom(onnx.numpy_helper.from_array(array, name))
    return changed


def test_a_small_architecture_is_judged_right_end_to_end(unet: Examined) -> None:
    assert unet.facts is not None
    assert (unet.facts.batchnorms, unet.facts.state) == (12, "alive")
    assert {tool: (o.kind, o.batchnorms) for tool, o in unet.outcomes.items()} == dict.fromkeys(TOOLS, ("right", 0))
    assert unet.reports["bnfold"]["summary"] == {"folded": 12, "reduced": 0, "kept": 0}


def test_the_command_writes_a_page_and_everything_for_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = {"--markdown": tmp_path / "page.md", "--json": tmp_path / "all.json", "--cache": tmp_path / "cache"}
    told = [text for option, path in pages.items() for text in (option, str(path))]
    monkeypatch.setattr(sys, "argv", ["coverage", "--only", "^lcnet_050$", "--tools", "^bnfold$", *told])
    coverage.main()
    (row,) = json.loads(pages["--json"].read_text(encoding="utf-8"))
    outcome = row["outcomes"]["bnfold"]
    assert (outcome["kind"], outcome["batchnorms"], row["facts"]["batchnorms"]) == ("right", 0, 27)
    assert f"| lcnet_050 (timm) | alive | 27 / 98 | 0 / {outcome['nodes']} (" in pages["--markdown"].read_text("utf-8")
    assert capsys.readouterr().err.startswith("[1/1] lcnet_050: bnfold=0 / ")


def test_a_second_run_reads_what_the_first_found_out(
    unet: Examined, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(module: object, limits: Limits) -> None:
        raise AssertionError(f"run again: {module}")

    monkeypatch.setattr(coverage_run, "process", refuse)
    assert examine(UNET, cache, Limits(), TOOLS) == unet


def test_other_versions_or_sources_are_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    key = coverage_run._key(UNET)
    assert coverage_run._key(replace(UNET, size=96)) != key
    monkeypatch.setattr(coverage_run, "installed", lambda package: "0.0")
    assert coverage_run._key(UNET) != key


def test_the_original_is_as_accurate_as_itself(folder: Path) -> None:
    original, truth, facts = parts(folder)
    outcome = judge(original, original, truth, facts)
    assert (outcome.kind, outcome.batchnorms, outcome.nodes) == ("right", facts.batchnorms, facts.nodes)
    assert outcome.ratio is not None
    assert 0 < outcome.ratio < 1
    assert outcome.error == facts.error


@pytest.mark.parametrize(("factor", "kind"), [(1.1, "WRONG"), (1 + 2e-4, "INACCURATE"), (np.nan, "WRONG")])
def test_a_wrong_weight_is_never_right(folder: Path, factor: float, kind: str) -> None:
    original, truth, facts = parts(folder)
    outcome = judge(original, scaled(original, factor), truth, facts)
    assert outcome.kind == kind
    assert outcome.is_bad
    assert f"**{kind}**" in coverage_table.cell(outcome)


def test_an_output_of_another_name_is_invalid(folder: Path) -> None:
    original, truth, facts = parts(folder)
    renamed, _, _ = parts(folder)
    renamed.graph.output[0].name = renamed.graph.node[-1].output[0] = "other"
    outcome = judge(original, renamed, truth, facts)
    assert (outcome.kind, coverage_table.cell(outcome)) == ("INVALID", "**INVALID** 12 / 41")


def test_a_model_that_onnxruntime_refuses_is_invalid(folder: Path) -> None:
    original, truth, facts = parts(folder)
    unknown, _, _ = parts(folder)
    unknown.graph.node[-1].domain = "nobody"
    unknown.opset_import.append(onnx.helper.make_opsetid("nobody", 1))
    assert judge(original, unknown, truth, facts).kind == "INVALID"


def test_a_file_that_is_no_model_is_invalid(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x07not a model")
    assert judge_files(folder, broken).kind == "INVALID"


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        (Facts(1, 1, change=1e-3, moved=1e-6, error=1e-6), "dead"),
        (Facts(1, 1, change=1.0, moved=1e-3, error=1e-6), "chaotic"),
        (Facts(1, 1, change=1.0, moved=1e-6, error=1e-2), "no truth"),
        (Facts(1, 1, change=float("nan"), moved=1e-6, error=1e-6), "dead"),
        (Facts(1, 1, change=1.0, moved=float("nan"), error=1e-6), "chaotic"),
        (Facts(1, 1, change=1.0, moved=1e-6, error=float("nan")), "no truth"),
    ],
)
def test_outputs_that_prove_nothing_are_not_called_right(folder: Path, facts: Facts, state: str) -> None:
    original, truth, _ = parts(folder)
    assert facts.state == state
    outcome = judge(original, original, truth, facts)
    assert (outcome.kind, outcome.ratio) == ("UNPROVEN", None)
    assert state in outcome.detail


def test_what_a_tool_raises_is_shown(folder: Path, tmp_path: Path) -> None:
    nothing = tmp_path / "original.onnx"
    nothing.write_bytes(b"\x07not a model")
    outcome = run_tool("bnfold", tmp_path, tmp_path / "made.onnx", Limits())
    assert outcome.kind == "ERROR"
    assert "ModelError" in outcome.detail


def test_a_tool_that_dies_is_a_crash_and_its_stale_result_is_not_judged(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = tmp_path / "made.onnx"
    stale.write_bytes((folder / "original.onnx").read_bytes())
    monkeypatch.setattr(coverage_run, "process", lambda module, limits: ("CRASH", 1.0, "Aborted"))
    assert run_tool("onnxsim", folder, stale, Limits()).kind == "CRASH"


@pytest.mark.parametrize(
    ("script", "limits", "kind"),
    [
        ("import os; os.abort()", Limits(), "CRASH"),
        ("import time; time.sleep(60)", Limits(seconds=1.0), "TIMEOUT"),
        ("bytearray(2**32)", Limits(gibibytes=2), "CRASH"),
        ("pass", Limits(), "done"),
    ],
    ids=["aborts", "hangs", "takes too much memory", "ends well"],
)
def test_a_process_is_held_to_its_limits(script: str, limits: Limits, kind: str) -> None:
    assert process(["timeit", "--number=1", "--repeat=1", script], limits)[0] == kind


def test_a_package_that_is_not_installed_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage_run, "find_spec", lambda package: None)
    row = examine(BY_NAME["yolov8n"], tmp_path, Limits())
    assert "**ultralytics is not installed**" in coverage_table.rows([row])[1]


def test_an_architecture_that_cannot_be_built_is_shown(tmp_path: Path) -> None:
    row = examine(Net("no_such_net", "timm"), tmp_path, Limits())
    assert row.trouble == "not built: CRASH, StopIteration"
    assert f"**{row.trouble}**" in coverage_table.rows([row])[1]


def test_a_tool_that_is_not_installed_is_shown(unet: Examined) -> None:
    heading, row = coverage_table.rows([unet])
    assert row[heading.index("onnxslim")] == "not installed"


def test_the_catalogue_covers_three_packages_and_what_is_promised() -> None:
    counts = Counter(net.source for net in NETS)
    assert len(NETS) >= 40
    assert len(BY_NAME) == len(NETS)
    assert set(PROMISED) <= set(BY_NAME)
    assert all(counts[source] >= 4 for source in ("timm", "torchvision", "ultralytics"))


def row_with(**outcomes: Outcome) -> Examined:
    return Examined(BY_NAME["dpn68"], Facts(72, 1062, 1.0, 1e-6, 1e-6), outcomes=outcomes)


@pytest.mark.parametrize(
    ("ours", "peer", "says"),
    [
        (Outcome("right", 26, 9, 1.0), Outcome("right", 27, 9, 1.0), "leaves 26, fewer than the best peer's 27"),
        (Outcome("right", 27, 9, 1.0), Outcome("right", 27, 9, 1.0), "leaves 27, NOT fewer than the best peer's 27"),
        (Outcome("right", 27, 9, 1.0), Outcome("WRONG", 0, 9, 1.0), ""),
        (Outcome("WRONG", 0, 9, 1.0), Outcome("right", 27, 9, 1.0), "bnfold is WRONG"),
    ],
    ids=["fewer", "equal", "a wrong peer does not count", "we are wrong"],
)
def test_the_promise_is_held_against_the_peers_that_are_right(ours: Outcome, peer: Outcome, says: str) -> None:
    lines = [line for line in coverage_table.summary([row_with(bnfold=ours, onnxsim=peer)]) if line.startswith("dpn68")]
    assert any(says in line for line in lines) if says else not lines


def test_everything_bad_has_its_line() -> None:
    lines = coverage_table.bad([row_with(bnfold=Outcome("right", 0, 9, 1.0), onnxsim=Outcome("WRONG", 0, 9, 1e5, 0.5))])
    assert lines == ["onnxsim, dpn68: WRONG, error 0.5 of the output's scale; "]


def kept(name: str, clauses: tuple[str, ...], remedy: str = "", *, is_batchnorm: bool = True) -> dict[str, Any]:
    reasons = [{"clause": clause, "where": "there", "detail": ""} for clause in clauses]
    subject = {"name": name, "is_batchnorm": is_batchnorm}
    return {"kind": "kept", "subject": subject, "reasons": reasons, "remedy": remedy}


def test_batchnorms_that_stay_are_counted_by_reason_with_their_remedy() -> None:
    decisions = [kept("a", ("p", "q"), "r"), kept("b", ("p",)), kept("c", ("p", "q"), "r")]
    decisions += [kept("d", ("p",), is_batchnorm=False), {"kind": "folded"}]
    found = coverage_table.stays({"decisions": decisions})
    assert [(stay.reasons, stay.remedy, stay.count) for stay in found] == [(("p", "q"), "r", 2), (("p",), "", 1)]
    row = replace(row_with(), reports={"bnfold": {"decisions": decisions}})
    assert "| dpn68 | 2 | p; q | r | a (stopped at there, there) |" in coverage_table.reasons([row], "bnfold")
