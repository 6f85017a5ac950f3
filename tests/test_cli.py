"""The command line, run for real on the digit classifier and on small models."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
from cli_run import DEAD, MODEL, ROOT, STUCK, Run, batchnorms, names, written

import bnfold
from bnfold.cli_commands import commands


@pytest.mark.parametrize("command", [(), ("fold",)], ids=["default", "fold"])
def test_a_fold_writes_the_model_and_one_line_on_stdout(run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    target = tmp_path / "fused.onnx"
    outcome = run(*command, MODEL, "-o", target)
    assert outcome.code == 0
    assert outcome.out == f"{target}: 11 of 11 BatchNorms folded, verified on CPUExecutionProvider\n"
    assert (batchnorms(MODEL), batchnorms(target)) == (11, 0)
    assert names(tmp_path) == ["fused.onnx"]


def test_the_summary_on_stderr_says_what_was_folded_and_how_it_was_checked(run: Run, tmp_path: Path) -> None:
    shown = run(MODEL, "-o", tmp_path / "fused.onnx").err
    for expected in ("digits-darknet.onnx", "11 folded into producers", "40 -> 29", "11 regions in float64"):
        assert expected in shown
    assert "CPUExecutionProvider: 1 output" in shown
    assert "images 2x1x8x8" in shown


def test_options_may_come_before_the_model(run: Run, tmp_path: Path) -> None:
    assert run("-o", tmp_path / "fused.onnx", "--quiet", MODEL).code == 0
    assert (tmp_path / "fused.onnx").exists()


def test_a_model_called_like_a_command_is_reachable(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(MODEL, tmp_path / "inspect")
    monkeypatch.chdir(tmp_path)
    assert run("./inspect", "-o", "fused.onnx").code == 0
    assert run("inspect", "inspect").out == "inspect: 11 of 11 BatchNorms would fold\n"


def test_inspect_shows_one_row_for_each_batchnorm_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    shutil.copy(MODEL, tmp_path / "net.onnx")
    outcome = run("inspect", tmp_path / "net.onnx")
    assert outcome.code == 0
    assert outcome.out == f"{tmp_path / 'net.onnx'}: 11 of 11 BatchNorms would fold\n"
    assert outcome.err.count("into producer ") == 11
    assert names(tmp_path) == ["net.onnx"]


def test_a_kept_batchnorm_is_named_with_both_reasons_and_is_no_failure(run: Run, tmp_path: Path) -> None:
    model, target = written(tmp_path, STUCK), tmp_path / "fused.onnx"
    outcome = run(model, "-o", target)
    shown = " ".join(outcome.err.split())
    assert outcome.code == 0
    assert outcome.out.startswith(f"{target}: 0 of 1 BatchNorm folded, ")
    assert "stuck_bn" in shown
    assert "1 kept" in shown
    assert "not into producers" in shown
    assert "not into consumers" in shown
    assert "input of the model" in shown.replace("│", "")


def test_batchnorms_kept_for_the_same_reasons_are_told_together(run: Run, tmp_path: Path) -> None:
    pairs = "".join(
        f"[bn{i}] z{i} = BatchNormalization (y{i}, gamma, beta, mean, var)\n[gate{i}] y{i + 1} = Sigmoid (z{i})\n"
        for i in range(5)
    )
    end = "[gate] y = Sigmoid (z)"
    model = written(tmp_path, STUCK.replace(end, f"[gate] y0 = Sigmoid (z)\n{pairs}y = Identity (y5)"))
    shown = run(model, "-o", tmp_path / "fused.onnx", "--no-verify").err
    assert re.findall(r"kept (\d)", shown) == ["1", "5"]
    assert re.findall(r"^ +- (\w+)", shown, flags=re.MULTILINE) == ["stuck_bn", "bn0", "bn1", "bn2", "2"]
    assert run("inspect", model).err.count("kept: not into producers") == 6


@pytest.mark.parametrize(("form", "left"), [("affine", ["Mul", "Add"]), ("depthwise", ["Conv"])])
def test_with_a_leftover_no_batchnorm_is_left_and_both_commands_say_why(
    run: Run, tmp_path: Path, form: str, left: list[str]
) -> None:
    model, target = written(tmp_path, STUCK), tmp_path / "fused.onnx"
    outcome = run(model, "-o", target, "--leftover", form, "--require-all")
    assert outcome.code == 0
    assert outcome.out == f"{target}: 0 of 1 BatchNorm folded, 1 reduced, verified on CPUExecutionProvider\n"
    assert [node.op_type for node in onnx.load(target).graph.node] == [*left, "Sigmoid"]
    inspected = run("inspect", model, "--leftover", form)
    assert inspected.out == f"{model}: 0 of 1 BatchNorm would fold, 1 reduced\n"
    for shown in (outcome.err, inspected.err):
        assert f"becomes {'-'.join(left)}: not into producers: nothing constant" in " ".join(shown.split())
    (decision,) = json.loads(run("inspect", model, "--leftover", form, "--json").out)["decisions"]
    assert (decision["kind"], decision["to"], decision["direction"]) == ("reduced", "-".join(left), None)
    assert [reason["reason"] for reason in decision["reasons"]] == ["READS_MODEL_INPUT", "OPERATOR_IS_NOT_LINEAR"]


def test_a_batchnorm_that_cannot_be_rewritten_says_so_beside_both_ways(run: Run, tmp_path: Path) -> None:
    large = STUCK.replace("gamma = {1.5,", "gamma = {3e38,").replace("var = {2.0,", "var = {0.0,")
    outcome = run("inspect", written(tmp_path, large), "--leftover", "affine")
    assert outcome.out.endswith(": 0 of 1 BatchNorm would fold\n")
    assert "not rewritten: a folded number would not fit the stored dtype" in " ".join(outcome.err.split())


def test_keep_and_only_select_by_name(run: Run, tmp_path: Path) -> None:
    kept = run(MODEL, "-o", tmp_path / "kept.onnx", "--keep", "^/stage2/", "--no-verify")
    only = run(MODEL, "-o", tmp_path / "only.onnx", "--only", "^/stage2/", "--no-verify")
    assert (batchnorms(tmp_path / "kept.onnx"), batchnorms(tmp_path / "only.onnx")) == (5, 6)
    assert "5 kept as asked" in kept.err
    assert only.out.startswith(f"{tmp_path / 'only.onnx'}: 5 of 11 BatchNorms folded")


def test_without_a_check_the_result_line_says_so(run: Run, tmp_path: Path) -> None:
    outcome = run(MODEL, "-o", tmp_path / "fused.onnx", "--no-verify")
    assert outcome.out.endswith(": 11 of 11 BatchNorms folded, not verified\n")
    assert "end to end" not in outcome.err


def test_shape_and_seed_reach_the_check(run: Run, tmp_path: Path) -> None:
    outcome = run(MODEL, "-o", tmp_path / "fused.onnx", "--shape", "images=5x1x8x8", "--seed", "3")
    assert "images 5x1x8x8" in " ".join(outcome.err.split())


def test_verify_accepts_a_right_fold(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "fused.onnx"
    run(MODEL, "-o", target)
    outcome = run("verify", MODEL, target)
    assert (outcome.code, outcome.out) == (0, f"{target}: equivalent to {MODEL} on CPUExecutionProvider\n")


def test_verify_names_the_first_tensor_that_differs(run: Run, tmp_path: Path) -> None:
    changed = onnx.load(MODEL)
    weight = next(w for w in changed.graph.initializer if w.name == "stage1.down.conv.weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
    onnx.save(changed, tmp_path / "changed.onnx")
    outcome = run("verify", MODEL, tmp_path / "changed.onnx")
    assert outcome.code == 1
    assert "differs from" in outcome.out
    assert "/stage1/down/conv/Conv_output_0" in outcome.out


def test_a_check_that_proves_nothing_is_neither_a_pass_nor_a_difference(run: Run, tmp_path: Path) -> None:
    model = written(tmp_path, DEAD)
    outcome = run("verify", model, model)
    assert (outcome.code, outcome.out) == (3, "")
    assert "nothing is proven" in outcome.err


# JSON and quiet


def test_json_is_all_of_stdout_and_there_are_no_tables(run: Run, tmp_path: Path) -> None:
    outcome = run(MODEL, "-o", tmp_path / "fused.onnx", "--json")
    report = json.loads(outcome.out)
    assert (outcome.code, outcome.err) == (0, "")
    assert report["summary"] == {"folded": 11, "reduced": 0, "kept": 0}
    assert report["verification"]["passed"] is True


def test_json_holds_no_absolute_path(run: Run, tmp_path: Path) -> None:
    shutil.copy(MODEL, tmp_path / "net.onnx")
    shown = run(tmp_path / "net.onnx", "-o", tmp_path / "fused.onnx", "--json").out
    shown += run("inspect", tmp_path / "net.onnx", "--json").out
    shown += run("verify", tmp_path / "net.onnx", tmp_path / "fused.onnx", "--json").out
    assert shown.count('"schema_version": 1') == 3
    assert str(tmp_path) not in shown
    assert str(ROOT) not in shown


@pytest.mark.parametrize("command", ["fold", "inspect", "verify"])
def test_quiet_leaves_one_line(run: Run, tmp_path: Path, command: str) -> None:
    arguments = {"fold": [MODEL, "-o", tmp_path / "fused.onnx"], "inspect": [MODEL], "verify": [MODEL, MODEL]}
    outcome = run(command, *arguments[command], "--quiet")
    assert (outcome.code, outcome.err, outcome.out.count("\n")) == (0, "", 1)


def options() -> dict[str, dict[str, click.Option]]:
    """For each flag the commands that have it."""
    flags: dict[str, dict[str, click.Option]] = {}
    for name, command in commands.commands.items():
        for option in command.params:
            if isinstance(option, click.Option):
                flags.setdefault(max(option.opts, key=len), {})[name] = option
    return flags


def test_a_flag_means_the_same_in_every_command() -> None:
    for flag, declared in options().items():
        assert len({(o.help, o.name, str(o.type), str(o.default), o.multiple) for o in declared.values()}) == 1, flag


def test_every_command_has_its_flags() -> None:
    found = {name: {flag for flag, commands_ in options().items() if name in commands_} for name in commands.commands}
    reading, showing = (
        {"--keep", "--only", "--keep-overridable", "--reduce", "--no-merge", "--leftover", "--simplify"},
        {"--json", "--quiet", "--report"},
    )
    checking = {"--provider", "--shape", "--seed", "--verify-data", "--batch-size", "--samples", "--preset"}
    checking |= {f"--image-{what}" for what in ("size", "resize", "mean", "std", "scale", "order")}
    opening = {"--model", "--trust-pickle"}
    asking = {"--input", "--oracle", "--metric", "--metric-output", "--no-deployed"}
    how = {"--method", "--momentum", "--variance", "--memory", "--force", "--unshare"}
    assert found == {
        "fold": {"--output", "--require-all", "--no-verify", "--self-test", "--manifest", "--calibrate", "--bench"}
        | {"--threads", "--rounds", "--reproduce"}
        | (opening | reading | checking | asking | how | showing),
        "inspect": {"--to", "--shape"} | opening | reading | showing,
        "verify": {"--reproduce"} | opening | checking | asking | showing,
        "bench": {"--provider", "--shape", "--seed", "--input", "--threads", "--rounds"} | showing,
        "recalibrate": {"--timeout", "--output", "--data"}
        | (opening | how)
        | (checking - {"--provider", "--verify-data"})
        | {"--keep", "--only"}
        | showing,
        "unfold": {"--output", "--manifest", "--only", "--all", "--json", "--quiet"},
    }


def test_the_version_is_the_packages(run: Run) -> None:
    assert run("--version").out == f"bnfold {bnfold.__version__}\n"
