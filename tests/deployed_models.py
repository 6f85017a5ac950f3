"""Models and runs for the checks of what the runtime does to models as they are deployed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_models import PARAMETERS, STATS, parse
from spoilt_sessions import Change, Setting, opener

import bnfold
from bnfold.deployed import Deployed
from bnfold.deploying import deployed_check
from bnfold.frontends.onnx_files import in_memory
from bnfold.quickcheck import quick_check
from bnfold.rerunning import prepare_rerun

ROWS = f"""(float[4, 6] x) => (float[4, 3] y) <float[6, 4] w, float[4, 3] w2, {PARAMETERS}> {{
    m = MatMul (x, w) t = Transpose <perm = [1, 0]> (m) n = BatchNormalization (t, {STATS}) y = MatMul (n, w2) }}"""
#: The same with nothing behind it that could absorb the BatchNorm.
STUCK_ROWS = f"""(float[4, 6] x) => (float[4, 4] y) <float[6, 4] w, {PARAMETERS}> {{
    m = MatMul (x, w) t = Transpose <perm = [1, 0]> (m) y = BatchNormalization (t, {STATS}) }}"""
PLAIN = f"""(float[n, 3, h, w] x) => (float[n, 4, p, q] y) <float[4, 3, 3, 3] k, {PARAMETERS}> {{
    c = Conv (x, k) b = BatchNormalization (c, {STATS}) y = Relu (b) }}"""


def deployed_of(verification: bnfold.Verification | None) -> Deployed:
    assert verification is not None
    found = verification.quick[0].deployed
    assert found is not None
    return found


def made(text: str) -> onnx.ModelProto:
    """The model of a text; weights that are quantised use the whole range."""
    codes = {"q": np.random.default_rng(0).integers(-127, 128, (4, 3, 3, 3))}
    return in_memory(ir.from_proto(parse(text, values=codes if "int8[4, 3, 3, 3] q" in text else None)))


def fold(text: str, **options: Any) -> bnfold.FoldResult:
    return bnfold.fold(ir.from_proto(made(text)), **options)


def spoilt(text: str, change: Callable[[Setting], Change | str | None], **options: Any) -> Deployed:
    """What is found where the runtime does that to the right fold of a model."""
    before = made(text)
    after = in_memory(bnfold.fold(ir.from_proto(before), verify=False).model)
    check = quick_check(before, after)
    assert check.passed
    rerun = prepare_rerun(check, before, after, seed=0, data=None, fixed={}, opener=opener(change))
    return deployed_check(rerun, **options)


QUANTISED = f"""(float[n, 3, 9, 9] x) => (float[a, b, c, d] y)
    <int8[4, 3, 3, 3] q, float s = {{0.01}}, float xs = {{0.02}}, uint8 xz = {{128}}, float ys = {{0.05}},
     uint8 yz = {{0}}, {PARAMETERS}> {{
    i = QuantizeLinear (x, xs, xz) d = DequantizeLinear (i, xs, xz) w = DequantizeLinear (q, s)
    c = Conv (d, w) b = BatchNormalization (c, {STATS}) r = Relu (b)
    o = QuantizeLinear (r, ys, yz) y = DequantizeLinear (o, ys, yz) }}"""
