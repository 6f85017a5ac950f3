"""onnxsim before folding, to uncover constants; its own BatchNorm fusion stays off: bnfold decides every fold."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from bnfold.errors import MissingPackageError, ModelError
from bnfold.frontends.onnx_files import in_memory


def simplified(model: ir.Model, *, keep_overridable: bool = False) -> ir.Model:
    """What onnxsim makes of `model`, every BatchNorm kept, and on request what a caller may override.

    Raises:
        MissingPackageError: onnxsim is not installed.
        ModelError: onnxsim cannot simplify the model.
    """
    try:
        import onnxsim  # type: ignore[import-untyped]  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise MissingPackageError("onnxsim is not installed", remedy='pip install "bnfold[sim]"') from error
    try:
        proto = in_memory(model)
        simpler, _checked = onnxsim.simplify(proto, skip_fuse_bn=True, mutable_initializer=keep_overridable)
    except Exception as error:
        what = f"onnxsim cannot simplify the model ({type(error).__name__})"
        raise ModelError(what, remedy="leave out --simplify") from error
    assert isinstance(simpler, onnx.ModelProto)
    return ir.from_proto(simpler)


def prepared(given: ir.Model, simplify: bool, keep_overridable: bool) -> tuple[ir.Model, tuple[str, ...]]:
    """The model to fold, and what was done to it; end to end it is still compared with the one that was given."""
    if not simplify:
        return given, ()
    simpler = simplified(given, keep_overridable=keep_overridable)
    return simpler, (f"onnxsim left {len(simpler.graph)} of {len(given.graph)} nodes",)
