"""onnxruntime sessions, honest about providers: what was asked for runs, or a `ProviderError` says why not.

Both sides of a comparison run at `ORT_DISABLE_ALL`: from BASIC upwards onnxruntime folds BatchNorm itself, and the
difference would be 0.0 by construction.
"""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.dataflow import floating_nodes
from bnfold.drafts import draft_folder
from bnfold.errors import MissingPackageError, ProviderError
from bnfold.ort_values import run
from bnfold.placement import REMEDY, judge_placement, read_profile, read_recorded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    import onnx
    from numpy.typing import NDArray

#: Providers by the names the command line uses.
PROVIDERS: Mapping[str, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
#: TF32 rounds inputs to 10 bits; a convolution algorithm that is chosen by timing changes from run to run.
CUDA_OPTIONS: Mapping[str, str] = {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"}
#: Above this many bytes of weights a model is handed over as a file; protobuf itself ends at 2 GiB.
LARGEST_IN_MEMORY = 2**31 - 2**24
_NAMES = {"float": "float32", "double": "float64"}


@dataclass(frozen=True, eq=False)
class Session:
    """A model that is ready to run.

    Attributes:
        provider: "cpu" or "cuda".
        optimised: Whether onnxruntime's own optimiser ran (ORT_ENABLE_ALL).
        types: NumPy's name of the element type of every input and output; other types keep onnxruntime's name.
        floating: Names of the nodes on the floating-point data path.
        handle: The `onnxruntime.InferenceSession`.
    """

    provider: str
    optimised: bool
    types: Mapping[str, str]
    floating: frozenset[str]
    handle: Any

    def run(self, names: Sequence[str], feeds: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """The named outputs as arrays; raises ProviderError when the model cannot be run on these inputs."""
        if not names:
            return {}  # onnxruntime takes an empty list for all outputs
        with _explained(self.provider):
            return run(self.handle, self.types, names, feeds)

    def confirm_placement(self) -> tuple[str, ...]:
        """What the CPU did for a CUDA session, after its first run: whole-number shape arithmetic at most.

        Raises:
            ProviderError: A node on the floating-point data path ran elsewhere than asked.
        """
        if self.provider == "cpu":
            return ()
        recorded = getattr(self.handle, "get_provider_graph_assignment_info", None)
        assignments = read_recorded(recorded()) if recorded else read_profile(Path(self.handle.end_profiling()))
        return judge_placement(assignments, self.floating, PROVIDERS[self.provider])


def exposing(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy of `model` with the values `names` among its outputs."""
    import onnx  # noqa: PLC0415

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    name_nodes(copy.graph)
    held = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in held)
    return copy


def name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node a name of its own: onnxruntime refuses equal ones, and records by name who ran what."""
    taken: set[str] = set()
    for place, node in enumerate(graph.node):
        node.name = node.name or next(iter(node.output), "")
        if node.name in taken:
            node.name = f"{node.name} (node {place})"
        taken.add(node.name)


def open_session(  # noqa: PLR0913
    model: onnx.ModelProto | str | Path,
    provider: str = "cpu",
    *,
    optimised: bool = False,
    tf32: bool = False,
    threads: int = 0,
    writes: Path | None = None,
) -> Session:
    """A session on exactly the provider asked for.

    Args:
        model: The model with its weights loaded, or the path of its file. Never changed.
        provider: "cpu" or "cuda".
        optimised: Let onnxruntime optimise (ORT_ENABLE_ALL); by default it changes nothing (ORT_DISABLE_ALL).
        tf32: Let CUDA round the inputs of convolutions and products to TF32, as it does by default.
        threads: Threads within an operator; 0 leaves the choice to onnxruntime.
        writes: Where onnxruntime writes the model that it runs, for a look at what its optimiser did.

    Raises:
        MissingPackageError: onnxruntime is not installed.
        ProviderError: The provider is not there, or cannot run the model.
    """
    onnxruntime = require(provider)
    settings = dict(CUDA_OPTIONS) | ({"use_tf32": "1"} if tf32 else {})
    choice = [(PROVIDERS["cuda"], settings), PROVIDERS["cpu"]] if provider == "cuda" else [PROVIDERS["cpu"]]
    with contextlib.ExitStack() as stack, _explained(provider):
        options = _options(onnxruntime, optimised=optimised, cuda=provider == "cuda")
        options.intra_op_num_threads = threads
        if writes is not None:
            options.optimized_model_filepath = str(writes)
        handle = onnxruntime.InferenceSession(_loadable(model, stack), options, providers=choice)
    if handle.get_providers()[0] != PROVIDERS[provider]:
        raise ProviderError(
            f"onnxruntime fell back to {handle.get_providers()[0]} although {provider} was asked for",
            remedy="install the CUDA and cuDNN libraries that this onnxruntime was built for, or run on the cpu",
        )
    types = {value.name: _numpy_type(value.type) for value in (*handle.get_inputs(), *handle.get_outputs())}
    floating = floating_nodes(_read(model)) if provider == "cuda" else frozenset[str]()
    return Session(provider, optimised, types, floating, handle)


def open_segment(model: onnx.ModelProto) -> Session:
    """An unoptimised session on the CPU; nodes that have no name of their own get one."""
    name_nodes(model.graph)
    return open_session(model)


def require(provider: str) -> Any:
    """onnxruntime, if it has the provider; to be asked before long work, too.

    Raises:
        MissingPackageError: onnxruntime is not installed.
        ProviderError: It does not have the provider, or there is none of that name.
    """
    try:
        import onnxruntime  # type: ignore[import-untyped]  # noqa: PLC0415
    except ImportError as error:
        remedy = f'pip install "bnfold[{"gpu" if provider == "cuda" else "cpu"}]"'
        raise MissingPackageError("onnxruntime is not installed", remedy=remedy) from error
    if provider not in PROVIDERS:
        raise ProviderError(f"the provider {provider!r} is unknown", remedy=f"choose one of {', '.join(PROVIDERS)}")
    if PROVIDERS[provider] not in onnxruntime.get_available_providers():
        remedy = 'pip install "bnfold[gpu]" on a machine with a GPU, or run on the cpu'
        raise ProviderError(f"this onnxruntime has no {PROVIDERS[provider]}", remedy=remedy)
    if provider == "cuda" and hasattr(onnxruntime, "preload_dlls"):
        # Finds CUDA and cuDNN where pip installed them; it prints what it misses, and only we may print.
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()
    return onnxruntime


def _options(onnxruntime: Any, *, optimised: bool, cuda: bool) -> Any:
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    options.log_severity_level = 4
    if cuda:
        options.use_deterministic_compute = True
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(tempfile.gettempdir()) / "bnfold-placement")
    return options


def _loadable(model: onnx.ModelProto | str | Path, stack: contextlib.ExitStack) -> bytes | str:
    """The model as onnxruntime takes it: a path, bytes, or for large ones a file that is there until `stack` ends."""
    if isinstance(model, str | Path):
        return str(model)
    if sum(tensor.ByteSize() for tensor in model.graph.initializer) <= LARGEST_IN_MEMORY:
        return bytes(model.SerializeToString())
    import onnx_ir  # noqa: PLC0415

    # onnx.save would move the weights out of the caller's model; this shares them.
    path = stack.enter_context(draft_folder(Path(tempfile.gettempdir()) / "bnfold-model")) / "model.onnx"
    onnx_ir.save(onnx_ir.from_proto(model), path, external_data="model.data")
    return str(path)


def _read(model: onnx.ModelProto | str | Path) -> onnx.ModelProto:
    import onnx  # noqa: PLC0415

    return onnx.load(str(model), load_external_data=False) if isinstance(model, str | Path) else model


def _numpy_type(text: str) -> str:
    """`float32` for `tensor(float)`; any other type's name unchanged."""
    match = re.fullmatch(r"tensor\((\w+)\)", text)
    return _NAMES.get(match[1], match[1]) if match else text


@contextlib.contextmanager
def _explained(provider: str) -> Iterator[None]:
    """Turn onnxruntime's exceptions into one sentence."""
    try:
        yield
    except MemoryError as error:
        raise explain("out of memory", provider) from error
    except Exception as error:
        # onnxruntime's exceptions share no base but Exception; what is not theirs or Python's for them goes through.
        if type(error).__module__.startswith("onnxruntime") or type(error) in (RuntimeError, ValueError):
            raise explain(str(error), provider) from error
        raise


def explain(message: str, provider: str) -> ProviderError:
    """The ProviderError for an exception text of onnxruntime: which operator, what, and what to do."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", message).strip()
    where = next((match[1] for match in [re.search(r"(?:with name|Name:|in node) ?[('](.*?)[)']", text)] if match), "")
    if match := re.search(r"Could not find an implementation for ([\w.:]+)", text):
        return ProviderError(
            f"onnxruntime has no {provider} kernel for {match[1]} of this type", where=where, remedy=REMEDY
        )
    if match := re.search(r"([\w.]*:?\w+)\(-?\d+\) is not a registered function/op", text):
        return ProviderError(f"onnxruntime does not know the operator {match[1]}", where=where, remedy=REMEDY)
    if re.search(r"allocate memory|bad.?alloc|out of memory", text, re.IGNORECASE):
        return ProviderError(f"the {provider} has too little memory to run the model", where=where, remedy=REMEDY)
    operator = re.search(r"while running (\w+) node|operator \((\w+)\)", text)
    subject = f"{operator[1] or operator[2]}" if operator else "the model"
    reason = re.sub(r"\s+", " ", re.sub(r"^.*Status Message: ", "", text, flags=re.DOTALL))
    reason = re.sub(r"(?:/\S+/)?\w+\.(?:cc|h|cu):\d+ .*?\) ", "", reason)[:200].rstrip(" .")
    return ProviderError(f"onnxruntime cannot run {subject} on the {provider} ({reason})", where=where, remedy=REMEDY)
