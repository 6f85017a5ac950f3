"""Example inputs for a module that came without: what first reads each input says its rank and channels.

A guess proves nothing. So every rank that the module takes is tried, images that are square and oblong, and what a
fold may do must hold for all of them; a module that does something else at other sizes gets no guess at all.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, TypeAlias

from bnfold.frontends.torch_arguments import Arguments
from bnfold.frontends.torch_capture import Captured, copied, runs
from bnfold.frontends.torch_limits import ranges

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import Node

#: Sizes of images, in the order of trying; the lower ones cost less, the higher ones some networks insist on.
_SIDES = (64, 32, 96, 128, 224, 256, 299, 384, 28, 512)

#: Lengths of sequences in between, where nothing asks for one.
_LENGTH = 7

#: A shape that depends on the size of images: None stands for it, -1 for one and a half of it.
_Form: TypeAlias = "tuple[int | None, ...]"

#: Kinds of inputs to try, and kinds that one module may take.
_MOST_TRIED, _MOST_KINDS = 32, 6


def made_up_inputs(module: nn.Module) -> list[Arguments]:
    """Example inputs of every kind that the module takes; none where its layers do not tell."""
    parameters = _parameters(module)
    if not parameters:
        return []
    readers = _readers(module, parameters)
    choices = [list(dict.fromkeys(_forms(module, reader))) if reader is not None else [] for reader in readers]
    found = []
    for forms in list(product(*choices))[:_MOST_TRIED]:
        whole = any(None in form for form in forms)
        for side in _SIDES if whole else _SIDES[:1]:
            tensors = (_tensor(module, reader, form, side) for reader, form in zip(readers, forms, strict=True))
            inputs = Arguments(tuple(tensors), {})
            if runs(module, inputs):
                found.append(inputs)
                break
    return found if len(found) <= _MOST_KINDS else []


def differs_elsewhere(module: nn.Module, captured: Captured) -> str:
    """An input size beyond those that the capture holds for, with which the module runs as well; empty if none does."""
    import torch  # noqa: PLC0415

    names = [name for name in captured.program.graph_signature.user_inputs if isinstance(name, str)]
    for name, axis, lower, upper in ranges(captured):
        place = names.index(name)
        for size in ([lower - 1] if lower > 0 else []) + ([upper + 1] if upper is not None else []):
            given = captured.inputs.args[place]
            shape = [size if i == axis else n for i, n in enumerate(given.shape)]
            trial = torch.zeros(shape, dtype=given.dtype, device=given.device)
            others = captured.inputs.args
            if runs(module, Arguments((*others[:place], trial, *others[place + 1 :]), {})):
                return f"axis {axis} of {name} of size {size}"
    return ""


def _parameters(module: nn.Module) -> list[str]:
    """The inputs that the forward pass insists on; none where that is not clear."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = [p for p in inspect.signature(module.forward).parameters.values() if p.default is p.empty]
    return [p.name for p in found] if all(p.kind in kinds for p in found) else []


def _readers(module: nn.Module, names: Sequence[str]) -> list[nn.Module | None]:
    """The layer that reads each input first: as a symbolic trace shows it, else for one input the first of all."""
    from torch import fx  # noqa: PLC0415

    copy = copied(module)
    try:
        graph = fx.Tracer().trace(copy, concrete_args=_defaults(copy))
    except Exception:  # a forward pass that asks for shapes, say
        layers = [part for part in module.modules() if any(True for _ in _forms(module, part))]
        return [layers[0] if layers else None] if len(names) == 1 else [None] * len(names)
    placeholders = {str(node.target): node for node in graph.nodes if node.op == "placeholder"}
    return [_first_reader(module, placeholders.get(name)) for name in names]


def _defaults(module: nn.Module) -> dict[str, Any]:
    """The inputs that may be left out."""
    parameters = inspect.signature(module.forward).parameters.values()
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.kind not in kinds}


def _first_reader(module: nn.Module, node: Node | None) -> nn.Module | None:
    """The nearest layer that tells its input's shape, behind layers and functions that do not."""
    waiting = [node] if node is not None else []
    while waiting:
        current = waiting.pop(0)
        if current.op == "call_module":
            part = module.get_submodule(str(current.target))
            if any(True for _ in _forms(module, part)):
                return part
        waiting += list(current.users)
    return None


def _forms(module: nn.Module, reader: nn.Module) -> Iterator[_Form]:
    """Shapes of a batch of inputs of a layer."""
    from torch import nn  # noqa: PLC0415

    convolutions = {nn.Conv1d: 1, nn.ConvTranspose1d: 1, nn.Conv2d: 2, nn.ConvTranspose2d: 2, nn.Conv3d: 3,
                    nn.ConvTranspose3d: 3}  # fmt: skip
    channels = getattr(reader, "in_channels", None) or getattr(reader, "num_features", None)
    axes = next((n for kind, n in convolutions.items() if isinstance(reader, kind)), 0)
    norms = {nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}
    axes = axes or next((n for kind, n in norms.items() if isinstance(reader, kind)), 0)
    if axes and channels:
        yield (2, channels, *[None] * axes)
        if axes > 1:
            yield (2, channels, *[None] * (axes - 1), -1)
    elif isinstance(reader, nn.BatchNorm1d | nn.SyncBatchNorm) and channels:
        yield from ((2, channels), (2, channels, None), (2, channels, None, None))
    elif isinstance(reader, nn.Linear) and reader.in_features:  # none while it is lazy
        yield (2, reader.in_features)
        lengths = [part.num_features for part in module.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]
        for length in dict.fromkeys([_LENGTH, *lengths]):
            yield (2, length, reader.in_features)
            yield (2, length, _LENGTH, reader.in_features)
    elif isinstance(reader, nn.Embedding | nn.EmbeddingBag):
        yield (2, _LENGTH)
    elif isinstance(reader, nn.RNNBase):
        yield (2, _LENGTH, reader.input_size)


def _tensor(module: nn.Module, reader: nn.Module | None, form: _Form, side: int) -> Any:
    """Standard normal numbers of the type and on the device of the module's, or indices."""
    import torch  # noqa: PLC0415

    shape = [side if size is None else side * 3 // 2 if size == -1 else size for size in form]
    own = next((p for p in (reader or module).parameters()), torch.zeros(()))
    if isinstance(reader, torch.nn.Embedding | torch.nn.EmbeddingBag):
        return torch.zeros(shape, dtype=torch.int64, device=own.device)
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return numbers.to(own.device, own.dtype)
