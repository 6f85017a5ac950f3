"""Sessions that compute something else under a setting: what onnxruntime's optimiser, or TF32, might do to a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import pytest

from bnfold import checking
from bnfold.errors import ProviderError
from bnfold.rerunning import Opener, prepare_rerun
from bnfold.runtime import Session, open_session

Array = np.ndarray[Any, Any]
Change = Callable[[str, Array], Array]


@dataclass(frozen=True)
class Setting:
    """One model under one setting: whether it still has a BatchNorm, and what is switched on."""

    folded: bool
    optimised: bool
    tf32: bool


@dataclass(frozen=True)
class Spoilt:
    """An `onnxruntime.InferenceSession` that changes what it computes."""

    handle: Any
    change: Change

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        found = self.handle.run(names, feeds)
        return [np.asarray(self.change(name, array)) for name, array in zip(names, found, strict=True)]


def opener(change: Callable[[Setting], Change | str | None]) -> Opener:
    """Sessions on the CPU whatever is asked for; a text is why the model cannot be run, None changes nothing."""

    def opened(
        model: onnx.ModelProto, _provider: str = "cpu", *, optimised: bool = False, tf32: bool = False
    ) -> Session:
        folded = all(node.op_type != "BatchNormalization" for node in model.graph.node)
        found = change(Setting(folded, optimised, tf32))
        if isinstance(found, str):
            raise ProviderError(found, remedy="do without")
        session = open_session(model, optimised=optimised)
        return session if found is None else replace(session, handle=Spoilt(session.handle, found))

    return opened


def use(monkeypatch: pytest.MonkeyPatch, change: Callable[[Setting], Change | str | None]) -> None:
    """Let the check, and nothing else, run on such sessions."""

    def prepared(*given: Any, **named: Any) -> Any:
        return prepare_rerun(*given, **named, opener=opener(change))

    monkeypatch.setattr(checking, "prepare_rerun", prepared)


def folded_alone(change: Change | str) -> Callable[[Setting], Change | str | None]:
    """The optimiser changes the folded model, not the original."""
    return lambda setting: change if setting.optimised and setting.folded else None


def doubled(_name: str, values: Array) -> Array:
    """Plainly wrong numbers of the same type."""
    return np.asarray(values * 2).astype(values.dtype)
