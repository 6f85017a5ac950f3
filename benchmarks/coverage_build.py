"""Makes one architecture into a file that keeps every BatchNorm, and its truth in float64.

`python -m benchmarks.coverage_build NAME DIR` leaves `DIR/original.onnx`, `DIR/truth.npz` and `DIR/facts.json`.
Statistics are those of one random batch, moved a little, gammas of both signs (`tests/zoo/lively.py`). The truth is the
torch module in float64 on the float32 weights of the file.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx

from benchmarks.coverage_models import build
from benchmarks.coverage_nets import NETS, Net
from benchmarks.frontier_judge import by_onnxruntime

if TYPE_CHECKING:
    from torch import Tensor, nn

Array = npt.NDArray[Any]

_SEED = 30
#: How many images: of the calibration batch, of the truth, and of one run.
CALIBRATION, IMAGES, BATCH = 16, 16, 4
#: Live: two images change the output by more than this share of its scale.
ALIVE = 1e-2
#: Calm: a move of the image by 1e-7 changes the output by less than this share.
CALM, MOVE = 1e-4, 1e-7
#: The truth is believed where the original in float32 is this close to it.
AGREES = 1e-3
#: A parameter, constant and smaller than this, holds a branch shut until training opens it (LayerScale).
_SHUT = 0.05


@dataclass(frozen=True)
class Facts:
    """What is known of an original before any tool has seen it.

    Attributes:
        batchnorms: How many BatchNormalization nodes it has.
        nodes: How many nodes it has.
        change: The smallest change of an output between two images, of its scale.
        moved: The largest change of an output after the small move of the images, of its scale.
        error: The largest error of the original in float32, of its output's scale.
    """

    batchnorms: int
    nodes: int
    change: float
    moved: float
    error: float

    @property
    def state(self) -> str:
        """Whether figures at the outputs prove anything: "alive", or why they do not."""
        if not self.change > ALIVE:
            return "dead"
        if not self.moved < CALM:
            return "chaotic"
        return "alive" if self.error < AGREES else "no truth"


@dataclass(frozen=True, eq=False)
class Truth:
    """The images and what the network makes of them, batch by batch and output by output.

    Attributes:
        images: (IMAGES, 3, H, W), float32.
        outputs: The true outputs by name, (IMAGES, ...), float64.
        errors: The error of the original by output, one entry for each channel, (C,).
    """

    images: Array
    outputs: dict[str, Array]
    errors: dict[str, Array]

    def save(self, path: Path) -> None:
        """Write everything to one file."""
        parts = {f"truth:{name}": value for name, value in self.outputs.items()}
        parts |= {f"error:{name}": value for name, value in self.errors.items()}
        np.savez(path, images=self.images, **parts)

    @classmethod
    def load(cls, path: Path) -> Truth:
        """Read what `save` wrote."""
        with np.load(path) as held:
            named = [(key.partition(":"), held[key]) for key in held if key != "images"]
            parts = {kind: {n: v for (k, _, n), v in named if k == kind} for kind in ("truth", "error")}
            return cls(held["images"], parts["truth"], parts["error"])


def per_channel(values: Array) -> Array:
    """The largest absolute value of every channel (axis 1) over images and places, (C,)."""
    result: Array = np.abs(values).max(axis=tuple(axis for axis in range(values.ndim) if axis != 1))
    return np.atleast_1d(result)


def run(model: onnx.ModelProto, images: Array) -> dict[str, Array]:
    """The outputs of a model in float32 without onnxruntime's optimiser, as float64."""
    name = model.graph.input[0].name
    runs = [by_onnxruntime(model, {name: images[i : i + BATCH]}) for i in range(0, len(images), BATCH)]
    return {output: np.concatenate([r[output] for r in runs]).astype(np.float64) for output in runs[0]}


def make(net: Net, folder: Path) -> Facts:
    """Build, enliven, export and measure one network."""
    module, images = enlivened(net)
    proto = _exported(module, images[:2])
    onnx.save(proto, folder / "original.onnx")
    names = [value.name for value in proto.graph.output]
    data = np.random.default_rng(_SEED).standard_normal((IMAGES, 3, net.size, net.size), dtype=np.float32)
    noise = MOVE * np.random.default_rng(_SEED + 1).standard_normal((BATCH, *data.shape[1:]))
    oracle = module.double()
    truth, moved = _true(oracle, data, names), _true(oracle, data[:BATCH] + noise, names)
    ours = run(proto, data)
    errors = {name: per_channel(ours[name] - truth[name]) for name in names}
    Truth(data, truth, errors).save(folder / "truth.npz")
    return Facts(
        sum(node.op_type == "BatchNormalization" for node in proto.graph.node),
        len(proto.graph.node),
        min(change(truth[name][:1], truth[name][1:2]) for name in names),
        max(change(truth[name][:BATCH], moved[name]) for name in names),
        max(float(errors[name].max() / np.abs(truth[name]).max()) for name in names),
    )


def change(one: Array, other: Array) -> float:
    """The largest difference, of the largest element of `one`."""
    return float(np.abs(one - other).max() / np.abs(one).max())


def enlivened(net: Net) -> tuple[nn.Module, Tensor]:
    """The network with statistics that let its input through, and the images that they are of."""
    import torch  # noqa: PLC0415

    from tests.zoo.lively import enliven  # noqa: PLC0415

    torch.manual_seed(_SEED)
    module = build(net).requires_grad_(False)
    _open_branches(module)
    _lift_biases(module, net.lift)
    images = torch.randn(CALIBRATION, 3, net.size, net.size)
    enliven(module, images, seed=_SEED + 2, gain=net.gain)
    return module, images


def _open_branches(module: nn.Module) -> None:
    """Scales of whole branches start near zero in some networks, and nothing behind them would be felt."""
    for value in module.parameters():
        if value.ndim and 0 < float(value.abs().max()) <= _SHUT and float(value.min()) == float(value.max()):
            value.uniform_(0.3, 0.7)


def _lift_biases(module: nn.Module, lift: float) -> None:
    for convolution in module.modules():
        if type(convolution).__name__ == "Conv2d" and convolution.bias is not None:
            convolution.bias += lift


def _exported(module: nn.Module, images: Tensor) -> onnx.ModelProto:
    from tests.zoo.exporting import INPUT, export_torchscript  # noqa: PLC0415

    outputs = module(images)
    count = len(outputs) if isinstance(outputs, tuple | list) else 1
    names = ["scores", *(f"output_{place}" for place in range(1, count))]
    return export_torchscript(module, images, axes={name: {0: "N"} for name in (INPUT, *names)})


def _true(oracle: nn.Module, images: Array, names: list[str]) -> dict[str, Array]:
    """The outputs of the module in float64."""
    import torch  # noqa: PLC0415

    runs = []
    for start in range(0, len(images), BATCH):
        outputs = oracle(torch.from_numpy(images[start : start + BATCH].astype(np.float64)))
        runs.append(outputs if isinstance(outputs, tuple | list) else [outputs])
    return {name: np.concatenate([r[i].numpy() for r in runs]) for i, name in enumerate(names)}


def main() -> None:
    """Make what is asked for; an exception ends the process with its message as the last line."""
    name, folder = sys.argv[1:]
    net = next(net for net in NETS if net.name == name)
    facts = make(net, Path(folder))
    (Path(folder) / "facts.json").write_text(json.dumps(asdict(facts)), encoding="utf-8")


if __name__ == "__main__":
    main()
