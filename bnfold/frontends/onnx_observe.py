"""The BatchNorms of an ONNX model whose statistics can be computed anew, as an `Observable`.

BatchNorm nodes that share all four parameters and epsilon are one module that is called several times: they share one
mean and variance, those of all their inputs together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from bnfold.drift import Hindrance, Left, Statistics
from bnfold.frontends.onnx_context import Context, float_attr, is_standard, name_of
from bnfold.frontends.onnx_files import in_memory
from bnfold.frontends.onnx_float64 import without_bfloat16
from bnfold.frontends.onnx_graph import open_context
from bnfold.frontends.onnx_levels import Flow
from bnfold.frontends.onnx_read_batchnorm import read_batchnorm
from bnfold.frontends.onnx_scopes import scopes, values_of
from bnfold.frontends.onnx_segments import OnnxSegment, Opener, Segments, Tap
from bnfold.frontends.onnx_shapes import Shapes
from bnfold.graph import Shape
from bnfold.levels import schedule, self_dependent
from bnfold.observation import Site, State
from bnfold.views import Barrier

#: Which BatchNorms that share their statistics get some of their own at each place: those one call of which lies behind
#: another, so that no order of the work is right for both; or all.
Unshare: TypeAlias = Literal["none", "dependent", "all"]

_WHAT_HELPS = "--unshare dependent gives each its own"

_SEQUENCES = frozenset(
    "SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceMap SplitToSequence".split()
)


class OnnxObservable:
    """A model whose BatchNorms can be watched: see `bnfold.observation.Observable`.

    Attributes:
        proto: The model with its weights loaded.
        sites: The BatchNorms that can be recalibrated.
        nodes: For each of them, the places of its nodes in the main graph.
        left: All others, and why.
        unshared: The names of those that shared their statistics and get some of their own.

    Args:
        model: The model; not changed.
        opener: Makes a small model ready to run.
        wanted: Which BatchNorms the caller asks for, by name.
        unshare: Which of those that share their statistics get some of their own at each place.

    Raises:
        ModelError: The model's operator set is older than 7, or a node lacks an input.
    """

    def __init__(
        self,
        model: ir.Model,
        opener: Opener,
        wanted: Callable[[str], bool] = lambda _name: True,
        unshare: Unshare = "none",
    ) -> None:
        self._opener, self._model = opener, model
        self.proto = in_memory(model)
        self._nodes = list(model.graph)
        self._context = open_context(model)
        names = frozenset(t.name for t in self.proto.graph.initializer)
        sparse = frozenset(t.values.name for t in self.proto.graph.sparse_initializer)
        self._ready = without_bfloat16(self.proto)
        self._flow = Flow(list(self._ready.graph.node), names | sparse)
        left = dict(_hindered(self._nodes, self._context, self._flow, wanted))
        places = [i for i, node in enumerate(self._nodes) if _is_batchnorm(node)]
        shared = _groups(self._nodes, places)
        groups = [[i] for i in places] if unshare == "all" else shared
        left |= {i: left[j] for group in groups for j in group if j in left for i in group if i not in left}
        groups = [group for group in groups if group[0] not in left]
        tangled = self_dependent(self._flow, groups)
        if unshare == "dependent":
            groups = [g for k, group in enumerate(groups) for g in ([[i] for i in group] if k in tangled else [group])]
        else:
            left |= {i: (Hindrance.SELF_DEPENDENT, _WHAT_HELPS) for site in tangled for i in groups[site]}
        self.nodes = [group for group in groups if group[0] not in left]
        alone = {group[0] for group in self.nodes if len(group) == 1}
        self.unshared = [name_of(self._nodes[i]) for group in shared if len(group) > 1 for i in group if i in alone]
        self.sites: Sequence[Site] = [self._site(group) for group in self.nodes]
        self.left = [*(Left(name_of(self._nodes[i]), *left[i]) for i in sorted(left)), *_beyond(model)]

    @cached_property
    def _segments(self) -> Segments:
        plan = schedule(self._flow, self.nodes)
        return Segments(self._ready, self._context.opset, self._flow, plan, list(self._taps()), self._opener)

    @cached_property
    def levels(self) -> Sequence[Sequence[int]]:
        """Positions in `sites`, level by level."""
        return schedule(self._flow, self.nodes).levels

    def cut(self, level: int) -> OnnxSegment:
        """The segment that ends at the inputs of the BatchNorms of this level; levels are cut in order."""
        return self._segments.cut(level)

    def carried(self, sizes: Mapping[str, tuple[int, ...]]) -> list[list[int | None]]:
        """Bytes of what is kept of one batch behind each level, value by value; None where inference does not tell.

        Args:
            sizes: The shapes of the batch, by input.
        """
        shapes, values = Shapes(self._model, sizes), values_of(self._model.graph)
        dtypes = {n: np.dtype(np.float32) if self._is_widened(d := shapes.dtype(v)) else d for n, v in values.items()}
        known = {n: _bytes(shapes.shape(v), dtypes[n]) for n, v in values.items() if not _is_sequence(v)}
        return [[known.get(n) for n in self._segments.carried(level)] for level in range(len(self.levels))]

    @property
    def widens(self) -> bool:
        """Whether bfloat16 is computed in float32, as no kernel takes it: in a model that stores some."""
        return self._ready is not self.proto

    def fed(self, batch: State) -> State:
        """A batch as the segments take it."""
        return {n: x.astype(np.float32) if self._is_widened(x.dtype) else x for n, x in batch.items()}

    def _is_widened(self, dtype: np.dtype[Any] | None) -> bool:
        return self.widens and dtype is not None and dtype.name == "bfloat16"

    def _taps(self) -> Iterator[Tap]:
        shapes = self._context.shapes
        for position, group in enumerate(self.nodes):
            site = self.sites[position]
            for call, place in enumerate(group):
                source = self._nodes[place].inputs[0]
                assert source is not None
                shape = shapes.shape(source)
                rank = None if shape is None else len(shape)
                fed = [np.dtype(np.float32) if d.name == "bfloat16" else d for d in site.dtypes]
                yield Tap((position, call), place, site.old.mean.size, rank, shapes.dtype(source), (fed[0], fed[1]))

    def _site(self, group: Sequence[int]) -> Site:
        nodes = [self._nodes[i] for i in group]
        mean, variance = (self._context.constants.array(value) for value in nodes[0].inputs[3:5])
        assert mean is not None
        assert variance is not None
        old = Statistics(mean.astype(np.float64), variance.astype(np.float64))
        return Site(tuple(map(name_of, nodes)), _epsilon(nodes[0]), old, (mean.dtype, variance.dtype))


def _groups(nodes: Sequence[ir.Node], places: Sequence[int]) -> list[list[int]]:
    """The BatchNorms that are calls of one module, together."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for i in places:
        parameters = tuple(None if v is None else v.name for v in nodes[i].inputs[1:5])
        groups.setdefault((*parameters, _epsilon(nodes[i])), []).append(i)
    return list(groups.values())


def _hindered(
    nodes: Sequence[ir.Node], context: Context, flow: Flow, wanted: Callable[[str], bool]
) -> Iterator[tuple[int, tuple[Hindrance, str]]]:
    """The BatchNorms of the main graph that are left alone, and why."""
    for i, node in enumerate(nodes):
        if not _is_batchnorm(node):
            continue
        view = read_batchnorm(node, context)
        if not wanted(name_of(node)):
            yield i, (Hindrance.EXCLUDED_BY_CALLER, "")
        elif isinstance(view, Barrier):
            yield i, (Hindrance.NOT_IN_INFERENCE_FORM, view.refusal.reason.value)
        elif flow.is_fixed(flow.nodes[i].input[0]):
            yield i, (Hindrance.NORMALISES_CONSTANT, "")


def _beyond(model: ir.Model) -> Iterator[Left]:
    """The BatchNorms outside the main graph."""
    for path, graph in scopes(model):
        if path:
            yield from (Left(name_of(n), Hindrance.INSIDE_BODY, path[-1][0]) for n in graph if _is_batchnorm(n))
    for function in model.functions.values():
        where = f"{function.domain}.{function.name}"
        yield from (
            Left(name_of(n), Hindrance.INSIDE_FUNCTION, where) for n in function.all_nodes() if _is_batchnorm(n)
        )


def _is_sequence(value: ir.Value) -> bool:
    """Whether a value is a list of tensors; what is inferred of such a one is a tensor of it."""
    made = value.producer()
    return made is not None and made.op_type in _SEQUENCES


def _bytes(shape: Shape | None, dtype: np.dtype[Any] | None) -> int | None:
    if shape is None or dtype is None:
        return None
    sizes = [size for size in shape if isinstance(size, int)]
    return math.prod(sizes) * dtype.itemsize if len(sizes) == len(shape) else None


def _is_batchnorm(node: ir.Node) -> bool:
    return node.op_type == "BatchNormalization" and is_standard(node)


def _epsilon(node: ir.Node) -> float:
    return float_attr(node, "epsilon", 1e-5)
