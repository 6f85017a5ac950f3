"""float16 and bfloat16 models: sums that neither overflow nor stall, statistics stored in the type of the model."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_models import parse
from recalibration_cases import bn, parameters

import bnfold
from bnfold.frontends.onnx_float64 import without_bfloat16
from tests.recalibrated import cut_up, expected, statistics_in

Array = np.ndarray[Any, Any]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

#: Half the distance between neighbours of 1.
UNIT = 2.0**-8

CHAIN = f"""(bfloat16[n, 4, 6, 6] x) => (bfloat16[n, 4, h, w] y)
<bfloat16[4, 4, 3, 3] w1, bfloat16[4, 4, 3, 3] w2, {parameters("a", "b", dtype="bfloat16")}> {{
    c = Conv <pads = [1, 1, 1, 1]> (x, w1)
    {bn("a", "c", "d")}
    e = Relu (d)
    f = Conv <pads = [1, 1, 1, 1]> (e, w2)
    {bn("b", "f", "g")}
    y = Sigmoid (g)
}}"""


def images(count: int = 37) -> Array:
    return 3 + np.random.default_rng(5).standard_normal((count, 4, 6, 6))


@pytest.mark.parametrize("dtype", [BFLOAT16, np.dtype(np.float32)], ids=["bfloat16 data", "float32 data"])
def test_a_model_in_bfloat16_is_computed_in_float32_and_stored_in_bfloat16(dtype: np.dtype[Any]) -> None:
    model, data = parse(CHAIN, opset=22), {"x": images().astype(dtype)}
    original = model.SerializeToString()
    result = bnfold.recalibrate(ir.from_proto(model), cut_up(data, 8))
    wanted = expected(model, {"x": data["x"].astype(BFLOAT16).astype(np.float64)}, [["a"], ["b"]])
    after = ir.to_proto(result.model)
    for name, (mean, variance) in wanted.items():
        stored = statistics_in(after, name)
        assert stored[0].dtype == stored[1].dtype == BFLOAT16
        assert (np.abs(stored[0].astype(np.float64) - mean) <= 2 * UNIT * (np.abs(mean) + np.sqrt(variance))).all()
        assert (np.abs(stored[1].astype(np.float64) - variance) <= 3 * UNIT * variance).all()
    assert "bfloat16 was computed in float32, as onnxruntime has no kernels for it on the CPU" in result.report.notes
    assert model.SerializeToString() == original
    assert [t.data_type for t in after.graph.initializer] == [t.data_type for t in model.graph.initializer]
    assert ir.to_proto(ir.from_proto(model)).graph.node == after.graph.node


def test_one_level_is_exact_up_to_the_rounding_of_the_stored_number() -> None:
    text = f"(bfloat16[n, 4] x) => (bfloat16[n, 4] y) <{parameters('a', dtype='bfloat16')}> {{ {bn('a', 'x', 'y')} }}"
    x = images().mean(axis=(2, 3)).astype(BFLOAT16)
    after = ir.to_proto(bnfold.recalibrate(ir.from_proto(parse(text)), [x[:20], x[20:]]).model)
    wide = x.astype(np.float64)
    assert (statistics_in(after, "a")[0] == wide.mean(axis=0).astype(np.float32).astype(BFLOAT16)).all()
    assert (statistics_in(after, "a")[1] == wide.var(axis=0).astype(np.float32).astype(BFLOAT16)).all()


def test_what_it_keeps_between_the_levels_counts_as_float32() -> None:
    need = bnfold.recalibrate(ir.from_proto(parse(CHAIN, opset=22)), [images(8).astype(BFLOAT16)]).report.footprint
    assert need is not None
    assert need.batch == 8 * 4 * 6 * 6 * 4


def test_a_cast_to_bfloat16_in_a_float32_model_goes_on_rounding() -> None:
    text = f"""(float[n, 4] x) => (float[n, 4] y) <{parameters("a")}> {{
        c = Cast <to = 16> (x)
        d = Cast <to = 1> (c)
        {bn("a", "d", "y")}
    }}"""
    x = np.full((40, 4), 1.0 + 2.0**-10, np.float32)
    x[0] = 2
    result = bnfold.recalibrate(ir.from_proto(parse(text)), [x])
    assert (result.report.recalibrated[0].new.mean == np.float32(41 / 40)).all()
    assert result.report.notes == ()


def test_only_bfloat16_is_widened_and_a_model_without_it_is_not_copied() -> None:
    model = parse(
        CHAIN.replace("bfloat16[4, 4, 3, 3] w2", "bfloat16[4, 4, 3, 3] w2, float16[2] h, int64[2] i"), opset=22
    )
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    wide = without_bfloat16(model)
    for tensor in wide.graph.initializer:
        held = onnx.TensorProto.FLOAT if kinds[tensor.name] == onnx.TensorProto.BFLOAT16 else kinds[tensor.name]
        assert tensor.data_type == held, tensor.name
    old = next(t for t in model.graph.initializer if t.name == "w1")
    new = next(t for t in wide.graph.initializer if t.name == "w1")
    assert (onnx.numpy_helper.to_array(old).astype(np.float32) == onnx.numpy_helper.to_array(new)).all()
    assert without_bfloat16(wide) is wide


def test_types_in_constants_casts_bodies_and_functions_are_widened() -> None:
    model = parse(
        """(bfloat16[2] x, bool b) => (bfloat16[2] y) {
            c = Constant <value = float[2] {1.5, 2.5}> ()
            d = Cast <to = 16> (c)
            e = If (b) <
                then_branch = one () => (bfloat16[2] t) { t = Cast <to = 16> (c) },
                else_branch = two () => (bfloat16[2] o) { o = Identity (x) }
            >
            y = custom.f (e)
        }""",
        functions='<domain: "custom", opset_import: ["" : 17]> f (u) => (o) { v = Cast <to = 16> (u) o = Neg (v) }',
        domains=["custom"],
    )
    assert "BFLOAT16" in onnx.printer.to_text(model).upper()
    wide = without_bfloat16(model)
    assert "bfloat16" not in onnx.printer.to_text(wide)
    casts = [node for node in (*wide.graph.node, *wide.functions[0].node) if node.op_type == "Cast"]
    assert [cast.attribute[0].i for cast in casts] == [onnx.TensorProto.FLOAT] * 2
    assert [len(wide.graph.node), len(wide.functions)] == [len(model.graph.node), 1]


def test_float16_near_the_end_of_its_range_is_summed_without_overflow() -> None:
    stored = parameters("a", dtype="float16")
    text = f"(float16[n, 4, 32, 32] x) => (float16[n, 4, h, w] y) <{stored}> {{ {bn('a', 'x', 'y')} }}"
    data = (60000 + 100 * np.random.default_rng(0).standard_normal((8, 4, 32, 32))).astype(np.float16)
    assert np.isfinite(data).all()
    after = ir.to_proto(bnfold.recalibrate(ir.from_proto(parse(text)), [data[:5], data[5:]]).model)
    mean, variance = statistics_in(after, "a")
    wide = data.astype(np.float64)
    assert (mean == wide.mean(axis=(0, 2, 3)).astype(np.float16)).all()
    assert (variance == wide.var(axis=(0, 2, 3)).astype(np.float16)).all()


def test_float16_far_below_one_is_not_lost() -> None:
    stored = parameters("a", dtype="float16")
    text = f"(float16[n, 4, 32, 32] x) => (float16[n, 4, h, w] y) <{stored}> {{ {bn('a', 'x', 'y')} }}"
    data = (2.0**-8 * np.random.default_rng(0).standard_normal((8, 4, 32, 32))).astype(np.float16)
    after = ir.to_proto(bnfold.recalibrate(ir.from_proto(parse(text)), [data]).model)
    wide = data.astype(np.float64)
    assert (statistics_in(after, "a")[1] == wide.var(axis=(0, 2, 3)).astype(np.float16)).all()
    assert (statistics_in(after, "a")[1] > 0).all()
