"""The local test catches what is wrong, names the BatchNorm, and lets right folds pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from onnx_models import PARAMETERS, STATS, parse

import bnfold
from bnfold import localcheck
from bnfold.errors import BnfoldError
from bnfold.folding import FoldPlan, plan
from bnfold.frontends.onnx_graph import OnnxGraph
from bnfold.frontends.onnx_regions import Cutter
from bnfold.frontends.onnx_write import write
from bnfold.localcheck import (
    LocalCheck,
    _check,
    _coarsest,
    _compared,
    _feeds,
    _first_that_runs,
    _ratio,
    _terms,
    local_check,
)
from bnfold.quickcheck import QuickCheck
from bnfold.regions import Region
from bnfold.selftest import SelfTest
from bnfold.verification import Verification

CONV = f"""(float[N,3,8,8] x) => (float[A,B,C,D] y) <float[4,3,3,3] w, float[4] k, {PARAMETERS}>
    {{ c = Conv <pads=[1,1,1,1]> (x, w, k) b = BatchNormalization(c, {STATS}) y = Relu(b) }}"""
PUSHED = f"""(float[N,4,8,8] x) => (float[A,B,C,D] y) <float[4,4,3,3] w, float[4] k, {PARAMETERS}>
    {{ b = BatchNormalization(x, {STATS}) y = Conv(b, w, k) }}"""
POOLED = f"""(float[N,3,8,8] x) => (float[A,B,C,D] y) <float[4,3,3,3] w, float[4] k, {PARAMETERS}>
    {{ c = Conv(x, w, k) d = AveragePool <kernel_shape=[2,2], strides=[2,2]> (c) b = BatchNormalization(d, {STATS})
       y = Relu(b) }}"""
TRANSPOSED = CONV.replace("Conv <pads=[1,1,1,1]>", "ConvTranspose <group=1, strides=[2,2]>").replace(
    "float[4,3,3,3] w", "float[3,4,3,3] w"
)
GEMM = f"""(float[N,5] x) => (float[A,B] y) <float[5,4] w, float[4] k, {PARAMETERS}>
    {{ c = Gemm <alpha=0.5, beta=2.0> (x, w, k) b = BatchNormalization(c, {STATS}) y = Relu(b) }}"""
CASES = {"conv": CONV, "pushed": PUSHED, "pooled": POOLED, "transposed": TRANSPOSED, "gemm": GEMM}


def folded(
    text: str, kind: str = "float", values: Mapping[str, object] | None = None
) -> tuple[ir.Model, ir.Model, OnnxGraph, FoldPlan]:
    before = ir.from_proto(parse(text.replace("float", kind), values=values))
    after = before.clone()
    graph = OnnxGraph(after)
    planned = plan(graph)
    spans = graph.spans()
    write(graph, planned)
    assert len(planned.bench.folds) == 1
    graph.spans = lambda: spans  # type: ignore[method-assign]  # the graph has changed under the reader
    return before, after, graph, planned


def checked(
    text: str, change: Callable[[dict[str, np.ndarray]], None] = lambda _: None, kind: str = "float"
) -> LocalCheck:
    before, after, graph, planned = folded(text, kind)
    initializers = after.graph.initializers
    arrays = {name: np.array(v.const_value.numpy()) for name, v in initializers.items() if v.const_value is not None}
    change(arrays)
    for name, array in arrays.items():
        initializers[name].const_value = ir.Tensor(array, name=name)
    (result,) = local_check(before, after, planned, graph.spans())
    return result


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["float", "float16", "double"])
def test_a_right_fold_is_within_its_bound(case: str, kind: str) -> None:
    result = checked(CASES[case], kind=kind)
    assert result.passed
    assert not result.failed
    assert result.ratio is not None
    # The bound is not so wide that it would take anything; in double it is mostly the arithmetic's own rounding.
    assert (1e-4 if kind == "double" else 0.05) < result.ratio <= 1


def _nudge_one_weight(arrays: dict[str, np.ndarray], step: float) -> None:
    weight = arrays["w_folded"]
    median = np.argsort(np.abs(weight).ravel())[weight.size // 2]
    weight.ravel()[median] += weight.dtype.type(step * np.abs(weight).max())


def _drop_the_bias(arrays: dict[str, np.ndarray]) -> None:
    arrays["k_folded"][:] = 0


def _swap_two_channels(arrays: dict[str, np.ndarray]) -> None:
    arrays["k_folded"][[0, 1]] = arrays["k_folded"][[1, 0]]


def _forget_one_scale(arrays: dict[str, np.ndarray]) -> None:
    arrays["w_folded"][1] *= arrays["w_folded"].dtype.type(1.01)


def _negate(arrays: dict[str, np.ndarray]) -> None:
    arrays["w_folded"][0] *= -1


def _spoil(arrays: dict[str, np.ndarray]) -> None:
    arrays["w_folded"].ravel()[3] = np.nan


WRONGS = {
    "one weight off": lambda a: _nudge_one_weight(a, max(1e-3, 16 * float(np.finfo(a["w_folded"].dtype).eps) / 2)),
    "one weight off the other way": lambda a: _nudge_one_weight(
        a, -max(1e-3, 16 * float(np.finfo(a["w_folded"].dtype).eps) / 2)
    ),
    "no bias": _drop_the_bias,
    "wrong channel": _swap_two_channels,
    "one scale": _forget_one_scale,
    "sign": _negate,
    "NaN": _spoil,
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("wrong", WRONGS)
@pytest.mark.parametrize("kind", ["float", "float16", "double"])
def test_a_wrong_fold_is_caught_and_the_batchnorm_named(case: str, wrong: str, kind: str) -> None:
    result = checked(CASES[case], WRONGS[wrong], kind)
    assert result.failed
    assert result.batchnorms == ("b",)
    verification = Verification((result,), ())
    assert verification.failed
    assert not verification.passed
    assert verification.culprit.startswith(f"the fold of b is wrong at {result.tensor} (")


def test_weights_below_the_smallest_normal_number_are_granted_half_a_step_each_and_not_sixteen() -> None:
    """Beside a corner an impulse meets such weights alone."""
    weight = np.random.default_rng(0).uniform(1e-6, 4e-6, (4, 3, 3, 3))
    weight[:, :, 1, 1] = 1
    values = {"w": weight, "k": [0.0] * 4, "beta": [0.0] * 4, "mean": [0.0] * 4, "gamma": [0.6, 0.7, 1.3, 1.7],
              "var": [1.0] * 4}  # fmt: skip
    before, after, graph, planned = folded(CONV, "float16", values)
    (right,) = local_check(before, after, planned, graph.spans())
    assert right.passed
    value = after.graph.initializers["w_folded"]
    assert value.const_value is not None
    moved = value.const_value.numpy().copy()
    moved[0, 0, 0, 0] += np.float16(16 * 2.0**-24)
    value.const_value = ir.Tensor(moved, name="w_folded")
    (wrong,) = local_check(before, after, planned, graph.spans())
    assert wrong.failed


def test_a_result_of_another_shape_is_caught() -> None:
    def wrong_shape(arrays: dict[str, np.ndarray]) -> None:
        arrays["w_folded"] = arrays["w_folded"][:, :, :2]

    assert checked(CONV, wrong_shape).failed


def test_a_region_that_cannot_be_run_is_neither_passed_nor_failed() -> None:
    before, after, graph, planned = folded(POOLED.replace("float[N,3,8,8]", "float[N,3,H,W]"))
    (result,) = local_check(before, after, planned, graph.spans(), shapes={"x": (1, 3, 2, 2)})
    assert not result.passed
    assert not result.failed
    assert "could not be run by itself" in Verification((result,), ()).doubt


def test_an_error_that_is_no_number_is_a_failure() -> None:
    check = LocalCheck(("b",), float("nan"), "y")
    assert check.failed
    assert not check.passed
    assert not LocalCheck(("b",), None, "").failed


@pytest.mark.parametrize(
    ("before", "after", "ratio"),
    [
        (1.0, 1.25, 0.5), (1.0, 0.75, 0.5), (np.nan, np.nan, 0.0), (np.inf, np.inf, 0.0), (1.0, np.nan, np.inf),
        (np.nan, 1.0, np.inf), (np.inf, -np.inf, np.inf), (1.0, np.inf, np.inf), (np.inf, 1.0, np.inf),
    ],
)  # fmt: skip
def test_the_error_of_an_element_is_in_units_of_its_bound(before: float, after: float, ratio: float) -> None:
    """And an element that is not finite must be of the same kind."""
    one, other = np.array([2.0, before]), np.array([2.0, after])
    assert _ratio(one, other, np.array([0.0, 0.5])) == ratio
    assert _ratio(one, other[:1], np.array([0.0, 0.5])) == np.inf
    assert _ratio(one[:0], other[:0], np.zeros(0)) == 0


@pytest.mark.parametrize(("steps", "right"), [(64, True), (66, False)])
def test_the_rounding_of_the_float64_arithmetic_itself_is_granted_once_for_each_model(steps: int, right: bool) -> None:
    """`u + 2 * (64 + 1) * 2^-53`: one rounding of the stored number, and 65 of the sum of one product, in both."""
    text = "(float[N,4] x) => (float[N,4] y) <float k> { y = Mul(x, k) }".replace("float", "double")
    old, new = (parse(text, values={"k": np.array(1 + by * 2.0**-52)}) for by in (0, steps))
    ratio, tensor = _compared(old, new, ["y"], {"x": (2, 4)}, 0)
    assert tensor == "y"
    assert ratio == pytest.approx(2 * steps / 131, rel=0.01)
    assert (ratio <= 1) is right


@pytest.mark.parametrize(
    ("constants", "terms"),
    [
        ("float[8,5,3,3] w", 120), ("float[5,4] w, float[70] k", 5), ("float[70] k", 1), ("float k", 1),
        ("float[5,4] w, float[9,7] v", 9), ("float[4,1,3,3] w", 36),
    ],
)  # fmt: skip
def test_no_linear_operator_adds_up_more_products_than_are_counted(constants: str, terms: int) -> None:
    """All but the smallest size of a weight: of a Conv at least the input's channels times the kernel."""
    assert _terms(parse(f"(float[2] x) => (float[2] y) <{constants}> {{ y = Abs(x) }}")) == terms


def test_the_output_with_the_largest_error_is_named() -> None:
    text = "(float[N,4] x) => (float[N,4] y, float[N,4] z) <float a, float b> { y = Mul(x, a) z = Mul(x, b) }"
    old, *others = (
        parse(text, values={"a": np.array(a), "b": np.array(b)}) for a, b in ((1, 1), (1.01, 1.1), (1.1, 1.01))
    )
    assert [_compared(old, new, ["y", "z"], {"x": (2, 4)}, 0)[1] for new in others] == ["z", "y"]
    assert _compared(old, old, ["y", "z"], {"x": (2, 4)}, 0) == (0.0, "y")


def test_the_bound_itself_is_allowed_and_a_damaged_weight_must_have_been_seen() -> None:
    seen, unseen = SelfTest(("b",), "w", 3.0), SelfTest(("b",), "w", 0.5)
    found = [LocalCheck(("b",), ratio, "y", tried=tried) for ratio in (1.0, 1.001) for tried in (None, seen, unseen)]
    assert [check.passed for check in found] == [True, True, False, False, False, False]
    assert [check.failed for check in found] == [False, False, False, True, True, True]


def test_a_damaged_weight_is_tried_only_when_asked_for_and_said_where_it_is_not_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, after, graph, planned = folded(CONV)
    (plain,) = local_check(before, after, planned, graph.spans())
    (tried,) = local_check(before, after, planned, graph.spans(), tries=True)
    assert (plain.tried, plain.note) == (None, "")
    assert tried.tried is not None
    assert (tried.tried.batchnorms, tried.tried.weight, tried.tried.seen, tried.note) == (("b",), "w_folded", True, "")
    monkeypatch.setattr(localcheck, "try_itself", lambda names, *_: SelfTest(names, "w_folded", 0.25))
    (blind,) = local_check(before, after, planned, graph.spans(), tries=True)
    assert not blind.passed
    assert blind.note == "the test does not see w_folded when it is damaged (0.25 bounds)"


def test_an_error_where_none_is_allowed_is_beyond_every_bound() -> None:
    assert _ratio(np.zeros(2), np.array([0.0, 1e-300]), np.zeros(2)) == np.inf


@pytest.mark.parametrize(
    ("constants", "unit"),
    [
        ("float16[2] a, float[2] b, double[2] c", 2.0**-11), ("double[2] a", 2.0**-53), ("int64[2] a", 2.0**-24),
        ("float8e4m3fn[2] a, float[2] b", 2.0**-24), ("bfloat16[2] a, float16[2] b", 2.0**-8),
    ],
)  # fmt: skip
def test_the_coarsest_of_the_stored_numbers_sets_the_bound(constants: str, unit: float) -> None:
    """Codes of float8 are whole multiples of their scale, and not rounded."""
    names = [part.split()[1] for part in constants.split(",")]
    model = parse(
        f"(float[2] x) => (float[2] y) <{constants}> {{ y = Abs(x) }}", values={name: [1, 2] for name in names}
    )
    assert _coarsest(model)[0] == unit


def test_inputs_are_of_both_signs_and_then_impulses_at_the_corners() -> None:
    model = parse("(float[N,3,H,W] x, float[N,3] f, float[N,3,L] s, int64[N,4,4] i) => (float[N,3] y) { y = Abs(f) }")
    sizes = {"x": (2, 3, 5, 6), "f": (2, 3), "s": (2, 3, 5), "i": (40, 4, 4)}
    normal, impulses = _feeds(list(model.graph.input), sizes, 0)
    assert {int(place[2]) for place in np.argwhere(impulses["s"])} == {0, 4}
    assert np.count_nonzero(impulses["s"]) == 2 * 3 * 2
    assert (normal["x"] != 0).all()
    assert (normal["x"].min() < 0, normal["x"].max() > 0) == (True, True)
    corners = {tuple(int(k) for k in place[2:]) for place in np.argwhere(impulses["x"])}
    assert corners == {(0, 0), (0, 5), (4, 0), (4, 5)}
    assert np.count_nonzero(impulses["x"]) == 2 * 3 * 4
    assert np.abs(impulses["x"]).max() > 16
    for feeds in (normal, impulses):
        assert (feeds["f"] != 0).all()
        assert np.abs(feeds["f"]).max() < 8  # without an axis for them there are no impulses
        assert set(feeds["i"].ravel()) == {0, 1}


def test_without_a_shape_there_is_no_test() -> None:
    model = parse("(float[N,3] x, float[N,3] z) => (float[N,3] y) { y = Add(x, z) }")
    with pytest.raises(BnfoldError, match="its shape is not known") as raised:
        next(_feeds(list(model.graph.input), {"x": (2, 3)}, 0))
    assert raised.value.where == "z"


PARTS = "(float[2,3] x) => (float[2,3] y) { i = Shape(x) y = Relu(x) }"


def test_whole_numbers_are_not_compared_and_alone_prove_nothing() -> None:
    cutter = Cutter(ir.from_proto(parse(PARTS)))
    both, whole = (Region((), ("x",), outputs, ("b",)) for outputs in (("i", "y"), ("i",)))
    assert _check((cutter, cutter), both, {"x": (2, 3)}, 0, tries=False).tensor == "y"
    with pytest.raises(BnfoldError, match="nothing can be compared"):
        _check((cutter, cutter), whole, {"x": (2, 3)}, 0, tries=False)


def test_the_first_sizes_at_which_a_region_runs_are_enough() -> None:
    cutter = Cutter(ir.from_proto(parse(PARTS)))
    region, good = Region((), ("x",), ("y",), ("b",)), {"x": (2, 3)}
    for choices in ([good, {}], [{}, good]):
        assert _first_that_runs((cutter, cutter), region, choices, 0, tries=False).ratio == 0
    assert _first_that_runs((cutter, cutter), region, [{}], 0, tries=False).ratio is None
    assert _first_that_runs((cutter, cutter), region, [], 0, tries=False).note == "no input sizes are known"


def test_a_fold_that_nobody_reads_is_no_doubt() -> None:
    text = f"""(float[N,3,8,8] x) => (float[N,3,8,8] y) <float[4,3,3,3] w, {PARAMETERS}>
        {{ c = Conv(x, w) b = BatchNormalization(c, {STATS}) y = Abs(x) }}"""
    verification = bnfold.fold(ir.from_proto(parse(text))).report.verification
    assert verification is not None
    (check,) = verification.local
    assert (check.batchnorms, check.ratio, check.note) == (("b",), 0.0, "nothing that anyone reads depends on it")
    assert check.passed


def test_every_region_of_two_folds_is_checked_and_only_the_wrong_one_named() -> None:
    text = f"""(float[N,3,8,8] x) => (float[A,B,C,D] y) <float[4,3,3,3] w, float[4,4,3,3] v, {PARAMETERS}>
        {{ c = Conv(x, w) b = BatchNormalization(c, {STATS}) r = Relu(b) d = Conv(r, v)
           e = BatchNormalization(d, {STATS}) y = Relu(e) }}"""
    before = ir.from_proto(parse(text))
    after = before.clone()
    graph = OnnxGraph(after)
    planned, spans = plan(graph), graph.spans()
    write(graph, planned)
    value = after.graph.initializers["v_folded"]
    assert value.const_value is not None
    value.const_value = ir.Tensor(value.const_value.numpy() * np.float32(1.001), name="v_folded")
    results = list(local_check(before, after, planned, spans))
    assert [(r.batchnorms, r.passed) for r in results] == [(("b",), True), (("e",), False)]
    assert "the fold of e is wrong" in Verification(tuple(results), ()).culprit


def test_linear_operators_that_became_one_without_a_batchnorm_are_checked_and_named() -> None:
    text = f"""(float[N,4] x, float[N,3,8,8] z) => (float[N,4] y, float[A,B,C,D] o)
        <float[4,4] w, float[4,4] v, float[4,3,3,3] k, {PARAMETERS}>
        {{ a = Gemm(x, w) y = Gemm(a, v) c = Conv(z, k) b = BatchNormalization(c, {STATS}) o = Relu(b) }}"""
    told: list[str] = []
    result = bnfold.fold(ir.from_proto(parse(text)), progress=told.append)
    assert result.report.verification is not None
    assert result.report.verification.passed
    assert [check.batchnorms for check in result.report.verification.local] == [("b",), ()]
    assert told[:2] == ["checking the fold of b", "checking the union of two linear operators"]
    wrong = replace(result.report.verification.local[1], ratio=80.0)
    assert Verification((wrong,), ()).culprit == "the union of two linear operators is wrong at y (80 bounds)"
    unknown = replace(wrong, ratio=None, note="no shape")
    assert Verification((unknown,), ()).doubt.startswith("the union of two linear operators could not be run")


def test_the_doubt_is_what_proves_nothing_and_no_other_note() -> None:
    notes = ("Nothing was compared: this check proves nothing.", "float16 was computed in float32 arithmetic.")
    quick = QuickCheck("cpu", (), (), notes, (), None, failed=False, proves=False)
    assert Verification((), (quick,)).doubt == notes[0]
    assert Verification((), (replace(quick, notes=notes[1:]),)).doubt == notes[1]
