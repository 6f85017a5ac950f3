"""Whether an output follows the input: other numbers of the same kind may hardly move it, where another kind does."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_models import PARAMETERS, STATS, parse

import bnfold

AVERAGED = f"""(float[N,3,32,32] x) => (float[N,5] y) <float[4,3,3,3] w, {PARAMETERS}, float[4,5] v, float[5] b> {{
    c = Conv(x, w) n = BatchNormalization(c, {STATS}) r = Relu(n) g = GlobalAveragePool(r) f = Flatten(g)
    y = Gemm(f, v, b) }}"""


def test_an_output_that_noise_averages_out_of_follows_constants_and_impulses() -> None:
    """The mean of a large image of noise is always the same, and small beside the bias."""
    model = parse(AVERAGED, values={"b": np.full(5, 30.0)})
    report = bnfold.fold(ir.from_proto(model)).report
    assert report.verification is not None
    assert report.verification.passed


def test_an_output_that_follows_no_input_still_proves_nothing() -> None:
    model = parse(AVERAGED, values={"b": np.full(5, 30.0), "v": np.zeros((4, 5))})
    with pytest.raises(bnfold.MachineError, match="nothing is proven"):
        bnfold.fold(ir.from_proto(model))
