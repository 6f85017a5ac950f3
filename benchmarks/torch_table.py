"""The tables of `benchmarks/torch_folders.py` for people: networks, small modules, and why BatchNorms stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from benchmarks.coverage_judge import Outcome
from benchmarks.coverage_run import Examined, installed
from benchmarks.coverage_table import bad, reasons
from benchmarks.frontier import as_markdown
from benchmarks.torch_cases import CASES
from benchmarks.torch_nets import TORCH_NETS
from benchmarks.torch_tools import WHOLE

#: In place of an outcome, where nobody has asked for one yet.
UNMEASURED = "not measured"
#: The outcomes of one tool by the keys of the small modules.
Small: TypeAlias = Mapping[str, Outcome]

LEGEND = """\
A cell is `BatchNorms left (error in float64; accuracy in float32)`. The first figure is the largest error of any output
channel of its scale, where the tool folds the network in float64; at most 1e-10 is right. The second is the largest
error of any channel of the float32 network against float64, as a multiple of the original's own error there (16
roundings are added to it); at most 4 is right. WRONG: an error above 1e-3 of an output's scale. INEXACT: above 1e-10 in
float64. INACCURATE: above 4. ERROR: the tool raised. CRASH: its process died. TIMEOUT: it did not end. UNPROVEN: the
network is dead or chaotic, no figure at its outputs proves anything.

BatchNorms left are those that one run of the result goes through: the batch_norm operators that are called, for
TorchScript those in the frozen graph, and for inductor, which takes a BatchNorm apart, those of which the frozen graph
has arithmetic left. "bnfold" gives the module's own class back, which can hold less than a graph: branches are not
merged. "bnfold as_graph" makes a torch.fx.GraphModule of it. torch.fx knows torch's own classes and no subclass, such
as timm's BatchNormAct2d. "own fuse" is timm's `reparameterize_model` or ultralytics' `fuse()`, written for their own
classes; "-" where there is none. jit.freeze works on the traced module. Of inductor, the frozen graph is run by
torch's own kernels, without oneDNN's packed weights, and no code is generated. "?": the tool failed in float64.

Original and result are compared on 64 images; the class scores of the YOLOs are lifted (see the end)."""

LUCK = """\
A fold rounds its weights anew, and the second figure is a ratio of two largest roundings: in one of many channels the
original may err by little. An earlier table, on 16 images and without the lift, had two networks above 4:

* YOLOv8n, 4.7 to 6.3 with every tool. An untrained YOLO gives class scores of about sigmoid(-10), so that the scale and
  the error of a channel are those of one number: of 1344 in a channel one held up to 99.9 % of the sum of the squared
  errors. In the worst channel the net folded by its own fuse() erred 6.0 times as much as the original, in another one
  the original 7.7 times as much as that; on 160 other images it was 4.1 and 2.5. The folded weights, rounded once and
  run in float64, erred 0.3 times as much as the original: the rest is the order of sums. More images do not help. Here
  the biases of the class scores, which have no BatchNorm, are lifted by 10 in all three YOLOs: the scores lie between 0
  and 1 as those of a trained one do on objects, and hundreds of numbers are near a channel's scale.
* LeViT, 4.1 with bnfold, which folds 52 BatchNorms (timm's own 3.5, others 2.1 to 3.4 for 4). A channel of a
  classifier's output is one number an image. On 48 other images the worst was 2.6 (timm's 2.3). What is no luck: over
  all numbers the root mean square of the error is 1.6 times the original's (timm's 1.5), of which 1.4 is there in
  float64 too: the one rounding of each folded weight."""

LEGEND_SMALL = """\
Each in float64, compared on other numbers and at other sizes than the tool was told. A cell is the number of BatchNorms
left where the result is right, WRONG and the error of the output's scale, ERROR where the tool raised, BROKEN where
what it made cannot be run. `fuse_modules` of torch.ao and `torch.nn.utils.fusion` are told the pair by the caller, who
has to know better: what they get wrong is what a caller has to look after. "bnfold as_graph" is BROKEN where the graph
refuses an input of another size than its own: the module's code had made that size a number."""


def cell(outcome: Outcome | None) -> str:
    """One tool's figures on one network."""
    if outcome is None or outcome.kind == UNMEASURED:
        return "-" if outcome is None else UNMEASURED
    exact = "?" if outcome.exact is None else f"{outcome.exact:.0e}"
    ratio = "?" if outcome.ratio is None else f"{outcome.ratio:.2g}"
    left = f"{outcome.batchnorms} ({exact}; {ratio})"
    if outcome.kind in ("right", "UNPROVEN"):
        return left if outcome.kind == "right" else f"UNPROVEN {left}"
    return f"**{outcome.kind}**" if outcome.batchnorms is None else f"**{outcome.kind}** {left}"


def cell_small(outcome: Outcome | None) -> str:
    """What one tool makes of one small module."""
    if outcome is None:
        return UNMEASURED
    if outcome.kind == "right":
        return str(outcome.batchnorms)
    size = "" if outcome.exact is None else f" ({outcome.exact:.1g})"
    return f"**{outcome.kind}{size if outcome.kind == 'WRONG' else ''}**"


def networks(found: Sequence[Examined]) -> list[list[str]]:
    """A heading, and a row for each network."""
    tools = [tool for tool in WHOLE if any(tool in examined.outcomes for examined in found)]
    table = [["network", "net", "BN", *tools]]
    for examined in found:
        title = f"{examined.net.name} ({examined.net.source})"
        if examined.facts is None:
            table.append([title, f"**{examined.trouble}**", "", *("" for _ in tools)])
            continue
        cells = [cell(examined.outcomes.get(tool)) for tool in tools]
        table.append([title, examined.facts.state, str(examined.facts.batchnorms), *cells])
    return table


def small_modules(found: Mapping[str, Small]) -> list[list[str]]:
    """A heading, a row for each small module, and how many results are not right."""
    rows = ([case.title, *(cell_small(column.get(case.key)) for column in found.values())] for case in CASES)
    table = [["", *found], *rows]
    counts = [Counter(outcome.kind for outcome in column.values()) for column in found.values()]
    for kinds, title in ((("WRONG",), "wrong numbers"), (("ERROR", "BROKEN", "CRASH", "TIMEOUT"), "fails")):
        table.append([title, *(f"{sum(count[kind] for kind in kinds)} of {len(CASES)}" for count in counts)])
    return table


def summary(found: Sequence[Examined]) -> list[str]:
    """What the table of networks adds up to, one sentence for each tool."""
    there = [examined for examined in found if examined.facts is not None]
    alive = sum(examined.facts is not None and examined.facts.state == "alive" for examined in there)
    later = sum(examined.trouble == UNMEASURED for examined in found)
    lines = [f"{len(found)} networks, {later} not measured, {len(there)} built, {alive} of them alive."]
    names = {examined.net.name for examined in found}
    if absent := [net.name for net in TORCH_NETS if net.name not in names]:
        lines.append(f"Not in this run: {', '.join(absent)}.")
    for tool in WHOLE:
        outcomes = [examined.outcomes[tool] for examined in _measured(there) if tool in examined.outcomes]
        if not outcomes:
            continue
        kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(o.kind for o in outcomes).most_common())
        left = sum(o.batchnorms or 0 for o in outcomes if not o.is_bad)
        exact = max((o.exact for o in outcomes if o.exact is not None), default=float("nan"))
        ratio = max((o.ratio for o in outcomes if o.ratio is not None), default=float("nan"))
        lines.append(
            f"{tool}: {kinds}; {left} left in what is not bad; at most {exact:.0e} in float64 and {ratio:.2g} times "
            "the original's error in float32."
        )
    return lines


def _measured(found: Sequence[Examined]) -> list[Examined]:
    """Without what nobody has asked for."""
    return [
        replace(row, outcomes={tool: o for tool, o in row.outcomes.items() if o.kind != UNMEASURED}) for row in found
    ]


def failures(found: Mapping[str, Small]) -> list[str]:
    """What was said where a tool failed on a small module, one line each."""
    titles = {case.key: case.title for case in CASES}
    return [
        f"{tool}, {titles[key]}: {outcome.kind}, {' '.join(outcome.detail.split())[:110]}"
        for tool, column in found.items()
        for key, outcome in column.items()
        if outcome.kind not in ("right", "WRONG")
    ]


def page(found: Sequence[Examined], cases: Mapping[str, Small]) -> str:
    """Everything as one page of Markdown."""
    versions = ", ".join(f"{package} {installed(package) or 'not installed'}" for package in _SHOWN)
    parts = [
        "# Folders of PyTorch modules", LEGEND, as_markdown(networks(found)), _list(summary(found)),
        "## What is not right", _list(bad(_measured(found))) or "Nothing.",
        "## Small modules", LEGEND_SMALL, as_markdown(small_modules(cases)),
        "What was said where a tool failed:", _list(failures(cases)) or "Nothing.",
        "## Why BatchNorms stay (bnfold)", "\n".join(reasons(found, "bnfold")),
        "## Why BatchNorms stay (bnfold as_graph)", "\n".join(reasons(found, "bnfold as_graph")),
        "## What a ratio of two errors is worth", LUCK,
        f"Versions: {versions}.",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


_SHOWN = ("torch", "timm", "ultralytics", "numpy")


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)
