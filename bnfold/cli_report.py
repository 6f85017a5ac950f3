"""The option `--report`: one file for people, written beside the model; its suffix says which kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bnfold.errors import UsageError

if TYPE_CHECKING:
    from bnfold.pages.page import Page
    from bnfold.pages.provenance import Provenance
    from bnfold.report.bench_report import BenchReport
    from bnfold.report.model import Report
    from bnfold.report.recalibration_report import RecalibrationReport
    from bnfold.verification import Verification

_SUFFIXES = (".html", ".md", ".json")


@dataclass(frozen=True)
class Reports:
    """The files asked for.

    Attributes:
        paths: Where to write.
        arguments: The command line.
    """

    paths: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()

    def of_fold(self, report: Report, **files: str) -> None:
        """Write what `fold` or `inspect` reports; `files` are the paths at hand by role."""
        from bnfold.pages.page import Page  # noqa: PLC0415
        from bnfold.report.json_report import report_json  # noqa: PLC0415

        self._publish(
            lambda origin: Page(
                report.model, origin, fold=report, recalibration=report.recalibration, bench=report.bench
            ),
            lambda: report_json(report),
            files,
        )

    def of_verification(self, found: Verification, before: str, after: str) -> None:
        """Write what `verify` found."""
        from bnfold.pages.page import Page  # noqa: PLC0415
        from bnfold.report.json_report import verification_json  # noqa: PLC0415

        old, new = Path(before).name, Path(after).name
        self._publish(
            lambda origin: Page(f"{old} and {new}", origin, comparison=found),
            lambda: verification_json(old, new, found),
            {"before": before, "after": after},
        )

    def of_recalibration(self, report: RecalibrationReport, **files: str) -> None:
        """Write what `recalibrate` reports."""
        from bnfold.pages.page import Page  # noqa: PLC0415

        self._publish(lambda origin: Page(report.model, origin, recalibration=report), report.to_json, files)

    def of_bench(self, found: BenchReport, before: str, after: str) -> None:
        """Write what `bench` measured."""
        from bnfold.pages.page import Page  # noqa: PLC0415

        title = f"{found.before} and {found.after}"
        files = {"before": before, "after": after}
        self._publish(lambda origin: Page(title, origin, bench=found), found.to_json, files)

    def _publish(
        self, page_of: Callable[[Provenance], Page], to_json: Callable[[], str], files: Mapping[str, str]
    ) -> None:
        """Every file, each whole or not at all."""
        from bnfold.pages.provenance import provenance_of  # noqa: PLC0415
        from bnfold.pages.render import as_html, as_markdown  # noqa: PLC0415
        from bnfold.text_files import write_whole  # noqa: PLC0415

        for path in self.paths:
            suffix = Path(path).suffix.lower()
            if suffix == ".json":
                write_whole(to_json(), path)
                continue
            page = page_of(provenance_of(list(files.items()), self.arguments))
            write_whole(as_html(page) if suffix == ".html" else as_markdown(page), path)

    def check(self, others: list[str]) -> None:
        """Refuse at once what could not be written in the end, or would overwrite another file of the command."""
        from bnfold.frontends.onnx_files import check_target  # noqa: PLC0415
        from bnfold.pages.render import require_templates  # noqa: PLC0415

        taken = {Path(other).resolve() for other in others}
        for path in self.paths:
            check_target(path, list(others))
            if Path(path).resolve() in taken:
                raise UsageError("the report and another file of the command cannot be one", where=path)
        if any(not path.lower().endswith(".json") for path in self.paths):
            require_templates()


def with_files(report: Report, model: str, output: str | None = None) -> Report:
    """The report with the sizes of its files on the disk, the data that lies beside an ONNX file among it."""
    before = replace(report.before, file=_file_size(model))
    if report.after is None or output is None:
        return replace(report, before=before)
    return replace(report, before=before, after=replace(report.after, file=_file_size(output)))


def _file_size(path: str) -> int:
    from bnfold.cli_torch import is_torch_file  # noqa: PLC0415
    from bnfold.frontends.onnx_files import external_files, load  # noqa: PLC0415

    beside = set() if is_torch_file(path) else {file.resolve() for file, _ in external_files(load(path))}
    return sum(file.stat().st_size for file in (Path(path), *beside))


def printed(path: str) -> str:
    """The path as it was typed, made printable."""
    from bnfold.wording import printable  # noqa: PLC0415

    return printable(click.format_filename(path))


def _reports(context: click.Context, _option: click.Parameter, paths: tuple[str, ...]) -> Reports:
    for path in paths:
        if Path(path).suffix.lower() not in _SUFFIXES:
            raise UsageError(f"a report is one of {', '.join(_SUFFIXES)}", where=path, remedy="name it report.html")
    return Reports(tuple(dict.fromkeys(paths)), context.obj or ())


report_option = click.option(
    "--report",
    "reports",
    metavar="FILE",
    multiple=True,
    callback=_reports,
    help="Write a report: .html (one file with pictures), .md or .json; may be repeated.",
)
