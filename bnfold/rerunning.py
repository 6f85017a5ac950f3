"""Some runs of a check once more with another setting of onnxruntime, each model as it is deployed: outputs only.

The runs are the first one and those on the caller's data: what a setting does to a graph hardly depends on its inputs.
Where outputs follow decisions, which may jump for a rounding, both models are fed what the original decided
(`bnfold.holding`). A quantised code is right that is off by one step at most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.comparison import TensorComparison, compare, measure_noise
from bnfold.data import read_inputs
from bnfold.dataflow import coarsest_of, coarsest_types
from bnfold.deployed import Moved
from bnfold.errors import ProviderError
from bnfold.feeds import feeds_again, perturb
from bnfold.holding import COMPUTED, computed, computed_name, decided_by, hold
from bnfold.runtime import Session, exposing, open_session

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from bnfold.comparison import Noise
    from bnfold.data_sources import Source
    from bnfold.quickcheck import QuickCheck

Arrays = dict[str, Any]
#: What a model puts out in every run, or why it cannot be run.
Results = tuple[Arrays, ...] | str
#: Opens a session as `bnfold.runtime.open_session` does.
Opener = Callable[..., Session]

#: What lies between two codes may be rounded to either.
_STEPS = 1.0


@dataclass(frozen=True, eq=False)
class Rerun:
    """Both models, what they are fed, and what they put out as verified.

    Attributes:
        provider: "cpu" or "cuda".
        models: The original and the folded model, their decisions fed.
        names: The outputs to compare, of both models.
        feeds: The inputs of every run, with the outcomes of the decisions.
        held: The names of these outcomes.
        accuracy: The coarsest floating-point type on the way to an output in either model, by name.
        verified: What either model puts out at ORT_DISABLE_ALL, without TF32.
        opener: Opens sessions.
    """

    provider: str
    models: tuple[onnx.ModelProto, onnx.ModelProto]
    names: tuple[str, ...]
    feeds: tuple[Arrays, ...]
    held: tuple[str, ...]
    accuracy: Mapping[str, str]
    verified: tuple[tuple[Arrays, ...], tuple[Arrays, ...]]
    opener: Opener

    def results(self, place: int, *, optimised: bool = False, tf32: bool = False) -> Results:
        """What the original (0) or the folded model (1) puts out with these settings, or why it cannot be run."""
        try:
            session = self.opener(self.models[place], self.provider, optimised=optimised, tf32=tf32)
            found = tuple(session.run(self.names, feeds) for feeds in self.feeds)
            session.confirm_placement()
        except ProviderError as error:
            return f"{error.where}: {error.what}" if error.where else error.what
        return found

    def moved(self, results: Results, reference: Results, coarser: str = "float64") -> Moved:
        """The worst run of every output against its reference; `coarser` is the type that the setting computes in."""
        if isinstance(results, str):
            return Moved((), results)
        if isinstance(reference, str):
            return Moved((), reference)
        found = self._worst(reference, results, coarser, [{}] * len(self.feeds))
        if any(entry.failed for entry in found):  # which the noise may explain, and it takes further runs to measure
            found = self._worst(reference, results, coarser, self._noise)
        return Moved(found)

    def _worst(
        self,
        reference: tuple[Arrays, ...],
        results: tuple[Arrays, ...],
        coarser: str,
        noises: Sequence[Mapping[str, Noise | None]],
    ) -> tuple[TensorComparison, ...]:
        worst: dict[str, TensorComparison] = {}
        for old, new, noise in zip(reference, results, noises, strict=True):
            for name in self.names:
                entry = self._compared(name, old[name], new[name], noise.get(name), coarser)
                worst[name] = max(worst.get(name, entry), entry, key=lambda e: (e.failed, e.compared, e.error))
        return tuple(worst.values())

    @cached_property
    def _noise(self) -> tuple[Mapping[str, Noise | None], ...]:
        """In every run, how far rounding moves the original's outputs."""
        session = self.opener(self.models[0], self.provider)
        coarsest = coarsest_of(self.accuracy.values())
        noises = []
        for feeds, values in zip(self.feeds, self.verified[0], strict=True):
            moved = session.run(self.names, perturb(feeds, coarsest) | {name: feeds[name] for name in self.held})
            noises.append({name: measure_noise(values[name], moved[name]) for name in self.names})
        return tuple(noises)

    def _compared(
        self, name: str, old: NDArray[Any], new: NDArray[Any], noise: Noise | None, coarser: str
    ) -> TensorComparison:
        if name.endswith(COMPUTED):
            return compare_codes(name.removesuffix(COMPUTED), old, new)
        accuracy = coarsest_of((self.accuracy.get(name, coarser), coarser))
        known = name in self.accuracy or coarser != "float64"
        return compare(name, old, new, accuracy=accuracy if known else None, noise=noise)


def compare_codes(name: str, before: NDArray[Any], after: NDArray[Any]) -> TensorComparison:
    """Quantised codes, whole numbers or small floats, in steps: the error is how many codes apart they are."""
    blank = TensorComparison(name, before.shape, before.dtype.name, float("inf"), 1.0, _STEPS, note="in steps")
    alike = (before.shape, before.dtype) == (after.shape, after.dtype)
    if not alike or before.dtype.kind not in "iu":
        same = alike and before.tobytes() == after.tobytes()
        return replace(blank, error=0.0 if same else float("inf"), passed=same)
    steps = np.abs(after.astype(np.int64) - before.astype(np.int64))
    most = float(steps.max(initial=0))
    place = tuple(int(i) for i in np.unravel_index(int(steps.argmax()), steps.shape)) if most else ()
    return replace(blank, error=most, index=place, compared=steps.size > 0, passed=steps.size > 0 and most <= _STEPS)


def prepare_rerun(  # noqa: PLR0913
    check: QuickCheck,
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    *,
    seed: int,
    data: Source | None,
    fixed: Mapping[str, NDArray[Any]],
    opener: Opener = open_session,
) -> Rerun:
    """Both models in the first run of `check`, and in those on the caller's data.

    Args:
        check: What was found on the inputs that follow.
        before: The original with its weights loaded.
        after: The folded model, likewise.
        seed: As for the check, and so are the next two.
        data: The caller's data.
        fixed: The inputs that the caller fixed.
        opener: Opens sessions.

    Raises:
        ProviderError: A model cannot be run.
    """
    runs = feeds_again(read_inputs(before), check.runs, seed=seed, given=check.given, data=data, fixed=fixed)
    chosen = [given for place, given in enumerate(runs) if place == 0 or place >= len(check.runs) - check.given]
    feeds, kinds = _decided(check, before, chosen, opener)
    known = {entry.name for entry in (*check.inner, *check.comparisons)}
    shown = sorted(decided_by(before.graph, kinds) & known)
    outputs = [entry.name for entry in check.comparisons]
    names = (*outputs, *(n for n in shown if n not in outputs), *map(computed_name, computed(before.graph, kinds)))
    models = hold(before, kinds, shown), hold(after, kinds, shown)
    session = opener(models[0], check.provider)
    flow = coarsest_types(models[0], session.types)
    was = tuple(session.run(names, given) for given in feeds)
    del session  # two in memory are enough
    folded = opener(models[1], check.provider)
    others = coarsest_types(models[1], folded.types)
    accuracy = {name: coarsest_of((flow[name], others.get(name, flow[name]))) for name in names if name in flow}
    now = tuple(folded.run(names, given) for given in feeds)
    return Rerun(check.provider, models, names, tuple(feeds), tuple(kinds), accuracy, (was, now), opener)


def _decided(
    check: QuickCheck, before: onnx.ModelProto, runs: list[Arrays], opener: Opener
) -> tuple[list[Arrays], dict[str, str]]:
    """The inputs of every run with what the original decided on them, and the types of those values."""
    if not check.held:
        return runs, {}
    session = opener(exposing(before, check.held), check.provider)
    kinds = {name: session.types[name] for name in check.held}
    return [feeds | session.run(check.held, feeds) for feeds in runs], kinds
