"""The BatchNorms of a PyTorch module whose statistics can be computed anew, as an `Observable` over its captured graph.

Calls that use the same buffers are one module that is called several times: they share one mean and variance, those of
all their inputs together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from bnfold.drift import Hindrance, Left
from bnfold.errors import ModelError
from bnfold.frontends.torch_aliases import Aliases, find_aliases
from bnfold.frontends.torch_calls import BatchNormCall, grouped, hindered, read_calls, site_of
from bnfold.frontends.torch_capture import Captured
from bnfold.frontends.torch_constants import TorchConstants
from bnfold.frontends.torch_context import base_name
from bnfold.frontends.torch_flow import TorchFlow
from bnfold.frontends.torch_segments import TorchSegment, TorchSegments
from bnfold.frontends.torch_sizes import bindings, bytes_of
from bnfold.levels import Schedule, schedule, self_dependent
from bnfold.observation import Site

if TYPE_CHECKING:
    from torch import nn


class TorchObservable:
    """A module whose BatchNorms can be watched: see `bnfold.observation.Observable`.

    Attributes:
        sites: The BatchNorms that can be recalibrated.
        names: For each of them, the names of its mean and its variance in the module.
        left: All others, and why.

    Args:
        module: The module; not changed.
        captured: Its graph.
        wanted: Which BatchNorms the caller asks for, by name.

    Raises:
        ModelError: The graph cannot be cut at its BatchNorms.
    """

    def __init__(
        self, module: nn.Module, captured: Captured, wanted: Callable[[str], bool] = lambda _name: True
    ) -> None:
        self._captured = captured
        nodes = captured.nodes
        calls = read_calls(module, captured, wanted)
        norms = [node for node in nodes if base_name(node) == "aten.batch_norm"]
        aliases = find_aliases(nodes, [*norms, *calls.pairs, *calls.pairs.values()])
        constants = TorchConstants(captured.program, nodes, aliases.written)
        groups, left = self._chosen(module, grouped(calls.found), constants)
        self._flow = _flow_of(groups, captured, constants, aliases)
        self._groups = self._independent(groups, left)
        self._flow = _flow_of(self._groups, captured, constants, aliases)
        self.sites: Sequence[Site] = [_site(module, group) for group in self._groups]
        self.names = [group[0].names for group in self._groups]
        self.left = [*left, *calls.left]
        self._check()

    @cached_property
    def _plan(self) -> Schedule:
        return schedule(self._flow, [self._places(group) for group in self._groups])

    @cached_property
    def _segments(self) -> TorchSegments:
        calls = {(i, k): call for i, group in enumerate(self._groups) for k, call in enumerate(group)}
        return TorchSegments(self._captured.program, self._flow, self._plan, calls)

    @property
    def levels(self) -> Sequence[Sequence[int]]:
        """Positions in `sites`, level by level."""
        return self._plan.levels

    def cut(self, level: int) -> TorchSegment:
        """The segment that ends at the inputs of the BatchNorms of this level."""
        return self._segments.cut(level)

    def carried(self, sizes: Mapping[str, tuple[int, ...]]) -> list[list[int | None]]:
        """Bytes of what is kept of one batch behind each level: see `bnfold.observation.Observable`."""
        known = bindings(self._flow.given, sizes)
        return [[bytes_of(node, known) for node in self._segments.carried(k)] for k in range(len(self.levels))]

    def _places(self, group: Sequence[BatchNormCall]) -> list[int]:
        return [self._flow.producers[call.node.name] for call in group]

    def _chosen(
        self, module: nn.Module, groups: Sequence[list[BatchNormCall]], constants: TorchConstants
    ) -> tuple[list[list[BatchNormCall]], list[Left]]:
        """The groups that nothing in themselves hinders, and the others."""
        found, left = [], []
        for group, why in zip(groups, hindered(module, groups, self._captured, constants), strict=True):
            if why is None:
                found.append(group)
            else:
                left += [Left(call.name, *why) for call in group]
        return found, left

    def _independent(self, groups: list[list[BatchNormCall]], left: list[Left]) -> list[list[BatchNormCall]]:
        behind = self_dependent(self._flow, [self._places(group) for group in groups])
        left += [Left(call.name, Hindrance.SELF_DEPENDENT) for site in sorted(behind) for call in groups[site]]
        return [group for site, group in enumerate(groups) if site not in behind]

    def _check(self) -> None:
        watched = [self._flow.producers[call.source.name] for group in self._groups for call in group
                   if call.source not in self._flow.given]  # fmt: skip
        if why := self._flow.against_cutting([*self._plan.at, *watched]):
            raise ModelError(f"its graph cannot be cut: {why}")


def _flow_of(
    groups: Sequence[Sequence[BatchNormCall]], captured: Captured, constants: TorchConstants, aliases: Aliases
) -> TorchFlow:
    """The flow in which the calls of these groups take their statistics from outside."""
    sources = {call.node: call.source for group in groups for call in group}
    given = frozenset(node for node in captured.nodes if node.op == "placeholder" and node not in constants)
    return TorchFlow(captured.nodes, constants, sources, given, aliases)


def _site(module: nn.Module, group: Sequence[BatchNormCall]) -> Site:
    epsilon = min(call.epsilon for call in group)
    return site_of(module, group[0].names, tuple(call.name for call in group), epsilon)
