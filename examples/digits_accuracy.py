"""How many held-out digits each of the models named on the command line gets right.

    python examples/digits_accuracy.py models/digits-darknet.onnx build/digits-fused.onnx

Needs onnxruntime and NumPy. The runtime's own optimiser is off: it would fold the BatchNorms of the original as well.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime as ort

HELD_OUT = Path(__file__).parents[1] / "models" / "digits-heldout.npz"


def main() -> None:
    """Print one line for each model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    with np.load(HELD_OUT) as archive:
        images, labels = archive["images"][:, None].astype(np.float32) / 16, archive["labels"]
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for path in parser.parse_args().models:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        right = int((session.run(["logits"], {"images": images})[0].argmax(axis=1) == labels).sum())
        print(f"{path.name}: {right} of {len(labels)} held-out digits right ({right / len(labels):.2%})")


if __name__ == "__main__":
    main()
