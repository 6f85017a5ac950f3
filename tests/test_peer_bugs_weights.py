"""Silent wrong numbers of other tools: shared weights and readers, axes, groups, biases; see test_peer_bugs.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from onnx_models import PARAMETERS, STATS
from peer_bugs import IMAGE, OUT, SECOND, STATS2, WEIGHT, F, holds, norm, scale_of
from torch import Tensor

from bnfold.decision import Reason

# Silent wrong numbers: shared weights and readers


def test_a_convs_weight_that_another_conv_reads_without_a_batchnorm_is_not_changed_for_it() -> None:
    """pytorch/pytorch#197539, #104593: the module is called elsewhere without a BatchNorm."""
    text = f"""({IMAGE}) => ({OUT}) <{WEIGHT}, {PARAMETERS}>
        {{ a = Conv(x, w) b = BatchNormalization(a, {STATS}) n = Neg(x) e = Conv(n, w) y = Add(b, e) }}"""
    holds(
        text,
        lambda c: norm(F.conv2d(c.x, c.w), c) + F.conv2d(-c.x, c.w),
        lambda c: norm(F.conv2d(c.x, c.w), c) + norm(F.conv2d(-c.x, c.w), c),
        folded=1,
    )


@pytest.mark.parametrize("number", ["", "2"])
def test_two_batchnorms_behind_one_shared_weight_are_each_folded_once(number: str) -> None:
    """pytorch/ao#2795, Tencent/TNN#808: folded twice, or the second, different one dropped."""
    second = "gamma, beta, mean, var" if not number else STATS2
    text = f"""({IMAGE}) => ({OUT}) <{WEIGHT}, {PARAMETERS}, {SECOND}>
        {{ a = Conv(x, w) b = BatchNormalization(a, {STATS}) n = Abs(x) d = Conv(n, w)
           e = BatchNormalization(d, {second}) y = Add(b, e) }}"""
    holds(
        text,
        lambda c: norm(F.conv2d(c.x, c.w), c) + norm(F.conv2d(c.x.abs(), c.w), c, number),
        lambda c: norm(norm(F.conv2d(c.x, c.w), c), c, number) + norm(norm(F.conv2d(c.x.abs(), c.w), c), c, number),
        folded=2,
    )


def test_a_conv_whose_output_something_else_reads_as_well_keeps_its_numbers() -> None:
    """torchao (found in PEERS.md): a Conv with two users is folded for both."""
    text = f"""({IMAGE}) => ({OUT}) <{WEIGHT}, {PARAMETERS}>
        {{ a = Conv(x, w) b = BatchNormalization(a, {STATS}) s = Sigmoid(a) y = Mul(b, s) }}"""
    holds(
        text,
        lambda c: norm(F.conv2d(c.x, c.w), c) * torch.sigmoid(F.conv2d(c.x, c.w)),
        lambda c: norm(F.conv2d(c.x, c.w), c) * torch.sigmoid(norm(F.conv2d(c.x, c.w), c)),
        folded=0,
        kept=[Reason.VALUE_HAS_OTHER_READERS],
    )


def test_a_shared_initializer_keeps_its_bytes_for_its_other_reader() -> None:
    """microsoft/onnxscript#2883: overwritten, which left an invalid model."""
    text = f"""(float[N,4,8,8] x) => ({OUT}) <float[4,4,3,3] w, {PARAMETERS}>
        {{ a = Conv(x, w, beta) b = BatchNormalization(a, {STATS}) r = Reshape(beta, s) y = Mul(b, r) }}"""
    text = text.replace(", float[4] gamma", ", int64[3] s, float[4] gamma")
    holds(
        text,
        lambda c: norm(F.conv2d(c.x, c.w, c.beta), c) * c.beta.reshape(-1, 1, 1),
        lambda c: norm(F.conv2d(c.x, c.w, c.beta), c) * (c.beta * scale_of(c)).reshape(-1, 1, 1),
        folded=1,
        values={"s": [4, 1, 1]},
    )


def test_each_batchnorm_goes_into_its_own_conv_with_its_own_parameters_whatever_the_order_of_the_nodes() -> None:
    """tensorflow-onnx#1726; mmcv#747, mmdetection#2848, #2924: another layer's parameters, by order or by name."""
    text = f"""({IMAGE}) => ({OUT}) <float[4,3,3,3] conv, float[4,3,3,3] conv_1, {PARAMETERS}, {SECOND}>
        {{ a = Conv(x, conv) n = Neg(x) d = Conv(n, conv_1) e = BatchNormalization(d, {STATS2})
           b = BatchNormalization(a, {STATS}) s = Sigmoid(b) y = Add(s, e) }}"""
    holds(
        text,
        lambda c: torch.sigmoid(norm(F.conv2d(c.x, c.conv), c)) + norm(F.conv2d(-c.x, c.conv_1), c, "2"),
        lambda c: torch.sigmoid(norm(F.conv2d(c.x, c.conv), c, "2")) + norm(F.conv2d(-c.x, c.conv_1), c),
        folded=2,
    )


# Silent wrong numbers: which axis, which group, which bias


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convs_weight_is_scaled_along_its_outputs(groups: int) -> None:
    """ultralytics#25364 scaled the wrong axis for years; onnxscript#2879, onnx/optimizer#106: with groups."""
    text = f"""(float[N,4,5,5] x) => ({OUT}) <float[4,{4 // groups},3,3] w, float[4] bias, {PARAMETERS}>
        {{ a = ConvTranspose <group={groups}, strides=[2,2]> (x, w, bias) y = BatchNormalization(a, {STATS}) }}"""

    def transposed(c: Any, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv_transpose2d(c.x, weight, bias, stride=2, groups=groups)

    holds(
        text,
        lambda c: norm(transposed(c, c.w, c.bias), c),
        lambda c: transposed(c, c.w * scale_of(c).reshape(-1, 1, 1, 1), (c.bias - c.mean) * scale_of(c) + c.beta),
        folded=1,
    )


@pytest.mark.parametrize("groups", [2, 4])
def test_a_grouped_conv_folds_both_ways(groups: int) -> None:
    """ultralytics/yolov3#1694, timm `ConvNorm.fuse`: shape errors; onnxruntime#12498: the Add behind it, by groups."""
    text = f"""(float[N,4,8,8] x) => ({OUT}) <float[4,{4 // groups},3,3] w, float[4,1,1] k, {PARAMETERS}, {SECOND}>
        {{ n = BatchNormalization(x, {STATS2}) a = Conv <group={groups}> (n, w) d = Add(a, k)
           y = BatchNormalization(d, {STATS}) }}"""
    holds(
        text,
        lambda c: norm(F.conv2d(norm(c.x, c, "2"), c.w, groups=groups) + c.k, c),
        lambda c: norm(F.conv2d(norm(c.x, c, "2"), c.w, groups=groups) + c.k.flip(0), c),
        folded=2,
    )


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose", "Gemm"])
def test_the_bias_is_scaled_too(kind: str) -> None:
    """ultralytics/yolov3#807, Tencent/ncnn#1339: `bias += t` in the place of `bias*s + t`."""
    linear: dict[str, Callable[[Any, Tensor | None], Tensor]] = {
        "Conv": lambda c, bias: F.conv2d(c.x, c.w, bias),
        "ConvTranspose": lambda c, bias: F.conv_transpose2d(c.x, c.w, bias),
        "Gemm": lambda c, bias: F.linear(c.x, c.w.T, bias),
    }
    image = "" if kind == "Gemm" else ",8,8"
    kernel = "" if kind == "Gemm" else ",3,3"
    out = "float[N,4] y" if kind == "Gemm" else OUT
    text = f"""(float[N,4{image}] x) => ({out}) <float[4,4{kernel}] w, float[4] bias, {PARAMETERS}>
        {{ a = {kind}(x, w, bias) y = BatchNormalization(a, {STATS}) }}"""
    holds(
        text,
        lambda c: norm(linear[kind](c, c.bias), c),
        lambda c: norm(linear[kind](c, None), c) + c.bias.reshape(-1, *[1] * (c.x.ndim - 2)),
        folded=1,
    )


def test_the_factors_of_a_gemm_are_not_forgotten() -> None:
    """microsoft/onnxscript#3027, aimet-onnx: beta ignored; a scalar C; both transposed."""
    text = f"""(float[N,6] x) => (float[N,4] y) <float[4,6] w, float k, {PARAMETERS}>
        {{ a = Gemm <alpha=0.5, beta=2.0, transB=1> (x, w, k) y = BatchNormalization(a, {STATS}) }}"""
    holds(
        text,
        lambda c: norm(0.5 * c.x @ c.w.T + 2 * c.k, c),
        lambda c: norm(0.5 * c.x @ c.w.T + c.k, c),
        folded=1,
        values={"k": 1.5},
    )


def test_a_matmul_on_three_axes_is_not_scaled_along_the_rows_that_the_batchnorm_means() -> None:
    """pytorch/ao#4116; fx.fuse, TorchScript, efficient_conv_bn_eval: Linear and BatchNorm1d on (N, C, L), L = C."""
    text = f"""(float[N,4,6] x) => (float[N,4,4] y) <float[6,4] w, float[4] bias, {PARAMETERS}>
        {{ m = MatMul(x, w) a = Add(m, bias) y = BatchNormalization(a, {STATS}) }}"""
    holds(
        text,
        lambda c: norm(c.x @ c.w + c.bias, c),
        lambda c: norm((c.x @ c.w + c.bias).transpose(1, 2), c).transpose(1, 2),
        folded=0,
        kept=[Reason.OPERATOR_MIXES_CHANNELS],
    )


@pytest.mark.parametrize("perm", [(0, 2, 1), (0, 1, 2)])
def test_a_transpose_between_a_matmul_and_its_batchnorm_is_followed(perm: tuple[int, ...]) -> None:
    """onnxruntime's MatmulBNFusion (found in PEERS.md): it looks for a Transpose and not at its `perm`."""
    text = f"""(float[N,4,6] x) => (float[N,4,4] y) <float[6,4] w, float[4] bias, {PARAMETERS}>
        {{ m = MatMul(x, w) a = Add(m, bias) t = Transpose <perm={list(perm)}> (a)
           y = BatchNormalization(t, {STATS}) }}"""
    other = (0, 1, 2) if perm == (0, 2, 1) else (0, 2, 1)
    follows = perm == (0, 2, 1)
    holds(
        text,
        lambda c: norm((c.x @ c.w + c.bias).permute(perm), c),
        lambda c: norm((c.x @ c.w + c.bias).permute(other), c).permute(other).permute(perm),
        folded=int(follows),
        kept=[] if follows else [Reason.OPERATOR_MIXES_CHANNELS],
    )
