"""Another camera: the shipped digits model on images moved to `0.4*x + 0.3`, before and after recalibration.

    python examples/recalibrate_moved_inputs.py models/digits-darknet.onnx build/digits-moved.onnx

Every second held-out image is used to recalibrate, without its label; accuracy is counted on the others. Needs
onnxruntime and NumPy. The runtime's own optimiser is off: it would fold the BatchNorms of the original as well.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

import bnfold

HELD_OUT = Path(__file__).parents[1] / "models" / "digits-heldout.npz"

Images = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def accuracy(model: ir.Model, images: Images, labels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> float:
    """The share of the images that the model names rightly, in percent."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    logits = np.asarray(session.run(["logits"], {"images": images})[0])
    return 100 * float((logits.argmax(axis=1) == labels).mean())


def main(source: str, target: str) -> None:
    """Print what the other camera costs, what recalibration brings back, and that the fold changes nothing more."""
    with np.load(HELD_OUT) as archive:
        images, labels = archive["images"][:, None].astype(np.float32) / 16, archive["labels"]
    moved = (0.4 * images + 0.3).astype(np.float32)
    unlabelled, shown, right = moved[::2], moved[1::2], labels[1::2]

    model = bnfold.load(source)
    recalibrated = bnfold.recalibrate(model, [unlabelled])
    folded = bnfold.fold(recalibrated.model, data=[shown])  # verified on these images, too; raises if it differs
    bnfold.save(folded.model, target)

    print(f"images as in training         {accuracy(model, images[1::2], right):6.2f} % of {len(right)} right")
    print(f"images moved to 0.4*x + 0.3   {accuracy(model, shown, right):6.2f} %")
    print(f"recalibrated on {len(unlabelled)} others    {accuracy(recalibrated.model, shown, right):6.2f} %")
    left = len(folded.report.kept)
    print(f"folded and verified           {accuracy(folded.model, shown, right):6.2f} %, {left} BatchNorms left")


if __name__ == "__main__":
    main(*sys.argv[1:3])
