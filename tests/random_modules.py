"""Random PyTorch modules, written as Python source: a pure function of a seed and a size.

Each step is tried on real tensors as it is written, so that it fits. Beside the ordinary layers there is what has made
tools wrong: layers called twice, tied and parametrised weights, hooks, numbers changed in place and through views,
weights that the forward pass reads, statistics that are not those of inference, decisions about the data.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

Step: TypeAlias = Callable[["Writer", str], str]

SMALLEST, LARGEST = 3, 14
_HEAD = """\
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune, spectral_norm
from torch.nn.utils.parametrizations import weight_norm
from tests.random_module_parts import Block, Frozen, NormAct, Scale, doubled


class Net(nn.Module):
    def __init__(self):
        super().__init__()
"""


class Misfit(Exception):  # noqa: N818  # no error: the step does not fit the value, another is tried
    """The step that was tried cannot be applied here."""


@dataclass(eq=False)
class Writer:
    """A module under construction, and the values of its forward pass so far.

    Attributes:
        rng: Where every random choice comes from.
        net: The module as far as it is written; its layers are real.
        values: Those that a later line may read, by name.
        init: The lines of `__init__`.
        body: Those of `forward`.
    """

    rng: np.random.Generator
    net: nn.Module
    values: dict[str, Tensor]
    init: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    names: dict[str, Any] = field(default_factory=dict)

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def layer(self, text: str, *after: str) -> str:
        """Write a layer, and what is done to it; where it is."""
        name = f"self.l{len(self.init)}"
        self.setup(f"{name} = {text}", *(line.format(name) for line in after))
        return name

    def setup(self, *lines: str) -> None:
        """Lines of `__init__`, run at once."""
        for line in lines:
            exec(line, self.names | {"self": self.net})
            self.init.append(line)

    def step(self, expression: str) -> str:
        """Write `name = expression`; the name.

        Raises:
            Misfit: It does not run, or gives nothing that can be read on.
        """
        name = f"v{len(self.body)}"
        try:
            with torch.no_grad():
                made = eval(expression, self.names | {"self": self.net} | self.values)
        except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError) as error:
            raise Misfit(str(error)) from error
        if not isinstance(made, Tensor) or not 0 < made.numel() < 20_000 or not made.isfinite().all() or made.ndim < 2:
            raise Misfit(expression)
        self.values[name] = made
        self.body.append(f"{name} = {expression}")
        return name

    def line(self, statement: str) -> None:
        """Write a statement of the forward pass.

        Raises:
            Misfit: It does not run.
        """
        try:
            with torch.no_grad():
                exec(statement, self.names | {"self": self.net}, self.values)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise Misfit(str(error)) from error
        self.body.append(statement)


def drawn(w: Writer, weights: dict[Step, float]) -> Step:
    """One of the steps, by their weights."""
    total = np.cumsum(list(weights.values()))
    return list(weights)[int(np.searchsorted(total, w.rng.random() * total[-1]))]


@dataclass(frozen=True, eq=False)
class RandomModule:
    """A module in eval mode and in float64, what it can be run on, and its source.

    Attributes:
        module: Its forward pass takes an image, and maybe a flag and a number, which have defaults.
        inputs: The image.
        source: The text of its class.
        options: Values of the flag and the number that a caller may give as well.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    source: str
    options: tuple[tuple[Any, ...], ...] = ()


def random_module(seed: int, folder: Path, size: int | None = None) -> RandomModule:
    """The module of that seed; its source is written to a file in `folder`, as a user's would be."""
    from tests import random_module_steps as steps  # noqa: PLC0415

    rng = np.random.default_rng([seed, 3])
    torch.manual_seed(seed)
    shape = steps.input_shape(rng)
    x = torch.randn(*shape, dtype=torch.float64)
    names: dict[str, Any] = {}
    exec(_HEAD.split("class Net", maxsplit=1)[0], names)
    w = Writer(rng, nn.Module().double(), {"x": x}, names=names | {"flag": False, "scale": 1.0})
    torch.set_default_dtype(torch.float64)
    try:
        steps.walk(w, int(rng.integers(SMALLEST, LARGEST)) if size is None else size)
        is_open = any("flag" in line or "scale" in line for line in w.body)
        source = _source(w, steps.returned(w), ", flag=False, scale=1.0" if is_open else "")
        module = _imported(source, folder / f"random_module_{seed}.py")
    finally:
        torch.set_default_dtype(torch.float32)
    steps.enliven(module, seed)
    return RandomModule(module, (x,), source, ((True, 1.0), (False, -2.0)) if is_open else ())


def _source(w: Writer, returned: str, further: str) -> str:
    init = "".join(f"        {line}\n" for line in w.init)
    body = "".join(f"        {line}\n" for statement in w.body for line in statement.splitlines())
    return f"{_HEAD}{init}\n    def forward(self, x{further}):\n{body}        return {returned}\n"


def _imported(source: str, path: Path) -> nn.Module:
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = made  # copies and pickles find the class there
    spec.loader.exec_module(made)
    return made.Net().double().eval()  # type: ignore[no-any-return]
