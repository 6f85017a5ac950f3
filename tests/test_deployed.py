"""Models as people deploy them, at ORT_ENABLE_ALL: the optimiser is blamed for what it does, and nothing is hidden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cli_run import MODEL, Run
from deployed_models import PLAIN, QUANTISED, ROWS, STUCK_ROWS, deployed_of, fold, made, spoilt
from onnx_models import PARAMETERS, STATS, parse
from spoilt_sessions import doubled, folded_alone, opener, use

import bnfold
from bnfold.data_sources import as_source
from bnfold.deploying import deployed_check
from bnfold.errors import VerificationError
from bnfold.frontends.onnx_files import in_memory
from bnfold.quickcheck import quick_check
from bnfold.report.json_report import report_json
from bnfold.rerunning import compare_codes, prepare_rerun
from bnfold.runtime import open_session
from bnfold.wording import verified
from bnfold.wording_deployed import deployed_line, errors_line


def test_what_the_optimiser_gets_wrong_in_the_original_alone_is_blamed_on_it_and_the_fold_passes() -> None:
    result = fold(ROWS)
    found = deployed_of(result.report.verification)
    assert (found.blame, found.lost, found.failed) == ("original", (), False)
    assert result.report.verification is not None
    assert result.report.verification.passed
    assert found.original.worst is not None
    assert found.original.worst.error > 0.1
    assert found.between.differs  # what a user sees change
    assert "runtime's own optimiser gets the original wrong (y is off by" in deployed_line(found)
    assert "and the folded model right" in deployed_line(found)


def test_all_four_results_are_set_against_float64() -> None:
    (errors,) = deployed_of(fold(ROWS).report.verification).errors
    assert errors.name == "y"
    assert errors.original_deployed is not None
    assert errors.original_deployed > 0.1
    assert errors.folded_deployed is not None
    assert max(errors.original, errors.folded, errors.folded_deployed) < 1e-5
    assert "as deployed by" in errors_line(errors)


def test_where_nothing_is_in_doubt_float64_is_asked_with_the_oracle_only() -> None:
    assert deployed_of(fold(PLAIN).report.verification).errors == ()
    (errors,) = deployed_of(fold(PLAIN, oracle=True).report.verification).errors
    assert errors.folded_deployed is not None
    assert 0 < errors.folded_deployed < 1e-5


def test_what_the_optimiser_gets_wrong_in_both_is_said_and_fails_nothing() -> None:
    result = fold(STUCK_ROWS)
    found = deployed_of(result.report.verification)
    assert result.report.kept
    assert (found.blame, found.failed) == ("both", False)
    assert not found.between.differs
    assert deployed_line(found).endswith("run them with it off, ORT_DISABLE_ALL")
    assert verified(result.report.verification).endswith("the runtime's own optimiser gets both models wrong")


def test_an_ordinary_model_is_as_verified() -> None:
    found = deployed_of(fold(PLAIN).report.verification)
    assert (found.blame, found.failed, found.trouble, found.notes) == ("neither", False, "", ())
    for moved in (found.original, found.folded, found.between):
        assert [entry.name for entry in moved.comparisons] == ["y"]
        assert moved.worst is not None
        assert moved.worst.error < 1e-5
    assert "the optimiser moves the original by" in deployed_line(found)
    assert verified(fold(PLAIN).report.verification) == "verified on CPUExecutionProvider"


def test_the_models_are_optimised_as_whole_as_deployed_ones_are() -> None:
    """No inner tensor is asked for, which would keep onnxruntime from fusing what computes it."""
    before = parse(PLAIN)
    check = quick_check(before, before)
    rerun = prepare_rerun(check, before, before, seed=0, data=None, fixed={})
    assert [value.name for value in rerun.models[0].graph.output] == ["y"]


def test_what_the_optimiser_gets_wrong_in_the_folded_model_alone_fails_and_names_the_optimiser(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(monkeypatch, folded_alone(doubled))
    with pytest.raises(
        VerificationError, match="gets y of the folded model wrong, though not of the original"
    ) as caught:
        fold(PLAIN)
    said = str(caught.value)
    assert "the fold is right with the optimiser off" in said
    assert "deploy at ORT_DISABLE_ALL and fold with --no-deployed" in said
    assert "differs" not in said
    report = caught.value.report
    assert isinstance(report, bnfold.Report)
    assert report.verification is not None
    assert (report.verification.failed, report.verification.differs) == (True, False)
    assert (deployed_of(report.verification).blame, deployed_of(report.verification).lost) == ("folded", ("y",))
    assert fold(PLAIN, deployed=False).report.verification is not None


#: onnxruntime rounds the activations of a weight in 8 bits to 8 bits, too, but only where the Gemm has no beta.
GEMM = f"""(float[n, 5] x) => (float[n, 4] y) <int8[5, 4] q, float s = {{0.01}}, float[4] k, {PARAMETERS}> {{
    w = DequantizeLinear (q, s) c = Gemm <beta = 0.25> (x, w, k) y = BatchNormalization (c, {STATS}) }}"""


def test_a_fold_that_lets_the_optimiser_round_activations_to_8_bits_is_not_passed(tmp_path: Path) -> None:
    original = ir.from_proto(parse(GEMM, values={"q": np.random.default_rng(0).integers(-127, 128, (5, 4))}))
    folded = bnfold.fold(original, deployed=False).model
    open_session(in_memory(folded), optimised=True, writes=tmp_path / "optimised.onnx")
    if "MatMulNBits" not in [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]:
        pytest.skip("this onnxruntime leaves the activations as they are")
    with pytest.raises(VerificationError, match="gets y of the folded model wrong, though not of the original"):
        bnfold.fold(original)
    found = deployed_of(bnfold.verify(original, folded))
    (errors,) = found.errors
    assert found.blame == "folded"
    assert errors.original_deployed is not None
    assert errors.folded_deployed is not None
    assert max(errors.original, errors.folded, errors.original_deployed) < 1e-6
    assert errors.folded_deployed > 1e-4


def test_verify_says_the_same_of_two_files(monkeypatch: pytest.MonkeyPatch) -> None:
    folded = fold(PLAIN, verify=False).model
    use(monkeypatch, folded_alone(doubled))
    found = bnfold.verify(ir.from_proto(parse(PLAIN)), folded)
    assert (found.passed, found.failed, found.differs) == (False, True, False)
    assert "gets y of the folded model wrong" in found.culprit
    unasked = bnfold.verify(ir.from_proto(parse(PLAIN)), folded, deployed=False)
    assert unasked.passed
    assert unasked.quick[0].deployed is None


def test_a_model_that_the_optimiser_cannot_load_is_told_from_one_that_was_so_before() -> None:
    gone = "no such kernel"
    folded = spoilt(PLAIN, folded_alone(gone))
    assert (folded.blame, folded.failed) == ("folded", True)
    assert folded.failure.endswith("and the folded model not: no such kernel")
    both = spoilt(PLAIN, lambda setting: gone if setting.optimised else None)
    assert (both.blame, both.failed) == ("both", False)
    original = spoilt(PLAIN, lambda setting: gone if setting.optimised and not setting.folded else None)
    assert (original.blame, original.failed) == ("original", False)
    assert "no such kernel" in deployed_line(original)


def test_where_the_outputs_alone_cannot_be_run_the_report_says_so_and_the_verdict_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(monkeypatch, lambda setting: "out of memory" if not setting.optimised else None)
    found = fold(PLAIN).report.verification
    assert found is not None
    assert found.passed
    assert deployed_line(deployed_of(found)) == (
        "not compared at ENABLE_ALL: the outputs alone cannot be run: out of memory"
    )


#: y is x, but for the rounding of a sum of this size.
def test_only_what_is_right_in_the_original_can_be_lost() -> None:
    """Both wrong: the folded model is no worse off than the original was."""
    found = spoilt(PLAIN, lambda setting: doubled if setting.optimised else None)
    assert (found.blame, found.lost, found.failed) == ("both", (), False)


def test_a_quantised_model_is_compared_in_the_integers_that_it_is_deployed_with(tmp_path: Path) -> None:
    before = made(QUANTISED)
    after = in_memory(fold(QUANTISED).model)
    check = quick_check(before, after)
    rerun = prepare_rerun(check, before, after, seed=0, data=None, fixed={})
    assert rerun.names == ("y", "i as computed", "o as computed")
    open_session(rerun.models[1], optimised=True, writes=tmp_path / "optimised.onnx")
    assert "QLinearConv" in [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    found = deployed_check(rerun)
    assert found.blame == "neither"
    assert {entry.name: entry.tolerance for entry in found.folded.comparisons}["o"] == 1


@pytest.mark.parametrize(("steps", "blame"), [(1, "neither"), (2, "folded")])
def test_a_code_may_be_off_by_one_step_and_no_more(steps: int, blame: str) -> None:
    def change(name: str, values: Any) -> Any:
        return (values.astype(int) + steps).clip(0, 255).astype(values.dtype) if name.startswith("o") else values

    found = spoilt(QUANTISED, folded_alone(change))
    assert (found.blame, found.failed) == (blame, blame == "folded")
    assert found.lost == (() if blame == "neither" else ("o",))


@pytest.mark.parametrize(
    ("before", "after", "error"),
    [
        (np.array([3, 250], np.uint8), np.array([4, 250], np.uint8), 1.0),
        (np.array([-128, 127], np.int8), np.array([127, 127], np.int8), 255.0),
        (np.array([3], np.uint8), np.array([3], np.int8), np.inf),
        (np.array([3], np.uint8), np.array([3, 4], np.uint8), np.inf),
    ],
)
def test_codes_are_as_far_apart_as_their_numbers(before: Any, after: Any, error: float) -> None:
    found = compare_codes("o", before, after)
    assert (found.error, found.passed) == (error, error <= 1)


def test_codes_say_where_they_are_farthest_apart_and_none_prove_nothing() -> None:
    before = np.array([[3, 250], [7, 8]], np.uint8)
    found = compare_codes("o", before, before + np.array([[0, 1], [0, 4]], np.uint8))
    assert (found.name, found.index, found.error, found.tolerance, found.passed) == ("o", (1, 1), 4, 1, False)
    same = compare_codes("o", before, before)
    assert (same.index, same.error, same.passed, same.compared) == ((), 0, True, True)
    none = compare_codes("o", before[:0], before[:0])
    assert (none.compared, none.passed, none.failed) == (False, False, False)


def test_codes_that_are_small_floats_are_equal_or_not() -> None:
    before = np.array([1, 2], ml_dtypes.float8_e4m3fn)
    assert compare_codes("o", before, before.copy()).passed
    assert compare_codes("o", before, np.array([1, 2.25], ml_dtypes.float8_e4m3fn)).error == np.inf


DECIDES = f"""(float[n, 6] x) => (float[n, 2] values, int64[n, 2] places)
    <float[6, 4] w, int64[1] k = {{2}}, {PARAMETERS}> {{
    m = MatMul (x, w) b = BatchNormalization (m, {STATS}) values, places = TopK (b, k) }}"""


def test_what_a_decision_reads_is_compared_in_its_place() -> None:
    found = spoilt(DECIDES, folded_alone(doubled))
    assert found.lost == ("b",)
    assert deployed_of(fold(DECIDES).report.verification).blame == "neither"


FOLLOWS = f"""(float[n, 6] x) => (float[n, 2] y) <float[6, 4] w, int64[1] k = {{2}}, {PARAMETERS}> {{
    m = MatMul (x, w) b = BatchNormalization (m, {STATS}) values, places = TopK (b, k) y = Sqrt (values) }}"""


def test_what_follows_a_decision_is_compared_given_the_same_one() -> None:
    text = FOLLOWS.replace("Sqrt", "Sigmoid")
    only_behind = spoilt(text, folded_alone(lambda name, values: doubled(name, values) if name == "y" else values))
    assert only_behind.lost == ("y",)


def test_the_callers_data_is_run_as_deployed_as_well() -> None:
    """The fault here shows on numbers that nobody would make up."""

    def change(_name: str, values: Any) -> Any:
        return values * 2 if values.max() > 1e4 else values

    before = parse(PLAIN)
    after = in_memory(bnfold.fold(ir.from_proto(before), verify=False).model)
    data = [np.full((1, 3, 8, 8), size, np.float32) + np.eye(8, dtype=np.float32) for size in (1.0, 1e5)]
    for given, lost in ((None, ()), (data, ("y",))):
        source = None if given is None else as_source(given, bnfold_inputs(before))
        check = quick_check(before, after, data=source)
        rerun = prepare_rerun(check, before, after, seed=0, data=source, fixed={}, opener=opener(folded_alone(change)))
        assert len(rerun.feeds) == (1 if given is None else 3)
        assert deployed_check(rerun).lost == lost


def bnfold_inputs(model: onnx.ModelProto) -> Any:
    from bnfold.data import read_inputs  # noqa: PLC0415

    return read_inputs(model)


def test_models_of_other_interfaces_are_not_run() -> None:
    other = PLAIN.replace("float[n, 4, p, q] y", "float[n, 4, p, q] z").replace("y = Relu", "z = Relu")
    found = bnfold.verify(ir.from_proto(parse(PLAIN)), ir.from_proto(parse(other)))
    assert found.differs
    assert found.quick[0].deployed is None


def test_the_json_has_all_comparisons_and_the_blame() -> None:
    tree = json.loads(report_json(fold(ROWS).report))["verification"]["end_to_end"][0]["deployed"]
    assert (tree["level"], tree["blame"], tree["failed"], tree["trouble"]) == ("ENABLE_ALL", "original", False, "")
    assert [tree[name]["outputs"][0]["passed"] for name in ("original", "folded", "between")] == [False, True, False]
    assert tree["errors"][0]["original_deployed"] > 0.1


def test_the_command_says_who_gets_the_original_wrong_and_exits_as_verified(run: Run, tmp_path: Path) -> None:
    onnx.save(parse(ROWS), tmp_path / "rows.onnx")
    for call in (("rows.onnx", "-o", "fused.onnx"), ("verify", "rows.onnx", "fused.onnx")):
        found = run(*(str(tmp_path / word) if word.endswith(".onnx") else word for word in call))
        assert found.code == 0
        assert "runtime's own optimiser gets the original wrong" in " ".join(found.err.split())
        assert found.out.rstrip().endswith(
            "on CPUExecutionProvider; as deployed (ENABLE_ALL) the runtime's own optimiser gets the original wrong"
        )


def test_the_command_writes_nothing_that_is_wrong_as_deployed_unless_told_to(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, folded_alone(doubled))
    output, page = tmp_path / "fused.onnx", tmp_path / "report.html"
    found = run(MODEL, "-o", output, "--report", page, "--report", tmp_path / "report.md")
    assert (found.code, output.exists()) == (1, False)
    said = " ".join(found.err.split())
    assert "optimiser on cpu" not in said
    assert "gets logits of the folded model wrong, though not of the original" in said
    assert "Traceback" not in found.err
    assert "Equivalent, but wrong as deployed" in page.read_text(encoding="utf-8")
    assert "**Optimiser: as deployed" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert run(MODEL, "-o", output, "--no-deployed").code == 0
    checked = run("verify", MODEL, output, "--reproduce", tmp_path / "pair")
    assert (checked.code, (tmp_path / "pair").exists()) == (1, False)
    assert run("verify", MODEL, output, "--no-deployed", "--json").code == 0
