"""Draft folders: gone in the end, cleared away after a kill, and never taken from a process that lives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_run import MODEL, ROOT, assert_one_sentence, names, shell

from bnfold import drafts
from bnfold.drafts import COMPANION, draft_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing is cleared away without locks")


def left_behind(folder: Path, name: str = "out.onnx") -> Path:
    """What a killed process leaves for `name`."""
    left = folder / f".{name}.abcd_123"
    left.mkdir()
    (left / name).write_text("half a model")
    return left


def test_a_folder_is_there_while_it_is_used_and_gone_afterwards(tmp_path: Path) -> None:
    with draft_folder(tmp_path / "out.onnx") as work:
        (work / "draft").write_text("half")
        assert work.parent == tmp_path
    assert names(tmp_path) == []
    with pytest.raises(KeyError), draft_folder(tmp_path / "out.onnx"):
        raise KeyError
    assert names(tmp_path) == []


def test_what_a_killed_process_left_for_this_file_goes_and_nothing_else(tmp_path: Path) -> None:
    left_behind(tmp_path)
    for other in (".other.onnx.abcd_123", ".out.onnx.short", ".out.onnx.ABCDEFGH", "out.onnx.abcd_123"):
        (tmp_path / other).mkdir()
    (tmp_path / ".out.onnx.12345678").write_text("a file")
    before = names(tmp_path)
    with draft_folder(tmp_path / "out.onnx"):
        pass
    assert names(tmp_path) == [name for name in before if name != ".out.onnx.abcd_123"]


def test_a_folder_that_is_in_use_stays(tmp_path: Path) -> None:
    with draft_folder(tmp_path / "out.onnx") as first, draft_folder(tmp_path / "out.onnx") as second:
        assert first.is_dir()
        assert second.is_dir()
    script = "import sys; from bnfold.drafts import draft_folder\nwith draft_folder(sys.argv[1]): pass"
    with draft_folder(tmp_path / "out.onnx") as work:
        subprocess.run([sys.executable, "-c", script, tmp_path / "out.onnx"], check=True, cwd=ROOT)
        assert work.is_dir()


def test_a_folder_that_was_taken_for_abandoned_before_its_lock_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true, taken = drafts._lock, []

    def late(folder: Path, *, wait: bool) -> int | None:
        if not taken:
            taken.append(folder)
            folder.rmdir()
        return true(folder, wait=wait)

    monkeypatch.setattr(drafts, "_lock", late)
    with draft_folder(tmp_path / "out.onnx") as work:
        assert work.is_dir()
        assert work not in taken
    assert names(tmp_path) == []


def test_a_companion_goes_only_if_its_target_never_came(tmp_path: Path) -> None:
    for came in (False, True):
        left = left_behind(tmp_path)
        (tmp_path / "out.onnx.data").write_text("weights")
        (left / COMPANION).write_text("out.onnx.data", encoding="utf-8")
        if came:
            (left / "out.onnx").unlink()
        with draft_folder(tmp_path / "out.onnx"):
            pass
        assert names(tmp_path) == (["out.onnx.data"] if came else [])


def test_a_companion_lies_beside_its_target_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "precious").write_text("not ours")
    left = left_behind(tmp_path / "work")
    (left / COMPANION).write_text("../precious", encoding="utf-8")
    with draft_folder(tmp_path / "work" / "out.onnx"):
        pass
    assert names(tmp_path) == ["precious", "work"]


def test_links_and_folders_of_others_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("not ours")
    (tmp_path / ".out.onnx.abcdefgh").symlink_to(tmp_path / "elsewhere")
    with draft_folder(tmp_path / "out.onnx"):
        pass
    assert names(tmp_path / "elsewhere") == ["precious"]
    left_behind(tmp_path)
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    with draft_folder(tmp_path / "out.onnx"):
        pass
    assert ".out.onnx.abcd_123" in names(tmp_path)


# The program


KILLED_WHILE_SAVING = """
import os, signal, sys
from pathlib import Path
true, steps = Path.replace, int(sys.argv.pop(1))

def replace(self, target):
    global steps
    steps -= 1
    if steps < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return true(self, target)

Path.replace = replace
from bnfold.cli import main
main(sys.argv[1:])
"""

KILLED_WHILE_READING = """
import os, signal
import numpy as np

def load():
    yield np.ones((8, 1, 8, 8), np.float32)
    links = ["/proc/self/fd/" + number for number in os.listdir("/proc/self/fd")]
    files = [os.readlink(link) for link in links if os.path.islink(link)]
    assert any("deleted" in name for name in files), "no temporary file"
    os.kill(os.getpid(), signal.SIGKILL)
    yield
"""


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "COLUMNS": "80"}


def left_in(folder: Path) -> list[str]:
    """What lies in a folder; onnxruntime itself writes `.ses` to the temporary one when it is imported."""
    return [name for name in names(folder) if name not in (".ses", "__pycache__")]


@pytest.mark.parametrize("steps", [0, 1])
def test_what_is_killed_while_it_saves_leaves_no_output_and_the_next_run_clears_up(tmp_path: Path, steps: int) -> None:
    """Before the data file gets its name, and between that and the model."""
    model, output = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(onnx.load(MODEL), model, save_as_external_data=True, location="m.data", size_threshold=0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    command = [sys.executable, "-c", KILLED_WHILE_SAVING, str(steps), str(model), "-o", str(output), "--no-verify"]
    done = subprocess.run(command, env=environment(tmp_path), check=False, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not output.exists()
    left = [name for name in left_in(tmp_path) if name not in before]
    assert len(left) == 1 + steps, "a folder of drafts, and beside it the data once it has its name"
    assert shell(model, "-o", output, "--no-verify", "--keep", "stem", capture_output=True).returncode == 0
    found = names(tmp_path)
    assert [name for name in found if name.startswith(".out")] == []
    assert sum(name.endswith(".data") and name.startswith("out") for name in found) == 1
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to see the file")
def test_what_is_killed_while_activations_are_on_disk_leaves_nothing_at_all(tmp_path: Path) -> None:
    (tmp_path / "killer.py").write_text(KILLED_WHILE_READING)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    before = names(tmp_path)
    arguments = ("recalibrate", MODEL, "--data", "killer:load", "-o", tmp_path / "out.onnx", "--memory", "0")
    done = shell(*arguments, cwd=tmp_path, env={"TMPDIR": str(temporary)}, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert left_in(tmp_path) == before
    assert left_in(temporary) == []


@pytest.mark.parametrize(
    ("limit", "message"), [(1_000, "cannot be kept on disk: File too large"), (60_000, "cannot be written: File too")]
)
def test_a_file_that_may_grow_no_further_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, limit: int, message: str
) -> None:
    """1 kB: the activations do not go into the temporary file; 60 kB: the model does not go into its own."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((16, 1, 8, 8)).astype(np.float32))
    script = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "from bnfold.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    memory = ["--memory", "0"] if limit == 1_000 else []
    command = [sys.executable, "-c", script, "recalibrate", MODEL, "--data", "x.npy", "-o", "out.onnx", *memory]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(tmp_path), check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 3
    assert_one_sentence(done.stderr, message)
    assert left_in(tmp_path) == ["x.npy"]
