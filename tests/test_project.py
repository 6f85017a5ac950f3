"""The project around the code: the public API, the examples, what the pages show, the pinned versions, CI."""

from __future__ import annotations

import doctest
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bnfold
from bnfold.cli_commands import commands

ROOT = Path(__file__).parents[1]

#: What users may import from bnfold. A name that is added belongs here and in CHANGELOG.md; one that goes, breaks them.
PUBLIC = """
    BenchReport BnfoldError Calibration ChannelAffine DataError DataRequest Decision FoldBatchNormPass FoldResult
    Folded ImageOptions InternalError Kept MachineError Manifest MissingPackageError ModelError Processes
    ProviderError Reason RecalibrationReport RecalibrationResult Reduced Refusal Report Size Source Subject
    TorchFoldResult UnfoldResult UsageError Verification VerificationError benchmark fold inspect load load_folded
    load_module recalibrate save unfold verify
""".split()

SIGNATURES = {
    "benchmark": "before after providers shapes seed threads rounds inputs progress",
    "fold": """model example_inputs example_kwargs as_graph static_shapes inplace calibrate only keep
        keep_overridable reduce merge leftover simplify readers verify manifest providers shapes inputs seed data
        oracle metric metric_output self_test deployed progress""",
    "inspect": """model example_inputs example_kwargs as_graph static_shapes only keep keep_overridable
        reduce merge leftover simplify readers shapes""",
    "recalibrate": """model data example_inputs example_kwargs inplace method momentum bessel memory force unshare keep
        only processes progress""",
    "unfold": "model manifest only every",
    "verify": """before after example_inputs example_kwargs providers shapes inputs seed data oracle metric
        metric_output deployed progress""",
    "load": "path",
    "load_folded": "module path require_verified",
    "load_module": "path model trust_pickle",
    "save": "model path",
}

#: How each example is run, from the root of a copy of the repository.
EXAMPLES = {
    "deploy_torch.py": ["digits.pt"],
    "digits_accuracy.py": ["models/digits-darknet.onnx"],
    "fold_from_python.py": ["models/digits-darknet.onnx", "fused.onnx"],
    "fold_from_shell.sh": ["out"],
    "own_carrier.py": [],
    "recalibrate_averaged_weights.py": ["--epochs", "2"],
    "recalibrate_moved_inputs.py": ["models/digits-darknet.onnx", "moved.onnx"],
    "train_digits.py": ["--epochs", "1", "--output", "digits.onnx"],
}

#: Needs a package that nothing here asks for: `tests/test_examples_torch.py` runs it where that is installed.
OPTIONAL = "yolo_export.py"

#: Commands that a page may show and that are not run here: they install, or run all of this.
NOT_RUN = re.compile(
    r"(python3? -m )?pip install |make |git clone |cd |python -m venv |\.ci/run|\.venv/bin/python -m pytest"
)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of what the examples and pages refer to, where they may write."""
    for folder in ("examples", "models"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "models" / "digits-darknet.onnx", tmp_path / "model.onnx")  # the reader's own model
    with np.load(ROOT / "models" / "digits-heldout.npz") as archive:  # the reader's own data
        np.save(tmp_path / "moved.npy", (0.4 * archive["images"][:, None] / 16 + 0.3).astype(np.float32))
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, line in {"bnfold": "-m bnfold ", "python": "", "python3": ""}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {line}"$@"\n', encoding="utf-8")
        (programs / name).chmod(0o755)
    return tmp_path


@pytest.fixture
def reader(copy: Path) -> Path:
    """A copy with the reader's own PyTorch files as well."""
    (copy / "mynet.py").write_text(
        "from torch import nn\n\n\ndef build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())\n",
        encoding="utf-8",
    )
    files = (
        "import mynet, safetensors.torch, torch\n"
        "net, image = mynet.build().eval(), torch.randn(2, 3, 32, 32)\n"
        "torch.export.save(torch.export.export(net, (image,), strict=False), 'model.pt2')\n"
        "safetensors.torch.save_file(net.state_dict(), 'weights.safetensors')\n"
        "torch.save({'ema': net}, 'checkpoint.pt')\n"
    )
    run_in(copy, "python", "-c", files)
    return copy


def run_in(folder: Path, *command: str) -> str:
    """Standard output of a command that must succeed, run in a copy made by `copy`."""
    path = f"{folder / 'programs'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, f"{command} exits with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# The public API


def test_the_public_names_are_these_and_all_of_them_are_there() -> None:
    assert sorted(bnfold.__all__) == sorted(PUBLIC)
    assert all(getattr(bnfold, name) is not None for name in PUBLIC)
    assert set(PUBLIC) <= set(dir(bnfold))


@pytest.mark.parametrize("function", SIGNATURES)
def test_the_public_functions_take_these_arguments(function: str) -> None:
    assert list(inspect.signature(getattr(bnfold, function)).parameters) == SIGNATURES[function].split()


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_public_is_documented(name: str) -> None:
    assert (getattr(bnfold, name).__doc__ or "").strip() or name == "Decision"  # an alias of a union


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'refold'"):
        bnfold.refold  # noqa: B018


def test_the_example_in_the_package_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert doctest.testmod(bnfold).attempted >= 3
    assert doctest.testmod(bnfold).failed == 0


# Examples and pages


def test_every_example_is_run() -> None:
    found = {file.name for file in (ROOT / "examples").iterdir() if file.is_file()}
    assert found == {*EXAMPLES, OPTIONAL}, "say in EXAMPLES how to run it"


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs(copy: Path, example: str) -> None:
    interpreter = "bash" if example.endswith(".sh") else "python"
    assert run_in(copy, interpreter, f"examples/{example}", *EXAMPLES[example])


def test_the_accuracy_of_the_folded_model_is_that_of_the_original(copy: Path) -> None:
    model = "models/digits-darknet.onnx"
    run_in(copy, "bnfold", model, "-o", "fused.onnx", "--require-all")
    shown = run_in(copy, "python", "examples/digits_accuracy.py", model, "fused.onnx").splitlines()
    assert [line.split(": ")[1] for line in shown] == ["358 of 360 held-out digits right (99.44%)"] * 2


def test_the_moved_digits_are_read_again_after_recalibration(copy: Path) -> None:
    shown = run_in(copy, "python", "examples/recalibrate_moved_inputs.py", "models/digits-darknet.onnx", "moved.onnx")
    as_trained, moved, recalibrated, folded = (float(found) for found in re.findall(r"([\d.]+) %", shown))
    assert as_trained - moved > 30
    assert abs(as_trained - recalibrated) <= 1
    assert folded == recalibrated
    assert "0 BatchNorms left" in shown


def blocks(page: str, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages."""
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


def commands_of(block: str) -> list[str]:
    """The commands of a block, those of `NOT_RUN` left out; a `$ ` before them marks them off from their output."""
    lines = block.replace("\\\n", " ").splitlines()
    marked = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")] or lines
    shown = [line.partition("  #")[0].strip() for line in marked]
    return [line for line in shown if line and not line.startswith("#") and not NOT_RUN.match(line)]


PAGES = ["README.md", "models/README.md", "CONTRIBUTING.md"]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_runs(reader: Path, page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for command in [c for block in blocks(text, "console", "sh", "bash") for c in commands_of(block)]:
        run_in(reader, "bash", "-euo", "pipefail", "-c", command)
    for block in blocks(text, "python"):
        run_in(reader, "python", "-c", block)


def test_the_readme_shows_the_command_and_the_library() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [c for block in blocks(text, "console", "sh", "bash") for c in commands_of(block) if c.startswith("bnfold ")]
    assert [block for block in blocks(text, "python") if "bnfold.fold(" in block]


def test_the_readme_has_every_flag_and_no_other() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    flags = {flag for command in commands.commands.values() for option in command.params for flag in option.opts}
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - {"--nproc-per-node"}  # of torchrun
    assert shown == {flag for flag in flags if flag.startswith("--")} - {"--output"}  # shown as -o


def test_commands_are_found_in_a_page() -> None:
    page = "```console\n$ pip install bnfold\n$ bnfold a.onnx \\\n  -o b.onnx  # writes b\nb.onnx: 1 of 1\n```\n"
    assert [commands_of(block) for block in blocks(page, "console", "sh")] == [["bnfold a.onnx    -o b.onnx"]]
    assert commands_of("# a comment\nmake test\nbnfold inspect a.onnx\n") == ["bnfold inspect a.onnx"]
    assert blocks(page, "python") == []


# The frame


def requirements(*extras: str) -> set[str]:
    """The packages that pyproject.toml lists in these extras, and those that are always needed."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = [re.search(rf"^{name} = \[(.*?)\]$", text, flags=re.MULTILINE | re.DOTALL) for name in extras]
    assert all(lists), extras
    found = {name for part in lists if part for name in re.findall(r'"([A-Za-z0-9_-]+)', part[1])}
    return {name.lower().replace("_", "-") for name in found} - {"bnfold"}


def test_every_package_that_the_tests_need_is_pinned_exactly() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9_-]+==[\w.+]+", pin) for pin in pins)
    pinned = {pin.split("==")[0].replace("_", "-") for pin in pins}
    assert requirements("dependencies", "cpu", "sim", "torch", "dev") <= pinned


def test_the_entry_point_of_the_program_is_there() -> None:
    found = re.search(r'^bnfold = "bnfold\.cli:(\w+)"$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert found
    assert callable(getattr(__import__("bnfold.cli", fromlist=["cli"]), found[1]))


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("target", ["test", "demo"])
def test_ci_runs_a_target_that_make_knows(target: str) -> None:
    assert f"\nmake {target}\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ("pytest" if target == "test" else "digits_accuracy.py") in done.stdout
