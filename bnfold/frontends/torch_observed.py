"""Runs of a module that `torch.export` cannot capture: what each module in it is called with, and who reaches into it.

Every decision by the numbers of a tensor is made both ways once, so that both branches of `if x.sum() > 0` are run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bnfold.errors import ModelError
from bnfold.frontends.torch_arguments import Arguments
from bnfold.frontends.torch_capture import copied, silent
from bnfold.frontends.torch_decisions import Decisions, Site, asks, intercepted
from bnfold.frontends.torch_unseen import Coverage, Unseen, covering, unseen

if TYPE_CHECKING:
    from torch import nn

#: What can be compared.
_PLAIN = (tuple, bool, int, float, str)

#: Runs with forced decisions; what they do not reach counts as not observed.
_MOST_RUNS = 64


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module.

    Attributes:
        leaves: The inputs; floating-point tensors without their numbers, on the meta device.
        spec: How they stand in the positional and keyword arguments.
        kinds: Shape, dtype and device of each tensor, and every other input itself: equal for calls that are alike.
    """

    leaves: tuple[Any, ...]
    spec: Any
    kinds: tuple[Any, ...]

    @property
    def is_of_tensors(self) -> bool:
        """Whether the inputs are tensors, one for each positional argument."""
        return all(_is_tensor(leaf) for leaf in self.leaves) and self.spec == _flat_spec(len(self.leaves))


@dataclass(eq=False)
class Observation:
    """What the runs showed; modules by their first path.

    Attributes:
        calls: The calls of each module that differ.
        opened: Modules that something outside of them reaches into, and how.
        norms: Modules whose own forward pass normalises.
        decides: Modules whose own forward pass turns numbers of a tensor into Python's.
        order: All modules that were called, in the order of their first calls.
        coverage: What was run of the user's code.
        paths: The decisions of each run that ended well, the one without any that were forced first.
    """

    calls: dict[str, list[Call]] = field(default_factory=dict)
    opened: dict[str, str] = field(default_factory=dict)
    norms: set[str] = field(default_factory=set)
    decides: set[str] = field(default_factory=set)
    order: dict[str, int] = field(default_factory=dict)
    coverage: Coverage = field(default_factory=dict)
    paths: list[tuple[bool, ...]] = field(default_factory=list)

    def unseen(self, module: nn.Module, path: str) -> Unseen:
        """What was not run of the code behind the forward pass of the module at `path`."""
        held = [*module.named_modules(remove_duplicate=False), *_tensors(module)]
        names = {name for full, _ in held for name in full.split(".")}
        return unseen(self.coverage.get(path, {}), module.get_submodule(path), frozenset(names))


def observe(module: nn.Module, inputs: Arguments) -> Observation:
    """Run copies of `module` on the example inputs.

    Raises:
        ModelError: It does not run.
    """
    found = Observation()
    waiting: deque[tuple[bool, ...]] = deque([()])
    tried: set[tuple[Site, bool]] = set()
    for _ in range(_MOST_RUNS):
        if not waiting:
            break
        forced = waiting.popleft()
        made, error = _Run(copied(module), found).go(inputs, forced)
        if error is None:
            found.paths.append(tuple(outcome for _, outcome in made))
        elif not forced:
            first = next((line for line in str(error).splitlines() if line.strip()), "")
            raise ModelError(
                f"module(*example_inputs) raises {type(error).__name__}{': ' * bool(first)}{first.strip()}",
                where=type(module).__name__,
                remedy="correct it, or the example inputs",
            ) from error
        waiting.extend(_turned(made, len(forced), tried))
    return found


def _turned(made: list[tuple[Site, bool]], start: int, tried: set[tuple[Site, bool]]) -> Iterator[tuple[bool, ...]]:
    """What to force next: for each decision that was not made both ways yet, all before it, and the other outcome."""
    outcomes = tuple(outcome for _, outcome in made)
    tried.update(made)
    for place, (site, outcome) in enumerate(made):
        if place >= start and (site, not outcome) not in tried:
            tried.add((site, not outcome))
            yield (*outcomes[:place], not outcome)


class _Run:
    """One run of a copy of the module."""

    def __init__(self, module: nn.Module, found: Observation) -> None:
        self._module, self._found = module, found
        self._stack: list[str] = []
        self._names: dict[str, list[str]] = {}
        self._first: dict[str, str] = {}
        first: dict[int, str] = {}
        for path, part in module.named_modules(remove_duplicate=False):
            self._first[path] = first.setdefault(id(part), path)
            self._names.setdefault(self._first[path], []).append(path)
        self._owners: dict[int, list[str]] = {}
        for name, tensor in _tensors(module):
            self._owners.setdefault(id(tensor), []).append(self._first[name.rpartition(".")[0]])

    def go(self, inputs: Arguments, forced: tuple[bool, ...]) -> tuple[list[tuple[Site, bool]], Exception | None]:
        """The decisions that were made, and what was raised."""
        import torch  # noqa: PLC0415
        from torch.utils import _pytree  # noqa: PLC0415

        for path in self._names:
            if not isinstance(self._module.get_submodule(path), torch.jit.ScriptModule):  # which takes no hooks
                self._watch(path, self._module.get_submodule(path))
        decisions = Decisions(forced, lambda: self._stack[-1])
        sample = _pytree.tree_map(lambda leaf: leaf.clone() if _is_tensor(leaf) else leaf, inputs)

        def answer(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            self._look(function, (args, kwargs))
            result = function(*args, **kwargs)
            return decisions.settle(result) if asks(function) else result

        with torch.random.fork_rng(), torch.no_grad(), silent():
            torch.manual_seed(0)
            self._stack = [""]
            try:
                with intercepted(answer), covering(self._found.coverage, lambda: self._stack[-1]):
                    sample.call(self._module)
            except Exception as error:  # the user's forward pass may raise anything
                return decisions.made, error
        return decisions.made, None

    def _watch(self, path: str, part: nn.Module) -> None:
        def enter(_part: nn.Module, args: Any, kwargs: Any) -> None:
            if self._stack != [""] or path:
                if not _is_stateless(part):  # an activation that many modules share is the same to all of them
                    self._reached(path, f"{self._stack[-1] or 'the whole'} calls {path}")
                self._stack.append(path)
            self._note(path, args, kwargs)

        def leave(*_: Any) -> None:
            if len(self._stack) > 1:
                self._stack.pop()

        part.register_forward_pre_hook(enter, prepend=True, with_kwargs=True)
        part.register_forward_hook(leave, always_call=True)

    def _reached(self, path: str, how: str) -> None:
        """Whatever holds the module, and does not run, is reached into; of its names one counts that all run."""
        idle = [[above for above in self._above(name) if above not in self._stack] for name in self._names[path]]
        for above in {above for found in idle for above in found} if all(idle) else ():
            self._found.opened.setdefault(above, how)

    def _above(self, name: str) -> list[str]:
        """The modules between the whole and the module of that name."""
        pieces = name.split(".")
        return [self._first[".".join(pieces[:length])] for length in range(1, len(pieces))]

    def _note(self, path: str, args: Any, kwargs: Any) -> None:
        from torch.utils import _pytree  # noqa: PLC0415

        leaves, spec = _pytree.tree_flatten((tuple(args), dict(kwargs)))
        self._found.order.setdefault(path, len(self._found.order))
        call = Call(tuple(map(_kept, leaves)), spec, tuple(map(_kind, leaves)))
        calls = self._found.calls.setdefault(path, [])
        if not any(_equal(call, other) for other in calls):
            calls.append(call)

    def _look(self, function: Any, given: Any) -> None:
        """Whose parameters a function of torch reads, and whether it normalises or decides."""
        import torch  # noqa: PLC0415
        from torch.utils import _pytree  # noqa: PLC0415

        here = self._stack[-1]
        if function in (torch.nn.functional.batch_norm, torch.batch_norm):
            self._found.norms.add(here)
        if getattr(function, "__name__", "") in ("item", "tolist", "numpy", "__float__", "__int__", "__index__"):
            self._found.decides.add(here)
        if getattr(function, "__self__", None) in _facts():
            return
        for leaf in _pytree.tree_leaves(given):
            owners = self._owners.get(id(leaf), [""])
            if not any(owner in self._stack for owner in owners):
                for owner in owners:
                    how = f"{here or 'the whole'} reads a parameter of {owner}"
                    self._found.opened.setdefault(owner, how)
                    self._reached(owner, how)


def _facts() -> tuple[Any, ...]:
    """Attributes of tensors that say nothing about their numbers."""
    from torch import Tensor  # noqa: PLC0415

    return tuple(
        getattr(Tensor, name) for name in ("dtype", "device", "shape", "ndim", "is_cuda", "requires_grad", "layout")
    )


def _tensors(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every parameter and buffer, under each of its names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _is_tensor(leaf: object) -> bool:
    import torch  # noqa: PLC0415

    return isinstance(leaf, torch.Tensor)


def _kind(leaf: Any) -> Any:
    return (tuple(leaf.shape), leaf.dtype, leaf.device) if _is_tensor(leaf) else leaf


def _kept(leaf: Any) -> Any:
    """A tensor without its numbers, where those are no indices; the rest as it is."""
    if not _is_tensor(leaf):
        return leaf
    return leaf.detach().to("meta") if leaf.is_floating_point() else leaf.detach().clone()


def _equal(one: Call, other: Call) -> bool:
    if one.spec != other.spec or len(one.kinds) != len(other.kinds):
        return False
    pairs = zip(one.kinds, other.kinds, strict=True)
    return all(a is b or (type(a) is type(b) and isinstance(a, _PLAIN) and a == b) for a, b in pairs)


def _flat_spec(count: int) -> Any:
    from torch.utils import _pytree  # noqa: PLC0415

    return _pytree.tree_flatten((tuple(range(count)), {}))[1]


def _is_stateless(part: nn.Module) -> bool:
    """Whether it is a layer of torch's own without parameters, buffers and modules in it, which no fold changes."""
    own = type(part).__module__.startswith("torch.nn.modules.")
    return own and not any((part._parameters, part._buffers, part._modules))
