"""The shipped digit model is what its README says: the bytes, the contract, the BatchNorms, and the accuracy."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort  # type: ignore[import-untyped]
import pytest

MODELS = Path(__file__).parents[1] / "models"
MODEL = MODELS / "digits-darknet.onnx"
HELD_OUT = MODELS / "digits-heldout.npz"
PLAIN, MOVED = "held-out", "held-out, moved to 0.4*x + 0.3"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class HeldOut:
    images: Floats
    labels: npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def readme() -> str:
    return (MODELS / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(MODEL)


@pytest.fixture(scope="module")
def session() -> ort.InferenceSession:
    return open_session(MODEL.read_bytes())


@pytest.fixture(scope="module")
def held_out() -> HeldOut:
    with np.load(HELD_OUT) as archive:
        return HeldOut(archive["images"][:, None].astype(np.float32) / np.float32(16), archive["labels"])


def logits(session: ort.InferenceSession, images: Floats) -> Floats:
    return np.asarray(session.run(["logits"], {"images": images})[0], dtype=np.float32)


def nodes(model: onnx.ModelProto, kind: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == kind]


def readers(model: onnx.ModelProto, value: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if value in node.input]


def attribute(node: onnx.NodeProto, name: str) -> object:
    return next(onnx.helper.get_attribute_value(found) for found in node.attribute if found.name == name)


def stored(model: onnx.ModelProto) -> dict[str, Floats]:
    return {entry.name: onnx.numpy_helper.to_array(entry) for entry in model.graph.initializer}


def open_session(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def stated_count(readme: str, row: str) -> tuple[int, int, float]:
    """Right answers, images and percentage in the README's row of that name."""
    found = re.search(rf"^\| {re.escape(row)} \| (\d+) of (\d+) \| ([\d.]+) % \|$", readme, flags=re.MULTILINE)
    assert found, f"the README has no row {row!r}"
    return int(found[1]), int(found[2]), float(found[3])


@pytest.mark.parametrize("path", [MODEL, HELD_OUT], ids=lambda path: path.name)
def test_the_readme_states_size_and_hash_of_each_file(path: Path, readme: str) -> None:
    content = path.read_bytes()
    assert f"| `{path.name}` | {len(content)} | `{hashlib.sha256(content).hexdigest()}` |" in readme


def test_the_model_passes_the_full_checker_and_keeps_its_contract(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    shapes = {value.name: value.type.tensor_type for value in (*model.graph.input, *model.graph.output)}
    assert {value.elem_type for value in shapes.values()} == {onnx.TensorProto.FLOAT}
    dims = {name: [dim.dim_param or dim.dim_value for dim in value.shape.dim] for name, value in shapes.items()}
    assert dims == {"images": ["batch", 1, 8, 8], "logits": ["batch", 10]}


def test_every_convolution_is_bias_free_and_read_by_its_own_batchnorm_and_leaky_relu(model: onnx.ModelProto) -> None:
    convolutions = nodes(model, "Conv")
    assert len(convolutions) == len(nodes(model, "BatchNormalization")) == len(nodes(model, "LeakyRelu")) == 11
    for convolution in convolutions:
        assert len(convolution.input) == 2, convolution.name
        (norm,) = readers(model, convolution.output[0])
        assert (norm.op_type, norm.input[0]) == ("BatchNormalization", convolution.output[0])
        (leaky,) = readers(model, norm.output[0])
        assert (leaky.op_type, attribute(leaky, "alpha")) == ("LeakyRelu", pytest.approx(0.1))


def test_no_batchnorm_is_in_training_mode(model: onnx.ModelProto) -> None:
    for norm in nodes(model, "BatchNormalization"):
        assert (attribute(norm, "training_mode"), len(norm.output)) == (0, 1), norm.name


def test_the_batchnorm_statistics_are_trained_and_no_channel_is_dead(model: onnx.ModelProto) -> None:
    arrays = stored(model)
    for norm in nodes(model, "BatchNormalization"):
        gamma, beta, mean, variance = (arrays[name] for name in norm.input[1:])
        assert all(len(set(values.tolist())) == values.size for values in (gamma, beta, mean, variance)), norm.name
        assert np.abs(gamma).min() > 0.1, norm.name
        assert variance.min() > 1e-3, norm.name


def test_the_gammas_lie_where_the_readme_says(model: onnx.ModelProto, readme: str) -> None:
    gammas = np.concatenate([stored(model)[norm.input[1]] for norm in nodes(model, "BatchNormalization")])
    found = re.search(r"the gammas now lie between\s+([\d.]+) and ([\d.]+)\. None is negative\.", readme)
    assert found, "the README does not say where the gammas lie"
    assert (float(found[1]), float(found[2])) == (round(float(gammas.min()), 3), round(float(gammas.max()), 3))


def test_only_the_stem_is_unpadded(model: onnx.ModelProto) -> None:
    stem, *others = nodes(model, "Conv")
    assert stem.input[0] == "images"
    assert attribute(stem, "pads") == [0, 0, 0, 0]
    for convolution in others:
        border = stored(model)[convolution.input[1]].shape[-1] // 2
        assert attribute(convolution, "pads") == [border] * 4, convolution.name


def test_statistics_of_the_stem_alone_undo_a_move(
    model: onnx.ModelProto, session: ort.InferenceSession, held_out: HeldOut
) -> None:
    moved = onnx.ModelProto.FromString(model.SerializeToString())
    stem, norm, epsilon = nodes(moved, "Conv")[0], nodes(moved, "BatchNormalization")[0], 1e-5
    assert attribute(norm, "epsilon") == pytest.approx(epsilon)
    arrays = stored(moved)
    weights, mean, variance = (arrays[name].astype(np.float64) for name in (stem.input[1], *norm.input[3:]))
    statistics = {
        norm.input[3]: 0.4 * mean + 0.3 * weights.sum(axis=(1, 2, 3)),
        norm.input[4]: 0.4**2 * (variance + epsilon) - epsilon,
    }
    for entry in moved.graph.initializer:
        if entry.name in statistics:
            entry.CopyFrom(onnx.numpy_helper.from_array(statistics[entry.name].astype(np.float32), entry.name))
    shown = np.float32(0.4) * held_out.images + np.float32(0.3)
    undone = logits(open_session(moved.SerializeToString()), shown)
    np.testing.assert_allclose(undone, logits(session, held_out.images), rtol=0, atol=1e-4)


def test_the_file_carries_no_trace_of_the_machine_that_wrote_it(model: onnx.ModelProto) -> None:
    for holder in (model, model.graph, *model.graph.node):
        assert not holder.doc_string
        assert not holder.metadata_props
    assert not any(entry.external_data for entry in model.graph.initializer)


def test_the_held_out_images_are_small_integers_and_every_digit_is_there() -> None:
    with np.load(HELD_OUT) as archive:
        images, labels = archive["images"], archive["labels"]
    assert (images.dtype, labels.dtype) == (np.uint8, np.uint8)
    assert (images.shape, labels.shape) == ((360, 8, 8), (360,))
    assert (images.min(), images.max()) == (0, 16)
    assert set(np.bincount(labels, minlength=10).tolist()) <= {35, 36, 37}


@pytest.mark.parametrize(("row", "move"), [(PLAIN, (1.0, 0.0)), (MOVED, (0.4, 0.3))], ids=[PLAIN, MOVED])
def test_the_accuracy_is_the_one_in_the_readme(
    row: str, move: tuple[float, float], session: ort.InferenceSession, held_out: HeldOut, readme: str
) -> None:
    shown = np.float32(move[0]) * held_out.images + np.float32(move[1])
    right, total = int((logits(session, shown).argmax(axis=1) == held_out.labels).sum()), len(held_out.labels)
    assert stated_count(readme, row) == (right, total, round(100 * right / total, 2))


def test_the_accuracy_is_high_and_moved_inputs_cost_more_than_thirty_points(readme: str) -> None:
    plain, moved = stated_count(readme, PLAIN)[2], stated_count(readme, MOVED)[2]
    assert plain >= 98.5
    assert plain - moved > 30


def test_the_network_is_alive_and_not_chaotic(session: ort.InferenceSession, held_out: HeldOut) -> None:
    plain = logits(session, held_out.images)
    scale = np.abs(plain).max()
    assert plain.std(axis=0).min() > 1e-2 * scale
    nudged = logits(session, held_out.images + np.float32(1e-7))
    assert 0 < np.abs(nudged - plain).max() < 1e-4 * scale


def test_the_batch_size_does_not_change_the_answer(session: ort.InferenceSession, held_out: HeldOut) -> None:
    together = logits(session, held_out.images[:3])
    apart = np.concatenate([logits(session, held_out.images[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(together, apart, rtol=0, atol=1e-5)
