"""Runs one tool on a folder of models, in a process of its own: `python -m benchmarks.frontier_tools TOOL DIR KEY...`.

Each tool is called the way its documentation says, with its default settings. `DIR/KEY.onnx` becomes
`DIR/TOOL/KEY.onnx`, or `DIR/TOOL/KEY.error` with the message of what the tool raised. A tool that aborts the process
leaves neither.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx


def by_bnfold(source: Path, target: Path) -> None:
    """`bnfold.fold`, which verifies its result."""
    import bnfold  # noqa: PLC0415

    bnfold.save(bnfold.fold(source).model, target)


def by_onnxsim(source: Path, target: Path) -> None:
    """`onnxsim.simplify`."""
    import onnxsim  # type: ignore[import-untyped]  # noqa: PLC0415

    simplified, _checked = onnxsim.simplify(onnx.load(source))
    onnx.save(simplified, target)


def by_onnxslim(source: Path, target: Path) -> None:
    """`onnxslim.slim`."""
    import onnxslim  # type: ignore[import-untyped]  # noqa: PLC0415

    onnx.save(onnxslim.slim(onnx.load(source)), target)


def by_onnxoptimizer(source: Path, target: Path) -> None:
    """`onnxoptimizer.optimize` with its default passes, fuse_bn_into_conv among them."""
    import onnxoptimizer  # type: ignore[import-untyped]  # noqa: PLC0415

    onnx.save(onnxoptimizer.optimize(onnx.load(source)), target)


def by_onnxscript(source: Path, target: Path) -> None:
    """`onnxscript.optimizer.optimize`, then `onnxscript.rewriter.rewrite` with its default rules."""
    from onnxscript import optimizer, rewriter  # noqa: PLC0415

    onnx.save(rewriter.rewrite(optimizer.optimize(onnx.load(source))), target)


def by_onnxruntime(source: Path, target: Path) -> None:
    """The offline optimiser of onnxruntime at ORT_ENABLE_EXTENDED, for the CPU."""
    import onnxruntime as ort  # type: ignore[import-untyped]  # noqa: PLC0415

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


TOOLS: dict[str, Callable[[Path, Path], None]] = {
    "bnfold": by_bnfold,
    "onnxsim": by_onnxsim,
    "onnxslim": by_onnxslim,
    "onnxoptimizer": by_onnxoptimizer,
    "onnxscript": by_onnxscript,
    "onnxruntime": by_onnxruntime,
}


def main(arguments: Sequence[str]) -> None:
    """Write what the tool makes of every model, or what it raised."""
    tool, folder, *keys = arguments
    made = Path(folder) / tool
    made.mkdir(exist_ok=True)
    for key in keys:
        _one(TOOLS[tool], Path(folder) / f"{key}.onnx", made / f"{key}.onnx")


def _one(tool: Callable[[Path, Path], None], source: Path, target: Path) -> None:
    try:
        tool(source, target)
    except Exception as error:  # whatever a tool raises is a result of the benchmark
        target.unlink(missing_ok=True)
        target.with_suffix(".error").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
