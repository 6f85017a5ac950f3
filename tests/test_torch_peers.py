"""Where other folders of PyTorch modules give wrong numbers and bnfold does not, each held to be so in this torch.

The modules and the tools are those of `benchmarks/torch_folders.py`. A test that fails because a peer is right by now
is good news: take the claim out of `benchmarks/TORCH.md`.
"""

from __future__ import annotations

import pytest

from benchmarks.coverage_judge import Outcome
from benchmarks.torch_cases import BY_KEY, CASES
from benchmarks.torch_judge import judge_small

#: Of the output's scale: what a peer's mistake is off by at least.
FAR = 1e-2

FX, FREEZE, INDUCTOR, AO, HAND = (
    "torch.fx fuse", "jit.freeze", "inductor freezing", "ao fuse_modules", "nn.utils.fusion"
)  # fmt: skip


def outcome(tool: str, key: str) -> Outcome:
    return judge_small(BY_KEY[key], tool)


def assert_right(tool: str, key: str, left: int) -> None:
    found = outcome(tool, key)
    assert (found.kind, found.batchnorms) == ("right", left), found


def assert_wrong(tool: str, key: str) -> None:
    found = outcome(tool, key)
    assert found.kind == "WRONG", found
    assert found.exact is not None
    assert found.exact > FAR


@pytest.mark.parametrize(("key", "left"), [("called-twice", 1), ("two-batchnorms", 2), ("two-names", 1)])
def test_torch_fx_changes_a_convolution_that_is_called_elsewhere_too(key: str, left: int) -> None:
    assert_wrong(FX, key)
    assert_right("bnfold", key, left)


@pytest.mark.parametrize("tool", [AO, HAND])
def test_a_pair_that_the_caller_names_may_be_half_of_what_calls_the_convolution(tool: str) -> None:
    assert_wrong(tool, "called-twice")
    assert_wrong(tool, "two-batchnorms")


@pytest.mark.parametrize("tool", [AO, HAND])
def test_fuse_modules_takes_a_batchnorm_away_from_one_of_two_readers(tool: str) -> None:
    assert_wrong(tool, "read-twice")
    assert_right("bnfold", "read-twice", 1)


@pytest.mark.parametrize("tool", [FX, FREEZE, AO, HAND])
def test_linear_and_a_batchnorm_on_the_other_axis_are_folded_wrongly_by_peers(tool: str) -> None:
    assert_wrong(tool, "linear")
    assert_right("bnfold", "linear", 1)


@pytest.mark.parametrize("tool", [FX, AO, HAND])
def test_linear_and_a_batchnorm_of_another_length_make_peers_fail(tool: str) -> None:
    assert "linear.out_features == bn.num_features" in outcome(tool, "wider-linear").detail
    assert_right("bnfold", "wider-linear", 1)


def test_torchscript_folds_a_batchnorm_in_training_mode() -> None:
    assert_wrong(FREEZE, "training")
    assert_right("bnfold", "training", 1)


@pytest.mark.parametrize("tool", [FX, AO, HAND])
def test_a_batchnorm_in_training_mode_makes_peers_fail(tool: str) -> None:
    assert outcome(tool, "training").kind == "ERROR"


@pytest.mark.parametrize("tool", [AO, HAND])
def test_a_batchnorm_without_running_statistics_makes_peers_fail(tool: str) -> None:
    assert outcome(tool, "no-statistics").kind == "ERROR"
    assert_right("bnfold", "no-statistics", 1)


@pytest.mark.parametrize("tool", [FX, AO, HAND])
def test_weights_that_a_hook_computes_are_overwritten_by_peers_and_nothing_runs_then(tool: str) -> None:
    found = outcome(tool, "spectral-norm")
    assert found.kind == "BROKEN"
    assert "cannot assign" in found.detail
    assert_right("bnfold", "spectral-norm", 1)


@pytest.mark.parametrize("tool", [AO, HAND])
def test_parametrised_weights_make_peers_fail(tool: str) -> None:
    assert outcome(tool, "weight-norm").kind == "ERROR"
    assert_right("bnfold", "weight-norm", 1)


@pytest.mark.parametrize("tool", [FX, HAND])
def test_torch_fx_loses_a_forward_hook_of_the_batchnorm(tool: str) -> None:
    assert_wrong(tool, "hook-on-bn")
    assert_right("bnfold", "hook-on-bn", 1)


@pytest.mark.parametrize("tool", [FX, AO, HAND])
def test_a_forward_hook_of_the_convolution_gets_other_numbers_from_peers(tool: str) -> None:
    assert_wrong(tool, "hook-on-conv")
    assert_right("bnfold", "hook-on-conv", 1)


@pytest.mark.parametrize("tool", [AO, HAND])
def test_a_transposed_convolution_with_groups_is_more_than_peers_can_fold(tool: str) -> None:
    assert outcome(tool, "transposed").kind == "ERROR"
    assert outcome(tool, "depthwise-transposed").kind == "BROKEN"  # its weight has C times too many elements
    assert_right("bnfold", "transposed", 0)
    assert_right("bnfold", "depthwise-transposed", 0)


def test_torchscript_keeps_the_sizes_that_it_was_traced_with() -> None:
    assert_wrong(FREEZE, "fixed-sizes")
    assert_right("bnfold", "fixed-sizes", 0)


@pytest.mark.parametrize("tool", [FX, FREEZE, AO, HAND])
def test_tied_weights_are_no_trouble_for_peers_that_write_new_ones(tool: str) -> None:
    assert_right(tool, "tied", 0)
    assert_right("bnfold", "tied", 1)  # the module's own class would no longer be tied


@pytest.mark.parametrize("key", [case.key for case in CASES])
def test_inductors_freezing_is_never_wrong(key: str) -> None:
    assert outcome(INDUCTOR, key).kind == "right"


def test_a_fold_by_timms_own_class_fails_with_groups() -> None:
    from tests.zoo.vision import _operators  # noqa: PLC0415

    _operators()
    from timm.models.levit import ConvNorm  # noqa: PLC0415

    with pytest.raises(RuntimeError, match="match the broadcast shape"):
        ConvNorm(4, 4, 3, groups=2).eval().fuse()


def test_ultralytics_folds_a_transposed_convolution_with_groups_rightly_by_now() -> None:
    import torch  # noqa: PLC0415

    from tests.zoo.vision import _operators  # noqa: PLC0415

    _operators()
    reason = "ultralytics is not installed (AGPL, so no test asks for it)"
    found = pytest.importorskip("ultralytics.utils.torch_utils", reason=reason)
    case = BY_KEY["transposed"]
    module, x = case.module(), case.inputs()[1]
    expected = module(x)
    module.set_submodule("conv", found.fuse_deconv_and_bn(module.get_submodule("conv"), module.get_submodule("bn")))
    module.set_submodule("bn", torch.nn.Identity())
    assert (module(x) - expected).abs().max() <= 1e-12 * expected.abs().max()
