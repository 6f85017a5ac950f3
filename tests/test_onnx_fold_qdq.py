"""Networks quantised with QuantizeLinear-DequantizeLinear pairs: activations, 32-bit biases, deployed arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_models import PARAMETERS, STATS, ops, parse, proto, reasons
from quantised_models import along, assert_scaled, batchnorm, deployed, fold, weight_of

import bnfold
from bnfold.data import read_inputs, synthesise
from bnfold.decision import Reason
from bnfold.frontends import onnx_linear
from bnfold.frontends.onnx_float64 import evaluate, in_float64

_STEP, _WEIGHT = np.float32(0.02), np.float32(0.01)


def _net(kind: str = "uint8", bias: str = "int32", grid: str = "", conv: str = "Conv", weight: str = "4,3,3,3") -> str:
    """x -> Q -> DQ -> Conv with quantised weight and bias -> BatchNorm -> Relu -> Q -> DQ."""
    read = {"": "(d, w)", "float": "(d, w, k)", "int32": "(d, w, b)"}[bias]
    given = {"": "", "float": "float[4] k,", "int32": f"int32[4] k, float{grid} ks,"}[bias]
    node = "b = DequantizeLinear <axis=0> (k, ks)" if bias == "int32" else ""
    return f"""(float[N,3,9,9] x) => (float[A,B,C,D] y)
        <int8[{weight}] q, float{grid} s, float xs, {kind} xz, float ys, {kind} yz, {given} {PARAMETERS}>
        {{ i = QuantizeLinear(x, xs, xz) d = DequantizeLinear(i, xs, xz) w = DequantizeLinear <axis=0> (q, s) {node}
           c = {conv} {read} n = BatchNormalization(c, {STATS}) r = Relu(n)
           o = QuantizeLinear(r, ys, yz) y = DequantizeLinear(o, ys, yz) }}"""


def _values(kind: str = "uint8", **more: Any) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    steps = {"s": _WEIGHT, "xs": _STEP, "ys": 0.05, "ks": _STEP * _WEIGHT, "xz": 128 if kind == "uint8" else 0, "yz": 0}
    codes = {"q": generator.integers(-127, 128, (4, 3, 3, 3)), "k": generator.integers(-4000, 4000, 4)}
    return {**steps, **codes, **more}


def _image(model: onnx.ModelProto) -> dict[str, Any]:
    return dict(synthesise(read_inputs(model), seed=3, batch=2, overrides={}))


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("grid", ["", "[4]"])
@pytest.mark.parametrize("bias", ["", "float", "int32"])
def test_a_quantised_convolution_folds_and_computes_the_same_when_deployed(kind: str, grid: str, bias: str) -> None:
    values = _values(kind)
    if bias == "float":
        del values["k"]
    model = parse(_net(kind, bias, grid), values=values)
    result = fold(model)
    assert ops(result.model).count("DequantizeLinear") == ops(ir.from_proto(model)).count("DequantizeLinear")
    scale, shift = batchnorm(model)
    old, new = weight_of(model, "c"), weight_of(result.model, "n")
    assert_scaled(old, new, along(scale, 0, 4))
    np.testing.assert_array_equal(new.codes, old.codes * along(np.sign(scale), 0, 4))
    if bias == "int32":
        _assert_bias(model, result, scale, shift)
    else:
        assert result.report.notes == ()
    feeds = _image(model)
    for optimised in (False, True):
        steps = np.abs(deployed(model, feeds, optimised=optimised) - deployed(result.model, feeds, optimised=optimised))
        # A value that lies between two steps may be rounded to either.
        assert steps.max() <= 0.05 * (1 + 1e-6)
        assert np.mean(steps > 0) < 0.01


def _assert_bias(model: onnx.ModelProto, result: bnfold.FoldResult, scale: Any, shift: Any) -> None:
    """Its scale is the product that runtimes assume, and it is the nearest number of that grid."""
    old, new = weight_of(model, "c", 2), weight_of(result.model, "n", 2)
    weight = weight_of(result.model, "n")
    np.testing.assert_array_equal(new.scale, np.float32(_STEP) * weight.scale)
    assert new.codes.dtype == np.int32
    assert new.axis == 0
    errors = np.abs(new.values - (old.values * scale + shift))
    assert (errors <= new.scale.astype(np.float64) * 0.5 * (1 + 1e-9)).all()
    assert errors.max() > 0  # it is rounded, and the report says by how much
    half = float(new.scale.max()) / 2
    assert result.report.notes == (f"the int32 bias of c is off by half a step at most, {half:.2g}",)


def test_what_inspect_says_about_the_bias_is_what_fold_says() -> None:
    model = ir.from_proto(parse(_net(), values=_values()))
    told = bnfold.inspect(model)
    assert told.notes == bnfold.fold(model).report.notes
    assert told.decisions == bnfold.fold(model).decisions


def test_one_scale_for_all_leaves_the_bias_one_scale() -> None:
    model = parse(_net(), values=_values(gamma=1.5, var=0.8))
    result = fold(model)
    new = weight_of(result.model, "n", 2)
    assert new.scale.shape == ()
    assert new.scale == np.float32(_STEP) * weight_of(result.model, "n").scale


def test_in_float64_the_folded_network_is_off_by_the_bias_alone() -> None:
    model = parse(_net(), values=_values())
    result, feeds = fold(model), _image(model)
    before = evaluate(in_float64(model), feeds, ["n"])["n"]
    after = evaluate(in_float64(proto(result.model)), feeds, ["n"])["n"]
    half = along(weight_of(result.model, "n", 2).scale.astype(np.float64) / 2, 1, 4)
    assert (np.abs(after - before) <= half + 1e-5).all()
    assert np.abs(after - before).max() > 1e-6


@pytest.mark.parametrize(
    ("text", "more", "reason", "detail"),
    [
        (_net().replace("c = Conv (d", "e = Abs(d) c = Conv (e"), {}, Reason.BIAS_STEP_NOT_KNOWN, "the input's scale"),
        (_net(), {"beta": 1e9}, Reason.QUANTISED_BIAS_OVERFLOWS, "steps"),
        (_net().replace("int32[4] k", "int8[4] k"), {"k": 3}, Reason.WEIGHTS_ARE_QUANTISED, "int8"),
        (_net().replace("<axis=0> (q, s)", "<axis=1> (q, s)").replace("float s", "float[3] s"), {"gamma": 1, "var": 1},
         Reason.BIAS_STEP_NOT_KNOWN, "within a channel"),
    ],
)  # fmt: skip
def test_a_bias_whose_grid_is_not_known_or_too_small_is_kept(
    text: str, more: dict[str, Any], reason: Reason, detail: str
) -> None:
    report = bnfold.inspect(ir.from_proto(parse(text, values=_values(**more))))
    assert report.kept[0].refusals[0].reason is reason
    assert detail in report.kept[0].refusals[0].detail


def test_a_quantised_bias_of_a_weight_in_float_is_kept() -> None:
    text = _net().replace("w = DequantizeLinear <axis=0> (q, s)", "").replace("int8[4,3,3,3] q", "float[4,3,3,3] w")
    report = bnfold.inspect(ir.from_proto(parse(text, values=_values())))
    assert reasons(report)[0] is Reason.WEIGHTS_ARE_QUANTISED


def test_a_gemm_folds_with_its_bias_unless_alpha_breaks_the_product_of_scales() -> None:
    text = f"""(float[N,5] x) => (float[N,4] y) <int8[4,5] q, float s, float xs, int8 xz, int32[4] k, float ks, PARAMS>
        {{ i = QuantizeLinear(x, xs, xz) d = DequantizeLinear(i, xs, xz) w = DequantizeLinear(q, s)
           b = DequantizeLinear(k, ks) c = Gemm <transB=1, alpha=ALPHA> (d, w, b)
           y = BatchNormalization(c, {STATS}) }}"""
    values = _values("int8", q=np.random.default_rng(0).integers(-127, 128, (4, 5)))
    model = parse(text.replace("PARAMS", PARAMETERS).replace("ALPHA", "1.0"), values=values)
    result = fold(model)
    assert_scaled(weight_of(model, "c"), weight_of(result.model, "y"), along(batchnorm(model)[0], 0, 2))
    assert weight_of(result.model, "y", 2).codes.dtype == np.int32
    kept = parse(text.replace("PARAMS", PARAMETERS).replace("ALPHA", "0.5"), values=values)
    assert reasons(bnfold.inspect(ir.from_proto(kept)))[0] is Reason.BIAS_STEP_NOT_KNOWN


def test_a_pair_on_the_activation_keeps_the_batchnorm_and_says_why() -> None:
    text = f"""(float[N,3,9,9] x) => (float[A,B,C,D] y) <float[4,3,3,3] w, float[5,4,2,2] v, float s, {PARAMETERS}>
        {{ c = Conv(x, w) i = QuantizeLinear(c, s) d = DequantizeLinear(i, s) n = BatchNormalization(d, {STATS})
           j = QuantizeLinear(n, s) e = DequantizeLinear(j, s) y = Conv(e, v) }}"""
    report = bnfold.inspect(ir.from_proto(parse(text, values={"s": 0.05})))
    assert [r.reason for r in report.kept[0].refusals] == [Reason.ROUNDED_TO_A_GRID, Reason.ROUNDED_TO_A_GRID]
    assert [r.where for r in report.kept[0].refusals] == ["d", "j"]


_INTEGERS = {
    "QLinearConv": "c = QLinearConv(u, s, a, q, s, z, s, a) d = DequantizeLinear(c, s, a)",
    "ConvInteger": "c = ConvInteger(u, q, a, z) e = Cast <to=1> (c) d = Mul(e, s)",
}


@pytest.mark.parametrize("kind", _INTEGERS)
def test_operators_on_integers_are_barriers_by_name(kind: str) -> None:
    text = f"""(uint8[N,3,9,9] u) => (float[A,B,C,D] y) <int8[4,3,3,3] q, float s, uint8 a, int8 z, {PARAMETERS}>
        {{ {_INTEGERS[kind]} y = BatchNormalization(d, {STATS}) }}"""
    report = bnfold.inspect(ir.from_proto(parse(text, values={"s": 0.1, "a": 100, "z": 0})))
    refusal = report.kept[0].refusals[0]
    assert (refusal.reason, refusal.where, refusal.detail) == (Reason.COMPUTES_IN_INTEGERS, "c", kind)


def test_products_of_integer_matrices_are_barriers_by_name() -> None:
    text = f"""(uint8[N,5] u) => (float[N,4] y) <int8[5,4] q, float s, uint8 a, int8 z, {PARAMETERS}>
        {{ NODES y = BatchNormalization(d, {STATS}) }}"""
    for kind, nodes in (
        ("QLinearMatMul", "c = QLinearMatMul(u, s, a, q, s, z, s, a) d = DequantizeLinear(c, s, a)"),
        ("MatMulInteger", "c = MatMulInteger(u, q, a, z) e = Cast <to=1> (c) d = Mul(e, s)"),
    ):
        report = bnfold.inspect(ir.from_proto(parse(text.replace("NODES", nodes), values={"s": 0.1, "a": 100, "z": 0})))
        assert (report.kept[0].refusals[0].reason, report.kept[0].refusals[0].detail) == (
            Reason.COMPUTES_IN_INTEGERS,
            kind,
        )


@pytest.mark.parametrize("wrong", ["scale", "code", "bias", "bias scale"])
def test_the_check_finds_what_is_written_wrong(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = onnx_linear.Editor.set_dequantised

    def meddled(  # noqa: PLR0917
        self: Any, node: ir.Node, position: int, chain: tuple[ir.Node, ...], arrays: Any, axis: int
    ) -> None:
        codes, scale, zero_point = arrays
        if wrong == "scale" and position == 1:
            scale = scale * np.float32(1 + 1e-5)
        elif wrong == "code" and position == 1:
            codes = codes + np.int8(np.arange(codes.size).reshape(codes.shape) == 40)
        elif wrong == "bias" and position == 2:
            codes = codes + np.int32([0, 0, 1, 0])
        elif wrong == "bias scale" and position == 2:
            scale = scale * np.float32([1, 1, 1, 1.01])
        right(self, node, position, chain, (codes, scale, zero_point), axis)

    monkeypatch.setattr(onnx_linear.Editor, "set_dequantised", meddled)
    with pytest.raises(bnfold.VerificationError, match="the fold of n is wrong"):
        bnfold.fold(ir.from_proto(parse(_net(), values=_values())))


_FLOAT_NET = f"""(float[N,3,16,16] x) => (float[N,5,A,B] y)
    <float[4,3,3,3] w, float[4] b, {PARAMETERS}, float[5,4,3,3] v, float[5] gamma2, float[5] beta2, float[5] mean2,
     float[5] var2>
    {{ c = Conv <pads=[1,1,1,1]> (x, w, b) n = BatchNormalization(c, {STATS}) r = Relu(n)
       e = Conv <pads=[1,1,1,1]> (r, v) f = BatchNormalization(e, gamma2, beta2, mean2, var2) y = Relu(f) }}"""


class _Reader:
    """Calibration data for onnxruntime's quantiser."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._feeds = iter([_image(model) for _ in range(2)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def _statically_quantised(folder: Path, *, per_channel: bool, activation: str, conv_output: bool) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static  # noqa: PLC0415

    CalibrationDataReader.register(_Reader)
    model = parse(_FLOAT_NET)
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    onnx.save(model, folder / "float.onnx")
    quantize_static(
        folder / "float.onnx",
        folder / "quantised.onnx",
        _Reader(model),
        quant_format=QuantFormat.QDQ,
        per_channel=per_channel,
        activation_type=getattr(QuantType, activation),
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv"],
        extra_options={} if conv_output else {"OpTypesToExcludeOutputQuantization": ["Conv"]},
    )
    return onnx.load(folder / "quantised.onnx")


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("activation", ["QUInt8", "QInt8"])
def test_a_network_quantised_by_onnxruntime_folds_end_to_end(
    tmp_path: Path, per_channel: bool, activation: str
) -> None:
    model = _statically_quantised(tmp_path, per_channel=per_channel, activation=activation, conv_output=False)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("BatchNormalization") == 2
    assert kinds.count("DequantizeLinear") == 5  # two activations, two weights, one bias
    result = fold(model)
    assert "BatchNormalization" not in ops(result.model)
    assert ops(result.model).count("DequantizeLinear") == 5
    feeds = _image(model)
    for optimised in (False, True):
        before = deployed(model, feeds, optimised=optimised)
        after = deployed(result.model, feeds, optimised=optimised)
        assert np.abs(after - before).max() <= 0.02 * np.abs(before).max()


def test_where_onnxruntime_quantised_the_output_of_the_convolution_the_batchnorm_stays(tmp_path: Path) -> None:
    model = _statically_quantised(tmp_path, per_channel=True, activation="QUInt8", conv_output=True)
    report = bnfold.inspect(ir.from_proto(model))
    assert [kept.refusals[0].reason for kept in report.kept] == [Reason.ROUNDED_TO_A_GRID] * 2
