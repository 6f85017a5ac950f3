"""Whole networks fold: every BatchNorm goes that can, the result is proven, and is as accurate as the original was."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import bnfold
from bnfold.decision import Reason
from bnfold.runtime import open_session
from tests.zoo import NETWORKS, Network, load

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from onnx import ModelProto

    from bnfold import FoldResult

UNIT = 2.0**-24  # of float32
IMAGES = 16  # whose errors are pooled for each channel of an output without spatial axes
BATCH = 4

#: A BatchNorm before a ReLU whose input other layers read as well: nothing that it follows may absorb it, and the ReLU
#: would become a Max, which costs onnxruntime more than both in an image.
KEPT = {"densenet121": Counter({(Reason.VALUE_HAS_OTHER_READERS, Reason.COSTS_MORE): 59})}


@pytest.fixture(params=NETWORKS, scope="module")
def network(request: pytest.FixtureRequest) -> Network:
    return load(request.param)


@pytest.fixture(scope="module")
def result(network: Network) -> FoldResult:
    """Folded and verified: a fold that fails raises."""
    return bnfold.fold(network.path)


@pytest.fixture(scope="module")
def folded(result: FoldResult) -> ModelProto:
    return ir.to_proto(result.model)


def test_every_batchnorm_that_can_go_is_gone(network: Network, result: FoldResult, folded: ModelProto) -> None:
    kept = Counter(tuple(r.reason for r in d.refusals) for d in result.report.kept_batchnorms)
    assert kept == KEPT.get(network.name, Counter())
    assert sum(d.subject.is_batchnorm for d in result.decisions) == network.batchnorms
    left = sum(node.op_type == "BatchNormalization" for node in folded.graph.node)
    assert left == kept.total()


def test_every_fold_passes_the_local_test_and_the_run(result: FoldResult) -> None:
    checked = result.report.verification
    assert checked is not None
    assert checked.passed
    assert checked.local
    assert all(check.ratio is not None and check.ratio <= 1 for check in checked.local)
    tested = Counter(name for check in checked.local for name in check.batchnorms)
    assert tested == Counter(d.subject.name for d in result.report.folded)


def test_the_model_is_valid_and_its_interface_as_before(network: Network, folded: ModelProto) -> None:
    onnx.checker.check_model(folded, full_check=True)
    before = network.proto
    assert list(folded.graph.output) == list(before.graph.output)
    assert list(folded.graph.input) == list(before.graph.input)
    assert [(o.domain, o.version) for o in folded.opset_import] == [(o.domain, o.version) for o in before.opset_import]
    assert folded.ir_version == before.ir_version


def test_each_channel_is_as_accurate_as_it_was(network: Network, folded: ModelProto) -> None:
    originals, ours, references = _outputs(network, folded)
    errors = [_largest(np.abs(run - references)) for run in (originals, ours)]
    allowed = 4 * errors[0] + 64 * UNIT * _largest(np.abs(references))
    assert np.all(errors[1] <= allowed), float(np.max(errors[1] / allowed))


def _outputs(network: Network, folded: ModelProto) -> tuple[NDArray[np.float64], ...]:
    """What original, folded model and reference give for the same images: each (IMAGES, C, ...)."""
    name = network.proto.graph.output[0].name
    sessions = [open_session(model).handle for model in (network.path, folded)]
    runs: tuple[list[NDArray[np.float64]], ...] = ([], [], [])
    for seed in range(IMAGES // BATCH):
        x = network.sample(100 + seed, batch=BATCH)
        for run, session in zip(runs, sessions, strict=False):
            run.append(session.run([name], {network.input_name: x})[0].astype(np.float64))
        runs[2].append(network.reference(x))
    return tuple(np.concatenate(run) for run in runs)


def _largest(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The maximum of each channel over images and pixels, (C,)."""
    largest: NDArray[np.float64] = values.max(axis=tuple(axis for axis in range(values.ndim) if axis != 1))
    return largest


def test_the_saved_file_loads_and_a_second_fold_changes_nothing(
    network: Network, result: FoldResult, tmp_path: Path
) -> None:
    path = tmp_path / f"{network.name}.onnx"
    bnfold.save(result.model, path)
    again = bnfold.fold(path, verify=False)
    assert not again.report.folded
    assert len(again.report.kept_batchnorms) == len(result.report.kept_batchnorms)
    once, twice = (
        ir.to_proto(model).SerializeToString(deterministic=True) for model in (bnfold.load(path), again.model)
    )
    assert once == twice


def test_a_wrong_weight_breaks_the_rule_of_accuracy() -> None:
    # the proof that the test of accuracy can fail: one folded weight off by a thousandth of the largest
    network = load("unet")
    folded = ir.to_proto(bnfold.fold(network.path, verify=False).model)
    tensor = next(t for t in folded.graph.initializer if "_folded" in t.name and len(t.dims) == 4)
    weight = onnx.numpy_helper.to_array(tensor).copy()
    weight.flat[0] += 1e-3 * np.abs(weight).max()
    tensor.CopyFrom(onnx.numpy_helper.from_array(weight, tensor.name))
    originals, ours, references = _outputs(network, folded)
    errors = [_largest(np.abs(run - references)) for run in (originals, ours)]
    assert np.any(errors[1] > 4 * errors[0] + 64 * UNIT * _largest(np.abs(references)))


def test_a_densenet_with_positive_scales_has_no_batchnorm_left_and_a_max_for_each_relu_behind_one() -> None:
    proto = load("densenet121").proto
    gammas = {node.input[1] for node in proto.graph.node if node.op_type == "BatchNormalization"}
    for tensor in proto.graph.initializer:
        if tensor.name in gammas:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.abs(onnx.numpy_helper.to_array(tensor)), tensor.name))
    result = bnfold.fold(ir.from_proto(proto), reduce=True)
    report = result.report
    assert (len(report.folded), len(report.reduced), len(report.kept)) == (121, 0, 0)
    assert report.after is not None
    assert (report.after.batchnorms, report.after.nodes) == (0, report.before.nodes - 121)
    assert sum(node.op_type == "Max" for node in result.model.graph) == 59
    assert report.verification is not None
    assert report.verification.passed


def test_a_densenet_has_no_batchnorm_left_where_the_caller_wants_none() -> None:
    report = bnfold.fold(ir.from_proto(load("densenet121").proto), leftover="affine").report
    assert (len(report.folded), len(report.reduced), len(report.kept)) == (62, 59, 0)
    assert report.after is not None
    written = sum(len(decision.to.split("-")) for decision in report.reduced)
    assert (report.after.batchnorms, report.after.nodes) == (0, report.before.nodes - 121 + written)
    assert report.verification is not None
    assert report.verification.passed
    assert sum(len(check.batchnorms) for check in report.verification.local) == 62 + 59  # some share a region
