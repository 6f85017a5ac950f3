"""Which networks there are, how each is built and exported, and how many BatchNorms it has.

Both of torch's exporters are used, because their files differ: TorchScript's are plain; those of torch.export compute
every missing Conv bias (Shape -> Expand -> CastLike), split channels through sequences and average by ReduceMean.
"""

from __future__ import annotations

from functools import partial

from .darknet import Darknet53
from .network import Recipe
from .unet import UNet
from .vision import timm_network, torchvision_network

_resnet = partial(torchvision_network, "resnet50")
# its own initialisation is slow, and behind a calibrated BatchNorm the distribution of the weights hardly matters
_inception = partial(torchvision_network, "inception_v3", aux_logits=False, transform_input=False, init_weights=False)
_shufflenet = partial(torchvision_network, "shufflenet_v2_x1_0")
_efficientnet = partial(torchvision_network, "efficientnet_b0")
_densenet = partial(torchvision_network, "densenet121")
_hrnet = partial(timm_network, "hrnet_w18_small")
_unet = partial(UNet, norm_after_concat=False)
_unet_norm = partial(UNet, norm_after_concat=True)

NETWORKS: dict[str, Recipe] = {
    "resnet50": Recipe(_resnet, batchnorms=53, size=64),
    "inception_v3": Recipe(_inception, batchnorms=94, size=96),  # takes nothing under 75
    "shufflenet_v2": Recipe(_shufflenet, batchnorms=56, size=64),
    "shufflenet_v2_dynamo": Recipe(_shufflenet, batchnorms=56, size=64, exporter="dynamo"),
    "efficientnet_b0": Recipe(_efficientnet, batchnorms=49, size=64),
    "efficientnet_b0_dynamo": Recipe(_efficientnet, batchnorms=49, size=64, exporter="dynamo"),
    "hrnet_w18_small": Recipe(_hrnet, batchnorms=91, size=64),
    "densenet121": Recipe(_densenet, batchnorms=121, size=64),
    "unet": Recipe(_unet, batchnorms=12, size=64),
    "unet_norm_after_concat": Recipe(_unet_norm, batchnorms=14, size=64),
    "unet_norm_after_concat_dynamo": Recipe(_unet_norm, batchnorms=14, size=64, exporter="dynamo"),
    "darknet53": Recipe(Darknet53, batchnorms=52, size=64),
}
"""Every network by name; each takes images of any height and width that are multiples of 32 from its size up."""
