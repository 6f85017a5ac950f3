"""What must hold for the recalibration of any PyTorch module: a fixed point, seen by hooks that know nothing of bnfold.

Run in eval mode over the same data, every BatchNorm that has new statistics sees inputs of that mean and variance, and
every other one has the statistics that it had.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import bnfold
from bnfold.errors import BnfoldError
from bnfold.frontends.torch_capture import copied
from tests.random_module_checks import Findings
from tests.random_modules import RandomModule

EXACT = 1e-8  # of a standard deviation, of a variance


def recalibrated(made: RandomModule) -> Findings:
    """Recalibrate on three batches of different sizes, and look."""
    found = Findings()
    torch.manual_seed(2)
    rest, dtype = made.inputs[0].shape[1:], made.inputs[0].dtype
    batches = [1.5 * torch.randn(n, *rest, dtype=dtype) + 0.3 for n in (9, 16, 7)]
    old = {name: value.clone() for name, value in made.module.state_dict().items()}
    try:
        result = bnfold.recalibrate(made.module, batches, example_inputs=made.inputs, force=True)
    except BnfoldError as error:
        found.notes.append(f"recalibrate: {type(error).__name__}: {str(error)[:90]}")
        return found
    if any(not torch.equal(value, old[name]) for name, value in made.module.state_dict().items()):
        found.failures.append("recalibrate: the user's module changed")
    new = {entry.name.split("/")[0]: entry for entry in result.report.recalibrated}  # NormAct's is "l3/batch_norm"
    found.counts["recalibrate", "new statistics"] += len(new)
    found.counts.update(("recalibrate", f"left: {entry.hindrance.name}") for entry in result.report.left)
    seen = _seen(copied(result.model), batches)
    paths = {name: part for name, part in result.model.named_modules() if isinstance(part, _BatchNorm)}
    for name, part in paths.items():
        if part.running_mean is None:
            continue
        if name in new and name in seen and not new[name].dead:
            found.counts["recalibrate", "seen by hooks"] += 1
            found.failures.extend(f"recalibrate: {name}: {line}" for line in _off(part, seen[name]))
        if name not in new and name in seen and not _unchanged(name, part, old):
            found.failures.append(f"recalibrate: {name} has other statistics, and the report does not say so")
    return found


def _seen(module: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    """All that each BatchNorm gets, (channels, values)."""
    seen: dict[str, list[Tensor]] = {}
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm):

            def look(_part: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], name: str = name) -> None:
                x = args[0] if args else kwargs["input"]
                seen.setdefault(name, []).append(x.detach().transpose(0, 1).flatten(1).clone())

            part.register_forward_pre_hook(look, with_kwargs=True)
    with torch.no_grad():
        for batch in batches:
            module(batch.clone())
    return {name: torch.cat(parts, 1) for name, parts in seen.items()}


def _off(part: _BatchNorm, values: Tensor) -> list[str]:
    mean, var = values.mean(1), values.var(1, unbiased=False)
    assert part.running_mean is not None
    assert part.running_var is not None
    lines = []
    if not ((part.running_mean - mean).abs() <= EXACT * (var.sqrt() + 1e-6)).all():
        lines.append(f"the mean is off by {float((part.running_mean - mean).abs().max()):.2g}")
    if not ((part.running_var - var).abs() <= EXACT * (var + 1e-9)).all():
        lines.append(f"the variance is off by {float((part.running_var - var).abs().max()):.2g}")
    return lines


def _unchanged(name: str, part: _BatchNorm, old: dict[str, Tensor]) -> bool:
    assert part.running_mean is not None
    assert part.running_var is not None
    mean, var = old[f"{name}.running_mean"], old[f"{name}.running_var"]
    return bool(torch.equal(part.running_mean, mean) and torch.equal(part.running_var, var))
