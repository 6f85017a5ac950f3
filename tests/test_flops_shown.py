"""FLOPs as people see them: at which sizes, in which words, and what they say where nothing is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_run import MODEL, Run, assert_one_sentence, written

import bnfold
from bnfold.flops import Flops, Uncounted, Work
from bnfold.report.model import Report, Size
from bnfold.size_wording import flops, flops_notes, large


def test_a_fold_takes_two_operations_from_each_element_and_leaves_a_bias() -> None:
    report = bnfold.fold(MODEL, shapes={"images": (1, 1, 8, 8)}).report
    assert report.after is not None
    assert report.before.flops is not None
    assert report.after.flops is not None
    before, after = report.before.flops.work, report.after.flops.work
    assert before is not None
    assert after is not None
    assert report.before.flops.inputs == report.after.flops.inputs == {"images": (1, 1, 8, 8)}
    assert before.multiply_adds == after.multiply_adds
    assert 0 < after.others < before.others
    assert report.before.parameters is not None
    assert report.after.parameters is not None
    assert report.after.parameters < report.before.parameters


def test_without_sizes_the_check_gives_them_and_inspect_says_unknown() -> None:
    found = bnfold.fold(MODEL).report.before.flops
    assert found is not None
    assert found.inputs == {"images": (2, 1, 8, 8)}
    unknown = bnfold.inspect(MODEL).before.flops
    assert unknown is not None
    assert unknown.work is None
    assert "open" in unknown.unknown


def test_inspect_takes_sizes_and_refuses_wrong_ones(run: Run) -> None:
    shown = run("inspect", MODEL, "--shape", "images=1x1x8x8", "--json")
    assert json.loads(shown.out)["before"]["flops"]["inputs"] == {"images": [1, 1, 8, 8]}
    wrong = run("inspect", MODEL, "--shape", "images=1x3x8x8")
    assert wrong.code == 2
    assert_one_sentence(wrong.err, "the shape says 3 where the model has 1")


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"),
        (12_345, "12,345"),
        (621_291_944, "621.3 M"),
        (8_217_634_280, "8.218 G"),
        (2_000_000_000_000, "2.000 T"),
    ],
)
def test_a_figure_has_four_digits(number: int, shown: str) -> None:
    assert large(number) == shown


def test_a_lower_bound_says_at_least_and_an_unknown_figure_says_why() -> None:
    some = Flops(Work(0, 5), {"x": (5,)}, (Uncounted("If", 2, "why"),))
    none = Flops(None, unknown="a size is open")
    assert flops(some) == "at least 5"
    assert flops(none) == flops(None) == "unknown"
    notes = flops_notes(Report("m", (), Size(1, 0, 0, flops=some), Size(1, 0, 0, flops=none)))
    assert notes == ["FLOPs are unknown: a size is open", "not counted before: 2 If (why)"]
    assert flops_notes(Report("m", (), Size(1, 0, 0))) == ["FLOPs were not counted"]


def test_the_terminal_shows_them_in_80_columns(run: Run, tmp_path: Path) -> None:
    shown = run(MODEL, "-o", tmp_path / "fused.onnx")
    assert "  FLOPs " in shown.err
    assert "at images 2x1x8x8; a multiply-add is 2" in " ".join(shown.err.split())
    assert all(len(line) <= 80 for line in shown.err.splitlines())
    inspected = " ".join(run("inspect", MODEL).err.split())
    assert "FLOPs unknown: the model leaves the size of images open, and no size was given" in inspected


def test_a_model_of_fixed_sizes_needs_no_others(tmp_path: Path) -> None:
    path = written(tmp_path, '<ir_version: 8, opset_import: ["" : 17]> f (float[2] x) => (float[2] y) { y = Relu(x) }')
    assert bnfold.inspect(path).before.flops == Flops(Work(0, 2), {"x": (2,)})
