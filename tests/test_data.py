"""Inputs are made up the same way every time, and open shapes are filled sensibly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold.data import InputSpec, fill_shapes, parse_shape, read_inputs, size_choices, synthesise
from bnfold.errors import DataError, UsageError

if TYPE_CHECKING:
    import onnx


def spec(
    *dims: int | str | None, name: str = "x", dtype: str = "float32", channels: tuple[int, int] | None = None
) -> InputSpec:
    return InputSpec(name, np.dtype(dtype), dims, channels)


def filled(*specs: InputSpec, **overrides: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return fill_shapes(specs, batch=2, spatial=64, overrides=overrides)


def model(nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], **held: np.ndarray) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(value, name) for name, value in held.items()]
    graph = helper.make_graph(nodes, "test", inputs, [helper.make_tensor_value_info("y", 1, None)], tensors)
    return helper.make_model(graph)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    first, again, other = (synthesise([spec("N", 3)], seed=seed, batch=2, overrides={})["x"] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_two_inputs_of_one_shape_differ() -> None:
    feeds = synthesise([spec(2, 3, name="a"), spec(2, 3, name="b")], seed=0, batch=2, overrides={})
    assert not np.array_equal(feeds["a"], feeds["b"])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "int32", "uint8", "bool"])
def test_every_input_has_the_type_the_model_asks_for(dtype: str) -> None:
    assert synthesise([spec(2, 5, dtype=dtype)], seed=0, batch=2, overrides={})["x"].dtype == dtype


def test_whole_numbers_stay_within_any_embedding_and_images_use_their_range() -> None:
    assert set(synthesise([spec(50, 9, dtype="int64")], seed=0, batch=1, overrides={})["x"].flat) == {0, 1}
    assert synthesise([spec(1, 9, 9, 3, dtype="uint8")], seed=0, batch=1, overrides={})["x"].max() > 200


def test_a_scalar_is_an_array_of_rank_zero() -> None:
    assert synthesise([spec()], seed=0, batch=1, overrides={})["x"].shape == ()


SHAPES = {
    "image": ((spec("N", 3, "H", "W"),), {"x": (2, 3, 64, 64)}),
    "image of unknown channels": ((spec(None, None, None, None),), {"x": (2, 3, 64, 64)}),
    "channels from the weights": ((spec("N", "C", "H", "W", channels=(1, 12)),), {"x": (2, 12, 64, 64)}),
    "features from the weights": ((spec("N", "S", "F", channels=(2, 24)),), {"x": (2, 16, 24)}),
    "channels last": ((spec("N", "H", "W", 3),), {"x": (2, 64, 64, 3)}),
    "volume": ((spec("N", 1, "D", "H", "W"),), {"x": (2, 1, 16, 16, 16)}),
    "sequence": ((spec("N", "S"),), {"x": (2, 16)}),
    "fixed": ((spec(1, 3, 8, 8),), {"x": (1, 3, 8, 8)}),
    "equal symbols": ((spec("N", "S", name="a"), spec("S", "N", name="b")), {"a": (2, 16), "b": (16, 2)}),
}


@pytest.mark.parametrize(("specs", "expected"), SHAPES.values(), ids=SHAPES)
def test_open_sizes_are_filled_by_their_place(
    specs: tuple[InputSpec, ...], expected: dict[str, tuple[int, ...]]
) -> None:
    assert filled(*specs) == expected


def test_an_override_fixes_its_symbols_for_the_other_inputs() -> None:
    assert filled(spec("N", "S", name="a"), spec("N", "S", name="b"), b=(5, 7)) == {"a": (5, 7), "b": (5, 7)}


def test_an_override_may_tell_an_unknown_rank_and_without_one_the_input_is_named() -> None:
    unknown = InputSpec("x", np.dtype("float32"), None)
    assert filled(unknown, x=(4, 4)) == {"x": (4, 4)}
    with pytest.raises(DataError, match=r"x: the shape of this input is unknown.*--shape x="):
        filled(unknown)


CONTRADICTIONS = {
    "unknown name": ({"z": (1, 3)}, "no input 'z'; its inputs are x"),
    "other rank": ({"x": (1, 3, 4)}, "3 axes, the model wants 2"),
    "fixed size": ({"x": (1, 4)}, "says 4 where the model has 3; the model's shape is Nx3"),
}


@pytest.mark.parametrize(("overrides", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_an_override_that_contradicts_the_model_is_refused(overrides: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        filled(spec("N", 3), **overrides)


def test_overrides_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(UsageError, match="says 4 where the model has 2"):
        filled(spec("N", name="a"), spec("N", name="b"), a=(2,), b=(4,))


def test_a_shape_is_read_from_its_text() -> None:
    assert parse_shape("input=1x3x224x224") == ("input", (1, 3, 224, 224))
    assert parse_shape("a=b=2,3") == ("a=b", (2, 3))
    assert parse_shape("scalar=") == ("scalar", ())


@pytest.mark.parametrize(
    "text", ["", "input", "=1x3", "input=1x", "input=axb", "input=-1x3", "input=1.5", "input=1x\n3"]
)
def test_text_that_is_no_shape_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="write it like input=1x3x224x224"):
        parse_shape(text)


def test_initializers_among_the_inputs_are_not_asked_for() -> None:
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["N", 4, -1, None]),
             helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 4, 1, 1])]  # fmt: skip
    read = read_inputs(
        model([helper.make_node("Conv", ["x", "w"], ["y"])], infos, w=np.zeros((2, 4, 1, 1), np.float32))
    )
    assert read == (InputSpec("x", np.dtype("float16"), ("N", 4, None, None), (1, 4)),)


CHANNELS = {
    "Conv": (helper.make_node("Conv", ["p", "w"], ["y"]), (8, 5, 3, 3), (1, 5)),
    "Conv in groups": (helper.make_node("Conv", ["p", "w"], ["y"], group=4), (8, 5, 3, 3), (1, 20)),
    "ConvTranspose": (helper.make_node("ConvTranspose", ["p", "w"], ["y"]), (7, 5, 3, 3), (1, 7)),
    "MatMul": (helper.make_node("MatMul", ["p", "w"], ["y"]), (9, 5), (3, 9)),
    "Gemm": (helper.make_node("Gemm", ["p", "w"], ["y"], transB=1), (9, 5), (3, 5)),
    "none": (helper.make_node("Add", ["p", "w"], ["y"]), (1,), None),
}


@pytest.mark.parametrize(("node", "shape", "expected"), CHANNELS.values(), ids=CHANNELS)
def test_the_weights_behind_an_input_tell_its_channels(
    node: onnx.NodeProto, shape: tuple[int, ...], expected: tuple[int, int] | None
) -> None:
    nodes = [helper.make_node("Sub", ["x", "m"], ["p"]), node]
    info = [helper.make_tensor_value_info("x", 1, ["N", "C", "H", "W"])]
    made = model(nodes, info, w=np.zeros(shape, np.float32), m=np.zeros(1, np.float32))
    assert read_inputs(made)[0].channels == expected


def test_text_and_sequences_cannot_be_made_up() -> None:
    text = model(
        [helper.make_node("Identity", ["x"], ["y"])], [helper.make_tensor_value_info("x", TensorProto.STRING, [1])]
    )
    with pytest.raises(DataError, match="x: this input is no tensor of numbers"):
        read_inputs(text)


def test_sizes_to_try_follow_what_is_open() -> None:
    image, fixed = spec("N", 3, "H", "W"), spec(1, 3, 8, 8)
    assert size_choices([image], {}, None)[:2] == [(2, 64), (2, 224)]
    assert size_choices([image], {}, None)[5] == (1, 64)
    assert size_choices([image], {}, (2, 64)) == [(3, 96), (3, 64), (2, 96)]
    assert size_choices([spec("N", 4)], {}, (2, 64)) == [(3, 64)]
    assert size_choices([fixed], {}, None) == [(1, 64)]
    assert size_choices([fixed], {}, (1, 64)) == []
    assert size_choices([image], {"x": (1, 3, 8, 8)}, (1, 64)) == []
