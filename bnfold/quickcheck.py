"""The end-to-end check: both models run on the same inputs, and every tensor of equal name must be equal.

Decisions (TopK, ArgMax, Round, random draws) may jump for a rounding. So their outcome is taken from the original's run
in both models: what feeds a decision is compared, what follows it is compared given the same decision, and only the
decision's own outcome is left out. `before(x, d(x))` against `after(x, d(x))`, with `d(x)` from `before`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from math import isinf
from typing import TYPE_CHECKING

from bnfold.comparison import TOLERANCE
from bnfold.data import SPATIAL_SIZES, fill_shapes, read_inputs, size_choices, synthesise
from bnfold.dataflow import FLOATS, computed_alike, descendants, last_before
from bnfold.errors import ProviderError
from bnfold.examining import Findings, coarsest, examine, examine_pattern
from bnfold.feeds import describe_given, given_batches
from bnfold.interfaces import compare_interfaces, failure
from bnfold.patterns import patterns
from bnfold.probing import Pair, pair_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from bnfold.agreement import Agreement
    from bnfold.comparison import TensorComparison
    from bnfold.data_sources import Source
    from bnfold.deployed import Deployed, Tf32

    Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class QuickCheck:
    """The outcome of the end-to-end check.

    Attributes:
        provider: "cpu" or "cuda".
        comparisons: The models' outputs, the worst run of each.
        inner: Surviving inner tensors of equal name, the worst run of each, in topological order.
        notes: What was left out, and why; full sentences.
        runs: Shapes of the inputs of every run, but those on patterns.
        first_divergence: Name of the first tensor in topological order that failed; None when none did.
        failed: Something was compared and differs.
        proves: At least one tensor that responds to the input was compared at an output, or right before the decisions
            that an output depends on.
        given: How many of the runs, the last ones, were on the caller's data.
        kinds: Names of the patterns that were run besides, in the shapes of the first run (`bnfold.patterns`).
        held: Names of the values that were taken from the original's run in both models, because they may jump.
        renamed: Names of tensors of the second model, and the names of those of the first that they were compared with,
            as they have the values of those (`bnfold.renaming`).
        agreement: Whether both models decide alike on the caller's data; None where that was not asked.
        deployed: Both models as people deploy them; None where that was not asked, or nothing was run.
        tf32: What TF32 does to both; None but on CUDA.
        outputs: How many outputs were compared, where some were more than once (of PyTorch modules, which are compared
            in float64 and as stored, at several sizes); None where each has one comparison.
    """

    provider: str
    comparisons: tuple[TensorComparison, ...]
    inner: tuple[TensorComparison, ...]
    notes: tuple[str, ...]
    runs: tuple[Mapping[str, tuple[int, ...]], ...]
    first_divergence: str | None
    failed: bool
    proves: bool
    given: int = 0
    kinds: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    agreement: Agreement | None = None
    deployed: Deployed | None = None
    tf32: Tf32 | None = None
    outputs: int | None = None

    @property
    def passed(self) -> bool:
        """Something that can fail was compared, and nothing failed."""
        return self.proves and not self.failed

    @property
    def first_difference(self) -> str:
        """The first tensor that differs, and why it cannot be compared where it cannot; empty when nothing differs."""
        entries = (*self.comparisons, *self.inner)
        first = next((entry for entry in entries if entry.failed and entry.name == self.first_divergence), None)
        why = f": {first.note}" if first is not None and isinf(first.error) and first.note else ""
        return f"{self.first_divergence or ''}{why}"


def quick_check(  # noqa: PLR0913
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    *,
    provider: str = "cpu",
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    seed: int = 0,
    data: Source | None = None,
    fixed: Mapping[str, NDArray[np.generic]] | None = None,
    progress: Callable[[str], None] | None = None,
) -> QuickCheck:
    """Run both models, unoptimised, on the same seeded inputs and compare their outputs and inner tensors.

    Args:
        before: The original with its weights loaded; not changed.
        after: The folded model, likewise.
        provider: "cpu" or "cuda".
        shapes: Shapes of inputs by name, where the model leaves them open.
        seed: Seed of the inputs.
        data: Batches for further runs, of which the first few are compared.
        fixed: Inputs that are the same in every run (`bnfold.inputs`).
        progress: Told what is being done, one clause at a time.

    Raises:
        MissingPackageError, ProviderError: The models cannot be run there.
        DataError, UsageError: No input can be made up, or `shapes` contradicts the model.
    """
    tell, held = progress or (lambda _: None), dict(fixed or {})
    overrides = dict(shapes or {}) | {name: value.shape for name, value in held.items()}
    interface = compare_interfaces(before.graph, after.graph)
    if interface:
        return QuickCheck(provider, interface, (), (), (), interface[0].name, failed=True, proves=True)
    specs = read_inputs(before)
    fill_shapes(specs, batch=2, spatial=SPATIAL_SIZES[0], overrides=overrides)
    tell("loading both models")
    pair, findings = pair_up(before, after, provider), Findings()
    runs: list[Mapping[str, tuple[int, ...]]] = []
    sizes: tuple[int, int] | None = None
    first: Arrays = {}

    def draw(seed: int, size: tuple[int, int]) -> Arrays:
        return synthesise(specs, seed=seed, batch=size[0], spatial=size[1], overrides=overrides) | held

    while len(runs) < 2 and (candidates := size_choices(specs, overrides, sizes)):
        found = _run_original(pair, candidates, partial(draw, seed + 2 * len(runs)), optional=bool(runs))
        if found is None:
            findings.notes.append("The model refuses a second batch or image size, so one size was run.")
            break
        sizes, feeds, values = found
        tell(f"comparing at {', '.join(f'{name} {value.shape}' for name, value in feeds.items())}")
        other = draw(seed + 1, sizes) if not runs else None
        examine(pair, findings, feeds, values, other)
        runs.append({name: value.shape for name, value in feeds.items()})
        first = first or feeds
    tell("comparing on constants and impulses")
    tried = patterns(first, held, seed)
    kinds = [kind for found, feeds in tried if _runs_on(pair, findings, found, feeds) for kind in found]
    given = _examine_given(pair, findings, data, held, tell)
    check = _conclude(pair, findings, (before.graph, after.graph), (*runs, *given), len(given))
    return replace(check, kinds=tuple(kinds), held=pair.cut)


def _run_original(
    pair: Pair,
    candidates: Sequence[tuple[int, int]],
    draw: Callable[[tuple[int, int]], Arrays],
    *,
    optional: bool,
) -> tuple[tuple[int, int], Arrays, Arrays] | None:
    """The first sizes that the original accepts, its inputs and its values; None if it accepts none and need not."""
    refusals = []
    for size in candidates:
        feeds = draw(size)
        try:
            return size, feeds, pair.original.session.run((*pair.compared, *pair.cut), feeds)
        except ProviderError as error:
            refusals.append(error)
    if optional:
        return None
    raise refusals[0]


def _runs_on(pair: Pair, findings: Findings, kinds: Sequence[str], feeds: Arrays) -> bool:
    """Compare on patterns, if the original takes them."""
    try:
        values = pair.original.session.run((*pair.compared, *pair.cut), feeds)
    except ProviderError:
        findings.notes.append(f"The model refuses {' and '.join(kinds)} as input, so that was left out.")
        return False
    examine_pattern(pair, findings, feeds, values)
    return True


def _examine_given(
    pair: Pair, findings: Findings, data: Source | None, held: Arrays, tell: Callable[[str], None]
) -> list[Mapping[str, tuple[int, ...]]]:
    """Runs on the caller's data, after the made-up ones; the shapes of each."""
    runs: list[Mapping[str, tuple[int, ...]]] = []
    for batch in given_batches(data):
        feeds = batch | held
        tell(f"comparing on batch {len(runs)} of the data")
        values = pair.original.session.run((*pair.compared, *pair.cut), feeds)
        examine(pair, findings, feeds, values, None)
        runs.append({name: value.shape for name, value in feeds.items()})
    if data is not None:
        findings.notes.append(describe_given(data, runs))
    return runs


def _conclude(
    pair: Pair,
    findings: Findings,
    graphs: tuple[onnx.GraphProto, onnx.GraphProto],
    runs: tuple[Mapping[str, tuple[int, ...]], ...],
    given: int,
) -> QuickCheck:
    """Sort what was found into outputs, inner tensors and notes."""
    graph = graphs[0]
    trusted = [name for name in pair.compared if name not in findings.random]
    anchors: set[str] = set()
    for output in (value.name for value in graph.output):
        if output not in trusted:
            before_it = last_before(graph, output, frozenset(trusted))
            anchors.update(before_it)
            findings.notes.append(_explain_left_out(pair, findings, output, before_it))
        elif output not in findings.alive and findings.worst[output].dtype in FLOATS:
            findings.notes.append(
                f"Output {output} does not change when the input does: that it agrees proves nothing."
            )
    outputs = [findings.worst[name] for name in pair.outputs if name in trusted]
    outputs += [
        failure(name, f"the type changed from {old} to {new}", old)
        for name, (old, new) in pair.retyped.items()
        if name not in trusted
    ]
    inner = [findings.worst[name] for name in pair.inner if name in trusted]
    places = {name: place for place, name in enumerate(name for node in graph.node for name in node.output)}
    failures = sorted(
        (entry.name for entry in (*outputs, *inner) if entry.failed), key=lambda name: places.get(name, -1)
    )
    proving = (anchors | {entry.name for entry in outputs}) & findings.alive - _blind(pair, graphs, trusted)
    proves = any(findings.worst[name].compared for name in proving)
    if not proves:
        findings.notes.append(
            "Nothing that responds to the input was compared at an output: this check proves nothing."
        )
    return QuickCheck(
        pair.before.session.provider,
        tuple(outputs),
        tuple(inner),
        (*findings.notes, *_remarks(pair)),
        runs,
        failures[0] if failures else None,
        failed=bool(failures),
        proves=proves,
        given=given,
    )


def _blind(pair: Pair, graphs: tuple[onnx.GraphProto, onnx.GraphProto], trusted: Sequence[str]) -> set[str]:
    """What follows a held decision whose inputs were neither compared nor computed by the same nodes: no proof."""
    graph = graphs[0]
    random = {name for node in graph.node if node.op_type.startswith("Random") for name in node.output}
    hidden = (name for name in pair.cut if name not in random and not last_before(graph, name, frozenset(trusted)))
    return descendants(graph, {name for name in hidden if not computed_alike(*graphs, name)})


def _explain_left_out(pair: Pair, findings: Findings, output: str, before_it: tuple[str, ...]) -> str:
    if output in findings.random:
        why = "differs between two runs of the original"
    elif output in pair.cut:
        why = "is the outcome of a decision or a random draw, which may jump for a rounding"
    else:
        why = "follows a decision that could not be held, or is no tensor"
    names = ", ".join(before_it[:3]) + (f" and {len(before_it) - 3} more" if len(before_it) > 3 else "")
    instead = f"compared at {names} before it" if before_it else "nothing before it could be compared"
    return f"Output {output} {why}: left out, {instead}."


def coarser_note(count: int, kind: str) -> str:
    """What a reader must know of a model that is compared with one in a finer type."""
    tensors = "1 tensor" if count == 1 else f"{count} tensors"
    return (
        f"The second model computes {tensors} through {kind}, which the first does not: differences up to"
        f" {TOLERANCE[kind]:.2g} of their scale are allowed."
    )


def _remarks(pair: Pair) -> Iterable[str]:
    """What a reader of the numbers must know about how they were computed."""
    if pair.cut:
        yield f"{len(pair.cut)} values that may jump were taken from the original's run in both models."
    if pair.before.session.provider == "cpu" and coarsest(pair) in ("float16", "bfloat16"):
        yield f"{coarsest(pair)} was computed in float32 arithmetic: onnxruntime's CPU provider has no other."
    if pair.coarser:
        yield coarser_note(len(pair.coarser), coarsest(pair))
    for session in (pair.original.session, pair.after.session):
        elsewhere = session.confirm_placement()
        if elsewhere:
            yield f"{len(elsewhere)} nodes of shape arithmetic ran on the CPU: {', '.join(elsewhere[:5])}."
