"""Silent wrong numbers of other tools: activations, sums, signs, statistics, attributes; see test_peer_bugs.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx_models import PARAMETERS, STATS, ops, parse, proto
from peer_bugs import IMAGE, OUT, SECOND, STATS2, WEIGHT, Compute, F, compare, holds, norm, scale_of
from torch import Tensor

import bnfold
from bnfold.decision import Reason

# Silent wrong numbers: activations, sums, gates, signs


def test_nothing_but_a_positive_scale_folds_through_a_relu() -> None:
    """opencv/opencv#28689: Conv, ReLU, BatchNorm folded into the Conv as if the ReLU were not there."""
    text = f"""({IMAGE}) => ({OUT}) <{WEIGHT}, {PARAMETERS}>
        {{ a = Conv(x, w) r = Relu(a) y = BatchNormalization(r, {STATS}) }}"""
    right, wrong = (
        lambda c: norm(torch.relu(F.conv2d(c.x, c.w)), c),
        lambda c: torch.relu(norm(F.conv2d(c.x, c.w), c)),
    )
    holds(text, right, wrong, folded=0, kept=[Reason.COSTS_MORE])
    for gamma in ([1, 2, 0.5, 3], [1, -2, 0.5, -3]):
        result = holds(text, right, wrong, folded=1, reduce=True, values={"gamma": gamma})
        assert "Max" in ops(result.model)


def test_both_operands_of_a_sum_take_the_scale() -> None:
    """opencv/opencv#29160: Conv, Add, BatchNorm drops the scale on the residual branch."""
    text = f"""({IMAGE}) => ({OUT}) <{WEIGHT}, float[4,3,3,3] v, {PARAMETERS}>
        {{ a = Conv(x, w) e = Conv(x, v) s = Add(a, e) y = BatchNormalization(s, {STATS}) }}"""
    wrong: Compute = lambda c: norm(F.conv2d(c.x, c.w), c) + F.conv2d(c.x, c.v)  # noqa: E731
    holds(text, lambda c: norm(F.conv2d(c.x, c.w) + F.conv2d(c.x, c.v), c), wrong, folded=1)
    identity = f"""(float[N,4,8,8] x) => ({OUT}) <float[4,4,1,1] w, {PARAMETERS}>
        {{ a = Conv(x, w) s = Add(a, x) y = BatchNormalization(s, {STATS}) }}"""
    wrong = lambda c: norm(F.conv2d(c.x, c.w), c) + c.x  # noqa: E731
    holds(identity, lambda c: norm(F.conv2d(c.x, c.w) + c.x, c), wrong, folded=1)
    gated = identity.replace("s = Add(a, x)", "g = Sigmoid(x) s = Add(a, g)")
    wrong = lambda c: norm(F.conv2d(c.x, c.w), c) + torch.sigmoid(c.x)  # noqa: E731
    right: Compute = lambda c: norm(F.conv2d(c.x, c.w) + torch.sigmoid(c.x), c)  # noqa: E731
    holds(gated, right, wrong, folded=0, kept=[Reason.OPERATOR_IS_NOT_LINEAR])


def test_a_gate_of_the_same_value_is_a_second_reader_of_it() -> None:
    """apache/tvm#17151, #13359, #16211: FoldScaleAxis through the SE block of MobileNetV3."""
    text = f"""({IMAGE}) => ({OUT}) <{WEIGHT}, float[4,4,1,1] v, {PARAMETERS}, {SECOND}>
        {{ a = Conv(x, w) b = BatchNormalization(a, {STATS}) p = GlobalAveragePool(b) e = Conv(p, v) g = Sigmoid(e)
           m = Mul(b, g) y = BatchNormalization(m, {STATS2}) }}"""

    def gated(c: Any, after: str = "") -> Tensor:
        b = norm(F.conv2d(c.x, c.w), c)
        b = norm(b, c, after) if after else b
        return b * torch.sigmoid(F.conv2d(b.mean((2, 3), keepdim=True), c.v))

    holds(text, lambda c: norm(gated(c), c, "2"), lambda c: gated(c, "2"), folded=1, kept=[Reason.SHIFT_MEETS_PRODUCT])


@pytest.mark.parametrize("node", ["Relu", "MaxPool <kernel_shape=[2,2]>"])
def test_a_negative_scale_does_not_slip_through_what_turns_over_with_it(node: str) -> None:
    """apache/tvm#2340, open-mmlab/mmcv#2620: negative gammas."""
    text = f"""({IMAGE}) => ({OUT}) <{WEIGHT}, {PARAMETERS}>
        {{ a = Conv(x, w) r = {node} (a) y = BatchNormalization(r, {STATS}) }}"""
    activation = torch.relu if node == "Relu" else lambda x: F.max_pool2d(x, 2, stride=1)
    holds(
        text,
        lambda c: norm(activation(F.conv2d(c.x, c.w)), c),
        lambda c: activation(norm(F.conv2d(c.x, c.w), c)),
        folded=0,
        kept=[Reason.COSTS_MORE if node == "Relu" else Reason.SCALE_IS_NOT_POSITIVE],
        values={"gamma": [1, -2, 0.5, -3], "beta": 0, "mean": 0},
    )


def test_an_activation_behind_the_batchnorm_sees_what_it_saw() -> None:
    """NVIDIA onnx-tensorrt#594: Conv, BatchNorm, ReLU differ after the fusion."""
    text = f"""({IMAGE}) => ({OUT}) <{WEIGHT}, float[4] bias, {PARAMETERS}>
        {{ a = Conv(x, w, bias) b = BatchNormalization(a, {STATS}) y = Relu(b) }}"""
    holds(text, lambda c: torch.relu(norm(F.conv2d(c.x, c.w, c.bias), c)), folded=1)


@pytest.mark.parametrize(("rank", "groups"), [(4, 1), (4, 2), (5, 1)])
def test_parallel_branches_of_several_sizes_give_their_sum(rank: int, groups: int) -> None:
    """ml-mobileone#8, RepVGG#100, UniRepLKNet#8 (padding and groups swapped), RepLKNet#55 (wrong in 3-D)."""
    image, one, three = ",6" * (rank - 2), ",1" * (rank - 2), ",3" * (rank - 2)
    pads = [1] * 2 * (rank - 2)
    text = f"""(float[N,4{image}] x) => (float[N,4{image}] y) <float[4,{4 // groups}{three}] w,
        float[4,{4 // groups}{one}] v, {PARAMETERS}, {SECOND}>
        {{ a = Conv <pads={pads}, group={groups}> (x, w) b = BatchNormalization(a, {STATS})
           d = Conv <group={groups}> (x, v) e = BatchNormalization(d, {STATS2}) y = Add(b, e) }}"""
    conv = F.conv2d if rank == 4 else F.conv3d
    holds(
        text,
        lambda c: norm(conv(c.x, c.w, padding=1, groups=groups), c) + norm(conv(c.x, c.v, groups=groups), c, "2"),
        lambda c: norm(conv(c.x, c.w, padding=1, groups=groups), c) + norm(conv(c.x, c.v, groups=groups), c),
        folded=2,
    )


# Silent wrong numbers: statistics and attributes


def test_a_batchnorm_in_training_mode_is_not_folded_by_its_running_statistics() -> None:
    """onnxscript, aimet-onnx (found in PEERS.md), apple/ml-mobileone#8; onnxsim#175: it kills the session."""
    text = f"""({IMAGE}) => ({OUT}, float[4] m, float[4] v) <{WEIGHT}, {PARAMETERS}>
        {{ a = Conv(x, w) y, m, v = BatchNormalization <training_mode=1> (a, {STATS}) }}"""

    def batch(c: Any) -> Tensor:
        x = F.conv2d(c.x, c.w)
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        return norm(x, SimpleNamespace(gamma=c.gamma, beta=c.beta, mean=mean, var=var))

    wrong: Compute = lambda c: norm(F.conv2d(c.x, c.w), c)  # noqa: E731
    result = bnfold.fold(ir.from_proto(parse(text)), verify=False)
    assert [k.refusals[0].reason for k in result.report.kept] == [Reason.NORMALISES_BY_BATCH_STATISTICS]
    compare(parse(text), proto(result.model), batch, wrong)


@pytest.mark.parametrize(
    ("attribute", "epsilon"), [("", 1e-5), ("<epsilon=0.0>", 0.0), ("<epsilon=0.1>", float(np.float32(0.1)))]
)
def test_epsilon_is_what_the_file_says(attribute: str, epsilon: float) -> None:
    """aimet-onnx: `epsilon or 1e-5`; MNN: 1e-10 where it is missing; Brevitas: lost when a BatchNorm is split."""
    text = f"""({IMAGE}) => ({OUT}) <float[2,3,3,3] w, float[2,3,3,3] v, {PARAMETERS}>
        {{ a = Conv(x, w) e = Conv(x, v) d = Concat <axis=1> (a, e)
           y = BatchNormalization {attribute} (d, {STATS}) }}"""

    def both(c: Any) -> Tensor:
        return torch.cat([F.conv2d(c.x, c.w), F.conv2d(c.x, c.v)], 1)

    assumed = 1e-3 if epsilon < 1e-4 else 1e-5
    holds(
        text,
        lambda c: norm(both(c), c, epsilon=epsilon),
        lambda c: norm(both(c), c, epsilon=assumed),
        folded=1,
        values={"var": 1e-3},
    )


@pytest.mark.parametrize("how", ["pads=[1,1,1,1]", 'auto_pad="SAME_UPPER"'])
def test_a_shift_does_not_enter_the_padding_of_a_conv(how: str) -> None:
    """aimet-onnx: only `pads` is looked at, so that auto_pad folds and is wrong at the borders."""
    text = f"""(float[N,4,8,8] x) => ({OUT}) <float[4,4,3,3] w, {PARAMETERS}>
        {{ b = BatchNormalization(x, {STATS}) y = Conv <{how}> (b, w) }}"""

    def wrong(c: Any) -> Tensor:
        s = scale_of(c)
        shift = c.w.sum((2, 3)) @ (c.beta - c.mean * s)
        return F.conv2d(c.x, c.w * s.reshape(1, -1, 1, 1), shift, padding=1)

    right: Compute = lambda c: F.conv2d(norm(c.x, c), c.w, padding=1)  # noqa: E731
    holds(text, right, wrong, folded=0, kept=[Reason.SHIFT_MEETS_PADDING])
    holds(text, right, folded=1, values={"beta": 0, "mean": 0})


def test_what_is_rounded_between_a_conv_and_its_batchnorm_stays_on_its_grid() -> None:
    """onnxruntime#24711's pattern in a graph: Conv, QuantizeLinear, DequantizeLinear, BatchNorm."""
    text = f"""({IMAGE}) => ({OUT}) <{WEIGHT}, float s, int8 z, {PARAMETERS}>
        {{ a = Conv(x, w) q = QuantizeLinear(a, s, z) d = DequantizeLinear(q, s, z)
           y = BatchNormalization(d, {STATS}) }}"""

    def right(c: Any) -> Tensor:
        return norm(torch.clamp(torch.round(F.conv2d(c.x, c.w) / c.s), -128, 127) * c.s, c)

    wrong: Compute = lambda c: torch.clamp(torch.round(norm(F.conv2d(c.x, c.w), c) / c.s), -128, 127) * c.s  # noqa: E731
    holds(text, right, wrong, folded=0, kept=[Reason.ROUNDED_TO_A_GRID], values={"s": 0.25, "z": 0})
