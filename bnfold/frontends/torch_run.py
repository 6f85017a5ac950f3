"""Runs operators of torch, and says in one sentence what goes wrong in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bnfold.errors import BnfoldError, MachineError, ModelError


@contextmanager
def guarded(where: str) -> Iterator[None]:
    """What torch raises in the block, as an error of bnfold.

    Raises:
        MachineError: The device has too little memory.
        ModelError: Anything else.
    """
    import torch  # noqa: PLC0415

    try:
        yield
    except (BnfoldError, MemoryError):
        raise
    except torch.OutOfMemoryError as error:
        raise MachineError("the device has too little memory", where=where, remedy="give smaller batches") from error
    except Exception as error:  # operators and forward passes may raise anything
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"it cannot be run on this batch: {said}",
            where=where,
            remedy="check that the module takes each batch of the data",
        ) from error
