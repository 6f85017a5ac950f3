"""Undoes folds: `unfold(fold(model)) = model`, bit by bit, whole or region by region."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import onnx_ir as ir

from bnfold.errors import ModelError, UsageError
from bnfold.frontends.onnx_embedded import embed, embedded
from bnfold.frontends.onnx_skeleton import fingerprint
from bnfold.frontends.onnx_unfold import undo
from bnfold.manifest import Manifest, UndoRegion, UndoStep
from bnfold.manifest_files import read_manifest
from bnfold.models import ModelLike, opened

ManifestLike: TypeAlias = "Manifest | str | os.PathLike[str]"

#: A manifest that lies beside its model is called like it, and this.
BESIDE = ".manifest.json"


@dataclass(frozen=True, eq=False)
class UnfoldResult:
    """A model with its BatchNorms back.

    Attributes:
        model: The model; the folded one is as it was. It carries `manifest`.
        restored: The BatchNorms (and constant chains that are some in disguise) that are back, by name.
        also: Those of them that were not asked for: their folds overlap with some that were.
        manifest: What can still be undone; None where that is nothing.
        simplified: Whether onnxsim had run before the fold, so that the model is what it left.
    """

    model: ir.Model
    restored: tuple[str, ...]
    also: tuple[str, ...] = ()
    manifest: Manifest | None = None
    simplified: bool = False


def unfold(
    model: ModelLike, manifest: ManifestLike | None = None, *, only: str | None = None, every: bool = False
) -> UnfoldResult:
    """Put back what the last fold of `model` took out, from the manifest that the fold wrote.

    Args:
        model: A folded model, which stays as it is, or the path of an ONNX file.
        manifest: The manifest, or its file; when left out, the one that the model carries, or else the file beside it
            that is called like it and ".manifest.json".
        only: A regular expression; only BatchNorms in whose name it is found come back, and with them those whose
            folds overlap with theirs.
        every: Undo every fold that the manifest knows, not only the last.

    Raises:
        UsageError: There is no manifest; `only` is no regular expression, matches nothing, or comes with `every`.
        ModelError: The manifest cannot be read, belongs to another model, or the model was changed since; as `load`; or
            the nodes of a model in memory are out of order.
    """
    if only is not None and every:
        raise UsageError("to undo only some folds and to undo all contradict each other", remedy="leave out one")
    folded, _ = opened(model)
    chain = _manifest(model, folded, manifest)
    wanted = _wanted(only, chain)
    result = UnfoldResult(folded, (), manifest=chain)
    for step in reversed(chain.steps if every else chain.steps[-1:]):
        result = _back(result, step, wanted, _name(model))
    return result


def _manifest(model: ModelLike, folded: ir.Model, manifest: ManifestLike | None) -> Manifest:
    """The manifest that the caller names, that the model carries, or that lies beside it."""
    if isinstance(manifest, Manifest):
        return manifest
    if manifest is not None:
        return read_manifest(manifest)
    if (carried := embedded(folded)) is not None:
        return carried
    beside = None if isinstance(model, ir.Model) else Path(f"{os.fspath(model)}{BESIDE}")
    if beside is not None and beside.is_file():
        return read_manifest(beside)
    where = f"nor is there a file {beside.name} beside it" if beside is not None else "and none was given"
    raise UsageError(
        f"the model carries no manifest, {where}",
        where=_name(model),
        remedy="name it with --manifest, or fold the original again with --manifest",
    )


def _name(model: ModelLike) -> str:
    return (model.graph.name or "model") if isinstance(model, ir.Model) else os.fspath(model)


def _wanted(only: str | None, chain: Manifest) -> Callable[[str], bool] | None:
    """Which names the caller asks for; None for all."""
    if only is None:
        return None
    try:
        pattern = re.compile(only)
    except re.error as error:
        raise UsageError(f"{only!r} is no regular expression: {error}", where="only") from error
    names = [name for step in chain.steps[-1:] for region in step.regions for name in region.names]
    if not any(map(pattern.search, names)):
        told = f"there are {', '.join(names[:8])}{', ...' if names[8:] else ''}" if names else "nothing was folded"
        raise UsageError(f"{only!r} matches no BatchNorm that was folded", where="only", remedy=told)
    return lambda name: bool(pattern.search(name))


def _back(result: UnfoldResult, step: UndoStep, wanted: Callable[[str], bool] | None, where: str) -> UnfoldResult:
    """One step back from `result`, whose manifest ends with `step`."""
    assert result.manifest is not None
    if fingerprint(result.model) != step.folded:
        what = "the manifest belongs to another model, or the model was changed since it was folded"
        raise ModelError(what, where=where, remedy="take the two that were written together")
    back = [r for r in step.regions if wanted is None or any(map(wanted, r.names))]
    chosen = {id(region) for region in back}

    def is_chosen(region: UndoRegion) -> bool:
        return wanted is None or id(region) in chosen

    model, rest = _checked(result.model, step, is_chosen, where)
    names = [name for region in back for name in region.names]
    also = tuple(name for name in names if wanted is not None and not wanted(name))
    steps = (*result.manifest.steps[:-1], *(() if rest is None else (rest,)))
    manifest = Manifest(steps) if steps else None
    embed(model, manifest)
    simplified = result.simplified or step.simplified
    return UnfoldResult(model, (*names, *result.restored), also, manifest, simplified)


def _checked(
    folded: ir.Model, step: UndoStep, wanted: Callable[[UndoRegion], bool], where: str
) -> tuple[ir.Model, UndoStep | None]:
    """What `undo` gives, proven: with the rest undone as well it is the original, bit by bit."""
    damaged = ModelError("the manifest is damaged", where=where, remedy="copy it again")
    try:
        model, rest = undo(folded, step, wanted)
        original = model if rest is None else undo(model, rest, lambda _region: True)[0]
        found = fingerprint(original)
    except MemoryError:
        raise
    except Exception as error:  # a damaged manifest can break anything, and a right one was undone when it was made
        raise damaged from error
    if found != step.original:
        raise damaged
    return model, None if rest is None else replace(rest, folded=fingerprint(model))
