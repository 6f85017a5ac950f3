"""Steps of random modules that have weights: linear layers and BatchNorms, each in the ways that users have written."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.random_modules import Step, Writer, drawn

_LINEAR = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
#: A hook before the layer that computes its weight from two others.
_PRUNED = "prune.l1_unstructured({}, name='weight', amount=0.3)"
#: A hook behind the layer that changes what it gives.
_HOOKED = "{}.register_forward_hook(doubled)"


def linear(w: Writer, x: str) -> str:
    """A convolution, transposed sometimes, or Linear; now and then one that is there already."""
    again = _again(w, _LINEAR)
    return w.step(f"{again}({x})") if again else drawn(w, LINEAR_WAYS)(w, x)


def norm(w: Writer, x: str) -> str:
    """A BatchNorm; now and then one that is there already."""
    again = _again(w, (_BatchNorm,))
    return w.step(f"{again}({x})") if again else drawn(w, NORM_WAYS)(w, x)


def _again(w: Writer, kinds: tuple[type, ...]) -> str | None:
    written = [name for name, part in w.net.named_children() if isinstance(part, kinds)]
    live = [name for name in written if any(line.startswith(f"self.{name} =") for line in w.init)]
    return f"self.{w.pick(*live)}" if live and w.chance(0.1) else None


def _text(w: Writer, x: str) -> str:
    shape = w.values[x].shape
    if len(shape) == 2 or (len(shape) == 3 and w.chance(0.4)):
        return f"nn.Linear({shape[-1]}, {w.pick(3, 4, 6)}, bias={w.chance(0.6)})"
    dims, c, out = len(shape) - 2, shape[1], w.pick(3, 4, 6)
    kernel, pad = w.pick(1, 2, 3), w.pick(0, 1)
    groups = w.pick(1, 1, *(g for g in (2, 3, c) if c % g == 0 and out % g == 0))
    common = f"{c}, {out}, {kernel}, stride={w.pick(1, 1, 2)}, groups={groups}, bias={w.chance(0.5)}"
    if w.chance(0.2):
        return f"nn.ConvTranspose{dims}d({common}, padding={min(pad, kernel - 1)})"
    mode = w.pick("zeros", "zeros", "zeros", "reflect", "circular", "replicate") if pad and dims < 3 else "zeros"
    return f"nn.Conv{dims}d({common}, padding={pad}, padding_mode={mode!r})"


def _plain(w: Writer, x: str) -> str:
    return w.step(f"{w.layer(_text(w, x))}({x})")


def _weight_normed(w: Writer, x: str) -> str:
    return w.step(f"{w.layer(f'weight_norm({_text(w, x)})')}({x})")


def _spectral(w: Writer, x: str) -> str:
    return w.step(f"{w.layer(f'spectral_norm({_text(w, x)})')}({x})")


def _hooked(w: Writer, x: str) -> str:
    return w.step(f"{w.layer(_text(w, x), _HOOKED)}({x})")


def _pruned(w: Writer, x: str) -> str:
    return w.step(f"{w.layer(_text(w, x), _PRUNED)}({x})")


def _aliased(w: Writer, x: str) -> str:
    """One layer under two names."""
    name = w.layer(_text(w, x))
    w.setup(f"self.alias{len(w.init)} = {name}")
    return w.step(f"{name}({x}) + self.alias{len(w.init) - 1}({x})")


def _functional(w: Writer, x: str) -> str:
    """The layer is never called: the forward pass reads its weight."""
    name = w.layer(_text(w, x))
    layer = w.net.get_submodule(name.removeprefix("self."))
    if not isinstance(layer, _LINEAR[:3]):
        return w.step(f"F.linear({x}, {name}.weight, {name}.bias)" if isinstance(layer, nn.Linear) else f"{name}({x})")
    options = f"{layer.stride}, {layer.padding}, {layer.dilation}, {layer.groups}"
    return w.step(f"F.conv{len(layer.stride)}d({x}, {name}.weight, {name}.bias, {options})")


def _weight_read(w: Writer, x: str) -> str:
    """The layer is called, and its weight read besides."""
    name = w.layer(_text(w, x))
    made = w.step(f"{name}({x})")
    return w.step(f"{made} * {name}.weight.abs().mean()")


def _tied(w: Writer, x: str) -> str:
    text = _text(w, x)
    name, other = w.layer(text), w.layer(text)
    w.setup(f"{other}.weight = {name}.weight")
    return w.step(f"{name}({x}) + {other}({x})")


LINEAR_WAYS: dict[Step, float] = {
    _plain: 20,
    _weight_normed: 1,
    _spectral: 0.3,
    _hooked: 0.6,
    _pruned: 0.6,
    _aliased: 0.5,
    _functional: 0.7,
    _weight_read: 0.7,
    _tied: 0.7,
}


def _dims(w: Writer, x: str) -> tuple[int, int]:
    shape = w.values[x].shape
    return max(len(shape) - 2, 1), shape[1]


def _batch_norm(w: Writer, x: str) -> str:
    dims, c = _dims(w, x)
    affine = w.chance(0.85)
    name = w.layer(f"nn.BatchNorm{dims}d({c}, eps={w.pick(1e-5, 1e-3, 0.1)}, affine={affine})")
    return w.step(f"{name}(input={x})" if w.chance(0.03) else f"{name}({x})")


def _frozen(w: Writer, x: str) -> str:
    return w.step(f"{w.layer(f'Frozen({_dims(w, x)[1]})')}({x})")


def _with_activation(w: Writer, x: str) -> str:
    return w.step(f"{w.layer(f'NormAct({_dims(w, x)[1]}, {w.pick(0.0, 0.1)})')}({x})")


def _functional_norm(w: Writer, x: str) -> str:
    dims, c = _dims(w, x)
    n = w.layer(f"nn.BatchNorm{dims}d({c})")
    return w.step(f"F.batch_norm({x}, {n}.running_mean, {n}.running_var, {n}.weight, {n}.bias, False, 0.1, {n}.eps)")


def _without_statistics(w: Writer, x: str) -> str:
    dims, c = _dims(w, x)
    return w.step(f"{w.layer(f'nn.BatchNorm{dims}d({c}, track_running_stats=False)')}({x})")


def _synchronised(w: Writer, x: str) -> str:
    return w.step(f"{w.layer(f'nn.SyncBatchNorm({_dims(w, x)[1]})')}({x})")


def _hooked_norm(w: Writer, x: str) -> str:
    dims, c = _dims(w, x)
    return w.step(f"{w.layer(f'nn.BatchNorm{dims}d({c})', _HOOKED)}({x})")


def _read_norm(w: Writer, x: str) -> str:
    dims, c = _dims(w, x)
    name = w.layer(f"nn.BatchNorm{dims}d({c})")
    return w.step(f"{name}({x}) + {name}.running_mean.sum()")


NORM_WAYS: dict[Step, float] = {
    _batch_norm: 15,
    _frozen: 1.2,
    _with_activation: 1.2,
    _functional_norm: 1,
    _without_statistics: 0.6,
    _synchronised: 0.6,
    _hooked_norm: 0.6,
    _read_norm: 0.4,
}
