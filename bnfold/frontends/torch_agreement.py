"""Whether a captured graph computes what its module does: both are run on the first batch of each shape.

torch.export follows one way through the Python code, that of the example; another size, 1 above all, may go another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bnfold.errors import ModelError
from bnfold.frontends.torch_capture import Captured, copied
from bnfold.frontends.torch_constants import TorchConstants
from bnfold.frontends.torch_inputs import ModuleInputs
from bnfold.frontends.torch_run import guarded

if TYPE_CHECKING:
    from torch import nn

#: By how much outputs may differ, relative to the largest number: the operators are the same, so are most bits.
_CLOSE = {"float16": 1e-2, "bfloat16": 1e-1}
_CLOSE_ELSE = 1e-4

#: The share of whole numbers that must be equal: a rounding may turn the largest of two scores.
_EQUAL = 0.9


class Agreement:
    """Compares a module with its graph.

    Args:
        module: The module; a copy of it is run.
        captured: Its graph.
        inputs: What it takes.
    """

    def __init__(self, module: nn.Module, captured: Captured, inputs: ModuleInputs) -> None:
        self._module, self._captured, self._inputs = copied(module), captured, inputs
        self._seen: set[tuple[tuple[int, ...], ...]] = set()

    def demanded(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Run both, unless a batch of these shapes has been run, and give the batch back.

        Raises:
            ModelError: They differ, or the module does not take the batch.
        """
        shapes = tuple(tuple(batch[name].shape) for name in self._inputs.names)
        if shapes in self._seen:
            return batch
        self._seen.add(shapes)
        where = type(self._module).__name__
        with guarded(where):
            wanted, found = self._run_module(batch), self._run_graph(batch)
        if len(wanted) != len(found) or not all(_is_close(a, b) for a, b in zip(wanted, found, strict=True)):
            raise ModelError(
                f"what torch.export captured of it does not hold for inputs of shape {_shown(shapes)}",
                where=where,
                remedy="give example_inputs of these sizes, and batches of one size",
            )
        return batch

    def _run_module(self, batch: Mapping[str, Any]) -> list[Any]:
        import torch  # noqa: PLC0415
        from torch.utils import _pytree  # noqa: PLC0415

        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            return list(_pytree.tree_leaves(self._inputs.arguments(batch).call(self._module)))

    def _run_graph(self, batch: Mapping[str, Any]) -> list[Any]:
        import torch  # noqa: PLC0415
        from torch.utils import _pytree  # noqa: PLC0415

        program = self._captured.program
        constants = TorchConstants(program, self._captured.nodes, frozenset())
        given = iter(_pytree.tree_leaves(self._inputs.arguments(batch)))
        placeholders = [node for node in self._captured.nodes if node.op == "placeholder"]
        values = [constants.tensor(node).clone() if node in constants else next(given) for node in placeholders]
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            results = torch.fx.Interpreter(program.graph_module).run(*values)
        kinds = [spec.kind.name for spec in program.graph_signature.output_specs]
        return [result for result, kind in zip(results, kinds, strict=True) if kind == "USER_OUTPUT"]


def _is_close(wanted: Any, found: Any) -> bool:
    import torch  # noqa: PLC0415

    if not isinstance(wanted, torch.Tensor):
        return not isinstance(found, torch.Tensor)
    if not isinstance(found, torch.Tensor) or wanted.shape != found.shape or wanted.dtype != found.dtype:
        return False
    if not wanted.is_floating_point():
        return wanted.is_complex() or float((wanted == found).double().mean()) >= _EQUAL or not wanted.numel()
    scale = wanted[wanted.isfinite()].abs().max() if wanted.isfinite().any() else wanted.new_tensor(0)
    share = _CLOSE.get(str(wanted.dtype).removeprefix("torch."), _CLOSE_ELSE)
    return torch.allclose(
        wanted.cpu().double(), found.cpu().double(), rtol=0, atol=share * float(scale), equal_nan=True
    )


def _shown(shapes: tuple[tuple[int, ...], ...]) -> str:
    return " and ".join("x".join(map(str, shape)) or "scalar" for shape in shapes)
