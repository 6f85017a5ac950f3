"""Adds a fold to the chain of folds that a model carries a manifest of, so that the last one can always be undone."""

from __future__ import annotations

from typing import Literal, TypeAlias

import onnx_ir as ir

from bnfold.errors import ModelError
from bnfold.frontends.onnx_embedded import embed, embedded, fits
from bnfold.frontends.onnx_fold import ModelPlan
from bnfold.frontends.onnx_manifest import Notes
from bnfold.manifest import Manifest

#: Where the caller wants the manifest: in the result alone, in the model's metadata too, or nowhere.
Wish: TypeAlias = Literal["apart", "embed"] | None

_STALE = "the manifest that the model carried does not fit it any more and was dropped"


class History:
    """The manifest of a fold that is about to be written.

    A model that carries a manifest which fits it carries one after the fold as well; one that does not fit is dropped.
    A fold that changes nothing adds nothing to a model.

    Attributes:
        notes: What the user should know.

    Args:
        wish: Where the caller wants the manifest.
        original: The model before the fold.
        folded: The copy of it that is about to be planned and folded.
        simplified: Whether onnxsim came first.
    """

    def __init__(self, wish: Wish, original: ir.Model, folded: ir.Model, *, simplified: bool) -> None:
        self._wish, self._original, self._simplified = wish, original, simplified
        self._changes = False
        self._earlier, self._stale = _earlier(original)
        self.notes: tuple[str, ...] = ()
        self._notes = Notes(folded) if wish is not None or self._earlier is not None else None

    def note(self, plan: ModelPlan) -> None:
        """Note what is about to be written."""
        self._changes = plan.changes
        self.notes = self._stale if plan.changes else ()
        if self._notes is not None:
            self._notes.note(plan)

    def extended(self, folded: ir.Model) -> Manifest | None:
        """The manifest of `folded`, which carries it from now on if it should; None where nobody wants one."""
        if self._notes is None or (self._wish is None and not self._changes):
            if self.notes:
                embed(folded, None)
            return None
        earlier = () if self._earlier is None else self._earlier.steps
        if not self._changes and earlier:
            return self._earlier
        step = self._notes.step(self._original, folded, simplified=self._simplified)
        manifest = Manifest((*earlier, step))
        if self._changes:
            embed(folded, None if self._wish == "apart" else manifest)
        return manifest


def _earlier(model: ir.Model) -> tuple[Manifest | None, tuple[str, ...]]:
    """The manifest that the model carries, if it fits; else what to say about that."""
    try:
        carried = embedded(model)
    except ModelError:
        return None, (_STALE,)
    if carried is None:
        return None, ()
    return (carried, ()) if fits(carried, model) else (None, (_STALE,))
