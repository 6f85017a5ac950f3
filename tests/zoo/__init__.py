"""Live test networks: whole architectures as ONNX files that keep every BatchNorm, with a float64 reference each.

    network = load("resnet50")
    network.proto, network.path            # the ONNX model, fresh at every access; its read-only file
    network.reference(network.sample(7))   # torch in float64, on the same weights

The weights are random (no trained ones can be had), the statistics those of one random batch, so that the output
follows the input: `tests/test_zoo_alive.py` holds that.
"""

from __future__ import annotations

from .catalogue import NETWORKS
from .network import Network, Recipe
from .storage import load

__all__ = ["NETWORKS", "Network", "Recipe", "load"]
