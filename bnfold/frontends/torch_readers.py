"""The reader table: which reader turns which aten operator into a view; any other operator is a barrier, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from bnfold.decision import Reason
from bnfold.frontends import torch_read_pointwise as pointwise
from bnfold.frontends import torch_read_shape as shape
from bnfold.frontends import torch_read_windows as windows
from bnfold.frontends.torch_constants import inputs_of
from bnfold.frontends.torch_context import Context, barrier, base_name
from bnfold.frontends.torch_read_linear import ReadLinear, read_addmm, read_conv, read_linear, read_matmul
from bnfold.frontends.torch_reading import Reading
from bnfold.views import Barrier

if TYPE_CHECKING:
    from torch.fx import Node

Reader: TypeAlias = Callable[["Node", Context], Reading | Barrier]

LINEAR: dict[str, Callable[[Node, Context], ReadLinear | Barrier]] = {
    "addmm": read_addmm,
    "conv1d": read_conv,
    "conv2d": read_conv,
    "conv3d": read_conv,
    "conv_transpose1d": read_conv,
    "conv_transpose2d": read_conv,
    "conv_transpose3d": read_conv,
    "convolution": read_conv,
    "linear": read_linear,
    "matmul": read_matmul,
    "mm": read_matmul,
}


def _rows(reader: Reader, names: str) -> dict[str, Reader]:
    return dict.fromkeys(names.split(), reader)


READERS: dict[str, Reader] = {
    **_rows(pointwise.read_arithmetic, "add sub rsub mul div"),
    **_rows(pointwise.read_abs, "abs"),
    **_rows(pointwise.read_clamp, "relu relu6 hardtanh clamp clamp_min clamp_max"),
    **_rows(pointwise.read_homogeneous, "leaky_relu prelu"),
    **_rows(pointwise.read_negate, "neg"),
    **_rows(shape.read_cast, "to type_as _to_copy"),
    **_rows(shape.read_concat, "cat concat concatenate"),
    **_rows(shape.read_dropout, "dropout feature_dropout alpha_dropout feature_alpha_dropout"),
    **_rows(shape.read_index_select, "index_select"),
    **_rows(shape.read_parts, "chunk split split_with_sizes"),
    **_rows(shape.read_reshape, "view reshape flatten unflatten squeeze unsqueeze _unsafe_view view_as reshape_as"),
    **_rows(shape.read_same, "clone contiguous alias detach"),
    **_rows(shape.read_shuffle, "pixel_shuffle pixel_unshuffle channel_shuffle"),
    **_rows(shape.read_slice, "slice"),
    **_rows(shape.read_transpose, "permute transpose t"),
    **_rows(windows.read_adaptive_average, "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"),
    **_rows(windows.read_average, "avg_pool1d avg_pool2d avg_pool3d"),
    **_rows(windows.read_maximum, "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices adaptive_max_pool2d"),
    **_rows(windows.read_pad, "pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d"),
    **_rows(windows.read_pad, "replication_pad1d replication_pad2d replication_pad3d"),
    **_rows(windows.read_reduce, "mean sum amax"),
    **_rows(windows.read_upsample, "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d"),
    **_rows(windows.read_upsample, "upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d"),
    **_rows(windows.read_upsample, "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_bilinear2d_aa"),
}

#: Operators through which no affine can pass, so that "no rule" would promise too much.
_NOT_LINEAR = frozenset(
    """
    _softmax argmax argmin celu elu erf exp gelu glu group_norm hardsigmoid hardswish instance_norm layer_norm log
    log_sigmoid log_softmax logsigmoid mish pow reciprocal rms_norm round rsqrt scaled_dot_product_attention selu
    sigmoid silu softmax softplus softsign sort sqrt tanh threshold topk
    """.split()
)

#: What reads no number of its inputs.
ASKS_FOR_SHAPE = frozenset(
    f"aten.{name}" for name in "sym_size sym_stride sym_numel sym_storage_offset _assert_tensor_metadata".split()
)

#: What reads the numbers of its first input alone, and the shape of the second.
_TAKES_A_SHAPE = frozenset({"aten.reshape_as", "aten.view_as"})


def numbers_of(node: Node) -> tuple[Node, ...]:
    """The inputs of which the operator reads more than the shape."""
    found = tuple(inputs_of(node))
    return found[:1] if base_name(node) in _TAKES_A_SHAPE else found


def shapes_of(node: Node) -> tuple[Node, ...]:
    """The inputs of which the operator reads the shape alone."""
    found = tuple(inputs_of(node))
    return found if base_name(node) in ASKS_FOR_SHAPE else found[1:] if base_name(node) in _TAKES_A_SHAPE else ()


def read(node: Node, context: Context) -> ReadLinear | Reading | Barrier:
    """What the operator computes."""
    name = base_name(node)
    if not name.startswith("aten."):
        higher = getattr(node.target, "_schema", None) is None
        return barrier(node, Reason.OPERATOR_HOLDS_BODIES if higher else Reason.OPERATOR_IS_UNKNOWN, name)
    short = name.removeprefix("aten.")
    short = short if short in READERS else short.rstrip("_")
    if short in LINEAR:
        return LINEAR[short](node, context)
    if short in READERS:
        return READERS[short](node, context)
    return barrier(node, Reason.OPERATOR_IS_NOT_LINEAR if short in _NOT_LINEAR else Reason.OPERATOR_HAS_NO_RULE, short)
