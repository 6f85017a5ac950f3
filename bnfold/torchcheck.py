"""Runs a module before and after a fold on seeded inputs, in float64 and as it is stored.

In float64, before the folded numbers are rounded, both must agree to 1e-10 of each channel's scale, or to 4 times what
roundings of the input and in between do to the original, where that is more (a network that amplifies them), but never
more than 1e-7. As stored, the folded one may err by `4*error + 64*u*scale` of each channel, where error is that of the
original, against float64; a module that is stored in float64 may err by what is granted there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.affine import Float64Array
from bnfold.comparison import UNIT_ROUNDOFF, TensorComparison
from bnfold.frontends.torch_capture import copied, grown
from bnfold.quickcheck import QuickCheck

if TYPE_CHECKING:
    from torch import nn

#: The largest difference in float64, relative to the scale of a channel.
EXACT = 1e-10

#: Where 64 roundings of its input move the original further, 4 times that is granted, but never more than 1e-7.
_GRANTED, _MOST = 4.0, 1e-7

#: Of the original's own error, and of a rounding, what the folded module is granted.
_ERRORS, _ROUNDINGS = 4.0, 64.0

#: As stored, a channel that happens to be small is measured by the median one: its rounding errors are those of others.
_TYPICAL = 1.0

#: Outputs that move by less than this share of their scale when the input is another one prove nothing.
_ALIVE = 1e-6


def torch_check(
    modules: tuple[nn.Module, nn.Module, nn.Module],
    inputs: tuple[Any, ...],
    landmarks: Mapping[str, str],
    *,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> QuickCheck:
    """Compare the outputs of modules.

    Args:
        modules: The original, the folded one, and the folded one in float64 with numbers that were not rounded.
        inputs: Example inputs; tensors of floating-point numbers are replaced by standard normal ones.
        landmarks: Modules whose outputs must be the same, by path, and the BatchNorm that each answers for.
        seed: Of the inputs.
        progress: Told what is being done.
    """
    before, after, exact = modules
    found: list[TensorComparison] = []
    runs: list[Mapping[str, tuple[int, ...]]] = []
    notes: list[str] = []
    if progress:
        progress("checking the folded module")
    reference = copied(before).double()
    alive, culprit = False, None
    for sample in _samples(before, inputs, seed, notes):
        wide = _cast(sample)
        try:
            old, inner_old = _run(reference, wide, seed, landmarks)
            other, _ = _run(reference, _drawn(wide, seed + 1), seed, {})
            nudged, _ = _run(reference, _nudged(wide), seed, {})
            new, inner_new = _run(exact, wide, seed, landmarks)
            stored = [_run(module, sample, seed, {})[0] for module in (before, after)]
        except Exception as error:  # the user's forward pass may raise anything
            notes.append(f"the module cannot be run: {next(iter(str(error).splitlines()), type(error).__name__)}.")
            return QuickCheck("torch", tuple(found), (), tuple(notes), tuple(runs), None, False, False)
        runs.append({f"input {i}": tuple(t.shape) for i, t in enumerate(_tensors(sample))})
        alive = alive or any(_moves(a, b) for a, b in zip(old, other, strict=False))
        found += _compared(old, nudged, new, stored)
        if culprit is None:
            culprit = next((name for path, name in landmarks.items()
                            if not _close(inner_old.get(path), inner_new.get(path))), None)  # fmt: skip
    failed = [entry for entry in found if not entry.passed]
    if not alive:
        notes.append("The outputs do not follow the inputs.")
    first = (culprit or failed[0].name) if failed else None
    return QuickCheck("torch", tuple(found), (), tuple(notes), tuple(runs), first, bool(failed), alive and bool(found))


def _compared(
    old: list[Float64Array], nudged: list[Float64Array], new: list[Float64Array], stored: list[list[Any]]
) -> Iterator[TensorComparison]:
    raw_before, raw_after = stored
    for i, (a, b) in enumerate(zip(old, new, strict=True)):
        u = UNIT_ROUNDOFF.get(raw_before[i].dtype_name, 2.0**-53)
        inner = _errors(a, raw_before[i]) * (UNIT_ROUNDOFF["float64"] / u) if u > UNIT_ROUNDOFF["float64"] else 0.0
        noise = np.maximum(_errors(a, nudged[i]), inner)  # roundings of the input, and those inside, as stored
        noise = np.maximum(noise, np.quantile(noise, 0.9)) if a.size else noise
        exact = np.clip(_GRANTED * noise, EXACT, _MOST)
        yield _comparison(f"output {i} in float64", a, b, exact)
        mine = _errors(a, raw_before[i], _TYPICAL)
        typical = float(np.quantile(mine, 0.9)) if mine.size else 0.0  # few samples may hit a channel's error at zero
        granted = _ERRORS * np.maximum(mine, typical) + _ROUNDINGS * u
        if u == UNIT_ROUNDOFF["float64"]:  # the truth has no more digits: that of the original is its own
            granted = np.maximum(granted, exact)
        entry = _comparison(f"output {i} as stored", a, raw_after[i], granted, _TYPICAL)
        yield replace(entry, note=f"the original errs by {mine.max(initial=0.0):.3g}")


class _Stored(np.ndarray[Any, Any]):
    """An output in float64 that knows the dtype it was computed in."""

    dtype_name = "float64"


def _channels(a: Float64Array) -> int:
    return a.shape[1] if a.ndim > 1 else 1


def _errors(a: Float64Array, b: Float64Array, floor: float = 1e-3) -> Float64Array:
    """The largest difference in each channel relative to the channel's scale; infinite where the kinds differ.

    No scale counts as less than `floor` of the median one.
    """
    if a.shape != b.shape:
        return np.full(_channels(a), np.inf)
    x, y = (np.moveaxis(v, 1, 0).reshape(v.shape[1], -1) if v.ndim > 1 else v.reshape(1, -1) for v in (a, b))
    with np.errstate(all="ignore"):
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        difference = np.where(same, 0.0, np.abs(x - y))
        scale = np.where(np.isfinite(x), np.abs(x), 0.0).max(axis=1, initial=0.0)
        typical = float(np.median(scale[scale > 0])) if (scale > 0).any() else 1.0
        error = difference.max(axis=1, initial=0.0) / np.maximum(scale, floor * typical)
    return np.where(np.isnan(error), np.inf, error)


def _comparison(
    name: str, a: Float64Array, b: Float64Array, granted: Float64Array, floor: float = 1e-3
) -> TensorComparison:
    errors = _errors(a, b, floor)
    worst = int(np.argmax(errors - granted)) if errors.size else 0
    error = float(errors[worst]) if errors.size else 0.0
    tolerance = float(granted[worst]) if granted.size else 0.0
    dtype = getattr(b, "dtype_name", "float64")
    scale = float(np.abs(a[:, worst] if a.ndim > 1 else a).max(initial=0.0))
    return TensorComparison(name, a.shape, dtype, error, scale, tolerance, 1 if a.ndim > 1 else None, (),
                            a.size > 0, error <= tolerance)  # fmt: skip


def _close(a: list[Float64Array] | None, b: list[Float64Array] | None) -> bool:
    if a is None or b is None or len(a) != len(b):
        return a is None and b is None
    return all(bool((_errors(x, y) <= EXACT).all()) for x, y in zip(a, b, strict=True))


def _moves(a: Float64Array, b: Float64Array) -> bool:
    return a.shape == b.shape and a.size > 0 and bool((_errors(a, b) > _ALIVE).any())


def _samples(module: nn.Module, inputs: tuple[Any, ...], seed: int, notes: list[str]) -> Iterator[tuple[Any, ...]]:
    """The example's sizes, and another size of image where the module takes it."""
    yield _drawn(inputs, seed)
    larger = grown(module, inputs)
    if larger is not inputs:
        yield _drawn(larger, seed + 2)
    else:
        notes.append("The module takes no other sizes than the example's.")


def _drawn(inputs: Any, seed: int) -> Any:
    """The same with standard normal numbers in the place of every floating-point one."""
    import torch  # noqa: PLC0415
    from torch.utils import _pytree  # noqa: PLC0415

    generator = torch.Generator().manual_seed(seed)

    def draw(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point():
            return leaf
        numbers = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
        fresh = torch.empty_like(leaf, memory_format=torch.preserve_format, requires_grad=False)
        return fresh.copy_(numbers)

    return _pytree.tree_map(draw, inputs)


def _cast(inputs: Any) -> Any:
    import torch  # noqa: PLC0415
    from torch.utils import _pytree  # noqa: PLC0415

    def cast(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf

    return _pytree.tree_map(cast, inputs)


def _nudged(inputs: Any) -> Any:
    """Every second number larger by 64 roundings, in float64."""
    import torch  # noqa: PLC0415
    from torch.utils import _pytree  # noqa: PLC0415

    def nudge(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point():
            return leaf
        signs = 1 - 2 * (torch.arange(leaf.numel(), device=leaf.device) % 2).reshape(leaf.shape)
        return leaf * (1 + _ROUNDINGS * UNIT_ROUNDOFF["float64"] * signs)

    return _pytree.tree_map(nudge, inputs)


def _tensors(inputs: Any) -> list[Any]:
    import torch  # noqa: PLC0415
    from torch.utils import _pytree  # noqa: PLC0415

    return [leaf for leaf in _pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]


def _run(
    module: nn.Module, inputs: Any, seed: int, landmarks: Mapping[str, str]
) -> tuple[list[Any], dict[str, list[Any]]]:
    """The floating-point outputs in float64, and those of the landmarks; whatever is random is the same each time."""
    import torch  # noqa: PLC0415
    from torch.utils import _pytree  # noqa: PLC0415

    running = copied(module)  # a BatchNorm in training mode changes its statistics
    seen: dict[str, list[Any]] = {}
    for path in landmarks:
        running.get_submodule(path).register_forward_hook(
            lambda _m, _i, out, path=path: seen.__setitem__(path, _arrays(out))
        )
    sample = _pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, inputs)
    with torch.random.fork_rng(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        return _arrays(running(*sample)), seen


def _arrays(outputs: Any) -> list[Any]:
    found = []
    for tensor in _tensors(outputs):
        array = np.array(tensor.detach().to("cpu").double().numpy()).view(_Stored)
        array.dtype_name = str(tensor.dtype).removeprefix("torch.")
        found.append(array)
    return found
