from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from browser import open_page
from cli_run import MODEL, Run, assert_one_sentence, names, written
from onnx_models import PARAMETERS, STATS, parse
from test_report_schema import schema

import bnfold
from bnfold import benchmarking
from bnfold.pages.page import Page
from bnfold.pages.provenance import provenance_of
from bnfold.pages.render import as_html, as_markdown
from bnfold.report.bench_report import BenchReport, Measured
from bnfold.stopwatch import SHORTEST, WARM, Timing, duel
from bnfold.wording import bench_notes, benched, seconds

ONE = Timing(1.0, 0.9, 1.1)


class Clock:
    """Time that passes only when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def work(self, name: str, cost: float) -> Callable[[], None]:
        def run() -> None:
            self.now += cost
            self.calls.append(name)

        return run

    def __call__(self) -> float:
        return self.now


def test_the_ratio_is_that_of_the_costs() -> None:
    clock = Clock()
    found = duel(clock.work("a", 0.5), clock.work("b", 0.25), 4, clock=clock)
    assert found.first == Timing(0.5, 0.5, 0.5)
    assert found.second == Timing(0.25, 0.25, 0.25)
    assert found.ratio == Timing(0.5, 0.5, 0.5)


def test_the_two_halves_change_places_and_warm_up_first() -> None:
    clock = Clock()
    duel(clock.work("a", 1.0), clock.work("b", 1.0), 3, clock=clock)
    assert "".join(clock.calls) == "a" * WARM + "b" * WARM + "abbaab"


def test_a_short_function_is_repeated_until_it_can_be_measured() -> None:
    clock = Clock()
    found = duel(clock.work("a", SHORTEST / 8), clock.work("b", 1.0), 1, clock=clock)
    assert clock.calls.count("a") == WARM + 8
    assert found.first.median == pytest.approx(SHORTEST / 8)


def test_slow_drift_of_the_machine_leaves_the_ratio_alone() -> None:
    clock = Clock()

    def work(cost: float) -> Callable[[], None]:
        def run() -> None:
            clock.now += cost * (1 + clock.now / 50)  # twice as slow after fifty seconds

        return run

    found = duel(work(0.2), work(0.1), 41, clock=clock)
    assert found.ratio.median == pytest.approx(0.5, rel=0.02)
    assert found.first.high / found.first.low > 1.1


def test_both_levels_are_measured_and_the_batchnorms_that_are_run_are_counted() -> None:
    fused = bnfold.fold(MODEL, verify=False).model
    found = bnfold.benchmark(MODEL, fused, rounds=1)
    assert [entry.level for entry in found.measured] == ["DISABLE_ALL", "ENABLE_ALL"]
    assert [entry.batchnorms for entry in found.measured] == [(11, 0), (0, 0)]
    assert found.inputs == {"images": (1, 1, 8, 8)}
    assert found.samples == 1
    assert all(entry.before.median > 0 < entry.after.median for entry in found.measured)


def test_batchnorms_in_bodies_are_counted() -> None:
    body = "then () => (float[N,2,4] t) { t = BatchNormalization(x, g, g, g, g) }"
    other = "else () => (float[N,2,4] e) { e = Identity(x) }"
    model = parse(
        "(float[N,2,4] x, bool c) => (float[N,2,4] y) <float[2] g = {1, 1}>"
        f"{{ y = If<then_branch = {body}, else_branch = {other}>(c) }}"
    )
    found = bnfold.benchmark(ir.from_proto(model), ir.from_proto(model), rounds=1)
    assert found.measured[0].batchnorms == (1, 1)


@pytest.mark.parametrize(("rounds", "threads"), [(0, 0), (1, -1)])
def test_a_measurement_without_rounds_or_threads_is_refused(rounds: int, threads: int) -> None:
    with pytest.raises(bnfold.UsageError, match="at least one round"):
        bnfold.benchmark(MODEL, MODEL, rounds=rounds, threads=threads)


def test_the_command_prints_json_that_fits_its_schema(run: Run) -> None:
    outcome = run("bench", MODEL, MODEL, "--rounds", "1", "--threads", "1", "--json")
    tree = json.loads(outcome.out)
    schema("bench-1").validate(tree)
    assert outcome.code == 0
    assert (tree["before"], tree["threads"], tree["rounds"]) == ("digits-darknet.onnx", 1, 1)


def test_the_command_shows_a_table_in_80_columns(run: Run) -> None:
    outcome = run("bench", MODEL, MODEL, "--rounds", "1", "--shape", "images=2x1x8x8")
    assert outcome.code == 0
    assert max(map(len, outcome.err.splitlines())) <= 80
    assert "ENABLE_ALL" in outcome.err
    assert "images 2x1x8x8, 1 round in turns" in outcome.err
    assert outcome.out.count(" of the time of digits-darknet.onnx at ") == 2


def test_a_model_that_cannot_be_run_is_one_sentence(run: Run, tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "far" : 1]>
    g (float[1, 2] x) => (float[1, 2] y) { y = far.Away (x) }"""
    model = written(tmp_path, text)
    outcome = run("bench", model, model, "--rounds", "1")
    assert outcome.code == 3
    assert_one_sentence(outcome.err, "Away")
    assert names(tmp_path) == ["model.onnx"]


def made_up(low: float, high: float) -> BenchReport:
    ratio = Timing((low + high) / 2, low, high)
    return BenchReport("a", "b", {"x": (4, 2)}, 0, 7, (Measured("cpu", "ENABLE_ALL", ONE, ONE, ratio, (5, 0)),))


def test_a_difference_within_the_spread_is_said_to_be_one_and_a_larger_one_is_not() -> None:
    assert any("within the spread" in note for note in bench_notes(made_up(0.9, 1.1)))
    assert not any("within the spread" in note for note in bench_notes(made_up(0.8, 0.9)))
    assert any("5 are left of a, 0 of b" in note for note in bench_notes(made_up(0.9, 1.1)))
    assert benched(made_up(0.5, 0.7)) == "0.600 of the time of a at ENABLE_ALL on cpu"


def test_a_page_shows_the_figures_and_a_picture(tmp_path: Path) -> None:
    page = Page("a and b", provenance_of([], None), bench=made_up(0.8, 0.9))
    opened = open_page(as_html(page), tmp_path)
    assert opened.console == ()
    assert opened.dom.count("<svg") == 1
    assert "0.800 to 0.900" in opened.dom
    assert "| cpu | ENABLE_ALL | 1 s | 1 s | 0.850 (0.800 to 0.900) |" in as_markdown(page)


@pytest.mark.parametrize(("figure", "text"), [(2.0, "2 s"), (0.00125, "1.25 ms"), (12.5e-6, "12.5 us")])
def test_durations_have_a_unit_that_fits(figure: float, text: str) -> None:
    assert seconds(figure) == text


# Together with a fold


def test_a_fold_measures_latency_on_request_for_json_terminal_and_pages(run: Run, tmp_path: Path) -> None:
    output, page = tmp_path / "fused.onnx", tmp_path / "report.html"
    given = ("--bench", "--rounds", "2", "--threads", "1", "--shape", "images=3x1x8x8", "--report", page)
    outcome = run(MODEL, "-o", output, *given, "--json")
    tree = json.loads(outcome.out)
    schema("fold-1").validate(tree)
    schema("bench-1").validate(tree["bench"])
    measured = tree["bench"]
    assert (measured["before"], measured["after"]) == (MODEL.name, "fused.onnx")
    assert (measured["rounds"], measured["threads"], measured["inputs"]) == (2, 1, {"images": [3, 1, 8, 8]})
    assert [entry["level"] for entry in measured["measured"]] == ["DISABLE_ALL", "ENABLE_ALL"]
    assert [entry["batchnorms"] for entry in measured["measured"]] == [[11, 0], [0, 0]]
    html = page.read_text(encoding="utf-8")
    assert "Not measured in this run" not in html
    assert "latency at DISABLE_ALL on cpu" in html.replace("<wbr>", "")


def test_the_terminal_shows_the_latency_of_a_fold_in_80_columns(run: Run, tmp_path: Path) -> None:
    outcome = run(MODEL, "-o", tmp_path / "fused.onnx", "--bench", "--rounds", "1")
    assert outcome.code == 0
    assert "latency\nprovider" in "\n".join(line.rstrip() for line in outcome.err.splitlines())
    assert max(map(len, outcome.err.splitlines())) <= 80


def test_without_bench_nothing_is_measured(run: Run, tmp_path: Path) -> None:
    assert json.loads(run(MODEL, "-o", tmp_path / "fused.onnx", "--json").out)["bench"] is None


@pytest.mark.parametrize("option", ["--threads", "--rounds"])
def test_how_to_measure_without_bench_is_a_mistake(run: Run, tmp_path: Path, option: str) -> None:
    outcome = run(MODEL, "-o", tmp_path / "fused.onnx", option, "1")
    assert (outcome.code, names(tmp_path)) == (2, [])
    assert_one_sentence(outcome.err, f"{option} says how to measure latency, and nobody asked for that; give --bench")


def test_a_fold_that_cannot_be_measured_writes_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise bnfold.MachineError("the clock stands still")

    monkeypatch.setattr(benchmarking, "benchmark", refused)
    outcome = run(MODEL, "-o", tmp_path / "fused.onnx", "--bench", "--quiet")
    assert (outcome.code, outcome.out, names(tmp_path)) == (3, "", [])
    assert_one_sentence(outcome.err, "the clock stands still")


def test_an_input_of_indices_is_measured_with_the_callers_numbers(run: Run, tmp_path: Path) -> None:
    model = parse(
        f"(float[N,3,8,8] x, int64[5] indices) => (float[N,5,6,6] y) <float[4,3,3,3] w, {PARAMETERS}>"
        f"{{ c = Conv(x, w) b = BatchNormalization(c, {STATS}) y = Gather<axis=1>(b, indices) }}"
    )
    onnx.save(model, tmp_path / "model.onnx")
    np.save(tmp_path / "i.npy", np.array([3, 2, 1, 0, 3]))
    np.save(tmp_path / "far.npy", np.array([3, 2, 1, 0, 9]))
    both = (tmp_path / "model.onnx", tmp_path / "model.onnx")
    assert run("bench", *both, "--rounds", "1", "--input", f"indices={tmp_path / 'i.npy'}").code == 0
    far = run("bench", *both, "--rounds", "1", "--input", f"indices={tmp_path / 'far.npy'}", "--quiet")
    assert far.code == 3
    fold = (tmp_path / "model.onnx", "-o", tmp_path / "fused.onnx", "--bench", "--rounds", "1")
    assert run(*fold, "--input", f"indices={tmp_path / 'i.npy'}").code == 0


def test_a_model_without_a_check_can_be_measured(run: Run, tmp_path: Path) -> None:
    outcome = run(MODEL, "-o", tmp_path / "fused.onnx", "--bench", "--rounds", "1", "--no-verify", "--json")
    tree = json.loads(outcome.out)
    assert tree["verification"] is None
    assert len(tree["bench"]["measured"]) == 2
