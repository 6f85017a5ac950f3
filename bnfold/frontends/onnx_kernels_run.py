"""Runs an ONNX model node by node with the reference evaluator and our kernels, letting go of values after use.

`values[outputs of node] = kernel(values[inputs of node])`, in the order of the graph.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto
from onnx.reference import ReferenceEvaluator

from bnfold.errors import BnfoldError, DataError, ModelError
from bnfold.frontends.onnx_inline import calls, write_out
from bnfold.frontends.onnx_kernels import KERNELS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Array: TypeAlias = np.ndarray[Any, Any]


class _Evaluator(ReferenceEvaluator):
    """The reference evaluator with our kernels, also inside the bodies of functions that operators expand to."""

    def __init__(
        self, proto: Any, opsets: Any = None, functions: Any = None, verbose: int = 0, new_ops: Any = None
    ) -> None:
        del new_ops  # ours, always: a subgraph is given its parent's, a function body none
        super().__init__(proto, opsets, functions, verbose, list(KERNELS))


def evaluate(model: ModelProto, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
    """The wanted tensors of `model`, each computed in the dtype that the model declares.

    Only the nodes that they need are run, and a value is let go after its last use.

    Args:
        model: Any model; from `in_float64` for float64 throughout.
        feeds: One array per graph input without initializer; a float array is widened where the input is double.
        outputs: Names of graph outputs or inner tensors; the graph outputs by default.

    Raises:
        DataError: A feed is missing, unknown or of the wrong dtype.
        ModelError: A wanted tensor does not exist, or a node cannot be evaluated; `where` names the node.
    """
    model = inlined(model) if model.functions else model
    wanted = [o.name for o in model.graph.output] if outputs is None else list(outputs)
    nodes = _needed(model.graph, wanted)
    values = _initial_values(model.graph, feeds, wanted)
    left = Counter(name for node in nodes for name in _reads(node))
    left.update(wanted)
    kernels = _kernels(model, nodes)
    for node, kernel in zip(nodes, kernels, strict=True):
        results = _run_node(node, kernel, values)
        values.update((name, v) for name, v in zip(node.output, results, strict=False) if name)
        for name in _reads(node):
            left[name] -= 1
            if not left[name]:
                del values[name]
    return {name: np.asarray(values[name]) for name in wanted}


def inlined(model: ModelProto) -> ModelProto:
    """A copy of `model` without model-local functions; names of the main graph stay.

    Raises:
        ModelError: A function cannot be inlined: it calls itself, or an operator of it means another operator set.
    """
    if not model.functions:
        copy = ModelProto()
        copy.CopyFrom(model)
        return copy
    whole = ir.from_proto(model)
    write_out(whole)
    for call in calls(whole):
        raise ModelError("a model-local function cannot be inlined", where=call.op_type)
    return ir.to_proto(whole)


def _bodies(node: NodeProto) -> list[GraphProto]:
    return [g for a in node.attribute for g in ([a.g] if a.type == AttributeProto.GRAPH else a.graphs)]


def _reads(node: NodeProto) -> list[str]:
    """Every name of the enclosing graph that the node reads, once, captures of its bodies included."""
    names = dict.fromkeys(name for name in node.input if name)
    for body in _bodies(node):
        names.update(dict.fromkeys(_captures(body)))
    return list(names)


def _captures(graph: GraphProto) -> list[str]:
    inside = {i.name for i in graph.input} | {t.name for t in graph.initializer}
    inside.update(name for node in graph.node for name in node.output)
    read = [name for node in graph.node for name in _reads(node)] + [o.name for o in graph.output]
    return [name for name in read if name not in inside]


def _needed(graph: GraphProto, wanted: Iterable[str]) -> list[NodeProto]:
    """The nodes that the wanted tensors depend on, in the order of the graph."""
    needed, nodes = set(wanted), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(_reads(node))
    return nodes[::-1]


def _initial_values(graph: GraphProto, feeds: Mapping[str, Array], wanted: Iterable[str]) -> dict[str, Array]:
    """The initializers and the feeds, which override them."""
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    inputs = {i.name: i.type.tensor_type.elem_type for i in graph.input}
    for name in feeds.keys() - inputs.keys():
        raise DataError("the model has no such input", where=name)
    for name in inputs.keys() - feeds.keys() - values.keys():
        raise DataError("the input has no value", where=name)
    values.update((name, _fed(name, np.asarray(value), inputs[name])) for name, value in feeds.items())
    known = values.keys() | {name for node in graph.node for name in node.output}
    for name in wanted:
        if name not in known:
            raise ModelError("the model has no such tensor", where=name)
    return values


def _fed(name: str, value: Array, elem_type: int) -> Array:
    if not elem_type:
        return value
    declared = onnx.helper.tensor_dtype_to_np_dtype(elem_type)
    if declared == np.float64 and value.dtype.kind in "fV":  # kind V is the bfloat16 of ml_dtypes
        return value.astype(np.float64)
    if value.dtype != declared:
        raise DataError(f"the input is {declared}, the value is {value.dtype}", where=name)
    return value


def _kernels(model: ModelProto, nodes: Sequence[NodeProto]) -> list[Any]:
    """One kernel per node."""
    bare = GraphProto(name=model.graph.name, node=nodes, input=model.graph.input, value_info=model.graph.value_info)
    opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in model.opset_import}
    try:
        return list(_Evaluator(bare, opsets=opsets).rt_nodes_)
    except BnfoldError:
        raise
    except Exception as error:
        # The reference evaluator raises anything from KeyError to RuntimeError for an operator it does not know.
        raise ModelError(f"an operator cannot be evaluated in float64 ({error})", where=model.graph.name) from error


def _run_node(node: NodeProto, kernel: Any, values: Mapping[str, Array]) -> Sequence[Array]:
    inputs = [values[name] if name else None for name in node.input]
    context = {"context": dict(values)} if kernel.need_context() else {}
    try:
        with np.errstate(all="ignore"):  # inf and nan are values of the model, and compared as such
            results: Sequence[Array] = kernel.run(*inputs, **context)
    except Exception as error:
        where = node.name or ", ".join(node.output)
        cause = error.__cause__ if isinstance(error.__cause__, BnfoldError) else error
        what = cause.what if isinstance(cause, BnfoldError) else f"{node.op_type} cannot be evaluated ({cause})"
        raise ModelError(what, where=where) from error
    return results
