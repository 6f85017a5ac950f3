"""Every kind of wrong fold, somewhere in a network of twenty layers, is caught and localised; the right one is not."""

from __future__ import annotations

import pytest
from mutated_folds import BORDER, LAYERS, MUTATIONS, PLACES, behind, folded, into_the_border, mutated, network

import bnfold
from bnfold.verification import Verification


def test_the_right_fold_passes_both_tests() -> None:
    model, local = folded()
    found = Verification(local, bnfold.verify(network(), model).quick)
    assert len(local) == LAYERS
    assert found.passed


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", MUTATIONS)
def test_a_wrong_fold_is_caught_by_the_local_test_which_names_its_batchnorm(kind: str, place: int) -> None:
    _, local = mutated(kind, place)
    assert [check.batchnorms for check in local if check.failed] == [(f"bn{place}",)]
    assert Verification(local, ()).culprit.startswith(f"the fold of bn{place} is wrong at n{place} (")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", MUTATIONS)
def test_a_wrong_fold_is_caught_by_verify_at_the_tensor_behind_it(kind: str, place: int) -> None:
    """Which knows no fold: also a single weight off by a thousandth, which hardly shows at the outputs."""
    model, _ = mutated(kind, place)
    (quick,) = bnfold.verify(network(), model).quick
    assert quick.failed
    assert quick.first_divergence == behind(kind, place)


@pytest.mark.parametrize("place", PLACES)
def test_a_shift_that_is_moved_into_zero_padding_is_caught_at_the_convolution_that_sees_the_border(place: int) -> None:
    original, naive = into_the_border(place)
    (quick,) = bnfold.verify(original, naive).quick
    assert quick.failed
    assert quick.first_divergence == behind(BORDER, place)
    kept = [d.subject.name for d in bnfold.fold(original).decisions if not isinstance(d, bnfold.Folded)]
    assert kept == [f"bn{place}"]
