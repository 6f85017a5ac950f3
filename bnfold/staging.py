"""Both models stage by stage: every value that they share, computed from those before it as the original has them.

`error(after_t(h)) <= 4*error(before_t(h)) + 64*u*scale` for every shared value `t`, against float64, with `h` the
original's own values: but for rounding both models are then equal, by induction along the folded graph. Rounding that
grows through the layers does not reach a stage, so that float64 can be believed there, and a fault shows at its own
place and in full size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import onnx

from bnfold.comparison import UNIT_ROUNDOFF
from bnfold.dataflow import infer_types, last_before
from bnfold.holding import computed_name
from bnfold.judging import Errors
from bnfold.probing import element_number
from bnfold.quickcheck import QuickCheck
from bnfold.runtime import exposing, open_session
from bnfold.verdicts import Arrays, Repeat, verdicts

#: Sums of these types are added up in float32 and rounded once, so that a stage errs by few roundings beyond four times
#: the original's error: right folds of 140 random graphs use up to half of this. 64 would be 3 % of the scale, or 25 %.
ROUNDINGS = {"float16": 16.0, "bfloat16": 16.0}


def judge_stages(repeat: Repeat, before: onnx.ModelProto, after: onnx.ModelProto) -> dict[str, Errors | None]:
    """The worst verdict on every shared value over all runs, given the original's values before it.

    Args:
        repeat: The runs; what its check compared is shared.
        before: The original with its weights loaded.
        after: The folded model, likewise.

    Returns:
        The verdicts by name; None where there is none, as shapes or types differ.

    Raises:
        ModelError: The original cannot be computed in float64.
        ProviderError: A model cannot be run.
    """
    check = repeat.check
    shared = shared_values(check, before, after)
    original = open_session(exposing(before, [*shared, *check.held]), check.provider)
    held = {name: original.types[name] for name in (*shared, *check.held)}

    def runs() -> Iterator[tuple[Arrays, bool]]:
        for feeds, is_pattern in repeat:
            yield feeds | original.run(tuple(held), feeds), is_pattern

    models = [staged(model, held, shared) for model in (before, after)]
    names = [computed_name(name) for name in shared]
    found = verdicts(models[0], models[1], names, runs(), check.provider, roundings=ROUNDINGS)
    return {name: found.get(computed_name(name)) for name in shared}


def shared_values(check: QuickCheck, before: onnx.ModelProto, after: onnx.ModelProto) -> list[str]:
    """The floating-point values that were compared, and that nodes of both graphs compute in the same type."""
    computed = [{name for node in model.graph.node for name in node.output} for model in (before, after)]
    types = infer_types(after)
    entries = [entry for entry in (*check.inner, *check.comparisons) if entry.dtype in UNIT_ROUNDOFF]
    alike = [entry.name for entry in entries if types.get(entry.name, entry.dtype) == entry.dtype]
    return [name for name in alike if name in computed[0] & computed[1]]


def staged(model: onnx.ModelProto, held: Mapping[str, str], shown: Sequence[str]) -> onnx.ModelProto:
    """A copy of `model` with the values `held` as inputs, which are computed besides under another name.

    Args:
        model: With its weights loaded; not changed.
        held: Names of the values, and their element types by NumPy's name.
        shown: Those of them that become the outputs, by their other name (`bnfold.holding.computed_name`).
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    for node in graph.node:
        for place, name in enumerate(node.output):
            if name in held:
                node.output[place] = computed_name(name)
    graph.ClearField("output")
    graph.output.extend(onnx.ValueInfoProto(name=computed_name(name)) for name in shown)
    for name, kind in held.items():
        graph.input.append(onnx.helper.make_tensor_value_info(name, element_number(kind), None))
    return copy


def established(
    graph: onnx.GraphProto, stages: Mapping[str, bool], sure: Collection[str], held: Collection[str]
) -> set[str]:
    """What is equal in both models: what is sure to be, and where a stage that is right starts from what is equal.

    Args:
        graph: The folded graph, in topological order.
        stages: Whether the stage that ends in a shared value is right, by its name.
        sure: Names of the values that were seen to be equal as the models compute them.
        held: Outcomes of decisions, which both models are fed.
    """
    equal, cuts = set(sure), frozenset((*stages, *held))
    for name in (name for node in graph.node for name in node.output if stages.get(name)):
        if equal.issuperset(set(last_before(graph, name, cuts)) - set(held)):
            equal.add(name)
    return equal
