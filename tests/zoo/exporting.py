"""A torch module as an ONNX model that keeps every BatchNorm: number of nodes = number of modules.

Both exporters fold BatchNorm into convolutions unless told not to (`TrainingMode.PRESERVE`, `optimize=False`).
"""

from __future__ import annotations

import io
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import onnx
import torch

from .lively import batchnorms

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn

INPUT = "image"
_OUTPUT = "scores"
_AXES = {INPUT: {0: "N", 2: "H", 3: "W"}, _OUTPUT: {0: "N"}}

# What the exporters of torch 2.13 say on every use, for all of our networks; anything else is an error as usual.
_KNOWN_WARNINGS = (
    (DeprecationWarning, "You are using the legacy TorchScript-based ONNX export"),
    (DeprecationWarning, "The feature will be removed"),
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
)


def export_torchscript(
    module: nn.Module, images: Tensor, *, fold: bool = False, axes: Mapping[str, Mapping[int, str]] = _AXES
) -> onnx.ModelProto:
    """Export a module in eval mode by tracing, opset 17.

    Args:
        module: The module, of one input.
        images: An example of the input, (N, C, H, W).
        fold: Leave the exporter its own way with BatchNorm.
        axes: The dynamic axes of the input and of every output, by name.
    """
    mode = torch.onnx.TrainingMode
    buffer = io.BytesIO()
    with _known_warnings_silenced():
        torch.onnx.export(
            module,
            (images,),
            buffer,  # type: ignore[arg-type]  # documented for this exporter, but not in its signature
            dynamo=False,
            training=mode.EVAL if fold else mode.PRESERVE,
            do_constant_folding=fold,
            opset_version=17,
            input_names=[INPUT],
            output_names=[name for name in axes if name != INPUT],
            dynamic_axes=axes,
        )
    return onnx.load_model_from_string(buffer.getvalue())


def export_dynamo(module: nn.Module, images: Tensor) -> onnx.ModelProto:
    """Export through torch.export, opset 18, without the optimiser that folds; fails if a size turns out static."""
    dynamic = torch.export.Dim.DYNAMIC
    with _known_warnings_silenced():
        program = torch.onnx.export(
            module,
            (images,),
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=18,
            input_names=[INPUT],
            output_names=[_OUTPUT],
            dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},),
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    return program.model_proto


def check_batchnorms_kept(proto: onnx.ModelProto, module: nn.Module, expected: int) -> None:
    """Raise unless nodes, modules and the catalogue's figure agree.

    Raises:
        RuntimeError: The exporter folded or doubled a BatchNorm, or the architecture is not the expected one.
    """
    nodes = sum(node.op_type == "BatchNormalization" for node in proto.graph.node)
    modules = len(batchnorms(module))
    if not nodes == modules == expected:
        raise RuntimeError(f"{nodes} BatchNormalization nodes, {modules} BatchNorm modules, {expected} expected")


@contextmanager
def _known_warnings_silenced() -> Iterator[None]:
    with warnings.catch_warnings():
        for category, message in _KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", message, category)
        yield
