"""PyTorch files on the command line: what is read as what, and what is written by which suffix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bnfold.errors import UsageError

if TYPE_CHECKING:  # loading these takes a second, which --help need not wait for
    from bnfold.calibrating import Calibration, Choice
    from bnfold.models import ModelLike
    from bnfold.report.recalibration_report import RecalibrationReport
    from bnfold.torch_files import TorchFile

#: Options that no file of PyTorch's takes, and those that a state dict has no place for, by their parameters.
_ONNX_ONLY = {
    "keep_overridable": "--keep-overridable",
    "simplify": "--simplify",
    "manifest": "--manifest",
    "providers": "--provider",
    "data": "--verify-data",
    "self_test": "--self-test",
    "inputs": "--input",
    "oracle": "--oracle",
    "metric": "--metric",
    "metric_output": "--metric-output",
    "no_deployed": "--no-deployed",
    "reproduce": "--reproduce",
    "bench": "--bench",
}
_GRAPH_ONLY = {"reduce": "--reduce", "no_merge": "--no-merge", "leftover": "--leftover"}


@dataclass(frozen=True)
class Opening:
    """How a model file is opened: `--model`, `--trust-pickle` and `--shape`."""

    factory: str | None
    trust_pickle: bool
    shapes: Mapping[str, tuple[int, ...]]

    def as_onnx(self, model: str, *, verify: bool) -> ModelLike:
        """What `bnfold.api` takes: the path of an ONNX file, or a PyTorch model exported with its BatchNorms kept."""
        if not self.is_torch(model):
            return model
        return self.torch(model).to_onnx(self.shapes, verify=verify)

    def recalibrated(
        self, model: str, wish: Calibration, choice: Choice, *, verify: bool
    ) -> tuple[ModelLike, Calibration | None, RecalibrationReport | None]:
        """As `as_onnx`, a PyTorch model with new statistics.

        Args:
            model: The file.
            wish: Data to recalibrate on, and how.
            choice: Of which BatchNorms.
            verify: Whether to compare what the exported model computes.

        Returns:
            The model; what is still to be done of `wish`, all with an ONNX file; what was done, if it was.
        """
        from bnfold.torch_recalibrated import recalibrated_onnx  # noqa: PLC0415

        if not self.is_torch(model):
            return model, wish, None
        report, export = recalibrated_onnx(self.torch(model), self.shapes, wish, choice, verify=verify)
        return export(), None, report

    def torch(self, model: str) -> TorchFile:
        """The PyTorch model in the file."""
        from bnfold.torch_files import open_torch  # noqa: PLC0415

        return open_torch(model, model=self.factory, trust_pickle=self.trust_pickle)

    def is_torch(self, model: str) -> bool:
        """Whether it is a file of PyTorch's; then and only then `--model` may be given."""
        return self.is_any_torch(model)

    def is_any_torch(self, *models: str) -> bool:
        """Whether one of the files is PyTorch's; then and only then `--model` may be given."""
        found = any(list(map(is_torch_file, models)))  # of a list, so that each of them is looked at
        if self.factory is not None and not found:
            raise UsageError("this is an ONNX model, which needs no --model", where=models[0], remedy="leave it out")
        return found


def is_torch_file(model: str) -> bool:
    """Whether the file at `model` is PyTorch's by its content.

    Raises:
        UsageError, ModelError, MachineError: As `torch_kinds.kind_of`.
    """
    from bnfold.frontends.torch_kinds import FileKind, kind_of  # noqa: PLC0415

    return kind_of(model) is not FileKind.ONNX


def writes_torch(model: str, output: str, context: click.Context | None = None) -> bool:
    """Whether `output` is to be a file of PyTorch's, by its suffix.

    Args:
        model: The file that is read.
        output: The file to write.
        context: The command, whose options must mean something for such an output.

    Raises:
        UsageError: It is to be of no kind that can be made of `model`; or an option was given that has no place there.
    """
    from bnfold.frontends.torch_kinds import TORCH_SUFFIXES  # noqa: PLC0415
    from bnfold.torch_outputs import GRAPHS, STATES  # noqa: PLC0415

    suffix, from_torch = Path(output).suffix.lower(), is_torch_file(model)
    if suffix in (*GRAPHS, *STATES):
        if from_torch:
            if context is not None:
                _check_options(context, output)
            return True
        raise UsageError("an ONNX model cannot become a PyTorch file", where=output, remedy="name a file in .onnx")
    if suffix in TORCH_SUFFIXES or (from_torch and suffix != ".onnx"):
        remedy = "write .onnx, .pt2, .pt (a state dict) or .safetensors"
        raise UsageError("its suffix does not say what to write", where=output, remedy=remedy)
    return False


def _check_options(context: click.Context, output: str) -> None:
    """Refuse options that were given and mean nothing for this output.

    Raises:
        UsageError: One was given.
    """
    from bnfold.torch_outputs import GRAPHS  # noqa: PLC0415

    is_graph = Path(output).suffix.lower() in GRAPHS
    kinds = [(_ONNX_ONLY, ".onnx")] if is_graph else [(_ONNX_ONLY, ".onnx"), (_GRAPH_ONLY, ".pt2 or .onnx")]
    for flags, instead in kinds:
        for name, flag in flags.items():
            if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
                raise UsageError(f"{flag} has no place here", where=output, remedy=f"fold into {instead}")


def check_comparison(context: click.Context, after: str) -> None:
    """Refuse options that were given to `verify` and mean nothing with PyTorch files.

    Raises:
        UsageError: One was given.
    """
    flags = {"data": "--verify-data", "reproduce": "--reproduce", "inputs": "--input", "oracle": "--oracle"}
    flags |= {"metric": "--metric", "metric_output": "--metric-output"}
    if is_torch_file(after):
        flags |= {"providers": "--provider", "no_deployed": "--no-deployed"}
    for name, flag in flags.items():
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            has_one = flag in ("--provider", "--no-deployed")
            remedy = "compare with an ONNX model of it" if has_one else "make an ONNX model of it and compare with that"
            raise UsageError(f"{flag} has no place here", where=after, remedy=remedy)
