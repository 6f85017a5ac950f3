"""What other tools got wrong, as what must hold here: PEERS.md section 4, every row that a graph tool can have.

Each model is computed independently, in float64 by torch from the constants in the file, and so is the peer's mistake:
the folded model must agree with the first and the first must differ from the second, so that the test can fail.

Left out, because no ONNX graph shows them: PyTorch modules (ultralytics#24991, #25363, RepVGG#7, onnxsim#47,
pytorch#141116, #131888, pytorch/TensorRT#1450, timm's `ConvNorm.fuse` as a module, crashes of `fuse_conv_bn_weights`),
recalibration (fvcore#152, #97, detectron2#5398, #5409, SlowFast#282, swa#8, pytorch#31498, contrib#29, composer#624,
pycls#93, aimet#3060, `update_bn` without batches, AIMET-Keras' number of batches), what a runtime does by itself after
the fold (onnxruntime#24711, #14500, #32228, #32417, #32418, #19288, #21220, #5798, onnx-tensorrt#594's TensorRT side),
and complaints without a model (onnx/onnx#3460, tensorflow-onnx#2300, onnxsim#13, #50, #53, #82, mmpose#606).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx_models import NEWEST, PARAMETERS, STATS, assert_fold, ops, parse, proto
from torch import Tensor

import bnfold
from bnfold.data import read_inputs, synthesise
from bnfold.decision import Reason
from bnfold.frontends.onnx_float64 import evaluate, in_float64
from bnfold.runtime import open_session

F = torch.nn.functional

#: From the inputs and the constants by name, in float64, to the first output.
Compute: TypeAlias = Callable[[Any], Tensor]

IMAGE, WEIGHT = "float[N,3,8,8] x", "float[4,3,3,3] w"
OUT = "float[A,B,C,D] y"
SECOND = "float[4] gamma2, float[4] beta2, float[4] mean2, float[4] var2"
STATS2 = "gamma2, beta2, mean2, var2"

#: Of the output's scale: what float32 may be off by, and what a mistake is off by at least.
CLOSE, FAR = 2e-5, 1e-2


def norm(x: Tensor, c: Any, number: str = "", epsilon: float = 1e-5) -> Tensor:
    """An inference BatchNorm as its definition says, over axis 1."""
    gamma, beta, mean, var = (
        getattr(c, f"{name}{number}").reshape(-1, *[1] * (x.ndim - 2)) for name in ("gamma", "beta", "mean", "var")
    )
    return gamma * (x - mean) / torch.sqrt(var + epsilon) + beta


def scale_of(c: Any, number: str = "") -> Tensor:
    """gamma / sqrt(var + epsilon)."""
    return getattr(c, f"gamma{number}") / torch.sqrt(getattr(c, f"var{number}") + 1e-5)


def holds(
    text: str,
    right: Compute,
    wrong: Compute | None = None,
    *,
    folded: int,
    kept: Sequence[Reason] = (),
    **options: Any,
) -> bnfold.FoldResult:
    """Fold, by every promise of a fold, and compare with `right`; `wrong`, the peer's mistake, must be far from it."""
    chosen = {k: options.pop(k) for k in ("values", "opset", "seed", "ir_version") if k in options}
    model = parse(text, **chosen)
    result = assert_fold(model, folded=folded, kept=kept, **options)
    compare(model, proto(result.model), right, wrong)
    return result


def compare(model: onnx.ModelProto, after: onnx.ModelProto, right: Compute, wrong: Compute | None) -> None:
    """`after` on onnxruntime and in float64 against `right`."""
    feeds = synthesise(read_inputs(model), seed=5, batch=2, spatial=8, overrides={})
    numbers = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer} | feeds
    known = SimpleNamespace(**{k: torch.from_numpy(np.array(v, np.float64)) for k, v in numbers.items()})
    name = model.graph.output[0].name
    expected = right(known).numpy()
    scale = np.abs(expected).max()
    assert scale > 0
    for got in (open_session(after, "cpu").run([name], feeds), evaluate(in_float64(after), feeds, [name])):
        assert got[name].shape == expected.shape
        assert np.abs(got[name] - expected).max() <= CLOSE * scale
    if wrong is not None:
        assert np.abs(wrong(known).numpy() - expected).max() > FAR * scale


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


# Crashes, invalid output, lost outputs


def test_an_output_that_was_asked_for_is_still_computed() -> None:
    """microsoft/onnxruntime#4110, aimet-onnx: the Conv's own output is fused away."""
    text = f"""({IMAGE}) => (float[A,B,C,D] a, {OUT}) <{WEIGHT}, {PARAMETERS}>
        {{ a = Conv(x, w) y = BatchNormalization(a, {STATS}) }}"""
    holds(
        text,
        lambda c: F.conv2d(c.x, c.w),
        lambda c: norm(F.conv2d(c.x, c.w), c),
        folded=0,
        kept=[Reason.IS_MODEL_OUTPUT],
    )


def test_the_last_node_keeps_the_outputs_name() -> None:
    """microsoft/onnxconverter-common#57: the BatchNorm at the end of the graph."""
    text = f"({IMAGE}) => ({OUT}) <{WEIGHT}, {PARAMETERS}> {{ a = Conv(x, w) y = BatchNormalization(a, {STATS}) }}"
    result = holds(text, lambda c: norm(F.conv2d(c.x, c.w), c), folded=1)
    assert [v.name for v in result.model.graph.outputs] == ["y"]


def test_names_that_the_fold_would_choose_may_be_taken() -> None:
    """microsoft/onnxscript#2680, onnx/optimizer#174: initializer names that collide."""
    taken = "float[4] w_folded, float[4] Conv_constant_folded, float[4] a_bias, float[4] w_bias"
    text = f"""(float[N,4,8,8] x) => ({OUT}) <float[4,4,3,3] w, {taken}, {PARAMETERS}>
        {{ a = Conv(x, w) b = BatchNormalization(a, w_folded, Conv_constant_folded, mean, var)
           y = BatchNormalization(b, gamma, a_bias, w_bias, var) }}"""

    def right(c: Any) -> Tensor:
        first = SimpleNamespace(gamma=c.w_folded, beta=c.Conv_constant_folded, mean=c.mean, var=c.var)
        second = SimpleNamespace(gamma=c.gamma, beta=c.a_bias, mean=c.w_bias, var=c.var)
        return norm(norm(F.conv2d(c.x, c.w), first), second)

    holds(text, right, folded=2)


@pytest.mark.parametrize("opset", [7, 8, 13])
def test_initializers_are_inputs_where_the_file_format_says_so(opset: int) -> None:
    """onnx/optimizer#133 (0.3.9 broke initializers); onnxsim, onnxslim bake in what a caller may override."""
    text = f"({IMAGE}) => ({OUT}) <{WEIGHT}, {PARAMETERS}> {{ a = Conv(x, w) y = BatchNormalization(a, {STATS}) }}"
    result = holds(text, lambda c: norm(F.conv2d(c.x, c.w), c), folded=1, opset=opset)
    if opset < 9:
        assert {v.name for v in result.model.graph.initializers.values()} <= {v.name for v in result.model.graph.inputs}
        holds(text, lambda c: norm(F.conv2d(c.x, c.w), c), folded=0, kept=[Reason.PARAMETER_IS_OVERRIDABLE],
              opset=opset, keep_overridable=True)  # fmt: skip


def test_nodes_without_names_are_not_skipped() -> None:
    """aimet-onnx keys by node names, and passes over nodes that have none."""
    text = f"({IMAGE}) => ({OUT}) <{WEIGHT}, {PARAMETERS}> {{ a = Conv(x, w) y = BatchNormalization(a, {STATS}) }}"
    assert all(not node.name for node in parse(text).graph.node)
    holds(text, lambda c: norm(F.conv2d(c.x, c.w), c), folded=1)


def test_a_body_beside_the_batchnorm_does_no_harm() -> None:
    """aimet-onnx crashes on If."""
    text = f"""({IMAGE}, bool q) => ({OUT}, float[A,B,C,D] z) <{WEIGHT}, {PARAMETERS}>
        {{ a = Conv(x, w) y = BatchNormalization(a, {STATS})
           z = If (q) <then_branch = g () => (float[N,3,8,8] t) {{ t = Neg(x) }},
                       else_branch = h () => (float[N,3,8,8] u) {{ u = Abs(x) }}> }}"""
    model = parse(text)
    after = bnfold.fold(ir.from_proto(model), verify=False).model
    assert "BatchNormalization" not in ops(after)
    compare(model, proto(after), lambda c: norm(F.conv2d(c.x, c.w), c), None)


def test_a_float16_conv_with_float32_statistics_stays_float16() -> None:
    """onnxslim, onnxscript: a Conv of mixed dtypes; tensorflow-onnx#1104, #1106: float16 folds."""
    text = f"""(float16[N,3,8,8] x) => (float16[A,B,C,D] y) <float16[4,3,3,3] w, {PARAMETERS}>
        {{ a = Conv(x, w) y = BatchNormalization(a, {STATS}) }}"""
    model = parse(text)
    result = assert_fold(model, folded=1, runs=False)
    kinds = {v.dtype for v in result.model.graph.initializers.values()}
    assert kinds == {ir.DataType.FLOAT16}
    feeds = synthesise(read_inputs(model), seed=5, batch=2, spatial=8, overrides={})
    numbers = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer} | feeds
    c = SimpleNamespace(**{k: torch.from_numpy(np.array(v, np.float64)) for k, v in numbers.items()})
    expected = norm(F.conv2d(c.x, c.w), c).numpy()
    got = evaluate(in_float64(proto(result.model)), feeds, ["y"])["y"]
    assert np.abs(got - expected).max() <= 16 * 2.0**-11 * np.abs(expected).max()


def test_folding_again_changes_nothing() -> None:
    """opencv/opencv#17284: the BatchNorm is fused again with weights that already hold it."""
    text = f"({IMAGE}) => ({OUT}) <{WEIGHT}, {PARAMETERS}> {{ a = Conv(x, w) y = BatchNormalization(a, {STATS}) }}"
    once = holds(text, lambda c: norm(F.conv2d(c.x, c.w), c), folded=1).model
    twice = bnfold.fold(bnfold.fold(once, verify=False).model, verify=False).model
    compare(
        parse(text),
        proto(twice),
        lambda c: norm(F.conv2d(c.x, c.w), c),
        lambda c: norm(norm(F.conv2d(c.x, c.w), c), c),
    )


# Missed folds


def test_a_chain_of_convs_and_batchnorms_folds_whole() -> None:
    """onnx/tensorflow-onnx#2186: Conv1, BN1, Conv2, BN2 leaves BN2."""
    text = f"""({IMAGE}) => ({OUT}) <{WEIGHT}, float[4,4,3,3] v, {PARAMETERS}, {SECOND}>
        {{ a = Conv(x, w) b = BatchNormalization(a, {STATS}) e = Conv(b, v) y = BatchNormalization(e, {STATS2}) }}"""
    result = holds(text, lambda c: norm(F.conv2d(norm(F.conv2d(c.x, c.w), c), c.v), c, "2"), folded=2)
    assert ops(result.model) == ["Conv", "Conv"]


@pytest.mark.parametrize("opset", [7, 9, 13, 14, 15, NEWEST])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_no_operator_set_is_forgotten(kind: str, opset: int) -> None:
    """microsoft/onnxruntime#11960: operator set 15 forgotten; #14270: ConvTranspose asked for."""
    text = f"""(float[N,4,8,8] x) => ({OUT}) <float[4,4,3,3] w, {PARAMETERS}>
        {{ a = {kind}(x, w) y = BatchNormalization(a, {STATS}) }}"""
    conv = F.conv2d if kind == "Conv" else F.conv_transpose2d
    holds(text, lambda c: norm(conv(c.x, c.w), c), folded=1, opset=opset)


@pytest.mark.parametrize("nodes", ["a = Gemm(x, w, bias)", "m = MatMul(x, w) a = Add(m, bias)", "a = MatMul(x, w)"])
def test_a_batchnorm_behind_a_linear_layer_folds(nodes: str) -> None:
    """pytorch/ao#3917: 25 of 29 BatchNorms follow a Linear."""
    text = f"""(float[N,6] x) => (float[N,4] y) <float[6,4] w, float[4] bias, {PARAMETERS}>
        {{ {nodes} y = BatchNormalization(a, {STATS}) }}"""
    holds(text, lambda c: norm(c.x @ c.w + ("bias" in nodes) * c.bias, c), folded=1)


# Numbers out of range, and tolerances


def test_a_right_fold_is_not_called_a_mismatch() -> None:
    """onnx/optimizer#255: 3.8e-6 was reported as one; the bound is that of one rounding of each stored number."""
    text = f"({IMAGE}) => ({OUT}) <{WEIGHT}, {PARAMETERS}> {{ a = Conv(x, w) y = BatchNormalization(a, {STATS}) }}"
    result = holds(text, lambda c: norm(F.conv2d(c.x, c.w), c), folded=1, values={"mean": 20})
    checked = result.report.verification
    assert checked is not None
    assert all(region.passed for region in checked.local)


@pytest.mark.parametrize("epsilon", ["", "<epsilon=0.00001>"])
def test_a_slightly_negative_variance_is_what_epsilon_is_for(epsilon: str) -> None:
    """shicai/MobileNet-Caffe#87: variances of -9.9999e-6 in a published model; var + epsilon is 1e-10, and legal."""
    text = f"""({IMAGE}) => ({OUT}) <{WEIGHT}, {PARAMETERS}>
        {{ a = Conv(x, w) y = BatchNormalization {epsilon} (a, {STATS}) }}"""
    var = np.array([1, -9.9e-6, 2, 1], np.float32)
    stored = float(np.float32(1e-5))
    holds(text, lambda c: norm(F.conv2d(c.x, c.w), c, epsilon=stored), folded=1, values={"var": var}, runs=False)
    model = parse(text, values={"var": np.array([1, -1e-4, 2, 1])})
    (kept,) = bnfold.inspect(ir.from_proto(model)).kept
    assert kept.refusals[0].reason is Reason.STATISTICS_NOT_FINITE


def test_a_fold_beyond_float16_is_refused_and_a_variance_beyond_it_is_none() -> None:
    """pytorch#106576, coreai-torch#54: var > 65504 becomes inf; four tools write inf where a weight overflows."""
    half = f"""(float16[N,3,8,8] x) => (float16[A,B,C,D] y) <float16[4,3,3,3] w, {PARAMETERS}>
        {{ a = Conv(x, w) y = BatchNormalization(a, {STATS}) }}"""
    large = parse(half, values={"var": 1e7, "gamma": 3000, "mean": 0})
    result = assert_fold(large, folded=1, runs=False)
    assert all(np.isfinite(v.const_value.numpy()).all() for v in initializers(result.model))
    over = parse(half, values={"gamma": 60000, "w": 100, "var": 1})
    (kept,) = bnfold.inspect(ir.from_proto(over)).kept
    assert kept.refusals[0].reason is Reason.OVERFLOWS_DTYPE


def initializers(model: ir.Model) -> list[Any]:
    return list(model.graph.initializers.values())


def test_statistics_of_zero_variance_and_a_missing_bias_give_finite_weights() -> None:
    """apache/tvm and pytorch rows on dead channels: var = 0 leaves epsilon alone under the root."""
    text = f"({IMAGE}) => ({OUT}) <{WEIGHT}, {PARAMETERS}> {{ a = Conv(x, w) y = BatchNormalization(a, {STATS}) }}"
    values: Mapping[str, Any] = {"var": [0, 1, 2, 0], "gamma": [0.5, 0, -1, 1]}
    holds(text, lambda c: norm(F.conv2d(c.x, c.w), c, epsilon=float(np.float32(1e-5))), folded=1, values=values)
