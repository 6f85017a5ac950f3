"""Cuts what differs out of two models: what lies between the last tensors that agree and the first that does not."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from bnfold.checking import source_of
from bnfold.data import read_inputs
from bnfold.data_sources import DataLike
from bnfold.drafts import draft_folder
from bnfold.errors import UsageError, VerificationError
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
        UsageError: It is no folder or cannot become one, something is in it, or it is the current one.
    """
    path = Path(folder).resolve()
    if path == Path.cwd() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise UsageError("a reproduction needs an empty folder", where=str(folder), remedy="name another one")
    above = next(parent for parent in path.parents if parent.exists())
    if not above.is_dir():
        raise UsageError(f"{above} is no folder", where=str(folder), remedy="name another one")


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

    The first tensor that differs end to end is at its end; where only the test of a fold by itself fails, the tensor
    at which it does. The folder is there with all three files or not at all.

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
        UsageError: Nothing differs that could be cut out; or the folder holds something.
        MachineError: The disk is full, or the folder may not be written.
    """
    check_folder(folder)
    check, first = _what_differs(found, str(folder))
    models = [model if isinstance(model, ir.Model) else load(model) for model in (before, after)]
    parts = [Cutter(model).cut(_agreeing(check, first), [first]) for model in models]
    if not all(any(first in node.output for node in part.graph.node) for part in parts):
        raise UsageError(f"{first} is not computed in the main graph of both models", where=str(folder))
    feeds = _worst_feeds(models[0], parts, check, seed=seed, data=data, inputs=inputs)
    if not feeds:
        what = f"on {check.provider} both models compute the same {first}; only the test in float64 tells them apart"
        raise UsageError(what, where=str(folder))
    _write(parts, feeds, Path(folder).resolve())
    return tuple(node.name or node.output[0] for node in parts[1].graph.node)


def reproduce_failure(
    failure: VerificationError,
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    data: DataLike | None = None,
    inputs: InputsLike | None = None,
) -> tuple[str, ...]:
    """As `reproduce`, of a fold that failed, from what its error carries.

    Raises:
        UsageError: As `reproduce`; or what differs are not ONNX models.
        MachineError: As `reproduce`.
    """
    found = getattr(failure.report, "verification", None)
    if failure.models is None or found is None:
        raise UsageError("what differs is no fold of an ONNX model", where=str(folder))
    return reproduce(*failure.models, found, folder, seed=seed, data=data, inputs=inputs)


def _what_differs(found: Verification, where: str) -> tuple[QuickCheck, str]:
    """The check whose runs show a difference, and the tensor at which they do."""
    for check in found.quick:
        if check.failed and check.runs and any(entry.failed for entry in (*check.inner, *check.comparisons)):
            assert check.first_divergence is not None
            return check, check.first_divergence
    wrong = next((local.tensor for local in found.local if local.failed), None)
    run = next((check for check in found.quick if check.runs), None)
    if wrong is not None and run is not None:
        return run, wrong
    if not found.failed:
        raise UsageError("there is no difference inside the models to reproduce", where=where)
    if any(check.agreement is not None and check.agreement.failed for check in found.quick):
        what = "decisions differ, and no tensor by more than is allowed, so that no part of the models shows it"
        raise UsageError(what, where=where, remedy="attach both models and the sample that the report names")
    what = "the inputs or outputs of the models differ" if wrong is None else "the models were not run"
    raise UsageError(f"{what}, so that there is nothing to cut out", where=where)


def _write(parts: Sequence[onnx.ModelProto], feeds: Arrays, path: Path) -> None:
    """All files at once: they are written beside the place, which the whole folder then takes."""
    with as_ours(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft_folder(path) as work:
            made = work / path.name
            made.mkdir()
            for name, part in zip(FILES, parts, strict=False):
                onnx.save(part, made / name)
            np.savez(made / FILES[2], **feeds)
            if path.is_dir():
                path.rmdir()  # the system refuses that if it is not empty any more
            made.rename(path)


def _agreeing(check: QuickCheck, first: str) -> list[str]:
    """Tensors that are the same in both models; `first`, which differs, is computed from some of them."""
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
    """The inputs of both parts in the run of the check in which they differ most; none if they never differ."""
    proto = in_memory(before)
    wanted = sorted({value.name for part in parts for value in part.graph.input})
    inner = [name for name in wanted if name not in {value.name for value in proto.graph.input}]
    whole = open_session(exposing(proto, inner), check.provider)
    for part in parts:
        name_nodes(part.graph)
    sessions = [open_session(part, check.provider) for part in parts]
    worst, chosen = 0.0, Arrays()
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
