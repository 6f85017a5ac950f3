"""Whether an output follows the input: other numbers of the same kind may hardly move it, where another kind does."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_models import PARAMETERS, STATS, parse

import bnfold
from bnfold.quickcheck import QuickCheck, quick_check

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


#: The mean of |x| over 3072 numbers: about 0.8 for noise, 0 for zeros, 1 for ones.
SIZE = "a = Abs(x) m = ReduceMean<keepdims=0>(a) s = Reshape(m, shape)"


def sized(nodes: str, declared: str = "", **values: object) -> QuickCheck:
    text = f"(float[1,3,32,32] x) => (float[A] y) <int64[1] shape{declared}> {{ {SIZE} {nodes} }}"
    made = parse(text, values={"shape": np.array([1]), **values})
    return quick_check(made, made)


def test_an_output_that_a_constant_moves_is_alive() -> None:
    assert sized("y = Identity(s)").proves


@pytest.mark.parametrize("step", ["Div(s, s)", "Log(z)"], ids=["NaN on zeros", "minus infinity on zeros"])
def test_an_output_that_is_always_the_same_and_not_finite_on_zeros_proves_nothing(step: str) -> None:
    """0 / 0 and log(0) are no movement: there is nothing that can be compared."""
    check = sized(f"p = Sign(s) z = Mul(p, p) y = {step}")
    assert not check.failed
    assert not check.proves
    assert "Output y does not change when the input does: that it agrees proves nothing." in check.notes


def test_an_output_that_is_not_finite_on_zeros_and_moves_on_ones_is_alive() -> None:
    check = sized("y = Log(s)")
    assert check.proves


def test_an_output_that_is_finite_only_on_a_pattern_proves_nothing() -> None:
    """1 / 0 on noise, and 1 where all is 1: nothing was compared in the first run that could have moved."""
    check = sized("f = Floor(s) y = Div(one, f)", ", float[1] one", one=np.ones(1))
    assert not check.proves


def test_an_output_that_has_another_shape_on_a_pattern_proves_nothing() -> None:
    """One number for each number of the input that is not zero, always the same one; of zeros there is none."""
    check = sized("z = NonZero(x) t = Cast<to=1>(z) d = Sub(t, t) w = Add(d, one) y = ReduceMean<axes=[0]>(w)",
                  ", float[1] one", one=np.ones(1))  # fmt: skip
    assert not check.proves
