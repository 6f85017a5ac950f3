"""Initializers that are graph inputs as well: dropped and said so, or kept on request; IR 3, which lists them all.

A bug of other tools that is covered here: overridable inputs baked in without a word (onnxsim, onnxslim).
"""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from onnx_models import PARAMETERS, STATS, assert_fold, parse, proto, reasons

import bnfold
from bnfold.decision import Reason

TEXT = f"""(float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w, {PARAMETERS}>
    {{ c = Conv(x, w) b = BatchNormalization(c, {STATS}) y = Relu(b) }}"""


def _listed(*names: str, ir_version: int = 8) -> onnx.ModelProto:
    model = parse(TEXT, ir_version=ir_version)
    for tensor in model.graph.initializer:
        if tensor.name in names:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            model.graph.input.append(info)
    return model


@pytest.mark.parametrize("names", [("w",), ("gamma", "var"), ("w", "gamma", "beta", "mean", "var")])
@pytest.mark.parametrize("ir_version", [4, 8])
def test_defaults_of_inputs_are_folded_dropped_and_said_so(ir_version: int, names: tuple[str, ...]) -> None:
    result = assert_fold(_listed(*names, ir_version=ir_version), folded=1)
    assert [value.name for value in result.model.graph.inputs] == ["x"]
    said = [note for note in result.report.notes if "is gone" in note]
    assert sorted(said) == sorted(f"input {n} was the default of a folded parameter and is gone" for n in names)


@pytest.mark.parametrize(
    ("name", "reasons_"), [("w", Reason.PARAMETER_IS_OVERRIDABLE), ("var", Reason.PARAMETER_IS_OVERRIDABLE)]
)
def test_defaults_of_inputs_are_left_alone_on_request(name: str, reasons_: Reason) -> None:
    result = assert_fold(_listed(name), folded=0, kept=[reasons_], keep_overridable=True)
    assert [value.name for value in result.model.graph.inputs] == ["x", name]
    assert result.report.kept[0].remedy == "leave out --keep-overridable"


def test_initializers_that_are_no_inputs_are_folded_all_the_same_on_request() -> None:
    assert_fold(_listed(), folded=1, keep_overridable=True)


def test_an_overridable_constant_operand_is_left_alone_on_request() -> None:
    text = TEXT.replace("c = Conv(x, w)", "a = Conv(x, w) c = Add(a, k)").replace(
        "float[4,3", "float[4,1,1] k, float[4,3", 1
    )
    model = parse(text)
    model.graph.input.append(onnx.helper.make_tensor_value_info("k", onnx.TensorProto.FLOAT, [4, 1, 1]))
    assert_fold(model, folded=0, kept=[Reason.PARAMETER_IS_OVERRIDABLE], keep_overridable=True)
    assert_fold(model, folded=1)


def test_a_default_that_something_else_reads_stays_an_input() -> None:
    model = parse(TEXT.replace("y = Relu(b)", "s = ReduceMax <keepdims=1> (w) y = Mul(b, s)"))
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4, 3, 3, 3]))
    result = assert_fold(model, folded=1)
    assert [value.name for value in result.model.graph.inputs] == ["x", "w"]


def test_a_file_of_ir_version_3_stays_one() -> None:
    model = parse(TEXT, opset=8)
    assert [value.name for value in model.graph.input] == ["x", "w", "gamma", "beta", "mean", "var"]
    result = assert_fold(model, folded=1)
    after = proto(result.model)
    assert after.ir_version == 3
    assert [value.name for value in after.graph.input] == ["x", "w_folded", "w_bias_folded"]
    onnx.checker.check_model(after, full_check=True)
    assert sum("is gone" in note for note in result.report.notes) == 5


def test_a_file_of_ir_version_3_keeps_what_it_lists_on_request() -> None:
    result = bnfold.fold(ir.from_proto(parse(TEXT, opset=8)), keep_overridable=True)
    assert reasons(result) == [Reason.PARAMETER_IS_OVERRIDABLE]
