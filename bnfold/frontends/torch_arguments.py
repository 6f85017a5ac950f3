"""What a forward pass is called with, by position and by keyword."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from bnfold.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

_POSITIONAL = "example_inputs=(torch.randn(2, 3, 224, 224),)"
_KEYWORD = 'example_kwargs={"mask": torch.ones(2, 1, 224, 224)}'


class Arguments(NamedTuple):
    """Arguments of a forward pass: a named tuple, as torch's functions for nests of tensors take that apart.

    Attributes:
        args: By position.
        kwargs: By keyword, in the order of the signature, which torch.export keeps to.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def call(self, module: nn.Module) -> Any:
        """What the module gives for them."""
        return module(*self.args, **self.kwargs)

    def has_any_keyword(self, module: nn.Module) -> bool:
        """Whether some of them go into a `**parameter` of the forward pass."""
        return any(name not in inspect.signature(module.forward).parameters for name in self.kwargs)

    def by_name(self, module: nn.Module) -> dict[str, Any]:
        """The arguments by the parameters of the forward pass; those of `*parameter` together.

        Raises:
            TypeError: The forward pass cannot be called with them.
        """
        return dict(inspect.signature(module.forward).bind(*self.args, **self.kwargs).arguments)


def read_arguments(
    module: nn.Module, inputs: tuple[Any, ...] | None, kwargs: Mapping[str, Any] | None
) -> Arguments | None:
    """The example inputs that a caller gave; None where none were.

    Args:
        module: What is called with them.
        inputs: Those by position; none where there are some by keyword.
        kwargs: Those by keyword.

    Raises:
        UsageError: They are no tuple or no mapping, or the forward pass has no such parameters.
    """
    if inputs is not None and not isinstance(inputs, tuple):
        what = f"the inputs of a PyTorch module are a tuple, not a {type(inputs).__name__}"
        raise UsageError(what, where="example_inputs", remedy=_POSITIONAL)
    if kwargs is None:
        return None if inputs is None else Arguments(inputs, {})
    if not isinstance(kwargs, Mapping):
        what = f"the keyword inputs of a PyTorch module are a mapping by name, not a {type(kwargs).__name__}"
        raise UsageError(what, where="example_kwargs", remedy=_KEYWORD)
    return _ordered(module, inputs or (), kwargs)


def demanded(arguments: Arguments | None) -> Arguments:
    """The example inputs; raises a UsageError where there are none."""
    if arguments is None:
        raise missing_inputs()
    return arguments


def missing_inputs(why: str = "") -> UsageError:
    """There are no example inputs, and they cannot be done without, maybe because of `why`."""
    what = f"a PyTorch module needs example_inputs, the tuple of what its forward pass takes{': ' * bool(why)}{why}"
    return UsageError(what, where="example_inputs", remedy=_POSITIONAL)


def _ordered(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
    """Checked against the signature, and in its order."""
    try:
        parameters = inspect.signature(module.forward).parameters
    except ValueError:  # code of C: what it takes shows when it runs
        return Arguments(args, dict(kwargs))
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    others = [name for name in kwargs if name not in parameters]
    if others and (not takes_any or not isinstance(others[0], str)):
        raise _unlike(module, f"has no parameter {others[0]!r}", parameters)
    names = [*(name for name in parameters if name in kwargs), *others]
    found = Arguments(args, {name: kwargs[name] for name in names})
    try:
        found.by_name(module)
    except TypeError as error:
        raise _unlike(module, f"cannot be called like that: {error}", parameters) from error
    return found


def _unlike(module: nn.Module, what: str, parameters: Iterable[str]) -> UsageError:
    remedy = f"its parameters are {', '.join(parameters) or 'none'}"
    return UsageError(f"the forward pass of {type(module).__name__} {what}", where="example_kwargs", remedy=remedy)
