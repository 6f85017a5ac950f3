"""Recalibration of PyTorch modules against its definition: any topology, batch size, kind of BatchNorm and dtype."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_recalibration_nets import CASES, Net, bn, conv, functional_norm
from zoo.lively import batchnorms
from zoo.vision import _operators

import bnfold
from bnfold.drift import Hindrance
from bnfold.errors import BnfoldError, DataError, ModelError, UsageError
from tests.recalibrated_torch import assert_expected, batches, expected

#: In standard deviations.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def samples(*shapes: tuple[int, ...], count: int = 37, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Images of varying contrast, far from what a fresh module knows."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for shape in shapes or ((3, 7, 6),):
        contrast = torch.randn(count, *[1] * len(shape), generator=generator).exp()
        found.append((3 + contrast * torch.randn(count, *shape, generator=generator)).to(dtype))
    return tuple(found)


def fresh(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The module of a case in eval mode, and data for it."""
    torch.manual_seed(1)
    module = CASES[name].net().eval().to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for norm in batchnorms(module):
            norm.running_mean.add_(0.1 * torch.randn_like(norm.running_mean))
            norm.running_var.mul_(torch.randn_like(norm.running_var).exp())
    return module, samples(*CASES[name].inputs, dtype=dtype)


def recalibrate(module: nn.Module, data: tuple[Tensor, ...], size: int = 8, **options: Any) -> Any:
    example = tuple(x[:2] for x in data)
    return bnfold.recalibrate(module, batches(data, size), example_inputs=example, **options)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_the_statistics_are_those_of_the_definition(name: str, dtype: torch.dtype) -> None:
    module, data = fresh(name, dtype)
    result = recalibrate(module, data)
    assert_expected(result, expected(module, data, CASES[name].order), TOLERANCE[dtype])
    assert (result.report.left, result.report.notes) == ((), ())
    assert (result.report.samples, result.report.batches) == (37, 5)


@pytest.mark.parametrize("size", [1, 4, 32])
@pytest.mark.parametrize("name", ["branches of other depths that meet", "one module on two inputs"])
def test_the_batch_size_does_not_matter(name: str, size: int) -> None:
    for dtype, tolerance in TOLERANCE.items():
        module, data = fresh(name, dtype)
        assert_expected(recalibrate(module, data, size), expected(module, data, CASES[name].order), tolerance)


def test_a_second_recalibration_changes_nothing() -> None:
    module, data = fresh("branches of other depths that meet", torch.float64)
    once = recalibrate(module, data).model
    assert max(entry.largest_drift for entry in recalibrate(once, data).report.recalibrated) == 0.0
    assert max(entry.largest_drift for entry in recalibrate(once, data, 5).report.recalibrated) < 1e-12


def test_bessel_divides_by_one_less() -> None:
    module, data = fresh("a chain", torch.float64)
    wanted = expected(module, data, CASES["a chain"].order, bessel=True)
    assert_expected(recalibrate(module, data, bessel=True), wanted, 1e-10)


@pytest.mark.parametrize("name", ["branches of other depths that meet", "sizes and lists between the levels"])
def test_what_is_kept_on_disk_is_the_same(name: str) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        module, data = fresh(name, dtype)
        held, spilled = recalibrate(module, data), recalibrate(module, data, memory=0)
        for one, other in zip(held.model.state_dict().values(), spilled.model.state_dict().values(), strict=True):
            assert torch.equal(one, other)


def test_what_is_written_in_place_keeps_its_type() -> None:
    def code(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        y += s.conv(x).double()
        return s.b(y)

    module, data = Net(code, conv=conv(4), a=bn(), b=bn()).eval(), samples((4, 6, 6))
    result = recalibrate(module, data)
    assert result.report.notes == ()
    wide = Net(lambda s, x: s.b(s.a(x) + s.conv(x)), conv=module.conv, a=module.a, b=module.b)
    assert_expected(result, expected(wide, data, "ab"), 1e-5)


# Kinds of BatchNorm


def test_a_batchnorm_with_an_activation_is_one() -> None:
    _operators()
    from timm.layers import BatchNormAct2d  # noqa: PLC0415

    data = samples(dtype=torch.float64)
    module = nn.Sequential(conv(), BatchNormAct2d(4), conv(4, 4), BatchNormAct2d(4)).eval().double()
    assert_expected(recalibrate(module, data), expected(module, data, ["1", "3"]), 1e-10)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_frozen_batchnorm_is_one(dtype: torch.dtype) -> None:
    _operators()
    from torchvision.ops import FrozenBatchNorm2d  # noqa: PLC0415

    module, data = nn.Sequential(conv(), FrozenBatchNorm2d(4), conv(4, 4), FrozenBatchNorm2d(4)), samples(dtype=dtype)
    module[1].weight.copy_(torch.tensor([0.5, 2.0, -1.0, 1.5]))
    module = module.eval().to(dtype)
    assert_expected(recalibrate(module, data), expected(module, data, ["1", "3"]), TOLERANCE[dtype])


def test_a_frozen_batchnorm_that_is_called_twice_is_left() -> None:
    _operators()
    from torchvision.ops import FrozenBatchNorm2d  # noqa: PLC0415

    module, (x,) = Net(lambda s, x: s.b(s.a(x) + s.a(-x)), a=FrozenBatchNorm2d(4), b=bn()).eval(), samples((4, 6, 6))
    found = stays(module, (x,))
    assert set(found) == {"a"}
    assert found["a"][0] is Hindrance.NOT_IN_INFERENCE_FORM


def test_a_functional_batchnorm_has_its_buffers_changed() -> None:
    module = Net(lambda s, x: functional_norm(s, x).relu())
    module.register_buffer("mean", torch.zeros(3, dtype=torch.float64))
    module.register_buffer("var", torch.ones(3, dtype=torch.float64))
    (x,) = samples(dtype=torch.float64)
    result = recalibrate(module.eval(), (x,))
    torch.testing.assert_close(result.model.mean, x.mean((0, 2, 3)), rtol=1e-12, atol=0)
    torch.testing.assert_close(result.model.var, x.var((0, 2, 3), correction=0), rtol=1e-12, atol=0)
    assert result.report.recalibrated[0].epsilon == 1e-3


def test_half_precision_is_not_summed_in_half_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 200 + 30 * torch.randn(8, 3, 64, 64, generator=generator)
    for dtype in (torch.float16, torch.bfloat16):
        data = x.to(dtype)
        result = recalibrate(nn.Sequential(nn.BatchNorm2d(3)).eval().to(dtype), (data,), 3)
        wide = data.double()
        assert torch.equal(result.model[0].running_mean, wide.mean((0, 2, 3)).to(dtype))
        assert torch.equal(result.model[0].running_var, wide.var((0, 2, 3), correction=0).to(dtype))
        assert result.report.recalibrated[0].samples == 8 * 64 * 64


def test_a_huge_mean_beside_a_small_deviation_is_right() -> None:
    (x,) = samples((3, 64, 64), count=9)
    data = 1000 + 1e-2 * x
    (entry,) = recalibrate(nn.Sequential(nn.BatchNorm2d(3)).eval(), (data,), 4).report.recalibrated
    variance = data.double().var((0, 2, 3), correction=0).numpy()
    assert np.abs(entry.new.variance / variance - 1).max() < 1e-6


# What changes and what does not


def test_nothing_but_the_statistics_changes_and_the_original_not_at_all() -> None:
    module, data = fresh("a chain")
    before = copy.deepcopy(module.state_dict())
    result = recalibrate(module, data)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    changed = {name for name, tensor in result.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"{path}.{name}" for path in "14" for name in ("running_mean", "running_var")}
    assert type(result.model) is type(module)
    assert not any(part.training for part in result.model.modules())


def test_the_given_module_changes_on_request() -> None:
    module, data = fresh("a chain")
    mean = module[1].running_mean
    result = recalibrate(module, data, inplace=True)
    assert result.model is module
    assert module[1].running_mean is mean
    assert_expected(result, expected(fresh("a chain")[0], data, CASES["a chain"].order), 1e-5)


def test_memory_format_and_data_stay_as_they_are() -> None:
    module, data = fresh("a chain")
    module, kept = module.to(memory_format=torch.channels_last), data[0].clone()
    wide = (data[0].to(memory_format=torch.channels_last),)
    assert_expected(recalibrate(module, wide), expected(module, data, CASES["a chain"].order), 1e-5)
    assert torch.equal(data[0], kept)


def test_the_result_normalises_the_data() -> None:
    module, data = fresh("one module at two depths", torch.float64)
    result = recalibrate(module, data)
    with torch.no_grad():
        y = result.model(*data)
    beta, gamma = module.get_submodule("c").bias, module.get_submodule("c").weight
    torch.testing.assert_close(y.mean((0, 2, 3)), beta.detach(), atol=1e-9, rtol=0)
    torch.testing.assert_close(y.std((0, 2, 3), correction=0), gamma.detach().abs(), rtol=1e-4, atol=0)


# What stays, and why


def stays(module: nn.Module, data: tuple[Tensor, ...], **options: Any) -> dict[str, tuple[Hindrance, str]]:
    return {entry.name: (entry.hindrance, entry.detail) for entry in recalibrate(module, data, **options).report.left}


def test_keep_and_only_choose_by_name() -> None:
    module, data = fresh("branches of other depths that meet", torch.float64)
    for options in ({"only": "^[ab]$"}, {"keep": "[cde]"}):
        result = recalibrate(module, data, **options)
        assert_expected(result, expected(module, data, "ab"), 1e-10)
        assert {e.name: e.hindrance for e in result.report.left} == dict.fromkeys("cde", Hindrance.EXCLUDED_BY_CALLER)


def test_a_batchnorm_behind_itself_is_left_and_what_lies_behind_is_not() -> None:
    module = Net(lambda s, x: s.b(s.a(s.conv(s.a(x))).relu()), conv=conv(4), a=bn(), b=bn()).eval().double()
    data = samples((4, 6, 6), dtype=torch.float64)
    result = recalibrate(module, data)
    assert_expected(result, expected(module, data, ["b"]), 1e-10)
    assert [(e.name, e.hindrance) for e in result.report.left] == [("a", Hindrance.SELF_DEPENDENT)] * 2


def test_a_batchnorm_by_batch_statistics_is_left() -> None:
    module = nn.Sequential(bn(track_running_stats=False), bn(), bn()).eval()
    module[1].train()
    (x,) = samples((4, 6, 6))
    found = stays(module, (x,))
    assert set(found) == {"0", "1"}
    assert all(why is Hindrance.NOT_IN_INFERENCE_FORM and "training mode" in detail for why, detail in found.values())


def test_statistics_that_something_else_reads_are_left() -> None:
    def code(s: Any, x: Tensor) -> Tensor:
        return s.b(s.a(x) - s.a.running_mean[:, None, None])

    module, (x,) = Net(code, a=bn(), b=bn()).eval(), samples((4, 6, 6))
    found = stays(module, (x,))
    assert set(found) == {"a"}
    assert "reads its statistics as well" in found["a"][1]


def test_buffers_of_one_storage_are_not_taken_for_shared_ones() -> None:
    module, data = fresh("a chain", torch.float64)
    flat = torch.zeros(4, 4, dtype=torch.float64)
    for row, path in enumerate("14"):
        norm: Any = module.get_submodule(path)
        flat[2 * row], flat[2 * row + 1] = norm.running_mean, norm.running_var
        norm.running_mean, norm.running_var = flat[2 * row], flat[2 * row + 1]
    assert_expected(recalibrate(module, data), expected(module, data, ["1", "4"]), 1e-10)


def test_one_statistic_that_two_batchnorms_share_is_left() -> None:
    module, (x,) = nn.Sequential(bn(), conv(4), bn(), bn()).eval(), samples((4, 6, 6))
    module[2].running_var = module[0].running_var
    found = stays(module, (x,))
    assert set(found) == {"0", "2"}
    assert "only one of mean and variance" in found["0"][1]


def test_two_modules_with_the_same_buffers_pool() -> None:
    data = samples((4, 6, 6), dtype=torch.float64)
    module = Net(lambda s, x: s.a(x) + s.b(x.relu()), a=bn(), b=bn(eps=1e-3)).eval().double()
    module.b.running_mean, module.b.running_var = module.a.running_mean, module.a.running_var
    result = recalibrate(module, data)
    both = torch.cat([data[0], data[0].relu()])
    torch.testing.assert_close(result.model.b.running_mean, both.mean((0, 2, 3)), rtol=1e-12, atol=0)
    assert result.model.b.running_mean is result.model.a.running_mean
    assert (result.report.recalibrated[0].calls, result.report.recalibrated[0].epsilon) == (("a", "b"), 1e-5)


def test_a_batchnorm_of_weights_is_left() -> None:
    def code(s: Any, x: Tensor) -> Tensor:
        return s.b(torch.nn.functional.conv2d(x, s.a(s.conv.weight)))

    module, (x,) = Net(code, conv=conv(4), a=bn(), b=bn()).eval(), samples((4, 6, 6))
    assert stays(module, (x,)) == {"a": (Hindrance.NORMALISES_CONSTANT, "")}


def test_a_batchnorm_in_a_body_is_left() -> None:
    def code(s: Any, x: Tensor) -> Tensor:
        y = torch.cond(x.sum() > 0, lambda v: s.a(v).cos(), lambda v: v.sin(), (x,))
        return s.b(y)

    module, (x,) = Net(code, a=bn(), b=bn()).eval().double(), samples((4, 6, 6), dtype=torch.float64)
    result = recalibrate(module, (x,))
    assert [entry.hindrance for entry in result.report.left] == [Hindrance.INSIDE_BODY]
    assert_expected(result, expected(module, (x,), ["b"]), 1e-10)


# Without a graph that can be cut


def by_data(s: Any, x: Tensor) -> Tensor:
    y = s.a(s.conv(x))
    if y.sum() > 1e9:
        y = y * 2
    return s.d(s.c(s.b(y.relu()).relu()))


def in_slices(s: Any, x: Tensor) -> Tensor:
    y = s.a(s.conv(x)).clone()
    y[:, :1] *= 2
    return s.d(s.c(s.b(y)))


@pytest.mark.parametrize("code", [by_data, in_slices])
@pytest.mark.parametrize("size", [1, 8])
def test_a_module_without_such_a_graph_is_run_once_for_each_batchnorm(code: Any, size: int) -> None:
    module = Net(code, conv=conv(), a=bn(), b=bn(), c=nn.SyncBatchNorm(4), d=bn()).eval().double()
    data = samples(dtype=torch.float64)
    result = recalibrate(module, data, size)
    assert_expected(result, expected(module, data, "abcd"), 1e-10)
    (note,) = result.report.notes
    assert note.endswith("so the module was run once for each BatchNorm")


@pytest.mark.parametrize("method", ["batch", "ema"])
def test_the_other_methods_give_the_same_with_and_without_a_graph(method: str) -> None:
    data = samples(dtype=torch.float64)
    parts = {"conv": conv(), "a": bn(), "b": bn(), "c": bn(), "d": bn()}
    whole = Net(lambda s, x: s.d(s.c(s.b(s.a(s.conv(x)).relu()).relu())), **parts).eval().double()
    with_graph, without = recalibrate(whole, data, method=method), recalibrate(
        Net(by_data, **parts).eval(), data, method=method
    )  # fmt: skip
    assert (with_graph.report.notes == ()) != (without.report.notes == ())
    for one, other in zip(with_graph.model.state_dict().values(), without.model.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_without_a_graph_what_is_called_twice_is_left() -> None:
    module = Net(lambda s, x: by_data(s, s.a(s.a(x))), conv=conv(), a=bn(), b=bn(), c=bn(), d=bn())
    module.conv = conv(4)
    found = stays(module.eval(), samples((4, 6, 6)))
    assert set(found) == {"a"}
    assert found["a"][0] is Hindrance.SELF_DEPENDENT


def test_without_a_graph_the_order_must_not_depend_on_the_data() -> None:
    def code(s: Any, x: Tensor) -> Tensor:
        return s.b(s.a(x)) if x.sum() > 0 else s.a(s.b(x))

    module, (x,) = Net(code, a=bn(), b=bn()).eval(), samples((4, 6, 6))
    recalibrate(module, (x.abs(),))
    with pytest.raises(ModelError, match="depends on the data"):
        recalibrate(module, (torch.cat([x[:2].abs(), -x.abs()]),))


def test_a_forward_pass_that_writes_its_buffers_is_refused() -> None:
    def code(s: Any, x: Tensor) -> Tensor:
        s.count += 1
        return s.a(x * s.count)

    module = Net(code, a=bn()).eval()
    module.register_buffer("count", torch.zeros(()))
    with pytest.raises(ModelError, match="writes count"):
        recalibrate(module, samples((4, 6, 6)))
    assert module.count == 0


@pytest.mark.parametrize(("size", "fits"), [(1, False), (4, True)])
def test_what_holds_for_other_sizes_only_is_no_graph_of_this_one(size: int, fits: bool) -> None:
    """torch.export never takes a size of 1 for another; 36 samples leave no rest that is a batch of one."""
    module = Net(lambda s, x: s.a(x * 2 if x.shape[0] == 1 else x), a=bn()).eval().double()
    data = samples((4, 6, 6), count=36, dtype=torch.float64)
    if fits:
        assert_expected(recalibrate(module, data, size), expected(module, data, ["a"]), 1e-10)
    else:
        with pytest.raises(ModelError, match="does not hold for inputs of shape 1x4x6x6"):
            recalibrate(module, data, size)


# What is refused


@pytest.mark.parametrize(
    ("change", "error", "message"),
    {
        "training": (lambda m, _: m.train(), ModelError, "training mode"),
        "nan": (lambda _, x: x[20].fill_(float("nan")), DataError, "batch 2, sample 4"),
        "overflow": (lambda m, _: m[0].weight.fill_(3e38), DataError, "1: values that are not finite"),
    }.values(),
)
def test_a_fault_is_one_error_and_nothing_changes(change: Any, error: type[BnfoldError], message: str) -> None:
    module, (x,) = fresh("a chain")
    with torch.no_grad():
        change(module, x)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(error, match=message):
        recalibrate(module, (x,), inplace=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_data_must_fit_the_module() -> None:
    module, (x,) = fresh("a chain")
    for wrong, message in ((x[:, :2], "8x2x7x6"), (x.long(), "takes float32 and the data is int64"), (x[:9], "")):
        if message:
            with pytest.raises(DataError, match=message):
                bnfold.recalibrate(module, [wrong[:8]], example_inputs=(x[:2],))
        else:
            recalibrate(module, (wrong,))
    with pytest.raises(DataError, match="too few"):
        recalibrate(Net(lambda s, x: s.a(x), a=nn.BatchNorm1d(4)).eval(), (torch.randn(9, 4),))
    with pytest.raises(DataError, match="no batch"):
        bnfold.recalibrate(module, [], example_inputs=(x[:2],))


def test_a_module_needs_example_inputs_and_an_onnx_model_takes_none() -> None:
    module, (x,) = fresh("a chain")
    with pytest.raises(UsageError, match="needs example_inputs"):
        bnfold.recalibrate(module, [x])
    with pytest.raises(UsageError, match="one place for their statistics"):
        recalibrate(module, (x,), unshare="all")
    with pytest.raises(UsageError, match="for PyTorch modules"):
        bnfold.recalibrate("model.onnx", [x], example_inputs=(x,))


def test_batches_may_be_dicts_tuples_arrays_or_a_function() -> None:
    module, (x, z) = fresh("one module on two inputs", torch.float64)
    pairs = batches((x, z), 8)
    forms: list[Any] = [
        [{"series": b, "image": a} for a, b in pairs],
        iter(pairs),
        lambda: ([a.numpy(), b.numpy()] for a, b in pairs),
    ]
    for form in forms:
        result = bnfold.recalibrate(module, form, example_inputs=(x[:2], z[:2]))
        assert_expected(result, expected(module, (x, z), ["one", "b"]), 1e-10)


def test_whole_numbers_stay_whole_numbers() -> None:
    module = Net(lambda s, x: s.a(s.table(x).transpose(1, 2)), table=nn.Embedding(9, 4), a=nn.BatchNorm1d(4)).eval()
    tokens = torch.randint(0, 9, (37, 5), generator=torch.Generator().manual_seed(0))
    result = bnfold.recalibrate(module.double(), list(tokens.split(8)), example_inputs=(tokens[:2],))
    assert_expected(result, expected(module, (tokens,), ["a"]), 1e-10)
    with pytest.raises(DataError, match="takes int64 and the data is float32"):
        bnfold.recalibrate(module, [tokens.float()], example_inputs=(tokens[:2],))


def test_inputs_in_lists_and_dicts_are_called_by_their_place() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = bn()

        def forward(self, batch: dict[str, list[Tensor]], scale: float) -> Tensor:
            found: Tensor = self.a(batch["views"][0] * scale + batch["views"][1])
            return found

    module, (x,) = Nested().eval().double(), samples((4, 6, 6), dtype=torch.float64)
    data = [{"batch_views_0": part, "batch_views_1": -part} for part in x.split(8)]
    result = bnfold.recalibrate(module, data, example_inputs=({"views": [x[:2], x[:2]]}, 3.0))
    torch.testing.assert_close(result.model.a.running_mean, 2 * x.mean((0, 2, 3)), rtol=1e-12, atol=0)


def test_pairs_of_the_wrong_size_are_refused() -> None:
    module, (x, z) = fresh("one module on two inputs")
    with pytest.raises(DataError, match="yields 1 arrays and the model has 2 inputs"):
        bnfold.recalibrate(module, [x], example_inputs=(x[:2], z[:2]))
