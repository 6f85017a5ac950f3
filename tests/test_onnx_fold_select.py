"""Slice, Split, Gather, DepthToSpace and SpaceToDepth through ONNX: chunks, sub-pixel upsampling, YOLOv5's Focus."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest
from onnx_models import NEWEST, PARAMETERS, STATS, assert_fold, ops, parse, proto, reasons, run, stored

import bnfold
from bnfold.decision import Reason

THIRD, STATS3 = (re.sub(r"(gamma|beta|mean|var)", r"\1_3", text) for text in (PARAMETERS, STATS))
SECOND, STATS2 = (re.sub(r"(gamma|beta|mean|var)", r"\1_2", text) for text in (PARAMETERS, STATS))


def channels(count: int, second: bool = False) -> str:
    return (SECOND if second else PARAMETERS).replace("[4]", f"[{count}]")


def halves(opset: int) -> tuple[str, str]:
    """A chunk of 8 channels into p and q, by Slice, and the constants it needs."""
    if opset < 10:
        return "p = Slice <axes=[1], starts=[0], ends=[4]> (c) q = Slice <axes=[1], starts=[-4], ends=[9999]> (c)", ""
    nodes = "p = Slice(c, zero, four, one) q = Slice(c, four, big, one)"
    return nodes, ", int64[1] zero, int64[1] four, int64[1] one, int64[1] big"


BOUNDS = {"zero": 0, "four": 4, "one": 1, "big": 2**62}


def chunk(nodes: str, more: str, last: str = "") -> str:
    """Conv -> two halves p and q; a BatchNorm on p."""
    return f"""(float[N,3,8,8] x) => (float[A,B,C,D] y, float[E,F,G,H] z) <float[8,3,3,3] w, {PARAMETERS}{more}>
        {{ c = Conv(x, w) {nodes} y = BatchNormalization(p, {STATS}) {last or "z = Sigmoid(q)"} }}"""


@pytest.mark.parametrize("opset", [9, 10, 11, 13, NEWEST])
def test_a_batchnorm_on_one_half_of_a_chunk_changes_that_half_only(opset: int) -> None:
    nodes, more = halves(opset)
    model = parse(chunk(nodes, more), opset=opset, values=BOUNDS)
    result = assert_fold(model, folded=1)
    assert ops(result.model) == ["Conv", "Slice", "Slice", "Sigmoid"]
    (name,) = [
        v.name
        for v in result.model.graph.initializers.values()
        if v.const_value and v.const_value.shape == (8, 3, 3, 3)
    ]
    np.testing.assert_array_equal(stored(result.model, str(name))[4:], stored(model, "w")[4:])
    assert [str(v.name) for v in result.model.graph.node(2).outputs] == ["q"]  # the other half is what it was


@pytest.mark.parametrize("opset", [9, 13, NEWEST])
def test_both_halves_of_a_chunk_take_their_own_batchnorm(opset: int) -> None:
    nodes, more = halves(opset)
    text = chunk(nodes, f"{more}, {SECOND}", f"z = BatchNormalization(q, {STATS2})")
    assert ops(assert_fold(parse(text, opset=opset, values=BOUNDS), folded=2).model) == ["Conv", "Slice", "Slice"]


def test_halves_that_overlap_keep_the_batchnorm() -> None:
    nodes, more = halves(17)
    text = chunk(nodes, more)
    overlapping = text.replace("c, four, big, one", "c, one, big, one")
    result = assert_fold(parse(overlapping, values=BOUNDS), folded=0, kept=[Reason.VALUE_HAS_OTHER_READERS])
    assert "q" in str(result.report.kept[0].refusals[0])


def test_a_whole_reader_beside_a_half_keeps_the_batchnorm() -> None:
    nodes, more = halves(17)
    text = chunk(nodes, more, "z = Sigmoid(c)").replace("q = Slice(c, four, big, one)", "")
    assert_fold(parse(text, values=BOUNDS), folded=0, kept=[Reason.VALUE_HAS_OTHER_READERS])


def test_a_half_that_an_untouched_half_is_added_to() -> None:
    """The channels of c that p reads change, those that q reads do not, and their sum still means the same."""
    nodes, more = halves(17)
    text = chunk(nodes, more, "z = Add(y, q)")
    assert_fold(parse(text, values=BOUNDS), folded=1)


SPLITS = [
    (9, "p, q = Split <axis=1, split=[4,4]> (c)", ""),
    (11, "p, q = Split <axis=1, split=[4,4]> (c)", ""),
    (11, "p, q = Split <axis=-3> (c)", ""),
    (13, "p, q = Split <axis=1> (c, parts)", ", int64[2] parts"),
    (13, "p, q = Split <axis=1> (c)", ""),
    (18, "p, q = Split <axis=1, num_outputs=2> (c)", ""),
    (NEWEST, "p, q = Split <axis=1, num_outputs=2> (c)", ""),
    (NEWEST, "p, q = Split <axis=1> (c, parts)", ", int64[2] parts"),
]


@pytest.mark.parametrize(("opset", "nodes", "more"), SPLITS)
def test_a_split_takes_a_batchnorm_on_one_part_and_on_all(opset: int, nodes: str, more: str) -> None:
    values = {"parts": [4, 4]}
    one = assert_fold(parse(chunk(nodes, more), opset=opset, values=values), folded=1)
    assert [v.name for v in one.model.graph.node(1).outputs] == ["y", "q"]
    both = chunk(nodes, f"{more}, {SECOND}", f"z = BatchNormalization(q, {STATS2})")
    assert ops(assert_fold(parse(both, opset=opset, values=values), folded=2).model) == ["Conv", "Split"]


@pytest.mark.parametrize("parts", [[4, 4], [4, 1], [3, 5]])
def test_parts_of_a_split_need_not_be_equal(parts: list[int]) -> None:
    count, wide = parts[0], sum(parts)
    text = chunk("p, q = Split <axis=1> (c, parts)", ", int64[2] parts").replace(PARAMETERS, channels(count))
    assert_fold(parse(text.replace("[8,3", f"[{wide},3"), values={"parts": parts}), folded=1)


def test_a_split_into_a_smaller_last_part() -> None:
    text = chunk("p, q = Split <axis=1, num_outputs=2> (c)", "").replace("float[8,3", "float[7,3")
    assert_fold(parse(text, opset=18), folded=1)
    three = chunk("p, q, r = Split <axis=1, num_outputs=3> (c)", "").replace("float[8,3", "float[10,3")
    assert_fold(parse(three, opset=18), folded=1)


def test_a_split_along_rows_keeps_the_batchnorm_on_one_part() -> None:
    text = chunk("p, q = Split <axis=2, num_outputs=2> (c)", "").replace(PARAMETERS, channels(8))
    assert_fold(parse(text, opset=18), folded=0, kept=[Reason.VALUE_HAS_OTHER_READERS])


def test_a_split_is_pushed_through_into_every_part() -> None:
    text = f"""(float[N,4,8,8] x) => (float[A,B,C,D] y, float[E,F,G,H] z)
        <float[5,3,2,2] w, float[5,1,2,2] v, int64[2] parts, {PARAMETERS}>
        {{ b = BatchNormalization(x, {STATS}) p, q = Split <axis=1> (b, parts) y = Conv(p, w) z = Conv(q, v) }}"""
    assert ops(assert_fold(parse(text, values={"parts": [3, 1]}), folded=1).model) == ["Split", "Conv", "Conv"]
    blocked = text.replace("z = Conv(q, v)", "z = Sigmoid(q)")
    result = assert_fold(parse(blocked, values={"parts": [3, 1]}), folded=0, kept=[Reason.OPERATOR_IS_NOT_LINEAR])
    assert Reason.READS_MODEL_INPUT in reasons(result)


def test_bounds_that_are_known_at_run_time_only_keep_the_batchnorm_along_their_axis() -> None:
    text = f"""(float[N,3,8,8] x, int64[1] start) => (float[A,B,C,D] y) <float[8,3,3,3] w, {PARAMETERS},
        int64[1] end, int64[1] axis> {{ c = Conv(x, w) d = Slice(c, start, end, axis)
        y = BatchNormalization(d, {STATS}) }}"""
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32), "start": np.array([4])}
    assert_fold(parse(text, values={"end": 8, "axis": 1}), feeds, folded=0, kept=[Reason.AXIS_NOT_PROVEN], runs=False)
    rows = text.replace(PARAMETERS, channels(8))
    assert_fold(parse(rows, values={"end": 6, "axis": 2}), feeds, folded=1, runs=False)


@pytest.mark.parametrize(
    ("start", "end", "step"), [(7, 3, -1), (-1, -9, -2), (0, 8, 2), (-5, -1, 1), (100, -100, -2), (3, -(2**62), -1)]
)
def test_a_slice_picks_the_channels_that_onnxruntime_picks(start: int, end: int, step: int) -> None:
    text = f"""(float[N,3,8,8] x) => (float[A,B,C,D] y) <float[8,3,3,3] w, {PARAMETERS},
        int64[3] starts, int64[3] ends, int64[3] axes, int64[3] steps>
        {{ c = Conv(x, w) d = Slice(c, starts, ends, axes, steps) y = BatchNormalization(d, {STATS}) }}"""
    values = {"starts": [1, start, 0], "ends": [6, end, 5], "axes": [2, -3, 3], "steps": [2, step, 1]}
    assert_fold(parse(text, values=values), folded=1)


def test_a_slice_that_starts_before_the_first_channel_and_goes_down_has_one_channel() -> None:
    text = f"""(float[N,3,8,8] x) => (float[A,B,C,D] y) <float[4,3,3,3] w, {channels(1)},
        int64[1] start, int64[1] end, int64[1] axis, int64[1] step>
        {{ c = Conv(x, w) d = Slice(c, start, end, axis, step) y = BatchNormalization(d, {STATS}) }}"""
    model = parse(text, values={"start": -100, "end": -200, "axis": 1, "step": -1})
    result = bnfold.fold(ir.from_proto(model), verify=False)  # onnx's reference evaluator picks none
    assert len(result.report.folded) == 1
    x = {"x": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    old, new = (run(m, x, ["y"], True)["y"] for m in (model, proto(result.model)))
    assert old.shape == (2, 1, 6, 6)
    np.testing.assert_allclose(new, old, atol=1e-5)


@pytest.mark.parametrize("opset", [9, 11, 13, NEWEST])
def test_a_gather_of_channels_folds_where_no_channel_gets_two_affines(opset: int) -> None:
    text = f"""(float[N,3,8,8] x) => (float[A,B,C,D] y) <float[8,3,3,3] w, {PARAMETERS}, int64[4] i>
        {{ c = Conv(x, w) d = Gather <axis=1> (c, i) y = BatchNormalization(d, {STATS}) }}"""
    negative = [6, 0, 2, 7] if opset < 11 else [-2, 0, 2, -1]
    assert_fold(parse(text, opset=opset, values={"i": negative}), folded=1)
    assert_fold(parse(text, opset=opset, values={"i": [1, 0, 1, 5]}), folded=0, kept=[Reason.READERS_DISAGREE])
    equal = {"gamma": 2, "beta": 1, "mean": 0.5, "var": 3}
    assert_fold(parse(text, opset=opset, values={"i": [1, 0, 1, 5], **equal}), folded=1)


def test_a_gather_with_a_scalar_or_a_table_of_indices_is_a_barrier() -> None:
    text = f"""(float[N,3,8,8] x) => (float[A,B,C] y) <float[4,3,3,3] w, {PARAMETERS}, int64 i>
        {{ c = Conv(x, w) d = Gather <axis=2> (c, i) y = BatchNormalization(d, {STATS}) }}"""
    assert_fold(parse(text, values={"i": 2}), folded=0, kept=[Reason.AXIS_NOT_PROVEN])
    table = text.replace("int64 i", "int64[2,2] i").replace("[A,B,C]", "[A,B,C,D,E]")
    assert_fold(parse(table, values={"i": [[0, 1], [2, 0]]}), folded=0, kept=[Reason.AXIS_NOT_PROVEN])


def test_a_channel_shuffle_by_gather_and_by_reshape_folds() -> None:
    gather = f"""(float[N,3,8,8] x) => (float[A,B,C,D] y) <float[4,3,3,3] w, {PARAMETERS}, int64[4] i>
        {{ c = Conv(x, w) d = Gather <axis=1> (c, i) y = BatchNormalization(d, {STATS}) }}"""
    assert_fold(parse(gather, values={"i": [0, 2, 1, 3]}), folded=1)
    reshape = f"""(float[N,3,8,8] x) => (float[A,B,C,D] y) <float[4,3,3,3] w, {PARAMETERS}, int64[5] i, int64[4] j>
        {{ c = Conv(x, w) e = Reshape(c, i) f = Transpose <perm=[0,2,1,3,4]> (e) d = Reshape(f, j)
           y = BatchNormalization(d, {STATS}) }}"""
    assert_fold(parse(reshape, values={"i": [-1, 2, 2, 6, 6], "j": [-1, 4, 6, 6]}), folded=1)


@pytest.mark.parametrize(
    ("opset", "mode"),
    [(7, ""), (9, ""), (11, ""), (11, ', mode="DCR"'), (11, ', mode="CRD"'), (NEWEST, ', mode="CRD"')],
)
def test_sub_pixel_upsampling_takes_the_batchnorm_behind_it(opset: int, mode: str) -> None:
    text = f"""(float[N,3,8,8] x) => (float[A,B,C,D] y) <float[16,3,3,3] w, {PARAMETERS}>
        {{ c = Conv(x, w) d = DepthToSpace <blocksize=2{mode}> (c) y = BatchNormalization(d, {STATS}) }}"""
    assert ops(assert_fold(parse(text, opset=opset), folded=1).model) == ["Conv", "DepthToSpace"]


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space_is_pushed_through_where_joined_channels_are_equal(mode: str) -> None:
    text = f"""(float[N,8,4,4] x) => (float[A,B,C,D] y) <float[5,2,2,2] w, {channels(8)}>
        {{ b = BatchNormalization(x, {STATS}) d = DepthToSpace <blocksize=2, mode="{mode}"> (b) y = Conv(d, w) }}"""
    assert_fold(parse(text), folded=0, kept=[Reason.READERS_DISAGREE])
    order = [c % 2 if mode == "DCR" else c // 4 for c in range(8)]
    values = {"gamma": [1.5, -2], "beta": [0.5, 1], "mean": [0.1, -0.3], "var": [2, 3]}
    equal = {name: np.array(pair)[order] for name, pair in values.items()}
    assert_fold(parse(text, values=equal), folded=1)
    assert_fold(parse(text, values={k: np.array(v)[order[::-1]] for k, v in values.items()}), folded=1)


def test_rows_and_channels_that_are_merged_behind_depth_to_space_keep_the_batchnorm() -> None:
    text = f"""(float[N,8,3,2] x) => (float[A,B,C] y) <int64[3] shape, {channels(12)}>
        {{ c = Add(x, x) d = DepthToSpace <blocksize=2> (c) f = Reshape(d, shape)
            y = BatchNormalization(f, {STATS}) }}"""
    model = parse(text, values={"shape": [-1, 12, 4]})
    assert_fold(model, folded=0, kept=[Reason.OPERATOR_MIXES_CHANNELS])


def test_yolov5s_focus_takes_the_batchnorm_before_and_behind_it() -> None:
    slices = " ".join(f"s{i} = Slice(b, o{i}, big, space, two)" for i in range(4))
    text = f"""(float[N,4,8,8] x) => (float[A,B,C,D] y)
        <float[4,16,1,1] w, int64[2] o0, int64[2] o1, int64[2] o2, int64[2] o3, int64[2] big, int64[2] space,
        int64[2] two, {PARAMETERS}, {SECOND}>
        {{ b = BatchNormalization(x, {STATS}) {slices} t = Concat <axis=1> (s0, s1, s2, s3) c = Conv(t, w)
           y = BatchNormalization(c, {STATS2}) }}"""
    values = {"o0": [0, 0], "o1": [1, 0], "o2": [0, 1], "o3": [1, 1], "big": 2**31 - 1, "space": [2, 3], "two": 2}
    assert ops(assert_fold(parse(text, values=values), folded=2).model) == ["Slice"] * 4 + ["Concat", "Conv"]


@pytest.mark.parametrize("opset", [7, 13, NEWEST])
def test_space_to_depth_passes_on_and_takes_back_what_is_equal(opset: int) -> None:
    pushed = f"""(float[N,4,8,8] x) => (float[A,B,C,D] y) <float[5,16,1,1] w, {PARAMETERS}>
        {{ b = BatchNormalization(x, {STATS}) d = SpaceToDepth <blocksize=2> (b) y = Conv(d, w) }}"""
    assert_fold(parse(pushed, opset=opset), folded=1)
    pulled = f"""(float[N,3,8,8] x) => (float[A,B,C,D] y) <float[4,3,3,3] w, {channels(16)}>
        {{ c = Conv(x, w) d = SpaceToDepth <blocksize=2> (c) y = BatchNormalization(d, {STATS}) }}"""
    assert_fold(parse(pulled, opset=opset), folded=0, kept=[Reason.READERS_DISAGREE])
    values = {"gamma": [1.5, -2, 1, 3], "beta": [0.5, 1, 0, -1], "mean": [0.1, -0.3, 0, 1], "var": [2, 3, 1, 0.5]}
    tiled = {name: np.tile(four, 4) for name, four in values.items()}
    assert_fold(parse(pulled, opset=opset, values=tiled), folded=1)


def test_a_c2f_block_whose_halves_go_on_separately_folds_every_batchnorm() -> None:
    """YOLOv8: Conv-BN, chunk, a bottleneck on one half with a shortcut, concat, Conv-BN."""
    text = f"""(float[N,3,8,8] x) => (float[A,B,C,D] y)
        <float[8,3,1,1] w, float[4,4,3,3] v, float[4,12,1,1] u, {channels(8)}, {SECOND},
        {THIRD}>
        {{ c = Conv(x, w) b = BatchNormalization(c, {STATS}) r = Relu(b) p, q = Split <axis=1, num_outputs=2> (r)
           e = Conv <pads=[1,1,1,1]> (q, v) f = BatchNormalization(e, {STATS2}) g = Relu(f) h = Add(q, g)
           t = Concat <axis=1> (p, q, h) k = Conv(t, u)
           y = BatchNormalization(k, {STATS3}) }}"""
    assert_fold(parse(text, opset=18), folded=3)


def test_two_halves_that_are_joined_in_another_order_take_their_own_channels() -> None:
    """A dual path block: slices of one convolution go different ways and meet in one BatchNorm."""
    nodes, more = halves(17)
    text = f"""(float[N,3,8,8] x) => (float[A,B,C,D] y) <float[8,3,3,3] w, {PARAMETERS.replace("[4]", "[8]")}{more}>
        {{ c = Conv(x, w) {nodes} j = Concat <axis=1> (q, p) y = BatchNormalization(j, {STATS}) }}"""
    assert ops(assert_fold(parse(text, values=BOUNDS), folded=1).model) == ["Conv", "Slice", "Slice", "Concat"]


def test_bounds_that_nodes_compute_from_constants_say_how_many_channels_there_are() -> None:
    """torch's exporter writes them as Unsqueeze of a Constant, which onnx's own inference does not follow."""
    text = f"""(float[N,3,8,8] x) => (float[A,B,C,D] y) <float[8,3,3,3] w, int64 zero, int64 four, int64[1] axis,
        {PARAMETERS.replace("[4]", "[8]")}, float[4,3,3,3] v>
        {{ c = Conv(x, w) s = Unsqueeze(zero, axis) e = Unsqueeze(four, axis) o = Constant <value_ints=[1]> ()
           p = Slice(c, s, e, o, o) d = Conv(x, v) j = Concat <axis=1> (p, d) y = BatchNormalization(j, {STATS}) }}"""
    result = assert_fold(parse(text, values={"zero": 0, "four": 4, "axis": 0}), folded=1)
    assert "BatchNormalization" not in ops(result.model)
