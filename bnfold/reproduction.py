"""Cuts what differs out of two models: what lies between the last tensors that agree and the first that does not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from bnfold.checking import source_of
from bnfold.data import read_inputs
from bnfold.data_sources import DataLike
from bnfold.errors import UsageError
from bnfold.feeds import feeds_again
from bnfold.frontends.onnx_files import in_memory, load
from bnfold.frontends.onnx_regions import Cutter
from bnfold.inputs import InputsLike, fixed_inputs
from bnfold.quickcheck import QuickCheck
from bnfold.runtime import exposing, name_nodes, open_session
from bnfold.text_files import as_ours
from bnfold.verification import Verification

Arrays = dict[str, Any]

#: What is written into the folder.
FILES = ("before.onnx", "after.onnx", "inputs.npz")


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Refuse at once what could not be written in the end.

    Raises:
        UsageError: It is no folder, or something is in it.
    """
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError("a reproduction needs an empty folder", where=str(folder), remedy="name another one")


def reproduce(  # noqa: PLR0913
    before: ir.Model | str | os.PathLike[str],
    after: ir.Model | str | os.PathLike[str],
    found: Verification,
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    data: DataLike | None = None,
    inputs: InputsLike | None = None,
) -> tuple[str, ...]:
    """Write the smallest pair of models that differs, `before.onnx` and `after.onnx`, and `inputs.npz` for both.

    Args:
        before: As for `verify`.
        after: As for `verify`.
        found: What `verify` found, with the same seed, data and inputs.
        folder: Where to write; it is made if it is not there.
        seed: As for `verify`.
        data: As for `verify`.
        inputs: As for `verify`.

    Returns:
        The operators in `after.onnx`, by name.

    Raises:
        UsageError: Nothing differs; or the folder holds something; or the inputs and outputs of the models differ.
        MachineError: The disk is full, or the folder may not be written.
    """
    check_folder(folder)
    check = next((quick for quick in found.quick if quick.failed and quick.runs), None)
    if check is None or check.first_divergence is None:
        raise UsageError("there is no difference inside the models to reproduce", where=str(folder))
    models = [model if isinstance(model, ir.Model) else load(model) for model in (before, after)]
    parts = [Cutter(model).cut(_agreeing(check), [check.first_divergence]) for model in models]
    feeds = _worst_feeds(models[0], parts, check, seed=seed, data=data, inputs=inputs)
    path = Path(folder)
    with as_ours(folder):
        path.mkdir(parents=True, exist_ok=True)
        for name, part in zip(FILES, parts, strict=False):
            onnx.save(part, path / name)
        np.savez(path / FILES[2], **feeds)
    return tuple(node.name or node.output[0] for node in parts[1].graph.node)


def _agreeing(check: QuickCheck) -> list[str]:
    """Tensors that are the same in both models; what differs is computed from some of them."""
    first = check.first_divergence
    return [entry.name for entry in (*check.inner, *check.comparisons) if entry.passed and entry.name != first]


def _worst_feeds(  # noqa: PLR0913
    before: ir.Model,
    parts: list[onnx.ModelProto],
    check: QuickCheck,
    *,
    seed: int,
    data: DataLike | None,
    inputs: InputsLike | None,
) -> Arrays:
    """The inputs of both parts in the run of the check in which they differ most."""
    proto = in_memory(before)
    wanted = sorted({value.name for part in parts for value in part.graph.input})
    inner = [name for name in wanted if name not in {value.name for value in proto.graph.input}]
    whole = open_session(exposing(proto, inner), check.provider)
    for part in parts:
        name_nodes(part.graph)
    sessions = [open_session(part, check.provider) for part in parts]
    worst, chosen = -1.0, Arrays()
    specs = read_inputs(proto)
    fixed = fixed_inputs(inputs, specs)
    source = source_of(data, before, fixed)
    runs = feeds_again(specs, check.runs, seed=seed, given=check.given, data=source, kinds=check.kinds, fixed=fixed)
    for feeds in runs:
        values = {**feeds, **whole.run(inner, feeds)}
        given = {name: values[name] for name in wanted}
        results = [_run(session, part, given) for session, part in zip(sessions, parts, strict=True)]
        difference = _difference(*results)
        if difference > worst:
            worst, chosen = difference, given
    return chosen


def _run(session: Any, part: onnx.ModelProto, values: Mapping[str, Any]) -> Any:
    (output,) = (value.name for value in part.graph.output)
    return session.run([output], {value.name: values[value.name] for value in part.graph.input})[output]


def _difference(old: Any, new: Any) -> float:
    """The largest difference; infinite where shapes or kinds of numbers differ."""
    if old.shape != new.shape:
        return np.inf
    with np.errstate(all="ignore"):
        moved = np.abs(new.astype(np.float64) - old.astype(np.float64))
    return float(np.nan_to_num(np.where(old == new, 0.0, moved), nan=np.inf).max(initial=0.0))
