"""`bnfold.verify` for PyTorch modules; `bnfold.verifying` hands them on to here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, cast

from bnfold.api_torch import check_initialised, check_mode
from bnfold.frontends.onnx_files import in_memory
from bnfold.frontends.torch_arguments import Arguments, demanded
from bnfold.frontends.torch_guess import made_up_inputs
from bnfold.torch_compared import Other, check_other, model_as_other, module_as_other
from bnfold.torch_dispatch import is_module
from bnfold.verification import Verification

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn


def verify_module(  # noqa: PLR0913
    before: nn.Module,
    after: nn.Module | ir.Model,
    inputs: Arguments | None,
    *,
    providers: tuple[str, ...] = ("cpu",),
    seed: int = 0,
    deployed: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Verification:
    """Compare the outputs of `before` with those of `after`.

    Args:
        before: The original, in eval mode.
        after: Another module in eval mode, or an ONNX model.
        inputs: What the forward pass of `before` takes; its tensors, in order, are the inputs of an ONNX model.
        providers: Where an ONNX model runs.
        seed: Of the numbers.
        deployed: Whether an ONNX model is run as people deploy it as well, with the runtime's own optimiser.
        progress: Told what is being done.

    Raises:
        UsageError: There are no inputs, and none could be made up.
        ModelError: A module is in training mode, or the original does not run on the inputs.
        MissingPackageError, ProviderError: onnxruntime, or a provider, is not there.
    """
    check_mode(before)
    check_initialised(before)
    given = demanded(inputs if inputs is not None else next(iter(made_up_inputs(before)), None))
    checks = []
    for other in _others(after, providers, seed, deployed=deployed):
        if progress:
            progress(f"comparing with {'the module' if is_module(after) else 'the model'} on {other.provider}")
        checks.append(check_other(before, other, given, seed))
    return Verification((), tuple(checks))


def _others(after: nn.Module | ir.Model, providers: tuple[str, ...], seed: int, *, deployed: bool) -> Iterator[Other]:
    if is_module(after):
        check_mode(after)
        check_initialised(after)
        yield module_as_other(after, seed)
        return
    model = in_memory(cast("ir.Model", after))
    for provider in providers:
        yield model_as_other(model, provider, deployed=deployed)
