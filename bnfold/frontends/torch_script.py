"""Reads TorchScript archives, after a look that their code touches no file and no network.

TorchScript is no Python and cannot import anything, but it has operators that write files, and some of its code runs
while it is loaded.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bnfold.errors import ModelError, UsageError
from bnfold.frontends.torch_quiet import first_line, silent

if TYPE_CHECKING:
    from torch.jit import ScriptModule

#: What reaches out of the program: operators, called as functions or as methods, and classes that are written in C++.
_REACHING = frozenset({"save", "load", "from_file", "rpc_sync", "rpc_async", "rpc_remote", "classes"})

#: Where operators that compute stand: `ops.torchvision.nms`.
_NAMESPACES = frozenset({"aten", "prim", "prims", "quantized", "torchvision"})


def load_script(path: str | os.PathLike[str], *, trusted: bool = False) -> ScriptModule:
    """The program in a TorchScript archive, on the CPU.

    Args:
        path: The archive.
        trusted: Whether to load it without a look.

    Raises:
        UsageError: It wants to reach out, and is not trusted.
        ModelError: It is damaged, or of another version of torch.
    """
    import torch  # noqa: PLC0415

    with silent():
        try:
            if not trusted and (found := next(_reaches(path), "")):
                raise UsageError(
                    f"loading this TorchScript may touch your files: its code has {found}",
                    where=str(path),
                    remedy="give --trust-pickle if you trust whoever made it",
                )
            module: ScriptModule = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
        except UsageError:
            raise
        except Exception as error:  # what torch raises about archives has no common base
            what = f"torch cannot read this TorchScript: {first_line(error)}"
            raise ModelError(
                what, where=str(path), remedy="it is damaged, or of another version of torch: save it again"
            ) from error
    return module


def _reaches(path: str | os.PathLike[str]) -> Iterator[str]:
    """What in the code reaches out, by the reader that loads it."""
    import torch  # noqa: PLC0415

    reader = torch._C.PyTorchFileReader(os.fspath(path))
    for name in reader.get_all_records():
        if name.startswith("code/") and name.endswith(".py"):
            code: bytes = reader.get_record(name)
            for node in ast.walk(ast.parse(code)):
                yield from _reaching(node)


def _reaching(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Attribute(attr=name) | ast.Name(id=name) if name in _REACHING:
            yield ast.unparse(node)[:60]
        case ast.Attribute(value=ast.Name(id="ops"), attr=name) if name not in _NAMESPACES:
            yield f"operators of {name}"
        case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=name), *_]) if name in _REACHING:
            yield ast.unparse(node)[:60]
