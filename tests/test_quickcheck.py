"""The end-to-end check passes right folds, catches wrong ones, and says when it proves nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold.errors import DataError, ProviderError, UsageError
from bnfold.quickcheck import QuickCheck, quick_check

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Weights = dict[str, np.ndarray]
EPSILON = 1e-5


def weights(dtype: type = np.float32, seed: int = 0) -> Weights:
    """Two convolutions with BatchNorm and a linear head, with lively statistics."""
    generator = np.random.default_rng(seed)

    def normal(*shape: int, around: float = 0.0, spread: float = 1.0) -> np.ndarray:
        return (around + spread * generator.standard_normal(shape)).astype(dtype)

    made = {"w1": normal(8, 3, 3, 3, spread=0.2), "w2": normal(6, 8, 3, 3, spread=0.15), "w3": normal(6, 5)}
    for number, channels in ((1, 8), (2, 6)):
        made |= {
            f"gamma{number}": normal(channels, around=1, spread=0.3),
            f"beta{number}": normal(channels, spread=0.3),
        }
        made |= {
            f"mean{number}": normal(channels, spread=0.3),
            f"var{number}": np.abs(normal(channels, around=1)) + dtype(0.1),
        }
    return made


def model(
    nodes: Sequence[onnx.NodeProto],
    held: Mapping[str, np.ndarray],
    outputs: Sequence[str],
    *,
    dtype: int = TensorProto.FLOAT,
    shape: Sequence[int | str] = ("N", 3, 12, 12),
    output_types: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """A model with the one input `x` and outputs of open shape, in the oldest dialect every runtime here takes."""
    types = output_types or {}
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", dtype, list(shape))],
        [helper.make_tensor_value_info(name, types.get(name, dtype), None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in held.items()],
    )
    imports = [helper.make_opsetid("", 17), *([helper.make_opsetid("my.domain", 1)] if _is_custom(nodes) else [])]
    return helper.make_model(graph, ir_version=8, opset_imports=imports)


def _is_custom(nodes: Sequence[onnx.NodeProto]) -> bool:
    return any(node.domain == "my.domain" for node in nodes)


def original_nodes() -> list[onnx.NodeProto]:
    def norm(number: int) -> onnx.NodeProto:
        names = [f"c{number}", *(f"{part}{number}" for part in ("gamma", "beta", "mean", "var"))]
        return helper.make_node("BatchNormalization", names, [f"n{number}"], epsilon=EPSILON)

    return [helper.make_node("Conv", ["x", "w1"], ["c1"]), norm(1), helper.make_node("Relu", ["n1"], ["r1"]),
            helper.make_node("Conv", ["r1", "w2"], ["c2"]), norm(2), *head()]  # fmt: skip


def folded_nodes() -> list[onnx.NodeProto]:
    return [helper.make_node("Conv", ["x", "w1", "b1"], ["n1"]), helper.make_node("Relu", ["n1"], ["r1"]),
            helper.make_node("Conv", ["r1", "w2", "b2"], ["n2"]), *head()]  # fmt: skip


def head() -> list[onnx.NodeProto]:
    return [helper.make_node("GlobalAveragePool", ["n2"], ["g"]), helper.make_node("Flatten", ["g"], ["f"]),
            helper.make_node("MatMul", ["f", "w3"], ["y"])]  # fmt: skip


def fold(held: Weights) -> Weights:
    """The same weights with both BatchNorms folded by hand, in float64."""
    wide = {name: value.astype(np.float64) for name, value in held.items()}
    made = {"w3": held["w3"]}
    for number in ("1", "2"):
        scale = wide["gamma" + number] / np.sqrt(wide["var" + number] + EPSILON)
        made["w" + number] = wide["w" + number] * scale[:, None, None, None]
        made["b" + number] = wide["beta" + number] - wide["mean" + number] * scale
    return {name: value.astype(held["w1"].dtype) for name, value in made.items()}


def pair(**options: object) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    held = weights()
    return model(original_nodes(), held, ["y"], **options), model(folded_nodes(), fold(held), ["y"], **options)


def check_tail(tail: Sequence[onnx.NodeProto], outputs: Sequence[str], **options: object) -> QuickCheck:
    """The right fold of the net with further nodes behind it."""
    held = weights()
    extra = {"three": np.array([3], np.int64), "axis": np.array(1, np.int64)}
    before = model([*original_nodes(), *tail], held | extra, outputs, **options)
    return quick_check(before, model([*folded_nodes(), *tail], fold(held) | extra, outputs, **options))


def test_a_right_fold_passes_and_every_surviving_tensor_was_compared() -> None:
    check = quick_check(*pair())
    assert check.passed
    assert check.proves
    assert check.first_divergence is None
    assert [entry.name for entry in check.comparisons] == ["y"]
    assert [entry.name for entry in check.inner] == ["n1", "r1", "n2", "g", "f"]
    assert 0 < check.comparisons[0].error < 1e-5
    assert check.notes == ()


def test_neither_model_is_changed() -> None:
    models = pair()
    bytes_before = [each.SerializeToString() for each in models]
    quick_check(*models)
    assert [each.SerializeToString() for each in models] == bytes_before


def test_an_open_batch_runs_at_two_sizes_and_a_fixed_one_once() -> None:
    assert [run["x"][0] for run in quick_check(*pair()).runs] == [2, 3]
    assert quick_check(*pair(shape=(1, 3, 12, 12))).runs == ({"x": (1, 3, 12, 12)},)
    assert quick_check(*pair(), shapes={"x": (4, 3, 12, 12)}).runs == ({"x": (4, 3, 12, 12)},)


def test_an_open_image_size_runs_at_two_sizes_with_the_channels_of_the_weights() -> None:
    assert [run["x"] for run in quick_check(*pair(shape=("N", "C", "H", "W"))).runs] == [(2, 3, 64, 64), (3, 3, 96, 96)]


def fixed_size_pair(size: int) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Nets whose linear head takes one image size only, though the input says any."""
    held = weights()
    extra = {"w3": np.random.default_rng(0).standard_normal((6 * (size - 4) ** 2, 5)).astype(np.float32)}
    tail = [helper.make_node("Flatten", ["n2"], ["f"]), helper.make_node("MatMul", ["f", "w3"], ["y"])]
    shape = ("N", 3, "H", "W")
    before = model([*original_nodes()[:5], *tail], held | extra, ["y"], shape=shape)
    return before, model([*folded_nodes()[:3], *tail], fold(held) | extra, ["y"], shape=shape)


def test_a_model_that_refuses_the_first_sizes_is_run_at_one_it_takes() -> None:
    check = quick_check(*fixed_size_pair(32))
    assert check.passed
    assert [run["x"] for run in check.runs] == [(2, 3, 32, 32), (3, 3, 32, 32)]


def test_a_model_that_refuses_every_size_is_a_provider_error_that_names_the_operator() -> None:
    with pytest.raises(ProviderError, match="MatMul"):
        quick_check(*fixed_size_pair(20))


def wrong(name: str, change: float, place: tuple[int, ...] | slice) -> QuickCheck:
    held = weights()
    bad = fold(held)
    bad[name] = bad[name].copy()
    bad[name][place] += np.float32(change)
    return quick_check(model(original_nodes(), held, ["y"]), model(folded_nodes(), bad, ["y"]))


def test_one_weight_off_by_a_hundredth_of_the_largest_fails_at_the_layer_it_is_in() -> None:
    check = wrong("w2", 0.01 * float(np.abs(fold(weights())["w2"]).max()), (2, 3, 1, 1))
    assert check.failed
    assert not check.passed
    assert check.first_divergence == "n2"
    failed = {entry.name: entry for entry in check.inner}["n2"]
    assert failed.index[1] == 2


def test_one_weight_off_by_a_thousandth_of_the_largest_fails_where_its_effect_is_strong() -> None:
    held = weights()
    held["w1"][5] *= np.float32(0.05)  # a quiet channel, compared on its own scale
    bad = fold(held)
    bad["w1"][5, 0, 0, 0] += np.float32(1e-3) * np.abs(bad["w1"]).max()
    held["beta1"][5] = bad["b1"][5] = 0
    held["mean1"][5] = 0
    check = quick_check(model(original_nodes(), held, ["y"]), model(folded_nodes(), bad, ["y"]))
    assert check.first_divergence == "n1"
    assert fold(held)["b1"][5] == bad["b1"][5]


@pytest.mark.parametrize("number", ["1", "2"])
def test_a_missing_bias_fails(number: str) -> None:
    held = weights()
    bad = fold(held) | {"b" + number: np.zeros_like(fold(held)["b" + number])}
    check = quick_check(model(original_nodes(), held, ["y"]), model(folded_nodes(), bad, ["y"]))
    assert check.first_divergence == "n" + number


def test_a_nan_weight_fails() -> None:
    check = wrong("w3", np.nan, (0, 0))
    assert check.first_divergence == "y"
    assert "nan" in check.comparisons[0].note


def two_outputs(swap: bool) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Relu", ["x"], ["b" if swap else "a"]),
        helper.make_node("Neg", ["x"], ["a" if swap else "b"]),
    ]
    return model(nodes, {}, ["a", "b"])


def test_outputs_that_swapped_their_names_fail() -> None:
    assert quick_check(two_outputs(False), two_outputs(False)).passed
    check = quick_check(two_outputs(False), two_outputs(True))
    assert {entry.name for entry in check.comparisons if entry.failed} == {"a", "b"}


def test_a_changed_order_of_outputs_a_missing_one_and_a_missing_input_fail_before_anything_runs() -> None:
    reordered, short, renamed = two_outputs(False), two_outputs(False), two_outputs(False)
    reordered.graph.output.insert(0, reordered.graph.output.pop())
    short.graph.output.pop()
    renamed.graph.input[0].name = renamed.graph.node[0].input[0] = renamed.graph.node[1].input[0] = "z"
    for after, note in ((reordered, "the order"), (short, "the output is gone"), (renamed, "the input is gone")):
        check = quick_check(two_outputs(False), after)
        assert check.failed
        assert note in check.comparisons[0].note
        assert check.runs == ()


def test_a_changed_type_of_an_output_fails() -> None:
    before, after = pair()
    after.graph.node[-1].output[0] = "z"
    after.graph.node.append(helper.make_node("Cast", ["z"], ["y"], to=TensorProto.DOUBLE))
    after.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    check = quick_check(before, after)
    assert check.failed
    assert "type changed from float32 to float64" in check.comparisons[0].note


def test_a_constant_output_is_named_and_alone_proves_nothing() -> None:
    nodes = [helper.make_node("Mul", ["x", "zero"], ["z"]), helper.make_node("Add", ["z", "one"], ["y"])]
    dead = model(nodes, {"zero": np.zeros(1, np.float32), "one": np.ones(1, np.float32)}, ["y"])
    check = quick_check(dead, dead)
    assert not check.proves
    assert not check.passed
    assert not check.failed
    assert "Output y does not change when the input does" in check.notes[0]


def test_a_constant_output_that_changed_its_constant_fails() -> None:
    nodes = [helper.make_node("Mul", ["x", "zero"], ["z"]), helper.make_node("Add", ["z", "one"], ["y"])]
    held = {"zero": np.zeros(1, np.float32), "one": np.ones(1, np.float32)}
    assert quick_check(model(nodes, held, ["y"]), model(nodes, held | {"one": held["one"] * 2}, ["y"])).failed


def test_a_random_output_is_named_and_left_out_and_the_others_still_count() -> None:
    check = check_tail([helper.make_node("RandomNormalLike", ["y"], ["noise"])], ["y", "noise"])
    assert check.passed
    assert [entry.name for entry in check.comparisons] == ["y"]
    assert "Output noise is the outcome of a decision or a random draw" in check.notes[0]


def test_a_random_output_alone_proves_nothing() -> None:
    random = model([helper.make_node("RandomNormal", [], ["y"], shape=[2, 3])], {}, ["y"])
    check = quick_check(random, random)
    assert (check.proves, check.passed, check.failed, check.comparisons) == (False, False, False, ())


def test_an_output_that_adds_noise_is_compared_under_the_same_noise() -> None:
    tail = [helper.make_node("RandomNormalLike", ["y"], ["noise"]), helper.make_node("Add", ["y", "noise"], ["z"])]
    check = check_tail(tail, ["z"])
    assert check.passed
    assert [entry.name for entry in check.comparisons] == ["z"]
    assert check.comparisons[0].error < 1e-5


def test_an_operator_that_is_random_without_saying_so_is_found_by_running_twice() -> None:
    extra = {"half": np.array(0.5, np.float32), "yes": np.array(True)}
    nodes = [helper.make_node("Dropout", ["x", "half", "yes"], ["y"])]
    check = quick_check(model(nodes, extra, ["y"]), model(nodes, extra, ["y"]))
    assert not check.proves
    assert "Output y differs between two runs of the original" in check.notes[0]


def test_labels_are_compared_at_the_scores_before_them() -> None:
    tail = [helper.make_node("ArgMax", ["y"], ["label"], axis=1)]
    check = check_tail(tail, ["label"], output_types={"label": TensorProto.INT64})
    assert check.passed
    assert check.comparisons == ()
    assert "compared at y before it" in check.notes[0]


def test_a_wrong_fold_behind_which_the_labels_stay_the_same_fails() -> None:
    held = weights()
    bad = fold(held)
    bad["b2"] = bad["b2"] * np.float32(1.02)
    tail = [helper.make_node("ArgMax", ["y"], ["label"], axis=1)]
    types = {"label": TensorProto.INT64}
    check = quick_check(
        model([*original_nodes(), *tail], held, ["label"], output_types=types),
        model([*folded_nodes(), *tail], bad, ["label"], output_types=types),
    )
    assert check.failed
    assert check.first_divergence == "n2"


def test_what_follows_a_decision_is_compared_under_the_same_decision() -> None:
    # Rounding to steps of 1/4096 moves by a whole step for a rounding error, which the next Conv would spread.
    held = weights() | {"step": np.array(4096, np.float32)}
    nodes = original_nodes()
    nodes[3:4] = [helper.make_node("Mul", ["r1", "step"], ["m"]), helper.make_node("Round", ["m"], ["d"]),
                  helper.make_node("Conv", ["d", "w2"], ["c2"])]  # fmt: skip
    after = folded_nodes()
    after[2:3] = [*nodes[3:5], helper.make_node("Conv", ["d", "w2", "b2"], ["n2"])]
    good = fold(held) | {"step": held["step"]}
    check = quick_check(model(nodes, held, ["y"]), model(after, good, ["y"]))
    assert check.passed
    assert "1 values that may jump were taken from the original's run" in check.notes[0]
    bad = good | {"b2": good["b2"] * 0, "w2": good["w2"] * np.float32(1.01)}
    assert quick_check(model(nodes, held, ["y"]), model(after, bad, ["y"])).first_divergence == "n2"


def test_what_follows_a_held_decision_proves_nothing_when_nothing_before_it_was_compared() -> None:
    def table(names: Sequence[str]) -> onnx.ModelProto:
        held = {"rows": np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)}
        nodes = [helper.make_node("Neg", ["x"], [names[0]]), helper.make_node("Relu", [names[0]], [names[1]]),
                 helper.make_node("ArgMax", [names[1]], ["place"], axis=3),
                 helper.make_node("Gather", ["rows", "place"], ["y"])]  # fmt: skip
        return model(nodes, held, ["y"])

    assert quick_check(table(["a", "b"]), table(["a", "b"])).proves
    check = quick_check(table(["a", "b"]), table(["other", "names"]))
    assert not check.proves
    assert not check.failed


def test_what_follows_a_held_decision_on_the_input_itself_is_compared() -> None:
    held = weights() | {"step": np.array(0.05, np.float32)}
    round_input = [helper.make_node("QuantizeLinear", ["x", "step"], ["i"]),
                   helper.make_node("DequantizeLinear", ["i", "step"], ["d"])]  # fmt: skip

    def rounded(nodes: list[onnx.NodeProto], step: str = "step") -> list[onnx.NodeProto]:
        nodes[0].input[0], round_input[0].input[1] = "d", step
        return [*round_input, *nodes]

    before = model(rounded(original_nodes()), held, ["y"])
    good = fold(held) | {"step": held["step"]}
    assert quick_check(before, model(rounded(folded_nodes()), good, ["y"])).passed
    bad = good | {"b1": good["b1"] * 0}
    assert quick_check(before, model(rounded(folded_nodes()), bad, ["y"])).first_divergence == "n1"
    other = good | {"half": np.array(0.025, np.float32)}
    assert not quick_check(before, model(rounded(folded_nodes(), "half"), other, ["y"])).proves


def test_a_decision_in_the_folded_model_alone_cannot_be_held_and_is_left_out() -> None:
    before, after = pair()
    after.graph.node[-1].output[0] = "raw"
    after.graph.node.append(helper.make_node("Round", ["raw"], ["y"]))
    check = quick_check(before, after)
    assert check.comparisons == ()
    assert "follows a decision that could not be held" in check.notes[0]
    assert "compared at f before it" in check.notes[0]


def test_shape_arithmetic_is_no_decision() -> None:
    tail = [helper.make_node("Shape", ["y"], ["s"]), helper.make_node("Cast", ["s"], ["sf"], to=TensorProto.FLOAT),
            helper.make_node("Floor", ["sf"], ["fl"]), helper.make_node("Cast", ["fl"], ["si"], to=TensorProto.INT64),
            helper.make_node("Reshape", ["y", "si"], ["z"])]  # fmt: skip
    check = check_tail(tail, ["z", "s"], output_types={"s": TensorProto.INT64})
    assert check.passed
    assert [entry.name for entry in check.comparisons] == ["z", "s"]
    assert check.notes == ()


def detector(held: Weights, scores: str) -> onnx.ModelProto:
    """Boxes of hundreds of pixels above class scores below one, in one output (N, 84, 100)."""
    nodes = [helper.make_node("Conv", ["x", "wb"], ["boxes"]), helper.make_node("Conv", ["x", "wc"], ["logits"]),
             helper.make_node("Sigmoid", ["logits"], ["sigmoid"]),
             helper.make_node("Mul", ["sigmoid", scores], ["kept"]),
             helper.make_node("Concat", ["boxes", "kept"], ["grid"], axis=1),
             helper.make_node("Reshape", ["grid", "shape"], ["y"])]  # fmt: skip
    return model(nodes, held, ["y"])


def test_a_detector_whose_class_scores_are_all_zeroed_is_caught_at_its_output() -> None:
    generator = np.random.default_rng(0)
    held: Weights = {
        "wb": (200 * generator.standard_normal((4, 3, 3, 3))).astype(np.float32),
        "wc": (0.3 * generator.standard_normal((80, 3, 3, 3))).astype(np.float32),
        "shape": np.array([0, 84, -1], np.int64),
        "one": np.array(1e-2, np.float32),
        "none": np.array(0, np.float32),
    }
    assert quick_check(detector(held, "one"), detector(held, "one")).passed
    check = quick_check(detector(held, "one"), detector(held, "none"))
    output = check.comparisons[0]
    assert output.failed
    assert output.index[1] >= 4
    assert output.error == pytest.approx(1.0, abs=0.1)


def test_a_float16_model_runs_on_the_cpu_and_says_in_which_arithmetic() -> None:
    held = weights(np.float16)
    options = {"dtype": TensorProto.FLOAT16}
    check = quick_check(
        model(original_nodes(), held, ["y"], **options), model(folded_nodes(), fold(held), ["y"], **options)
    )
    assert check.passed
    assert check.comparisons[0].dtype == "float16"
    assert "float16 was computed in float32 arithmetic" in check.notes[-1]
    bad = fold(held) | {"b2": fold(held)["b2"] * 0}
    assert quick_check(
        model(original_nodes(), held, ["y"], **options), model(folded_nodes(), bad, ["y"], **options)
    ).failed


def test_a_float64_convolution_cannot_be_run_and_is_no_failure() -> None:
    double = model(original_nodes(), weights(np.float64), ["y"], dtype=TensorProto.DOUBLE)
    with pytest.raises(ProviderError, match=r"no cpu kernel for Conv.*--no-verify"):
        quick_check(double, double)


def test_a_custom_operator_cannot_be_run_and_is_named() -> None:
    custom = model([helper.make_node("Blur", ["x"], ["y"], domain="my.domain")], {}, ["y"])
    with pytest.raises(ProviderError, match=r"does not know the operator my\.domain:Blur.*--no-verify"):
        quick_check(custom, custom)


def test_cuda_is_never_replaced_by_the_cpu() -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(ProviderError, match="no CUDAExecutionProvider"):
        quick_check(*pair(), provider="cuda")


def test_wrong_shapes_are_refused_before_anything_runs() -> None:
    with pytest.raises(UsageError, match="no input 'z'"):
        quick_check(*pair(), shapes={"z": (1,)})
    sequence = model(
        [helper.make_node("SequenceLength", ["x"], ["y"])], {}, ["y"], output_types={"y": TensorProto.INT64}
    )
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    sequence.graph.input[0].type.CopyFrom(kind)
    with pytest.raises(DataError, match="x: this input is no tensor"):
        quick_check(sequence, sequence)


def test_the_check_is_the_same_every_time_and_tells_what_it_does() -> None:
    told: list[str] = []
    first = quick_check(*pair(), progress=told.append)
    assert quick_check(*pair()) == first
    assert len(told) == 4


def test_branches_read_values_from_outside_their_bodies() -> None:
    branch = [
        helper.make_graph([helper.make_node(op, ["y"], [f"{op}_out"])], op, [],
                          [helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, None)])
        for op in ("Neg", "Floor")
    ]  # fmt: skip
    tail = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Size", ["s"], ["n"]),
            helper.make_node("Equal", ["n", "three"], ["small"]),
            helper.make_node("If", ["small"], ["z"], then_branch=branch[0], else_branch=branch[1])]  # fmt: skip
    check = check_tail(tail, ["z"])
    assert check.passed
    assert "compared at y before it" in check.notes[0]


def test_an_error_that_only_a_second_batch_size_shows_is_kept() -> None:
    before, after = two_outputs(False), two_outputs(False)
    after.graph.node[0].output[0] = "r"
    after.graph.initializer.append(numpy_helper.from_array(np.array(2, np.float32), "two"))
    after.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "first"))
    after.graph.node.extend(
        [
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("Gather", ["s", "first"], ["n"]),
            helper.make_node("Cast", ["n"], ["count"], to=TensorProto.FLOAT),
            helper.make_node("Sub", ["count", "two"], ["beyond"]),
            helper.make_node("Add", ["r", "beyond"], ["a"]),
        ]
    )
    assert quick_check(before, after, shapes={"x": (2, 3, 12, 12)}).passed
    assert quick_check(before, after).first_divergence == "a"


def test_cancellation_noise_of_a_right_rewrite_is_granted() -> None:
    # 3.0001 x - 3 x: the difference keeps only what the roundings of 3 x leave of it.
    held = {name: np.array(value, np.float32) for name, value in {"p": 3.0001, "q": 3.0, "r": 2.0, "s": 1.0001}.items()}
    nodes = [helper.make_node("Mul", ["x", "q"], ["m"]), helper.make_node("Sub", ["n", "m"], ["y"])]
    split = [helper.make_node("Mul", ["x", "r"], ["n1"]), helper.make_node("Mul", ["x", "s"], ["n2"]),
             helper.make_node("Add", ["n1", "n2"], ["n"]), *nodes]  # fmt: skip
    check = quick_check(
        model([helper.make_node("Mul", ["x", "p"], ["n"]), *nodes], held, ["y"]), model(split, held, ["y"])
    )
    output = check.comparisons[0]
    assert output.error > 1e-3
    assert check.passed
    assert "rounding alone moves it" in output.note


def test_a_float32_output_computed_in_float16_is_judged_as_float16() -> None:
    def wrapped(nodes: list[onnx.NodeProto], held: Weights) -> onnx.ModelProto:
        nodes[0].input[0] = "narrow"
        nodes[-1].output[0] = "half"
        first = helper.make_node("Cast", ["x"], ["narrow"], to=TensorProto.FLOAT16)
        return model([first, *nodes, helper.make_node("Cast", ["half"], ["y"], to=TensorProto.FLOAT)], held, ["y"])

    held = weights(np.float16)
    check = quick_check(wrapped(original_nodes(), held), wrapped(folded_nodes(), fold(held)))
    output = check.comparisons[0]
    assert check.passed
    assert output.dtype == "float32"
    assert output.tolerance > 1e-2


def test_a_left_out_output_that_changed_its_type_fails() -> None:
    before, after = pair()
    before.graph.node.append(helper.make_node("ArgMax", ["y"], ["label"]))
    before.graph.output.append(helper.make_tensor_value_info("label", TensorProto.INT64, None))
    after.graph.node.append(helper.make_node("ArgMax", ["y"], ["long"]))
    after.graph.node.append(helper.make_node("Cast", ["long"], ["label"], to=TensorProto.INT32))
    after.graph.output.append(helper.make_tensor_value_info("label", TensorProto.INT32, None))
    check = quick_check(before, after)
    assert check.failed
    assert [(entry.name, entry.note) for entry in check.comparisons if entry.failed] == [
        ("label", "the type changed from int64 to int32")
    ]


def test_a_cast_to_whole_numbers_is_a_decision() -> None:
    tail = [helper.make_node("Cast", ["y"], ["pixels"], to=TensorProto.UINT8)]
    check = check_tail(tail, ["pixels"], output_types={"pixels": TensorProto.UINT8})
    assert check.passed
    assert "compared at y before it" in check.notes[0]
