"""What counts as constant, and what does not although it looks it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_models import parse

from bnfold.decision import Reason
from bnfold.frontends.onnx_constants import Constants
from bnfold.frontends.onnx_shapes import Shapes


def _value(
    nodes: str, more: str = "float[2,3] k", opset: int = 17, *, keep: bool = False, **values: object
) -> np.ndarray | None:
    """The constant that is called "c", if it is one."""
    proto = parse(
        f"(float[N,3] x, bool q) => (float[N,3] y) <{more}> {{ {nodes} y = Relu(x) }}", opset=opset, values=values
    )
    return _constants(proto, keep=keep)


def _constants(proto: onnx.ModelProto, *, keep: bool = False) -> np.ndarray | None:
    model = ir.from_proto(proto)
    values = ir.convenience.create_value_mapping(model.graph)
    return Constants(model, Shapes(model), keep_overridable=keep).array(values["c"])


COMPUTED = {
    "c = Identity(k)": lambda k: k,
    "c = Cast <to=11> (k)": lambda k: k.astype(np.float64),
    "c = Transpose(k)": np.transpose,
    "c = Add(k, k)": lambda k: k + k,
    "c = Neg(k)": np.negative,
    "a = Abs(k) c = Identity(a)": None,
    "c = Flatten <axis=0> (k)": lambda k: k.reshape(1, 6),
    "c = Concat <axis=1> (k, k)": lambda k: np.concatenate([k, k], 1),
    "c = Shape(k)": lambda k: np.array([2, 3]),
    "c = Shape <start=1> (k)": lambda k: np.array([3]),
    "c = Shape <start=-1> (x)": lambda k: np.array([3]),
    "c = Shape <end=1> (x)": None,
    "c = Shape(x)": None,
    "c = Size(k)": lambda k: np.array(6),
    "c = CastLike(k, x)": lambda k: k,
    "c = Relu(x)": None,
    "c = Add(k, x)": None,
    "c = RandomNormal <shape=[2]> ()": None,
    "c = Constant <value_int=3> ()": lambda k: np.array(3),
    "c = Constant <value_ints=[3, 4]> ()": lambda k: np.array([3, 4]),
    "c = Constant <value_float=0.5> ()": lambda k: np.array(0.5, np.float32),
    "c = Constant <value_floats=[0.5, 2.0]> ()": lambda k: np.array([0.5, 2], np.float32),
    'c = Constant <value_string="a"> ()': None,
}


@pytest.mark.parametrize("nodes", COMPUTED)
def test_a_value_is_constant_if_it_is_computed_from_constants_by_a_known_operator(nodes: str) -> None:
    expected = COMPUTED[nodes]
    found = _value(nodes, k=np.arange(6).reshape(2, 3))
    if expected is None:
        assert found is None
    else:
        right = expected(np.arange(6, dtype=np.float32).reshape(2, 3))
        assert found is not None
        assert np.array_equal(found, right)
        assert found.dtype == right.dtype


def test_an_operator_of_another_domain_computes_nothing() -> None:
    proto = parse(
        "(float[N,3] x) => (float[N,3] y) <float[3] k> { c = strange.Identity(k) y = Relu(x) }", domains=["strange"]
    )
    assert _constants(proto) is None


def test_what_would_be_too_large_is_not_computed() -> None:
    assert _value("c = Expand(k, r)", "float[1] k, int64[3] r", r=[4000, 4000, 4000]) is None
    assert _value("c = Expand(k, r)", "float[1] k, int64[3] r", r=[4, 4, 4]) is not None
    assert _value("c = ConstantOfShape(r)", "int64[3] r", r=[4000, 4000, 4000]) is None
    assert _value("c = ConstantOfShape(r)", "int64[1] r", r=[4]) is not None


def test_what_the_evaluator_refuses_is_not_constant() -> None:
    assert _value("c = Reshape(k, r)", "float[2,3] k, int64[1] r", r=[7]) is None


def test_an_initializer_that_is_an_input_is_constant_unless_it_is_to_be_kept() -> None:
    proto = parse("(float[N,3] x) => (float[N,3] y) <float[3] k> { c = Identity(k) y = Relu(x) }")
    proto.graph.input.append(onnx.helper.make_tensor_value_info("k", onnx.TensorProto.FLOAT, [3]))
    assert _constants(proto) is not None
    assert _constants(proto, keep=True) is None


def test_the_reason_tells_overridable_quantised_and_variable_apart() -> None:
    proto = parse("""(float[N,3] x) => (float[N,3] y) <float[3] k, int8[3] q, float s>
        { d = DequantizeLinear(q, s) v = Relu(x) y = Relu(x) }""")
    proto.graph.input.append(onnx.helper.make_tensor_value_info("k", onnx.TensorProto.FLOAT, [3]))
    model = ir.from_proto(proto)
    values = ir.convenience.create_value_mapping(model.graph)
    constants = Constants(model, Shapes(model), keep_overridable=True)
    found = [constants.why_not(values[name], "n", Reason.WEIGHTS_NOT_CONSTANT).reason for name in ("k", "d", "v")]
    assert found == [Reason.PARAMETER_IS_OVERRIDABLE, Reason.WEIGHTS_ARE_QUANTISED, Reason.WEIGHTS_NOT_CONSTANT]


def test_a_cast_that_overflows_warns_nobody() -> None:
    found = _value("c = Cast <to=10> (k)", "float[1] k", k=1e10)
    assert found is None or np.isinf(found).all()
    found = _value("h = Cast <to=10> (x) c = CastLike(k, h)", "float[1] k", k=1e10)
    assert found is None or np.isinf(found).all()


def test_asking_leaves_no_mark_in_the_model() -> None:
    proto = parse("(float[N,3] x) => (float[N,3] y) { c = Constant <value = float[3] {1, 2, 3}> () y = Add(x, c) }")
    model = ir.from_proto(proto)
    before = ir.to_proto(model).SerializeToString()
    Constants(model, Shapes(model), keep_overridable=False).array(ir.convenience.create_value_mapping(model.graph)["c"])
    assert ir.to_proto(model).SerializeToString() == before
