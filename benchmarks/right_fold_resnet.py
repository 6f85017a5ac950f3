"""ResNet-101s with the statistics of random images: one file is exported, and its weights drawn anew for each seed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from filelock import FileLock  # a requirement of torch
from onnx import numpy_helper

from tests.zoo.exporting import check_batchnorms_kept, export_torchscript
from tests.zoo.lively import enliven
from tests.zoo.threads import one_thread
from tests.zoo.vision import torchvision_network
from tests.zoo.weights import module_with_weights_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_BATCHNORMS, _CALIBRATION = 104, 16
_build = partial(torchvision_network, "resnet101")


def _exported(cache: Path, size: int) -> onnx.ModelProto:
    """The untrained network as a file, from the cache where it was built before."""
    path = cache / f"resnet101-{size}-{torch.__version__}.onnx"
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            module = _build().requires_grad_(False)
            enliven(module, torch.randn(4, 3, size, size), seed=0)  # the exporter stores what is equal only once
            proto = export_torchscript(module, torch.zeros(2, 3, size, size))
            check_batchnorms_kept(proto, module, _BATCHNORMS)
            onnx.save(proto, path.with_suffix(".unfinished"))
            path.with_suffix(".unfinished").replace(path)
    return onnx.load(path)


def calibrated(seed: int, cache: Path, size: int) -> onnx.ModelProto:
    """The network of that seed; batch, height and width are open in the file.

    Args:
        seed: Of the weights, of the affines and of the images that the statistics are of.
        cache: Where the exported file lies.
        size: Height and width of the images, in pixels.
    """
    proto = _exported(cache, size)
    module = module_with_weights_of(proto, _build).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    with one_thread():
        for weight in module.parameters():
            if weight.ndim == 4:
                weight.normal_(0, float(np.sqrt(2 / weight[0].numel())), generator=generator)
        enliven(module, torch.randn(_CALIBRATION, 3, size, size, generator=generator), seed=seed)
    state = module.state_dict()
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(state[tensor.name].numpy(), tensor.name))
    return proto


def reference(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """The output on the weights of the file, by torch in float64, a few images at a time."""
    module = module_with_weights_of(model, _build).double()
    images = torch.from_numpy(feeds["image"].astype(np.float64))
    with torch.no_grad(), one_thread():
        return {"scores": np.concatenate([module(part).numpy() for part in images.split(4)])}
