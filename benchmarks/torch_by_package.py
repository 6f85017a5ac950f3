"""Folds a PyTorch module with what the package that the module is from brings along."""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.torch_made import Made, NothingToDoError, of_module


def by_own(module: nn.Module, _x: Tensor, _pair: tuple[str, str] = ("", "")) -> Made:
    """What the module's package brings: `fuse()` of ultralytics, `reparameterize_model` of timm.

    Raises:
        NothingToDoError: The package has nothing for this module.
    """
    if type(module).__module__.startswith("ultralytics"):
        return of_module(module.fuse(verbose=False))  # type: ignore[operator]
    methods = ("fuse", "reparameterize", "switch_to_deploy")
    if not any(hasattr(part, name) for part in module.modules() for name in methods):
        raise NothingToDoError
    from timm.utils.model import reparameterize_model  # noqa: PLC0415

    return of_module(reparameterize_model(module))
