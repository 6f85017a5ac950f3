"""The fold as an `onnx_ir` pass, for pipelines that are built of passes."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from bnfold.decision import Decision
from bnfold.frontends.onnx_fold import Settings, plan_model
from bnfold.frontends.onnx_order import require_order


class FoldBatchNormPass(ir.passes.InPlacePass):
    """Folds every BatchNorm that exact arithmetic allows, in place and without verification.

    1. A BatchNorm with a legal route is folded, in bodies and functions too; so is a constant per-channel Mul-Add
       chain.
    2. Any other is left as it is; `decisions` says why.
    3. A model without a fold is left unchanged, byte for byte.

    Attributes:
        wanted: Which BatchNorms may be folded, by name.
        keep_overridable: Whether initializers that are also graph inputs are left alone.
        decisions: What became of each BatchNorm in the last call.
    """

    def __init__(self, wanted: Callable[[str], bool] = lambda _name: True, *, keep_overridable: bool = False) -> None:
        super().__init__()
        self.wanted = wanted
        self.keep_overridable = keep_overridable
        self.decisions: tuple[Decision, ...] = ()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold `model` in place.

        Raises:
            ModelError: It cannot be read, or a node stands before one that it reads.
        """
        require_order(model, model.graph.name or "model")
        planned = plan_model(model, Settings(self.wanted, self.keep_overridable))
        planned.write()
        planned.record(())
        self.decisions = planned.decisions
        return ir.passes.PassResult(model, modified=planned.changes)
