"""Torch.export archives that run code of whoever made them when torch loads them: each makes a file."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

Entries = dict[str, bytes]
MODEL, INPUTS = "models/model.json", "data/sample_inputs/model.pt"
WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def archive(path: Path, module: nn.Module, *inputs: torch.Tensor) -> Path:
    """An ordinary archive of `module`, whose first input has an open batch size."""
    dynamic = ({0: torch.export.Dim.AUTO}, *({} for _ in inputs[1:]))
    torch.export.save(torch.export.export(module, inputs, dynamic_shapes=dynamic, strict=False), path)
    return path


def changed(path: Path, change: Callable[[Entries], None]) -> Path:
    """The archive with other entries."""
    with zipfile.ZipFile(path) as old:
        folder = old.namelist()[0].partition("/")[0]
        entries = {name.partition("/")[2]: old.read(name) for name in old.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name, data in entries.items():
            new.writestr(f"{folder}/{name}", data)
    return path


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def in_model(entries: Entries, change: Callable[[dict[str, Any]], None]) -> None:
    model = json.loads(entries[MODEL])
    change(model)
    entries[MODEL] = json.dumps(model).encode()


def python(target: Path) -> str:
    return f"__import__('pathlib').Path('{target}').touch()"


def _input_that_is_pickled(entries: Entries, target: Path) -> None:
    entries[INPUTS] = saved(((Touch(target),), {}))


def _weight_that_is_pickled(entries: Entries, target: Path) -> None:
    config = json.loads(entries[WEIGHTS])
    first = next(iter(config["config"].values()))
    first["use_pickle"] = True
    entries[f"data/weights/{first['path_name']}"] = saved(Touch(target))
    entries[WEIGHTS] = json.dumps(config).encode()


def _constant(kind: str, data: Callable[[Path], bytes]) -> Callable[[Entries, Path], None]:
    def change(entries: Entries, target: Path) -> None:
        entry = {"path_name": f"{kind}_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        entries[CONSTANTS] = json.dumps({"config": {"c": entry}}).encode()
        entries[f"data/constants/{kind}_0"] = data(target)

    return change


def _size_that_is_code(entries: Entries, target: Path) -> None:
    def change(model: dict[str, Any]) -> None:
        values = model["graph_module"]["graph"]["tensor_values"]
        values[next(iter(values))]["sizes"][0] = {"as_expr": {"expr_str": python(target), "hint": {"as_int": 2}}}

    in_model(entries, change)


def _range_that_is_code(entries: Entries, target: Path) -> None:
    def change(model: dict[str, Any]) -> None:
        model["range_constraints"][python(target)] = {"min_val": 0, "max_val": 9}

    in_model(entries, change)


def _guard_that_is_code(entries: Entries, target: Path) -> None:
    in_model(entries, lambda model: model["guards_code"].append(f"{python(target)} is None"))


def _guard_that_ends_its_message(entries: Entries, target: Path) -> None:
    text = f'"+str({python(target)})+"'
    in_model(entries, lambda model: model["guards_code"].append(f"L['x'].size()[0] != {text!r}"))


def _input_whose_name_is_code(entries: Entries, target: Path) -> None:
    name = json.dumps(f"x={python(target)}").encode()
    entries[MODEL] = entries[MODEL].replace(b'"name": "x"', b'"name": ' + name)


def _operator(target_name: str, *arguments: object) -> Callable[[Entries, Path], None]:
    def change(entries: Entries, target: Path) -> None:
        def insert(model: dict[str, Any]) -> None:
            inputs = [
                {"name": "", "arg": {"as_string": str(target)} if a == "target" else a, "kind": 1} for a in arguments
            ]
            nodes = model["graph_module"]["graph"]["nodes"]
            nodes.insert(0, {"target": target_name, "inputs": inputs, "outputs": [], "metadata": {}, "name": "n"})

        in_model(entries, insert)

    return change


def _tree_that_imports(entries: Entries, target: Path) -> None:
    leaf = json.dumps({"__enum__": True, "fqn": "hostile_enum:E", "name": "A"})

    def change(model: dict[str, Any]) -> None:
        for call in model["graph_module"]["module_call_graph"]:
            if call["signature"]:
                spec = json.loads(call["signature"]["in_spec"])
                spec[1]["children_spec"][1]["context"] = f"[{leaf}]"
                call["signature"]["in_spec"] = json.dumps(spec)

    in_model(entries, change)


def _library(entries: Entries, target: Path) -> None:
    entries["data/aotinductor/model/wrapper.so"] = b"\x7fELF"


#: Those that did run code, when torch 2.13 loaded them.
LIVE = (
    "an example input that is pickled",
    "a weight that is pickled",
    "an opaque constant",
    "a size that is code",
    "a tree that imports",
)

#: By what they hide.
HOSTILE: dict[str, Callable[[Entries, Path], None]] = {
    "an example input that is pickled": _input_that_is_pickled,
    "a weight that is pickled": _weight_that_is_pickled,
    "an opaque constant": _constant("opaque_obj", lambda target: pickle.dumps(Touch(target))),
    "a constant of a class": _constant("custom_obj", lambda target: saved(Touch(target))),
    "a size that is code": _size_that_is_code,
    "a range that is code": _range_that_is_code,
    "a guard that is code": _guard_that_is_code,
    "a guard that ends its message": _guard_that_ends_its_message,
    "an input whose name is code": _input_whose_name_is_code,
    "an operator that is any function": _operator("torch.os.mknod", "target"),
    "an operator that writes a file": _operator("torch.ops.aten.from_file.default", "target"),
    "an operator of an extension": _operator("#executorch:x", "target"),
    "a tree that imports": _tree_that_imports,
    "a compiled library": _library,
}
