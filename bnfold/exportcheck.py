"""An exported model against the PyTorch module that it was exported from, before anything is folded in it.

The proof of a fold starts at the ONNX model, so what the exporter does wrong would pass it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.comparison import UNIT_ROUNDOFF, compare, measure_noise
from bnfold.dataflow import coarsest_of
from bnfold.errors import ModelError, VerificationError
from bnfold.feeds import perturb
from bnfold.runtime import open_session

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray
    from torch import Tensor, nn

    Arrays = list[NDArray[Any]]


def check_export(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], model: onnx.ModelProto, where: str
) -> None:
    """Compare the floating-point outputs of both on one input, in their own arithmetic.

    Args:
        module: The module.
        args: What its forward pass takes by position.
        kwargs: And what by name.
        model: What was exported of it, with its weights.
        where: The file, for messages.

    Raises:
        ModelError: The module cannot be run with these inputs.
        VerificationError: They differ by more than rounding explains.
        ProviderError, MissingPackageError: onnxruntime cannot run the model, or is not installed.
    """
    feeds = dict(zip((value.name for value in model.graph.input), _arrays((list(args), dict(kwargs))), strict=True))
    names = [value.name for value in model.graph.output]
    before = _run(module, args, kwargs, where)
    moved = _run(module, *_moved(args, kwargs, _coarsest(feeds)), where)
    found = open_session(model).run(names, feeds)
    if len(names) != len(before):
        raise _differs(f"it has {len(names)} outputs and not {len(before)}", where)
    for name, old, noisy in zip(names, before, moved, strict=True):
        entry = compare(name, old, found[name], noise=measure_noise(old, noisy))
        if old.dtype.name in UNIT_ROUNDOFF and entry.failed:  # whole numbers may hang on a rounding
            by = entry.note or f"by {entry.error:.2g} of its scale ({entry.tolerance:.1g} allowed)"
            raise _differs(f"output {name} differs, {by}", where)


def _differs(how: str, where: str) -> VerificationError:
    return VerificationError(f"torch.onnx.export changed what the model computes: {how}", where=where)


def _coarsest(feeds: Mapping[str, NDArray[Any]]) -> str:
    floating = [a.dtype.name for a in feeds.values() if a.dtype.name in UNIT_ROUNDOFF]
    return coarsest_of(floating)


def _run(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], where: str) -> Arrays:
    import torch  # noqa: PLC0415

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _arrays(module(*args, **kwargs), numbers=True)
        except Exception as error:  # the user's forward pass may raise anything
            said = next(iter(str(error).splitlines()), type(error).__name__)
            what = f"the model cannot be run with these inputs: {said}"
            raise ModelError(what, where=where, remedy="give other sizes with --shape") from error


def _arrays(values: Any, *, numbers: bool = False) -> Arrays:
    """The tensors in a nest, as arrays; of outputs, ONNX has the numbers among them too."""
    import torch  # noqa: PLC0415
    from torch.utils import _pytree  # noqa: PLC0415

    leaves = _pytree.tree_leaves(values)
    return [
        _array(leaf) if isinstance(leaf, torch.Tensor) else np.asarray(leaf)
        for leaf in leaves
        if isinstance(leaf, torch.Tensor) or (numbers and isinstance(leaf, int | float))
    ]


def _array(tensor: Tensor) -> NDArray[Any]:
    import ml_dtypes  # noqa: PLC0415  # comes with onnx
    import torch  # noqa: PLC0415

    if tensor.dtype == torch.bfloat16:  # which torch cannot hand to NumPy
        return tensor.detach().contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return np.asarray(tensor.detach())


def _moved(args: Sequence[Any], kwargs: Mapping[str, Any], accuracy: str) -> tuple[list[Any], dict[str, Any]]:
    """The inputs, moved by a few roundings."""
    import torch  # noqa: PLC0415
    from torch.utils import _pytree  # noqa: PLC0415

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point():
            return leaf
        return torch.from_numpy(perturb({"": leaf.double().numpy()}, accuracy)[""]).to(leaf.dtype)

    moved: tuple[list[Any], dict[str, Any]] = _pytree.tree_map(move, (list(args), dict(kwargs)))
    return moved
