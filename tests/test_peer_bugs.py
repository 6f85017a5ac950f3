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

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx_models import NEWEST, PARAMETERS, STATS, assert_fold, ops, parse, proto
from peer_bugs import IMAGE, OUT, SECOND, STATS2, WEIGHT, F, compare, holds, norm
from torch import Tensor

import bnfold
from bnfold.data import read_inputs, synthesise
from bnfold.decision import Reason
from bnfold.frontends.onnx_float64 import evaluate, in_float64

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
