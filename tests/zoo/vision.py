"""torchvision's and timm's networks, importable also where torchvision's compiled operators do not load.

The common wheel of torchvision carries operators compiled for CUDA; beside a CPU build of torch they do not load, and
the import then fails on two detection operators that no network here calls. Their schemas alone make it succeed.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn

_SCHEMA = "{}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@functools.cache
def _operators() -> torch.library.Library | None:
    """torchvision's own operators (None), or the library that declares the two its import asks for.

    Cached for good: torch withdraws the schemas when the library object dies.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the zoo needs torchvision", name="torchvision")
    for compiled in Path(spec.origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(str(compiled))  # type: ignore[no-untyped-call]
        except OSError:
            continue  # built against another torch: exactly what the stand-ins below are for
        return None
    # A fragment, because this file may be imported under two names: as `zoo` and as `tests.zoo`.
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(_SCHEMA.format(name))  # type: ignore[no-untyped-call]
    return library


def torchvision_network(name: str, **options: object) -> nn.Module:
    """An untrained network of torchvision by its registered name, e.g. `resnet50`."""
    _operators()
    from torchvision.models import get_model  # type: ignore[import-untyped]  # noqa: PLC0415

    network: nn.Module = get_model(name, weights=None, **options)
    return network


def timm_network(name: str) -> nn.Module:
    """An untrained network of timm by its registered name, e.g. `hrnet_w18_small`."""
    _operators()  # timm imports torchvision
    from timm import create_model  # noqa: PLC0415

    network: nn.Module = create_model(name, pretrained=False)
    return network
