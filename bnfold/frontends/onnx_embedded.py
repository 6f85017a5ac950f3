"""The manifest that a model carries in its own metadata."""

from __future__ import annotations

import onnx_ir as ir

from bnfold.frontends.onnx_skeleton import fingerprint
from bnfold.manifest import Manifest

#: The metadata entry that holds it.
MANIFEST_KEY = "bnfold.manifest"


def embedded(model: ir.Model) -> Manifest | None:
    """The manifest in the model's metadata; None where there is none.

    Raises:
        ModelError: There is something else.
    """
    text = model.metadata_props.get(MANIFEST_KEY)
    return None if text is None else Manifest.from_json(text, where=f"metadata {MANIFEST_KEY}")


def embed(model: ir.Model, manifest: Manifest | None) -> None:
    """Make the model carry `manifest` and no other; none where there is nothing to undo."""
    model.metadata_props.pop(MANIFEST_KEY, None)
    if manifest is not None and manifest.steps:
        model.metadata_props[MANIFEST_KEY] = manifest.to_json()


def fits(manifest: Manifest, model: ir.Model) -> bool:
    """Whether the last fold of `manifest` is the one that made `model`."""
    return bool(manifest.steps) and manifest.steps[-1].folded == fingerprint(model)
