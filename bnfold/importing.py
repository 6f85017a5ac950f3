"""Functions of the user's, by name: `package.module:function`, where the current directory is searched first."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bnfold.errors import DataError, ModelError, UsageError

#: `package.module:callable`.
PATTERN = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def import_object(text: str, fault: type[DataError | ModelError]) -> Any:
    """What `package.module:name` names.

    Args:
        text: The name.
        fault: The error if the module itself is at fault.

    Raises:
        UsageError: There is no such module or name.
        fault: The module raises when it is imported, or imports one that is not there.
    """
    module_name, _, path = text.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does; it stays, because the function may import more later
    found = _imported(module_name, text, fault)
    for part in path.split("."):
        if not hasattr(found, part):
            raise UsageError(f"there is no {part} in {getattr(found, '__name__', module_name)}", where=text)
        found = getattr(found, part)
    return found


def _imported(name: str, text: str, fault: type[DataError | ModelError]) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise fault(
                f"it needs the module {error.name}, which is not there", where=name, remedy="install it"
            ) from error
        raise UsageError(
            f"there is no module {error.name}", where=text, remedy="run bnfold where the module lies, or install it"
        ) from error
    except Exception as error:  # the user's code may raise anything
        raise fault(f"importing it raised {type(error).__name__}: {error}", where=name) from error


def called(function: Callable[[], Any], text: str) -> Any:
    """What a function of the user's returns that takes no arguments.

    Raises:
        ModelError: It raises.
    """
    try:
        return function()
    except Exception as error:  # the user's code may raise anything
        said = f": {error}" if str(error) else ""
        raise ModelError(
            f"it raised {type(error).__name__}{said}", where=text, remedy="it is called without arguments"
        ) from error
