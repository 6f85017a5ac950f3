"""As deployed, against float64: whose numbers are right, and what TF32 does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from deployed_models import PLAIN, QUANTISED, made, spoilt
from onnx_models import parse
from spoilt_sessions import Change, Setting, opener

import bnfold
from bnfold.comparison import TensorComparison
from bnfold.deployed import Deployed
from bnfold.deploying import _Judged, _worse, deployed_check, settle, tf32_check
from bnfold.frontends.onnx_files import in_memory
from bnfold.judging import Errors
from bnfold.quickcheck import quick_check
from bnfold.rerunning import prepare_rerun
from bnfold.wording_deployed import deployed_line

CANCELS = """(float[n, 64] x) => (float[n, 64] y) <float[1] big = {%s}> { s = Add (x, big) y = Sub (s, big) }"""


def cancelling(big: str) -> Deployed:
    """Without the optimiser y is rounded coarsely, and with it y is moved by one rounding of the sum."""
    before = parse(CANCELS % big)
    check = quick_check(before, before)
    step = float(np.spacing(np.float32(big)))

    def change(setting: Setting) -> Change | None:
        return (lambda _name, values: values + np.float32(step)) if setting.optimised else None

    rerun = prepare_rerun(check, before, before, seed=0, data=None, fixed={}, opener=opener(change))
    return deployed_check(rerun)


def test_a_difference_that_is_rounding_by_float64_is_none() -> None:
    found = cancelling("500000.0")
    assert found.blame == "neither"
    (entry,) = found.folded.comparisons
    assert entry.error > entry.tolerance
    assert entry.note.startswith("rounding: ")


def test_where_the_original_itself_is_far_off_nothing_is_blamed_and_nothing_proven() -> None:
    found = cancelling("100000000.0")
    assert (found.blame, found.failed) == ("neither", False)
    (entry,) = found.folded.comparisons
    assert (entry.compared, entry.passed) == (False, False)
    assert "this proves nothing" in entry.note
    assert deployed_line(found) == "at ENABLE_ALL no output could be compared"


HALF = """(float[n, 1, 64] x) => (float[n, 1, 64] y) <float[1] big = {3000000.0}>
    { h = Cast <to = 10> (x) g = Cast <to = 1> (h) s = Add (g, big) y = Sub (s, big) }"""


@pytest.mark.parametrize(("step", "blame"), [(0.25, "neither"), (2.0, "both")])
def test_float64_is_believed_about_an_output_behind_float16_as_about_one_in_float16(step: float, blame: str) -> None:
    before = parse(HALF)

    def change(setting: Setting) -> Change | None:
        return (lambda _name, values: values + np.float32(step)) if setting.optimised else None

    check = quick_check(before, before)
    found = deployed_check(prepare_rerun(check, before, before, seed=0, data=None, fixed={}, opener=opener(change)))
    assert found.blame == blame
    (entry,) = found.folded.comparisons
    assert entry.compared
    assert entry.oracle is not None


def test_an_output_that_is_computed_through_float16_has_its_scale() -> None:
    before = parse("""(float[n, 8] x) => (float[n, 8] y, float[n, 8] z) {
        h = Cast <to = 10> (x) e = Exp (h) y = Cast <to = 1> (e) z = Sin (x) }""")
    rerun = prepare_rerun(quick_check(before, before), before, before, seed=0, data=None, fixed={})
    assert rerun.accuracy == {"y": "float16", "z": "float32"}


@pytest.mark.parametrize("turned", [False, True])
def test_the_coarsest_type_in_either_model_counts(turned: bool) -> None:
    fine = parse("(float[n, 8] x) => (float[n, 8] y) { y = Sin (x) }")
    coarse = parse("(float[n, 8] x) => (float[n, 8] y) { h = Cast <to = 10> (x) g = Cast <to = 1> (h) y = Sin (g) }")
    before, after = (coarse, fine) if turned else (fine, coarse)
    rerun = prepare_rerun(quick_check(before, after), before, after, seed=0, data=None, fixed={})
    assert rerun.accuracy == {"y": "float16"}


def test_whole_numbers_of_whole_numbers_have_no_accuracy() -> None:
    whole = parse("(float[n, 8] x, int64[n, 8] i) => (float[n, 8] y, int64[n, 8] k) { y = Sin (x) k = Abs (i) }")
    rounds = parse(
        "(float[n, 8] x, int64[n, 8] i) => (float[n, 8] y, int64[n, 8] k) { y = Sin (x) k = Cast <to = 7> (x) }"
    )
    check = quick_check(whole, whole)
    for after in (whole, rounds):
        rerun = prepare_rerun(check, whole, after, seed=0, data=None, fixed={})
        assert rerun.accuracy == {"y": "float32"}
    back = prepare_rerun(check, rounds, whole, seed=0, data=None, fixed={})
    assert back.accuracy == {"y": "float32", "k": "float32"}


STEEP = "(float[n, 8] x) => (float[n, 8] y) <float[1] steep = {1000.0}> { s = Mul (x, steep) y = Sin (s) }"


@pytest.mark.parametrize(("moved", "blame"), [(5e-3, "neither"), (0.2, "both")])
def test_a_difference_that_the_measured_noise_explains_is_none_and_float64_is_not_asked(
    moved: float, blame: str
) -> None:
    before = parse(STEEP)

    def change(setting: Setting) -> Change | None:
        return (lambda _name, values: values + np.float32(moved)) if setting.optimised else None

    check = quick_check(before, before)
    rerun = prepare_rerun(check, before, before, seed=0, data=None, fixed={}, opener=opener(change))
    found = deployed_check(rerun)
    assert (found.blame, found.errors == ()) == (blame, blame == "neither")


@pytest.mark.parametrize(("far", "blame"), [("y", "neither"), ("z", "both")])
def test_of_several_outputs_each_has_its_own_noise(far: str, blame: str) -> None:
    """y is steep and z is not, and the optimiser moves one of them by what only y's noise explains."""
    before = parse("""(float[n, 8] x) => (float[n, 8] y, float[n, 8] z)
        <float[1] steep = {1000.0}> { s = Mul (x, steep) y = Sin (s) z = Neg (x) }""")

    def change(setting: Setting) -> Change | None:
        return (lambda name, values: values + np.float32(5e-3 * (name == far))) if setting.optimised else None

    check = quick_check(before, before)
    rerun = prepare_rerun(check, before, before, seed=0, data=None, fixed={}, opener=opener(change))
    assert deployed_check(rerun).blame == blame


def test_the_noise_is_the_originals() -> None:
    """The second model is as steep as the first is not; what moves both is explained in neither."""
    flat, steep = (
        parse("(float[n, 8] x) => (float[n, 8] y) <float k> { s = Mul (x, k) y = Sin (s) }", values={"k": np.array(k)})
        for k in (1.0, 1000.0)
    )

    def change(setting: Setting) -> Change | None:
        return (lambda _name, values: values + np.float32(5e-3)) if setting.optimised else None

    blames = [
        deployed_check(
            prepare_rerun(quick_check(one, one), one, other, seed=0, data=None, fixed={}, opener=opener(change))
        )
        .original.comparisons[0]
        .failed
        for one, other in ((flat, steep), (steep, flat))
    ]
    assert blames == [True, False]


@pytest.mark.parametrize("of_folded", [False, True])
def test_tf32_is_measured_in_each_model_against_itself_and_within_the_limits_of_its_digits(of_folded: bool) -> None:
    """TF32 stores ten bits, as float16 does; the verdict on both models is the one without it."""

    def change(setting: Setting) -> Change | None:
        moved = setting.tf32 and setting.folded is of_folded
        return (lambda _name, values: values * np.float32(1.02)) if moved else None

    before = made(PLAIN)
    after = in_memory(bnfold.fold(ir.from_proto(before), verify=False).model)
    check = quick_check(before, after)
    found = tf32_check(prepare_rerun(check, before, after, seed=0, data=None, fixed={}, opener=opener(change)))
    moved, still = (found.folded, found.original) if of_folded else (found.original, found.folded)
    assert [entry.error for entry in still.comparisons] == [0]
    assert [entry.error for entry in moved.comparisons] == [pytest.approx(0.02, rel=1e-3)]
    assert [(entry.tolerance, entry.passed) for entry in moved.comparisons] == [(2.0**-5, True)]


def test_with_the_oracle_numbers_are_asked_about_and_codes_and_places_are_not() -> None:
    found = spoilt(QUANTISED, lambda _: None, everything=True)
    assert [errors.name for errors in found.errors] == ["y"]
    both = """(float[n, 6] x) => (float[n, 6] y, int64[n, 1] k) { y = Abs (x) k = ArgMax <axis = 1> (x) }"""
    assert [errors.name for errors in spoilt(both, lambda _: None, everything=True).errors] == ["y"]


def test_the_truth_is_the_originals() -> None:
    """Of a model that is off by a hundredth, whatever the check before this one has said of it."""
    before, after = (parse("(float[n, 4] x) => (float[n, 4] y) <float k> { y = Mul (x, k) }", values={"k": np.array(k)})
                     for k in (1.0, 1.01))  # fmt: skip
    check = quick_check(before, before)
    rerun = prepare_rerun(check, before, after, seed=0, data=None, fixed={}, opener=opener(lambda _: None))
    (errors,) = deployed_check(rerun, everything=True).errors
    assert max(errors.original, errors.original_deployed or 0) < 1e-6
    assert errors.folded == errors.folded_deployed == pytest.approx(0.01, rel=1e-3)


def test_the_worst_run_of_each_level_counts_and_one_that_could_not_be_judged_does_not() -> None:
    low, high = Errors(0.5, 1e-3, 1e-3), Errors(2.0, 2e-3, 2e-3)
    one, other = _Judged(low, (None, high)), _Judged(high, (low, None))
    assert _worse(one, other) == _worse(other, one) == _Judged(high, (low, high))
    assert _worse(_Judged(low, (low, high)), _Judged(low, (high, low))) == _Judged(low, (high, high))
    assert _worse(_Judged(low, (None, None)), _Judged(low, (None, None))).deployed == (None, None)


def test_an_output_is_settled_by_what_float64_says_of_it() -> None:
    right = TensorComparison("y", (1,), "float32", 1e-5, 1.0, 1e-3, passed=True)
    wrong = replace(right, error=0.1, passed=False)
    rounding, fault = Errors(0.5, 1e-3, 1e-3), Errors(2.0, 1e-3, 1e-2)
    unknown = Errors(2.0, 0.3, 1e-2, believed=False)
    assert [settle(entry, None) for entry in (right, wrong)] == [right, wrong]
    assert settle(right, rounding) == replace(right, oracle=rounding)
    assert settle(right, fault) == replace(right, oracle=fault)
    assert settle(right, unknown) == right
    assert settle(wrong, unknown).compared is False
    assert (settle(wrong, rounding).passed, settle(wrong, rounding).oracle) == (True, rounding)
    assert (settle(wrong, replace(rounding, ratio=1.0)).passed, settle(wrong, fault).passed) == (True, False)
    assert settle(wrong, fault).note == "2 times what the float64 oracle allows"


def test_where_one_model_cannot_be_run_the_other_is_still_set_against_float64() -> None:
    found = spoilt(
        PLAIN, lambda setting: "no kernel" if setting.optimised and setting.folded else None, everything=True
    )
    (errors,) = found.errors
    assert errors.folded_deployed is None
    assert errors.original_deployed is not None
