"""What PyTorch files say of how they came about, and that nothing else of them is different for it."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
import torch_file_models as models
from cli_run import Run
from test_cli_torch import NET, SHAPE, exported, state
from torch import nn

import bnfold
from bnfold.errors import ModelError
from bnfold.frontends.torch_marks import FOLDED, RECALIBRATED, folded, marked_state, recalibrated
from bnfold.frontends.torch_save import save_state


def marks_in(path: Path) -> dict[str, str]:
    """What the file says, each kind by its own loader."""
    if path.suffix == ".safetensors":
        with safetensors.safe_open(path, "pt") as file:
            found = dict(file.metadata())
        assert found.pop("format") == "pt"
        return found
    if path.suffix == ".pt2":
        extra = {"bnfold.json": ""}
        torch.export.load(path, extra_files=extra)
        return json.loads(extra["bnfold.json"])  # type: ignore[no-any-return]
    entries: dict[str, Any] = dict(torch.load(path, weights_only=True)._metadata[""])
    assert entries.pop("version") == 1
    return entries


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".pt2"])
@pytest.mark.parametrize(("flags", "says"), [((), "torch"), (("--no-verify",), "no")])
def test_a_folded_file_says_whether_it_was_verified(
    run: Run, tmp_path: Path, suffix: str, flags: tuple[str, ...], says: str
) -> None:
    output = tmp_path / f"fused{suffix}"
    outcome = run(state(tmp_path), "-o", output, *NET, *SHAPE, *flags)
    assert outcome.code == 0
    assert ("not verified" in outcome.out) is bool(flags)
    assert marks_in(output) == {"bnfold": FOLDED, "bnfold.verified": says}


def test_an_archive_that_was_folded_says_so_and_can_be_read_again(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "fused.pt2"
    assert run(exported(tmp_path), "-o", output, "--no-verify").code == 0
    assert marks_in(output)["bnfold.verified"] == "no"
    assert isinstance(bnfold.load_module(output), nn.Module)  # nothing in it is taken for code


def test_the_marks_do_not_disturb_torch(tmp_path: Path) -> None:
    net = models.live()
    save_state(net, tmp_path / "net.pt", folded(()))
    found = torch.load(tmp_path / "net.pt", weights_only=True)
    fresh = models.net()
    assert str(fresh.load_state_dict(found, strict=True)) == "<All keys matched successfully>"
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), net.parameters(), strict=True))
    assert list(found) == list(net.state_dict())
    assert found._metadata.keys() == net.state_dict()._metadata.keys()  # type: ignore[attr-defined]
    assert "bnfold" not in net.state_dict()._metadata[""]  # type: ignore[attr-defined]


def test_a_state_dict_without_metadata_gets_marks_too() -> None:
    class Plain(nn.Linear):
        def state_dict(self, *_args: Any, **_kwargs: Any) -> Any:
            return {"weight": self.weight}

    for given in (Plain(2, 3), nn.Linear(2, 3)):
        found: Any = marked_state(given, recalibrated())
        assert isinstance(found, OrderedDict)
        assert found._metadata[""]["bnfold"] == RECALIBRATED
    assert list(marked_state(Plain(2, 3), {})) == ["weight"]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_load_folded_can_insist_that_the_fold_was_verified(tmp_path: Path, suffix: str) -> None:
    net = bnfold.fold(models.live(), example_inputs=(models.sample(),)).module
    path = tmp_path / f"fused{suffix}"
    for marks, says in (
        (folded(("torch",)), ""),
        (folded(()), "the fold was not verified"),
        (recalibrated(), "nothing in it says that the fold was verified"),
        ({}, "nothing in it says that the fold was verified"),
    ):
        save_state(net, path, marks)
        assert isinstance(bnfold.load_folded(models.net(), path).bn, nn.Identity)
        if says:
            with pytest.raises(ModelError, match=f"{says}; compare it with the original"):
                bnfold.load_folded(models.net(), path, require_verified=True)
        else:
            assert isinstance(bnfold.load_folded(models.net(), path, require_verified=True).bn, nn.Identity)


def test_a_state_dict_of_somebody_else_says_nothing(tmp_path: Path) -> None:
    net = bnfold.fold(models.live(), example_inputs=(models.sample(),)).module
    torch.save({"state_dict": dict(net.state_dict())}, tmp_path / "fused.pt")
    with pytest.raises(ModelError, match="nothing in it says"):
        bnfold.load_folded(models.net(), tmp_path / "fused.pt", require_verified=True)
