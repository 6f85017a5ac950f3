"""Teach bnfold an operator: a reader that recognises it, and two rules that say what passes it.

ONNX's Tile repeats a tensor along its axes. bnfold has no rule for it, so a BatchNorm behind a Tile stays. An affine
on an axis that is not repeated passes a Tile unchanged, in both directions: `tile(s*x + t) = s*tile(x) + t`.

    python examples/own_carrier.py
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

import bnfold
from bnfold.decision import Reason, Refusal
from bnfold.frontends.onnx_context import Context, barrier, name_of
from bnfold.graph import Operator, PlacedAffine, Step
from bnfold.views import Carrier, View


def read_tile(node: ir.Node, context: Context) -> View:
    """Tile with constant repeats; anything that is not proven is a barrier, with its reason."""
    repeats = context.constants.array(node.inputs[1])
    if repeats is None:
        return barrier(node, Reason.AXIS_NOT_PROVEN, "the repeats are not constant")
    repeated = frozenset(np.flatnonzero(repeats != 1).tolist())

    def passes(operator: Operator, placed: PlacedAffine) -> Step | Refusal:
        if repeated & set(placed.axes):
            return Refusal(Reason.AXIS_NOT_PROVEN, name_of(node), "the channel axis is repeated")
        return Step({0: placed})

    return Carrier(pull=passes, push=passes)


def tiled_model() -> ir.Model:
    """Conv -> Tile over space -> BatchNormalization, with random numbers."""
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        tiled (float[n, 3, 8, 8] x, float[4, 3, 3, 3] w, float[4] gamma, float[4] beta, float[4] mean, float[4] var)
            => (float[n, 4, 12, 18] y)
            <int64[4] repeats = {1, 1, 2, 3}>
        {
            c = Conv (x, w)
            t = Tile (c, repeats)
            y = BatchNormalization (t, gamma, beta, mean, var)
        }""")
    generator = np.random.default_rng(0)
    for value in list(proto.graph.input)[1:]:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        array = generator.uniform(0.5, 2.0, shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        proto.graph.input.remove(value)
    return ir.from_proto(proto)


def main() -> None:
    """Fold the model without the rule and with it."""
    model = tiled_model()
    (kept,) = bnfold.inspect(model).kept
    print("without the rule: kept,", "; ".join(map(str, kept.refusals)))
    result = bnfold.fold(model, readers={("", "Tile"): read_tile})
    (folded,) = result.report.folded
    verification = result.report.verification
    assert verification is not None
    print(f"with the rule: folded into {folded.into[0]} through {folded.through[0]}, verified: {verification.passed}")


if __name__ == "__main__":
    main()
