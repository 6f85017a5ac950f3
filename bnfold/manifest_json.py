"""A manifest as JSON, and back: `{"schema": "bnfold.manifest", "schema_version": 1, "steps": [oldest fold, ...]}`.

Bytes are deflated and in base64. gamma, beta, mean and var are the shortest decimals, for people and for other tools;
what restores the model are the packed numbers beside them.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from bnfold.affine import Float64Array
from bnfold.errors import ModelError
from bnfold.linear import WeightLayout
from bnfold.manifest import FoldedNorm, GraphUndo, LostTensor, Manifest, Prediction, StoredNodes, UndoRegion, UndoStep
from bnfold.packing import pack, unpack

SCHEMA, VERSION = "bnfold.manifest", 1

#: A JSON object.
Json: TypeAlias = dict[str, Any]

#: More bytes than any list of nodes has; a damaged text may claim any number.
_MOST = 1 << 30

_LONG = frozenset(("steps", "graphs", "regions", "tensors"))

_STATISTICS = ("gamma", "beta", "mean", "var")


def write_json(manifest: Manifest) -> str:
    """The manifest as JSON, deterministic; each region and each tensor on a line of its own."""
    head = {"schema": SCHEMA, "schema_version": VERSION, "steps": [_step(step) for step in manifest.steps]}
    return _lines(head) + "\n"


def _lines(value: Any) -> str:
    """JSON whose long lists have a line for each entry."""
    if isinstance(value, dict) and _LONG & value.keys():
        return "{" + ",\n".join(f"{json.dumps(key)}:{_lines_of(key, item)}" for key, item in value.items()) + "}"
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _lines_of(key: str, value: Any) -> str:
    return "[\n" + ",\n".join(map(_lines, value)) + "]" if key in _LONG and value else _lines(value)


def _step(step: UndoStep) -> Json:
    return {
        "folded_model": step.folded,
        "original_model": step.original,
        "simplified": step.simplified,
        "frame": _text(step.frame),
        "metadata": [list(entry) for entry in step.metadata],
        "graphs": [_graph(graph) for graph in step.graphs],
    }


def _graph(graph: GraphUndo) -> Json:
    return {
        "path": [list(part) for part in graph.path],
        "regions": [_region(region) for region in graph.regions],
        "tensors": [_tensor(tensor) for tensor in graph.lost],
        "supplies": _nodes(graph.supplies),
        "made": list(graph.made),
        "described": list(graph.described),
        "said": _text(graph.said),
    }


def _region(region: UndoRegion) -> Json:
    return {
        "folds": [_norm(fold) for fold in region.folds],
        "before": _nodes(region.before),
        "after": [[name, list(place)] for name, place in region.after],
    }


def _nodes(nodes: StoredNodes) -> Json:
    return {"places": list(nodes.places), "nodes": _text(nodes.proto)}


def _norm(fold: FoldedNorm) -> Json:
    entry: Json = {"name": fold.name, "operator": fold.operator, "direction": fold.direction}
    entry |= {"into": list(fold.into), "through": list(fold.through), "left": fold.left}
    if fold.epsilon is not None:
        entry["epsilon"] = _number(fold.epsilon)
        entry |= {key: [_number(x) for x in getattr(fold, key)] for key in _STATISTICS}
    return entry


def _number(x: float) -> float | str:
    """JSON has no infinity: "Infinity", "-Infinity" or "NaN", as in the report."""
    return x if math.isfinite(x) else json.dumps(x)


def _tensor(tensor: LostTensor) -> Json:
    entry: Json = {"name": tensor.name, "place": tensor.place, "dtype": tensor.dtype, "shape": list(tensor.shape)}
    if tensor.input is not None:
        entry["input"] = [tensor.input[0], _text(tensor.input[1])]
    if (like := tensor.prediction) is not None:
        layout = [like.layout.output_first, like.layout.groups, like.layout.batch_axes]
        scales = [[len(scale), pack(scale.tobytes(), 8)] for scale in (like.outputs, like.inputs)]
        entry["predicted_by"] = {"tensor": like.source, "layout": layout, "scales": scales}
    return entry | {"data": tensor.data}


def _text(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode("ascii")


def read_json(text: str, where: str) -> Manifest:
    """The manifest in `text`.

    Raises:
        ModelError: As `Manifest.from_json`.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError("this is no JSON, or it is cut off", where=where, remedy="copy it again") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ModelError("this is no manifest of bnfold", where=where, remedy="bnfold --manifest writes one")
    version = document.get("schema_version")
    if version is True or version != VERSION:
        what = f"the manifest has schema version {version}, and this bnfold reads {VERSION}"
        raise ModelError(what, where=where, remedy="use the bnfold that wrote it")
    try:
        steps = [_read_step(step) for step in document["steps"]]
        return Manifest((*steps[:-1], steps[-1]))  # there is at least one
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise ModelError("the manifest is damaged", where=where, remedy="copy it again") from error


def _read_step(step: Json) -> UndoStep:
    metadata = tuple((_str(key), None if value is None else _str(value)) for key, value in step["metadata"])
    graphs = tuple(_read_graph(graph) for graph in step["graphs"])
    prints = _str(step["folded_model"]), _str(step["original_model"])
    return UndoStep(*prints, metadata, graphs, _bool(step["simplified"]), _bytes(step["frame"]))


def _read_graph(graph: Json) -> GraphUndo:
    return GraphUndo(
        tuple((_int(place), _str(name)) for place, name in graph["path"]),
        tuple(_read_region(region) for region in graph["regions"]),
        _read_nodes(graph["supplies"]),
        tuple(_read_tensor(tensor) for tensor in graph["tensors"]),
        _strings(graph["made"]),
        _strings(graph["described"]),
        _bytes(graph["said"]),
    )


def _read_region(region: Json) -> UndoRegion:
    return UndoRegion(
        tuple(_read_norm(fold) for fold in region["folds"]),
        _read_nodes(region["before"]),
        tuple((_str(name), (_int(place[0]), _int(place[1]))) for name, place in region["after"]),
    )


def _read_nodes(entry: Json) -> StoredNodes:
    return StoredNodes(tuple(_int(place) for place in entry["places"]), _bytes(entry["nodes"]))


def _read_norm(fold: Json) -> FoldedNorm:
    name, operator, direction, left = (_str(fold[key]) for key in ("name", "operator", "direction", "left"))
    norm = FoldedNorm(name, operator, direction, _strings(fold["into"]), _strings(fold["through"]), left)
    if "epsilon" not in fold:
        return norm
    gamma, beta, mean, var = (tuple(float(x) for x in fold[key]) for key in _STATISTICS)
    return replace(norm, epsilon=float(fold["epsilon"]), gamma=gamma, beta=beta, mean=mean, var=var)


def _read_tensor(entry: Json) -> LostTensor:
    place = None if "input" not in entry else (_int(entry["input"][0]), _bytes(entry["input"][1]))
    like = None if "predicted_by" not in entry else _read_prediction(entry["predicted_by"])
    shape = tuple(_int(size) for size in entry["shape"])
    return LostTensor(
        _str(entry["name"]), _int(entry["place"]), _str(entry["dtype"]), shape, _str(entry["data"]), like, place
    )


def _read_prediction(entry: Json) -> Prediction:
    output_first, groups, batch_axes = entry["layout"]
    outputs, inputs = (_read_scale(*scale) for scale in entry["scales"])
    layout = WeightLayout(_bool(output_first), _int(groups), _int(batch_axes))
    return Prediction(_str(entry["tensor"]), layout, outputs, inputs)


def _read_scale(length: int, data: str) -> Float64Array:
    return np.frombuffer(unpack(_str(data), 8 * _int(length), 8), "<f8").astype(np.float64)


def _bytes(text: str) -> bytes:
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(base64.b64decode(text, validate=True), _MOST)
    except zlib.error as error:
        raise ValueError("packed bytes are damaged") from error
    if not inflater.eof:
        raise ValueError("packed bytes are cut off")
    return data


def _strings(values: list[str]) -> tuple[str, ...]:
    return tuple(_str(value) for value in values)


def _is(kind: type) -> Callable[[Any], Any]:
    """Lets a value of this JSON type through; a bool is no int."""

    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise TypeError(f"{value!r} is no {kind.__name__}")
        return value

    return check


_str, _int, _bool = _is(str), _is(int), _is(bool)
