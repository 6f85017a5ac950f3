"""What the files of quantised models mean, computed once more with NumPy alone, and how they run when deployed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_models import PARAMETERS, STATS, proto

import bnfold
from bnfold.rounding import integer_range
from bnfold.runtime import open_session

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Weight:
    """What stands before one DequantizeLinear, and what it computes in float64."""

    codes: Array
    scale: Array
    zero_point: Array | None
    axis: int
    values: Array


def weight_of(model: onnx.ModelProto | ir.Model, output: str, position: int = 1) -> Weight:
    """Input `position` of the node that computes `output`, whose DequantizeLinear is right before it."""
    graph = (proto(model) if isinstance(model, ir.Model) else model).graph
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    node = makers[makers[output].input[position]]
    assert node.op_type == "DequantizeLinear"
    codes, scale, *rest = (tensors[name] for name in node.input if name)
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    axis, block = attributes.get("axis", 1), attributes.get("block_size", 0)
    zero_point = rest[0] if rest else None
    values = codes.astype(np.float64) - _spread(0.0 if zero_point is None else zero_point, codes, axis, block)
    return Weight(codes, scale, zero_point, axis, values * _spread(scale, codes, axis, block))


def _spread(cells: Any, codes: Array, axis: int, block: int) -> Array:
    wide = np.asarray(cells).astype(np.float64)
    if block:
        index = np.arange(codes.shape[axis]) // block
        return np.take(wide, index, axis=axis)
    return wide.reshape([-1 if a == axis else 1 for a in range(codes.ndim)]) if wide.size > 1 else wide.reshape(())


def batchnorm(model: onnx.ModelProto, channels: str = "") -> tuple[Array, Array]:
    """Scale and shift of the BatchNorm whose parameters have the usual names, with `channels` behind them."""
    tensors = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    gamma, beta, mean, var = (tensors[name + channels] for name in ("gamma", "beta", "mean", "var"))
    scale = gamma / np.sqrt(var + np.float64(np.float32(1e-5)))
    return scale, beta - mean * scale


def along(factors: Array, axis: int, rank: int) -> Array:
    """A vector, so that it broadcasts along one axis."""
    return factors.reshape([-1 if a == axis else 1 for a in range(rank)])


def assert_scaled(before: Weight, after: Weight, factor: Array, roundoff: float = 2.0**-24) -> None:
    """`after` is `before` times `factor` but for one rounding of each scale; scales are positive."""
    wanted = before.values * factor
    assert (np.abs(after.values - wanted) <= roundoff * (1 + 2 * roundoff) * np.abs(wanted)).all()
    assert (after.scale > 0).all()
    assert after.codes.dtype == before.codes.dtype
    assert after.scale.dtype == before.scale.dtype


def fold(model: onnx.ModelProto, **options: Any) -> bnfold.FoldResult:
    """The verified fold of a model, all of whose BatchNorms must go."""
    result = bnfold.fold(ir.from_proto(model), **options)
    assert result.report.verification is not None
    assert result.report.verification.passed
    assert not result.report.kept, [str(r) for d in result.report.kept for r in d.refusals]
    onnx.checker.check_model(proto(result.model), full_check=True)
    twice = bnfold.fold(result.model, verify=False)
    assert twice.report.decisions == ()
    return result


def deployed(model: onnx.ModelProto | ir.Model, feeds: Mapping[str, Array], *, optimised: bool = True) -> Array:
    """The first output as onnxruntime computes it, at ORT_ENABLE_ALL unless told otherwise."""
    given = proto(model) if isinstance(model, ir.Model) else model
    name = given.graph.output[0].name
    return np.asarray(open_session(given, "cpu", optimised=optimised).run([name], feeds)[name])


def spread_codes(shape: tuple[int, ...], kind: str = "int8", symmetric: bool = True, seed: int = 0) -> Any:
    """Codes over the whole range of the dtype in every channel; symmetric ones leave out the smallest of it."""
    low, high = _range(kind)
    low += symmetric and low < 0
    codes = np.random.default_rng(seed).integers(low, high + 1, shape)
    codes.reshape(shape[0], -1)[:, :2] = [high, low][: codes[:1].size]
    return codes


def _range(kind: str) -> tuple[int, int]:
    limits = integer_range(onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.DataType.Value(kind.upper())))
    assert limits is not None
    return limits


def quantised_conv(
    kind: str = "int8", dequantize: str = "(q, s, z)", grid: str = "", conv: str = "", weight: str = "4,3,3,3"
) -> str:
    """DequantizeLinear -> Conv -> BatchNorm; `grid` is the shape of scale and zero point."""
    return f"""(float[N,3,9,9] x) => (float[A,B,C,D] y)
        <{kind}[{weight}] q, float{grid} s, {kind}{grid} z, {PARAMETERS}>
        {{ w = DequantizeLinear {dequantize} c = Conv {conv} (x, w) y = BatchNormalization(c, {STATS}) }}"""
