"""What is loaded when: `import bnfold` and `--help` wait for no framework, and reading a model for no runtime."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import bnfold

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "digits-darknet.onnx"

HEAVY = {"onnxruntime", "torch", "onnxsim", "onnx", "onnx_ir", "numpy"}
RUNTIMES = {"onnxruntime", "torch", "onnxsim"}


def loaded_by(statement: str) -> set[str]:
    """The packages of `HEAVY` that a fresh interpreter has loaded after the statement."""
    script = f"import sys\n{statement}\nprint('\\nloaded', *[m for m in {sorted(HEAVY)} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


def command(*arguments: str) -> str:
    return f"from bnfold.cli import main\nassert main({[*arguments]!r}) == 0"


@pytest.mark.parametrize(
    "statement",
    {
        "import": "import bnfold",
        "version": "import bnfold\nbnfold.__version__",
        "help": command("--help"),
        "help of a command": command("fold", "--help"),
        "version of the command": command("--version"),
    }.values(),
)
def test_no_framework_is_loaded(statement: str) -> None:
    assert loaded_by(statement) == set()


def test_inspect_loads_no_runtime() -> None:
    assert not loaded_by(command("inspect", str(MODEL), "--quiet")) & RUNTIMES


def test_a_fold_without_check_loads_no_runtime(tmp_path: Path) -> None:
    arguments = (str(MODEL), "-o", str(tmp_path / "fused.onnx"), "--no-verify", "--quiet")
    assert not loaded_by(command(*arguments)) & RUNTIMES


def test_a_fold_loads_onnxruntime_and_no_torch(tmp_path: Path) -> None:
    found = loaded_by(command(str(MODEL), "-o", str(tmp_path / "fused.onnx"), "--quiet"))
    assert found == HEAVY - {"torch", "onnxsim"}


def test_every_module_can_be_imported() -> None:
    names = [module.name for module in pkgutil.walk_packages(bnfold.__path__, "bnfold.")]
    assert len(names) > 50
    for name in names:
        importlib.import_module(name)
