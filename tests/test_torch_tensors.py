"""Tensors between two parts of a model: as arrays and back they are the same; their moments are those of the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bnfold.frontends import torch_tensors
from bnfold.frontends.torch_tensors import moments_of, to_array, to_tensor
from bnfold.moments import ChannelMoments

VALUES: dict[str, Any] = {
    **{str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in
       (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.float8_e4m3fn)},
    "strides": torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
    "one number everywhere": torch.ones(1, 3).expand(4, 3),
    "a conjugate": torch.tensor([1 + 2j]).conj(),
    "without axes": torch.tensor(3.0),
    "without numbers": torch.zeros(0, 3),
    "a list": [torch.ones(2), torch.zeros(3, dtype=torch.bfloat16)],
    "a size": 7,
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_what_becomes_an_array_becomes_the_same_tensor_again(name: str) -> None:
    value = VALUES[name]
    back = to_tensor(to_array(value), value)
    for one, other in zip(value, back, strict=True) if isinstance(value, list) else [(value, back)]:
        assert type(one) is type(other)
        if isinstance(one, Tensor):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            wide = torch.complex128 if one.is_complex() else torch.float64
            assert torch.equal(one.to(wide), other.to(wide))


def test_nothing_is_copied_where_both_can_share_it() -> None:
    for value in (torch.ones(2, 3), torch.ones(2, dtype=torch.bfloat16)):
        assert to_tensor(to_array(value), value).data_ptr() == value.data_ptr()


def test_an_array_that_must_not_be_written_is_copied() -> None:
    array = np.ones(3)
    array.setflags(write=False)
    assert to_tensor(array, torch.ones(1)).data_ptr() != array.ctypes.data
    assert torch.equal(
        to_tensor(np.arange(3.0)[::-1], torch.ones(1)), torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64)
    )


@pytest.mark.parametrize("part", [1, 100, 1 << 23])
def test_the_moments_of_parts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setattr(torch_tensors, "_PART", part)
    x = 1e4 + torch.randn(7, 3, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, wanted = moments_of(x), ChannelMoments.of(x.movedim(1, -1).reshape(-1, 3).numpy())
    assert found.count == wanted.count == 70
    np.testing.assert_allclose(found.mean, wanted.mean, rtol=1e-15)
    np.testing.assert_allclose(found.m2, wanted.m2, rtol=1e-12)
    assert moments_of(x[:0]).count == 0
