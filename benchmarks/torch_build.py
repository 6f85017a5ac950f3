"""Makes one PyTorch network live and finds out its truth in float64.

`python -m benchmarks.torch_build NAME DIR` leaves `DIR/state.pt`, `DIR/truth.npz` and `DIR/facts.json`. The networks
are those of the table of ONNX models, enlivened in the same way (`benchmarks/coverage_build.py`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from benchmarks.coverage_build import BATCH, MOVE, Array, Facts, Truth, change, enlivened, per_channel
from benchmarks.coverage_models import build
from benchmarks.coverage_nets import Net
from benchmarks.torch_made import calls
from benchmarks.torch_nets import BY_NAME

_SEED = 40
#: How many images the truth is of. A channel of a classifier's output is one number an image: the largest error of few
#: such numbers is too much luck for a ratio of two of them.
IMAGES = 64


def outputs(run: Callable[[Tensor], Any], images: Tensor) -> dict[str, Array]:
    """The outputs of a network, batch by batch, as float64."""
    runs = []
    with torch.no_grad():
        for start in range(0, len(images), BATCH):
            leaves = _pytree.tree_leaves(run(images[start : start + BATCH].clone()))
            runs.append([leaf.double().numpy() for leaf in leaves if isinstance(leaf, Tensor)])
    return {f"output {place}": np.concatenate(parts) for place, parts in enumerate(zip(*runs, strict=True))}


def load(net: Net, folder: Path) -> nn.Module:
    """The network that `make` left, in float32 and eval mode."""
    module = build(net).requires_grad_(False).eval()
    module.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    return module


def make(net: Net, folder: Path) -> Facts:
    """Build, enliven and measure one network; the nodes of the result are its modules without children."""
    module, _ = enlivened(net)
    torch.save(module.state_dict(), folder / "state.pt")
    generator = torch.Generator().manual_seed(_SEED)
    images = torch.randn(IMAGES, 3, net.size, net.size, generator=generator)
    noise = MOVE * torch.randn(BATCH, *images.shape[1:], generator=generator, dtype=torch.float64)
    ours = outputs(module, images)
    exact = load(net, folder).double()
    truth, moved = outputs(exact, images.double()), outputs(exact, images[:BATCH].double() + noise)
    errors = {name: per_channel(ours[name] - truth[name]) for name in truth}
    Truth(images.numpy(), truth, errors).save(folder / "truth.npz")
    return Facts(
        calls(load(net, folder), images[:BATCH]),
        sum(not any(part.children()) for part in module.modules()),
        min(change(values[:1], values[1:2]) for values in truth.values()),
        max(change(truth[name][:BATCH], moved[name]) for name in truth),
        max(float(errors[name].max() / np.abs(truth[name]).max()) for name in truth),
    )


def main() -> None:
    """Make what is asked for; an exception ends the process with its message as the last line."""
    torch.set_num_threads(1)
    name, folder = sys.argv[1:]
    facts = make(BY_NAME[name], Path(folder))
    (Path(folder) / "facts.json").write_text(json.dumps(asdict(facts)), encoding="utf-8")


if __name__ == "__main__":
    main()
