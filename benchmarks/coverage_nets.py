"""The architectures of the coverage table: which there are, where each comes from, and how large its images are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Source = Literal["timm", "torchvision", "ultralytics", "own"]


@dataclass(frozen=True)
class Net:
    """One row of the table.

    Attributes:
        name: The name that its package knows it by, or that of a YAML file without its ending.
        source: The package it is from; "own" for a network of `tests/zoo`.
        size: Height and width of the images, in pixels: the smallest that is not degenerate, or the only one.
        options: What the builder is told besides.
        gain: Factor of every gamma; below 1 where the network is chaotic otherwise.
        lift: Added to the bias of every convolution, where that calms a network: activations bend less far from zero.
    """

    name: str
    source: Source
    size: int = 64
    options: tuple[tuple[str, Any], ...] = ()
    gain: float = 1.0
    lift: float = 0.0

    @property
    def package(self) -> str:
        """The package that must be installed."""
        return "torch" if self.source == "own" else self.source


def _many(source: Source, names: str, size: int) -> tuple[Net, ...]:
    return tuple(Net(name, source, size) for name in names.split())


#: The figures of the project's promise are about these eight.
PROMISED = "densenet121 dpn68 repvgg_a0 mobileone_s0 fastvit_t8 repvit_m0_9 levit_128s convmixer_768_32".split()

_TIMM_64 = """
densenet121 dpn68 repvgg_a0 mobileone_s0 fastvit_t8 repvit_m0_9
resnet18 resnet50 resnet101 wide_resnet50_2 resnext50_32x4d legacy_seresnet18 skresnet18 res2net50_26w_4s resnest14d
ecaresnet26t seresnext26t_32x4d resnetv2_50 resnetv2_50x1_bit gernet_s dla34 selecsls42b tresnet_m
regnetx_002 regnety_002 darknet53 cspdarknet53 cs3darknet_s vovnet39a ese_vovnet19b_dw hrnet_w18_small hgnetv2_b0
mobilenetv2_100 mobilenetv3_small_100 mobilenetv3_large_100 mobilenetv4_conv_small mnasnet_100 efficientnet_b0
efficientnetv2_rw_t tinynet_e lcnet_050 hardcorenas_a mixnet_s rexnet_100 ghostnet_100 ghostnetv2_100 repghostnet_050
fasternet_t0 starnet_s1 xception41 efficientvit_b0 mobilevit_xxs mobilevitv2_050
"""
_TIMM_224 = "efficientformer_l1 tiny_vit_5m_224 visformer_tiny coatnet_bn_0_rw_224 coatnet_nano_rw_224"
_INIT = (("init_weights", False),)  # their own initialisation is slow

NETS: tuple[Net, ...] = (
    *_many("timm", _TIMM_64, 64),
    *_many("timm", _TIMM_224, 224),
    Net("convmixer_768_32", "timm", 64, lift=1.0),
    Net("levit_128s", "timm", 224, gain=0.3),
    Net("vgg11_bn", "torchvision", 224, _INIT),
    Net("botnet26t_256", "timm", 256),
    *_many("torchvision", "shufflenet_v2_x1_0 mnasnet0_5", 64),
    Net("inception_v3", "torchvision", 96, (("aux_logits", False), ("transform_input", False), *_INIT)),
    Net("googlenet", "torchvision", 64, (("aux_logits", False), ("transform_input", False), *_INIT)),
    *_many("torchvision", "deeplabv3_resnet50 fcn_resnet50 lraspp_mobilenet_v3_large", 64),
    *_many("ultralytics", "yolov5n yolov8n yolov8n-seg yolov10n yolo11n yolo12n", 64),
    Net("unet", "own", 64, (("norm_after_concat", False),)),
    Net("unet_norm_after_concat", "own", 64, (("norm_after_concat", True),)),
)
