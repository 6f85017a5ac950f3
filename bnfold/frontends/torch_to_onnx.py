"""Exports PyTorch models to ONNX with every BatchNorm kept: both exporters of torch fold them unless told not to."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir

from bnfold.errors import MissingPackageError, ModelError
from bnfold.frontends.torch_arguments import Arguments
from bnfold.frontends.torch_capture import capture
from bnfold.frontends.torch_made_inputs import parameters_of
from bnfold.frontends.torch_quiet import first_line, silent

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram
    from torch.jit import ScriptModule

#: What torch notes about a node that is of no use without the machine it was exported on.
_TRACE = "pkg.torch.onnx.stack_trace"
_SCOPES = "pkg.torch.onnx.name_scopes"

#: Operators that stand for a whole module.
_LAYERS = frozenset({"BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul"})

#: Of the older exporter, which is the only one that takes TorchScript.
_SCRIPT_OPSET = 17


def module_to_onnx(module: nn.Module, inputs: Arguments, name: str) -> ir.Model:
    """`module`, captured as for a fold of itself: sizes that it leaves open stay open.

    Args:
        module: A module in eval mode.
        inputs: What its forward pass takes.
        name: What the graph is called.

    Raises:
        ModelError: It cannot be captured, or not be written as ONNX.
        MissingPackageError: onnxscript is not installed.
    """
    return program_to_onnx(capture(module, inputs).program, name)


def program_to_onnx(program: ExportedProgram, name: str) -> ir.Model:
    """An exported program as ONNX; layers are named after the modules that they were.

    Raises:
        ModelError: An operator has no form in ONNX.
        MissingPackageError: onnxscript is not installed.
    """
    import torch  # noqa: PLC0415

    try:
        import onnxscript  # noqa: F401, PLC0415
    except ImportError as error:
        raise MissingPackageError(
            "the ONNX exporter of torch needs onnxscript", where=name, remedy='pip install "bnfold[torch]"'
        ) from error
    with silent():
        try:
            exported = torch.onnx.export(program, (), dynamo=True, optimize=False, verbose=False)
        except Exception as error:  # the exporter's errors have no common base
            raise _not_exported(error, name) from error
    assert exported is not None
    model = ir.from_proto(exported.model_proto)
    model.graph.name = name
    _name_layers(model)
    _fix_sizes(model)
    return _tidied(model)


def script_to_onnx(module: ScriptModule, inputs: tuple[Any, ...], name: str) -> ir.Model:
    """A TorchScript program as ONNX; sizes are open where the program runs with twice of them too.

    Raises:
        ModelError: The program cannot be run with `inputs`, or not be written as ONNX.
    """
    import torch  # noqa: PLC0415

    names = [*parameters_of(module)][: len(inputs)]
    buffer = io.BytesIO()
    with silent(), torch.no_grad():
        try:
            module(*inputs)
            torch.onnx.export(
                module,
                inputs,
                buffer,  # type: ignore[arg-type]  # documented for this exporter, but not in its signature
                dynamo=False,
                training=torch.onnx.TrainingMode.PRESERVE,
                do_constant_folding=False,
                opset_version=_SCRIPT_OPSET,
                input_names=names,
                dynamic_axes=_open_axes(module, inputs, names),
            )
        except Exception as error:  # as above
            raise _not_exported(error, name) from error
    model = ir.from_proto(onnx.load_model_from_string(buffer.getvalue()))
    model.graph.name = name
    return model


def _open_axes(module: ScriptModule, inputs: Sequence[Any], names: Sequence[str]) -> Mapping[str, Mapping[int, str]]:
    """The axes that may have another size, each with a name of its own."""
    found: dict[str, dict[int, str]] = {}
    for place, name in enumerate(names):
        for axis in range(getattr(inputs[place], "ndim", 0)):
            if _runs_doubled(module, inputs, place, axis):
                found.setdefault(name, {})[axis] = f"{name}_{axis}"
    return found


def _runs_doubled(module: ScriptModule, inputs: Sequence[Any], place: int, axis: int) -> bool:
    import torch  # noqa: PLC0415

    doubled = [*inputs]
    doubled[place] = torch.cat([inputs[place]] * 2, axis)
    try:
        module(*doubled)
    except Exception:  # whatever the program says: it does not take them
        return False
    return True


def _name_layers(model: ir.Model) -> None:
    """Give linear operators and BatchNorms the paths of their modules, as they have in a fold of the module itself.

    Where on this machine a node's source is, goes.
    """
    taken: dict[str, int] = {}
    for node in model.graph.all_nodes():
        node.metadata_props.pop(_TRACE, None)
        scopes = node.metadata_props.get(_SCOPES, "")
        path = scopes.strip("[]").split(", ")[-2].strip("'\"") if scopes.count(", ") else ""
        if node.op_type in _LAYERS and path and not path.startswith("_empty"):
            taken[path] = taken.get(path, 0) + 1
            node.name = path if taken[path] == 1 else f"{path}_{taken[path]}"


def _tidied(model: ir.Model) -> ir.Model:
    """With constants computed: the exporter leaves chains of Expand and CastLike, and sequences in the place of Split.

    Nothing else is done; where a BatchNorm would go by that, the model stays as it was exported.
    """
    from onnxscript import optimizer  # noqa: PLC0415

    tidy = model.clone()
    optimizer.fold_constants(tidy)
    optimizer.remove_unused_nodes(tidy)
    return tidy if _batchnorms(tidy) == _batchnorms(model) else model


def _batchnorms(model: ir.Model) -> int:
    return sum(node.op_type == "BatchNormalization" for node in model.graph.all_nodes())


def _fix_sizes(model: ir.Model) -> None:
    """Sizes that are numbers, which the exporter of torch 2.13 writes as symbols that are called like numbers."""
    for graph in model.graphs():
        values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
        for value in values:
            if value.shape is not None:
                value.shape = ir.Shape(map(_number, value.shape))


def _number(size: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
    text = None if isinstance(size, int) else size.value
    return int(text) if text is not None and text.isdigit() else size


def _not_exported(error: Exception, name: str) -> ModelError:
    inner = error.__cause__ or error
    return ModelError(
        f"torch.onnx.export cannot write it: {first_line(inner)}",
        where=name,
        remedy="check the shapes, or fold into .pt2, which needs no export",
    )
