"""How many floating-point operations each operator of aten is, as `onnx_operations` counts those of ONNX.

With n elements in the output and k taps in a window: `convolution: n * C_in/groups * k` multiply-adds, transposed the
same with the input's elements and `C_out/groups`; matrix products n times the length of a row; a bias is n more
operations, a BatchNorm in inference 2n (`y = s*x + t`), and every normalisation by statistics of its input 7n.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, TypeAlias

from bnfold.flops import Work

#: By name, as the operator's schema has them.
Values: TypeAlias = "Mapping[str, Any]"

_Formula: TypeAlias = "Callable[[str, Values, tuple[int, ...], tuple[int, ...]], Work]"

#: Operations for each element of the output.
_PER_OUTPUT = dict.fromkeys(
    """
    _prelu_kernel abs acos acosh asin asinh atan atan2 atanh ceil celu clamp clamp_max clamp_min cos cosh div elu erf
    erfc exp exp2 expm1 floor floor_divide fmod gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu log log10
    log1p log2 log_sigmoid_forward maximum minimum mish mul neg pow reciprocal relu remainder round rrelu_with_noise
    rsqrt sgn sigmoid sign silu sin sinh softplus softshrink sqrt tan tanh threshold trunc
    """.split(),
    1,
) | {
    "_batch_norm_no_update": 2,
    "_fused_rms_norm": 4,
    "_log_softmax": 3,
    "_native_batch_norm_legit_no_training": 2,
    "_safe_softmax": 3,
    "_softmax": 3,
    "addcdiv": 3,
    "addcmul": 3,
    "glu": 2,
    "lerp": 3,
    "native_group_norm": 7,
    "native_layer_norm": 7,
}

#: Operations for each element of the input, and for each of the output.
_REDUCTIONS = {
    "amax": (1, 0),
    "amin": (1, 0),
    "cumprod": (1, 0),
    "cumsum": (1, 0),
    "linalg_vector_norm": (2, 1),
    "logsumexp": (2, 1),
    "max": (1, 0),
    "mean": (1, 1),
    "min": (1, 0),
    "prod": (1, 0),
    "std": (4, 3),
    "sum": (1, 0),
    "var": (4, 2),
}

#: Operators that move, pick, cast, compare or draw numbers, or make them from nothing, besides views.
FREE = frozenset(
    """
    _local_scalar_dense _to_copy _unsafe_index _unsafe_view _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d arange argmax argmin argsort cat channel_shuffle clone constant_pad_nd copy copy_ detach
    embedding empty empty_like empty_strided eq equal eye fill fill_ flip full full_like gather ge gt im2col index
    index_fill index_put index_select is_same_size isfinite isinf isnan le lift_fresh linspace logical_and logical_not
    logical_or logical_xor lt masked_fill masked_select narrow_copy native_channel_shuffle native_dropout ne new_empty
    new_empty_strided new_full new_ones new_zeros nonzero normal_ ones ones_like pixel_shuffle pixel_unshuffle rand
    rand_like randint randn randn_like randperm reflection_pad1d reflection_pad2d reflection_pad3d repeat
    replication_pad1d replication_pad2d replication_pad3d roll scalar_tensor scatter slice_scatter select_scatter sort
    split_with_sizes_copy stack topk tril triu uniform_ unsafe_split unsafe_split_with_sizes upsample_nearest1d
    upsample_nearest2d upsample_nearest3d where zero_ zeros zeros_like
    """.split()
)


def work_of(name: str, values: Values, taken: tuple[int, ...], made: tuple[int, ...]) -> Work:
    """What a call of an operator in `ARITHMETIC` does.

    Args:
        name: The operator, without the underscore of those that write in place.
        values: Its arguments.
        taken: The shape of the first tensor among them.
        made: The shape of its first output.
    """
    n = prod(made)
    if name in _PER_OUTPUT:
        return Work(others=_PER_OUTPUT[name] * n)
    if name in _REDUCTIONS:
        each, last = _REDUCTIONS[name]
        return Work(others=each * prod(taken) + last * n)
    return _FORMULAS[name](name, values, taken, made)


def _add(_name: str, values: Values, _taken: tuple[int, ...], made: tuple[int, ...]) -> Work:
    """The other operand may have a factor."""
    return Work(others=prod(made) * (1 if values.get("alpha", 1) == 1 else 2))


def _batch_norm(_name: str, values: Values, _taken: tuple[int, ...], made: tuple[int, ...]) -> Work:
    """In training mode, as which an InstanceNorm runs, by statistics of its input."""
    return Work(others=prod(made) * (7 if values["training"] else 2))


def _convolution(_name: str, values: Values, taken: tuple[int, ...], made: tuple[int, ...]) -> Work:
    """The weight is (C_out, C_in/groups, *kernel), and transposed (C_in, C_out/groups, *kernel)."""
    met = prod(taken if values["transposed"] else made)
    return Work(met * prod(values["weight"].shape[1:]), 0 if values["bias"] is None else prod(made))


def _product(name: str, values: Values, taken: tuple[int, ...], made: tuple[int, ...]) -> Work:
    """Of matrices and vectors; `add...` has the product as its second and third argument."""
    n = prod(made)
    if not name.startswith(("add", "baddbmm")):
        return Work(n * taken[-1])
    first = next(values[key] for key in ("mat1", "batch1", "mat") if key in values)
    return Work(n * first.shape[-1], n if values.get("beta", 1) else 0)


def _pool(name: str, values: Values, _taken: tuple[int, ...], made: tuple[int, ...]) -> Work:
    """A kernel of one number holds for every axis."""
    kernel, axes = values["kernel_size"], int(name.partition("d")[0][-1])
    sizes = [kernel] if isinstance(kernel, int) else list(kernel)
    return Work(others=prod(made) * prod(sizes * axes if len(sizes) == 1 else sizes))


def _adaptive(name: str, _values: Values, taken: tuple[int, ...], made: tuple[int, ...]) -> Work:
    """Window i of m over an axis of size s reaches from `floor(i*s/m)` to `ceil((i+1)*s/m)`."""
    axes = int(name[-2])
    sizes = zip(taken[-axes:], made[-axes:], strict=True)
    taps = (sum(-(-(i + 1) * old // new) - i * old // new for i in range(new)) for old, new in sizes)
    return Work(others=prod(made[:-axes]) * prod(taps))


def _resize(name: str, _values: Values, taken: tuple[int, ...], made: tuple[int, ...]) -> Work:
    """A weighted sum of the taps; an axis whose size stays has none."""
    axes = sum(old != new for old, new in zip(taken, made, strict=True))
    return Work(others=2 * prod(made) * (4 if "cubic" in name else 2) ** axes if axes else 0)


_FORMULAS: dict[str, _Formula] = {
    "_adaptive_avg_pool2d": _adaptive,
    "_adaptive_avg_pool3d": _adaptive,
    "_native_batch_norm_legit": _batch_norm,
    "adaptive_max_pool2d": _adaptive,
    "adaptive_max_pool3d": _adaptive,
    "add": _add,
    "addmm": _product,
    "addmv": _product,
    "avg_pool2d": _pool,
    "avg_pool3d": _pool,
    "baddbmm": _product,
    "bmm": _product,
    "convolution": _convolution,
    "cudnn_batch_norm": _batch_norm,
    "dot": _product,
    "max_pool2d_with_indices": _pool,
    "max_pool3d_with_indices": _pool,
    "miopen_batch_norm": _batch_norm,
    "mm": _product,
    "mv": _product,
    "native_batch_norm": _batch_norm,
    "rsub": _add,
    "sub": _add,
    "upsample_bicubic2d": _resize,
    "upsample_bilinear2d": _resize,
    "upsample_linear1d": _resize,
    "upsample_trilinear3d": _resize,
    "vdot": _product,
}

#: The operators that have a formula.
ARITHMETIC = frozenset((*_PER_OUTPUT, *_REDUCTIONS, *_FORMULAS))
