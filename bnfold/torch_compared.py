"""Compares a PyTorch module with something else that should compute the same; outputs are paired by position.

The truth is the module in float64. The other one may err by `4*error + 64*u*scale` of each channel, where error is that
of the module as it is stored. The inputs are the caller's, standard normal numbers, and other sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from bnfold.comparison import TOLERANCE, TensorComparison
from bnfold.dataflow import FLOATS, coarser, coarsest_of, coarsest_types
from bnfold.deployed import Deployed
from bnfold.errors import BnfoldError, ModelError
from bnfold.frontends.torch_arguments import Arguments
from bnfold.frontends.torch_capture import in_float64
from bnfold.interfaces import failure
from bnfold.quickcheck import QuickCheck, coarser_note
from bnfold.runtime import open_session
from bnfold.torch_deployed import Seen, deployed_alone
from bnfold.torch_running import Stored, cast, drawn, run, samples, tensors
from bnfold.torchcheck import as_stored, moves, outcome

if TYPE_CHECKING:
    import onnx
    from torch import nn

#: Gives the outputs for what the module's forward pass takes.
_Runner: TypeAlias = Callable[[Arguments], list[Any]]


@dataclass(frozen=True, eq=False)
class Other:
    """What the module is compared with.

    Attributes:
        provider: What it runs on.
        run: Runs it.
        names: Of its outputs; empty if it has none.
        takes: The number of its inputs; None if that does not matter.
        accuracy: The coarsest floating-point type on the way to each output, where known and coarser than the output.
        deployed: Runs it as it is deployed, on inputs and with what the module gives for them in float64; None where it
            is deployed as it runs.
    """

    provider: str
    run: _Runner
    names: tuple[str, ...] = ()
    takes: int | None = None
    accuracy: Mapping[int, str] = field(default_factory=dict)
    deployed: Callable[[list[tuple[Arguments, list[Any]]]], Deployed] | None = None


@dataclass(eq=False)
class _Found:
    comparisons: list[TensorComparison] = field(default_factory=list)
    runs: list[Mapping[str, tuple[int, ...]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    truths: list[tuple[Arguments, list[Any]]] = field(default_factory=list)
    outputs: int = 0
    alive: bool = False


def module_as_other(module: nn.Module, seed: int) -> Other:
    """Another module, which runs where its parameters are."""
    return Other("torch", lambda sample: run(module, sample, seed)[0])


def model_as_other(model: onnx.ModelProto, provider: str, *, deployed: bool = True) -> Other:
    """An ONNX model in onnxruntime, unoptimised, and as it is `deployed` unless that is left out.

    Raises:
        MissingPackageError, ProviderError: onnxruntime, or the provider, is not there, or cannot load the model.
    """
    session = open_session(model, provider)
    inputs = [(value.name, session.types[value.name]) for value in session.handle.get_inputs()]
    names = tuple(value.name for value in session.handle.get_outputs())

    def feeds(sample: Arguments) -> dict[str, Any]:
        return {name: _as_numpy(tensor, kind) for (name, kind), tensor in zip(inputs, tensors(sample), strict=True)}

    def outputs(sample: Arguments) -> list[Any]:
        return [_stored(array) for array in session.run(names, feeds(sample)).values()]

    def optimised(runs: list[tuple[Arguments, list[Any]]]) -> Deployed:
        return deployed_alone(model, session, names, [Seen(feeds(sample), truth) for sample, truth in runs])

    ends = {name: session.types[name] for name in names if session.types[name] in FLOATS}
    flow = coarsest_types(model, session.types)
    below = coarser(flow, ends)
    accuracy = {place: flow[name] for place, name in enumerate(names) if name in below}
    return Other(provider, outputs, names, len(inputs), accuracy, optimised if deployed else None)


def _as_numpy(tensor: Any, kind: str) -> Any:
    wide = tensor.detach().to("cpu")
    return (wide.double() if wide.is_floating_point() else wide).numpy().astype(kind)


def _stored(array: Any) -> Stored:
    found = np.array(array, np.float64).view(Stored)
    found.dtype_name = array.dtype.name
    return found


def check_other(before: nn.Module, other: Other, inputs: Arguments, seed: int) -> QuickCheck:
    """Run both.

    Raises:
        ModelError: The module does not run on the inputs.
    """
    found = _Found()
    count = len(tensors(inputs))
    if other.takes is not None and other.takes != count:
        note = f"the module takes {count} tensors and the model {other.takes}"
        return outcome(other.provider, [failure("inputs", note)], [], [], alive=True)
    reference = in_float64(before)
    for place, sample in enumerate([inputs, *samples(before, inputs, seed, found.notes)]):
        try:
            truth, stored = run(reference, cast(sample), seed)[0], run(before, sample, seed)[0]
            elsewhere = run(reference, drawn(cast(sample), seed + 1), seed)[0]
        except Exception as error:  # the user's forward pass may raise anything
            raise _does_not_run(before, error) from error
        shapes = {f"input {i}": tuple(t.shape) for i, t in enumerate(tensors(sample))}
        try:
            after = other.run(sample)
        except Exception as error:
            _note(found, error, shapes, is_first=place == 0)
            continue
        found.runs.append(shapes)
        found.alive |= any(moves(a, b) for a, b in zip(truth, elsewhere, strict=False))
        found.comparisons += _compared(truth, stored, after, other)
        found.truths += [(sample, truth)] if len(truth) == len(after) else []
        found.outputs = max(found.outputs, len(truth))
    alive = found.alive and any(entry.compared for entry in found.comparisons)
    if other.accuracy and found.runs:
        found.notes.append(coarser_note(len(other.accuracy), coarsest_of(other.accuracy.values())))
    check = _closed(other.provider, found, alive=alive)
    return (
        check if other.deployed is None or not found.truths else replace(check, deployed=other.deployed(found.truths))
    )


def _closed(provider: str, found: _Found, *, alive: bool) -> QuickCheck:
    if not found.runs:
        return QuickCheck(provider, (), (), tuple(found.notes), (), None, failed=False, proves=False)
    return outcome(provider, found.comparisons, found.notes, found.runs, alive=alive, outputs=found.outputs)


def _does_not_run(module: nn.Module, error: Exception) -> ModelError:
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return ModelError(
        f"module(*example_inputs) raises {type(error).__name__}: {first.strip()}",
        where=type(module).__name__,
        remedy="correct it, or the example inputs",
    )


def _note(found: _Found, error: Exception, shapes: Mapping[str, tuple[int, ...]], *, is_first: bool) -> None:
    """What cannot be run: with the caller's own sizes that is the result, with others it is a limit of the model."""
    what = error.what if isinstance(error, BnfoldError) else next(iter(str(error).splitlines()), type(error).__name__)
    sizes = " and ".join("x".join(map(str, shape)) for shape in shapes.values())
    if is_first or not found.runs:
        found.notes.append(f"The second of the two cannot be run with inputs of {sizes}: {what}.")
    else:
        found.notes.append(f"The second of the two takes no inputs of {sizes}.")


def _compared(truth: list[Any], stored: list[Any], after: list[Any], second: Other) -> Iterator[TensorComparison]:
    if len(truth) != len(after):
        yield failure("outputs", f"the number of outputs changed from {len(truth)} to {len(after)}")
        return
    for i, (exact, mine, other) in enumerate(zip(truth, stored, after, strict=True)):
        name = f"output {i}{f' ({second.names[i]})' if second.names else ''}"
        if mine.dtype_name != other.dtype_name:
            yield failure(name, f"the type changed from {mine.dtype_name} to {other.dtype_name}", mine.dtype_name)
        elif exact.shape != other.shape:
            yield failure(name, f"the shape changed from {exact.shape} to {other.shape}", mine.dtype_name)
        else:
            yield as_stored(name, exact, mine, other, TOLERANCE[second.accuracy[i]] if i in second.accuracy else 0.0)
