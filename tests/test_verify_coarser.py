"""`verify` of a model that another tool has stored in float16: wider limits, which are said, and no type to blame."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from cli_run import Run
from onnx_models import PARAMETERS, STATS, parse
from spoilt_sessions import opener
from torch import nn

import bnfold
from bnfold import torch_deployed
from bnfold.comparison import TensorComparison
from bnfold.frontends.onnx_files import in_memory
from bnfold.quickcheck import QuickCheck, quick_check
from bnfold.staging import shared_values
from bnfold.wording import quick_line

#: Inputs and outputs stay in float32, and the names stay, as converters leave them.
FLOAT32 = f"""(float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w, {PARAMETERS}>
    {{ c = Conv(x, w) b = BatchNormalization(c, {STATS}) y = Relu(b) }}"""
FLOAT16 = f"""(float[N,3,8,8] x) => (float[N,4,6,6] y)
    <float16[4,3,3,3] w, float16[4] gamma, float16[4] beta, float16[4] mean, float16[4] var>
    {{ h = Cast <to=10> (x) c = Conv(h, w) b = BatchNormalization(c, {STATS}) r = Relu(b) y = Cast <to=1> (r) }}"""


def both(off: float = 0.0) -> tuple[ir.Model, ir.Model]:
    """A model in float32, and the same in float16 with a beta that is off by a part of it."""
    before = parse(FLOAT32)
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in before.graph.initializer}
    after = parse(FLOAT16, values=values | {"beta": values["beta"] * (1 + off)})
    return ir.from_proto(before), ir.from_proto(after)


def test_a_model_that_was_stored_in_float16_agrees_and_the_report_says_how_much_is_allowed() -> None:
    checked = bnfold.verify(*both())
    assert checked.passed
    (check,) = checked.quick
    assert {entry.name: entry.tolerance for entry in check.inner} == {"c": 2.0**-5, "b": 2.0**-5}
    assert not any("cannot be judged" in note for note in check.notes)
    (note,) = (note for note in check.notes if note.startswith("The second model computes"))
    assert note == (
        "The second model computes 3 tensors through float16, which the first does not: differences up to 0.031 of"
        " their scale are allowed."
    )


def test_a_stage_ends_in_values_of_the_same_type_alone() -> None:
    before, after = map(in_memory, both())
    check = quick_check(before, after)
    assert shared_values(check, before, after) == ["y"]
    assert shared_values(quick_check(before, before), before, before) == ["c", "b", "y"]


def test_what_is_off_by_more_than_float16_allows_fails_where_it_is_wrong() -> None:
    checked = bnfold.verify(*both(off=0.3))
    assert checked.failed
    assert checked.quick[0].first_divergence == "b"


def test_a_model_that_was_stored_in_float32_is_judged_by_what_it_was() -> None:
    coarse, fine = reversed(both()), reversed(both(off=0.3))
    (check,) = bnfold.verify(*coarse).quick
    assert check.passed
    assert {entry.tolerance for entry in (*check.inner, *check.comparisons)} == {2.0**-5}
    assert not any(note.startswith("The second model computes") for note in check.notes)
    assert bnfold.verify(*fine).failed


def test_the_type_of_an_output_is_a_promise() -> None:
    before = parse("(float[N,4] x) => (float[N,4] y) { y = Abs(x) }")
    after = parse("(float[N,4] x) => (float16[N,4] y) { a = Abs(x) y = Cast <to=10> (a) }")
    checked = bnfold.verify(ir.from_proto(before), ir.from_proto(after))
    assert checked.failed
    assert checked.quick[0].comparisons[0].note == "the type changed from float32 to float16"
    assert checked.culprit == "the first tensor that differs on cpu is y: the type changed from float32 to float16"
    assert quick_line(checked.quick[0]).startswith("1 output, 0 inner tensors, largest error infinite; x 2x4")


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("(float[N,4] x) => (float[N,4] y)", "(float16[N,4] x) => (float16[N,4] y)", "x: the input changed its type"),
        ("(float[N,4] x) => (float[N,4] y)", "(float[N,4] z) => (float[N,4] y)", "x: the input is gone"),
        ("(float[N,4] x) => (float[N,4] y)", "(float[N,4] x) => (float[N,4] z)", "y: the output is gone"),
    ],
)
def test_what_cannot_be_compared_says_why(before: str, after: str, says: str, run: Run, tmp_path: Path) -> None:
    for name, text in (("a", before), ("b", after)):
        given, made = text.replace(")", "]").split("] ")[1][0], text[-2]
        onnx.save(parse(f"{text} {{ {made} = Abs({given}) }}"), tmp_path / f"{name}.onnx")
    done = run("verify", tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert done.code == 1
    assert done.out.endswith(f"the first tensor that differs on cpu is {says}\n")
    assert f"first at {says}" in " ".join(done.err.split())
    assert "largest error infinite; nothing was run" in " ".join(done.err.split())


def test_an_inner_tensor_that_becomes_a_whole_number_is_another() -> None:
    before = parse("(float[N,4] x) => (float[N,4] y) { a = Abs(x) y = Neg(a) }")
    after = parse("(float[N,4] x) => (float[N,4] y) { a = Cast <to=6> (x) b = Abs(x) y = Neg(b) }")
    (check,) = bnfold.verify(ir.from_proto(before), ir.from_proto(after)).quick
    assert {entry.name: entry.note for entry in check.inner} == {"a": "the type changed from float32 to int32"}
    assert check.failed


def test_the_outcome_of_a_decision_in_another_type_is_not_fed() -> None:
    """The largest numbers of a row, in float16 in the second model alone, and what follows them."""
    texts = (
        "(float[N,8] x) => (float[N,2] y, float[N,8] z) <int64[1] k> { v, i = TopK(x, k) y = Abs(v) z = Neg(x) }",
        """(float[N,8] x) => (float[N,2] y, float[N,8] z) <int64[1] k>
            { h = Cast <to=10> (x) v, i = TopK(h, k) a = Abs(v) y = Cast <to=1> (a) z = Neg(x) }""",
    )
    before, after = (ir.from_proto(parse(text, values={"k": np.array([2])})) for text in texts)
    checked = bnfold.verify(before, after)
    assert not checked.failed
    assert any("follows a decision that could not be held" in note for note in checked.quick[0].notes)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()


def stored(net: nn.Module, text: str = FLOAT16, off: float = 0.0) -> ir.Model:
    """The network's numbers in one of the models, with a beta that is off by so much."""
    conv, norm = net.get_submodule("0"), net.get_submodule("1")
    state = {
        "w": conv.weight, "gamma": norm.weight, "beta": norm.bias + off, "mean": norm.running_mean - conv.bias,
        "var": norm.running_var,
    }  # fmt: skip
    return ir.from_proto(parse(text, values={name: np.asarray(tensor.detach()) for name, tensor in state.items()}))


@pytest.mark.parametrize(("off", "passes"), [(0.0, True), (0.3, False)])
def test_a_module_and_its_onnx_model_in_float16(off: float, passes: bool) -> None:
    net, example = small(), (torch.randn(2, 3, 8, 8),)
    (check,) = bnfold.verify(net, stored(net, off=off), example_inputs=example).quick
    assert check.passed is passes
    assert any(note.startswith("The second model computes 1 tensor through float16") for note in check.notes)
    (fine,) = bnfold.verify(net, stored(net, FLOAT32), example_inputs=example).quick
    assert not any(note.startswith("The second model computes") for note in fine.notes)


@pytest.mark.parametrize(("moved", "wrong"), [(0.01, False), (0.3, True)])
def test_as_deployed_a_model_in_float16_may_move_by_what_float16_allows(
    monkeypatch: pytest.MonkeyPatch, moved: float, wrong: bool
) -> None:
    asked: list[object] = []

    def judge(*given: object) -> None:
        asked.append(given[-1])

    monkeypatch.setattr(
        torch_deployed,
        "open_session",
        opener(lambda to: (lambda _name, values: values * np.float32(1 + moved)) if to.optimised else None),
    )
    monkeypatch.setattr(torch_deployed, "verdict_on", judge)
    example = (torch.randn(2, 3, 8, 8),)
    (check,) = bnfold.verify(small(), stored(small()), example_inputs=example).quick
    assert check.passed  # without the optimiser
    assert check.deployed is not None
    assert check.deployed.failed is wrong
    assert set(asked) == ({"float16"} if wrong else set())


def test_a_model_that_cannot_be_run_has_no_limits_to_speak_of() -> None:
    text = FLOAT16.replace("[N,3,8,8] x", "[N,5,8,8] x").replace("[4,3,3,3]", "[4,5,3,3]")
    (check,) = bnfold.verify(small(), ir.from_proto(parse(text)), example_inputs=(torch.randn(2, 3, 8, 8),)).quick
    assert not check.passed
    assert not any(note.startswith("The second model computes") for note in check.notes)


@pytest.mark.parametrize(("note", "error", "said"), [("gone", np.inf, "y: gone"), ("", np.inf, "y"), ("far", 0.1, "y")])
def test_the_first_difference_has_a_reason_only_where_nothing_can_be_compared(
    note: str, error: float, said: str
) -> None:
    """Nor another tensor's, or that of a run in which it passed."""
    first = TensorComparison("y", (1,), "float32", error, 1.0, 1e-3, note=note)
    entries = (replace(first, name="z", note="new"), replace(first, passed=True, error=0.0), first)
    check = QuickCheck("cpu", entries, (), (), (), "y", failed=True, proves=True)
    assert check.first_difference == said
    passed = replace(check, comparisons=(), first_divergence=None, failed=False)
    assert passed.first_difference == ""
