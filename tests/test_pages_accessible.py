"""Whether everybody can read a page: contrast, names of what is no text, and a narrow screen."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from browser import open_page
from test_pages import folded_digits, named_pages, page_of

from bnfold.pages.render import as_html


def luminance(colour: str) -> float:
    """The relative luminance of `#rgb` or `#rrggbb`, as WCAG 2.2 defines it."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """`(lighter + 0.05) / (darker + 0.05)`, WCAG 2.2."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def palettes(html: str) -> list[dict[str, str]]:
    """The colours by name, in the light and in the dark."""
    return [dict(re.findall(r"--(\w+): (#\w+)", part)) for part in re.findall(r":root \{([^}]*--paper[^}]*)\}", html)]


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("#fff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


def test_text_has_the_contrast_of_wcag_aa_in_the_light_and_in_the_dark() -> None:
    both = palettes(as_html(page_of(folded_digits().report)))
    assert len(both) == 2
    for colours in both:
        assert luminance(both[0]["paper"]) > 0.9 or colours is both[1]
        for text in ("ink", "dim", "accent", "good", "bad", "unproven", "neutral"):
            for ground in ("paper", "panel"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground, colours)
        for drawn in ("faint", "accent", "bad", "second"):
            assert contrast(colours[drawn], colours["paper"]) >= 3, (drawn, colours)
        assert contrast(colours["faint"], colours["panel"]) >= 3, "the frames of what can be typed into"


@pytest.mark.parametrize("name", ["fold", "failed", "kept"])
def test_everything_that_is_no_text_has_an_accessible_name(name: str, tmp_path: Path) -> None:
    """As the browser computes it, from the page that it has built."""
    asked = """const named = element => {
            const by = (element.getAttribute("aria-labelledby") || "").split(" ").filter(Boolean);
            return element.getAttribute("aria-label")
                || by.map(id => document.getElementById(id)?.textContent).join("")
                || [...(element.labels || [])].map(label => label.textContent.trim()).join("")
                || element.caption?.textContent;
        };
        const kinds = "input, select, table, svg, [role=region], [role=group], ul[aria-label]";
        const asked = [...document.querySelectorAll(kinds)];
        const silent = asked.filter(element => !(named(element) || "").trim());
        const levels = [...document.querySelectorAll("h1, h2, h3")].map(element => +element.tagName[1]);
        const jumps = levels.filter((level, i) => level > (i ? levels[i - 1] : 0) + 1);
        const bare = [...document.querySelectorAll("th:not([scope])")].length;
        const shown = silent.map(element => element.outerHTML.slice(0, 80));
        document.title = JSON.stringify([asked.length, shown, jumps, bare, document.documentElement.lang]);"""
    dom = open_page(named_pages()[name], tmp_path, then=asked).dom
    found = re.search(r"<title>(\[.*?\])</title>", dom)
    assert found is not None
    number, silent, jumps, bare, language = json.loads(found[1].replace("&amp;", "&").replace("&lt;", "<"))
    assert number > 4
    assert (silent, jumps, bare, language) == ([], [], 0, "en")


@pytest.mark.parametrize("name", ["fold", "failed", "kept"])
def test_nothing_is_wider_than_a_narrow_screen_but_what_scrolls_by_itself(name: str, tmp_path: Path) -> None:
    frame = """const narrow = document.createElement("iframe");
        narrow.style.width = "400px"; narrow.srcdoc = document.documentElement.outerHTML.replace(/<script>[^]*/, "");
        narrow.onload = () => {
            const page = narrow.contentDocument.documentElement;
            const cells = [...narrow.contentDocument.querySelectorAll("td.route, td.name")];
            const widths = cells.map(cell => cell.offsetWidth).filter(width => width > 0);
            document.title = `${page.scrollWidth} ${page.clientWidth} ${Math.min(999, ...widths)}`; };
        document.body.append(narrow);"""
    dom = open_page(named_pages()[name], tmp_path, then=frame).dom
    found = re.search(r"<title>(\d+) (\d+) (\d+)</title>", dom)
    assert found is not None
    wide, shown, text = map(int, found.groups())
    assert wide <= shown <= 400
    assert text >= 150, "a column of single letters"
