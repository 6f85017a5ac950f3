"""The pictures of a report, as inline SVG drawn by matplotlib, in colours that follow the page (dark mode, print)."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.errors import MissingPackageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bnfold.localcheck import LocalCheck
    from bnfold.quickcheck import QuickCheck
    from bnfold.report.bench_report import BenchReport
    from bnfold.report.model import ScaleSpread
    from bnfold.report.recalibration_report import RecalibrationReport

#: Colours that no picture means as such; the page's own take their place.
_INK, _FAINT, _GOOD, _BAD, _SECOND = "#010101", "#020202", "#030303", "#040404", "#050505"
_PAGE = {
    _INK: "currentColor", _FAINT: "var(--faint)", _GOOD: "var(--accent)", _BAD: "var(--bad)", _SECOND: "var(--second)"
}  # fmt: skip

#: Zero has no place on a logarithmic axis, and what is not finite on none; they are drawn here.
_ZERO, _ENDLESS = 1e-12, 1e6

_WIDTH, _HEIGHT = 9.0, 2.7


def errors_picture(check: QuickCheck) -> str:
    """The error of every tensor that was compared, in the order of the network, beside what is allowed."""
    entries = [*check.inner, *check.comparisons]
    finite = [entry for entry in entries if entry.compared]

    def draw(axes: Axes) -> None:
        places = np.arange(len(finite))
        errors = np.array([_drawable(entry.error) for entry in finite])
        failed = np.array([entry.failed for entry in finite], bool)
        is_output = places >= len(finite) - sum(entry.compared for entry in check.comparisons)
        allowed = [_drawable(entry.tolerance) for entry in finite]
        axes.step(places, allowed, where="mid", color=_FAINT, linewidth=1.2, label="allowed")
        for mask, marker, size, label in ((~is_output, "o", 14, "inner tensor"), (is_output, "D", 30, "output")):
            right, wrong = mask & ~failed, mask & failed
            axes.scatter(places[right], errors[right], s=size, c=_GOOD, marker=marker, label=label, zorder=3)
            axes.scatter(places[wrong], errors[wrong], s=size, c=_BAD, marker=marker, zorder=4)
        if failed.any():
            first = next((i for i, entry in enumerate(finite) if entry.name == check.first_divergence), None)
            if first is not None:
                axes.axvline(first, color=_BAD, linewidth=1.2, linestyle=":", label="first to differ")
            axes.scatter([], [], s=30, c=_BAD, marker="o", label="differs")
        _label(axes, "tensors in the order of the network", "error / scale")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), frameon=False, labelcolor=_INK)

    where = f"on {check.provider}" if finite else "; nothing was compared"
    return _svg(draw, f"errors-{check.provider}", f"Error of {len(finite)} tensors {where}", logarithmic="y")


def local_picture(checks: Sequence[LocalCheck]) -> str:
    """The error of every region of folds in units of its bound, largest last."""
    ratios = sorted(_drawable(check.ratio) for check in checks if check.ratio is not None)

    def draw(axes: Axes) -> None:
        colours = [_GOOD if ratio <= 1 else _BAD for ratio in ratios]
        axes.bar(np.arange(len(ratios)), ratios, color=colours, width=0.8)
        axes.axhline(1.0, color=_FAINT, linewidth=1.2)
        _label(axes, "regions of folds, by error", "error / bound")
        if ratios and ratios[-1] > 4:
            axes.set_yscale("log")

    return _svg(draw, "local", f"Error of {len(ratios)} regions of folds in units of their bounds")


def scales_picture(scales: Sequence[ScaleSpread]) -> str:
    """The scales of the channels of each BatchNorm: all, the middle half, and the median."""

    def draw(axes: Axes) -> None:
        places = np.arange(len(scales))
        low, first, median, third, high = np.maximum(np.array([entry.quantiles for entry in scales]).T, _ZERO)
        axes.vlines(places, low, high, color=_FAINT, linewidth=1.0, label="all channels")
        axes.vlines(places, first, third, color=_GOOD, linewidth=3.0, label="middle half")
        axes.scatter(places, median, s=12, c=_SECOND, marker="o", zorder=3, label="median")
        _label(axes, "BatchNorms in the order of the network", "|scale|")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), frameon=False, labelcolor=_INK)

    return _svg(draw, "scales", f"Scales of the channels of {len(scales)} BatchNorms", logarithmic="y")


def drift_picture(report: RecalibrationReport) -> str:
    """How far mean and variance of each BatchNorm moved, the one that moved most first."""
    entries = report.recalibrated

    def draw(axes: Axes) -> None:
        places = np.arange(len(entries))
        axes.bar(places, [entry.largest_drift for entry in entries], color=_FAINT, width=0.8, label="largest channel")
        axes.bar(places, [entry.rms_drift for entry in entries], color=_GOOD, width=0.8, label="root mean square")
        _label(axes, "BatchNorms, by drift", "drift / old deviation")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), frameon=False, labelcolor=_INK)

    return _svg(draw, "drift", f"Drift of the means of {len(entries)} BatchNorms in old standard deviations")


def bench_picture(report: BenchReport) -> str:
    """The time of the folded model as a share of the original's."""
    entries = report.measured

    def draw(axes: Axes) -> None:
        places = -np.arange(len(entries))
        axes.axvline(1.0, color=_FAINT, linewidth=1.2)
        axes.hlines(places, [e.ratio.low for e in entries], [e.ratio.high for e in entries], color=_GOOD, linewidth=6.0)
        axes.scatter([e.ratio.median for e in entries], places, s=30, c=_SECOND, zorder=3)
        axes.set_yticks(places, [f"{e.provider}, {e.level}" for e in entries])
        axes.set_ylim(-len(entries) + 0.4, 0.6)
        axes.set_xlabel("time after / time before")
        axes.spines[["top", "right"]].set_visible(False)

    return _svg(draw, "bench", "Time of the folded model as a share of the time of the original")


def _drawable(figure: float) -> float:
    return _ENDLESS if np.isnan(figure) else min(max(figure, _ZERO), _ENDLESS)


def _label(axes: Axes, across: str, up: str) -> None:
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.locator_params(axis="x", integer=True)
    axes.spines[["top", "right"]].set_visible(False)


def _svg(draw: Callable[[Axes], None], name: str, title: str, *, logarithmic: str = "") -> str:
    """What `draw` draws; identifiers start with `name`, as several pictures share a page."""
    with _style() as figure_of:
        figure = figure_of(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        if logarithmic == "y":
            axes.set_yscale("log")
        draw(axes)
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator")))
    body = written.getvalue()
    return _in_page(body[body.index("<svg") :], name, title)


@contextmanager
def _style() -> Iterator[Any]:
    """Text as text, the page's ink, the same bytes for the same picture; nothing of the user's own settings."""
    try:
        import matplotlib  # noqa: PLC0415, ICN001
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise MissingPackageError("matplotlib is not installed", remedy="pip install 'bnfold[report]'") from error
    inks = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    settings: Mapping[str, Any] = {
        **dict.fromkeys(inks, _INK), "svg.fonttype": "none", "svg.hashsalt": "bnfold", "font.size": 9,
        "font.family": "DejaVu Sans",
    }  # fmt: skip
    mpl: Any = matplotlib
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(settings)
        yield Figure


def _in_page(svg: str, name: str, title: str) -> str:
    """The picture with the page's colours and font, an accessible name, and identifiers of its own."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r"font: [^;\"]*?(\d+(?:\.\d+)?px)[^;\"]*", r"font: \1 system-ui, sans-serif", svg)
    for drawn, colour in _PAGE.items():
        svg = svg.replace(drawn, colour)
    opened = _opening(name, title)  # last, as its identifiers are what they are to be
    return re.sub(r'<svg[^>]*viewBox="([^"]*)"[^>]*>', opened, svg, count=1, flags=re.DOTALL).strip()


def _opening(name: str, title: str) -> str:
    return rf'<svg viewBox="\1" role="img" aria-labelledby="title-{name}"><title id="title-{name}">{title}</title>'
