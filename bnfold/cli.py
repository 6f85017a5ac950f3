"""The command `bnfold`: picks the command, runs it, and turns every outcome into one sentence and an exit code.

0 done; 1 not equivalent, or a BatchNorm was kept against `--require-all` (nothing was written); 2 usage; 3 the model,
the data or the machine is at fault, or bnfold is; 130 interrupted; 141 nobody reads the output any more.
"""

from __future__ import annotations

import difflib
import errno
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from bnfold.cli_commands import commands
from bnfold.errors import BnfoldError, UsageError
from bnfold.launch import may_speak, said
from bnfold.wording import printable

#: What a shell reports for a program that Ctrl-C, or the end of the pipe it writes to, has ended.
INTERRUPTED, BROKEN_PIPE = 130, 141

#: Set to 1, this environment variable makes every error show where in the code it came from.
TRACEBACK = "BNFOLD_TRACEBACK"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments`, by default the program's own, and return the exit code."""
    try:
        code = _run(sys.argv[1:] if arguments is None else list(arguments))
        if sys.stdout is not None:  # None where the caller has closed it
            sys.stdout.flush()
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except SystemExit:  # so rich reacts to a closed stderr; nothing else in here exits
        return _hang_up()
    except Exception as error:
        return _hang_up() if _is_broken_pipe(error) else _explain(error)
    return code


def _run(arguments: list[str]) -> int:
    """Run a command; without arguments, show the help as the answer to a wrong call."""
    try:
        with commands.make_context("bnfold", _with_command(arguments), obj=tuple(arguments)) as context:
            if arguments:
                return int(commands.invoke(context))
            click.echo(commands.get_help(context), err=True)
            return click.UsageError.exit_code
    except click.exceptions.Exit as finished:  # --help and --version
        return finished.exit_code


def _with_command(arguments: list[str]) -> list[str]:
    """`arguments` with the default command, `fold`, unless another one or an option of the group comes first."""
    if not arguments:
        return ["fold"]
    first = arguments[0]
    if first in commands.commands or first in ("-h", "--help", "--version"):
        return arguments
    near = difflib.get_close_matches(first, commands.commands, n=1)
    if near and not Path(first).exists():
        raise UsageError(f"there is neither a file nor a command {first}", remedy=f"did you mean {near[0]}?")
    return ["fold", *arguments]


def _is_broken_pipe(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EPIPE


def _explain(error: Exception) -> int:
    """Say in one sentence what is wrong; the traceback is for those who ask for it."""
    if os.environ.get(TRACEBACK) == "1":
        traceback.print_exception(error)
    match error:
        case BnfoldError():
            _say(str(error))
            return error.exit_code
        case click.ClickException():
            _say(_usage(error))
            return error.exit_code
        case OSError():
            _say(f"{error.filename or 'the output'} cannot be read or written: {error.strerror or error}")
            return BnfoldError.exit_code
        case MemoryError():
            _say("the machine has too little memory for this model")
            return BnfoldError.exit_code
    _say(
        f"this is a bug in bnfold, please report it with the model and the output under {TRACEBACK}=1 "
        f"({type(error).__name__}: {error})"
    )
    return BnfoldError.exit_code


def _usage(error: click.ClickException) -> str:
    """What click found wrong with the call, and where to read how it is done."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    return error.format_message().rstrip(".") + (f"; see {context.command_path} --help" if context else "")


def _say(sentence: str) -> None:
    if not may_speak():
        return
    try:
        click.echo(f"bnfold: {printable(sentence)}", err=True)
        said()
    except OSError:  # nobody reads stderr: the exit code must do
        _hang_up()


def _hang_up() -> int:
    """Let the interpreter flush its streams into nothing at exit, where it would complain otherwise."""
    with Path(os.devnull).open("w", encoding="utf-8") as nothing:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            os.dup2(nothing.fileno(), stream.fileno())
    return BROKEN_PIPE
