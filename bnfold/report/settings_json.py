"""What the runtime's own settings do to both models, as JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from bnfold.deployed import LEVEL
from bnfold.report.figures import Json, figure

if TYPE_CHECKING:
    from bnfold.comparison import TensorComparison
    from bnfold.deployed import Deployed, LevelErrors, Moved, Tf32

Tree = dict[str, Json]


def deployed_json(deployed: Deployed, comparison: Callable[[TensorComparison], Json]) -> Tree:
    """Both models as deployed; `comparison` writes one output."""
    models: Tree = {
        name: _moved(moved, comparison)
        for name, moved in (
            ("original", deployed.original),
            ("folded", deployed.folded),
            ("between", deployed.between),
        )
    }
    verdict: Tree = {"level": LEVEL, "failed": deployed.failed, "blame": deployed.blame, "trouble": deployed.trouble}
    return verdict | models | {"errors": [_errors(entry) for entry in deployed.errors], "notes": list(deployed.notes)}


def tf32_json(tf32: Tf32, comparison: Callable[[TensorComparison], Json]) -> Tree:
    """Both models with TF32."""
    return {"original": _moved(tf32.original, comparison), "folded": _moved(tf32.folded, comparison)}


def _moved(moved: Moved, comparison: Callable[[TensorComparison], Json]) -> Json:
    return {"trouble": moved.trouble, "outputs": [comparison(entry) for entry in moved.comparisons]}


def _errors(errors: LevelErrors) -> Json:
    unoptimised: Tree = {"original": figure(errors.original), "folded": figure(errors.folded)}
    deployed = {"original_deployed": errors.original_deployed, "folded_deployed": errors.folded_deployed}
    return (
        {"name": errors.name}
        | unoptimised
        | {name: None if number is None else figure(number) for name, number in deployed.items()}
    )
