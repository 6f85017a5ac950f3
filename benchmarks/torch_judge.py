"""Folds one network, or every small module, with one tool, and judges the result against float64.

`python -m benchmarks.torch_judge fold NAME TOOL DIR TARGET` reads what `benchmarks/torch_build.py` left in `DIR`. Of
every channel `error(folded) <= 4 * error(original) + 64 * u * scale` in float32, as in `benchmarks/coverage_judge.py`;
and the same tool on the same network in float64 must be within 1e-10 of each channel's scale.
`python -m benchmarks.torch_judge small TOOL TARGET KEY...` judges small modules, in float64 alone.
"""

from __future__ import annotations

import copy
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.coverage_build import BATCH, Array, Facts, Truth, per_channel
from benchmarks.coverage_judge import LIMIT, Outcome, figures, finite
from benchmarks.coverage_nets import Net
from benchmarks.frontier_judge import TOLERANCE
from benchmarks.torch_build import load, outputs
from benchmarks.torch_cases import BY_KEY, Case
from benchmarks.torch_made import Made, NothingToDoError
from benchmarks.torch_nets import BY_NAME
from benchmarks.torch_tools import SMALL, WHOLE

#: The largest error in float64, of a channel's scale.
EXACT = 1e-10
#: The outcome where a package brings no fold of its own for a network.
NOTHING = "none"
#: A channel counts as no smaller than this share of the median one: the roundings that it gets are those of others.
_SMALLEST = 1e-3


def judge(net: Net, tool: str, folder: Path) -> tuple[Outcome, Made | None]:
    """What a tool makes of a network; raises nothing that the tool raises."""
    facts = Facts(**json.loads((folder / "facts.json").read_text(encoding="utf-8")))
    truth = Truth.load(folder / "truth.npz")
    images = torch.from_numpy(truth.images)
    try:
        made = WHOLE[tool](load(net, folder), images[:BATCH], ("", ""))
        found = _outcome(outputs(made.run, images), truth, made.left(images[:BATCH]))
    except NothingToDoError:
        return Outcome(NOTHING), None
    except Exception as error:  # whatever a tool raises is a result of the benchmark
        return Outcome("ERROR", detail=_said(error)), None
    try:
        wide = WHOLE[tool](load(net, folder).double(), images[:BATCH].double(), ("", ""))
        exact = max(_exact(outputs(wide.run, images.double()), truth))
    except Exception as error:
        return replace(found, detail=f"in float64: {_said(error)}"), made
    if not exact <= EXACT and found.kind in ("right", "INACCURATE"):
        found = replace(found, kind="INEXACT")
    found = replace(found, exact=finite(exact))
    if facts.state != "alive":
        found = replace(found, kind="UNPROVEN", detail=f"the outputs are {facts.state}")
    return found, made


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _outcome(got: dict[str, Array], truth: Truth, left: int) -> Outcome:
    if got.keys() != truth.outputs.keys():
        return Outcome("WRONG", left, detail="another number of outputs")
    found = [figures(got[name], truth.outputs[name], truth.errors[name]) for name in truth.outputs]
    ratio, error = (float(np.max(column)) for column in zip(*found, strict=True))
    kind = "right" if ratio <= LIMIT else "INACCURATE" if error <= TOLERANCE else "WRONG"
    return Outcome(kind, left, None, finite(ratio), finite(error))


def _exact(got: dict[str, Array], truth: Truth) -> Iterator[float]:
    """The largest error of a channel of each output, of the channel's scale; infinite where it is not finite."""
    for name, expected in truth.outputs.items():
        if name not in got or got[name].shape != expected.shape or not np.isfinite(got[name]).all():
            yield np.inf
            continue
        scale = per_channel(expected)
        yield float((per_channel(got[name] - expected) / np.maximum(scale, _SMALLEST * np.median(scale))).max())


def judge_small(case: Case, tool: str) -> Outcome:
    """What a tool makes of a small module: "right", "WRONG", "ERROR" (it raised) or "BROKEN" (the result raises)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tools warn of themselves
        try:
            made = SMALL[tool](case.module(), case.example(), case.pair)
        except Exception as raised:
            return Outcome("ERROR", detail=_said(raised))
        try:
            error, left = max(_difference(case, made)), made.left(case.example())
        except Exception as raised:
            return Outcome("BROKEN", detail=_said(raised))
    return Outcome("right" if error <= EXACT else "WRONG", left, exact=finite(error))


def _difference(case: Case, made: Made) -> Iterator[float]:
    """The largest error on each of the inputs, of the scale of the output; infinite where the shapes differ."""
    for x in case.inputs():
        module = copy.deepcopy(case.module())
        with torch.no_grad():
            expected, got = module(x.clone()), made.run(x.clone())
        same = expected.shape == got.shape
        yield float((got - expected).abs().max() / expected.abs().max()) if same else np.inf


def main(arguments: Sequence[str]) -> None:
    """Fold, judge, and write outcomes as JSON, one a line."""
    torch.set_num_threads(1)
    if arguments[0] == "small":
        tool, target, *keys = arguments[1:]
        for key in keys:
            line = json.dumps([key, asdict(judge_small(BY_KEY[key], tool))])
            with Path(target).open("a", encoding="utf-8") as file:
                print(line, file=file)
        return
    name, tool, folder, target = arguments[1:]
    outcome, made = judge(BY_NAME[name], tool, Path(folder))
    if made is not None and made.report is not None:
        from bnfold.report.json_report import report_json  # noqa: PLC0415

        Path(target).with_suffix(".report").write_text(report_json(made.report), encoding="utf-8")
    Path(target).write_text(json.dumps(asdict(outcome)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
