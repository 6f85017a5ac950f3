"""Paths of modules in the metadata of a captured graph."""

from __future__ import annotations

import pytest

from bnfold.frontends.torch_paths import restored

KNOWN = {"", "a", "a.block", "a.block.conv", "a.block.conv.inner", "conv", "b", "b.norm"}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (["", "a", "a.block", "a.block.conv"], ["", "a", "a.block", "a.block.conv"]),
        (["", "a.block", "b", "b.norm"], ["", "a.block", "b", "b.norm"]),  # a module of another's, called within
        (["", "b", "norm"], ["", "b", "b.norm"]),
        (["", "b@1", "norm@2"], ["", "b@1", "b.norm@2"]),
        (["", "a", "block", "block.conv"], ["", "a", "a.block", "a.block.conv"]),
        (["", "a", "block", "block.conv", "block.conv.inner"],
         ["", "a", "a.block", "a.block.conv", "a.block.conv.inner"]),
        (["", "a.block", "conv"], ["", "a.block", "conv"]),  # known as it is: parameters tell whether it is that one
        (["", "b", "nowhere"], ["", "b", "nowhere"]),
    ],
)  # fmt: skip
def test_what_is_written_as_seen_from_a_module_is_found_from_the_root(written: list[str], expected: list[str]) -> None:
    stack = {f"key{i}": (path, "Class") for i, path in enumerate(written)}
    assert restored(stack, KNOWN) == {f"key{i}": (path, "Class") for i, path in enumerate(expected)}
