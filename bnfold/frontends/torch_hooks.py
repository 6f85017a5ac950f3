"""The BatchNorms of a module that has no graph, watched while it runs: one whole pass for each of them.

What they are and in which order they are called shows on the example inputs; every later call of `batch_norm` is caught
and must keep to that order. In the pass of a BatchNorm those before it normalise by their new statistics.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from bnfold.decision import Reason
from bnfold.drift import Hindrance, Left, Statistics
from bnfold.errors import ModelError
from bnfold.frontends.torch_calls import normalised, place_of, site_of
from bnfold.frontends.torch_capture import copied
from bnfold.frontends.torch_context import numpy_dtype
from bnfold.frontends.torch_inputs import ModuleInputs
from bnfold.frontends.torch_run import guarded
from bnfold.frontends.torch_tensors import moments_of
from bnfold.moments import ChannelMoments
from bnfold.observation import Call, Site, State

if TYPE_CHECKING:
    from torch import nn

#: The parameters of `torch.batch_norm`, and those of `torch.nn.functional.batch_norm`.
_PLAIN = "input weight bias running_mean running_var training momentum eps cudnn_enabled".split()
_FUNCTIONAL = "input running_mean running_var weight bias training momentum eps".split()
_DEFAULTS = {"weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5}


@dataclass(frozen=True, eq=False)
class _Seen:
    """One call of `batch_norm`.

    Attributes:
        names: The names of mean and variance in the module; None where they are no buffers of it.
        training: Whether it normalises by the batch.
        epsilon: What it adds to the variance.
    """

    names: tuple[str, str] | None
    training: bool
    epsilon: float

    @property
    def name(self) -> str:
        """The path of the module."""
        return "batch_norm" if self.names is None else self.names[0].rpartition(".")[0] or self.names[0]


class HookObservable:
    """A module whose BatchNorms can be watched: see `bnfold.observation.Observable`; each is a level of its own.

    Attributes:
        sites: The BatchNorms that can be recalibrated, in the order in which they are called.
        names: For each of them, the names of its mean and its variance in the module.
        left: All others, and why.
        levels: One for each site.

    Args:
        module: The module; a copy of it is run.
        inputs: What it takes.
        wanted: Which BatchNorms the caller asks for, by name.

    Raises:
        ModelError: The module does not run on the example inputs, or changes what it holds.
    """

    def __init__(self, module: nn.Module, inputs: ModuleInputs, wanted: Callable[[str], bool]) -> None:
        self._inputs, self._runner = inputs, _Runner(copied(module), inputs)
        calls: list[_Seen] = []
        self._runner.run(inputs.example_batch(), lambda seen, _source: calls.append(seen))
        times = Counter(seen.names for seen in calls)
        self.left: list[Left] = []
        self.names: list[tuple[str, str]] = []
        self.sites: list[Site] = []
        for seen in calls:
            hindrance = _hindrance(seen, times[seen.names], wanted)
            if hindrance is not None:
                self.left.append(Left(seen.name, *hindrance))
            elif seen.names is not None:
                self.names.append(seen.names)
                self.sites.append(self._runner.site(seen))
        why = "it is no call of batch_norm, and there is no graph"
        self.left += [Left(path, Hindrance.NOT_IN_INFERENCE_FORM, why) for path in _frozen(module)]

    @property
    def levels(self) -> Sequence[Sequence[int]]:
        """Positions in `sites`."""
        return [[site] for site in range(len(self.sites))]

    def cut(self, level: int) -> HookSegment:
        """The pass that watches one BatchNorm."""
        return HookSegment(self._runner, {names: site for site, names in enumerate(self.names)}, level)

    def carried(self, sizes: Mapping[str, tuple[int, ...]]) -> list[list[int | None]]:
        """The batch, and mean and variance of the BatchNorms before: see `bnfold.observation.Observable`."""
        inputs = self._inputs.example_batch()
        batch = [math.prod(sizes[name]) * array.itemsize for name, array in inputs.items()]
        both = [[site.old.mean.nbytes, site.old.variance.nbytes] for site in self.sites]
        return [[*batch, *chain(*both[:level])] if level + 1 < len(both) else [] for level in range(len(both))]


@dataclass(frozen=True, eq=False)
class HookSegment:
    """The pass that watches one BatchNorm: see `bnfold.observation.Segment`.

    Attributes:
        runner: Runs the module.
        sites: The BatchNorms by the names of their statistics.
        level: Which one is watched.
    """

    runner: _Runner
    sites: Mapping[tuple[str, str], int]
    level: int

    def reduce(
        self, state: State, statistics: Mapping[Call, Statistics]
    ) -> tuple[Mapping[Call, ChannelMoments], State]:
        """Run the module on one batch; the state is the batch, and the statistics of the BatchNorms before."""
        state = {**state, **{key: x for (site, _), given in statistics.items() for key, x in _entries(site, given)}}
        found: list[ChannelMoments] = []

        def watch(seen: _Seen, source: Any) -> Statistics | None:
            site = None if seen.names is None else self.sites.get(seen.names)
            if site is None:
                return None
            if site == self.level and not found:
                found.append(moments_of(source))
                return None
            is_behind = site > self.level
            if is_behind != bool(found) or (not is_behind and _key(site, "mean") not in state):
                what = "which BatchNorms it calls, and in which order, depends on the data"
                raise ModelError(what, where=seen.name, remedy="exclude it with keep")
            return None if is_behind else Statistics(state[_key(site, "mean")], state[_key(site, "variance")])

        self.runner.run(state, watch)
        return {(self.level, 0): found[0]} if found else {}, state


def _entries(site: int, given: Statistics) -> Iterator[tuple[str, Any]]:
    yield _key(site, "mean"), given.mean
    yield _key(site, "variance"), given.variance


def _key(site: int, which: str) -> str:
    return f"{which} of {site}"  # no name of Python's, so no name of an input


def _hindrance(seen: _Seen, times: int, wanted: Callable[[str], bool]) -> tuple[Hindrance, str] | None:
    if not wanted(seen.name):
        return Hindrance.EXCLUDED_BY_CALLER, ""
    if seen.training:
        return Hindrance.NOT_IN_INFERENCE_FORM, Reason.NORMALISES_BY_BATCH_STATISTICS.value
    if seen.names is None:
        return Hindrance.NOT_IN_INFERENCE_FORM, "its statistics are no buffers of a module"
    if times > 1:
        return (
            Hindrance.SELF_DEPENDENT,
            f"it is called {times} times, and there is no graph to tell what lies behind what",
        )
    return None


def _frozen(module: nn.Module) -> Iterator[str]:
    """BatchNorms that are computed another way."""
    yield from (path for path, part in module.named_modules() if type(part).__name__ == "FrozenBatchNorm2d")


class _Runner:
    """Runs a module, with an eye on `batch_norm`.

    Args:
        module: The module, which may be changed.
        inputs: What it takes.
    """

    def __init__(self, module: nn.Module, inputs: ModuleInputs) -> None:
        self._module, self._inputs = module, inputs
        self._names = {place_of(tensor): name for name, tensor in module.named_buffers()}

    def site(self, seen: _Seen) -> Site:
        """The statistics of a call."""
        assert seen.names is not None
        return site_of(self._module, seen.names, (seen.name,), seen.epsilon)

    def run(self, batch: Mapping[str, Any], watch: Callable[[_Seen, Any], Statistics | None]) -> None:
        """Run the module; `watch` sees each call and what it normalises, and may give it other statistics.

        Raises:
            ModelError: The module does not take the batch, or changes what it holds.
        """
        import torch  # noqa: PLC0415

        before, mutable = self._versions(), set[str]()

        def caught(given: Mapping[str, Any]) -> Statistics | None:
            seen = self._seen(given)
            if seen.training and seen.names is not None:
                mutable.update((*seen.names, f"{seen.name}.num_batches_tracked"))
            return watch(seen, given["input"])

        with guarded(type(self._module).__name__), torch.no_grad(), _catching(caught):
            self._inputs.arguments(batch).call(self._module)
        after = self._versions()
        for name in before.keys() | after.keys():
            if before.get(name) != after.get(name) and name not in mutable:
                what = f"its forward pass writes {name}, so the statistics would depend on the order of the data"
                raise ModelError(what, where=type(self._module).__name__)

    def _seen(self, given: Mapping[str, Any]) -> _Seen:
        names = [None if t is None or numpy_dtype(t.dtype) is None else self._names.get(place_of(t))
                 for t in (given["running_mean"], given["running_var"])]  # fmt: skip
        pair = None if names[0] is None or names[1] is None else (names[0], names[1])
        return _Seen(pair, bool(given["training"]) or given["running_mean"] is None, float(given["eps"]))

    def _versions(self) -> dict[str, tuple[int, int]]:
        tensors = [*self._module.named_buffers(), *self._module.named_parameters()]
        return {name: (id(tensor), tensor._version) for name, tensor in tensors}


def _catching(watch: Callable[[Mapping[str, Any]], Statistics | None]) -> Any:
    """A context in which every call of `batch_norm` is shown to `watch`."""
    import torch  # noqa: PLC0415
    from torch.overrides import TorchFunctionMode  # noqa: PLC0415

    orders = {torch.batch_norm: _PLAIN, torch.nn.functional.batch_norm: _FUNCTIONAL}

    class Catching(TorchFunctionMode):
        def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            named = dict(kwargs or {})
            if func not in orders:
                return func(*args, **named)
            given = {**_DEFAULTS, **named, **dict(zip(orders[func], args, strict=False))}
            other = watch(given)
            return func(*args, **named) if other is None else normalised(given, other)

    return Catching()
