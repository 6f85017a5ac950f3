"""The columns of the tables of folders of PyTorch modules; each tool gets a module of its own, in eval mode."""

from __future__ import annotations

from benchmarks.torch_by_bnfold import by_bnfold, by_bnfold_as_graph
from benchmarks.torch_by_inductor import by_inductor
from benchmarks.torch_by_package import by_own
from benchmarks.torch_by_torch import by_freeze, by_fuse_modules, by_fx, by_hand
from benchmarks.torch_made import Tool

#: The columns of the table of networks.
WHOLE: dict[str, Tool] = {
    "bnfold": by_bnfold,
    "bnfold as_graph": by_bnfold_as_graph,
    "torch.fx fuse": by_fx,
    "jit.freeze": by_freeze,
    "inductor freezing": by_inductor,
    "own fuse": by_own,
}
#: The columns of the table of small modules.
SMALL: dict[str, Tool] = {
    **{name: tool for name, tool in WHOLE.items() if name != "own fuse"},
    "ao fuse_modules": by_fuse_modules,
    "nn.utils.fusion": by_hand,
}
