"""The other methods on modules, and that a module and its ONNX file get the same statistics from the same data."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from test_torch_recalibration import fresh, recalibrate
from torch import nn
from torch_recalibration_nets import CASES
from zoo.exporting import export_torchscript
from zoo.lively import batchnorms

import bnfold
from tests.recalibrated_torch import batches

#: Without dropout, which is off in `ema`; a SyncBatchNorm trains on GPUs only.
TRAINED = ["a chain", "one module on two inputs", "sizes and lists between the levels", "rank 2, 3 and 5"]


@pytest.mark.parametrize("momentum", [0.1, 0.5])
@pytest.mark.parametrize("name", TRAINED)
def test_ema_with_bessel_is_what_torch_keeps_in_training(name: str, momentum: float) -> None:
    """Calls of one module update its average one after the other, in torch as here."""
    module, data = fresh(name, torch.float64)
    trained = copy.deepcopy(module).train()
    for norm in batchnorms(trained):
        norm.momentum = momentum
    with torch.no_grad():
        for batch in batches(data, 8):
            trained(*batch)
    result = recalibrate(module, data, method="ema", momentum=momentum, bessel=True)
    for path in CASES[name].order:
        ours, theirs = result.model.get_submodule(path), trained.get_submodule(path)
        torch.testing.assert_close(ours.running_mean, theirs.running_mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=1e-12, atol=0)
        assert ours.num_batches_tracked == 0
        assert theirs.num_batches_tracked > 0


def test_dropout_stays_off_in_every_method() -> None:
    module, data = fresh("branches of other depths that meet", torch.float64)
    plain = copy.deepcopy(module)
    plain.drop = nn.Identity()
    for method in ("sequential", "batch", "ema"):
        one, other = recalibrate(module, data, method=method), recalibrate(plain, data, method=method)
        assert torch.equal(one.model.e.running_var, other.model.e.running_var)


@pytest.mark.parametrize("method", ["sequential", "batch", "ema"])
@pytest.mark.parametrize("name", ["a chain", "branches of other depths that meet", "one module at two depths"])
def test_a_module_and_its_onnx_file_get_the_same_statistics(name: str, method: str) -> None:
    module, (x,) = fresh(name)
    for norm in batchnorms(module):
        norm.eps = float(np.float32(norm.eps))  # as the exporter writes it
    axes = {"image": {0: "N", 2: "H", 3: "W"}, "y": {0: "N"}}
    proto = export_torchscript(module, x[:2], axes=axes)
    options: dict[str, Any] = {"method": method, "bessel": method == "ema"}
    ours = recalibrate(module, (x,), **options)
    theirs = bnfold.recalibrate(ir.from_proto(proto), [part.numpy() for part in x.split(8)], **options)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in ir.to_proto(theirs.model).graph.initializer}
    assert len(theirs.report.recalibrated) == len(ours.report.recalibrated) == len(CASES[name].order)
    assert ours.report.samples == theirs.report.samples
    for path in CASES[name].order:
        norm = ours.model.get_submodule(path)
        mean, variance = stored[f"{path}.running_mean"], stored[f"{path}.running_var"]
        deviation = np.sqrt(variance + norm.eps)
        assert (np.abs(norm.running_mean.numpy() - mean) <= 1e-5 * deviation).all(), path
        assert (np.abs(norm.running_var.numpy() - variance) <= 1e-5 * deviation**2).all(), path
