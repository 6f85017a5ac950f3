from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from browser import open_page
from onnx_models import parse

import bnfold
from bnfold.agreement import Agreement, Count
from bnfold.decision import Folded, Kept, Reason, Refusal, Subject
from bnfold.pages.checklist import checklist
from bnfold.pages.page import Page
from bnfold.pages.provenance import FileFacts, Provenance, provenance_of
from bnfold.pages.render import as_html, as_markdown
from bnfold.report.bench_report import BenchReport, Measured
from bnfold.report.model import Report, ScaleSpread, Size
from bnfold.stopwatch import Timing
from tests.zoo import load

DIGITS = Path(__file__).parents[1] / "models" / "digits-darknet.onnx"
ORIGIN = Provenance("bnfold a.onnx -o b.onnx", (FileFacts("input", "a.onnx", 3, "ab" * 32),), (("bnfold", "1"),), "now")


@cache
def folded_digits() -> bnfold.FoldResult:
    return bnfold.fold(DIGITS)


def page_of(report: Report) -> Page:
    return Page(report.model, ORIGIN, fold=report)


def wrong(model: ir.Model) -> ir.Model:
    """The same with one channel of one weight in its middle off by 2 %."""
    proto = ir.to_proto(model)
    weights = [tensor for tensor in proto.graph.initializer if len(tensor.dims) == 4]
    middle = weights[len(weights) // 2]
    values = onnx.numpy_helper.to_array(middle).copy()
    values[3] *= 1.02
    middle.CopyFrom(onnx.numpy_helper.from_array(values, middle.name))
    return ir.from_proto(proto)


def assert_sound(html: str, folder: Path, pictures: int) -> None:
    """Opens without a word on the console, shows its pictures with names, and asks for nothing from outside."""
    opened = open_page(html, folder)
    assert opened.console == ()
    assert opened.dom.count("<svg") == opened.dom.count('role="img"') == pictures
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)|url\((?!#)|@import|https?:""", html)
    assert len(ids := re.findall(r'\bid="([^"]*)"', html)) == len(set(ids))


def test_the_page_of_a_fold_opens_without_errors_and_with_its_pictures(tmp_path: Path) -> None:
    assert_sound(as_html(page_of(folded_digits().report)), tmp_path, pictures=3)


def test_the_page_of_a_fold_that_leaves_batchnorms_opens_and_says_why(tmp_path: Path) -> None:
    report = bnfold.inspect(ir.from_proto(load("densenet121").proto))
    assert report.kept_batchnorms
    html = as_html(page_of(report))
    assert_sound(html, tmp_path, pictures=1)
    assert "Why some stay" in html
    assert all(refusal.reason.value in html for kept in report.kept_batchnorms for refusal in kept.refusals)


def test_the_page_of_a_failed_verification_opens_and_names_the_first_difference(tmp_path: Path) -> None:
    found = bnfold.verify(DIGITS, wrong(folded_digits().model))
    page = Page("a.onnx and b.onnx", ORIGIN, comparison=found)
    assert page.verdict.mood == "bad"
    html = as_html(page)
    assert found.quick[0].first_divergence in html.replace("<wbr>", "")
    assert_sound(html, tmp_path, pictures=1)


def test_the_page_of_a_recalibration_opens(tmp_path: Path) -> None:
    batch = np.random.default_rng(0).random((64, 1, 8, 8), dtype=np.float32)
    report = bnfold.recalibrate(DIGITS, [batch]).report
    assert_sound(as_html(Page(report.model, ORIGIN, recalibration=report)), tmp_path, pictures=1)


def test_the_table_of_decisions_is_filtered_by_words_and_by_kind(tmp_path: Path) -> None:
    html = as_html(page_of(folded_digits().report))
    typed = """const box = document.querySelector(".filter"), words = box.querySelector("input");
        words.value = "RESIDUAL1/expand"; words.dispatchEvent(new Event("input"));
        document.title = box.querySelector("output").textContent;"""
    chosen = """const box = document.querySelector(".filter"), kind = box.querySelector("select");
        kind.value = "kept"; kind.dispatchEvent(new Event("change"));
        document.title = box.querySelector("output").textContent;"""
    assert "<title>2 of 11</title>" in open_page(html, tmp_path, then=typed).dom
    assert "<title>0 of 11</title>" in open_page(html, tmp_path, then=chosen).dom


def test_names_cannot_put_markup_into_a_page() -> None:
    subject = Subject("<script>alert(1)</script>|`x`", "BatchNormalization", 2, True)
    kept = Kept(subject, (Refusal(Reason.READS_MODEL_INPUT, "<b>", "a|b"),))
    report = Report("<i>.onnx", (kept, Folded(subject, "pull", ("<u>",))), Size(3, 2, 10), Size(2, 1, 10))
    html, text = as_html(page_of(report)), as_markdown(page_of(report))
    assert not re.search(r"<script>alert|<b>|<i>|<u>", html)
    assert not re.search(r"(?<!\\)<script|[^\\]\|b\b", text)


def test_a_page_is_the_same_for_the_same_result() -> None:
    assert as_html(page_of(folded_digits().report)) == as_html(page_of(folded_digits().report))


@pytest.mark.parametrize(
    ("verified", "after", "mood"), [(True, True, "good"), (False, True, "neutral"), (False, False, "neutral")]
)
def test_the_verdict_claims_no_more_than_was_proven(verified: bool, after: bool, mood: str) -> None:
    report = folded_digits().report
    shown = replace(
        report, verification=report.verification if verified else None, after=report.after if after else None
    )
    verdict = page_of(shown).verdict
    assert verdict.mood == mood
    assert ("Equivalent" in verdict.headline) is verified


def test_a_check_that_proved_nothing_is_no_equivalence() -> None:
    report = folded_digits().report
    assert report.verification is not None
    quick = replace(report.verification.quick[0], proves=False)
    doubtful = replace(report, verification=replace(report.verification, quick=(quick,)))
    assert page_of(doubtful).verdict.mood == "unproven"


def test_errors_of_zero_and_without_end_have_a_place_in_the_picture(tmp_path: Path) -> None:
    report = folded_digits().report
    assert report.verification is not None
    quick = report.verification.quick[0]
    strange = [replace(quick.inner[i], error=error, passed=False) for i, error in enumerate((0.0, np.inf, np.nan))]
    shown = replace(report.verification, quick=(replace(quick, inner=tuple(strange)),))
    html = as_html(page_of(replace(report, verification=shown)))
    assert "nan" in html
    assert "inf" in html
    assert_sound(html, tmp_path, pictures=3)


def test_markdown_says_the_same_as_the_page() -> None:
    text = as_markdown(page_of(folded_digits().report))
    assert text.startswith("# digits-darknet.onnx: Equivalent\n")
    assert text.count("| folded |") == 11
    assert "| logits |" in text
    assert "\n\n\n" not in text


def test_provenance_holds_the_hash_of_the_content_and_leaves_out_what_is_not_there(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"abc")
    found = provenance_of([("input", file), ("output", tmp_path / "none.onnx")], ["a b.onnx", "-o", "c"])
    assert found.files == (FileFacts("input", "model.onnx", 3, hashlib.sha256(b"abc").hexdigest()),)
    assert found.command == "bnfold 'a b.onnx' -o c"
    assert ("bnfold", bnfold.__version__) in found.versions


def test_a_spread_counts_signs_and_orders_magnitudes() -> None:
    found = ScaleSpread.of("bn", np.array([-4.0, 0.0, 1.0, 2.0, 3.0]))
    assert found == ScaleSpread("bn", 5, 1, 1, (0.0, 1.0, 2.0, 3.0, 4.0))


def test_a_spread_of_scales_that_are_not_finite_is_drawn_and_not_a_warning(tmp_path: Path) -> None:
    found = ScaleSpread.of("bn", np.array([1.0, np.inf, -np.inf, 2.0, np.nan]))
    assert found.quantiles[:3] == (1.0, 2.0, np.inf)
    report = replace(folded_digits().report, scales=(found,))
    assert_sound(as_html(page_of(report)), tmp_path, pictures=3)


def test_the_report_of_a_fold_holds_the_scales_of_every_batchnorm() -> None:
    model = parse(
        "(float[N,2] x) => (float[N,2] y)"
        "<float[2] g = {2, -3}, float[2] b = {0, 0}, float[2] m = {0, 0}, float[2] v = {3, 8}>"
        "{ y = BatchNormalization<epsilon = 1.0>(x, g, b, m, v) }"
    )
    (found,) = bnfold.inspect(ir.from_proto(model)).scales
    assert found == ScaleSpread(found.name, 2, 1, 0, (1.0, 1.0, 1.0, 1.0, 1.0))


@cache
def named_pages() -> dict[str, str]:
    """Pages with every part that there is."""
    timing = Timing(1.0, 0.9, 1.1)
    bench = BenchReport("a", "b", {"x": (1,)}, 1, 3, (Measured("cpu", "ENABLE_ALL", timing, timing, timing, (1, 0)),))
    report = folded_digits().report
    batch = np.random.default_rng(0).random((64, 1, 8, 8), dtype=np.float32)
    moved = bnfold.recalibrate(DIGITS, [batch]).report
    failed = bnfold.verify(DIGITS, wrong(folded_digits().model))
    return {
        "fold": as_html(Page("a.onnx", ORIGIN, fold=report, recalibration=moved, bench=bench)),
        "failed": as_html(Page("a.onnx and b.onnx", ORIGIN, comparison=failed)),
        "kept": as_html(page_of(bnfold.inspect(ir.from_proto(load("densenet121").proto)))),
    }


def test_the_top_of_a_page_says_what_was_checked_and_with_what_result() -> None:
    pages = named_pages()
    checks = {
        name: re.sub(r"<wbr>", "", html.split('class="checks"')[1].split("</ul>")[0]) for name, html in pages.items()
    }
    local, whole, deployed = "each fold by itself", "end to end on CPUExecution", "as deployed on CPUExecution"
    for what in (local, whole, deployed, "statistics", "latency at ENABLE_ALL"):
        assert f"<strong>{what}" in checks["fold"]
    assert checks["fold"].count(">passed<") == 3
    assert "failed" not in checks["fold"]
    assert "within the spread" in checks["fold"]
    assert ">failed<" in checks["failed"]
    assert ">passed<" not in checks["failed"]
    assert "62 would fold, 59 kept" in checks["kept"]


def test_a_fold_that_was_not_checked_says_so_at_the_top() -> None:
    report = replace(folded_digits().report, verification=None)
    (found,) = [item for item in checklist(page_of(report)) if item.what == "equivalence"]
    assert (found.result, found.mood) == ("not proven", "unproven")


def test_decisions_that_alone_differ_leave_the_tensors_passed() -> None:
    report = folded_digits().report
    assert report.verification is not None
    found = Agreement("top1", "logits", 4, Count(4, 3, 4, 1, "sample 2: class 1 became 7"))
    quick = replace(report.verification.quick[0], agreement=found, failed=True, first_divergence="logits")
    shown = replace(report, verification=replace(report.verification, quick=(quick,)))
    moods = {item.what: item.mood for item in checklist(page_of(shown))}
    assert moods["end to end on CPUExecutionProvider"] == "good"
    assert moods["decisions (top1) on CPUExecutionProvider"] == "bad"
    assert page_of(shown).verdict.detail.endswith("; nothing was written")


def test_a_page_without_latency_says_how_to_measure_it_and_one_with_it_does_not() -> None:
    assert "Not measured in this run" in as_html(page_of(folded_digits().report))
    assert "Not measured in this run" in as_markdown(page_of(folded_digits().report))
    assert "Not measured in this run" not in named_pages()["fold"]
    assert "Latency" not in as_html(page_of(bnfold.inspect(DIGITS)))


def test_a_line_ends_after_a_part_of_a_name_and_never_within_a_number() -> None:
    subject = Subject("/a/b.c_d", "BatchNormalization", 2, True)
    report = Report("m.onnx", (Folded(subject, "pull", ("0.001/x",)),), Size(3, 2, 10), Size(2, 1, 10))
    html = as_html(page_of(report))
    assert "/a/<wbr>b.<wbr>c_<wbr>d" in html
    assert "0.001/<wbr>x" in html
