"""A session runs where it was asked to, or says in one sentence why not."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from bnfold import runtime
from bnfold.dataflow import floating_nodes
from bnfold.errors import MissingPackageError, ProviderError
from bnfold.placement import Assignment, judge_placement, read_profile, read_recorded
from bnfold.runtime import explain, open_session

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def small(weight: np.ndarray | None = None) -> onnx.ModelProto:
    """x (N, 4) -> y = Relu(x @ w), and the number of its elements by shape arithmetic."""
    weight = np.eye(4, dtype=np.float32) if weight is None else weight
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"], name="product"),
             helper.make_node("Relu", ["m"], ["y"], name="rectifier"),
             helper.make_node("Shape", ["y"], ["s"], name="shape"),
             helper.make_node("ReduceProd", ["s"], ["n"], name="count", keepdims=0)]  # fmt: skip
    outputs = [
        helper.make_tensor_value_info("y", 1, ["N", 4]),
        helper.make_tensor_value_info("n", TensorProto.INT64, []),
    ]
    inputs = [helper.make_tensor_value_info("x", 1, ["N", 4])]
    graph = helper.make_graph(nodes, "test", inputs, outputs, [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


X = np.array([[1, -2, 3, -4]], np.float32)


def test_a_model_runs_from_memory_and_from_a_file(tmp_path: Path) -> None:
    save(small(), tmp_path / "model.onnx")
    for given in (small(), tmp_path / "model.onnx", str(tmp_path / "model.onnx")):
        session = open_session(given)
        assert session.types == {"x": "float32", "y": "float32", "n": "int64"}
        result = session.run(["y", "n"], {"x": X})
        assert np.array_equal(result["y"], [[1, 0, 3, 0]])
        assert int(result["n"]) == 4
        assert session.confirm_placement() == ()


def test_a_model_too_large_for_memory_runs_from_a_file_and_keeps_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(np.diag(np.arange(4, dtype=np.float32)))
    before = model.SerializeToString()
    monkeypatch.setattr(runtime, "LARGEST_IN_MEMORY", 10)
    with contextlib.ExitStack() as stack:
        assert isinstance(runtime._loadable(model, stack), str)
    assert np.array_equal(open_session(model).run(["y"], {"x": X})["y"], [[0, 0, 6, 0]])
    assert model.SerializeToString() == before


def test_nothing_is_optimised_unless_asked() -> None:
    levels = onnxruntime.GraphOptimizationLevel
    for optimised, level in ((False, levels.ORT_DISABLE_ALL), (True, levels.ORT_ENABLE_ALL)):
        options = open_session(small(), optimised=optimised).handle.get_session_options()
        assert options.graph_optimization_level == level


def test_cuda_is_refused_where_this_onnxruntime_has_none() -> None:
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(ProviderError, match=r"has no CUDAExecutionProvider; pip install \"bnfold\[gpu\]\"") as caught:
        open_session(small(), "cuda")
    assert caught.value.exit_code == 3


def test_a_session_that_fell_back_to_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_only = onnxruntime.InferenceSession(small().SerializeToString(), providers=[CPU])
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_args, **_named: cpu_only)
    with pytest.raises(ProviderError, match="fell back to CPUExecutionProvider although cuda was asked for"):
        open_session(small(), "cuda")


@pytest.mark.parametrize("tf32", [False, True])
def test_on_cuda_tf32_is_off_unless_asked_for_and_the_algorithm_search_is_pinned(
    monkeypatch: pytest.MonkeyPatch, tf32: bool
) -> None:
    given: list[object] = []
    made = SimpleNamespace(get_providers=lambda: [CUDA, CPU], get_inputs=list, get_outputs=list)

    def session(_model: object, options: onnxruntime.SessionOptions, providers: list[object]) -> object:
        given.extend([options.use_deterministic_compute, *providers])
        return made

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    assert open_session(small(), "cuda", tf32=tf32).handle is made
    settings = {"use_tf32": "1" if tf32 else "0", "cudnn_conv_algo_search": "DEFAULT"}
    assert given == [True, (CUDA, settings), CPU]


def test_an_unknown_provider_is_refused() -> None:
    with pytest.raises(ProviderError, match="'tpu' is unknown; choose one of cpu, cuda"):
        open_session(small(), "tpu")


def test_a_missing_onnxruntime_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r'pip install "bnfold\[cpu\]"'):
        open_session(small())
    with pytest.raises(MissingPackageError, match=r'pip install "bnfold\[gpu\]"'):
        open_session(small(), "cuda")


def test_importing_the_module_loads_no_onnxruntime() -> None:
    code = "import sys, bnfold.runtime, bnfold.quickcheck; sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


FLOATING = frozenset({"product", "rectifier"})


def placed(**where: str) -> list[Assignment]:
    kinds = {"product": "MatMul", "rectifier": "Relu", "shape": "Shape", "count": "ReduceProd"}
    return [Assignment(name, kind, where.get(name, CUDA)) for name, kind in kinds.items()]


def test_the_floating_point_path_is_found_and_shape_arithmetic_is_not_on_it() -> None:
    assert floating_nodes(small()) == FLOATING


def test_everything_on_the_provider_is_accepted_and_shape_arithmetic_elsewhere_is_listed() -> None:
    assert judge_placement(placed(), FLOATING, CUDA) == ()
    assert judge_placement(placed(shape=CPU, count=CPU), FLOATING, CUDA) == ("Shape shape", "ReduceProd count")


@pytest.mark.parametrize("name", sorted(FLOATING))
def test_a_floating_point_node_elsewhere_is_refused_by_name(name: str) -> None:
    with pytest.raises(ProviderError, match=f"{name}: .* was placed on CPUExecutionProvider although CUDA"):
        judge_placement(placed(**{name: CPU}), FLOATING, CUDA)


def test_nothing_recorded_everything_elsewhere_and_nameless_nodes_are_refused() -> None:
    with pytest.raises(ProviderError, match="no node was placed on CUDA"):
        judge_placement([], FLOATING, CUDA)
    with pytest.raises(ProviderError, match="no node was placed on CUDA"):
        judge_placement([Assignment("shape", "Shape", CPU)], FLOATING, CUDA)
    with pytest.raises(ProviderError, match="Conv was placed on CPUExecutionProvider"):
        judge_placement([*placed(), Assignment("", "Conv", CPU)], FLOATING, CUDA)


def test_copies_between_devices_are_no_nodes_of_the_model() -> None:
    copies = [Assignment("Memcpy_1", "MemcpyToHost", CPU), Assignment("Memcpy_2", "MemcpyFromHost", CUDA)]
    assert judge_placement([*placed(), *copies], FLOATING, CUDA) == ()
    with pytest.raises(ProviderError, match="no node was placed"):
        judge_placement(copies, FLOATING, CUDA)


def test_the_record_of_this_onnxruntime_names_every_node() -> None:
    if not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        pytest.skip("this onnxruntime keeps no record")
    options = runtime._options(onnxruntime, optimised=False, cuda=True)
    session = onnxruntime.InferenceSession(small().SerializeToString(), options, providers=[CPU])
    recorded = read_recorded(session.get_provider_graph_assignment_info())
    assert {entry.node for entry in recorded} == {"product", "rectifier", "shape", "count"}
    assert {entry.provider for entry in recorded} == {CPU}


def test_the_profile_names_every_node_where_there_is_no_record(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    handle = onnxruntime.InferenceSession(small().SerializeToString(), options, providers=[CPU])
    handle.run(None, {"x": X})
    path = tmp_path / handle.end_profiling().rsplit("/", 1)[-1]
    read = read_profile(path)
    assert set(read) == {Assignment("product", "MatMul", CPU), Assignment("rectifier", "Relu", CPU),
                         Assignment("shape", "Shape", CPU), Assignment("count", "ReduceProd", CPU)}  # fmt: skip
    assert not path.exists()


def test_a_cuda_session_is_judged_by_its_record_or_else_by_its_profile(tmp_path: Path) -> None:
    def session(**methods: object) -> runtime.Session:
        return runtime.Session("cuda", False, {}, FLOATING, SimpleNamespace(**methods))

    def node(name: str) -> SimpleNamespace:
        return SimpleNamespace(name=name, op_type="MatMul")

    parts = [SimpleNamespace(ep_name=CUDA, get_nodes=lambda: [node("rectifier")]),
             SimpleNamespace(ep_name=CPU, get_nodes=lambda: [node("product")])]  # fmt: skip
    with pytest.raises(ProviderError, match="product: MatMul was placed on CPU"):
        session(get_provider_graph_assignment_info=lambda: parts).confirm_placement()
    events = [{"name": f"{entry.node}_kernel_time", "args": {"op_name": entry.operator, "provider": entry.provider}}
              for entry in placed(count=CPU)]  # fmt: skip
    path = tmp_path / "profile.json"
    path.write_text(json.dumps([*events, {"name": "model_run", "args": {}}]))
    assert session(end_profiling=lambda: str(path)).confirm_placement() == ("ReduceProd count",)


MESSAGES = {
    "kernel": (
        (
            "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for "
            "Conv(11) node with name 'n0'"
        ),
        "n0: onnxruntime has no cpu kernel for Conv of this type; ",
    ),
    "custom": (
        "[ONNXRuntimeError] : 1 : FAIL : Fatal error: my.dom:Foo(-1) is not a registered function/op",
        "onnxruntime does not know the operator my.dom:Foo; ",
    ),
    "type": (
        (
            "[ONNXRuntimeError] : 10 : INVALID_GRAPH : This is an invalid model. "
            "Type Error: Type 'tensor(bfloat16)' of "
            "input parameter (x) of operator (Conv) in node (n0) is invalid."
        ),
        "n0: onnxruntime cannot run Conv on the cpu (This is an invalid model. Type Error: ",
    ),
    "memory": (
        (
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. "
            "Name:'n0' Status Message: /src/x/bfc_arena.cc:376 void* f(size_t) Failed to allocate memory for 9"
        ),
        "n0: the cpu has too little memory to run the model; ",
    ),
    "shapes": (
        (
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running MatMul node. "
            "Name:'/head/MatMul' Status Message: /src/matmul_helper.h:142 Status f(const T&, bool) left != right"
        ),
        "/head/MatMul: onnxruntime cannot run MatMul on the cpu (left != right); ",
    ),
}


@pytest.mark.parametrize(("message", "expected"), MESSAGES.values(), ids=MESSAGES)
def test_a_message_of_onnxruntime_becomes_one_sentence_with_a_remedy(message: str, expected: str) -> None:
    error = explain(message, "cpu")
    assert str(error).startswith(expected)
    assert str(error).endswith("use --no-verify to skip the run (the local proof still stands)")
    assert "\n" not in str(error)
    assert ".cc" not in str(error)


def test_wrong_inputs_missing_files_and_garbage_are_provider_errors(tmp_path: Path) -> None:
    session = open_session(small())
    for feeds in ({"x": X.astype(np.float64)}, {"x": X[:, :3]}, {}, {"x": X, "z": X}):
        with pytest.raises(ProviderError, match="cannot run the model on the cpu") as caught:
            session.run(["y"], feeds)
        assert "\n" not in str(caught.value)
    (tmp_path / "bad.onnx").write_bytes(b"garbage")
    for path in (tmp_path / "bad.onnx", tmp_path / "missing.onnx"):
        with pytest.raises(ProviderError, match="cannot run the model"):
            open_session(path)
