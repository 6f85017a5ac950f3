"""Measures how fast a model is before and after a fold, in one run and in turns: `ratio = time(after) / time(before)`.

At ORT_DISABLE_ALL the models themselves are compared. At ORT_ENABLE_ALL, which people deploy with, onnxruntime folds
the easy BatchNorms of the original itself; how many it leaves in both models is said beside the figures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir

from bnfold.data import fill_shapes, read_inputs, synthesise
from bnfold.errors import BnfoldError, ProviderError, UsageError
from bnfold.frontends.onnx_files import in_memory
from bnfold.inputs import InputsLike, fixed_inputs
from bnfold.models import opened
from bnfold.providers import each_provider
from bnfold.report.bench_report import BenchReport, Measured
from bnfold.runtime import open_session, require
from bnfold.stopwatch import duel

if TYPE_CHECKING:
    import os

    from bnfold.runtime import Session

Feeds = dict[str, Any]

#: Image sizes to try where the model leaves them open, the usual one first.
_SIZES = (224, 64, 299, 32, 640)


def benchmark(  # noqa: PLR0913
    before: ir.Model | str | os.PathLike[str],
    after: ir.Model | str | os.PathLike[str],
    *,
    providers: Sequence[str] = ("cpu",),
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    seed: int = 0,
    threads: int = 0,
    rounds: int = 30,
    inputs: InputsLike | None = None,
    progress: Callable[[str], None] | None = None,
) -> BenchReport:
    """Time two models on the same seeded inputs, in turns, at both levels of onnxruntime's optimiser.

    Args:
        before: The original: a model or the path of an ONNX file.
        after: The folded one, likewise.
        providers: Execution providers: "cpu", "cuda". On CUDA the copies to the device and back are part of the time.
        shapes: Shapes of inputs by name, where the model leaves them open; by default one sample, images of 224.
        seed: Seed of the inputs.
        threads: Threads within an operator; 0 leaves the choice to onnxruntime, which takes one for each core.
        rounds: How often each model is measured.
        inputs: Inputs that hold indices or sizes, by name: arrays, or paths of .npy files.
        progress: Told what is being done.

    Raises:
        UsageError: A file does not exist, `shapes` contradicts the model, or there is no round.
        ModelError: A file is not an ONNX model that can be read, or the nodes of a model in memory are out of order.
        MissingPackageError, ProviderError: The models cannot be run there.
        DataError: No input can be made up, or one of `inputs` does not fit.
    """
    if rounds < 1 or threads < 0:
        raise UsageError("there is at least one round, and not less than no threads", where="benchmark")
    providers = each_provider(providers)
    for provider in providers:
        require(provider)
    models = [in_memory(opened(model)[0]) for model in (before, after)]
    specs = read_inputs(models[0])
    feeds = _feeds(models[0], dict(shapes or {}), seed, fixed_inputs(inputs, specs) if inputs else {})
    tell = progress or (lambda _clause: None)
    measured = []
    for provider in providers:
        for optimised in (False, True):
            tell(f"measuring on {provider} at {'ENABLE_ALL' if optimised else 'DISABLE_ALL'}")
            measured.append(_measure(models, feeds, provider, optimised=optimised, threads=threads, rounds=rounds))
    names = [_name(model) for model in (before, after)]
    return BenchReport(names[0], names[1], {n: v.shape for n, v in feeds.items()}, threads, rounds, tuple(measured))


def _name(model: ir.Model | str | os.PathLike[str]) -> str:
    return model.graph.name or "model" if isinstance(model, ir.Model) else Path(model).name


def _feeds(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]], seed: int, fixed: Feeds) -> Feeds:
    """One sample, of the first image size that the model takes."""
    inputs = read_inputs(model)
    shapes |= {name: value.shape for name, value in fixed.items()}
    fill_shapes(inputs, batch=1, spatial=_SIZES[0], overrides=shapes)
    sizes = _SIZES if any(spec.open_spatial_axes for spec in inputs if spec.name not in shapes) else _SIZES[:1]
    session = open_session(model)
    refused: BnfoldError | None = None
    for size in sizes:
        feeds: Feeds = synthesise(inputs, seed=seed, batch=1, overrides=shapes, spatial=size) | fixed
        try:
            session.run([value.name for value in model.graph.output], feeds)
        except ProviderError as error:
            refused = refused or error
        else:
            return feeds
    assert refused is not None
    raise refused


def _measure(  # noqa: PLR0913
    models: Sequence[onnx.ModelProto], feeds: Feeds, provider: str, *, optimised: bool, threads: int, rounds: int
) -> Measured:
    sessions = [open_session(model, provider, optimised=optimised, threads=threads) for model in models]
    runs = [partial(_run, session, model, feeds) for session, model in zip(sessions, models, strict=True)]
    found = duel(runs[0], runs[1], rounds)
    for session in sessions:
        session.confirm_placement()
    left = tuple(_batchnorms(model, provider, optimised=optimised) for model in models)
    level = "ENABLE_ALL" if optimised else "DISABLE_ALL"
    return Measured(provider, level, found.first, found.second, found.ratio, (left[0], left[1]))


def _run(session: Session, model: onnx.ModelProto, feeds: Feeds) -> None:
    session.run([value.name for value in model.graph.output], feeds)


def _batchnorms(model: onnx.ModelProto, provider: str, *, optimised: bool) -> int:
    """How many BatchNorms onnxruntime runs, bodies included: those that its own optimiser left, if it ran."""
    if not optimised:
        return _count(model.graph)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        open_session(model, provider, optimised=True, writes=path)
        return _count(onnx.load(path, load_external_data=False).graph)


def _count(graph: onnx.GraphProto) -> int:
    bodies = [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    own = [node for node in graph.node if node.op_type == "BatchNormalization"]
    return len(own) + sum(_count(body) for body in bodies)
