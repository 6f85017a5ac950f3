"""Modules with the order in which their BatchNorms can be recalibrated, for `test_torch_recalibration.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from zoo.functional import Net


class Pair(Net):
    """A function of itself and two inputs."""

    def forward(self, image: Tensor, series: Tensor) -> Any:  # type: ignore[override]
        return self.code(self, image, series)


def conv(inputs: int = 3, outputs: int = 4) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def bn(**options: Any) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(4, **options)


@dataclass(frozen=True)
class Case:
    """A module.

    Attributes:
        net: Makes it.
        order: The paths of its BatchNorms in an order in which they can be computed.
        inputs: The shape of one sample, by input.
    """

    net: Callable[[], nn.Module]
    order: Sequence[str]
    inputs: Sequence[tuple[int, ...]] = ((3, 7, 6),)


def _branches(s: Any, x: Tensor) -> Tensor:
    y = s.act(s.a(s.stem(x)))
    z = s.b(s.left(y))
    z += s.c(s.right(s.act(s.d(s.deep(y)))))
    return s.e(s.drop(s.act(z)).mean((2, 3)))


def _sizes(s: Any, x: Tensor) -> Tensor:
    """Sizes and lists of tensors between the levels."""
    y = s.a(s.one(x))
    height, width = y.shape[2:]
    first, second = y.chunk(2, dim=1)
    z = s.b(torch.cat([second, first], 1) * (height / width)).flatten(2)
    w = z.reshape(x.shape[0], 4, height, width) + torch.cat([first, second], 1)
    return s.c(w.permute(0, 1, 3, 2).contiguous())


CASES = {
    "a chain": Case(
        lambda: nn.Sequential(conv(), bn(), nn.ReLU(inplace=True), conv(4, 4), bn(affine=False), nn.Sigmoid()),
        ["1", "4"],
    ),
    "branches of other depths that meet": Case(
        lambda: Net(
            _branches,
            **{name: conv(3 if name == "stem" else 4, 4) for name in ("stem", "left", "right", "deep")},
            **{name: bn() for name in "abcd"},
            e=nn.BatchNorm1d(4),
            act=nn.ReLU(inplace=True),
            drop=nn.Dropout(0.5),
        ),
        ["a", "b", "d", "c", "e"],
    ),
    "one module on two inputs": Case(
        lambda: Pair(
            lambda s, x, z: s.b(s.one(x).mean((2, 3)) + s.one(z[..., None]).amax((2, 3))), one=bn(), b=nn.BatchNorm1d(4)
        ),
        ["one", "b"],
        ((4, 5, 5), (4, 7)),
    ),
    "one module at two depths": Case(
        lambda: Net(
            lambda s, x: s.c(s.a(x) * s.a(s.g(s.b(s.f(x)).relu()))), f=conv(4), g=conv(4), a=bn(), b=bn(), c=bn()
        ),
        ["b", "a", "c"],
        ((4, 6, 6),),
    ),
    "one value that is observed at two levels": Case(
        lambda: Net(lambda s, x: s.s(-x) + s.s(s.b(s.a(-x)).relu()), s=bn(), a=bn(), b=bn()),
        ["a", "b", "s"],
        ((4, 6, 6),),
    ),
    "sizes and lists between the levels": Case(
        lambda: Net(_sizes, one=conv(), a=bn(), b=bn(), c=bn()),
        ["a", "b", "c"],
    ),
    "rank 2, 3 and 5": Case(
        lambda: Pair(
            lambda s, v, z: s.c(
                s.a(z)[..., None, None] + s.b(v.mean((2, 3, 4)))[..., None, None, None] + s.d(v)[:, :, :1]
            ),
            a=nn.BatchNorm1d(4),
            b=nn.BatchNorm1d(4),
            c=nn.BatchNorm3d(4),
            d=nn.BatchNorm3d(4),
        ),
        ["a", "b", "d", "c"],
        ((4, 2, 3, 4), (4, 9)),
    ),
    "a SyncBatchNorm": Case(
        lambda: nn.Sequential(conv(), nn.SyncBatchNorm(4), nn.Tanh(), nn.SyncBatchNorm(4)), ["1", "3"]
    ),
}


def functional_norm(s: Any, x: Tensor) -> Tensor:
    """A BatchNorm that is no module: only its buffers have a place."""
    return functional.batch_norm(x, s.mean, s.var, None, None, eps=1e-3)
