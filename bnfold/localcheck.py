"""The local test: every region of folds, cut out of both models, computes the same in float64 on the same inputs.

Each element must satisfy `|folded - original| <= u*(|W'|*|x| + |b'|)`, u the unit round-off of the stored dtype: one
rounding of each stored number, and nothing more. To that comes the rounding of the float64 arithmetic itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from bnfold.affine import Float64Array
from bnfold.dataflow import FLOATS
from bnfold.errors import BnfoldError
from bnfold.folding import FoldPlan
from bnfold.frontends.onnx_float64 import in_float64
from bnfold.frontends.onnx_kernels_run import evaluate
from bnfold.frontends.onnx_magnitude import magnitude_model
from bnfold.frontends.onnx_regions import Cutter
from bnfold.localsizes import model_shapes, small_shapes
from bnfold.regions import Region
from bnfold.rounding import smallest_normal, unit_roundoff
from bnfold.selftest import SelfTest, try_itself

_DOUBLE = 2.0**-53


@dataclass(frozen=True)
class LocalCheck:
    """The local test of one region: folds that share an operator.

    Attributes:
        batchnorms: What was folded in it; nothing where two linear operators merely became one.
        ratio: The largest error in units of the bound; at most 1 for a right fold. None if it could not be run.
        tensor: The output of the region with that error.
        note: Why it was not run: it could not be, or nobody reads what it computes; empty if it was.
        tried: What the test saw of a damaged weight; None where nobody asked, or it was not run.
    """

    batchnorms: tuple[str, ...]
    ratio: float | None
    tensor: str
    note: str = ""
    tried: SelfTest | None = None

    @property
    def change(self) -> str:
        """What was done in the region, for people."""
        return change_of(self.batchnorms)

    @property
    def passed(self) -> bool:
        """The region was run and every element is within its bound, and a damaged weight, if tried, was not."""
        return self.ratio is not None and self.ratio <= 1 and (self.tried is None or self.tried.seen)

    @property
    def failed(self) -> bool:
        """The region was run and an element is beyond its bound."""
        return self.ratio is not None and not self.ratio <= 1


def change_of(batchnorms: Sequence[str]) -> str:
    """What was done where these were folded, for people."""
    return f"the fold of {', '.join(batchnorms)}" if batchnorms else "the union of two linear operators"


def local_check(  # noqa: PLR0913
    before: ir.Model | Cutter,
    after: ir.Model | Cutter,
    plan: FoldPlan,
    spans: Mapping[int, tuple[int, int]],
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    seed: int = 0,
    tries: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Iterator[LocalCheck]:
    """Test each region of a graph on seeded inputs of both signs and on impulses at the corners.

    Args:
        before: The original, or a cutter of the graph that the plan is for; not changed.
        after: The folded model, with equal names for equal values, likewise; not changed.
        plan: What was folded.
        spans: As `bnfold.localsizes.small_shapes`.
        shapes: Shapes of model inputs by name, where the model leaves them open.
        seed: Seed of the inputs.
        tries: Whether to damage a weight of each region, too, and see that the test fails.
        progress: Told what is being done.
    """
    old, new = (model if isinstance(model, Cutter) else Cutter(model) for model in (before, after))
    cutters = old, new
    small = [small_shapes(plan, region, spans) for region in plan.regions]
    large = [region for region, sizes in zip(plan.regions, small, strict=True) if sizes is None]
    whole = list(model_shapes(old.model, large, dict(shapes or {}), old.path)) if large else []
    for region, sizes in zip(plan.regions, small, strict=True):
        if progress is not None:
            progress(f"checking {change_of(region.batchnorms[:1])}")
        yield _first_that_runs(cutters, region, whole if sizes is None else [sizes], seed, tries)


def _first_that_runs(
    cutters: tuple[Cutter, Cutter], region: Region, choices: Sequence[Mapping[str, Any]], seed: int, tries: bool
) -> LocalCheck:
    """The test at the first sizes at which the region can be run."""
    if not region.outputs:
        return LocalCheck(region.batchnorms, 0.0, "", "nothing that anyone reads depends on it")
    outcome = LocalCheck(region.batchnorms, None, "", "no input sizes are known")
    for sizes in choices:
        outcome = _check_or_note(cutters, region, sizes, seed, tries)
        if outcome.ratio is not None:
            break
    return outcome


def _check_or_note(
    cutters: tuple[Cutter, Cutter], region: Region, sizes: Mapping[str, Any], seed: int, tries: bool
) -> LocalCheck:
    try:
        return _check(cutters, region, sizes, seed, tries)
    except BnfoldError as error:
        return LocalCheck(region.batchnorms, None, "", str(error))


def _check(
    cutters: tuple[Cutter, Cutter], region: Region, sizes: Mapping[str, Any], seed: int, tries: bool
) -> LocalCheck:
    outputs = [name for name in region.outputs if cutters[0].is_float(name)]
    if not outputs:
        raise BnfoldError("nothing reads what it computes, so that nothing can be compared")
    old, new = (cutter.cut(region.inputs, outputs) for cutter in cutters)
    worst, tensor = _compared(old, new, outputs, sizes, seed)
    if not tries:
        return LocalCheck(region.batchnorms, worst, tensor)
    tried = try_itself(region.batchnorms, old, new, lambda a, b: _compared(a, b, outputs, sizes, seed)[0])
    note = "" if tried.seen else f"the test does not see {tried.weight} when it is damaged ({tried.ratio:.3g} bounds)"
    return LocalCheck(region.batchnorms, worst, tensor, note, tried)


def _compared(
    old: onnx.ModelProto, new: onnx.ModelProto, outputs: Sequence[str], sizes: Mapping[str, Any], seed: int
) -> tuple[float, str]:
    """The largest error in units of the bound, and the output with it."""
    roundoff, smallest = _coarsest(new)
    wide = in_float64(old), in_float64(new)
    bounds = magnitude_model(old, roundoff), magnitude_model(new, roundoff, smallest)
    slack = _DOUBLE * (64 + max(_terms(old), _terms(new)))
    worst, tensor = 0.0, outputs[0]
    for feeds in _feeds([*old.graph.input, *new.graph.input], sizes, seed):
        results = [evaluate(model, _of(model, feeds)) for model in wide]
        sizes_of_terms = [evaluate(model, _of(model, {k: np.abs(v) for k, v in feeds.items()})) for model in bounds]
        for name in outputs:
            terms = [np.asarray(s[name], np.float64) for s in sizes_of_terms]
            same = terms[0].shape == terms[1].shape
            bound = roundoff * terms[1] + slack * (terms[0] + terms[1]) if same else np.zeros(())
            ratio = _ratio(results[0][name], results[1][name], bound)
            if not ratio <= worst:
                worst, tensor = ratio, name
    return worst, tensor


def _ratio(before: npt.NDArray[Any], after: npt.NDArray[Any], bound: Float64Array) -> float:
    """The largest error in units of the bound; infinite where the kinds (finite, inf, NaN) differ."""
    if before.shape != after.shape:
        return np.inf
    same = (before == after) | (np.isnan(before) & np.isnan(after))
    with np.errstate(all="ignore"):
        ratio = np.where(same, 0.0, np.abs(after - before) / bound)
    return float(np.nan_to_num(ratio, nan=np.inf, posinf=np.inf).max(initial=0.0))


def _of(model: onnx.ModelProto, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    return {value.name: feeds[value.name] for value in model.graph.input}


def _coarsest(model: onnx.ModelProto) -> tuple[float, float]:
    """The unit round-off of the coarsest dtype among the stored numbers, and its smallest normal number."""
    dtypes = {onnx.helper.tensor_dtype_to_np_dtype(t.data_type) for t in model.graph.initializer}
    floats = [d for d in dtypes if d.name in FLOATS]  # float8 codes are no stored numbers; their scales are
    coarsest = max(floats, key=unit_roundoff, default=np.dtype(np.float32))
    return unit_roundoff(coarsest), smallest_normal(coarsest)


def _terms(model: onnx.ModelProto) -> int:
    """The most products that one output of a linear operator adds up."""
    return max(
        (int(np.prod(t.dims)) // max(min(t.dims), 1) for t in model.graph.initializer if len(t.dims) > 1), default=1
    )


def _feeds(
    inputs: list[onnx.ValueInfoProto], sizes: Mapping[str, tuple[int, ...]], seed: int
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Standard normal numbers, then impulses of both signs at the corners; whole numbers are 0 or 1."""
    kinds = {value.name: value.type.tensor_type.elem_type for value in inputs}
    missing = sorted(name for name in kinds if name not in sizes)
    if missing:
        raise BnfoldError("its shape is not known, so that the fold cannot be run by itself", where=missing[0])
    for make in (_normal, _impulses):
        generator = np.random.default_rng(seed)
        yield {name: make(generator, sizes[name], kind) for name, kind in sorted(kinds.items())}


def _normal(generator: np.random.Generator, shape: tuple[int, ...], kind: int) -> npt.NDArray[Any]:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    if dtype.kind in "iub":
        return generator.integers(0, 2, shape).astype(dtype)
    return generator.standard_normal(shape)


def _impulses(generator: np.random.Generator, shape: tuple[int, ...], kind: int) -> npt.NDArray[Any]:
    """Zero but for the first and last index of every axis from the third on."""
    values = _normal(generator, shape, kind)
    if values.dtype != np.float64 or len(shape) < 3:
        return values
    corner = np.ones(shape, bool)
    for axis, size in enumerate(shape[2:], start=2):
        index = np.arange(size).reshape((-1,) + (1,) * (len(shape) - axis - 1))
        corner &= (index == 0) | (index == size - 1)
    return np.where(corner, 16 * values, 0.0)
