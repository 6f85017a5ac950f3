"""What a leftover costs: the time of Mul-Add, Sub-Mul-Add and a depthwise Conv over that of the BatchNormalization.

`python -m benchmarks.leftover_forms` measures on onnxruntime's CPU provider, between two ReLUs that no optimiser can
take away; the forms take turns, and the ratio is that of the medians of the time without the two ReLUs' own.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

import bnfold

SHAPES = ((64, 112, 112), (256, 28, 28), (1024, 7, 7))
FORMS = {"Mul-Add": ("affine", 1.0), "Sub-Mul-Add": ("affine", 100.0), "Conv": ("depthwise", 1.0)}
ROUNDS = 60

Run = Callable[[], object]


def model(channels: int, height: int, width: int, mean: float, *, with_batchnorm: bool = True) -> onnx.ModelProto:
    """Relu, BatchNorm with means of `mean` standard deviations, Relu."""
    generator = np.random.default_rng(0)
    stored = {name: generator.random(channels) + 0.5 for name in ("gamma", "beta", "var")}
    stored["mean"] = mean * np.sqrt(stored["var"])
    tensors = [onnx.numpy_helper.from_array(values.astype(np.float32), name) for name, values in stored.items()]
    middle = onnx.helper.make_node("BatchNormalization", ["a", "gamma", "beta", "mean", "var"], ["b"])
    ends = [onnx.helper.make_node("Relu", [i], [o]) for i, o in (("x", "a"), ("b" if with_batchnorm else "a", "y"))]
    values = [onnx.helper.make_tensor_value_info(n, 1, (1, channels, height, width)) for n in "xy"]
    nodes = [ends[0], middle, ends[1]] if with_batchnorm else ends
    graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:], tensors if with_batchnorm else [])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def forms(shape: tuple[int, int, int]) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Nothing in between, the BatchNorm, and what takes its place."""
    yield "nothing", model(*shape, 1.0, with_batchnorm=False)
    yield "BatchNormalization", model(*shape, 1.0)
    for name, (leftover, mean) in FORMS.items():
        result = bnfold.fold(ir.from_proto(model(*shape, mean)), leftover=leftover, verify=False)  # type: ignore[arg-type]
        assert [d.to for d in result.report.reduced] == [name]
        yield name, ir.to_proto(result.model)


def prepared(proto: onnx.ModelProto, threads: int, *, optimised: bool) -> Run:
    """A call that runs the model once."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return lambda: session.run(None, {"x": x})


def medians(runs: dict[str, Run]) -> dict[str, float]:
    """Seconds of each; they take turns, so that a busy machine is as slow for one as for the other."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(ROUNDS + 5):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn >= 5:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> None:
    """Print one row for each shape, number of threads and level of optimisation."""
    print(f"{'shape':>14} threads optimiser  BatchNormalization  " + "  ".join(FORMS))
    for shape, threads, optimised in itertools.product(SHAPES, (1, 2), (False, True)):
        found = medians({name: prepared(proto, threads, optimised=optimised) for name, proto in forms(shape)})
        own = {name: seconds - found["nothing"] for name, seconds in found.items()}
        ratios = "  ".join(f"{own[name] / own['BatchNormalization']:{len(name)}.2f}" for name in FORMS)
        level = "all" if optimised else "off"
        print(
            f"{shape!s:>14} {threads:7d} {level:>9}  {own['BatchNormalization'] * 1e6:15.0f} us  {ratios}", flush=True
        )


if __name__ == "__main__":
    main()
