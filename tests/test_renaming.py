"""Another tool's model: tensors that go by another's name are compared with the one whose values they have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxsim  # type: ignore[import-untyped]
import pytest
from onnx_models import PARAMETERS, STATS, parse

import bnfold
from bnfold.checking import Check
from bnfold.quickcheck import QuickCheck, quick_check
from bnfold.renaming import _apart, renamed, reuse_note, reused_names
from bnfold.reproduction import FILES, reproduce
from bnfold.verdicts import Repeat

MODEL = Path(__file__).parents[1] / "models" / "digits-darknet.onnx"
BEFORE = f"""(float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w, {PARAMETERS}>
    {{ c = Conv(x, w) b = BatchNormalization(c, {STATS}) r = Relu(b) y = Mul(r, r) }}"""


def folded(text: str = "c = Conv(x, w, k) r = Relu(c) y = Mul(r, r)", off: float = 0.0) -> onnx.ModelProto:
    """The fold of `BEFORE` as another tool writes it, one weight off by `off` of the largest."""
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in parse(BEFORE).graph.initializer}
    scale = arrays["gamma"] / np.sqrt(arrays["var"].astype(np.float64) + 1e-5)
    weight = arrays["w"] * scale[:, None, None, None]
    weight[1, 1, 1, 1] += off * np.abs(weight).max()
    values = {"w": weight, "k": arrays["beta"] - arrays["mean"] * scale, "two": np.array(2.0), "half": np.array(0.5)}
    text = f"""(float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w, float[4] k, float two, float half>
        {{ {text} }}"""
    return parse(text, values=values)


def compared(after: onnx.ModelProto) -> QuickCheck:
    (check,) = bnfold.verify(ir.from_proto(parse(BEFORE)), ir.from_proto(after), deployed=False).quick
    return check


def test_a_conv_that_keeps_its_name_is_compared_with_the_batchnorm() -> None:
    check = compared(folded())
    assert check.passed
    assert {entry.name for entry in check.inner} == {"b", "r"}
    assert reuse_note({"c": "b"}) in check.notes
    assert check.renamed == {"c": "b"}


def test_of_a_wrong_one_the_batchnorm_is_named() -> None:
    check = compared(folded(off=1e-3))
    assert check.failed
    assert check.first_divergence == "b"


def test_a_tensor_that_has_the_values_of_no_other_differs() -> None:
    """Twice as large as the BatchNorm's output: the outputs agree, and nothing shows what the name means."""
    text = "p = Conv(x, w, k) c = Mul(p, two) q = Mul(c, half) r = Relu(q) y = Mul(r, r)"
    check = compared(folded(text))
    assert check.failed
    assert check.first_divergence == "c"
    assert not any("go" in note and "by the name" in note for note in check.notes)


def test_names_that_are_taken_are_not_given_again() -> None:
    text = "c = Conv(x, w, k) b = Mul(c, half) d = Mul(b, two) r = Relu(d) y = Mul(r, r)"
    check = compared(folded(text))
    assert check.failed
    assert {entry.name for entry in check.inner if entry.failed} >= {"b", "c"}


def test_nothing_is_run_again_where_nothing_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    before = parse(BEFORE)
    repeat = Repeat(quick_check(before, before), before, 0)
    monkeypatch.setattr("bnfold.renaming.probe", None)
    assert reused_names(repeat, before, before) == {}


@pytest.mark.parametrize(
    ("factor", "own", "found"),
    [
        (1.24, 0.1, {"a": "b"}),
        (1.26, 0.1, {}),  # further than a quarter of b's scale
        (1.01, 1.06, {"a": "b"}),
        (1.01, 1.04, {}),  # not four times as near as a
    ],
)
def test_another_tensor_must_be_near_and_four_times_nearer(factor: float, own: float, found: dict[str, str]) -> None:
    """The original has b = x and a = `own` times x; in the other model a is `factor` times x."""
    names = "(float[N,4] x) => (float[N,4] y)"
    before = parse(f"{names} <float k, float m> {{ b = Mul(x, m) a = Mul(x, k) y = Mul(a, b) }}",
                   values={"k": np.array(own), "m": np.array(1.0)})  # fmt: skip
    after = parse(f"{names} <float k> {{ a = Mul(x, k) y = Mul(a, a) }}", values={"k": np.array(factor)})
    repeat = Repeat(quick_check(before, after), before, 0)
    assert reused_names(repeat, before, after) == found


def test_two_tensors_never_get_one_name() -> None:
    """Both have the values of b, which the second model lacks; the first of them takes its name."""
    names = "(float[N,4] x) => (float[N,4] y)"
    before = parse(f"{names} {{ c = Abs(x) b = Exp(x) d = Neg(b) y = Add(c, d) }}")
    after = parse(f"{names} {{ c = Exp(x) d = Identity(c) p = Neg(d) q = Abs(x) y = Add(q, p) }}")
    assert reused_names(Repeat(quick_check(before, after), before, 0), before, after) == {"c": "b"}
    (check,) = bnfold.verify(ir.from_proto(before), ir.from_proto(after), deployed=False).quick
    assert check.first_divergence == "d"


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        ([1.0, -2.0], [1.0, -1.0], 0.5),
        ([0.0, 0.0], [0.0, 0.0], np.inf),  # nothing that zeros could be told by
        ([np.inf, 1.0], [np.inf, 1.0], 0.0),
        ([np.nan], [np.nan], np.inf),
        ([], [], np.inf),
        ([1.0], [1.0, 1.0], np.inf),
    ],
)
def test_how_far_tensors_are_apart(one: list[float], other: list[float], apart: float) -> None:
    assert _apart(np.float32(one), np.float32(other)) == apart


def test_tensors_of_other_types_are_never_near() -> None:
    assert _apart(np.float32([1]), np.float16([1])) == _apart(np.float32([1]), np.int64([1])) == np.inf


def test_a_fold_of_bnfold_keeps_names_for_what_they_are() -> None:
    (check,) = Check(("cpu",), None, 0, None, None).quick(ir.from_proto(parse(BEFORE)), ir.from_proto(folded()))
    assert check.failed
    assert check.renamed == {}


def test_bodies_read_the_new_name() -> None:
    text = """(float[N,4] x, bool p) => (float[N,4] y) { c = Abs(x)
        y = If(p) <then_branch = g () => (float[N,4] t) { t = Neg(c) },
                   else_branch = h () => (float[N,4] e) { e = Exp(c) }> }"""
    original = parse(text)
    original.graph.value_info.append(onnx.helper.make_tensor_value_info("c", 1, ["N", 4]))
    model = renamed(original, {"c": "b"})
    assert [value.name for value in model.graph.value_info] == ["b"]
    onnx.checker.check_model(model)
    assert model.graph.node[0].output == ["b"]
    assert [a.g.node[0].input for a in model.graph.node[1].attribute] == [["b"], ["b"]]


def test_what_onnxsim_folds_is_equivalent_and_what_it_would_fold_wrongly_is_not(tmp_path: Path) -> None:
    simplified, _ = onnxsim.simplify(onnx.load(MODEL))
    assert not any(node.op_type == "BatchNormalization" for node in simplified.graph.node)
    (check,) = bnfold.verify(MODEL, ir.from_proto(simplified)).quick
    assert check.passed
    assert "11 tensors of the second model go by the name of one of the first" in " ".join(check.notes)
    tensor = next(t for t in simplified.graph.initializer if len(t.dims) == 4)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0, 0, 1, 1] += 1e-3 * np.abs(values).max()
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    wrong = ir.from_proto(simplified)
    found = bnfold.verify(MODEL, wrong)
    assert found.failed
    assert found.quick[0].first_divergence == "/stem/bn/BatchNormalization_output_0"
    reproduce(MODEL, wrong, found, tmp_path)
    parts = [[node.op_type for node in onnx.load(tmp_path / name).graph.node] for name in FILES[:2]]
    assert parts == [["Conv", "BatchNormalization"], ["Conv"]]
