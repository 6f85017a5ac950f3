"""What a linear operator computes after several folds, multiplied out in float64."""

from __future__ import annotations

import numpy as np
import pytest
from fold_graph import affine, draw

from bnfold.affine import ChannelAffine
from bnfold.bench import multiplied_out
from bnfold.graph import AbsorbInput, AbsorbOutput, Operator
from bnfold.linear import LinearParams
from bnfold.views import Same

CONV = Operator(0, "conv", "Conv", Same(), (), (), (), (), None)
PARAMS = LinearParams(draw(1, 3, 2, 1, 1), draw(3, seed=1))


def at_output(scale: float, shift: float) -> AbsorbOutput:
    return AbsorbOutput(CONV, ChannelAffine(np.full(3, scale), np.full(3, shift)))


def test_what_is_absorbed_and_undone_leaves_no_trace_in_the_bias() -> None:
    there, bare = affine(3), LinearParams(PARAMS.weight, np.zeros(3))
    edits = tuple(AbsorbOutput(CONV, each) for each in (there, there.inverse()))
    assert not multiplied_out(bare, edits).bias.any()


@pytest.mark.parametrize(("left", "is_kept"), [(2.0**-48, True), (2.0**-52, False)])
def test_a_bias_is_nothing_only_where_it_is_what_float64_lost(left: float, is_kept: bool) -> None:
    bare = LinearParams(PARAMS.weight, np.zeros(3))
    found = multiplied_out(bare, (at_output(1.0, 1.0), at_output(1.0, left - 1.0))).bias
    assert (found == (left if is_kept else 0.0)).all()


def test_a_small_bias_that_one_fold_leaves_is_as_it_is_computed() -> None:
    stored = LinearParams(PARAMS.weight, np.ones(3))
    assert (multiplied_out(stored, (at_output(1.0, 2.0**-52 - 1.0),)).bias == 2.0**-52).all()


def test_shifts_at_the_input_count_with_the_size_of_the_weights() -> None:
    shift = ChannelAffine(np.ones(2), np.array([1.0, 0.0]))
    back = ChannelAffine(np.ones(2), np.array([-1.0, 1e-17]))
    edits = tuple(AbsorbInput(CONV, each) for each in (shift, back))
    assert not multiplied_out(LinearParams(PARAMS.weight, np.zeros(3)), edits).bias.any()
    assert multiplied_out(LinearParams(PARAMS.weight, np.zeros(3)), edits[:1]).bias.all()
