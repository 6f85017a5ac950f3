"""The parts of a module that cannot be captured whole: the largest modules in it that can and are used as a whole.

A part may be folded by itself if an equivalent one can take its place: nothing outside of it calls or reads what is
inside, it is called with tensors, and no code that was not observed may use it in another way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from bnfold.decision import Kept, Reason, Refusal, Subject
from bnfold.errors import ModelError
from bnfold.frontends.torch_arguments import Arguments
from bnfold.frontends.torch_capture import Captured, capture
from bnfold.frontends.torch_lazy import is_lazy, lazy_modules
from bnfold.frontends.torch_observed import Call, Observation
from bnfold.frontends.torch_open import open_parameters
from bnfold.frontends.torch_unseen import Unseen

if TYPE_CHECKING:
    from torch import nn

#: Kinds of calls of one module; each is captured.
_MOST_KINDS = 8


@dataclass(frozen=True, eq=False)
class Part:
    """A module that is folded by itself.

    Attributes:
        path: Its path in the whole.
        captures: One for each kind of call; their names are those of the whole.
        because: Why it is not part of something larger; None for the whole.
    """

    path: str
    captures: tuple[Captured, ...]
    because: Refusal | None = None


@dataclass(frozen=True, eq=False)
class Parts:
    """What can be folded by itself, and what cannot.

    Attributes:
        parts: In the order of their first calls.
        kept: BatchNorms that are in no part; by the place of their first call, which is that of `places`.
        places: The place in the order of first calls, by path; what was never called comes last.
        refused: Modules that torch.export could not capture, and its reason, as a clause.
        is_captured: Whether it captures the whole, and only the open parameters of that are why there are parts.
    """

    parts: list[Part] = field(default_factory=list)
    kept: list[tuple[str, Kept]] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    is_captured: bool = False


def find_parts(
    module: nn.Module, seen: Observation, why: str, free: tuple[str, ...] = (), *, is_captured: bool = False
) -> Parts:
    """Split `module`, which cannot be captured as a whole because of `why`, into parts.

    Args:
        module: The module.
        seen: What it did on the example inputs.
        why: A clause.
        free: Its open parameters (`bnfold.frontends.torch_open`), which it may hand on to its parts.
        is_captured: Whether torch.export captures the whole, so that what no run reached hangs on these alone; methods
            called there are not looked into then, as they are not in a module without such parameters.
    """
    search = _Search(module, seen, is_open=bool(free), is_captured=is_captured)
    search.found.refused[""] = why
    search.descend("", _open(free) if is_captured else _uncaptured(""))
    search.found.parts.sort(key=lambda part: seen.order[part.path])
    return search.found


class _Search:
    """The walk over the module tree, from the outermost modules on."""

    def __init__(self, module: nn.Module, seen: Observation, *, is_open: bool, is_captured: bool) -> None:
        self._module, self._seen, self._is_open = module, seen, is_open
        self.found = Parts(places=dict(seen.order), is_captured=is_captured)
        self._unseen: dict[str, Unseen] = {}
        self._lazy = lazy_modules(module)
        self._first: dict[int, str] = {}
        for path, part in module.named_modules(remove_duplicate=False):
            self._first.setdefault(id(part), path)

    def descend(self, path: str, because: Refusal) -> None:
        """The forward pass of the module at `path` is left as it is: look into the modules that it holds."""
        part = self._module.get_submodule(path)
        if path in self._seen.norms and not _is_batchnorm(part):
            self._keep(f"{path}/batch_norm".lstrip("/"), path, "batch_norm", 0, because)
        for name, child in part.named_children():
            full = f"{path}.{name}".lstrip(".")
            if self._first[id(child)] == full:
                self._visit(full, child, because)

    def _visit(self, path: str, part: nn.Module, because: Refusal) -> None:
        if not self._normalises(path, part):
            return
        if _is_script(part):
            held = Refusal(Reason.MODULE_CANNOT_HOLD_IT, path, f"TorchScript holds {path}")
            for name, inner in part.named_modules(prefix=path):
                if _is_batchnorm(inner):
                    self._keep(name, path, str(getattr(inner, "original_name", "")), _channels(inner), held)
            return
        if _is_batchnorm(part):
            reached = path in self._seen.calls
            alone = (self._against(path, part) or because) if reached else Refusal(Reason.NOT_REACHED)
            if path in self._lazy:
                alone = Refusal(Reason.NOT_INITIALISED, path)
            elif part.training or getattr(part, "running_mean", None) is None:
                alone = Refusal(Reason.NORMALISES_BY_BATCH_STATISTICS, path)
            self._keep(path, path, type(part).__name__, _channels(part), alone)
            return
        refusal = self._against(path, part)
        if refusal is None:
            try:
                self.found.parts.append(Part(path, self._captured(path, part), because))
                return
            except ModelError as error:
                self.found.refused[path] = error.what
                refusal = _uncaptured(path)
        self.descend(path, refusal if path in self._seen.calls else because)

    def _captured(self, path: str, part: nn.Module) -> tuple[Captured, ...]:
        """One for each kind of call; raises ModelError where torch.export cannot capture one of them."""
        return tuple(capture(held(part, path, call), tensors_of(call)) for call in self._seen.calls[path])

    def _normalises(self, path: str, part: nn.Module) -> bool:
        inside = any(name == path or name.startswith(f"{path}.") for name in self._seen.norms)
        return inside or any(_is_batchnorm(child) for child in part.modules())

    def _keep(self, name: str, path: str, kind: str, channels: int, refusal: Refusal) -> None:
        self.found.kept.append((path, Kept(Subject(name, kind, channels, True), (refusal,))))

    def _against(self, path: str, part: nn.Module) -> Refusal | None:
        """Why the module cannot be folded by itself."""
        calls = self._seen.calls.get(path)
        if not calls:
            return Refusal(Reason.NOT_REACHED)
        if path in self._seen.opened:
            return Refusal(Reason.PART_ENDS_HERE, path, self._seen.opened[path])
        if any(not _is_plain(call) for call in calls):
            return Refusal(Reason.PART_ENDS_HERE, path, "it takes numbers or objects that may differ from call to call")
        if self._is_open and (names := next(filter(None, (open_parameters(part, arguments(c)) for c in calls)), ())):
            return _open(names, path)
        if len(calls) > _MOST_KINDS:
            return Refusal(Reason.CALLS_DISAGREE, path, f"{len(calls)} kinds of inputs")
        where = next(filter(None, self._not_observed(path, part, calls)), "")
        return Refusal(Reason.CODE_NOT_OBSERVED, path, where) if where else None

    def _not_observed(self, path: str, part: nn.Module, calls: list[Call]) -> Iterator[str]:
        """Where code around the module was not run that may use it otherwise; empty strings say nothing."""
        inside = {name for full, _ in [*part.named_modules(), *part.named_parameters()] for name in full.split(".")}
        pieces = path.split(".")
        strict = not all(call.is_of_tensors for call in calls) or not _fixes_ranks(part)
        for length in range(len(pieces)):
            above = ".".join(pieces[:length])
            unseen = self._unseen_of(above)
            yield "" if self.found.is_captured else unseen.anything
            yield next((unseen.names[name] for name in (*pieces[length:], *sorted(inside)) if name in unseen.names), "")
            if strict and not self.found.is_captured:
                yield unseen.at_all
                made_of_numbers = above in self._seen.decides and any(_has_flags(call) for call in calls)
                yield "a number that a tensor holds may become a flag" if made_of_numbers else ""

    def _unseen_of(self, path: str) -> Unseen:
        if path not in self._unseen:
            self._unseen[path] = self._seen.unseen(self._module, path)
        return self._unseen[path]


def held(part: nn.Module, path: str, call: Call) -> nn.Module:
    """A module that holds `part` alone, at the same path as the whole does, and calls it with a tuple of tensors."""
    from torch import nn  # noqa: PLC0415
    from torch.utils import _pytree  # noqa: PLC0415

    class Holder(nn.Module):
        def forward(self, tensors: tuple[Any, ...]) -> Any:
            given = iter(tensors)
            leaves = [next(given) if hasattr(leaf, "dtype") else leaf for leaf in call.leaves]
            args, kwargs = _pytree.tree_unflatten(leaves, call.spec)
            return self.get_submodule(path)(*args, **kwargs)

    holder: nn.Module = Holder()
    inner = holder
    *above, last = path.split(".")
    for name in above:
        inner.training = False
        inner.add_module(name, nn.Module())
        inner = inner.get_submodule(name)
    inner.training = False
    inner.add_module(last, part)
    return holder


def arguments(call: Call) -> Arguments:
    """What the module was called with."""
    from torch.utils import _pytree  # noqa: PLC0415

    args, kwargs = _pytree.tree_unflatten(list(call.leaves), call.spec)
    return Arguments(args, kwargs)


def tensors_of(call: Call) -> Arguments:
    """What `held` takes: tensors of the sizes, types and devices of the call's; floating-point numbers are zeros."""
    import torch  # noqa: PLC0415

    found = []
    for leaf, kind in zip(call.leaves, call.kinds, strict=True):
        if isinstance(leaf, torch.Tensor):
            found.append(torch.zeros_like(leaf, device=kind[2]) if leaf.is_meta else leaf)
    return Arguments((tuple(found),), {})


def ends_of(refusal: Refusal, because: Refusal) -> Refusal:
    """What is an input or an output to a part is none to the whole."""
    if refusal.reason not in (Reason.READS_MODEL_INPUT, Reason.IS_MODEL_OUTPUT):
        return refusal
    is_border = because.reason in (Reason.PART_ENDS_HERE, Reason.ARGUMENTS_ARE_OPEN)
    return replace(because, where=refusal.where) if is_border else because


def _uncaptured(path: str) -> Refusal:
    return Refusal(Reason.PART_ENDS_HERE, path, "torch.export cannot capture what calls it")


def _open(names: tuple[str, ...], path: str = "") -> Refusal:
    return Refusal(Reason.ARGUMENTS_ARE_OPEN, path, ", ".join(names))


def _is_plain(call: Call) -> bool:
    """Whether the inputs are tensors, flags, names and nothing."""
    return all(leaf is None or isinstance(leaf, bool | str) or hasattr(leaf, "dtype") for leaf in call.leaves)


def _has_flags(call: Call) -> bool:
    return any(isinstance(leaf, bool | str) for leaf in call.leaves)


def _is_batchnorm(part: nn.Module) -> bool:
    """A BatchNorm of torch, or of another library by the name of its class."""
    from torch.nn.modules.batchnorm import _NormBase  # noqa: PLC0415

    named = "BatchNorm" in getattr(part, "original_name", type(part).__name__) and hasattr(part, "running_mean")
    return (isinstance(part, _NormBase) and "Instance" not in type(part).__name__) or named


def _is_script(part: nn.Module) -> bool:
    import torch  # noqa: PLC0415

    return isinstance(part, torch.jit.ScriptModule)


def _channels(norm: nn.Module) -> int:
    """How many channels a BatchNorm has; 0 where it does not tell."""
    mean = getattr(norm, "running_mean", None)
    known = mean is not None and not is_lazy(mean)
    return int(getattr(norm, "num_features", 0) or (mean.numel() if known else 0))  # type: ignore[union-attr]


def _fixes_ranks(part: nn.Module) -> bool:
    """Whether every BatchNorm in it refuses inputs of any other rank."""
    from torch import nn  # noqa: PLC0415

    known = (nn.BatchNorm2d, nn.BatchNorm3d)
    norms = [child for child in part.modules() if _is_batchnorm(child)]
    return bool(norms) and all(type(norm) in known for norm in norms)
