"""Trains the shipped digit classifier, `logits = Linear(pool(Darknet(pixels/16)))`, and exports it, BatchNorms kept.

Run from the repository root, with torch, scikit-learn, onnx and onnxruntime installed (about 20 seconds on one core)::

    python examples/train_digits.py --output models/digits-darknet.onnx

The network is Darknet-53 in miniature: every convolution of the backbone is bias-free and followed by one BatchNorm and
one LeakyReLU(0.1). The held-out images are written next to the model, so that a demonstration needs no scikit-learn.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import tempfile
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort  # type: ignore[import-untyped]
import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]
from torch import nn
from torch.nn import functional

SEED = 0
HELD_OUT_SHARE = 0.2
BATCH_SIZE = 64
PEAK_LEARNING_RATE = 0.01
#: Keeps the logits below about 5, so that their rounding errors are small in absolute terms too.
LABEL_SMOOTHING = 0.1
OPSET = 17
DEFAULT_OUTPUT = Path("models/digits-darknet.onnx")
#: Brightness and contrast of a camera that the network never saw: `x' = CONTRAST*x + BRIGHTNESS`.
CONTRAST, BRIGHTNESS = 0.4, 0.3
#: Largest absolute difference allowed between torch and the exported file, in logits.
EXPORT_TOLERANCE = 1e-5


@dataclass(frozen=True, eq=False)
class Digits:
    """Images with their labels: `images` uint8 (N, 8, 8) in 0..16, `labels` uint8 (N,) in 0..9."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]

    def pixels(self) -> torch.Tensor:
        """The network's input: float32 (N, 1, 8, 8) in [0, 1]."""
        return torch.from_numpy(self.images).float().div(16).unsqueeze(1)

    def targets(self) -> torch.Tensor:
        """The labels as int64 (N,)."""
        return torch.from_numpy(self.labels).long()


def split_digits() -> tuple[Digits, Digits]:
    """Training and held-out images: a fixed split, stratified by digit."""
    bunch = load_digits()
    parts = train_test_split(
        bunch.images.astype(np.uint8),
        bunch.target.astype(np.uint8),
        test_size=HELD_OUT_SHARE,
        stratify=bunch.target,
        random_state=SEED,
    )
    return Digits(parts[0], parts[2]), Digits(parts[1], parts[3])


def unit(inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int | None = None) -> nn.Sequential:
    """Darknet's building block: bias-free convolution ("same" padding unless given), BatchNorm, LeakyReLU(0.1)."""
    border = kernel // 2 if padding is None else padding
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=border, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(outputs), leaky=nn.LeakyReLU(0.1)))


class Residual(nn.Module):
    """`x + expand(reduce(x))`: a 1x1 unit that halves the channels, then a 3x3 unit that restores them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = unit(channels, channels // 2, kernel=1)
        self.expand = unit(channels // 2, channels, kernel=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns a tensor of the shape of `x`, (N, channels, H, W)."""
        restored: torch.Tensor = self.expand(self.reduce(x))
        return x + restored


def stage(inputs: int, outputs: int, residuals: int) -> nn.Sequential:
    """A stride-2 unit that doubles the channels, then `residuals` residual blocks."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(down=unit(inputs, outputs, kernel=3, stride=2))
    layers.update((f"residual{i + 1}", Residual(outputs)) for i in range(residuals))
    return nn.Sequential(layers)


def build_network() -> nn.Sequential:
    """The network: float32 (N, 1, 8, 8) to logits (N, 10).

    The stem pads nothing. So an image moved to `a*x + b` moves each of its channels to `a*y + b*sum(weights)`, the same
    everywhere, which is what a BatchNorm with new statistics undoes; zeros around the image would not move with it.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        stem=unit(1, 16, kernel=3, padding=0),
        stage1=stage(16, 32, residuals=2),
        stage2=stage(32, 64, residuals=2),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        head=nn.Linear(64, 10),
    )
    return nn.Sequential(layers)


def shift_randomly(pixels: torch.Tensor) -> torch.Tensor:
    """Every image moved by -1, 0 or 1 pixel on each axis, zeros moving in; brightness and contrast stay as they are."""
    windows = functional.pad(pixels, (1, 1, 1, 1)).unfold(2, 8, 1).unfold(3, 8, 1)
    rows, columns = torch.randint(0, 3, (2, len(pixels)))
    return windows[torch.arange(len(pixels)), :, rows, columns]


def train(digits: Digits, epochs: int) -> nn.Sequential:
    """A network trained on `digits`, in eval mode; the held-out images play no part in it."""
    network = build_network().train()
    pixels, targets = digits.pixels(), digits.targets()
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    steps = -(-len(pixels) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_LEARNING_RATE, epochs=epochs, steps_per_epoch=steps)
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(len(pixels)), BATCH_SIZE):
            logits = network(shift_randomly(pixels[chosen]))
            loss = functional.cross_entropy(logits, targets[chosen], label_smoothing=LABEL_SMOOTHING)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return network.eval()


def export(network: nn.Sequential) -> onnx.ModelProto:
    """The network in ONNX, BatchNorms kept and in inference form, free of traces of the machine it was written on.

    torch's newer exporter can keep BatchNorms too (`optimize=False`), but then adds some 60 nodes of shape arithmetic.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You are using the legacy", category=DeprecationWarning)
        file = Path(folder) / "model.onnx"
        torch.onnx.export(
            network,
            (torch.zeros(2, 1, 8, 8),),
            file,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,  # the default, EVAL, folds every BatchNorm into its convolution
            do_constant_folding=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
        )
        model = onnx.load(file)
    for holder in (model, model.graph, *model.graph.node):
        holder.ClearField("doc_string")
        holder.ClearField("metadata_props")
    return model


def require(claim: bool, otherwise: str) -> None:
    """Ends the script with `otherwise` unless the claim holds (`assert` would vanish under `python -O`)."""
    if not claim:
        raise SystemExit(f"not exported: {otherwise}")


def check_export(model: onnx.ModelProto, network: nn.Sequential, pixels: torch.Tensor) -> None:
    """Ends the script unless every BatchNorm is there, in inference form, and the file computes what torch does."""
    onnx.checker.check_model(model, full_check=True)
    kept = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    modules = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    require(len(kept) == len(modules), f"{len(modules)} BatchNorms became {len(kept)} nodes")
    for node in kept:
        modes = [attribute.i for attribute in node.attribute if attribute.name == "training_mode"]
        require(modes == [0] and len(node.output) == 1, f"{node.name} is in training form")
    with torch.no_grad():
        difference = np.abs(run(model, pixels) - network(pixels).numpy()).max()
    print(f"torch against onnxruntime: {difference:.1e} at most, {len(kept)} BatchNorms kept")
    require(bool(difference <= EXPORT_TOLERANCE), f"onnxruntime differs from torch by {difference}")


def run(model: onnx.ModelProto, pixels: torch.Tensor) -> npt.NDArray[np.float32]:
    """Logits (N, 10) of pixels (N, 1, 8, 8) in onnxruntime, which would fold the BatchNorms itself if it optimised."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"images": pixels.numpy()})[0], dtype=np.float32)


def print_accuracy(name: str, model: onnx.ModelProto, pixels: torch.Tensor, digits: Digits) -> None:
    """Prints the share of `digits` that the exported model names rightly when shown `pixels`."""
    right = int((run(model, pixels).argmax(axis=1) == digits.labels).sum())
    print(f"{name}: {right} of {len(digits.labels)} ({right / len(digits.labels):.2%})")


def make_deterministic() -> None:
    """Fixes every source of randomness; one thread, because sums depend on how they are shared out."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)


def main() -> None:
    """Trains, exports, checks, writes both files and prints what the README of the model states."""
    parser = argparse.ArgumentParser(description="Train and export the shipped digit classifier.")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help=f"default: {DEFAULT_OUTPUT}")
    parser.add_argument("--epochs", type=int, default=60, help="passes over the training images (default: 60)")
    arguments = parser.parse_args()
    make_deterministic()
    training, held_out = split_digits()
    network = train(training, arguments.epochs)
    model = export(network)
    check_export(model, network, held_out.pixels())
    print_accuracy("train", model, training.pixels(), training)
    print_accuracy("held-out", model, held_out.pixels(), held_out)
    moved = CONTRAST * held_out.pixels() + BRIGHTNESS
    print_accuracy(f"held-out, moved to {CONTRAST}*x + {BRIGHTNESS}", model, moved, held_out)
    beside = arguments.output.with_name("digits-heldout.npz")
    arguments.output.write_bytes(model.SerializeToString(deterministic=True))
    np.savez(beside, images=held_out.images, labels=held_out.labels)  # uncompressed: the bytes do not depend on zlib
    for path in (arguments.output, beside):
        print(f"{path.name}: {path.stat().st_size} bytes, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
