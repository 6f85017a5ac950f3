"""Recalibration against its definition in float64: any topology, batch size and operator set; nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_models import parse
from recalibration_cases import CASES, IMAGE, Case, bn, parameters

import bnfold
from bnfold.drift import Hindrance
from bnfold.runtime import open_session
from tests.recalibrated import assert_expected, cut_up, expected, statistics_in

Array = np.ndarray[Any, Any]


def samples(case: Case, count: int = 37, seed: int = 3) -> dict[str, Array]:
    """Whole numbers below 9 for what is called k, else images of varying contrast, far from what the model knows."""
    generator = np.random.default_rng(seed)
    contrast = np.exp(generator.standard_normal(count))
    found: dict[str, Array] = {}
    for name, shape in case.inputs.items():
        if name == "k":
            found[name] = generator.integers(0, 9, (count, *shape))
        else:
            drawn = 3 + contrast.reshape(-1, *[1] * len(shape)) * generator.standard_normal((count, *shape))
            found[name] = drawn.astype(np.float32)
    return found


def recalibrate(
    model: onnx.ModelProto, data: dict[str, Array], size: int = 8, **options: Any
) -> bnfold.RecalibrationResult:
    return bnfold.recalibrate(ir.from_proto(model), cut_up(data, size), **options)


@pytest.mark.parametrize("name", CASES)
def test_the_statistics_are_those_of_the_definition(name: str) -> None:
    case = CASES[name]
    model, data = parse(case.text), samples(case)
    result = recalibrate(model, data)
    assert_expected(result, expected(model, data, case.order))
    assert {entry.name: entry.hindrance for entry in result.report.left} == case.left


@pytest.mark.parametrize("size", [1, 4, 32, 100])
@pytest.mark.parametrize("name", ["a chain", "branches of other depths that meet", "one module at two depths"])
def test_the_batch_size_does_not_matter(name: str, size: int) -> None:
    case = CASES[name]
    model, data = parse(case.text), samples(case)  # 37: the last batch is smaller
    assert_expected(recalibrate(model, data, size), expected(model, data, case.order))


@pytest.mark.parametrize("opset", [7, 9, 13, 14, 15, 18, 21])
def test_every_operator_set_will_do(opset: int) -> None:
    case = CASES["a chain"]
    model, data = parse(case.text, opset=opset), samples(case)
    assert_expected(recalibrate(model, data), expected(model, data, case.order))


def test_a_file_of_ir_version_3_will_do() -> None:
    case = CASES["a chain"]
    model, data = parse(case.text, opset=8, ir_version=3), samples(case)
    result = recalibrate(model, data)
    assert_expected(result, expected(model, data, case.order))
    assert [value.name for value in ir.to_proto(result.model).graph.input] == [v.name for v in model.graph.input]


def test_a_second_recalibration_changes_nothing() -> None:
    for name in ("branches of other depths that meet", "one module at two depths"):
        model, data = parse(CASES[name].text), samples(CASES[name])
        once = recalibrate(model, data)
        twice = bnfold.recalibrate(once.model, cut_up(data, 8))
        assert ir.to_proto(twice.model).graph == ir.to_proto(once.model).graph
        assert max(entry.largest_drift for entry in twice.report.recalibrated) == 0.0
        other = bnfold.recalibrate(once.model, cut_up(data, 5))
        assert max(entry.largest_drift for entry in other.report.recalibrated) < 1e-5


def test_bessel_divides_by_one_less() -> None:
    case = CASES["a chain"]
    model, data = parse(case.text), samples(case)
    assert_expected(recalibrate(model, data, bessel=True), expected(model, data, case.order, bessel=True))


def test_nothing_but_the_statistics_changes_and_the_original_not_at_all() -> None:
    model, data = parse(CASES["a chain"].text), samples(CASES["a chain"])
    original = ir.from_proto(model)
    before = ir.to_proto(original).SerializeToString(deterministic=True)
    result = bnfold.recalibrate(original, cut_up(data, 8))
    assert ir.to_proto(original).SerializeToString(deterministic=True) == before
    after = ir.to_proto(result.model)
    onnx.checker.check_model(after, full_check=True)
    statistics = {f"{kind}_{name}" for kind in ("mean", "var") for name in "ab"}
    assert {t.name for t in after.graph.initializer} == {t.name for t in model.graph.initializer}
    for tensor in after.graph.initializer:
        old = next(t for t in model.graph.initializer if t.name == tensor.name)
        assert (onnx.numpy_helper.to_array(tensor).tobytes() != onnx.numpy_helper.to_array(old).tobytes()) == (
            tensor.name in statistics
        )
    plain = ir.to_proto(original)
    del after.graph.initializer[:], plain.graph.initializer[:]
    assert after.graph == plain.graph


def test_the_result_normalises_the_data() -> None:
    """End to end in onnxruntime: the last BatchNorm's output has mean beta and deviation |gamma|."""
    case = CASES["branches of other depths that meet"]
    model, data = parse(case.text), samples(case, count=64)
    result = recalibrate(model, data)
    y = open_session(ir.to_proto(result.model)).run(["y"], data)["y"].astype(np.float64)
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    np.testing.assert_allclose(y.mean(axis=(0, 2, 3)), arrays["beta_e"], atol=1e-4)
    np.testing.assert_allclose(y.std(axis=(0, 2, 3)), np.abs(arrays["gamma_e"]), rtol=1e-4)


def test_float16_is_summed_in_float32() -> None:
    stored = parameters("a", dtype="float16")
    text = f"(float16[n, 4, 64, 64] x) => (float16[n, 4, h, w] y) <{stored}> {{ {bn('a', 'x', 'y')} }}"
    data = (200 + 30 * np.random.default_rng(0).standard_normal((8, 4, 64, 64))).astype(np.float16)
    result = recalibrate(parse(text), {"x": data}, 3)
    (entry,) = result.report.recalibrated
    wide = data.astype(np.float64)
    mean, variance = statistics_in(ir.to_proto(result.model), "a")
    assert mean.dtype == variance.dtype == np.float16
    assert (mean == wide.mean(axis=(0, 2, 3)).astype(np.float16)).all()
    assert (variance == wide.var(axis=(0, 2, 3)).astype(np.float16)).all()
    assert entry.samples == 8 * 64 * 64


def test_a_huge_mean_beside_a_small_deviation_is_right() -> None:
    text = f"(float[n, 4, 64, 64] x) => (float[n, 4, h, w] y) <{parameters('a')}> {{ {bn('a', 'x', 'y')} }}"
    data = (1000 + np.random.default_rng(0).standard_normal((9, 4, 64, 64))).astype(np.float32)
    result = recalibrate(parse(text), {"x": data}, 4)
    (entry,) = result.report.recalibrated
    wide = data.astype(np.float64)
    assert np.abs(entry.new.variance / wide.var(axis=(0, 2, 3)) - 1).max() < 1e-5
    assert np.abs(entry.new.mean - wide.mean(axis=(0, 2, 3))).max() < 1000 * 2.0**-24  # one rounding


# What is stored where


def test_a_tensor_that_others_read_stays_and_the_batchnorm_gets_its_own() -> None:
    text = f"""{IMAGE} <float[4] g, float[4] b, float[4] mean, float[4] var, float[4, 4, 1, 1] w> {{
        [one] c = BatchNormalization (x, g, b, mean, var)
        d = Conv (c, w)
        [two] e = BatchNormalization (d, b, g, mean, var)
        f = Flatten (e)
        y = Identity (e)
    }}"""
    case = Case(text, [["one"], ["two"]])
    model, data = parse(text), samples(case)
    result = recalibrate(model, data)
    wanted = expected(model, data, case.order)
    assert_expected(result, wanted)
    after = ir.to_proto(result.model)
    onnx.checker.check_model(after, full_check=True)
    for name in ("one", "two"):
        mean, variance = statistics_in(after, name)
        entry = next(e for e in result.report.recalibrated if e.name == name)
        assert (mean == entry.new.mean).all()
        assert (variance == entry.new.variance).all()
    assert not (statistics_in(after, "one")[0] == statistics_in(after, "two")[0]).all()


def test_a_mean_that_an_add_reads_stays_for_the_add() -> None:
    text = f"""(float[n, 4] x) => (float[n, 4] y) <{parameters("a")}> {{
        {bn("a", "x", "c")}
        y = Add (c, mean_a)
    }}"""
    model, data = parse(text), samples(Case(text, [], {"x": (4,)}))
    after = ir.to_proto(recalibrate(model, data).model)
    (add,) = (node for node in after.graph.node if node.op_type == "Add")
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in after.graph.initializer}
    old = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    assert (stored[add.input[1]] == old["mean_a"]).all()
    np.testing.assert_allclose(statistics_in(after, "a")[0], data["x"].mean(axis=0), rtol=1e-5)


def test_statistics_that_nodes_compute_become_initializers() -> None:
    text = f"""(float[n, 4] x) => (float[n, 4] y) <float[4] gamma_a, float[4] beta_a, float[4] raw, float[4] var_a> {{
        mean_a = Identity (raw)
        {bn("a", "x", "y")}
    }}"""
    data = samples(Case(text, [], {"x": (4,)}))
    after = ir.to_proto(recalibrate(parse(text), data).model)
    onnx.checker.check_model(after, full_check=True)
    assert [node.op_type for node in after.graph.node] == ["BatchNormalization"]
    np.testing.assert_allclose(statistics_in(after, "a")[0], data["x"].mean(axis=0), rtol=1e-5)


def test_a_statistic_that_a_caller_may_override_gets_another_default() -> None:
    case = CASES["a chain"]
    model, data = parse(case.text), samples(case)
    model.graph.input.append(onnx.helper.make_tensor_value_info("mean_a", onnx.TensorProto.FLOAT, [4]))
    result = recalibrate(model, data)
    assert_expected(result, expected(model, data, case.order))
    assert [value.name for value in ir.to_proto(result.model).graph.input] == ["x", "mean_a"]


def test_the_metadata_says_how_and_a_stale_manifest_goes() -> None:
    case = CASES["a chain"]
    folded = bnfold.fold(ir.from_proto(parse(case.text)), only="b", manifest="embed").model
    result = bnfold.recalibrate(folded, cut_up(samples(case), 8))
    record = '{"method": "sequential", "variance": "population", "samples": 37}'
    assert result.model.metadata_props["bnfold.recalibrated"] == record
    assert "bnfold.manifest" not in result.model.metadata_props
    assert any("manifest" in note for note in result.report.notes)


# What stays


def test_keep_and_only_choose_by_name() -> None:
    case = CASES["branches of other depths that meet"]
    model, data = parse(case.text), samples(case)
    for options, chosen in (({"only": "^[ab]$"}, "ab"), ({"keep": "[cde]"}, "ab")):
        result = recalibrate(model, data, **options)
        assert_expected(result, expected(model, data, [[name] for name in chosen]))
        assert {e.name: e.hindrance for e in result.report.left} == dict.fromkeys("cde", Hindrance.EXCLUDED_BY_CALLER)


def test_a_batchnorm_that_saw_nothing_is_left_alone() -> None:
    text = f"""(float[n, 4, 6] x) => (float[m, 4, 6] y) <{parameters("a", "b")}> {{
        {bn("a", "x", "c")}
        none = Constant <value = int64[1] {{0}}> ()
        d = Slice (c, none, none, none)
        {bn("b", "d", "y")}
    }}"""
    data = samples(Case(text, [], {"x": (4, 6)}))
    result = recalibrate(parse(text), data)
    assert [(e.name, e.hindrance) for e in result.report.left] == [("b", Hindrance.SAW_NO_SAMPLE)]
    assert [e.name for e in result.report.recalibrated] == ["a"]


def test_a_dead_channel_keeps_its_statistics() -> None:
    text = f"(float[n, 4, 6] x) => (float[n, 4, 6] y) <{parameters('a')}> {{ {bn('a', 'x', 'y')} }}".replace(
        "BatchNormalization", "BatchNormalization <epsilon = 0.0>"
    )
    data = samples(Case(text, [], {"x": (4, 6)}))
    data["x"][:, 2] = 7.0
    model = parse(text)
    (entry,) = recalibrate(model, data).report.recalibrated
    assert entry.dead == (2,)
    assert entry.new.mean[2] == entry.old.mean[2]
    assert entry.new.variance[2] == entry.old.variance[2]
    assert (entry.new.mean != entry.old.mean).sum() == 3


def test_a_variance_beyond_float16_is_not_stored() -> None:
    text = (
        f"(float16[n, 4, 6] x) => (float16[n, 4, 6] y) <{parameters('a', dtype='float16')}> {{ {bn('a', 'x', 'y')} }}"
    )
    data = (1000 * np.random.default_rng(0).standard_normal((9, 4, 6))).astype(np.float16)
    (left,) = recalibrate(parse(text), {"x": data}).report.left
    assert (left.hindrance, left.detail) == (Hindrance.NOT_IN_RANGE, "float16")


@pytest.mark.parametrize("mode", ["training", "computed"])
def test_what_is_no_inference_batchnorm_is_left_alone(mode: str) -> None:
    training = "[t] c, m, v = BatchNormalization <training_mode = 1> (x, gamma_a, beta_a, mean_a, var_a)"
    node = bn("t", "x", "c", "a").replace("mean_a", "mean_b")
    computed = f"mean_b = ReduceMean <axes = [0, 2], keepdims = 0> (x) {node}"
    text = f"""(float[n, 4, 6] x) => (float[n, 4, 6] y) <{parameters("a", "e")}> {{
        {training if mode == "training" else computed}
        {bn("e", "c", "y")}
    }}"""
    (left,) = recalibrate(parse(text), samples(Case(text, [], {"x": (4, 6)}))).report.left
    assert (left.name, left.hindrance) == ("t", Hindrance.NOT_IN_INFERENCE_FORM)
    assert ("training mode" if mode == "training" else "run time") in left.detail


def test_a_batchnorm_in_a_function_is_left_alone() -> None:
    model = parse(
        f"(float[n, 4] x) => (float[n, 4] y) <{parameters('a', 'f')}> {{ {bn('a', 'x', 'c')} "
        "y = custom.f (c, gamma_f, beta_f, mean_f, var_f) }",
        functions='<domain: "custom", opset_import: ["" : 17]> f (u, g, b, m, v) => (o) '
        "{ [inner] o = BatchNormalization (u, g, b, m, v) }",
        domains=["custom"],
    )
    result = recalibrate(model, samples(Case("", [], {"x": (4,)})))
    assert [e.name for e in result.report.recalibrated] == ["a"]
    assert [(e.name, e.hindrance, e.detail) for e in result.report.left] == [
        ("inner", Hindrance.INSIDE_FUNCTION, "custom.f")
    ]


def test_a_model_without_batchnorms_stays_as_it_is() -> None:
    model = ir.from_proto(parse("(float[n, 4] x) => (float[n, 4] y) { y = Relu (x) }"))
    result = bnfold.recalibrate(model, [np.ones((4, 4), np.float32)])
    assert ir.to_proto(result.model) == ir.to_proto(model)
    assert (result.report.recalibrated, result.report.left) == ((), ())


@pytest.mark.parametrize("shape", [(2, 4, 65536), (2, 4, 256, 256), (2, 4, 16, 32, 64), (40, 4)])
@pytest.mark.parametrize("is_known", [True, False])
def test_sums_of_many_equal_values_lose_nothing(shape: tuple[int, ...], is_known: bool) -> None:
    """Behind a ReLU half of the values are alike; summed one by one in float32 they would be off by 1e-4."""
    dims = ", ".join(f"d{i}" for i in range(len(shape)))
    text = f"""(float[{dims}] x, int64[k] s) => (float y) <{parameters("a")}> {{
        c = {"Identity (x)" if is_known else "Reshape (x, s)"}
        {bn("a", "c", "d")}
        y = ReduceMax <keepdims = 0> (d)
    }}"""
    x = np.maximum(np.random.default_rng(0).standard_normal(shape), 0).astype(np.float32)
    model = parse(text)
    result = bnfold.recalibrate(ir.from_proto(model), [{"x": x, "s": np.array(shape)}])
    (entry,) = result.report.recalibrated
    axes = tuple(axis for axis in range(len(shape)) if axis != 1)
    np.testing.assert_allclose(entry.new.variance, x.astype(np.float64).var(axis=axes), rtol=5e-7)
    np.testing.assert_allclose(entry.new.mean, x.astype(np.float64).mean(axis=axes), rtol=5e-7)
