"""What onnxruntime's own optimiser does to an ONNX model of a PyTorch module, which itself no runtime rewrites.

The model at ORT_ENABLE_ALL is compared with itself at ORT_DISABLE_ALL. Where they differ, the module in float64 tells
which of the two is right, by the rule of `bnfold.deploying`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bnfold.comparison import UNIT_ROUNDOFF, TensorComparison, compare
from bnfold.dataflow import coarsest_types
from bnfold.deployed import Deployed, Moved
from bnfold.deploying import settle
from bnfold.errors import ProviderError
from bnfold.runtime import Session, open_session
from bnfold.verdicts import nudged, verdict_on

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from bnfold.affine import Float64Array


@dataclass(frozen=True, eq=False)
class Seen:
    """One run of the comparison.

    Attributes:
        feeds: What the model was fed.
        truth: The outputs of the module in float64, in order.
    """

    feeds: dict[str, NDArray[Any]]
    truth: Sequence[Float64Array]


def deployed_alone(model: onnx.ModelProto, plain: Session, names: Sequence[str], runs: Sequence[Seen]) -> Deployed:
    """What the optimiser does to the outputs in every run, the worst run of each.

    Args:
        model: The ONNX model with its weights.
        plain: The same in an unoptimised session.
        names: The outputs, in order.
        runs: What was run; both have as many outputs.
    """
    worst, accuracy = dict[str, TensorComparison](), coarsest_types(model, plain.types)
    try:
        session = open_session(model, plain.provider, optimised=True)
        now = [session.run(names, run.feeds) for run in runs]
        session.confirm_placement()
    except ProviderError as error:
        return Deployed(folded=Moved((), f"{error.where}: {error.what}" if error.where else error.what), alone=True)
    for run, found in zip(runs, now, strict=True):
        was = plain.run(names, run.feeds)
        for place, (name, truth) in enumerate(zip(names, run.truth, strict=True)):
            entry = compare(f"output {place} ({name})", was[name], found[name], accuracy=accuracy.get(name))
            if entry.failed:
                both = name, truth, was[name], found[name]
                entry = _judged(entry, plain, run, both, accuracy.get(name))
            known = worst.get(name, entry)
            worst[name] = max(known, entry, key=lambda e: (e.failed, e.compared, e.error))
    return Deployed(folded=Moved(tuple(worst.values())), alone=True)


def _judged(
    entry: TensorComparison,
    plain: Session,
    run: Seen,
    both: tuple[str, Float64Array, NDArray[Any], NDArray[Any]],
    coarsest: str | None,
) -> TensorComparison:
    """A difference against the module in float64; whole numbers may hang on a rounding."""
    name, truth, was, now = both
    if was.dtype != now.dtype or was.shape != now.shape:
        return entry
    if was.dtype.name not in UNIT_ROUNDOFF:
        return replace(entry, compared=False, note="whole numbers may hang on a rounding")
    if was.shape != truth.shape:
        return entry
    originals = [was, *(plain.run((name,), moved)[name] for moved in nudged(run.feeds))]
    return settle(entry, verdict_on(truth, originals, now, coarsest))
