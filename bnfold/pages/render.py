"""Turns a page into HTML or Markdown with the templates beside this module."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from bnfold.decision import Decision
from bnfold.errors import MissingPackageError
from bnfold.pages import pictures
from bnfold.pages.checklist import checklist
from bnfold.pages.page import Page
from bnfold.report.model import Report
from bnfold.size_wording import flops_notes, size_facts
from bnfold.sizes import data_size
from bnfold.wording import (
    bench_notes,
    count,
    each_way,
    kept_groups,
    local_line,
    oracle_line,
    outcome,
    printable,
    provider_name,
    quick_line,
    recalibrated,
    seconds,
    stage_line,
)
from bnfold.wording_deployed import setting_lines

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


def require_templates() -> None:
    """Say at once what would be missing at the end.

    Raises:
        MissingPackageError: jinja2 or matplotlib is not installed.
    """
    missing = next((package for package in ("jinja2", "matplotlib") if find_spec(package) is None), None)
    if missing is not None:
        raise MissingPackageError(f"{missing} is not installed", remedy="pip install 'bnfold[report]'")


def as_html(page: Page) -> str:
    """One self-contained file: no address of anything outside it."""
    fold = page.fold
    signs = _signs(fold) if fold is not None else ""
    template = _environment(escapes=True).get_template("report.html.j2")
    return template.render(page=page, facts=_facts(fold), pictures=dict(_pictures(page)), signs=signs)


def as_markdown(page: Page) -> str:
    """The same without pictures and inner tensors."""
    text = _environment(escapes=False).get_template("report.md.j2").render(page=page, facts=_facts(page.fold))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.splitlines())).strip() + "\n"


def _pictures(page: Page) -> Iterator[tuple[str, str]]:
    if page.fold is not None and page.fold.scales:
        yield "scales", pictures.scales_picture(page.fold.scales)
    if page.verification is not None:
        if page.verification.local:
            yield "local", pictures.local_picture(page.verification.local)
        for check in page.verification.quick:
            yield f"errors-{check.provider}", pictures.errors_picture(check)
    if page.recalibration is not None and page.recalibration.recalibrated:
        yield "drift", pictures.drift_picture(page.recalibration)
    if page.bench is not None:
        yield "bench", pictures.bench_picture(page.bench)


def _facts(fold: Report | None) -> list[tuple[str, str]]:
    """Sizes before and after."""
    return [] if fold is None else size_facts(fold)


def _signs(fold: Report) -> str:
    negative, zero = (sum(getattr(entry, kind) for entry in fold.scales) for kind in ("negative", "zero"))
    return f"{count(negative, 'channel')} of {sum(e.channels for e in fold.scales):,} negative, {zero:,} zero."


def _figure(number: float | None) -> str:
    return "" if number is None else f"{number:.2g}"


def _kind(decision: Decision) -> str:
    return type(decision).__name__.lower()


def _breakable(text: str) -> Markup:
    """The text, where a line may end after each part of a name and not within one."""
    from markupsafe import Markup, escape  # noqa: PLC0415

    return Markup(re.sub(r"(?<=[^\s/._])([/_]|\.(?!\d))(?=[^\s/._])", r"\1<wbr>", str(escape(text))))


def _md(text: str) -> str:
    """One cell of a table: nothing in a name may be taken for Markdown or HTML."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in printable(text))


def _environment(*, escapes: bool) -> Environment:
    require_templates()
    from jinja2 import DictLoader, Environment, StrictUndefined  # noqa: PLC0415

    parts = (entry for entry in (files("bnfold.pages") / "templates").iterdir() if entry.name.endswith(".j2"))
    loader = DictLoader({part.name: part.read_text(encoding="utf-8") for part in parts})
    made = Environment(loader=loader, autoescape=escapes, undefined=StrictUndefined, trim_blocks=True)
    filters: dict[str, Any] = {
        "outcome": outcome, "kind": _kind, "figure": _figure, "data_size": data_size, "local_line": local_line,
        "flops_notes": flops_notes, "checklist": checklist, "breakable": _breakable,
        "oracle_line": oracle_line, "quick_line": quick_line, "stage_line": stage_line,
        "each_way": each_way, "kept_groups": kept_groups, "provider_name": provider_name,
        "setting_lines": setting_lines,
        "recalibrated": recalibrated, "md": _md, "seconds": seconds, "bench_notes": bench_notes,
    }  # fmt: skip
    made.filters.update(filters)
    return made
