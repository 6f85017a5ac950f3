"""Interrupts, closed pipes, and what a terminal and a pipe get to see."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx_ir
import pytest
from cli_run import MODEL, ROOT, Run, names, shell

from bnfold.cli import BROKEN_PIPE, INTERRUPTED


def test_an_interrupt_while_writing_leaves_nothing_behind(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(_model: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half a model")
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx_ir, "save", half)
    outcome = run(MODEL, "-o", tmp_path / "fused.onnx", "--no-verify")
    assert (outcome.code, outcome.out, names(tmp_path)) == (INTERRUPTED, "", [])
    assert outcome.err == "bnfold: interrupted\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_ctrl_c_ends_a_run_with_130_and_no_traceback(tmp_path: Path) -> None:
    pipe = tmp_path / "slow.onnx"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "bnfold", str(pipe), "-o", str(tmp_path / "fused.onnx")]
    with (
        # A shell that runs the tests in the background lets them, and so their children, ignore the signal.
        subprocess.Popen(
            command,
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        ) as process,
        pipe.open("wb"),  # opens once bnfold reads from it
    ):
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED
    assert shown == "bnfold: interrupted\n"
    assert names(tmp_path) == ["slow.onnx"]


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_goes_away_is_no_error_message(tmp_path: Path, stream: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    streams: dict[str, int] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writing}
    done = shell(MODEL, "-o", tmp_path / "fused.onnx", "--no-verify", **streams)
    os.close(writing)
    assert done.returncode == BROKEN_PIPE
    assert "Traceback" not in (done.stderr or "")
    assert "Exception ignored" not in (done.stderr or "")
    assert names(tmp_path) == ["fused.onnx"]


def test_a_closed_stdout_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m bnfold {MODEL} -o {tmp_path / 'fused.onnx'} --no-verify --quiet >&-"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [["inspect", MODEL], ["verify", MODEL, MODEL]])
def test_in_a_pipe_there_are_80_columns_no_colour_and_no_progress(run: Run, arguments: list[str | Path]) -> None:
    shown = run(*arguments).err
    assert "\x1b" not in shown
    assert "\r" not in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_without_utf_8_the_tables_are_plain_ascii() -> None:
    done = shell("inspect", MODEL, stderr=subprocess.PIPE, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert done.stderr.isascii()
    assert "\\u" not in done.stderr


#: What rich sends before it draws a spinner.
HIDE_CURSOR = "\x1b[?25l"


def on_a_terminal(*arguments: str | Path, **environment: str) -> str:
    """What a terminal with 80 columns receives."""
    import pty  # noqa: PLC0415  # not on Windows

    ours, theirs = pty.openpty()
    shown = b""
    variables = {"TERM": "xterm", "COLUMNS": "80", "PATH": os.environ["PATH"], **environment}
    command = [sys.executable, "-m", "bnfold", *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdout=theirs, stderr=theirs, env=variables) as process:
        os.close(theirs)
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:  # Linux's way to say that the other end is closed
            pass
    os.close(ours)
    assert process.returncode == 0
    return shown.decode()


def test_on_a_terminal_there_is_progress_and_colour(tmp_path: Path) -> None:
    shown = on_a_terminal(MODEL, "-o", tmp_path / "fused.onnx")
    assert HIDE_CURSOR in shown
    assert "\x1b[36m" in shown


def test_no_color_leaves_the_progress_and_takes_the_colour(tmp_path: Path) -> None:
    shown = on_a_terminal(MODEL, "-o", tmp_path / "fused.onnx", NO_COLOR="1")
    assert HIDE_CURSOR in shown
    assert "\x1b[36m" not in shown


@pytest.mark.parametrize(("arguments", "environment"), [(["--quiet"], {}), ([], {"TERM": "dumb"})])
def test_no_progress_where_it_is_not_wanted_or_cannot_be_shown(
    tmp_path: Path, arguments: list[str], environment: dict[str, str]
) -> None:
    shown = on_a_terminal(MODEL, "-o", tmp_path / "fused.onnx", *arguments, **environment)
    assert "\x1b" not in shown
    assert "11 of 11 BatchNorms folded" in shown
