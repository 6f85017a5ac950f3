"""Concat, pooling, reductions, Resize, Upsample, Pad and activations through ONNX, on both sides of each condition."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from onnx_models import NEWEST, PARAMETERS, STATS, assert_fold, ops, parse, reasons
from test_onnx_fold_carriers import MIXED, NEGATIVE_SCALE, POSITIVE, SCALE, both, check, pulled, pushed

import bnfold
from bnfold.decision import Reason


def _two_branches(axis: int, second: str = "Conv(x, v)", channels: int = 4) -> str:
    total = 2 * channels if axis == 1 else channels
    parameters = PARAMETERS.replace("[4]", f"[{total}]")
    return f"""(float[N,3,8,8] x) => (float[A,B,C,D] y) <float[4,3,3,3] w, float[4,3,3,3] v, float[4] k, {parameters}>
        {{ p = Conv(x, w) q = {second} c = Concat <axis={axis}> (p, q) y = BatchNormalization(c, {STATS}) }}"""


@pytest.mark.parametrize("axis", [1, -3, 2, 3])
def test_a_concat_hands_each_input_its_part(axis: int) -> None:
    text = _two_branches(axis)
    if axis == -3:
        text = text.replace("[4] gamma", "[8] gamma").replace("[4] beta", "[8] beta").replace("[4] mean", "[8] mean")
        text = text.replace("[4] var", "[8] var")
    assert ops(assert_fold(parse(text), folded=1).model) == ["Conv", "Conv", "Concat"]


def test_a_concat_with_an_input_that_cannot_absorb_is_kept() -> None:
    text = _two_branches(1, "Sigmoid(z)").replace("q =", "z = Conv(x, v) q =")
    check(text, Reason.OPERATOR_IS_NOT_LINEAR)
    # ... unless its part of the affine is the identity.
    rest = {"gamma": [1, 2, 3, 4, 1, 1, 1, 1], "beta": [1, 2, 3, 4, 0, 0, 0, 0], "mean": 0, "var": 1}
    model = parse(text.replace(f"(c, {STATS})", f"<epsilon=0.0> (c, {STATS})"), values=rest)
    assert_fold(model, folded=1)


def test_a_concat_of_one_value_with_itself_folds_only_equal_halves() -> None:
    text = _two_branches(1, "Identity(p)").replace("(p, q)", "(p, p)").replace("q = Identity(p)", "")
    check(text, Reason.READERS_DISAGREE)
    half = [0.5, 1.5, 2, 0.25]
    check(text, **{name: [*half, *half] for name in ("gamma", "beta", "mean", "var")})


def test_a_batchnorm_before_a_concat_is_pushed_along_its_slice() -> None:
    text = f"""(float[N,4,8,8] x, float[N,3,8,8] z) => (float[A,B,C,D] y) <float[5,7,3,3] w, {PARAMETERS}>
        {{ b = BatchNormalization(x, {STATS}) c = Concat <axis=1> (z, b) y = Conv(c, w) }}"""
    check(text)
    check(text.replace("Conv(c", "Conv <pads=[1,1,1,1]> (c"), Reason.SHIFT_MEETS_PADDING)
    both_ends = f"""(float[N,4,8,8] x) => (float[A,B,C,D] y) <float[5,4,3,3] w, {PARAMETERS}>
        {{ b = BatchNormalization(x, {STATS}) c = Concat <axis=2> (b, OTHER) y = Conv(c, w) }}"""
    check(both_ends.replace("OTHER", "b"))
    check(both_ends.replace("OTHER", "x"), Reason.READERS_DISAGREE)


@pytest.mark.parametrize("opset", [7, NEWEST])
@pytest.mark.parametrize(
    ("attributes", "shift_passes"),
    [
        ("kernel_shape=[2,2]", True),
        ("kernel_shape=[3,2], strides=[2,2]", True),
        ("kernel_shape=[3,3], pads=[1,1,1,1]", True),
        ("kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1", False),
        ("kernel_shape=[3,3], count_include_pad=1", True),
        ('kernel_shape=[3,3], auto_pad="VALID", count_include_pad=1', True),
    ],
)
def test_an_average_pool_passes_a_shift_unless_zeros_are_averaged_in(
    attributes: str, shift_passes: bool, opset: int
) -> None:
    both(f"d = AveragePool <{attributes}> (c)", None if shift_passes else Reason.SHIFT_MEETS_PADDING, opset=opset)
    check(pulled(f"d = AveragePool <{attributes}> (c)"), opset=opset, **NEGATIVE_SCALE)


@pytest.mark.parametrize("opset", [10, 19])
def test_an_overhang_of_ceil_mode_is_harmless(opset: int) -> None:
    both("d = AveragePool <kernel_shape=[3,3], strides=[2,2], ceil_mode=1> (c)", opset=opset)
    both("d = MaxPool <kernel_shape=[3,3], strides=[2,2], ceil_mode=1> (c)", opset=opset, **POSITIVE)


@pytest.mark.parametrize("opset", [7, NEWEST])
@pytest.mark.parametrize(
    "node",
    [
        "MaxPool <kernel_shape=[2,2]> (c)",
        "MaxPool <kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]> (c)",
        'MaxPool <kernel_shape=[3,3], auto_pad="SAME_UPPER"> (c)',
    ],
)
def test_a_maximum_passes_positive_scales(node: str, opset: int) -> None:
    both(f"d = {node}", opset=opset, **POSITIVE)
    both(f"d = {node}", Reason.SCALE_IS_NOT_POSITIVE, opset=opset, **MIXED)


def test_a_scale_of_zero_passes_a_maximum_back_and_not_forward() -> None:
    zero = {"gamma": [0, 1, 2, 3]}
    check(pulled("d = MaxPool <kernel_shape=[2,2]> (c)"), **zero)
    check(pushed("d = MaxPool <kernel_shape=[2,2]> (c)"), Reason.SCALE_IS_NOT_POSITIVE, **zero)


def test_a_dilated_maximum_may_see_nothing_but_padding() -> None:
    node = "d = MaxPool <kernel_shape=[2,2], dilations=[3,3], pads=PADS> (c)"
    both(node.replace("PADS", "[0,0,0,0]"), **POSITIVE)
    check(pulled(node.replace("PADS", "[1,1,1,1]")), Reason.SHIFT_MEETS_PADDING, **POSITIVE)


def test_a_maximum_whose_indices_are_read_is_kept() -> None:
    text = pulled("d, i = MaxPool <kernel_shape=[2,2]> (c)")
    assert_fold(parse(text, values=POSITIVE), folded=1)
    read = parse(text.replace("y)", "y, int64[A,B,C,D] i)", 1), values=POSITIVE)
    assert reasons(bnfold.inspect(ir.from_proto(read)))[0] is Reason.INDICES_ARE_READ


@pytest.mark.parametrize("opset", [7, 17, NEWEST])
def test_global_pools_pass(opset: int) -> None:
    check(pulled("d = GlobalAveragePool(c)"), opset=opset)
    check(pulled("d = GlobalMaxPool(c)"), opset=opset, **POSITIVE)
    check(pulled("d = GlobalMaxPool(c)"), Reason.SCALE_IS_NOT_POSITIVE, opset=opset, **MIXED)


@pytest.mark.parametrize(("op", "first"), [("ReduceMean", 18), ("ReduceMax", 18)])
def test_reductions_over_space_pass_with_axes_in_either_form(op: str, first: int) -> None:
    for opset, form, more in (
        (11, f"{op} <axes=[2,-1], KEEP> (c)", ""),
        (first, f"{op} <KEEP> (c, r)", ", int64[2] r"),
    ):
        for keep, rank in (("keepdims=1", 4), ("keepdims=0", 2)):
            text = pulled(f"d = {form.replace('KEEP', keep)}", more=more, rank=rank)
            check(text, opset=opset, r=[2, -1], **POSITIVE)
    one = pulled(f"d = {op} <axes=[3], keepdims=0> (c)", rank=3)
    check(one, opset=11, **POSITIVE)
    channels = pulled(f"d = {op} <axes=[1]> (c)").replace(PARAMETERS, PARAMETERS.replace("[4]", "[1]"))
    check(channels, Reason.OPERATOR_MIXES_CHANNELS, opset=11, gamma=[1.5])
    nothing = pulled(f"d = {op} <noop_with_empty_axes=1> (c)")
    check(nothing, opset=18, **POSITIVE)


def test_a_reduction_over_axes_that_are_not_constant_is_kept() -> None:
    text = pulled("d = ReduceMean(c, z)").replace("x)", "x, int64[2] z)", 1)
    report = bnfold.inspect(ir.from_proto(parse(text, opset=18)))
    assert Reason.AXIS_NOT_PROVEN in reasons(report)


RESIZES = [
    (7, "Upsample <scales=[1.0,1.0,2.0,2.0]> (c)", "", {}),
    (7, 'Upsample <scales=[1.0,1.0,2.0,3.0], mode="linear"> (c)', "", {}),
    (9, "Upsample(c, s)", ", float[4] s", {"s": [1, 1, 2, 2]}),
    (10, "Resize(c, s)", ", float[4] s", {"s": [1, 1, 2, 1.5]}),
    (10, 'Resize <mode="linear"> (c, s)', ", float[4] s", {"s": [1, 1, 0.5, 1.5]}),
    (11, 'Resize <mode="cubic"> (c, roi, s)', ", float[0] roi, float[4] s", {"s": [1, 1, 1.3, 0.9]}),
    (
        11,
        'Resize <mode="linear", coordinate_transformation_mode="align_corners"> (c, roi, s)',
        ", float[0] roi, float[4] s",
        {"s": [1, 1, 2, 2]},
    ),
    (
        13,
        'Resize <nearest_mode="floor", coordinate_transformation_mode="asymmetric"> (c, "", s)',
        ", float[4] s",
        {"s": [1, 1, 2, 2]},
    ),
    (18, 'Resize <mode="linear", antialias=1> (c, "", s)', ", float[4] s", {"s": [1, 1, 0.6, 0.7]}),
    (18, 'Resize <mode="cubic", exclude_outside=1> (c, "", s)', ", float[4] s", {"s": [1, 1, 1.7, 2]}),
    (18, 'Resize <axes=[2,3]> (c, "", s)', ", float[2] s", {"s": [2, 3]}),
    (19, 'Resize <mode="linear", axes=[-1]> (c, "", s)', ", float[1] s", {"s": [2]}),
]


@pytest.mark.parametrize(("opset", "node", "more", "values"), RESIZES)
def test_resizing_passes_everything(opset: int, node: str, more: str, values: dict[str, object]) -> None:
    both(f"d = {node}", more=more, opset=opset, **values)


def test_resizing_to_sizes_needs_a_channel_axis_of_proven_length() -> None:
    node = 'd = Resize (c, "", "", z)'
    fixed = pulled(node, more=", int64[4] z", x="2,3,8,8")
    check(fixed, z=[2, 4, 9, 11])
    channels = fixed.replace(PARAMETERS, PARAMETERS.replace("[4]", "[8]"))
    check(channels, Reason.AXIS_NOT_PROVEN, z=[2, 8, 9, 11])
    scaled = pulled('d = Resize (c, "", s)', more=", float[4] s").replace(PARAMETERS, PARAMETERS.replace("[4]", "[8]"))
    check(scaled, Reason.AXIS_NOT_PROVEN, s=[1, 2, 1, 1])


@pytest.mark.parametrize("nearest", ["", "floor", "round_prefer_floor", "ceil", "round_prefer_ceil"])
def test_the_half_pixel_of_old_tensorflow_passes_unless_it_moves_a_channel(nearest: str) -> None:
    mode = f', nearest_mode="{nearest}"' if nearest else ""
    node = f'd = Resize <coordinate_transformation_mode="tf_half_pixel_for_nn"{mode}> (c, roi, s)'
    text = pulled(node, more=", float[0] roi, float[4] s")
    if "ceil" in nearest:
        report = bnfold.inspect(ir.from_proto(parse(text, opset=11, values={"s": [1, 1, 2, 2]})))
        assert reasons(report)[0] is Reason.AXIS_NOT_PROVEN
    else:
        check(text, opset=11, s=[1, 1, 2, 2])


def test_cropping_passes_where_nothing_outside_is_read_or_the_number_there_stays() -> None:
    attributes = 'mode="linear", coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=2.0'
    node = f"d = Resize <{attributes}> (c, roi, s)"
    more = ", float[8] roi, float[4] s"
    inside, outside = [0, 0, 0.1, 0.2, 1, 1, 0.9, 0.7], [0, 0, -0.5, 0, 1, 1, 1.5, 1]
    check(pulled(node, more=more), roi=inside, s=[1, 1, 2, 2])
    check(pulled(node, more=more), Reason.SHIFT_MEETS_PADDING, roi=outside, s=[1, 1, 2, 2])
    zero = node.replace("extrapolation_value=2.0", "extrapolation_value=0.0")
    check(pulled(zero, more=more), roi=outside, s=[1, 1, 2, 2], **NEGATIVE_SCALE)


@pytest.mark.parametrize("opset", [7, 11, NEWEST])
@pytest.mark.parametrize("mode", ["reflect", "edge", "constant"])
def test_padding_passes_unless_its_constant_would_move(opset: int, mode: str) -> None:
    old = f'd = Pad <mode="{mode}", pads=[0,0,1,2,0,0,2,1]> (c)'
    new, more = f'd = Pad <mode="{mode}"> (c, pads)', ", int64[8] pads"
    node, declared = (old, "") if opset < 11 else (new, more)
    values = {} if opset < 11 else {"pads": [0, 0, 1, 2, 0, 0, 2, 1]}
    both(node, Reason.SHIFT_MEETS_PADDING if mode == "constant" else None, more=declared, opset=opset, **values)
    both(node, more=declared, opset=opset, **values, **NEGATIVE_SCALE)


@pytest.mark.parametrize("opset", [7, 13])
def test_the_constant_of_a_padding_is_rewritten_where_it_is_one_number(opset: int) -> None:
    same = {"gamma": 2, "beta": 1, "mean": 0.5, "var": 1}
    old, new = "d = Pad <pads=[0,0,1,1,0,0,1,1], value=1.5> (c)", "d = Pad(c, pads, v)"
    more = ", int64[8] pads, float v"
    if opset < 11:
        both(old, opset=opset, **same)
        both(old, Reason.SHIFT_MEETS_PADDING, opset=opset)
    else:
        both(new, more=more, pads=[0, 0, 1, 1, 0, 0, 1, 1], v=1.5, **same)
        both(new, Reason.SHIFT_MEETS_PADDING, more=more, pads=[0, 0, 1, 1, 0, 0, 1, 1], v=1.5)
        both("d = Pad(c, pads)", more=", int64[8] pads", pads=[0, 0, 1, 1, 0, 0, 1, 1], **same)


def test_padding_with_axes_and_negative_pads_and_on_the_channel_axis() -> None:
    both(
        'd = Pad(c, pads, "", axes)',
        more=", int64[4] pads, int64[2] axes",
        opset=18,
        pads=[1, 0, 2, 1],
        axes=[-1, 2],
        **SCALE,
    )
    both("d = Pad(c, pads)", more=", int64[8] pads", pads=[0, 0, -1, 0, 0, 0, 0, -2], **SCALE)
    text = pulled("d = Pad(c, pads)", more=", int64[8] pads").replace(PARAMETERS, PARAMETERS.replace("[4]", "[6]"))
    six = {"gamma": [1, 2, 3, -4, 5, 6], "beta": [0, 2, 3, 4, 5, 0], "mean": [0, 1, 1, 1, 1, 0]}
    check(text, pads=[0, 1, 0, 0, 0, 1, 0, 0], **six)
    check(text, Reason.SHIFT_MEETS_PADDING, pads=[0, 1, 0, 0, 0, 1, 0, 0])


@pytest.mark.parametrize("opset", [7, NEWEST])
@pytest.mark.parametrize("node", ["LeakyRelu <alpha=0.2> (c)", "LeakyRelu <alpha=-0.3> (c)", "PRelu(c, k)", "Abs(c)"])
def test_a_positive_scale_passes_an_activation_and_nothing_else_does(node: str, opset: int) -> None:
    more = ", float[4,1,1] k" if "k" in node.rsplit("(", maxsplit=1)[-1] else ""
    both(f"d = {node}", more=more, opset=opset, **SCALE)
    both(f"d = {node}", Reason.SHIFT_MEETS_ACTIVATION, more=more, opset=opset, **POSITIVE)
    check(pulled(f"d = {node}", more=more), Reason.SCALE_IS_NOT_POSITIVE, opset=opset, **NEGATIVE_SCALE)
    even = node == "Abs(c)"
    check(
        pushed(f"d = {node}", more=more), None if even else Reason.SCALE_IS_NOT_POSITIVE, opset=opset, **NEGATIVE_SCALE
    )


@pytest.mark.parametrize("op", ["Sigmoid", "Softmax", "Elu"])
def test_a_non_linear_operator_is_a_barrier(op: str) -> None:
    both(f"d = {op}(c)", Reason.OPERATOR_IS_NOT_LINEAR, **SCALE)
