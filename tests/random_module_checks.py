"""What must hold for the fold of any PyTorch module, examined on one random module: sentences that do not hold."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import bnfold
from bnfold.errors import BnfoldError
from bnfold.frontends.torch_capture import copied
from tests.random_module_steps import as_tensors
from tests.random_modules import RandomModule

EXACT = 1e-9  # of the scale of the output, in float64


@dataclass(frozen=True, eq=False)
class Findings:
    """What one module showed: sentences that do not hold, what could not be examined, and what became of BatchNorms."""

    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)


def examine(made: RandomModule, *, checked: bool = False) -> Findings:
    """Fold into the class of its own and into a graph; with `checked` also with bnfold's own check, in float32."""
    found = Findings()
    before = _state(made.module)
    for form in ("own", "graph"):
        folded = _folded(made, form, found)
        if folded is not None:
            found.failures.extend(f"{form}: {line}" for line in _differences(made, folded))
        if folded is not None and form == "own":
            found.failures.extend(_on_options(made, folded))
            _stored(made, folded, found)
    if before.keys() != _state(made.module).keys() or any(
        not _same(v, _state(made.module)[k]) for k, v in before.items()
    ):
        found.failures.append("the user's module changed")
    if checked:
        _check(made, found)
    return found


def _folded(made: RandomModule, form: str, found: Findings) -> nn.Module | None:
    try:
        result = bnfold.fold(made.module, example_inputs=_copied(made.inputs), verify=False, as_graph=form == "graph")
    except BnfoldError as error:
        found.notes.append(f"{form}: {type(error).__name__}: {str(error)[:90]}")
        return None
    found.counts.update((form, _line(decision)) for decision in result.decisions)
    if form == "own" and type(result.module) is not type(made.module):
        found.failures.append("own: another class")
    return result.module  # type: ignore[no-any-return]


def _line(decision: Any) -> str:
    refusals = getattr(decision, "refusals", ())
    return type(decision).__name__ + "".join(f" {r.reason.name}" for r in refusals[:1])


def _differences(made: RandomModule, folded: nn.Module) -> list[str]:
    """On the example, on other numbers, on another batch; twice, as a module may remember something."""
    old_net, new_net = copied(made.module), copied(folded)
    lines = []
    for label, x in _inputs(made.inputs[0]):
        try:
            old = _run(old_net, x)
        except RuntimeError:
            continue  # the module itself does not take it
        try:
            new = _run(new_net, x)
        except Exception as error:  # whatever it raises is a finding, but a graph may say that it does not hold
            if "Guard failed" in str(error):
                continue
            lines.append(f"{label}: {type(error).__name__}: {str(error)[:200]}")
            continue
        lines.extend(f"{label}: {line}" for line in _unequal(old, new))
    return lines


def _inputs(x: Tensor) -> list[tuple[str, Tensor]]:
    torch.manual_seed(1)
    larger = (*x.shape[:2], *(n + 2 for n in x.shape[2:]))
    return [
        ("example", x),
        ("other numbers", torch.randn_like(x)),
        ("large numbers", 30 * torch.randn_like(x) + 3),
        ("batch 5", torch.randn(5, *x.shape[1:], dtype=x.dtype)),
        ("another size", torch.randn(*larger, dtype=x.dtype)),
        ("negative", -torch.rand_like(x) * 5),
    ]


def _run(net: nn.Module, x: Tensor, options: tuple[Any, ...] = ()) -> list[Tensor]:
    """The outputs, and what became of the input, which the module may change."""
    given = x.clone()
    with torch.no_grad():
        made = net(given, *options)
    return [*(t.clone() for t in as_tensors(made)), given]


def _unequal(old: list[Tensor], new: list[Tensor]) -> list[str]:
    if len(old) != len(new):
        return [f"{len(old)} outputs became {len(new)}"]
    lines = []
    for i, (a, b) in enumerate(zip(old, new, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            lines.append(f"output {i}: {tuple(a.shape)} became {tuple(b.shape)}")
        elif not (worst := float((a - b).abs().max())) <= EXACT * max(float(a.abs().max()), 1.0):  # NaN is off too
            lines.append(f"output {i} is off by {worst:.2g}")
    return lines


def _on_options(made: RandomModule, folded: nn.Module) -> list[str]:
    """With other flags and numbers than those of the example."""
    lines = []
    for given in made.options:
        try:
            old = _run(copied(made.module), made.inputs[0], given)
        except RuntimeError:
            continue  # the module itself does not take them
        new = _run(copied(folded), made.inputs[0], given)
        lines.extend(f"own: called with {given}: {line}" for line in _unequal(old, new))
    return lines


def _stored(made: RandomModule, folded: nn.Module, found: Findings) -> None:
    """Its state dict, loaded into a new module of the class, gives the same numbers."""
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        torch.save(folded.state_dict(), file.name)
        try:
            loaded = bnfold.load_folded(type(made.module)().double().eval(), file.name)
        except BnfoldError as error:
            found.notes.append(f"load_folded: {type(error).__name__}: {str(error)[:90]}")
            return
    x = made.inputs[0]
    pairs = zip(_run(copied(folded), x), _run(loaded, x), strict=True)
    if not all(torch.equal(a, b) for a, b in pairs):
        found.failures.append("own: load_folded gives other numbers")


def _check(made: RandomModule, found: Findings) -> None:
    """In place the same numbers come out; and a right fold must not be refused."""
    inplace = copied(made.module)
    try:
        bnfold.fold(inplace, example_inputs=_copied(made.inputs), verify=False, inplace=True)
    except BnfoldError as error:
        found.notes.append(f"in place: {type(error).__name__}: {str(error)[:90]}")
    found.failures.extend(f"in place: {line}" for line in _differences(made, inplace))
    narrow = copied(made.module).float()
    try:
        bnfold.fold(narrow, example_inputs=tuple(x.float() for x in made.inputs))
    except bnfold.VerificationError as error:
        found.failures.append(f"bnfold's own check fails: {str(error)[:300]}")
    except BnfoldError as error:
        found.notes.append(f"checked: {type(error).__name__}: {str(error)[:90]}")


def _copied(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.clone() for x in inputs)


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a, b))
