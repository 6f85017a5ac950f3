"""The manifest: what it says, what it refuses, where it lies, and that there is none unless it was asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_models import PARAMETERS, STATS, as_bytes, parse, stored

import bnfold
from bnfold.errors import InternalError
from bnfold.frontends.onnx_skeleton import fingerprint
from bnfold.manifest import UndoStep
from bnfold.manifest_files import read_manifest, written
from bnfold.packing import pack
from tests.undone import whole

CONV = f"""(float[N,3,8,8] x) => (float[N,4,8,8] y) <float[4,3,1,1] w, {PARAMETERS}>
    {{ [conv] c = Conv(x, w) [bn] y = BatchNormalization<epsilon=0.001>(c, {STATS}) }}"""
TWO = f"""(float[N,3,8,8] x) => (float[N,4,8,8] y) <float[4,3,1,1] w, float[4,4,1,1] v, {PARAMETERS}> {{
    c = Conv(x, w)
    [first] b = BatchNormalization(c, {STATS})
    r = Sigmoid(b)
    d = Conv(r, v)
    [second] y = BatchNormalization(d, {STATS})
}}"""
NOTHING = f"(float[N,4,8,8] x) => (float[N,4,8,8] y) <{PARAMETERS}> {{ y = BatchNormalization(x, {STATS}) }}"


def folded(text: str, **options: Any) -> bnfold.FoldResult:
    return bnfold.fold(ir.from_proto(parse(text)), verify=False, **{"manifest": "apart", **options})


def manifest_of(result: bnfold.FoldResult) -> bnfold.Manifest:
    assert result.manifest is not None
    return result.manifest


# What it says


def test_it_tells_the_parameters_and_the_route_of_every_fold() -> None:
    model = parse(CONV)
    fold = json.loads(manifest_of(folded(CONV)).to_json())["steps"][0]["graphs"][0]["regions"][0]["folds"][0]
    assert (fold["name"], fold["operator"], fold["epsilon"]) == ("bn", "BatchNormalization", 0.001)
    assert (fold["direction"], fold["into"], fold["through"], fold["left"]) == ("pull", ["conv"], [], "")
    for name in ("gamma", "beta", "mean", "var"):
        assert np.array_equal(np.float32(fold[name]), stored(model, name).astype(np.float32))


def test_json_and_back_is_the_same_text() -> None:
    text = manifest_of(folded(TWO)).to_json()
    assert bnfold.Manifest.from_json(text).to_json() == text


def test_the_same_fold_gives_the_same_text_without_clock_or_path(tmp_path: Path) -> None:
    texts = []
    for name in ("a.onnx", "b.onnx"):
        onnx.save(parse(TWO), tmp_path / name)
        texts.append(manifest_of(bnfold.fold(tmp_path / name, verify=False, manifest="apart")).to_json())
    assert texts[0] == texts[1]
    assert str(tmp_path) not in texts[0]
    assert not re.search(r"20\d\d-\d\d", texts[0])


def test_statistics_that_are_not_finite_are_valid_json() -> None:
    model = parse(CONV, values={"var": [1.0, np.inf, 2.0, 3.0]})
    result = bnfold.fold(ir.from_proto(model), verify=False, manifest="apart")
    text = manifest_of(result).to_json()
    assert '"Infinity"' in text
    assert "inf" not in json.dumps(json.loads(text), allow_nan=False)
    assert bnfold.Manifest.from_json(text).folds[0].var[1] == np.inf


def test_folded_weights_are_noted_in_two_bits_each_and_need_not_be_stored() -> None:
    """What is left after the prediction: -1, 0 or 1 in the last place."""
    text = f"""(float[N,64,8,8] x) => (float[N,64,8,8] y) <float[64,64,3,3] w, {PARAMETERS.replace("4", "64")}>
        {{ c = Conv<pads=[1,1,1,1]>(x, w) y = BatchNormalization(c, {STATS}) }}"""
    (graph,) = manifest_of(folded(text)).steps[0].graphs
    weight = next(tensor for tensor in graph.lost if tensor.name == "w")
    assert weight.prediction is not None
    assert len(weight.data) * 6 < 2 * 64 * 64 * 9


# There is none unless it was asked for


def test_no_manifest_unless_asked_and_the_model_is_the_same_with_one_apart() -> None:
    without = folded(TWO, manifest=None)
    assert without.manifest is None
    assert "bnfold.manifest" not in without.model.metadata_props
    assert as_bytes(folded(TWO).model) == as_bytes(without.model)


def test_an_embedded_manifest_is_the_one_of_the_result() -> None:
    result = folded(TWO, manifest="embed")
    assert result.model.metadata_props["bnfold.manifest"] == manifest_of(result).to_json()


def test_a_fold_that_changes_nothing_adds_nothing_to_the_model_and_undoes_to_it() -> None:
    result = folded(NOTHING, manifest="embed")
    assert as_bytes(result.model) == as_bytes(ir.from_proto(parse(NOTHING)))
    back = bnfold.unfold(result.model, manifest_of(result))
    assert whole(back.model) == whole(parse(NOTHING))
    assert (back.restored, back.manifest) == ((), None)


def test_the_metadata_is_as_it_was_before_the_fold() -> None:
    model = ir.from_proto(parse(CONV))
    model.metadata_props["author"] = "somebody"
    result = bnfold.fold(model, verify=False, manifest="embed")
    assert dict(bnfold.unfold(result.model).model.metadata_props) == {"author": "somebody"}


# Folds one after the other


def chained() -> tuple[bnfold.FoldResult, bnfold.FoldResult]:
    first = folded(TWO, manifest="embed", only="first")
    return first, bnfold.fold(first.model, verify=False)


def test_a_model_that_carries_a_manifest_goes_on_carrying_one() -> None:
    first, second = chained()
    assert len(manifest_of(second).steps) == 2
    back = bnfold.unfold(second.model)
    assert back.restored == ("second",)
    assert whole(back.model) == whole(first.model)
    assert whole(bnfold.unfold(back.model).model) == whole(parse(TWO))


def test_every_fold_is_undone_on_request() -> None:
    back = bnfold.unfold(chained()[1].model, every=True)
    assert back.restored == ("first", "second")
    assert back.manifest is None
    assert whole(back.model) == whole(parse(TWO))


def test_a_manifest_apart_takes_the_carried_one_along() -> None:
    first = folded(TWO, manifest="embed", only="first")
    second = bnfold.fold(first.model, verify=False, manifest="apart")
    assert "bnfold.manifest" not in second.model.metadata_props
    back = bnfold.unfold(second.model, manifest_of(second))
    assert whole(back.model) == whole(first.model)


def test_what_was_partly_undone_and_folded_again_can_be_undone_to_the_original() -> None:
    part = bnfold.unfold(folded(TWO, manifest="embed").model, only="second")
    again = bnfold.fold(part.model, verify=False)
    assert [d.subject.name for d in again.report.folded] == ["second"]
    assert whole(bnfold.unfold(again.model, every=True).model) == whole(parse(TWO))


def test_a_carried_manifest_that_no_longer_fits_is_dropped_and_that_is_said() -> None:
    first = folded(TWO, manifest="embed", only="first")
    weight = first.model.graph.initializers["w_folded"]
    assert weight.const_value is not None
    weight.const_value = ir.Tensor(weight.const_value.numpy() * 2, name="w_folded")
    second = bnfold.fold(first.model, verify=False)
    assert second.manifest is None
    assert "bnfold.manifest" not in second.model.metadata_props
    assert [note for note in second.report.notes if "does not fit it any more and was dropped" in note]


# What it refuses


def damaged(model: ir.Model, edit: Any) -> bnfold.Manifest:
    """The embedded manifest after `edit` of its JSON."""
    document = json.loads(model.metadata_props["bnfold.manifest"])
    edit(document)
    return bnfold.Manifest.from_json(json.dumps(document), where="m.json")


@pytest.mark.parametrize("change", ["weight", "node", "input"])
def test_a_model_that_was_changed_is_refused(change: str) -> None:
    model = folded(TWO, manifest="embed").model
    if change == "weight":
        value = model.graph.initializers["w_folded"]
        assert value.const_value is not None
        value.const_value = ir.Tensor(np.nextafter(value.const_value.numpy(), np.float32(9)), name="w_folded")
    elif change == "node":
        next(node for node in model.graph if node.op_type == "Sigmoid").op_type = "Tanh"
    else:
        model.graph.inputs[0].shape = ir.Shape([1, 3, 8, 8])
    with pytest.raises(bnfold.ModelError, match="belongs to another model, or the model was changed"):
        bnfold.unfold(model)


def test_what_changes_no_number_does_not_make_it_another_model() -> None:
    result = folded(TWO)
    model = onnx.shape_inference.infer_shapes(ir.to_proto(result.model))
    model.doc_string = "with shapes"
    for i, node in enumerate(model.graph.node):
        node.name = f"node{i}"
    back = bnfold.unfold(ir.from_proto(model), result.manifest)
    assert back.restored == ("first", "second")


def test_a_manifest_of_another_fold_is_refused() -> None:
    with pytest.raises(bnfold.ModelError, match="belongs to another model"):
        bnfold.unfold(folded(TWO).model, manifest_of(folded(CONV)))


def test_a_manifest_that_is_cut_off_anywhere_is_refused() -> None:
    text = manifest_of(folded(CONV)).to_json()
    for end in range(0, len(text) - 2, 7):
        with pytest.raises(bnfold.ModelError, match=r"m\.json: this is no JSON, or it is cut off"):
            bnfold.Manifest.from_json(text[:end], where="m.json")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", "no manifest of bnfold"),
        ("{}", "no manifest of bnfold"),
        ('{"schema": "bnfold.manifest"}', "schema version None, and this bnfold reads 1"),
        ('{"schema": "bnfold.manifest", "schema_version": 2}', "schema version 2, and this bnfold reads 1"),
        ('{"schema": "bnfold.manifest", "schema_version": 1}', "damaged"),
        ('{"schema": "bnfold.manifest", "schema_version": 1, "steps": [3]}', "damaged"),
        ("[" * 100_000, "no JSON"),
        ("\0", "no JSON"),
    ],
)
def test_what_is_no_manifest_is_refused_in_one_sentence(text: str, expected: str) -> None:
    with pytest.raises(bnfold.ModelError, match=expected) as caught:
        bnfold.Manifest.from_json(text, where="m.json")
    assert str(caught.value).startswith("m.json: ")


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every entry of a JSON document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(leaf for key, item in items for leaf in leaves(item, (*path, key)))]


@pytest.mark.parametrize("wrong", [None, 10**9, -1, "AAAA", [], True])
def test_a_manifest_with_any_entry_damaged_is_refused_or_restores_the_original(wrong: object) -> None:
    """What is there for people to read may be wrong; no number of the model ever is."""
    model = folded(CONV, manifest="embed").model
    original = fingerprint(ir.from_proto(parse(CONV)))
    document = json.loads(model.metadata_props["bnfold.manifest"])
    refused = 0
    for path in leaves(document)[1:]:
        copy = json.loads(json.dumps(document))
        place = copy
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = wrong
        try:
            back = bnfold.unfold(model, bnfold.Manifest.from_json(json.dumps(copy), where="m.json"))
        except bnfold.ModelError:
            refused += 1
        else:
            assert fingerprint(back.model) == original, path
    assert refused >= 30


def test_numbers_that_were_exchanged_are_found_by_the_fingerprint_of_the_original() -> None:
    model = folded(CONV, manifest="embed").model

    def exchange(document: Any) -> None:
        for tensor in document["steps"][0]["graphs"][0]["tensors"]:
            if tensor["name"] == "beta":
                tensor["data"] = pack(np.float32([1, 2, 3, 4]).tobytes(), 4)

    with pytest.raises(bnfold.ModelError, match="the manifest is damaged"):
        bnfold.unfold(model, damaged(model, exchange))


def test_a_fold_that_could_not_be_undone_would_be_a_bug_and_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest is proven when it is made, not when somebody needs it."""
    right = UndoStep.__init__
    monkeypatch.setattr(
        UndoStep, "__init__", lambda self, folded, original, *rest: right(self, folded, original[::-1], *rest)
    )
    with pytest.raises(InternalError, match="the fold cannot be undone"):
        folded(CONV)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"only": "third"}, "'third' matches no BatchNorm that was folded; there are first, second"),
        ({"only": "("}, "no regular expression"),
        ({"only": "first", "every": True}, "contradict each other"),
    ],
)
def test_a_contradictory_call_is_a_usage_error(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(bnfold.UsageError, match=re.escape(expected)):
        bnfold.unfold(folded(TWO, manifest="embed").model, **options)


def test_without_a_manifest_the_error_says_what_to_do(tmp_path: Path) -> None:
    model = folded(TWO, manifest=None).model
    with pytest.raises(bnfold.UsageError, match="carries no manifest, and none was given; name it with --manifest"):
        bnfold.unfold(model)
    bnfold.save(model, tmp_path / "fused.onnx")
    with pytest.raises(bnfold.UsageError, match=r"nor is there a file fused\.onnx\.manifest\.json beside it"):
        bnfold.unfold(tmp_path / "fused.onnx")
    with pytest.raises(bnfold.UsageError, match="there is no such file"):
        bnfold.unfold(model, tmp_path / "missing.json")


# Files


def test_a_manifest_beside_the_model_is_found(tmp_path: Path) -> None:
    result = folded(TWO)
    bnfold.save(result.model, tmp_path / "fused.onnx")
    (tmp_path / "fused.onnx.manifest.json").write_text(manifest_of(result).to_json(), encoding="utf-8")
    assert whole(bnfold.unfold(tmp_path / "fused.onnx").model) == whole(parse(TWO))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("earlier", [None, "what was there"])
def test_where_the_model_could_not_be_written_the_old_manifest_is_back(
    tmp_path: Path, error: type[BaseException], earlier: str | None
) -> None:
    path = tmp_path / "m.json"
    if earlier is not None:
        path.write_text(earlier, encoding="utf-8")

    def fail() -> None:
        with written(manifest_of(folded(CONV)), path):
            assert read_manifest(path).folds[0].name == "bn"
            raise error

    with pytest.raises(error):
        fail()
    assert (path.read_text(encoding="utf-8") if path.exists() else None) == earlier
    assert [file.name for file in tmp_path.iterdir()] == (["m.json"] if earlier else [])


def test_a_manifest_is_written_whole(tmp_path: Path) -> None:
    manifest = manifest_of(folded(CONV))
    with written(manifest, tmp_path / "m.json"):
        pass
    assert (tmp_path / "m.json").read_text(encoding="utf-8") == manifest.to_json()
    assert [file.name for file in tmp_path.iterdir()] == ["m.json"]
