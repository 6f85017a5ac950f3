"""What float64 says of two models, tensor by tensor: the worst verdict on each over all runs of a check.

`error(folded) <= 4*error(original) + 64*u*scale` in every channel (`bnfold.judging`), both against the original in
float64. The original's error is the largest of several runs: as it is, and with inputs or weights off by one rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bnfold.affine import Float64Array
from bnfold.comparison import TOLERANCE, UNIT_ROUNDOFF
from bnfold.data import read_inputs
from bnfold.data_sources import Source
from bnfold.dataflow import coarser, coarsest_types, node_bodies
from bnfold.feeds import feeds_again
from bnfold.frontends.onnx_float64 import in_float64
from bnfold.frontends.onnx_kernels_run import evaluate
from bnfold.judging import ERROR_ROUNDINGS, Errors, channel_errors, channel_scales, judge, worse
from bnfold.quickcheck import QuickCheck
from bnfold.runtime import exposing, open_session

Arrays = dict[str, npt.NDArray[Any]]

#: The oracle is believed where the original differs from it by no more than this many tolerances.
_BELIEVED = 16.0


@dataclass(frozen=True, eq=False)
class _Seen:
    """The type of a tensor by NumPy's name, and its largest error in every channel."""

    kind: str
    errors: Float64Array


@dataclass(frozen=True, eq=False)
class Repeat:
    """The runs of a check once more.

    Attributes:
        check: What was found on them.
        model: The original with its weights loaded.
        seed: As for the check, and so are the next two.
        data: The caller's data.
        fixed: The inputs that the caller fixed.
    """

    check: QuickCheck
    model: onnx.ModelProto
    seed: int
    data: Source | None = None
    fixed: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    @property
    def fewer(self) -> Repeat:
        """The first run and those on the caller's data."""
        runs, given = self.check.runs, self.check.given
        return replace(self, check=replace(self.check, runs=(runs[0], *runs[len(runs) - given :]), kinds=()))

    def __iter__(self) -> Iterator[tuple[Arrays, bool]]:
        """The inputs of every run, and whether they are a pattern (`bnfold.patterns`)."""
        runs, kinds, given = self.check.runs, self.check.kinds, self.check.given
        inputs = read_inputs(self.model)
        again = feeds_again(inputs, runs, seed=self.seed, given=given, data=self.data, kinds=kinds, fixed=self.fixed)
        for place, feeds in enumerate(again):
            yield feeds, place >= len(runs)


def verdicts(  # noqa: PLR0913
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    names: Sequence[str],
    runs: Iterable[tuple[Arrays, bool]],
    provider: str,
    *,
    roundings: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, Errors]:
    """The worst verdict on each of `names` over all runs; none where shapes or types differ in any of them.

    A tensor is as exact as the coarsest floating-point type on the way to it: float32 behind float16 is float16. There
    is no verdict where that is coarser in the folded model: then the rule of both in one arithmetic says nothing.

    Args:
        before: The original with its weights loaded.
        after: The folded model, likewise.
        names: Floating-point values that both compute.
        runs: Inputs, and whether they are a pattern.
        provider: "cpu" or "cuda".
        roundings: As for `judge`, by the coarsest type.

    Raises:
        ModelError: The original cannot be computed in float64.
        ProviderError: A model cannot be run.
    """
    wide = in_float64(before)
    models = (before, after, *(_rounded_again(before, seed) for seed in range(2)))
    original, folding, *others = (open_session(exposing(model, names), provider) for model in models)
    coarsest = coarsest_types(before, original.types)
    unlike = coarser(coarsest_types(after, folding.types), coarsest)
    names = [name for name in names if name not in unlike]
    worst: dict[str, Errors | None] = {}
    usual: dict[str, Float64Array] = {}
    for feeds, is_pattern in runs:
        truth = evaluate(wide, feeds, names)
        usual = usual or {name: channel_scales(truth[name]) for name in names}
        if is_pattern:  # as in `bnfold.examining`
            truth = {name: values for name, values in truth.items() if np.isfinite(values).all()}
        # one at a time: of a stage, what is fed are all tensors of the network
        draws = chain(((original, moved) for moved in chain((feeds,), nudged(feeds))), ((o, feeds) for o in others))
        was = _largest(truth, (session.run(names, fed) for session, fed in draws))
        now = _largest(truth, (folding.run(names, feeds),))
        for name in truth:
            scales, kind = usual[name] if is_pattern else None, coarsest.get(name)
            verdict = _verdict(truth[name], was[name], now[name], scales, roundings=roundings, coarsest=kind)
            known = worst.get(name, verdict)
            worst[name] = None if known is None or verdict is None else worse(known, verdict)
    return {name: verdict for name, verdict in worst.items() if verdict is not None}


def verdict_on(
    truth: Float64Array,
    originals: Iterable[npt.NDArray[Any]],
    folded: npt.NDArray[Any],
    coarsest: str | None = None,
) -> Errors | None:
    """One tensor of one run against the truth; None where shapes or types differ.

    Args:
        truth: What is right, in float64.
        originals: The same tensor as the original computes it: as it is, and rounded otherwise.
        folded: And as the folded model does.
        coarsest: The coarsest floating-point type on the way to it; by default its own.
    """
    was, now = (_largest({"": truth}, ({"": values} for values in results))[""] for results in (originals, (folded,)))
    return _verdict(truth, was, now, coarsest=coarsest)


def _largest(truth: Mapping[str, Float64Array], results: Iterable[Arrays]) -> dict[str, _Seen | None]:
    """The largest errors over all `results`, one of which is in memory at a time; None where shapes or types differ."""
    found: dict[str, _Seen | None] = {}
    for result in results:
        for name, exact in truth.items():
            values = result[name]
            known = found.get(name, _Seen(values.dtype.name, np.float64(0)))
            if known is None or (values.shape, values.dtype.name) != (exact.shape, known.kind):
                found[name] = None
            else:
                found[name] = _Seen(known.kind, np.maximum(known.errors, channel_errors(exact, values)))
    return found


def _verdict(  # noqa: PLR0913
    truth: Float64Array,
    was: _Seen | None,
    now: _Seen | None,
    usual: Float64Array | None = None,
    *,
    roundings: Mapping[str, float] = MappingProxyType({}),
    coarsest: str | None = None,
) -> Errors | None:
    if was is None or now is None or was.kind != now.kind:
        return None
    kind = coarsest or now.kind
    granted = roundings.get(kind, ERROR_ROUNDINGS)
    verdict = judge(channel_scales(truth), was.errors, now.errors, UNIT_ROUNDOFF[kind], usual, roundings=granted)
    return replace(verdict, believed=verdict.original <= _BELIEVED * TOLERANCE[kind])


def nudged(feeds: Arrays) -> Iterator[Arrays]:
    """The inputs off by one rounding, thrice: an error that the original's arithmetic makes anyway, drawn again.

    Where a network amplifies rounding, the largest error of one run says little; that of four runs says more.
    """
    generator = np.random.default_rng(0)
    for _ in range(3):
        draw = dict(feeds)
        for name, value in feeds.items():
            if value.dtype.name in UNIT_ROUNDOFF:
                away = generator.choice([-np.inf, np.inf], value.shape).astype(value.dtype)
                draw[name] = np.asarray(np.nextafter(value, away))
        yield draw


def _rounded_again(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The model with its weights as if they had been rounded once more, which a fold cannot help.

    Such an error has one sign all over an image, so that a mean over the image shows it and hides all others. One step
    up or down with the probability 1/12 has the variance of a rounding, which is uniform within half a step. Of a
    vector (a bias, the parameters of a BatchNorm) every number takes a step: a channel has but one, and luck would
    decide whether any draw shows what its rounding does. Of float64 every number does, too: the oracle rounds as the
    original does, so that their difference does not show what either rounds away (means of 1000 standard deviations
    lose three digits in both alike). The scales of a Resize say where its output lies and stay: there is no
    image of 1 + 2^-23 times the size.
    """
    generator = np.random.default_rng(seed)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    fixed = set(_placing(copy.graph))
    for tensor in copy.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype.name in UNIT_ROUNDOFF and tensor.dims and tensor.name not in fixed:
            away = generator.choice([-np.inf, np.inf], array.shape).astype(array.dtype)
            share = 1.0 if array.ndim == 1 or array.dtype == np.float64 else 1 / 12
            moved = np.where(generator.random(array.shape) < share, np.nextafter(array, away), array)
            tensor.CopyFrom(onnx.numpy_helper.from_array(moved, tensor.name))
    return copy


def _placing(graph: onnx.GraphProto) -> Iterator[str]:
    """Names of the numbers that say where a Resize takes its output from."""
    for node in graph.node:
        if node.op_type in ("Resize", "Upsample"):
            yield from node.input[1:]
        for body in node_bodies(node):
            yield from _placing(body)
