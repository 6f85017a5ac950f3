"""Which execution providers are meant: those that are named, or with "all" every one that this onnxruntime has."""

from __future__ import annotations

from collections.abc import Sequence

from bnfold.runtime import PROVIDERS, require

#: In the place of a provider's name.
ALL = "all"


def each_provider(named: Sequence[str]) -> tuple[str, ...]:
    """The providers that are meant, each once, in the order in which they are named.

    Args:
        named: "cpu", "cuda", or "all" for those of them that this onnxruntime was built with.

    Raises:
        MissingPackageError: "all" is asked for, and onnxruntime is not installed.
    """
    if ALL not in named:
        return tuple(dict.fromkeys(named))
    available = require("cpu").get_available_providers()
    return tuple(name for name, official in PROVIDERS.items() if official in available)
