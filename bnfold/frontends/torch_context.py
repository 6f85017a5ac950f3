"""What the readers of aten operators need to know around a node: arguments by name, shapes, dtypes, constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.affine import Float64Array
from bnfold.decision import Reason, Refusal
from bnfold.frontends.torch_constants import TorchConstants
from bnfold.frontends.torch_modules import Modules
from bnfold.graph import Shape
from bnfold.views import Barrier

if TYPE_CHECKING:
    from torch.fx import Node


#: What the names of the constants of operators begin with that a fold left of a BatchNorm. They must not be taken for a
#: BatchNorm in disguise when the result is folded again, without the statistics to judge it by.
LEFT = "bnfold_left_"


@dataclass(frozen=True, eq=False)
class Context:
    """The surroundings of the nodes of a graph.

    Attributes:
        shapes: The shape of each value.
        constants: Which values are constant.
        modules: Where tensors stand in the module, and what may be written there; None where all may change.
    """

    shapes: Mapping[Node, Shape]
    constants: TorchConstants
    modules: Modules | None

    def rank(self, node: Node) -> int:
        """The number of axes."""
        return len(self.shapes[node])


def base_name(node: Node) -> str:
    """The aten operator without its overload: "aten.conv2d"; for anything else its full name."""
    target = str(node.target)
    return ".".join(target.split(".")[:2]) if target.startswith("aten.") else target


def kind_of(node: Node) -> str:
    """The operator's name for people: "conv2d", "add"."""
    return base_name(node).removeprefix("aten.").rstrip("_")


def path_of(node: Node) -> str:
    """The path of the module in whose forward pass the node was captured; empty for the whole."""
    found = _stack(node)
    return found[-1][0] if found else ""


def class_of(node: Node) -> str:
    """The class of the module in whose forward pass the node was captured, with its module; empty if unknown."""
    found = _stack(node)
    return found[-1][1] if found else ""


def _stack(node: Node) -> list[tuple[str, str]]:
    """The paths and classes of the modules that the node is in, from the outermost on."""
    entries = list((node.meta.get("nn_module_stack") or {}).values())
    named = [(str(path).split("@", maxsplit=1)[0], str(kind)) for path, kind in entries]
    return [(path, kind) for path, kind in named if not path.startswith("_empty_nn_module_stack")]


def arguments(node: Node) -> dict[str, Any]:
    """The arguments of a call by the names of the operator's schema, defaults filled in."""
    schema = node.target._schema  # type: ignore[union-attr]
    bound: dict[str, Any] = {}
    for position, argument in enumerate(schema.arguments):
        if position < len(node.args) and not argument.kwarg_only:
            bound[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            bound[argument.name] = node.kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value
    return bound


def is_tensor(node: Node) -> bool:
    """Whether the node's value is one tensor."""
    return hasattr(node.meta.get("val"), "dtype")


def dtype_of(node: Node) -> np.dtype[Any] | None:
    """The floating-point dtype of a value, as NumPy has it; None for any other."""
    return numpy_dtype(getattr(node.meta.get("val"), "dtype", None))


def numpy_dtype(dtype: object) -> np.dtype[Any] | None:
    """float16, float32, float64 and bfloat16; None for any other."""
    name = str(dtype).removeprefix("torch.")
    if name in ("float16", "float32", "float64"):
        return np.dtype(name)
    if name != "bfloat16":
        return None
    import ml_dtypes  # noqa: PLC0415  # comes with onnx

    narrow: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return narrow


def barrier(node: Node, reason: Reason, detail: str = "") -> Barrier:
    """A barrier at `node`."""
    return Barrier(Refusal(reason, name_of(node), detail))


def name_of(node: Node) -> str:
    """The path of the module, for an operator that is all that a module of torch does; else path and node."""
    path = path_of(node)
    return path if path and is_module_of_torch(node) else f"{path}/{node.name}".lstrip("/")


def is_module_of_torch(node: Node) -> bool:
    """Whether the node is of a module that torch, timm or torchvision names: a layer."""
    kind = class_of(node)
    return kind.startswith(("torch.nn.modules.", "timm.layers.", "torchvision.ops.")) or "BatchNorm" in kind


def integers(value: Any, count: int) -> tuple[int, ...] | None:
    """`count` integers, one for all or one each; None where they are not known."""
    listed = list(value) if isinstance(value, list | tuple) else [value]
    listed = listed * count if len(listed) == 1 else listed
    known = [int(entry) for entry in listed if isinstance(entry, int)]
    return tuple(known) if len(known) == len(listed) == count else None


def scalar(value: Any) -> Float64Array | None:
    """A Python number as an array; None for anything else."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return np.asarray(value, np.float64) if number else None
