"""Builds each network once per machine: a file under the system's temporary folder, keyed by all that it depends on.

key = SHA-256(sources of this package, versions of the packages that build and export, home folder)
"""

from __future__ import annotations

import functools
import hashlib
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnx
import torch
from filelock import FileLock  # a requirement of torch

from .catalogue import NETWORKS
from .exporting import check_batchnorms_kept, export_dynamo, export_torchscript
from .lively import enliven
from .network import Network, Recipe
from .threads import one_thread

_SEED = 20
_IMAGES = 16  # of the calibration batch
_INGREDIENTS = ("onnx", "onnxscript", "timm", "torch", "torchvision")


@functools.cache
def load(name: str) -> Network:
    """The network of that name, from the disk if it was built before.

    Args:
        name: A key of `NETWORKS`.
    """
    recipe = NETWORKS[name]
    path = folder() / f"{name}.onnx"
    if not path.exists():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        _build_alone(recipe, path)
    return Network(name, recipe, path, _only_input(path))


@functools.cache
def folder() -> Path:
    """Where the files of this version of the zoo lie; it need not exist yet."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    for package in _INGREDIENTS:
        digest.update(f"{package} {_version(package)}\n".encode())
    digest.update(str(Path.home()).encode())  # two users of one machine cannot share a private folder
    return Path(tempfile.gettempdir()) / f"bnfold-zoo-{digest.hexdigest()[:16]}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"  # the networks that do not need it can be built all the same


def _build_alone(recipe: Recipe, path: Path) -> None:
    """Build under a lock: of several test workers one builds, the others wait for its file."""
    with FileLock(path.with_suffix(".lock")):
        if path.exists():
            return
        unfinished = path.with_suffix(".unfinished")
        unfinished.unlink(missing_ok=True)  # of a run that was killed
        onnx.save(build(recipe), unfinished)
        unfinished.chmod(0o444)
        unfinished.replace(path)


def build(recipe: Recipe) -> onnx.ModelProto:
    """Build, enliven and export one network: a few seconds.

    Raises:
        RuntimeError: The file does not keep every BatchNorm.
    """
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(_SEED)
        module = recipe.build()
        images = torch.randn(_IMAGES, 3, recipe.size, recipe.size)
        enliven(module, images, seed=_SEED + 1)
    export = export_dynamo if recipe.exporter == "dynamo" else export_torchscript
    proto = export(module, images[:2])
    check_batchnorms_kept(proto, module, recipe.batchnorms)
    return proto


def _only_input(path: Path) -> str:
    (value,) = onnx.load(path, load_external_data=False).graph.input
    name: str = value.name
    return name
