"""A PyTorch module captured by `torch.export`: its aten graph, and what is proven about the shapes of its values.

A size is known only where it does not hang on the sizes of the example: an input size that the capture fixed, though
the module runs with twice of it, is captured a second time, and what differs then is not known.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from bnfold.errors import MissingPackageError, ModelError
from bnfold.frontends.torch_arguments import Arguments
from bnfold.frontends.torch_lazy import blanks, initialise
from bnfold.frontends.torch_paths import absolute
from bnfold.graph import Dim, Shape

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram
    from torch.fx import Node


#: What torch says of its attempts.
_LOGGERS = ("torch._subclasses.fake_tensor", "torch._export.non_strict_utils", "torch.fx.experimental.symbolic_shapes")


@dataclass(frozen=True, eq=False)
class Captured:
    """A module's graph.

    Attributes:
        program: What torch.export gave.
        nodes: Its nodes in topological order.
        shapes: The shape of each value by its node; of several outputs, that of each is at its getitem.
        inputs: Example inputs, no size of which is 1 if the module takes another.
    """

    program: ExportedProgram
    nodes: tuple[Node, ...]
    shapes: Mapping[Node, Shape]
    inputs: Arguments


def capture(module: nn.Module, inputs: Arguments) -> Captured:
    """Export a copy of `module`: hooks and caches of modules keep what they see.

    Raises:
        ModelError: torch.export cannot capture it, or what it computes depends on the sizes of its inputs.
        MissingPackageError: torch is too old.
    """
    inputs = grown(module, inputs, only=1)
    program = _export(module, inputs)
    varied = grown(module, inputs, fixed=fixed(program))
    if varied is inputs:
        return captured_program(program, inputs)
    other = captured_program(_export(module, varied), varied)
    first = tuple(program.graph.nodes)
    if [str(n.target) for n in first] != [str(n.target) for n in other.nodes]:
        raise ModelError(
            "what the module computes depends on the sizes of its inputs",
            remedy="fold the parts of it that do not",
        )
    pairs = {new: (shape_of(old), other.shapes[new]) for old, new in zip(first, other.nodes, strict=True)
             if new in other.shapes}  # fmt: skip
    shapes = {node: _agreed(*both) for node, both in pairs.items()}
    return Captured(other.program, other.nodes, shapes, varied)


def captured_once(module: nn.Module, inputs: Arguments) -> Captured:
    """Export a copy of `module` with these inputs, no size of which is 1 if the module takes another.

    Raises:
        ModelError: torch.export cannot capture it.
        MissingPackageError: torch is too old.
    """
    inputs = grown(module, inputs, only=1)
    return captured_program(_export(module, inputs), inputs)


def capture_graph(module: nn.Module, inputs: Arguments, *, static_shapes: bool) -> Captured:
    """Export a copy of `module` for a graph that takes its place, and that refuses what it does not hold for.

    Args:
        module: The module.
        inputs: Example inputs.
        static_shapes: Whether every size is that of the example; else only those are that the forward pass fixes.

    Raises:
        ModelError, MissingPackageError: As `capture`.
    """
    if not static_shapes:
        inputs = grown(module, inputs, only=1)
    return captured_program(_export(module, inputs, is_static=static_shapes), inputs)


def captured_program(program: ExportedProgram, inputs: Arguments) -> Captured:
    """A program that there is already, with inputs that it takes; its own sizes are proven."""
    nodes = tuple(program.graph.nodes)
    shapes = {node: shape for node in nodes if (shape := shape_of(node)) is not None}
    return Captured(program, nodes, shapes, inputs)


def shape_of(node: Node) -> Shape | None:
    """The shape of a value, sizes that are open as symbols; None of what is no tensor."""
    value = node.meta.get("val")
    sizes = getattr(value, "shape", None)
    return None if sizes is None else tuple(_size(size) for size in sizes)


def _size(size: Any) -> Dim:
    """A number, also where torch holds it to be a symbol that has that value alone."""
    text = str(size)
    return int(text) if text.isdigit() else text


def _agreed(old: Shape | None, new: Shape) -> Shape:
    """What both captures say; a size that is a number in one of them only, or another one, is not known."""
    if old is None or len(old) != len(new):
        raise ModelError("the rank of a value depends on the sizes of the inputs", remedy="fold the parts apart")
    return tuple(_agreed_size(a, b) for a, b in zip(old, new, strict=True))


def _agreed_size(old: Dim, new: Dim) -> Dim:
    return new if isinstance(new, str) or old == new else None


def fixed(program: ExportedProgram) -> list[dict[int, int]]:
    """The sizes of each tensor among the inputs that the capture holds to be fixed, by axis."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    found = []
    for name in program.graph_signature.user_inputs:
        shape = shape_of(nodes[name]) if isinstance(name, str) and name in nodes else None
        if shape is not None:
            found.append({axis: size for axis, size in enumerate(shape) if isinstance(size, int)})
    return found


def grown(
    module: nn.Module, inputs: Arguments, *, only: int | None = None, fixed: list[dict[int, int]] | None = None
) -> Arguments:
    """`inputs` with sizes doubled (all, those equal to `only`, those in `fixed`) where the module runs with that."""
    from torch.utils import _pytree  # noqa: PLC0415

    leaves, spec = _pytree.tree_flatten(inputs)
    places = [i for i, leaf in enumerate(leaves) if _is_tensor(leaf)]
    changed = False
    for place, known in zip(places, fixed if fixed is not None else [None] * len(places), strict=False):
        for axis in range(leaves[place].ndim):
            size = leaves[place].shape[axis]
            if (only is not None and size != only) or (known is not None and axis not in known) or size == 0:
                continue
            trial = [*leaves]
            trial[place] = _doubled(leaves[place], axis)
            if runs(module, _pytree.tree_unflatten(trial, spec)):
                leaves, changed = trial, True
    grown: Arguments = _pytree.tree_unflatten(leaves, spec) if changed else inputs
    return grown


def _doubled(tensor: Any, axis: int) -> Any:
    import torch  # noqa: PLC0415

    return torch.cat([tensor, tensor], axis)


def _is_tensor(leaf: object) -> bool:
    import torch  # noqa: PLC0415

    return isinstance(leaf, torch.Tensor)


def runs(module: nn.Module, inputs: Arguments) -> bool:
    """Whether the module takes these inputs: on fake tensors first, then for good, as fakes take more."""
    fakes = _succeeds(lambda: _run_fake(initialise(copied(module), inputs), inputs))
    return fakes and _succeeds(lambda: inputs.call(copied(module)))


def _run_fake(module: nn.Module, inputs: Arguments) -> None:
    import torch  # noqa: PLC0415
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode  # noqa: PLC0415
    from torch.utils import _pytree  # noqa: PLC0415

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    state: dict[str, Any] = {
        name: mode.from_tensor(t) for name, t in (*module.named_parameters(), *module.named_buffers())
    }
    sample = _pytree.tree_map(lambda leaf: mode.from_tensor(leaf) if isinstance(leaf, torch.Tensor) else leaf, inputs)
    with mode, suppress(DataDependentOutputException):  # fakes have no numbers to decide by
        torch.func.functional_call(module, state, sample.args, sample.kwargs)


def _succeeds(run: Callable[[], object]) -> bool:
    import torch  # noqa: PLC0415

    with torch.no_grad(), silent(), torch.random.fork_rng():
        try:
            run()
        except Exception:  # whatever the module says: it does not take them
            return False
    return True


def _export(module: nn.Module, inputs: Arguments, *, is_static: bool = False) -> ExportedProgram:
    import torch  # noqa: PLC0415
    from torch.utils import _pytree  # noqa: PLC0415

    if not hasattr(torch.export, "Dim") or not hasattr(torch.export.Dim, "AUTO"):
        raise MissingPackageError(f"torch {torch.__version__} is too old", remedy="pip install 'torch>=2.6'")
    auto = torch.export.Dim.AUTO

    def dynamic(leaf: Any) -> Any:
        return dict.fromkeys(range(leaf.ndim), auto) if isinstance(leaf, torch.Tensor) else None

    with torch.no_grad(), silent(), redirect_stderr(StringIO()):  # on which torch writes what it has captured so far
        try:
            if inputs.has_any_keyword(module):
                raise ValueError("what its **parameter takes has no place among the sizes that it describes")
            shapes = None if is_static else _pytree.tree_map(dynamic, inputs.by_name(module))
            program = torch.export.export(
                initialise(copied(module), inputs), inputs.args, inputs.kwargs, dynamic_shapes=shapes, strict=False
            )
            return absolute(program, module)
        except Exception as error:
            first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ModelError(
                f"torch.export cannot capture it: {first.strip()}",
                where=type(module).__name__,
                remedy="check that module(*example_inputs) runs; without as_graph its parts are folded one by one",
            ) from error


@contextmanager
def silent() -> Iterator[None]:
    """Nothing of what torch has to say about attempts that may fail."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    disabled = [logger.disabled for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, was in zip(loggers, disabled, strict=True):
            logger.disabled = was


def copied(module: nn.Module) -> nn.Module:
    """A deep copy.

    Raises:
        ModelError: A part of the module cannot be copied.
    """
    computed = {  # by the hooks of weight_norm and its like; torch copies no tensor that was computed
        id(value): value.detach().clone()
        for part in module.modules()
        for value in vars(part).values()
        if hasattr(value, "grad_fn") and value.grad_fn is not None
    }
    try:
        with silent():  # copies of what torch.export made warn of torch's own ways
            return copy.deepcopy(module, computed | blanks(module))
    except Exception as error:
        raise ModelError(f"it cannot be copied: {error}", where=type(module).__name__) from error


def in_float64(module: nn.Module) -> nn.Module:
    """A deep copy with every floating-point number in float64; errors as `copied`."""
    with silent():  # a copied script warns of tensors that were computed
        return copied(module).double()
