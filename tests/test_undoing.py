"""Other readers of a pulled value undo its change, where they can, where nothing else helps, and where it is exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fold_graph import FLOAT16, Net, affine, draw
from fold_graph_pairs import add_sum

from bnfold.affine import ChannelAffine
from bnfold.decision import Folded, Kept, Reason
from bnfold.folding import FoldPlan, plan
from bnfold.views import Arithmetic

SIGNED, OTHER = affine(3, 2, positive=False), affine(3, 5, positive=False)


def weights(seed: int = 0) -> np.ndarray:
    return draw(3, 3, 3, 3, seed=seed)


def net_with(reader: Any, placed: ChannelAffine = SIGNED, **more: Any) -> Net:
    """A convolution that a BatchNorm and `reader` read."""
    net = Net(x=draw(2, 3, 8, 8))
    stem = net.conv("x", weights(), name="stem")
    net.output(net.barrier(net.bn(stem, placed, name="bn", **more)))
    reader(net, stem)
    return net


def settled(net: Net) -> FoldPlan:
    """The plan, after it was seen to change no number and to settle everything at once."""
    made = plan(net)
    before, after = net.evaluate(), net.evaluate(made.bench)
    for value in net.seen_by_caller:
        np.testing.assert_allclose(after[value], before[value], rtol=1e-11, atol=1e-11)
    return made


def folded(net: Net) -> list[str]:
    return [d.subject.name for d in settled(net).decisions if isinstance(d, Folded)]


def reasons(net: Net) -> list[Reason]:
    return [r.reason for d in settled(net).decisions if isinstance(d, Kept) for r in d.refusals]


def convolution(net: Net, value: str) -> None:
    net.output(net.conv(value, weights(2), name="sibling"))


def padded(net: Net, value: str) -> None:
    net.output(net.conv(value, weights(2), pad=1))


def test_a_convolution_beside_undoes_scale_and_shift() -> None:
    net = net_with(convolution)
    made = settled(net)
    assert [op.name for op in made.bench.folds[0].beside] == ["sibling"]
    assert folded(net) == ["bn"]


def test_a_padded_convolution_beside_undoes_a_scale_and_no_shift() -> None:
    assert folded(net_with(padded, SIGNED.scale_only)) == ["bn"]
    assert reasons(net_with(padded))[0] is Reason.VALUE_HAS_OTHER_READERS


def test_an_activation_beside_passes_on_a_positive_scale() -> None:
    def reader(net: Net, value: str) -> None:
        convolution(net, net.homogeneous(value))

    positive = affine(3, 3, shift=False)
    assert folded(net_with(reader, positive)) == ["bn"]
    assert reasons(net_with(reader, SIGNED.scale_only))[0] is Reason.VALUE_HAS_OTHER_READERS
    assert reasons(net_with(reader, affine(3, 3)))[0] is Reason.VALUE_HAS_OTHER_READERS


@pytest.mark.parametrize("reader", [Net.barrier, Net.output, Net.captured])
def test_what_sees_the_value_as_it_is_keeps_the_batchnorm(reader: Any) -> None:
    net = net_with(lambda net, value: net.output(reader(net, value)))
    assert reasons(net)[0] in (Reason.VALUE_HAS_OTHER_READERS, Reason.IS_MODEL_OUTPUT, Reason.CAPTURED_BY_SUBGRAPH)


def test_a_scale_of_zero_cannot_be_undone() -> None:
    zero = ChannelAffine(np.array([1.5, 0.0, -2.0]), np.zeros(3))
    assert reasons(net_with(convolution, zero))[0] is Reason.VALUE_HAS_OTHER_READERS


@pytest.mark.parametrize(("offset", "count"), [(8.0, 1), (8.1, 0)])
def test_a_shift_is_not_undone_where_the_mean_that_came_in_would_cancel(offset: float, count: int) -> None:
    assert len(folded(net_with(convolution, offset=offset))) == count
    assert len(folded(net_with(convolution, SIGNED.scale_only, offset=offset))) == 1


@pytest.mark.parametrize(("size", "count"), [(7.9, 1), (8.1, 0)])
def test_a_shift_is_not_undone_where_the_mean_that_goes_out_would_cancel(size: float, count: int) -> None:
    """Net.bn's statistics have the mean 0 and a deviation of 1.25 in the second of three channels."""
    far = ChannelAffine(np.array([1.0, 0.5, 1.0]), np.array([0.0, 0.5 * 1.25 * size, 0.0]))
    assert len(folded(net_with(convolution, far))) == count


def test_another_batchnorm_takes_in_what_undoes_the_first() -> None:
    net = net_with(lambda net, value: net.output(net.barrier(net.bn(value, OTHER, name="other"))))
    assert folded(net) == ["bn"]
    assert reasons(net)[0] is Reason.VALUE_HAS_OTHER_READERS


def test_two_equal_batchnorms_go_into_one_convolution() -> None:
    def reader(net: Net, value: str) -> None:
        net.output(net.bn(value, SIGNED, name="twin"))

    assert folded(net_with(reader)) == ["bn", "twin"]
    assert reasons(net_with(lambda net, value: net.output(net.barrier(net.bn(value, OTHER))))) != []


def test_a_twin_that_the_caller_keeps_stays() -> None:
    net = net_with(lambda net, value: net.output(net.barrier(net.bn(value, SIGNED, name="twin"))))
    made = plan(net, lambda name: name != "twin")
    assert made.bench.folds == []


def test_a_twin_that_the_same_affine_goes_into_is_changed_once() -> None:
    """The sum asks the first BatchNorm's output and the second, which reads it, for one scale."""
    net = Net(x=draw(2, 3, 8, 8))
    first = net.bn("x", SIGNED.scale_only, name="first")
    total = net.sum(net.bn(first, SIGNED.scale_only, name="second"), first)
    net.output(net.bn(total, SIGNED.scale_only, name="third"))
    settled(net)


def test_all_later_blocks_of_a_dense_net_undo_what_one_batchnorm_asks() -> None:
    net = Net(x=draw(2, 3, 6, 6))
    first, second = net.conv("x", draw(3, 3, 1, 1)), net.conv("x", draw(3, 3, 1, 1, seed=3))
    for i in range(3):
        joined = net.concat(1, first, second, name=f"concat{i}")
        value = net.bn(joined, affine(6, i, positive=i != 1), name=f"bn{i}")
        net.output(net.conv(net.homogeneous(value), draw(3, 6, 1, 1, seed=i)))
    made = settled(net)
    assert [d.subject.name for d in made.decisions if isinstance(d, Folded)] == ["bn0"]
    assert set(made.bench.affines) == {op.index for op in net.operators if op.name in ("bn1", "bn2")}


def test_a_reader_that_is_on_the_way_of_the_pull_itself_refuses() -> None:
    """`v + p(v)`: the branch through the product reads v too, and asks it for nothing."""
    net = Net(x=draw(2, 3, 8, 8))
    stem = net.conv("x", weights(), name="stem")
    scaled = net.arithmetic(Arithmetic.ADD, stem, draw(3, 1, 1))
    net.output(net.barrier(net.bn(net.concat(1, stem, scaled), affine(6, 4, positive=False), name="bn")))
    assert reasons(net)[0] is Reason.READERS_DISAGREE


def test_what_an_undoing_reader_stores_must_fit_its_dtype() -> None:
    def reader(net: Net, value: str) -> None:
        net.output(net.conv(value, 3e4 * weights(2), stored_as=FLOAT16))

    small = ChannelAffine(np.full(3, 1e-2), np.zeros(3))
    assert folded(net_with(reader, ChannelAffine(np.full(3, 2.0), np.zeros(3)))) == ["bn"]
    assert reasons(net_with(reader, small))[0] is Reason.VALUE_HAS_OTHER_READERS


def test_undoing_is_the_last_resort() -> None:
    """The push into the one reader changes less."""
    net = Net(x=draw(2, 3, 8, 8))
    stem = net.conv("x", weights())
    net.output(net.conv(net.bn(stem, SIGNED, name="bn"), weights(3), name="next"))
    convolution(net, stem)
    (fold,) = settled(net).bench.folds
    assert (fold.direction, [op.name for op in fold.into], fold.beside) == ("push", ["next"], ())


def test_a_reader_that_would_undo_is_not_also_on_the_way_of_the_size() -> None:
    """Only the shift can go back, to one operand of the sum, and the size onward; both would change the last one."""
    net = Net(x=draw(2, 3, 8, 8))
    total = add_sum(net, net.barrier("x"), net.conv("x", draw(3, 3, 1, 1)))
    way = net.homogeneous(net.bn(total, affine(3, 2), name="bn"))
    net.output(net.barrier(net.bn(net.concat(1, way, total), affine(6, 5), name="last")))
    assert folded(net) == []
    alone = Net(x=draw(2, 3, 8, 8))
    total = add_sum(alone, alone.barrier("x"), alone.conv("x", draw(3, 3, 1, 1)))
    way = alone.homogeneous(alone.bn(total, affine(3, 2), name="bn"))
    alone.output(alone.barrier(alone.bn(way, affine(3, 5), name="last")))
    alone.output(alone.barrier(alone.bn(total, affine(3, 6), name="beside")))
    assert folded(alone) == ["bn"]
