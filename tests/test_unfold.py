"""`unfold` gives back what `fold` took: the original bit by bit, whole, region by region, and fold by fold.

That every single ONNX fold of the other tests can be undone is held in `onnx_models.assert_fold` and in
`random_graph_checks`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_models import PARAMETERS, STATS, ops, parse, proto, stored

import bnfold
from bnfold.frontends.onnx_float64 import evaluate, in_float64
from bnfold.frontends.onnx_fold import Settings, plan_model
from bnfold.frontends.onnx_manifest import Notes
from bnfold.frontends.onnx_unfold import undo
from tests.random_graph_checks import difference
from tests.random_graphs import random_graph
from tests.undone import undone, whole
from tests.zoo import load as load_network

DIGITS = Path(__file__).parents[1] / "models" / "digits-darknet.onnx"

#: Two Convs that share no fold.
TWO = f"""(float[N,3,8,8] x) => (float[N,4,8,8] y)
    <float[4,3,1,1] w, float[4,4,1,1] v, {PARAMETERS}, float[4] gamma2, float[4] var2> {{
    c = Conv(x, w)
    [first] b = BatchNormalization(c, {STATS})
    r = Sigmoid(b)
    d = Conv(r, v)
    [second] y = BatchNormalization(d, gamma2, beta, mean, var2)
}}"""


def folded(model: onnx.ModelProto | ir.Model | Path, **options: Any) -> bnfold.FoldResult:
    given = ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model
    return bnfold.fold(given, verify=False, **{"manifest": "apart", **options})


def assert_undone(model: onnx.ModelProto, **options: Any) -> bnfold.FoldResult:
    result = folded(model, **options)
    assert result.manifest is not None
    assert result.manifest.folds
    assert whole(undone(result)) == whole(model)
    return result


# Whole


def test_the_digit_model_comes_back_from_files_and_folds_to_the_same_bytes_again(tmp_path: Path) -> None:
    result = folded(DIGITS, manifest="embed")
    bnfold.save(result.model, tmp_path / "fused.onnx")
    back = bnfold.unfold(tmp_path / "fused.onnx")
    assert whole(back.model) == whole(onnx.load(DIGITS))
    assert len(back.restored) == 11
    assert (back.manifest, back.also) == (None, ())
    assert bnfold.inspect(back.model).decisions == bnfold.inspect(DIGITS).decisions
    assert whole(folded(back.model, manifest="embed").model) == whole(result.model)


@pytest.mark.parametrize("name", ["shufflenet_v2_dynamo", "unet_norm_after_concat"])
def test_whole_networks_come_back(name: str) -> None:
    network = load_network(name)
    result = folded(network.path)
    assert result.manifest is not None
    assert len(result.manifest.folds) == network.batchnorms
    assert whole(undone(result)) == whole(onnx.load(network.path))


def test_the_networks_of_torch_export_come_back_one_batchnorm_at_a_time() -> None:
    """Their BatchNorms share constants (the shapes of missing biases), which is no reason to restore all of them."""
    network = load_network("shufflenet_v2_dynamo")
    result = folded(network.path)
    assert result.manifest is not None
    assert [len(region.folds) for region in result.manifest.steps[0].regions] == [1] * network.batchnorms
    name = result.manifest.folds[20].name
    part = bnfold.unfold(result.model, result.manifest, only=f"^{re.escape(name)}$")
    assert part.restored == (name,)
    assert [n.name for n in part.model.graph if n.op_type == "BatchNormalization"] == [name]
    onnx.checker.check_model(proto(part.model), full_check=True)
    assert bnfold.verify(network.path, part.model, shapes={"image": (1, 3, 64, 64)}).passed
    assert whole(bnfold.unfold(part.model).model) == whole(onnx.load(network.path))


def test_channels_with_a_scale_of_zero_have_their_weights_back() -> None:
    text = f"""(float[N,3,8,8] x) => (float[N,4,8,8] y) <float[4,3,3,3] w, {PARAMETERS}>
        {{ c = Conv<pads=[1,1,1,1]>(x, w) y = BatchNormalization(c, {STATS}) }}"""
    result = assert_undone(parse(text, values={"gamma": [1.0, 0.0, -2.0, 0.0]}))
    assert not stored(result.model, "w_folded")[[1, 3]].any()


def test_weights_that_became_subnormal_come_back() -> None:
    text = f"""(float[N,3,8,8] x) => (float[N,4,8,8] y) <float[4,3,3,3] w, {PARAMETERS}>
        {{ c = Conv<pads=[1,1,1,1]>(x, w) y = BatchNormalization(c, {STATS}) }}"""
    result = assert_undone(parse(text, values={"gamma": [1.0, 1e-39, -1e-40, 1e-41]}))
    kept = np.abs(stored(result.model, "w_folded")[1:])
    assert (kept < np.finfo(np.float32).smallest_normal).all()
    assert kept.any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "double"])
def test_every_floating_point_type_comes_back(dtype: str) -> None:
    text = f"""({dtype}[N,3,8,8] x) => ({dtype}[N,4,8,8] y) <{dtype}[4,3,3,3] w, {PARAMETERS.replace("float", dtype)}>
        {{ c = Conv<pads=[1,1,1,1]>(x, w) y = BatchNormalization(c, {STATS}) }}"""
    result = assert_undone(parse(text))
    assert result.manifest is not None
    assert len(result.manifest.folds[0].gamma) == 4


SPLIT = f"""(float[N,4,8,8] x) => (float[N,4,8,8] y, float[N,4,8,8] z) <float[8,4,1,1] w, {PARAMETERS}> {{
    c = Conv(x, w)
    a, y = Split<axis=1>(c)
    z = BatchNormalization(a, {STATS})
}}"""
SHARED = f"""(float[N,4,8,8] x) => (float[N,4,8,8] y, float[N,4,8,8] z, float[N,4,8,8] p)
    <float[4,4,1,1] w, {PARAMETERS}, float[4] gamma2, float[4] var2> {{
    p = Conv(x, w)
    c = Conv(x, w)
    y = BatchNormalization(c, {STATS})
    d = Conv(x, w)
    z = BatchNormalization(d, gamma2, beta, mean, var2)
}}"""
MATMUL = f"""(float[N,6] x) => (float[N,4] y) <float[6,4] w, {PARAMETERS}>
    {{ c = MatMul(x, w) y = BatchNormalization(c, {STATS}) }}"""
GEMM = f"""(float[N,6] x) => (float[N,4] y) <float[4,6] w, float[1,4] k, {PARAMETERS}> {{
    c = Gemm<transB=1, alpha=0.3, beta=1.7>(x, w, k)
    y = BatchNormalization(c, {STATS})
}}"""
GROUPED = f"""(float[N,4,8,8] x) => (float[N,4,9,9] y) <float[4,2,2,2] w, {PARAMETERS}>
    {{ c = ConvTranspose<group=2>(x, w) y = BatchNormalization(c, {STATS}) }}"""
PADDED = f"""(float[N,4,8,8] x) => (float[N,2,8,8] y) <float[2,4,3,3] w, int64[8] pads, float pad, {PARAMETERS}> {{
    b = BatchNormalization(x, {STATS})
    p = Pad(b, pads, pad)
    y = Conv(p, w)
}}"""
DISGUISED = """(float[N,3,8,8] x) => (float[N,4,8,8] y) <float[4,3,1,1] w, float[4,1,1] m, float[4,1,1] s> {
    c = Conv(x, w)
    d = Sub(c, m)
    y = Mul(s, d)
}"""
STANDARD = f"""(float[N,3,8,8] x) => (float[N,4,8,8] y) <float[4,3,1,1] w, {PARAMETERS}> {{
    h = Identity(w)
    g = Constant<value_floats=[1.0, 2.0, -3.0, 0.5]>()
    c = Conv(x, h)
    y = BatchNormalization(c, g, beta, mean, var)
}}"""


@pytest.mark.parametrize(
    "text", [SPLIT, SHARED, MATMUL, GEMM, GROUPED, DISGUISED, STANDARD, TWO], ids=lambda t: t.split("{")[1][:24].strip()
)
def test_every_way_to_fold_can_be_undone(text: str) -> None:
    assert_undone(parse(text))


def test_a_pad_whose_value_changed_has_its_value_back() -> None:
    values = {"pads": [0, 0, 1, 1, 0, 0, 1, 1], "pad": 0.75, "beta": 0.5, "mean": 0.0, "var": 3.0, "gamma": 1.0}
    result = assert_undone(parse(PADDED, values=values))
    assert ops(result.model) == ["Pad", "Conv"]


def test_an_add_that_was_left_of_a_batchnorm_is_the_batchnorm_again() -> None:
    text = f"""(float[N,4,8,8] x) => (float[N,2,8,8] y) <float[2,4,3,3] w, {PARAMETERS}>
        {{ b = BatchNormalization(x, {STATS}) y = Conv<pads=[1,1,1,1]>(b, w) }}"""
    result = assert_undone(parse(text), reduce=True)
    assert result.manifest is not None
    assert ops(result.model) == ["Add", "Conv"]
    assert result.manifest.folds[0].left == "Add"


def test_parameters_that_were_inputs_are_inputs_again_at_their_places() -> None:
    model = parse(TWO, ir_version=3)
    assert len(model.graph.input) > 1
    result = assert_undone(model)
    assert "gamma" not in [value.name for value in result.model.graph.inputs]
    part = bnfold.unfold(result.model, result.manifest, only="second")
    onnx.checker.check_model(proto(part.model), full_check=True)
    assert whole(bnfold.unfold(part.model).model) == whole(model)


def test_models_with_external_data_come_back(tmp_path: Path) -> None:
    onnx.save(parse(TWO), tmp_path / "model.onnx", save_as_external_data=True, size_threshold=0)
    data = (tmp_path / "model.onnx").read_bytes()
    result = folded(tmp_path / "model.onnx", manifest="embed")
    bnfold.save(result.model, tmp_path / "fused.onnx")
    bnfold.save(bnfold.unfold(tmp_path / "fused.onnx").model, tmp_path / "back.onnx")
    assert whole(onnx.load(tmp_path / "back.onnx")) == whole(parse(TWO))
    assert (tmp_path / "model.onnx").read_bytes() == data


def test_the_folded_model_stays_as_it_is() -> None:
    result = folded(parse(TWO))
    before = whole(result.model)
    bnfold.unfold(result.model, result.manifest)
    bnfold.unfold(result.model, result.manifest, only="first")
    assert whole(result.model) == before


# Region by region


def test_one_of_two_comes_back_and_the_other_stays_folded() -> None:
    model = parse(TWO)
    result = folded(model)
    part = bnfold.unfold(result.model, result.manifest, only="first")
    assert part.restored == ("first",)
    assert ops(part.model) == ["Conv", "BatchNormalization", "Sigmoid", "Conv"]
    assert np.array_equal(stored(part.model, "w"), stored(model, "w"))
    assert "v_folded" in part.model.graph.initializers
    assert [fold.name for fold in part.manifest.folds] == ["second"] if part.manifest else False
    assert re.findall(r'"batchnorms": \["(\w+)"\]', part.model.metadata_props["bnfold.folds"]) == ["second"]


@pytest.mark.parametrize("order", [("first", "second"), ("second", "first")])
def test_regions_come_back_in_any_order(order: tuple[str, str]) -> None:
    model = parse(TWO)
    result = folded(model)
    part = bnfold.unfold(result.model, result.manifest, only=order[0])
    rest = bnfold.unfold(part.model, only=order[1])
    assert rest.manifest is None
    assert whole(rest.model) == whole(model)


def test_what_overlaps_comes_back_together_and_that_is_said() -> None:
    text = f"""(float[N,4,8,8] x) => (float[N,4,8,8] y) <float[4,4,1,1] w, {PARAMETERS}, float[4] gamma2, float[4] var2>
    {{
        [first] a = BatchNormalization(x, {STATS})
        c = Conv(a, w)
        [second] y = BatchNormalization(c, gamma2, beta, mean, var2)
    }}"""
    result = folded(parse(text))
    part = bnfold.unfold(result.model, result.manifest, only="first")
    assert (sorted(part.restored), part.also, part.manifest) == (["first", "second"], ("second",), None)


def test_a_part_of_a_random_graph_computes_the_same_and_so_does_what_is_left_to_undo() -> None:
    parts = 0
    for seed in range(60):
        graph = random_graph(seed)
        wide = in_float64(graph.model)
        feeds = {name: value.astype(np.float64) for name, value in graph.feeds.items()}
        result = folded(wide)
        assert result.manifest is not None
        regions = list(result.manifest.steps[0].regions)
        named = [region.names[0] for region in regions if region.names]  # not what only merges
        if len(regions) < 2 or not named:
            continue
        parts += 1
        part = bnfold.unfold(result.model, result.manifest, only=f"^{re.escape(named[seed % len(named)])}$")
        names = [value.name for value in wide.graph.output]
        old, new = evaluate(wide, feeds, names), evaluate(proto(part.model), feeds, names)
        assert not [wrong for name in names if (wrong := difference(old[name], new[name]))], seed
        assert whole(bnfold.unfold(part.model).model) == whole(wide), seed
    assert parts >= 10


def test_a_weight_that_both_lost_is_back_with_the_first_that_comes() -> None:
    model = parse(SHARED.replace("p = Conv(x, w)", "p = Relu(x)"))
    result = folded(model)
    assert result.manifest is not None
    assert "w" not in result.model.graph.initializers
    part = bnfold.unfold(result.model, result.manifest, only=f"^{result.manifest.folds[1].name}$")
    assert np.array_equal(stored(part.model, "w"), stored(model, "w"))
    assert len(part.restored) == 1
    assert whole(bnfold.unfold(part.model).model) == whole(model)


# Bodies


def test_what_changed_in_a_body_comes_back_too() -> None:
    """The body is changed by hand, beside a fold of the main graph; the notes are taken of the model as it is."""
    text = f"""(bool t, float[N,4,8,8] x) => (float[N,4,8,8] y) <float[4,4,1,1] w, {PARAMETERS}> {{
        c = Conv(x, w)
        b = BatchNormalization(c, {STATS})
        y = If(t) <
            then_branch = one () => (float[N,4,8,8] p) {{ n = BatchNormalization(b, {STATS}) p = Relu(n) }},
            else_branch = two () => (float[N,4,8,8] q) {{ q = Relu(b) }}
        >
    }}"""
    model = parse(text)
    before = ir.from_proto(model)
    after = before.clone()
    notes = Notes(after)
    planned = plan_model(after, Settings(wanted=lambda name: name == "b"))
    notes.note(planned)
    planned.write()
    body = next(node for node in after.graph if node.op_type == "If").attributes["then_branch"].as_graph()
    norm, relu = tuple(body)
    shift = ir.Value(name="shift", const_value=ir.Tensor(np.ones((4, 1, 1), np.float32), name="shift"))
    body.register_initializer(shift)
    add = ir.Node("", "Add", [norm.inputs[0], shift], outputs=[ir.Value(name="moved")])
    body.insert_before(norm, add)
    relu.replace_input_with(0, add.outputs[0])
    body.remove(norm, safe=True)
    step = notes.step(before, after)
    assert [record.path for record in step.graphs] == [(), ((2, "then_branch"),)]
    assert ops(after) == ["Conv", "If"]
    assert whole(undo(after, step, lambda _region: True)[0]) == whole(model)
    for chosen in step.regions:
        part, rest = undo(after, step, lambda region, chosen=chosen: region is chosen)  # type: ignore[misc]
        onnx.checker.check_model(proto(part), full_check=True)
        assert rest is not None
        assert whole(undo(part, rest, lambda _region: True)[0]) == whole(model)


# Merges


def test_branches_that_became_one_convolution_come_back() -> None:
    text = f"""(float[N,4,8,8] x) => (float[N,4,8,8] y)
    <float[4,4,3,3] w, float[4,4,1,1] v, {PARAMETERS}, float[4] gamma2, float[4] var2> {{
        a = Conv<pads=[1,1,1,1]>(x, w)
        [three] b = BatchNormalization(a, {STATS})
        c = Conv(x, v)
        [one] d = BatchNormalization(c, gamma2, beta, mean, var2)
        [same] e = BatchNormalization(x, gamma, beta, mean, var2)
        s = Add(b, d)
        t = Add(s, e)
        y = Sigmoid(t)
    }}"""
    result = assert_undone(parse(text))
    assert ops(result.model) == ["Conv", "Sigmoid"]
    folds = {fold.name: fold for fold in result.manifest.folds} if result.manifest else {}
    assert {name: fold.direction for name, fold in folds.items()} == {"three": "pull", "one": "pull", "same": "merge"}
    assert len(folds["same"].gamma) == 4
    assert result.manifest is not None
    (record,) = result.manifest.steps[0].graphs
    assert [tensor.name for tensor in record.lost if tensor.prediction] == []


@pytest.mark.parametrize("form", ["affine", "depthwise"])
def test_what_stayed_in_another_form_is_a_batchnorm_again(form: str) -> None:
    text = f"""(float[N,4,8,8] x) => (float[N,4,8,8] y, float[N,4,8,8] z) <{PARAMETERS}, float[4] gamma2> {{
        [one] y = BatchNormalization(x, {STATS})
        s = Sigmoid(y)
        [two] z = BatchNormalization(s, gamma2, beta, mean, var)
    }}"""
    model = parse(text)
    result = assert_undone(model, leftover=form)
    assert "BatchNormalization" not in ops(result.model)
    assert result.manifest is not None
    assert {fold.direction for fold in result.manifest.folds} == {"none"}
    assert all(fold.left for fold in result.manifest.folds)
    part = bnfold.unfold(result.model, result.manifest, only="one")
    assert ops(part.model)[:2] == ["BatchNormalization", "Sigmoid"]
    again = bnfold.fold(part.model, verify=False, leftover=form)
    assert [d.subject.name for d in again.decisions if d.subject.is_batchnorm] == ["one"]
    assert "BatchNormalization" not in ops(again.model)
    assert whole(bnfold.unfold(part.model).model) == whole(model)
