"""Weights, values and outputs that several readers share; bodies and functions.

Bugs of other tools that are covered here: a Conv that is also called elsewhere (pytorch#197539, #104593), a shared
weight folded twice or with the wrong BatchNorm (pytorch/ao#2795, TNN#808), a shared initializer overwritten
(onnxscript#2883), a requested output fused away (onnxruntime#4110), a bias named after its weight that is not unique
(onnx/optimizer#174, onnxscript#2680), a BatchNorm folded with another layer's parameters (tensorflow-onnx#1726).
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx_models import PARAMETERS, STATS, assert_fold, ops, parse, stored

from bnfold.decision import Reason

SECOND = PARAMETERS.replace("gamma", "gamma2").replace("beta", "beta2").replace("mean", "mean2").replace("var", "var2")
STATS2 = "gamma2, beta2, mean2, var2"
ONE_OUT, TWO_OUT = "(float[N,4,6,6] y)", "(float[N,4,6,6] y, float[N,4,6,6] z)"


def _shared(nodes: str, outputs: str = TWO_OUT, more: str = "") -> str:
    return f"(float[N,3,8,8] x) => {outputs} <float[4,3,3,3] w{more}, {PARAMETERS}, {SECOND}> {{ {nodes} }}"


BOTH = (
    f"a = Conv(x, w) y = BatchNormalization(a, {STATS}) n = Neg(x) b = Conv(n, w) z = BatchNormalization(b, {STATS2})"
)


def _copied() -> dict[str, object]:
    """The second BatchNorm equal to the first."""
    values = {"gamma": [1, -2, 3, 0.5], "beta": [0, 1, 2, 3], "mean": [1, 0, 1, 0], "var": [1, 2, 3, 4]}
    return {**values, **{f"{name}2": value for name, value in values.items()}}


def test_a_weight_shared_by_different_batchnorms_is_cloned() -> None:
    result = assert_fold(parse(_shared(BOTH)), folded=2)
    names = list(result.model.graph.initializers)
    assert names == ["w_folded", "w_bias_folded", "w_folded_2", "w_bias_folded_2"]
    assert "w" not in names


def test_a_weight_shared_by_equal_batchnorms_is_folded_once() -> None:
    result = assert_fold(parse(_shared(BOTH), values=_copied()), folded=2)
    assert list(result.model.graph.initializers) == ["w_folded", "w_bias_folded"]


def test_a_shared_bias_is_cloned_as_its_weight_is() -> None:
    text = _shared(BOTH.replace("(x, w)", "(x, w, k)").replace("(n, w)", "(n, w, k)"), more=", float[4] k")
    assert list(assert_fold(parse(text), folded=2).model.graph.initializers) == [
        "w_folded", "k_folded", "w_folded_2", "k_folded_2"
    ]  # fmt: skip
    only = _shared(
        f"a = Conv(x, w, k) y = BatchNormalization(a, {STATS}) n = Conv(x, v, k) z = Relu(n)",
        more=", float[4,3,3,3] v, float[4] k",
    )
    result = assert_fold(parse(only), folded=1)
    assert np.array_equal(stored(result.model, "k"), stored(parse(only), "k"))


@pytest.mark.parametrize("reader", ["b = Conv(n, w) z = Relu(b)", "s = ReduceSum <keepdims=1> (w) z = Mul(y, s)"])
def test_a_weight_that_another_operator_reads_stays_as_it_is(reader: str) -> None:
    text = _shared(f"a = Conv(x, w) y = BatchNormalization(a, {STATS}) n = Neg(x) {reader}")
    model = parse(text)
    result = assert_fold(model, folded=1)
    assert np.array_equal(stored(result.model, "w"), stored(model, "w"))
    assert any("432 bytes of weights are shared" in note for note in result.report.notes)


def test_batchnorms_that_share_their_parameters_keep_them_for_the_one_that_stays() -> None:
    text = _shared(f"a = Conv(x, w) y = BatchNormalization(a, {STATS}) s = Sigmoid(a) q = Conv(n, w) "
                   f"n = Neg(x) z = BatchNormalization(s, {STATS})").replace("q = Conv(n, w) ", "")  # fmt: skip
    text = text.replace("s = Sigmoid(a)", "o = Conv(x, w) s = Sigmoid(o)").replace("n = Neg(x) ", "")
    result = assert_fold(parse(text), folded=1, kept=[Reason.OPERATOR_IS_NOT_LINEAR])
    assert {"gamma", "beta", "mean", "var"} <= set(result.model.graph.initializers)


@pytest.mark.parametrize(
    ("nodes", "outputs", "folded", "reason"),
    [
        (f"a = Conv(x, w) y = BatchNormalization(a, {STATS}) z = Relu(a)", TWO_OUT, 0, Reason.VALUE_HAS_OTHER_READERS),
        (
            f"a = Conv(x, w) y = BatchNormalization(a, {STATS}) z = BatchNormalization(a, {STATS2})",
            TWO_OUT,
            1,
            Reason.IS_MODEL_OUTPUT,
        ),
        (f"z = Conv(x, w) y = BatchNormalization(z, {STATS})", TWO_OUT, 0, Reason.IS_MODEL_OUTPUT),
        (f"a = Conv(x, w) y = BatchNormalization(a, {STATS}) z = Relu(y)", TWO_OUT, 1, None),
        (f"a = Conv(x, w) b = BatchNormalization(a, {STATS}) r = Relu(b) y = Add(b, r)", ONE_OUT, 1, None),
        (
            f"a = Conv(x, w) b = BatchNormalization(a, {STATS}) y = Add(a, b)",
            ONE_OUT,
            0,
            Reason.VALUE_HAS_OTHER_READERS,
        ),
        (f"a = Conv(x, w) b = BatchNormalization(a, {STATS}) y = Mul(b, b)", ONE_OUT, 1, None),
    ],
)
def test_a_value_that_is_read_as_it_is_keeps_its_meaning(
    nodes: str, outputs: str, folded: int, reason: Reason | None
) -> None:
    kept = [] if reason is None else [reason]
    assert_fold(parse(_shared(nodes, outputs)), folded=folded, kept=kept)


def _with_if(captured: str, body: str = "t = Relu({0})") -> onnx.ModelProto:
    then, other = body.format(captured), "u = Neg(c)" if captured == "c" else "u = Neg(x2)"
    text = f"""(float[N,3,8,8] x, float[N,4,6,6] x2, bool q) => (float[N,4,6,6] y, float[N,4,6,6] z)
        <float[4,3,3,3] w, {PARAMETERS}, {SECOND}>
        {{ c = Conv(x, w) y = BatchNormalization(c, {STATS})
           z = If (q) <then_branch = g1 () => (float[N,4,6,6] t) {{ {then} }},
                       else_branch = g2 () => (float[N,4,6,6] u) {{ {other} }}> }}"""
    return parse(text)


def test_a_value_that_a_body_captures_keeps_its_meaning_and_a_result_may_be_captured() -> None:
    assert_fold(_with_if("c"), folded=0, kept=[Reason.CAPTURED_BY_SUBGRAPH])
    assert_fold(_with_if("y"), folded=1)
    assert_fold(_with_if("x2"), folded=1)


def test_parameters_that_a_body_reads_as_well_stay() -> None:
    model = _with_if("x2", f"t = BatchNormalization({{0}}, {STATS})")
    result = assert_fold(model, folded=1, kept=[Reason.ENTERS_BODY])
    assert {"gamma", "beta", "mean", "var"} <= set(result.model.graph.initializers)


def test_a_body_may_use_names_of_the_main_graph_for_values_of_its_own() -> None:
    body = "{ t = Relu(x) s = Neg(t) }"
    text = f"""(float[N,4,6,6] x, bool q) => (float[N,4,6,6] y, float[N,4,6,6] z, float[N,4,6,6] OUT)
        <float[4,4,1,1] w, {PARAMETERS}>
        {{ z = If (q) <then_branch = g1 () => (float[N,4,6,6] s) {body},
                       else_branch = g2 () => (float[N,4,6,6] s) {body}>
           t = Conv(x, w) y = BatchNormalization(t, {STATS}) OUT = Relu(x) }}"""
    assert_fold(parse(text.replace("OUT", "o")), folded=1)
    shown = parse(text.replace("OUT = Relu(x)", "").replace("OUT", "t"))
    assert_fold(shown, folded=0, kept=[Reason.IS_MODEL_OUTPUT])
    assert_fold(parse(text.replace("float[N,4,6,6] s) { t", "float[N,4,6,6] t) { t").replace("OUT", "o")), folded=1)


def test_a_batchnorm_whose_operands_cross_is_folded_with_its_own_parameters() -> None:
    # Two Convs, two BatchNorms, wired crosswise to their order in the file.
    nodes = f"a = Conv(x, w) b = Conv(x, v) z = BatchNormalization(b, {STATS}) y = BatchNormalization(a, {STATS2})"
    assert_fold(parse(_shared(nodes, more=", float[4,3,3,3] v")), folded=2)


def test_a_batchnorm_that_nothing_reads_is_folded_too_and_stops_no_other() -> None:
    dead = f"a = Conv(x, w) d = BatchNormalization(a, {STATS}) b = Conv(x, w) y = BatchNormalization(b, {STATS2})"
    assert_fold(parse(_shared(dead, ONE_OUT)), folded=2)


def test_the_sum_of_a_conv_and_a_shortcut_is_not_scaled_by_half() -> None:
    # opencv#29160: the shortcut would miss the scale.
    text = f"""(float[N,4,8,8] x) => (float[N,4,8,8] y) <float[4,4,1,1] w, {PARAMETERS}>
        {{ c = Conv(x, w) s = Add(c, x) y = BatchNormalization(s, {STATS}) }}"""
    assert_fold(parse(text), folded=0, kept=[Reason.VALUE_HAS_OTHER_READERS], merge=False)
    assert_fold(parse(text), folded=1)  # the shortcut is part of the kernel
    inputs = text.replace("x) =>", "x, float[N,4,8,8] z) =>").replace("Add(c, x)", "Add(c, z)")
    assert_fold(parse(inputs), folded=0, kept=[Reason.READS_MODEL_INPUT])


def test_a_squeeze_and_excite_block_is_folded_before_and_behind_the_gate() -> None:
    # tvm#17151: MobileNetV3's gate reads the BatchNorm's output twice, once through a global pool.
    text = f"""(float[N,3,8,8] x) => (float[N,4,6,6] y)
        <float[4,3,3,3] w, float[4,4,1,1] v, float[4,4,1,1] u, {PARAMETERS}, {SECOND}>
        {{ c = Conv(x, w) b = BatchNormalization(c, {STATS}) p = GlobalAveragePool(b) e = Conv(p, v) g = Sigmoid(e)
           m = Mul(b, g) d = Conv(m, u) y = BatchNormalization(d, {STATS2}) }}"""
    assert_fold(parse(text), folded=2)


TWO_SAME = "(float[N,4,8,8] y, float[N,4,8,8] z)"
IDENTITY = {"gamma": 1, "beta": 0, "mean": 0, "var": 1}


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ("b = BatchNormalization <epsilon=0.0> (x, STATS) y = Sigmoid(b)", "(float[N,4,8,8] y)"),
        ("b = BatchNormalization <epsilon=0.0> (x, STATS) y = Sigmoid(b) z = Relu(x)", TWO_SAME),
        ("r = Relu(x) y = BatchNormalization <epsilon=0.0> (r, STATS)", "(float[N,4,8,8] y)"),
        ("z = Relu(x) b = BatchNormalization <epsilon=0.0> (z, STATS) y = Tanh(b)", TWO_SAME),
    ],
)
def test_a_batchnorm_that_is_the_identity_is_taken_out(nodes: str, outputs: str) -> None:
    text = f"(float[N,4,8,8] x) => {outputs} <{PARAMETERS}> {{ {nodes.replace('STATS', STATS)} }}"
    result = assert_fold(parse(text, values=IDENTITY), folded=1)
    assert "BatchNormalization" not in ops(result.model)


def test_an_identity_between_two_names_that_the_caller_knows_stays() -> None:
    text = f"(float[N,4,8,8] x) => (float[N,4,8,8] y, float[N,4,8,8] z) <{PARAMETERS}> {{ BODY }}"
    body = f"z = Relu(x) y = BatchNormalization <epsilon=0.0> (z, {STATS})"
    assert_fold(parse(text.replace("BODY", body), values=IDENTITY), folded=0, kept=[Reason.IS_MODEL_OUTPUT])
    body = f"z = Relu(x) y = BatchNormalization <epsilon=0.0> (x, {STATS})"
    assert_fold(parse(text.replace("BODY", body), values=IDENTITY), folded=0, kept=[Reason.READS_MODEL_INPUT])


@pytest.mark.parametrize(
    "nodes", ["y = Sigmoid(b) z = Sigmoid(d)", "y = Identity(b) z = Identity(d)", "y = Add(b, d) z = Relu(d)"]
)
def test_equal_batchnorms_of_one_convolution_go_into_it_together(nodes: str) -> None:
    text = f"a = Conv(x, w) b = BatchNormalization(a, {STATS}) d = BatchNormalization(a, {STATS2}) {nodes}"
    result = assert_fold(parse(_shared(text), values=_copied()), folded=2)
    assert ops(result.model).count("Conv") == 1


def test_a_bias_that_two_folds_cancel_is_nothing_and_not_what_float64_lost() -> None:
    """A BatchNorm that nobody reads goes into the Conv first; the other one, without mean and beta, undoes it."""
    nodes = f"a = Conv(x, w) u = BatchNormalization(a, {STATS}) y = BatchNormalization(a, {STATS2})"
    zeros = np.zeros(4, np.float32)
    result = assert_fold(parse(_shared(nodes, ONE_OUT), values={"mean2": zeros, "beta2": zeros}), folded=2)
    assert [name for name in result.model.graph.initializers if "bias" in name] == []
