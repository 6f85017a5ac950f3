"""bnfold: recalibrates and folds inference BatchNorm, and proves the result equivalent.

>>> import bnfold
>>> result = bnfold.fold("models/digits-darknet.onnx")
>>> len(result.report.folded), len(result.report.kept)
(11, 0)
>>> bnfold.save(result.model, "/tmp/fused.onnx")  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bnfold.affine import ChannelAffine
    from bnfold.api import fold, inspect, load, save, verify
    from bnfold.benchmarking import benchmark
    from bnfold.calibrating import Calibration
    from bnfold.data_images import ImageOptions
    from bnfold.data_sources import DataRequest, Source
    from bnfold.decision import Decision, Folded, Kept, Reason, Reduced, Refusal, Subject
    from bnfold.errors import (
        BnfoldError,
        DataError,
        InternalError,
        MachineError,
        MissingPackageError,
        ModelError,
        ProviderError,
        UsageError,
        VerificationError,
    )
    from bnfold.fold_result import FoldResult
    from bnfold.frontends.onnx_pass import FoldBatchNormPass
    from bnfold.manifest import Manifest
    from bnfold.processes import Processes
    from bnfold.recalibrating import RecalibrationResult, recalibrate
    from bnfold.report.bench_report import BenchReport
    from bnfold.report.model import Report, Size
    from bnfold.report.recalibration_report import RecalibrationReport
    from bnfold.torch_files import load_folded, load_module
    from bnfold.torch_result import TorchFoldResult
    from bnfold.unfolding import UnfoldResult, unfold
    from bnfold.verification import Verification

__version__ = "0.1.0"

_HOME = {
    "bnfold.affine": ("ChannelAffine",),
    "bnfold.api": ("fold", "inspect", "load", "save", "verify"),
    "bnfold.benchmarking": ("benchmark",),
    "bnfold.calibrating": ("Calibration",),
    "bnfold.data_images": ("ImageOptions",),
    "bnfold.data_sources": ("DataRequest", "Source"),
    "bnfold.decision": ("Decision", "Folded", "Kept", "Reason", "Reduced", "Refusal", "Subject"),
    "bnfold.errors": (
        "BnfoldError",
        "DataError",
        "InternalError",
        "MachineError",
        "MissingPackageError",
        "ModelError",
        "ProviderError",
        "UsageError",
        "VerificationError",
    ),
    "bnfold.fold_result": ("FoldResult",),
    "bnfold.frontends.onnx_pass": ("FoldBatchNormPass",),
    "bnfold.manifest": ("Manifest",),
    "bnfold.processes": ("Processes",),
    "bnfold.recalibrating": ("RecalibrationResult", "recalibrate"),
    "bnfold.report.bench_report": ("BenchReport",),
    "bnfold.report.model": ("Report", "Size"),
    "bnfold.report.recalibration_report": ("RecalibrationReport",),
    "bnfold.torch_files": ("load_folded", "load_module"),
    "bnfold.torch_result": ("TorchFoldResult",),
    "bnfold.unfolding": ("UnfoldResult", "unfold"),
    "bnfold.verification": ("Verification",),
}

__all__ = [
    "BenchReport",
    "BnfoldError",
    "Calibration",
    "ChannelAffine",
    "DataError",
    "DataRequest",
    "Decision",
    "FoldBatchNormPass",
    "FoldResult",
    "Folded",
    "ImageOptions",
    "InternalError",
    "Kept",
    "MachineError",
    "Manifest",
    "MissingPackageError",
    "ModelError",
    "Processes",
    "ProviderError",
    "Reason",
    "RecalibrationReport",
    "RecalibrationResult",
    "Reduced",
    "Refusal",
    "Report",
    "Size",
    "Source",
    "Subject",
    "TorchFoldResult",
    "UnfoldResult",
    "UsageError",
    "Verification",
    "VerificationError",
    "benchmark",
    "fold",
    "inspect",
    "load",
    "load_folded",
    "load_module",
    "recalibrate",
    "save",
    "unfold",
    "verify",
]


def __getattr__(name: str) -> object:
    """Import on first use: `import bnfold` itself loads no framework, and is fast."""
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'bnfold' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
