"""What a fold took out of a model, in numbers: enough to put it back bit by bit, and to read what was folded.

A manifest is a chain of folds, one after the other. Each names the model that it leads back from by a fingerprint, and
holds for every region (folds that overlap) the original operators and the numbers that are in the model no more: in
full, or as what is left of them after a prediction, `folded weight / (s_out * s_in)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bnfold.affine import Float64Array
from bnfold.linear import WeightLayout
from bnfold.rounding import round_once

#: How to get from the main graph to a body: the place of the node in its graph, and the name of the attribute.
GraphPath: TypeAlias = tuple[tuple[int, str], ...]

#: Where a node stands: its place in the original graph, and how many new nodes stand between it and that.
Place: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class FoldedNorm:
    """One BatchNorm (or constant chain that is one in disguise) that was folded; for people and for recalibration.

    Attributes:
        name: Its name.
        operator: Its operator type; those of a chain joined by "-".
        direction: Its route: the way the affine went, "pull" into the producers or "push" into the readers; "merge" for
            one that was a branch of a sum; "none" for one that stays in another form.
        into: The operators that absorbed it.
        through: The operators that it passed.
        left: The operator that is left of it; empty if it is gone.
        epsilon: As stored; None for a chain.
        gamma: As stored, like the three below; empty for a chain.
        beta: See above.
        mean: See above.
        var: See above.
    """

    name: str
    operator: str
    direction: str
    into: tuple[str, ...]
    through: tuple[str, ...]
    left: str = ""
    epsilon: float | None = None
    gamma: tuple[float, ...] = ()
    beta: tuple[float, ...] = ()
    mean: tuple[float, ...] = ()
    var: tuple[float, ...] = ()


@dataclass(frozen=True)
class StoredNodes:
    """Nodes of the original graph.

    Attributes:
        places: The place of each.
        proto: The nodes, as a serialised GraphProto.
    """

    places: tuple[int, ...]
    proto: bytes


@dataclass(frozen=True)
class UndoRegion:
    """Folds that overlap, and the operators that they changed: the unit in which a fold can be undone.

    Attributes:
        folds: What was folded in it.
        before: The original nodes that are gone or changed.
        after: The nodes that stand in their stead, by the name of their first output, each with its place.
    """

    folds: tuple[FoldedNorm, ...]
    before: StoredNodes
    after: tuple[tuple[str, Place], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """What was folded in it, by name."""
        return tuple(fold.name for fold in self.folds)


@dataclass(frozen=True, eq=False)
class Prediction:
    """A weight as the folded one tells it: `folded / (outputs * inputs)`, and zero where that is not finite.

    Attributes:
        source: The folded weight, an initializer.
        layout: How both are stored.
        outputs: What each output channel was multiplied by; shape (outputs,).
        inputs: What each input channel was multiplied by; shape (inputs,).
    """

    source: str
    layout: WeightLayout
    outputs: Float64Array
    inputs: Float64Array

    def of(self, folded: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The weight, in the dtype of `folded`; the same bits wherever float64 is IEEE 754's.

        Raises:
            ValueError: The weight does not have that many channels.
        """
        weight = self.layout.canonical(folded)
        group, per_output, per_input = weight.shape[:3]
        scale = self.outputs.reshape(group, per_output, 1) * self.inputs.reshape(group, 1, per_input)
        with np.errstate(all="ignore"):
            told = weight / scale.reshape(scale.shape + (1,) * (weight.ndim - 3))
        return round_once(self.layout.stored(np.where(np.isfinite(told), told, 0.0)), folded.dtype)


@dataclass(frozen=True, eq=False)
class LostTensor:
    """An initializer that is in the folded model no more.

    Attributes:
        name: Its name.
        place: Its place among the initializers of its graph.
        dtype: Its type, as ONNX calls it: "FLOAT".
        shape: Its shape.
        data: Its numbers, as `bnfold.packing` writes them.
        prediction: What they are packed against; None for zeros.
        input: Where it was a graph input too: its place among those, and its serialised ValueInfoProto.
    """

    name: str
    place: int
    dtype: str
    shape: tuple[int, ...]
    data: str
    prediction: Prediction | None = None
    input: tuple[int, bytes] | None = None


@dataclass(frozen=True, eq=False)
class GraphUndo:
    """What was changed in one graph.

    Attributes:
        path: Which graph; empty for the main one.
        regions: The folds.
        supplies: Nodes that are gone because only what was folded read them: constants, and what computes them.
        lost: Initializers that are gone.
        made: Initializers that are new, by name.
        described: Values of which the two graphs say different things (type, shape, quantisation), by name.
        said: What the original graph says of those, as a serialised GraphProto.
    """

    path: GraphPath
    regions: tuple[UndoRegion, ...]
    supplies: StoredNodes
    lost: tuple[LostTensor, ...]
    made: tuple[str, ...]
    described: tuple[str, ...]
    said: bytes


@dataclass(frozen=True, eq=False)
class UndoStep:
    """One fold of one model.

    Attributes:
        folded: The fingerprint of the model that the fold made.
        original: The fingerprint of the model before the fold.
        metadata: Entries of the original's metadata that the fold changed; None for those that it added.
        graphs: What was changed.
        simplified: Whether onnxsim came first, so that the original is what that had left.
        frame: The original's functions and operator sets, as a serialised ModelProto, where the fold changed those.
    """

    folded: str
    original: str
    metadata: tuple[tuple[str, str | None], ...]
    graphs: tuple[GraphUndo, ...]
    simplified: bool = False
    frame: bytes = b""

    @property
    def regions(self) -> Iterator[UndoRegion]:
        """The regions of all graphs."""
        return (region for graph in self.graphs for region in graph.regions)


@dataclass(frozen=True, eq=False)
class Manifest:
    """How to undo the folds of a model.

    Attributes:
        steps: One for each fold, the last fold last.
    """

    steps: tuple[UndoStep, ...]

    @property
    def folds(self) -> tuple[FoldedNorm, ...]:
        """What was folded in all of them."""
        return tuple(fold for step in self.steps for region in step.regions for fold in region.folds)

    def to_json(self) -> str:
        """The manifest as JSON: schema version, no clock, no path; the same text for the same folds."""
        from bnfold.manifest_json import write_json  # noqa: PLC0415  # which needs the types above

        return write_json(self)

    @classmethod
    def from_json(cls, text: str, *, where: str = "the manifest") -> Manifest:
        """The manifest in `text`.

        Raises:
            ModelError: It is no manifest, it is cut off or damaged, or of a newer schema; `where` names the file.
        """
        from bnfold.manifest_json import read_json  # noqa: PLC0415

        return read_json(text, where)
