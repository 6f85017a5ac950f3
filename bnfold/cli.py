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
from bnfold.wording import printable

#: What a shell reports for a program that Ctrl-C, or a pipe that was closed at the other end, has ended.
INTERRUPTED, BROKEN_PIPE = 130, 141

#: Set to 1, this environment variable shows where in bnfold an error came from.
TRACEBACK = "BNFOLD_TRACEBACK"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (by default the program's own), and return the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        code = _run(given)
        sys.stdout.flush()
    except Exception as error:
        return _BROKEN if _is_broken_pipe(error) and _silence() else _explain(error)
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except SystemExit:  # rich ends the program that way when the reader of its stream is gone
        _silence()
        return BROKEN_PIPE
    return code
