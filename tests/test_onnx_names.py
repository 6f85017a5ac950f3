"""Names and everything else in a file that is not a number: what stays, what changes, and what never collides.

Bugs of other tools that are covered here: unnamed nodes skipped (aimet), names that collide (onnx/optimizer#174,
onnxscript#2680), an output that loses its name (onnxruntime#4110).
"""

from __future__ import annotations

import json

import onnx
import onnx_ir as ir
import pytest
from onnx_models import PARAMETERS, STATS, as_bytes, assert_fold, ops, parse, proto

import bnfold

TEXT = f"""(float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w, {PARAMETERS}>
    {{ c = Conv(x, w) b = BatchNormalization(c, {STATS}) y = Relu(b) }}"""


def _names(model: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = name
    return model


def test_the_value_that_equals_the_batchnorms_output_takes_its_name() -> None:
    after = proto(assert_fold(parse(TEXT), folded=1).model).graph
    assert [(node.op_type, list(node.output)) for node in after.node] == [("Conv", ["b"]), ("Relu", ["y"])]


def test_every_value_whose_meaning_changed_has_a_new_name() -> None:
    text = TEXT.replace("b = Batch", "d = Identity(c) e = AveragePool <kernel_shape=[1,1]> (d) b = Batch").replace(
        "(c, gamma", "(e, gamma"
    )
    after = proto(assert_fold(parse(text), folded=1).model).graph
    assert [node.output[0] for node in after.node] == ["c_folded", "d_folded", "b", "y"]


def test_a_pushed_fold_renames_what_lies_behind_and_nothing_before() -> None:
    text = f"""(float[N,4,8,8] x) => (float[N,5,7,7] y) <float[5,4,2,2] w, {PARAMETERS}>
        {{ a = Relu(x) b = BatchNormalization(a, {STATS}) d = Identity(b) y = Conv(d, w) }}"""
    after = proto(assert_fold(parse(text), folded=1).model).graph
    assert [node.output[0] for node in after.node] == ["a", "d_folded", "y"]


def test_new_names_avoid_every_name_in_the_file() -> None:
    taken = "c_folded = Relu(x) w_folded = Neg(x) w_bias_folded = Abs(x) w_folded_2 = Abs(x) "
    taken += "z = Sum(c_folded, w_folded, w_bias_folded, w_folded_2)"
    text = (
        TEXT.replace("y)", "y, float[N,3,8,8] z)", 1)
        .replace("{ c", f"{{ {taken} c")
        .replace("b = Batch", "d = Identity(c) b = Batch")
    )
    result = assert_fold(parse(text.replace("(c, gamma", "(d, gamma")), folded=1)
    names = [v.name for node in result.model.graph for v in node.outputs]
    assert "c_folded_2" in names
    assert list(result.model.graph.initializers) == ["w_folded_3", "w_bias_folded_2"]


def test_new_names_avoid_names_in_bodies_and_of_nodes() -> None:
    text = f"""(float[N,3,8,8] x, bool q) => (float[N,4,6,6] y, float[N,3,8,8] z) <float[4,3,3,3] w, {PARAMETERS}>
        {{ z = If (q) <then_branch = g1 () => (float[N,3,8,8] w_folded) {{ w_folded = Relu(x) }},
                       else_branch = g2 () => (float[N,3,8,8] e) {{ e = Neg(x) }}>
           c = Conv(x, w) y = BatchNormalization(c, {STATS}) }}"""
    result = assert_fold(_names(parse(text), "w_bias_folded", "conv", "bn"), folded=1)
    assert list(result.model.graph.initializers) == ["w_folded_2", "w_bias_folded_2"]


def test_unnamed_nodes_are_known_by_their_outputs() -> None:
    result = assert_fold(_names(parse(TEXT), "", "", ""), folded=1)
    assert (result.decisions[0].subject.name, result.report.folded[0].into) == ("b", ("c",))
    assert [node.name or "" for node in result.model.graph] == ["", ""]


def test_nodes_of_one_name_are_folded_all_the_same() -> None:
    text = TEXT.replace("y = Relu(b)", f"r = Relu(b) e = Conv(r, v) y = BatchNormalization(e, {STATS})").replace(
        "6,6] y", "4,4] y"
    )
    model = parse(text.replace("<float", "<float[4,4,3,3] v, float", 1))
    # onnxruntime takes no such file; the check gives the nodes of its copies names of their own.
    model = _names(model, "conv", "bn", "relu", "conv", "bn")
    assert bnfold.fold(ir.from_proto(model)).report.verification.passed
    result = assert_fold(model, folded=2, runs=False)
    assert [d.subject.name for d in result.decisions] == ["bn", "bn"]


def test_a_new_node_has_a_name_of_its_own() -> None:
    text = f"""(float[N,7] x) => (float[N,4] y) <float[7,4] w, {PARAMETERS}>
        {{ m = MatMul(x, w) y = BatchNormalization(m, {STATS}) }}"""
    for names in (("", ""), ("mm", "bn"), ("mm_bias", "bn")):
        result = assert_fold(_names(parse(text), *names), folded=1)
        found = [node.name or "" for node in result.model.graph]
        assert found[0] == names[0]
        assert found[1] not in ("", names[0])


def _decorated() -> onnx.ModelProto:
    model = parse(TEXT)
    model.doc_string, model.graph.doc_string = "the model", "the graph"
    model.producer_name, model.producer_version, model.domain, model.model_version = "somebody", "1.2", "a.b", 7
    model.metadata_props.add(key="author", value="me")
    model.graph.node[0].doc_string = "the conv"
    model.graph.node[0].metadata_props.add(key="line", value="12")
    model.graph.output[0].doc_string = "the result"
    for name in ("c", "b"):
        model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, 1, ["N", 4, 6, 6]))
    return model


def test_metadata_doc_strings_and_value_info_survive() -> None:
    after = proto(assert_fold(_decorated(), folded=1).model)
    assert (after.doc_string, after.graph.doc_string, after.graph.name) == ("the model", "the graph", "main")
    assert (after.producer_name, after.producer_version, after.domain, after.model_version) == (
        "somebody",
        "1.2",
        "a.b",
        7,
    )
    assert {p.key: p.value for p in after.metadata_props}["author"] == "me"
    assert after.graph.node[0].doc_string == "the conv"
    assert {p.key: p.value for p in after.graph.node[0].metadata_props}["line"] == "12"
    info = {v.name: v for v in after.graph.value_info}["b"]
    assert [d.dim_param or d.dim_value for d in info.type.tensor_type.shape.dim] == ["N", 4, 6, 6]


def test_a_model_without_a_fold_is_left_as_it_is_byte_for_byte() -> None:
    model = _decorated()
    model.graph.node[1].op_type = "InstanceNormalization"
    del model.graph.node[1].input[3:]
    original = ir.from_proto(model)
    assert as_bytes(bnfold.fold(original).model) == as_bytes(original)
    text = "(float[4,4] x) => (float[4,4] y) { k = Constant <value = float[4] {1, 2, 3, 4}> () y = Mul(x, k) }"
    constant = parse(text)
    assert as_bytes(bnfold.fold(ir.from_proto(constant)).model) == as_bytes(ir.from_proto(constant))


def test_the_metadata_says_what_was_folded_and_whether_it_was_verified() -> None:
    model = ir.from_proto(parse(TEXT))
    for verify, said in ((True, "cpu"), (False, "no")):
        props = bnfold.fold(model, verify=verify).model.metadata_props
        assert json.loads(props["bnfold.folds"]) == [{"batchnorms": ["b"], "direction": "pull", "into": ["c"]}]
        assert props["bnfold.verified"] == said


@pytest.mark.parametrize("text", ["not json", "{}", "3"])
def test_a_record_that_is_not_ours_is_replaced(text: str) -> None:
    model = parse(TEXT)
    model.metadata_props.add(key="bnfold.folds", value=text)
    assert len(json.loads(bnfold.fold(ir.from_proto(model)).model.metadata_props["bnfold.folds"])) == 1


def test_folding_in_two_steps_says_both() -> None:
    text = TEXT.replace("y = Relu(b)", f"r = Relu(b) e = Conv(r, v) y = BatchNormalization(e, {STATS})").replace(
        "6,6] y", "4,4] y"
    )
    model = ir.from_proto(parse(text.replace("<float", "<float[4,4,3,3] v, float", 1)))
    first = bnfold.fold(model, only="^b$")
    second = bnfold.fold(first.model)
    assert len(json.loads(second.model.metadata_props["bnfold.folds"])) == 2
    assert ops(second.model) == ["Conv", "Relu", "Conv"]


def test_the_order_of_outputs_and_inputs_is_kept() -> None:
    text = f"""(float[N,2,8,8] b2, float[N,3,8,8] x) => (float[N,2,8,8] q, float[N,4,6,6] y, float[N,2,8,8] p)
        <float[4,3,3,3] w, {PARAMETERS}>
        {{ c = Conv(x, w) y = BatchNormalization(c, {STATS}) p = Relu(b2) q = Neg(b2) }}"""
    after = assert_fold(parse(text), folded=1).model.graph
    assert [v.name for v in after.inputs] == ["b2", "x"]
    assert [v.name for v in after.outputs] == ["q", "y", "p"]
