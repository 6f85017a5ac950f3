"""Compares two models that somebody else may have made: ONNX with ONNX, or a PyTorch module with either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast, overload

from bnfold.checking import prepare_check
from bnfold.data_sources import DataLike
from bnfold.errors import UsageError
from bnfold.inputs import InputsLike
from bnfold.models import ModelLike, opened
from bnfold.providers import each_provider
from bnfold.torch_dispatch import is_module, verify_torch
from bnfold.verification import Verification
from bnfold.wishes import Progress, Where, Wishes

if TYPE_CHECKING:
    from torch import nn


@overload
def verify(
    before: nn.Module,
    after: nn.Module | ModelLike,
    *,
    example_inputs: tuple[Any, ...] | None = ...,
    example_kwargs: Mapping[str, Any] | None = ...,
    providers: Sequence[str] = ...,
    seed: int = ...,
    deployed: bool = ...,
    progress: Progress | None = ...,
) -> Verification: ...


@overload
def verify(
    before: ModelLike,
    after: ModelLike,
    *,
    providers: Sequence[str] = ...,
    shapes: Mapping[str, tuple[int, ...]] | None = ...,
    inputs: InputsLike | None = ...,
    seed: int = ...,
    data: DataLike | None = ...,
    oracle: bool = ...,
    metric: str | None = ...,
    metric_output: str | None = ...,
    deployed: bool = ...,
    progress: Progress | None = ...,
) -> Verification: ...


def verify(  # noqa: PLR0913
    before: ModelLike | nn.Module,
    after: ModelLike | nn.Module,
    *,
    example_inputs: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    providers: Sequence[str] = ("cpu",),
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    inputs: InputsLike | None = None,
    seed: int = 0,
    data: DataLike | None = None,
    oracle: bool = False,
    metric: str | None = None,
    metric_output: str | None = None,
    deployed: bool = True,
    progress: Progress | None = None,
) -> Verification:
    """Run two models on the same inputs, unoptimised, and compare their outputs and inner tensors of equal name.

    Then their outputs as they are deployed, with the runtime's own optimiser, unless `deployed` says not to.

    A PyTorch module is compared with another one, or with an ONNX model of it, by their outputs in order: on the given
    `example_inputs` and `example_kwargs`, numbers of their shapes, and other sizes; the model then as deployed, where
    it must be as right as it was. Args and errors as `fold`; a
    difference is no error here but in the result.
    """
    wishes = Wishes(inputs, oracle, metric, metric_output, deployed=deployed)
    if is_module(before) or is_module(after):
        loaded = after if is_module(after) else opened(cast("ModelLike", after))[0]
        example = example_inputs, example_kwargs
        others = shapes, data is not None, wishes, not deployed and is_module(after)
        return verify_torch(before, loaded, example, others, providers=each_provider(providers), seed=seed,
                            deployed=deployed, progress=progress)  # fmt: skip
    if example_inputs is not None or example_kwargs is not None:
        what = "example_inputs and example_kwargs are for PyTorch modules"
        raise UsageError(what, where="verify", remedy="data=... is for ONNX models")
    old, new = (opened(cast("ModelLike", model))[0] for model in (before, after))
    check = replace(prepare_check(old, Where(providers, shapes, seed), data, wishes, progress), foreign=True)
    return Verification((), check.quick(old, new))
