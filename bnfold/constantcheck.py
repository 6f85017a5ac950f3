"""The local test of BatchNorms that became constants: the constant is what the nodes before it compute in float64.

`|stored - computed| <= u*|computed|`, u the unit round-off of the stored dtype, and the rounding of float64 itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from bnfold.errors import BnfoldError
from bnfold.frontends.onnx_evaluate import Evaluated
from bnfold.frontends.onnx_float64 import in_float64
from bnfold.frontends.onnx_kernels_run import evaluate
from bnfold.frontends.onnx_regions import Cutter
from bnfold.localcheck import LocalCheck
from bnfold.rounding import round_once, unit_roundoff

#: Roundings of float64 that a mean and a variance of many numbers may lose.
_SLACK = 2.0**-53 * 4096


def constant_check(before: ir.Model, evaluated: Sequence[Evaluated]) -> Iterator[LocalCheck]:
    """One test for each of `evaluated`, whose nodes are still in the model `before`."""
    cutter = Cutter(before) if evaluated else None
    for constant in evaluated:
        assert cutter is not None
        name = constant.decision.subject.name
        try:
            ratio = _ratio(cutter.at(constant.path), constant)
        except BnfoldError as error:
            yield LocalCheck((name,), None, "", str(error))
        else:
            yield LocalCheck((name,), ratio, constant.output)


def _ratio(cutter: Cutter, constant: Evaluated) -> float:
    cut = in_float64(cutter.cut([], [constant.output]))
    exact = evaluate(cut, {})[constant.output]
    stored = np.asarray(round_once(constant.value, constant.dtype), np.float64)
    if exact.shape != stored.shape:
        return np.inf
    bound = unit_roundoff(constant.dtype) * np.abs(exact) + _SLACK * np.abs(exact).max()
    with np.errstate(all="ignore"):
        ratio = np.where(exact == stored, 0.0, np.abs(stored - exact) / bound)
    return float(np.nan_to_num(ratio, nan=np.inf).max(initial=0.0))
