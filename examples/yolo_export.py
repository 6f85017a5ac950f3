"""Before a YOLO is exported: fold its BatchNorms, export to ONNX, verify, and compare the boxes before and after.

python examples/yolo_export.py yolov8n.yaml yolov8n.onnx

Needs ultralytics and onnxruntime. ultralytics is under the AGPL-3.0, which has consequences for what you ship with it:
bnfold does not depend on it, and folds models of any other package in the same way. The network here is untrained,
built from the package's YAML; with trained weights use `YOLO("best.pt").model` in its place.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt

try:
    import torch
    from torch import Tensor, nn
    from ultralytics.nn.modules import C2f, Detect
    from ultralytics.nn.tasks import DetectionModel
except ImportError as missing:
    sys.exit(f"this example needs ultralytics, which is under the AGPL-3.0: pip install ultralytics ({missing})")

import bnfold

Array = npt.NDArray[np.float64]

#: Best boxes of an image that go into the suppression, and the overlap above which the weaker one of two goes.
CANDIDATES, OVERLAP = 100, 0.5
#: Largest error of an output channel of its scale, and smallest overlap of a box before and after.
ERROR, SAME = 1e-3, 0.99


def build(yaml: str, images: Tensor) -> nn.Module:
    """The network as ultralytics' own exporter prepares it, with statistics that let these images through."""
    network: nn.Module = DetectionModel(yaml, verbose=False)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0  # the statistics become those of the images
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0.2, 0.2)
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                module.bias.normal_(0.0, 0.5)  # an untrained network finds nothing: make some scores larger
        network.train()(images)
    network.eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, Detect):
            module.export, module.format, module.dynamic = True, "onnx", False
        elif isinstance(module, C2f):
            module.forward = module.forward_split  # type: ignore[method-assign]
    return network


def export(network: nn.Module, images: Tensor, path: Path) -> None:
    """Write the network as ONNX."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter announces its successor
        torch.onnx.export(network, (images,), str(path), dynamo=False, input_names=["images"], output_names=["boxes"])


def boxes(output: Array) -> list[tuple[Array, Array]]:
    """Corners (M, 4) and classes (M,) that are left of each image: the best ones, without those that overlap a better.

    Args:
        output: (N, 4 + classes, anchors): centre, width and height in pixels, and the score of every class.
    """
    found = []
    for centre, size, scores in ((image[:2].T, image[2:4].T, image[4:].T) for image in output):
        order = np.argsort(-scores.max(axis=1), kind="stable")[:CANDIDATES]
        corners = np.concatenate([centre - size / 2, centre + size / 2], axis=1)[order]
        classes = scores[order].argmax(axis=1)
        overlaps = overlap(corners, corners) * (classes[:, None] == classes)
        kept: list[int] = []
        for place in range(len(order)):
            if not kept or overlaps[place, kept].max() < OVERLAP:
                kept.append(place)
        found.append((corners[kept], classes[kept]))
    return found


def overlap(one: Array, other: Array) -> Array:
    """Intersection over union of boxes (A, 4) and (B, 4) given by their corners, (A, B)."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = (high - low).clip(min=0).prod(axis=2)
    areas = [(corners[:, 2:] - corners[:, :2]).prod(axis=1) for corners in (one, other)]
    result: Array = shared / (areas[0][:, None] + areas[1] - shared)
    return result


def matched(before: Array, after: Array) -> tuple[int, int, float]:
    """How many boxes there were, how many have one of the same class after, and the smallest overlap of these."""
    total, same, worst = 0, 0, 1.0
    for (old, old_classes), (new, new_classes) in zip(boxes(before), boxes(after), strict=True):
        best = (overlap(old, new) * (old_classes[:, None] == new_classes)).max(axis=1, initial=0.0)
        total, same = total + len(old), same + int((best >= SAME).sum())
        worst = min(worst, float(best.min(initial=1.0)))
    return total, same, worst


def main() -> None:
    """Build, fold, export, verify and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("yaml", help="a network by the name of its YAML file in ultralytics")
    parser.add_argument("output", type=Path, help="the ONNX file to write")
    parser.add_argument("--size", type=int, default=160, help="height and width of the images")
    given = parser.parse_args()
    import onnxruntime as ort  # noqa: PLC0415

    torch.manual_seed(0)
    images = torch.rand(2, 3, given.size, given.size)
    try:
        network = build(given.yaml, images)
        result = bnfold.fold(network, example_inputs=(images,))  # raises where the result is not equivalent
        export(result.module, images, given.output)
    except (bnfold.BnfoldError, OSError) as error:
        sys.exit(str(error))
    print(f"{len(result.report.folded)} of {len(result.decisions)} BatchNorms folded and verified")

    session = ort.InferenceSession(given.output, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        before = network(images).double().numpy()
    after = session.run(None, {"images": images.numpy()})[0].astype(np.float64)
    scale = np.abs(before).max(axis=(0, 2), keepdims=True)
    error = float((np.abs(after - before) / scale).max())
    print(f"{given.output.name}: largest error {error:.0e} of an output channel")
    total, same, worst = matched(before, after)
    print(f"{same} of {total} boxes are where they were, smallest overlap {worst:.4f}")
    if not error <= ERROR or same < total:
        sys.exit("the exported model does not find the same boxes")


if __name__ == "__main__":
    main()
