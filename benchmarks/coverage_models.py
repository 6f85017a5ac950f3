"""Builds an architecture of the coverage table untrained, by the package that it is from.

timm, torchvision and ultralytics are imported only to build their own networks. ultralytics is under the AGPL: this
benchmark uses it where it is installed, nothing depends on it, and its networks come from its YAML files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from benchmarks.coverage_nets import Net


def build(net: Net) -> nn.Module:
    """The untrained network, (N, 3, H, W) to one tensor or several.

    Raises:
        ModuleNotFoundError: Its package is not installed.
    """
    options = dict(net.options)
    if net.source == "ultralytics":
        return _ultralytics(net.name)
    if net.source == "own":
        from tests.zoo.unet import UNet  # noqa: PLC0415

        return UNet(**options)
    from tests.zoo.vision import timm_network, torchvision_network  # noqa: PLC0415

    if net.source == "timm":
        return timm_network(net.name)
    if net.name.startswith(("deeplab", "fcn", "lraspp")):
        return _only_masks(torchvision_network(net.name, weights_backbone=None, num_classes=21))
    return torchvision_network(net.name, **options)


def _only_masks(network: nn.Module) -> nn.Module:
    """What the exporter wants of torchvision's networks for segmentation: the tensor in the dictionary they give."""
    from torch import nn  # noqa: PLC0415

    class Masks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: Tensor) -> Tensor:
            masks: Tensor = self.network(images)["out"]
            return masks

    return Masks()


def _ultralytics(name: str) -> nn.Module:
    """A network of ultralytics as its own exporter prepares it: decoded boxes and class scores in one tensor."""
    from ultralytics.nn.modules import C2f, Detect  # type: ignore[import-not-found]  # noqa: PLC0415
    from ultralytics.nn.tasks import DetectionModel, SegmentationModel  # type: ignore[import-not-found]  # noqa: PLC0415

    kind = SegmentationModel if name.endswith("-seg") else DetectionModel
    network: nn.Module = kind(f"{name}.yaml", verbose=False)
    for module in network.modules():
        if isinstance(module, Detect):
            module.export, module.format, module.dynamic = True, "onnx", False
        elif isinstance(module, C2f):
            module.forward = module.forward_split
    return network
