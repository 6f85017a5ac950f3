"""What the folds make of quantised weights: the factors that an operator has absorbed, offered to its integers.

At the outputs `prod s_out`, at the inputs `prod s_in`; the bias, all told, is what `W*x + b` needs. A bias of 32 bits
moves to the nearest number of its new grid, so that it is off by at most half a step, which is stated.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bnfold.bench import Bench
from bnfold.decision import Refusal
from bnfold.graph import AbsorbInput, AbsorbOutput, Operator
from bnfold.quantised import Quantised
from bnfold.views import Linear


def requantised(
    bench: Bench, operator: Operator, further: tuple[AbsorbInput | AbsorbOutput, ...] = ()
) -> Quantised | Refusal | None:
    """The quantised constants after all that `operator` has absorbed, and `further`; None if it has none."""
    view = operator.view
    if not isinstance(view, Linear) or view.quantised is None:
        return None
    outputs, inputs = np.ones(view.outputs), np.ones(view.inputs)
    for edit in (*bench.absorbed.get(operator.index, ()), *further):
        if isinstance(edit, AbsorbOutput):
            outputs = outputs * edit.affine.scale
        else:
            inputs = inputs * edit.affine.scale
    bias = bench.linear_params(operator, further).bias
    return view.quantised.scaled(outputs, inputs, bias, operator.name)


def rounded_biases(bench: Bench) -> Iterator[str]:
    """One sentence for each operator whose 32-bit bias is no longer exact."""
    for index in sorted(set(bench.absorbed) - set(bench.removed)):
        operator = bench.graph.operators[index]
        new = requantised(bench, operator)
        if isinstance(new, Quantised) and new.bias is not None:
            half = float(np.max(new.bias.step)) / 2
            yield f"the int32 bias of {operator.name} is off by half a step at most, {half:.2g}"
