"""Whole networks: one uncut pass finds at every BatchNorm the mean and variance that are stored there.

In onnxruntime's float32, where the pass rounds as the recalibration did, and in torch's float64, where it does not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

import bnfold
from bnfold.runtime import exposing, open_session
from tests.zoo import load
from tests.zoo.catalogue import NETWORKS
from tests.zoo.lively import batchnorms
from tests.zoo.threads import one_thread
from tests.zoo.weights import module_with_weights_of

Array = np.ndarray[Any, Any]

#: In standard deviations and variances; measured 2e-7.
TOLERANCE = 5e-7

#: The same with what float32 itself does to a network of 50 levels; measured 4e-5 at the last level of ResNet-50, from
#: 4e-7 at the first.
OF_FLOAT32 = 1e-4


def errors_in_float32(model: onnx.ModelProto, batches: list[Array]) -> list[float]:
    """As `errors`, of the activations in onnxruntime, but reduced in NumPy's float64."""
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    names = list(dict.fromkeys(node.input[0] for node in norms))
    session = open_session(exposing(model, names))
    seen = [session.run(names, {model.graph.input[0].name: batch}) for batch in batches]
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = []
    for norm in norms:
        rows = [np.moveaxis(part[norm.input[0]], 1, -1) for part in seen]
        x = np.concatenate([part.reshape(-1, part.shape[-1]) for part in rows]).astype(np.float64)
        mean, variance = x.mean(axis=0), x.var(axis=0) + 1e-5
        found.append(float((np.abs(mean - stored[norm.input[3]]) / np.sqrt(variance)).max()))
        found.append(float((np.abs(x.var(axis=0) - stored[norm.input[4]]) / variance).max()))
    return found


def errors(module: nn.Module, images: Array) -> list[tuple[float, float]]:
    """How far what each BatchNorm sees is from what it has stored: mean in deviations, variance in variances."""
    found: list[tuple[float, float]] = []

    def watch(norm: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0].movedim(1, 0).flatten(1)
        variance = x.var(dim=1, correction=0) + norm.eps
        off = (x.mean(dim=1) - norm.running_mean).abs() / variance.sqrt()
        spread = ((x.var(dim=1, correction=0) - norm.running_var) / variance).abs()
        found.append((float(off.max()), float(spread.max())))

    for norm in batchnorms(module):
        norm.register_forward_pre_hook(watch)
    with torch.no_grad(), one_thread():
        module.double().eval()(torch.from_numpy(images.astype(np.float64)))
    return found


@pytest.mark.parametrize("name", ["resnet50", "shufflenet_v2_dynamo", "unet_norm_after_concat"])
def test_every_batchnorm_of_a_network_fits_what_it_sees(name: str) -> None:
    network = load(name)
    images = 0.5 + 2 * network.sample(5, batch=10)
    batches = [images[:4], images[4:8], images[8:]]
    result = bnfold.recalibrate(ir.from_proto(network.proto), batches)
    assert len(result.report.recalibrated) == network.batchnorms
    assert result.report.left == ()
    recalibrated = ir.to_proto(result.model)
    onnx.checker.check_model(recalibrated)
    found = errors(module_with_weights_of(recalibrated, NETWORKS[name].build), images)
    assert len(found) == network.batchnorms
    assert max(map(max, found)) <= OF_FLOAT32
    assert max(errors_in_float32(recalibrated, batches)) <= TOLERANCE
    stale = errors(network.module(), images)
    assert max(map(max, stale)) > 0.1, "there was nothing to do"
