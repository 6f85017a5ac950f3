"""Cuts what differs out of two models: what lies between the last tensors that agree and the first that does not."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from bnfold.frontends.onnx_files import in_memory
from bnfold.frontends.onnx_regions import Cutter
from bnfold.inputs import InputsLike, fixed_inputs
from bnfold.models import opened
from bnfold.quickcheck import QuickCheck
from bnfold.renaming import renamed
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

    At its end is the tensor at which the test of a fold by itself fails, else one whose stage is wrong, else the first
    that differs end to end: with what leads there from the tensors before it, from those that agree or, where small
    errors have added up to it, with all that leads there. The folder is there with all three files or not at all.

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
        ModelError: As `verify`.
        MachineError: The disk is full, or the folder may not be written.
    """
    check_folder(folder)
    check = _with_runs(found, str(folder))
    models = [opened(model)[0] for model in (before, after)]
    if check.renamed:
        models[1] = ir.from_proto(renamed(in_memory(models[1]), check.renamed))
    cutters = [Cutter(model) for model in models]
    for cut in _cuts(found, check):
        parts = [cutter.cut(cut.ends, [cut.tensor]) for cutter in cutters]
        if all(any(cut.tensor in node.output for node in part.graph.node) for part in parts):
            feeds, difference = _worst_feeds(models[0], parts, check, seed=seed, data=data, inputs=inputs)
            if difference > cut.least:
                _write(parts, feeds, Path(folder).resolve())
                return tuple(node.name or node.output[0] for node in parts[1].graph.node)
    what = f"no part of the main graph differs on {check.provider}; the test of the fold by itself, in float64, does"
    raise UsageError(what, where=str(folder))


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


@dataclass(frozen=True)
class _Cut:
    """A part to try: what lies between the tensors `ends` and `tensor`; `least` is what its difference must exceed.

    Differences are relative to the largest number of the tensor in the original.
    """

    ends: tuple[str, ...]
    tensor: str
    least: float


def _cuts(found: Verification, check: QuickCheck) -> Iterator[_Cut]:
    """The smallest part first; one that differs by no more than is allowed is not where the fault lies."""
    entries = (*check.inner, *check.comparisons)
    agreeing = [entry.name for entry in entries if entry.passed]
    for tensor in (local.tensor for local in found.local if local.failed):
        yield _Cut(tuple(name for name in agreeing if name != tensor), tensor, 0.0)
    first = next((entry for entry in entries if entry.failed and entry.name == check.first_divergence), None)
    if first is not None and first.stage is not None and first.stage.ratio > 1:
        yield _Cut(tuple(entry.name for entry in entries if entry is not first), first.name, 0.0)
    if first is not None:
        yield _Cut(tuple(agreeing), first.name, first.tolerance)
        yield _Cut((), first.name, 0.0)


def _with_runs(found: Verification, where: str) -> QuickCheck:
    """A check in the runs of which a tensor differs, or during which the test of a fold by itself failed."""
    wrong = any(local.failed for local in found.local)
    for check in found.quick:
        if check.runs and (wrong or any(entry.failed for entry in (*check.inner, *check.comparisons))):
            return check
    if not found.failed:
        raise UsageError("there is no difference inside the models to reproduce", where=where)
    if not found.differs:
        what = "only the runtime's own optimiser tells the models apart, and it sees each as a whole"
        raise UsageError(what, where=where, remedy="attach both models")
    if any(check.agreement is not None and check.agreement.failed for check in found.quick):
        what = "decisions differ, and no tensor by more than is allowed, so that no part of the models shows it"
        raise UsageError(what, where=where, remedy="attach both models and the sample that the report names")
    what = "the models were not run" if wrong else "the inputs or outputs of the models differ"
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


def _worst_feeds(  # noqa: PLR0913
    before: ir.Model,
    parts: list[onnx.ModelProto],
    check: QuickCheck,
    *,
    seed: int,
    data: DataLike | None,
    inputs: InputsLike | None,
) -> tuple[Arrays, float]:
    """The inputs of both parts in the run in which they differ most, and the largest relative difference of any run."""
    proto = in_memory(before)
    wanted = sorted({value.name for part in parts for value in part.graph.input})
    inner = [name for name in wanted if name not in {value.name for value in proto.graph.input}]
    whole = open_session(exposing(proto, inner), check.provider)
    for part in parts:
        name_nodes(part.graph)
    sessions = [open_session(part, check.provider) for part in parts]
    worst, relative, chosen = 0.0, 0.0, Arrays()
    specs = read_inputs(proto)
    fixed = fixed_inputs(inputs, specs)
    source = source_of(data, before, fixed)
    runs = feeds_again(specs, check.runs, seed=seed, given=check.given, data=source, kinds=check.kinds, fixed=fixed)
    for feeds in runs:
        values = {**feeds, **whole.run(inner, feeds)}
        given = {name: values[name] for name in wanted}
        results = [_run(session, part, given) for session, part in zip(sessions, parts, strict=True)]
        difference, share = _difference(*results)
        relative = max(relative, share)
        if difference > worst:
            worst, chosen = difference, given
    return chosen, relative


def _run(session: Any, part: onnx.ModelProto, values: Mapping[str, Any]) -> Any:
    (output,) = (value.name for value in part.graph.output)
    return session.run([output], {value.name: values[value.name] for value in part.graph.input})[output]


def _difference(old: Any, new: Any) -> tuple[float, float]:
    """The largest difference, and relative to the largest number; infinite where shapes or kinds of numbers differ."""
    if old.shape != new.shape:
        return np.inf, np.inf
    before, after = old.astype(np.float64), new.astype(np.float64)
    with np.errstate(all="ignore"):
        moved = np.where((before == after) | (np.isnan(before) & np.isnan(after)), 0.0, np.abs(after - before))
        largest = float(np.nan_to_num(moved, nan=np.inf).max(initial=0.0))
        scale = float(np.abs(before[np.isfinite(before)]).max(initial=np.finfo(np.float64).tiny))
        return largest, largest / scale
