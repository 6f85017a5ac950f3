"""Deploy a PyTorch model: load a checkpoint, fold its BatchNorms, verify the result, serve one prediction.

python examples/deploy_torch.py digits.pt

Trains a small network on the shipped digits first, which takes seconds and stands for your own training.
Needs torch and NumPy.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

try:
    import torch
    from torch import Tensor, nn
except ImportError:
    sys.exit("this example needs PyTorch: pip install torch")

import bnfold

DIGITS = Path(__file__).parents[1] / "models" / "digits-heldout.npz"
TRAINING = 300  # images; the other 60 are for the test


class Unit(nn.Module):
    """A convolution, a BatchNorm and an activation, and what came in added up."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return x + self.norm(self.conv(x)).relu()


class Classifier(nn.Module):
    """Images of digits, (N, 1, 8, 8) with pixels in [0, 1], to ten scores."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(Unit(16), Unit(16))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(16 * 36, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU())
        self.last = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """The scores, (N, 10)."""
        scores: Tensor = self.last(self.head(self.body(self.stem(images))))
        return scores


def train(images: Tensor, labels: Tensor, checkpoint: Path) -> None:
    """Train a classifier and save its parameters and statistics."""
    torch.manual_seed(0)
    model = Classifier().train()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(15):
        for batch in torch.randperm(len(images)).split(50):
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    torch.save(model.state_dict(), checkpoint)


def deploy(checkpoint: Path, example: Tensor) -> tuple[nn.Module, nn.Module]:
    """The loaded model and the folded one, proven equivalent; raises BnfoldError where that fails."""
    model = Classifier()
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    model.eval()  # in training mode a BatchNorm cannot be folded
    result = bnfold.fold(model, example_inputs=(example,))
    for kept in result.report.kept:
        print(f"{kept.subject.name}: kept, because {'; '.join(map(str, kept.refusals))}")
    verification = result.report.verification
    assert verification is not None
    worst = max(tensor.error for check in verification.quick for tensor in check.comparisons)
    print(f"{len(result.report.folded)} of {len(result.decisions)} BatchNorms folded, largest error {worst:.0e}")
    return model, result.module


def main() -> None:
    """Train, deploy, compare and serve."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="where the trained parameters go")
    checkpoint = parser.parse_args().checkpoint
    torch.set_num_threads(1)  # the network is small
    with np.load(DIGITS) as archive:
        images = torch.from_numpy(archive["images"][:, None].astype(np.float32) / 16)
        labels = torch.from_numpy(archive["labels"].astype(np.int64))
    try:
        train(images[:TRAINING], labels[:TRAINING], checkpoint)
        model, fused = deploy(checkpoint, images[:2])
    except (bnfold.BnfoldError, OSError, RuntimeError) as error:
        sys.exit(str(error))

    with torch.inference_mode():
        for name, network in {"loaded": model, "folded": fused}.items():
            right = int((network(images[TRAINING:]).argmax(1) == labels[TRAINING:]).sum())
            print(f"{name}: {right} of {len(labels) - TRAINING} digits right")
        answer = int(fused(images[-1:]).argmax())
    print(f"served: the last image is a {answer}, its label is {int(labels[-1])}")


if __name__ == "__main__":
    main()
