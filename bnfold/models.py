"""Models as callers give them: in memory, or the paths of files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

import onnx_ir as ir

from bnfold.frontends.onnx_files import load
from bnfold.frontends.onnx_order import require_order

#: An ONNX model in memory, or the path of a file with one.
ModelLike: TypeAlias = "ir.Model | str | os.PathLike[str]"


def opened(model: ModelLike) -> tuple[ir.Model, str]:
    """The model, and its name for the report.

    Raises:
        UsageError, ModelError, MachineError: As `bnfold.load`; or a model in memory has a node before one it reads.
    """
    if isinstance(model, ir.Model):
        name = model.graph.name or "model"
        require_order(model, name)
        return model, name
    return load(model), Path(model).name
