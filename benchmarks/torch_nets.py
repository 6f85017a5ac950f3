"""The networks of the table of folders of PyTorch modules: those of the table of ONNX models, calmed where need be."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.coverage_nets import NETS, Net

_NAMES = """
resnet18 resnet50 mobilenetv3_small_100 efficientnet_b0 densenet121 repvgg_a0 mobileone_s0
levit_128s hrnet_w18_small yolov5n yolov8n yolo11n
""".split()
#: An untrained YOLO gives every class a score of about sigmoid(-10). The scale of a channel, and its error, are then
#: those of one or two numbers out of a thousand, and the ratio of two errors is luck. Its only biases are those of
#: these scores and of the bins of the boxes, to which a common shift does nothing: lifted, the scores lie in (0, 1).
_LIFT = 10.0


def _calmed(net: Net) -> Net:
    return replace(net, lift=_LIFT) if net.source == "ultralytics" else net


#: The rows, in this order.
TORCH_NETS: tuple[Net, ...] = tuple(_calmed(next(net for net in NETS if net.name == name)) for name in _NAMES)
BY_NAME = {net.name: net for net in TORCH_NETS}
