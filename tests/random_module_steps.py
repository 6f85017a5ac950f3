"""The steps of random modules, and how they are drawn."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.random_module_layers import linear, norm
from tests.random_module_parts import Frozen
from tests.random_modules import Misfit, Step, Writer, drawn


def input_shape(rng: np.random.Generator) -> tuple[int, ...]:
    """Images mostly; sequences, rows, volumes."""
    shapes = [(2, 3, 9, 8), (2, 4, 8, 8), (3, 4, 11), (4, 6), (2, 3, 5, 5, 4)]
    return shapes[int(rng.choice(5, p=[0.4, 0.3, 0.13, 0.12, 0.05]))]


def walk(w: Writer, size: int) -> None:
    """Steps until there are `size` lines: linear layers and BatchNorms with others between."""
    x = "x"
    for _ in range(10 * size):
        if len(w.body) >= size:
            return
        for step in _route(w) if w.chance(0.6) else [drawn(w, OTHERS)]:
            x = _tried(w, step, x)
        if w.chance(0.25):
            x = w.pick(*w.values)


def returned(w: Writer) -> str:
    """The last value, and sometimes others, in a container."""
    names = [name for name in w.values if name != "x"] or ["x"]
    others = [name for name in names[:-1] if w.chance(0.12)]
    all_of = ", ".join([names[-1], *others])
    return f"({all_of},)" if others and w.chance(0.7) else f"[{all_of}]" if others else names[-1]


def enliven(module: nn.Module, seed: int) -> None:
    """Statistics and parameters of no special form: signs, a zero now and then."""
    draw = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, (_BatchNorm, Frozen)):
            for name, low in (("weight", None), ("bias", None), ("running_mean", None), ("running_var", 0.3)):
                tensor = getattr(part, name)
                if tensor is None:
                    continue
                made = torch.randn(tensor.shape, generator=draw, dtype=tensor.dtype)
                with torch.no_grad():
                    tensor.copy_(made if low is None else made.abs() + low)
                    if name == "weight" and seed % 7 == 0:
                        tensor[0] = 0
                    if name == "weight" and seed % 3 == 0:
                        tensor.abs_()


def _route(w: Writer) -> list[Step]:
    between = [drawn(w, CARRIERS) for _ in range(int(w.rng.integers(0, 3)))]
    return [linear, *between, norm] if w.chance(0.7) else [norm, *between, linear]


def _tried(w: Writer, step: Step, x: str) -> str:
    lines, setup, values = len(w.body), len(w.init), dict(w.values)
    try:
        return step(w, x)
    except Misfit:
        del w.body[lines:]
        del w.init[setup:]
        w.values = values
        return x


def _shape(w: Writer, x: str) -> torch.Size:
    return w.values[x].shape


def activation(w: Writer, x: str) -> str:
    return w.step(
        w.pick(
            f"F.relu({x})", f"torch.relu({x})", f"F.leaky_relu({x}, 0.1)", f"F.silu({x})", f"F.relu6({x})",
            f"{x}.clamp(-0.5, 1.5)", f"F.relu({x}.clone(), inplace=True)", f"torch.sigmoid({x})", f"{x}.abs()",
            f"F.dropout({x}, 0.5, self.training)", f"F.hardtanh({x})",
        )
    )  # fmt: skip


def in_place(w: Writer, x: str) -> str:
    """Changes a value that others may have read, or through a view of it."""
    if x == "x" and w.chance(0.8):
        raise Misfit("the user's own input")
    c = _shape(w, x)[1]
    change = w.pick(".add_(0.5)", ".mul_(2.0)", ".relu_()", ".clamp_(min=-0.3)", ".neg_()")
    where = w.pick("", "", f"[:, : {max(c // 2, 1)}]", "[..., 0]", ".transpose(0, 1)", ".detach()")
    w.line(f"{x}{where}{change}")
    return x


def view(w: Writer, x: str) -> str:
    shape = _shape(w, x)
    _n, c = shape[:2]
    half = max(c // 2, 1)
    ways = [f"{x}[:, :{half}]", f"{x}[:, {half}:]", f"{x}.flatten(1)", f"{x}.flip(1)", f"{x}.transpose(1, -1)",
            f"{x}.chunk(2, 1)[0]", f"{x}[:, torch.arange({c} - 1, -1, -1)]", f"{x}.contiguous()", f"{x}[:, ::2]",
            f"{x}.reshape({x}.shape[0], 2, {c} // 2, *{x}.shape[2:]).transpose(1, 2).reshape({x}.shape)",
            f"{x}.unsqueeze(1).squeeze(1)", f"{x}.flatten(1).view_as({x})", f"{x}.float().double()",
            f"{x}[:, :1].expand_as({x})", f"{x}.clone()", f"{x}.detach()", f"torch.split({x}, {half}, 1)[-1]",
            f"{x}.reshape(-1, {c}, *{x}.shape[2:])", f"{x}.permute(0, *range({len(shape) - 1}, 0, -1))"]  # fmt: skip
    return w.step(w.pick(*ways))


def resample(w: Writer, x: str) -> str:
    if len(_shape(w, x)) != 4:
        raise Misfit("no image")
    return w.step(
        w.pick(
            f"F.max_pool2d({x}, 2)", f"F.avg_pool2d({x}, 2)", f"F.avg_pool2d({x}, 3, 1, 1)",
            f"F.avg_pool2d({x}, 3, 2, 1, count_include_pad=False)", f"F.adaptive_avg_pool2d({x}, 1)",
            f"F.interpolate({x}, scale_factor=2.0)", f"F.pixel_shuffle({x}, 2)", f"{x}.mean((2, 3), keepdim=True)",
            f"F.interpolate({x}, scale_factor=2.0, mode='bilinear', align_corners=False)", f"{x}.amax((2, 3))",
            f"F.pad({x}, (1, 1, 1, 0))", f"F.pad({x}, (1, 1, 1, 1), mode='reflect')", f"{x}.mean((2, 3))",
            f"F.pad({x}, (1, 0, 0, 1), value=0.5)", f"{x}.sum(2)", f"F.adaptive_max_pool2d({x}, 2)",
        )
    )  # fmt: skip


def join(w: Writer, x: str) -> str:
    others = [name for name, value in w.values.items() if value.shape == _shape(w, x)]
    y = w.pick(*others)
    return w.step(
        w.pick(
            f"{x} + {y}", f"torch.cat([{x}, {y}], 1)", f"{x} - {y}", f"{x} * torch.sigmoid({y})",
            f"torch.add({x}, {y}, alpha=0.5)", f"torch.stack([{x}, {y}]).sum(0)", f"torch.maximum({x}, {y})",
        )
    )  # fmt: skip


def arithmetic(w: Writer, x: str) -> str:
    c = _shape(w, x)[1]
    return w.step(w.pick(f"{x} * 0.5", f"1.0 - {x}", f"{x} / 3 + 1", f"-{x}", f"{w.layer(f'Scale({c})')}({x})"))


def shared_block(w: Writer, x: str) -> str:
    """A block called once, or twice in a row."""
    shape = _shape(w, x)
    if len(shape) != 4:
        raise Misfit("no image")
    c = shape[1]
    if w.chance(0.5):
        own = w.layer(f"Block({c}, {w.pick(0, 1, 2, 3)})")
        return w.step(f"{own}({own}({x}))" if w.chance(0.2) else f"{own}({x}, rescale={w.chance(0.3)})")
    block = w.layer(f"nn.Sequential(nn.Conv2d({c}, {c}, 3, padding=1), nn.BatchNorm2d({c}), nn.ReLU(inplace=True))")
    return w.step(f"{block}({block}({x}))" if w.chance(0.3) else f"{block}({x})")


def decision(w: Writer, x: str) -> str:
    """About the data: torch.export cannot capture it."""
    shape = _shape(w, x)
    if len(shape) != 4:
        raise Misfit("no image")
    c = shape[1]
    first = w.layer(f"nn.Sequential(nn.Conv2d({c}, {c}, 1), nn.BatchNorm2d({c}))")
    second = w.layer(f"nn.BatchNorm2d({c})")
    w.line(f"if {x}.mean() > {w.pick(-9.0, 0.0, 0.2, 9.0)}:\n    d = {first}({x})\nelse:\n    d = {second}({x})")
    return w.step("d + 0")


def by_the_caller(w: Writer, x: str) -> str:
    """What is computed depends on a flag or a number that the caller gives."""
    if w.chance(0.5):
        return w.step(f"{x} * scale")
    w.line(f"y = {x}\nif flag:\n    y = {w.pick(f'F.relu({x})', f'{x} + 1', *_layers(w, x))}")
    return w.step("y + 0")


def _layers(w: Writer, x: str) -> list[str]:
    """Calls of layers that are there already and keep the shape."""
    written = {line.split(" = ")[0] for line in w.init}
    norms = [f"self.{n}" for n, part in w.net.named_children() if getattr(part, "num_features", 0) == _shape(w, x)[1]]
    return [f"{name}({x})" for name in norms if name in written]


def stored(w: Writer, x: str) -> str:
    """A value or a buffer on the module itself, read again."""
    if w.chance(0.5):
        w.line(f"self.last = {x}")
        return w.step("self.last + 0.5")
    w.setup(
        f"self.register_buffer('b{len(w.init)}', torch.randn(1, {_shape(w, x)[1]}, *[1] * {len(_shape(w, x)) - 2}))"
    )
    return w.step(f"{x} + self.b{len(w.init) - 1}")


CARRIERS: dict[Step, float] = {
    activation: 3,
    view: 3,
    resample: 2,
    join: 2,
    arithmetic: 1.5,
    in_place: 0.7,
    by_the_caller: 0.6,
}
OTHERS: dict[Step, float] = {
    **CARRIERS,
    linear: 3,
    norm: 3,
    join: 3,
    shared_block: 0.7,
    decision: 0.25,
    stored: 0.4,
    in_place: 1,
}


def as_tensors(made: object) -> list[Tensor]:
    """What a forward pass gave, flat."""
    return [made] if isinstance(made, Tensor) else [t for part in made for t in as_tensors(part)]  # type: ignore[attr-defined]
