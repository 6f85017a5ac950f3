"""Counts the floating-point operations of a PyTorch module by running it once: every call of an operator is seen.

So sizes are those of the run, whatever Python decides, and a module need not be captured. `torch.utils.flop_counter`
counts products alone, in which no BatchNorm appears.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from bnfold.flops import Flops, Uncounted, Work
from bnfold.frontends.torch_arguments import Arguments
from bnfold.frontends.torch_capture import copied, silent
from bnfold.frontends.torch_lazy import initialise
from bnfold.frontends.torch_operations import ARITHMETIC, FREE, work_of
from bnfold.frontends.torch_quiet import first_line

if TYPE_CHECKING:
    from torch import nn

_TYPE = "there is no formula for it here"
_BODY = "what it calls is not looked into"
_COMPLEX = "of complex numbers"


def count_flops(module: nn.Module, inputs: Arguments) -> Flops:
    """What one run of a copy of `module` on `inputs` computes; unknown where that fails."""
    import torch  # noqa: PLC0415
    from torch.utils import _pytree  # noqa: PLC0415

    tensors = [leaf for leaf in _pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
    shapes = {f"input {i}": tuple(tensor.shape) for i, tensor in enumerate(tensors)}
    sample: Arguments = _pytree.tree_map(lambda t: t.clone() if isinstance(t, torch.Tensor) else t, inputs)
    tally = _Tally()
    try:
        with torch.no_grad(), torch.random.fork_rng(), silent(), _in_parts():
            torch.manual_seed(0)
            running = initialise(copied(module), inputs)
            with _watched(tally):
                sample.call(running)
    except Exception as error:  # a forward pass may raise anything, also because it is watched
        return Flops(None, shapes, unknown=f"the module cannot be run to be counted: {first_line(error)}")
    return Flops(tally.work, shapes, tally.uncounted)


class _Tally:
    """What was counted so far, and what was not."""

    def __init__(self) -> None:
        self.work = Work()
        self._missing = Counter[tuple[str, str]]()

    @property
    def uncounted(self) -> tuple[Uncounted, ...]:
        """Each kind of operator that was left out."""
        return tuple(Uncounted(name, n, why) for (name, why), n in sorted(self._missing.items()))

    def leave_out(self, name: str, why: str) -> None:
        """Note a call that is not counted."""
        self._missing[name, why] += 1

    def add(self, function: Any, values: Mapping[str, Any], made: Any) -> None:
        """Count a call.

        Args:
            function: The operator, an overload.
            values: Its arguments by name.
            made: What it gave.
        """
        taken, given = _tensors(list(values.values())), _tensors(made)
        name = _plain(function)
        if name in FREE or function.is_view or not any(_is_number(t) for t in (*taken, *given)):
            return
        if any(t.is_complex() for t in (*taken, *given)):
            self.leave_out(name, _COMPLEX)
        elif name not in ARITHMETIC or not taken or not given:
            self.leave_out(name if function.namespace == "aten" else f"{function.namespace}::{name}", _TYPE)
        elif any(t.is_floating_point() for t in (taken[0], given[0])):
            self.work += work_of(name, values, tuple(taken[0].shape), tuple(given[0].shape))


@contextmanager
def _watched(tally: _Tally) -> Iterator[None]:
    """Let `tally` see every call of an operator; one made of others, unless it is known itself, is those."""
    from torch._ops import OpOverload  # noqa: PLC0415
    from torch.utils._python_dispatch import TorchDispatchMode  # noqa: PLC0415

    class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
        supports_higher_order_operators = True

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if not isinstance(func, OpOverload):
                tally.leave_out(str(func), _BODY)
                return func(*args, **kwargs)
            if func.namespace != "aten" or _plain(func) not in ARITHMETIC | FREE:
                with self:
                    made = func.decompose(*args, **kwargs)
                if made is not NotImplemented:
                    return made
            values = _by_name(func, args, kwargs)
            made = func(*args, **kwargs)
            tally.add(func, values, made)
            return made

    with Mode():  # type: ignore[no-untyped-call]
        yield


@contextmanager
def _in_parts() -> Iterator[None]:
    """No compiled code, no optimised script, no attention in one kernel: what is inside of those is not seen."""
    import torch  # noqa: PLC0415
    from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: PLC0415

    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.jit.optimized_execution(False))  # type: ignore[attr-defined]
        yield


def _plain(function: Any) -> str:
    """`relu` of `aten::relu_`."""
    name = str(function._schema.name).rpartition("::")[2]
    return name if name in FREE else name.removesuffix("_")


def _by_name(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call, those that were left out as the schema has them."""
    known = function._schema.arguments
    given = {argument.name: value for argument, value in zip(known, args, strict=False)} | dict(kwargs)
    return {argument.name: argument.default_value for argument in known if argument.name not in given} | given


def _tensors(nest: Any) -> list[Any]:
    import torch  # noqa: PLC0415
    from torch.utils import _pytree  # noqa: PLC0415

    return [leaf for leaf in _pytree.tree_leaves(nest) if isinstance(leaf, torch.Tensor)]


def _is_number(tensor: Any) -> bool:
    return bool(tensor.is_floating_point() or tensor.is_complex())
