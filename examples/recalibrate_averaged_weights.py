"""Averaged weights (stochastic weight averaging) need statistics of their own: `bnfold.recalibrate` computes them.

    python examples/recalibrate_averaged_weights.py [--epochs 8]

Trains the digit classifier of `train_digits.py` for a few epochs, and averages the weights of the second half of them.
The statistics that it is left with are those of the first weights in the average, which no longer fit. Needs torch and
scikit-learn; the recalibration itself needs neither, only the exported file, the training images and onnxruntime.
"""

from __future__ import annotations

import argparse

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import torch
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel
from train_digits import (
    BATCH_SIZE,
    Digits,
    build_network,
    export,
    make_deterministic,
    run,
    shift_randomly,
    split_digits,
)

import bnfold

LEARNING_RATE = 0.02


def averaged_network(digits: Digits, epochs: int) -> torch.nn.Sequential:
    """The mean of the weights after each epoch of the second half; statistics as they were after the first of these."""
    network = build_network().train()
    average: AveragedModel | None = None
    pixels, targets = digits.pixels(), digits.targets()
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    for epoch in range(epochs):
        for chosen in torch.split(torch.randperm(len(pixels)), BATCH_SIZE):
            loss = functional.cross_entropy(network(shift_randomly(pixels[chosen])), targets[chosen])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        if epoch >= epochs // 2:
            average = AveragedModel(network) if average is None else average
            average.update_parameters(network)
    assert average is not None
    averaged = average.module.eval()
    assert isinstance(averaged, torch.nn.Sequential)
    return averaged


def accuracy(model: onnx.ModelProto, digits: Digits) -> float:
    """In percent."""
    named: npt.NDArray[np.intp] = run(model, digits.pixels()).argmax(axis=1)
    return 100 * float((named == digits.labels).mean())


def main() -> None:
    """Print the accuracy on held-out digits with the old statistics, with new ones, and folded."""
    parser = argparse.ArgumentParser(description="Recalibrate a network whose weights were averaged.")
    parser.add_argument("--epochs", type=int, default=8, help="passes over the training images (default: 8)")
    arguments = parser.parse_args()
    make_deterministic()
    training, held_out = split_digits()
    stale = export(averaged_network(training, arguments.epochs))
    print(f"averaged weights, old statistics     {accuracy(stale, held_out):6.2f} % of the held-out digits")

    images = training.pixels().numpy()
    recalibrated = bnfold.recalibrate(ir.from_proto(stale), np.array_split(images, 12))
    drift = recalibrated.report.recalibrated[0].largest_drift
    shown = accuracy(ir.to_proto(recalibrated.model), held_out)
    print(f"averaged weights, recalibrated       {shown:6.2f} %, means moved by up to {drift:.1f} standard deviations")

    folded = bnfold.fold(recalibrated.model)
    print(f"averaged weights, folded, verified   {accuracy(ir.to_proto(folded.model), held_out):6.2f} %")


if __name__ == "__main__":
    main()
