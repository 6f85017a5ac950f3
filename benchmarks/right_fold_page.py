"""What `benchmarks/right_folds.py` found, as a page for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.coverage_run import installed
from benchmarks.frontier import as_markdown
from benchmarks.right_fold_cases import KINDS, RESNET_SIZE, SAMPLES
from benchmarks.right_fold_judge import FACTOR, ROUNDINGS, RULES, Row

if TYPE_CHECKING:
    from benchmarks.wrong_folds import Caught

_PACKAGES = ("numpy", "onnx", "onnxruntime", "torch", "torchvision")

LEGEND = f"""\
`python -m benchmarks.right_folds --jobs 2 --markdown benchmarks/RIGHT_FOLDS.md`, on the CPU.

Each model is folded by `bnfold.fold` with the verification that a user gets who asks for nothing. An alarm is any error
that it raises: nothing would be written, and the command would end with another exit code than 0. Whether a fold is
right is known without bnfold's check: in every output channel `error(folded) <= {FACTOR:g} * error(original) +
{ROUNDINGS:g} * u * scale` on {SAMPLES} random samples (random graphs: the 1 to 3 that they are declared for), both
errors against the model in float64 as torch computes it (random graphs and the digit classifier: as ONNX's reference
evaluator does). Models whose outputs are dead or chaotic, that onnxruntime cannot run (bnfold proves nothing about
those, says so and writes nothing) or in which nothing folds are not counted. Means are in standard deviations of what a
BatchNorm normalises; statistics are those of random batches, moved by 3 %. Images of ResNet-101 and of the networks of
the tests have {RESNET_SIZE} pixels a side.

Then `bnfold.verify` compares the original with the fold, of which it knows no plan; anything but a pass is an alarm.

The columns: how many folds are right; alarms of the fold, and of `verify`; in how many folds, and about how many
tensors, the float64 oracle was asked before the verdict; the largest error of a region in units of its bound in the
local test (at most 1 passes); the largest error of a tensor that `verify` computes from the original's values before
it, and of an output of the whole network, both in units of what the rule above allows; and how many of the right folds
each rule blames that compares one run with the other, on inputs in [0, 1) as its tools draw them."""

_WRONG = """\
Twenty layers of Conv, BatchNorm and ReLU, folded, and then one of them made wrong at the beginning, in the middle or at
the end, for several seeds of all weights (`tests/mutated_folds.py`). Caught: the fold would not be written. Named: the
message names the BatchNorm, or for the wrong border, of which there is no plan of bnfold, the first tensor behind it.
The last two columns say which test saw it: the local one of the fold at that BatchNorm and at no other, and `bnfold
verify`, which knows no fold, at the first tensor behind it."""


def page(rows: Sequence[Row], wrong: Sequence[Caught]) -> str:
    """The whole page in Markdown."""
    parts = ["# Right folds, and wrong ones", _summary(rows, wrong), LEGEND, _table(rows), _left_out(rows)]
    parts += ["## Folds made wrong on purpose", _WRONG, _wrong_table(wrong), _versions()]
    return "\n\n".join(part for part in parts if part) + "\n"


def _summary(rows: Sequence[Row], wrong: Sequence[Caught]) -> str:
    right = _right(rows)
    alarms, asked = sum(bool(row.alarm) for row in right), [row.asked for row in right if row.asked]
    blames = sum(bool(row.verified) for row in right)
    blamed = "; ".join(f"{sum(rule in row.blamed for row in right)} by {rule}" for rule in RULES)
    caught, named = sum(one.caught for one in wrong), sum(one.named for one in wrong)
    broken = sum(row.state == "WRONG" for row in rows)
    return (
        f"**{len(right)} right folds, {alarms} false alarms, {blames} by `bnfold verify`.** "
        f"{broken} folds of bnfold were not right. "
        f"In {len(asked)} the float64 oracle was asked first, about {sum(asked)} tensors. "
        f"Rules that compare one run with the other blame of the right folds: {blamed}. "
        f"**Of {len(wrong)} folds made wrong on purpose {caught} were caught and {named} named.**"
    )


def _right(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.state == "right"]


def _table(rows: Sequence[Row]) -> str:
    head = ["models", "right", "alarms", "of verify", "oracle asked", "local", "stages", "outputs", *RULES]
    found = [(kind.title, [row for row in rows if row.kind == name]) for name, kind in KINDS.items()]
    lines = [_line(title, some) for title, some in found if some]
    return as_markdown([head, *lines, _line("all", rows)])


def _line(title: str, rows: Sequence[Row]) -> list[str]:
    right = _right(rows)
    asked = [row.asked for row in right if row.asked]
    largest = ([figure for figure in figures if figure is not None] for figures in (
        (row.local for row in right), (row.stage for row in right), (row.ratio for row in right)))  # fmt: skip
    return [
        title,
        str(len(right)),
        str(sum(bool(row.alarm) for row in right)),
        str(sum(bool(row.verified) for row in right)),
        f"{len(asked)} / {sum(asked)}" if asked else "-",
        *(f"{max(figures):.2f}" if figures else "-" for figures in largest),
        *(str(sum(rule in row.blamed for row in right)) for rule in RULES),
    ]


def _left_out(rows: Sequence[Row]) -> str:
    counts = Counter(row.state for row in rows if row.state != "right")
    if not counts:
        return ""
    told = ", ".join(f"{state}: {count}" for state, count in sorted(counts.items()))
    return f"Not counted, of {len(rows)} models: {told}."


def _wrong_table(wrong: Sequence[Caught]) -> str:
    head = ["what is wrong", "tried", "caught", "named", "by the local test", "by verify"]
    lines = []
    for kind in dict.fromkeys(one.kind for one in wrong):
        some = [one for one in wrong if one.kind == kind]
        local = [one.local for one in some if one.local is not None]
        counts = [len(some), sum(one.caught for one in some), sum(one.named for one in some)]
        lines.append([kind, *map(str, counts), str(sum(local)) if local else "-", str(sum(one.first for one in some))])
    return as_markdown([head, *lines])


def _versions() -> str:
    told = ", ".join(f"{package} {installed(package)}" for package in _PACKAGES)
    return f"Versions: bnfold {installed('bnfold')} (of its sources), {told}."
