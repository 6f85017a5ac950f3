"""torch.export archives: ordinary ones are read as torch does, and none runs code of whoever made it."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch_archives as archives
from torch import Tensor, nn
from torch_file_models import live, sample
from torch_models import sample as numbers

from bnfold import torch_files
from bnfold.errors import BnfoldError, ModelError, UsageError
from bnfold.frontends import torch_archive_text as text


class Plain(nn.Module):
    """Few operators, so that it is exported soon."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).flatten(1)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return archives.archive(tmp_path_factory.mktemp("good") / "good.pt2", Plain().eval(), torch.randn(2, 3, 6, 6))


def hostile(good: Path, folder: Path, name: str) -> tuple[Path, Path]:
    """The archive that hides something, and the file that it makes if it can."""
    target = folder / "touched"
    (folder / "hostile_enum.py").write_text(
        f"import enum\nimport pathlib\npathlib.Path({str(target)!r}).touch()\n\nclass E(enum.Enum):\n    A = 1\n",
        encoding="utf-8",
    )
    bad = Path(shutil.copy(good, folder / "bad.pt2"))
    return archives.changed(bad, lambda entries: archives.HOSTILE[name](entries, target)), target


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies beside the archive can be imported, as where bnfold is run in its folder."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "hostile_enum", raising=False)


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize("name", archives.HOSTILE)
def test_no_archive_runs_code_of_whoever_made_it(good: Path, tmp_path: Path, name: str) -> None:
    path, target = hostile(good, tmp_path, name)
    with pytest.raises(UsageError, match="may run code of whoever made it"):
        torch_files.load_module(path)
    assert not target.exists()


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize("name", archives.LIVE)
def test_the_same_archives_do_run_code_when_they_are_trusted(good: Path, tmp_path: Path, name: str) -> None:
    path, target = hostile(good, tmp_path, name)
    with contextlib.suppress(ModelError):  # after the code has run
        torch_files.load_module(path, trust_pickle=True)
    assert target.exists()
    sys.modules.pop("hostile_enum", None)


def test_an_archive_computes_what_was_saved(good: Path, tmp_path: Path) -> None:
    same = archives.changed(Path(shutil.copy(good, tmp_path / "same.pt2")), lambda _: None)
    for path in (good, same):
        x = torch.randn(3, 3, 6, 6)
        assert torch.equal(torch_files.load_module(path)(x), torch.export.load(path).module()(x))


def test_an_archive_is_known_by_its_content(good: Path, tmp_path: Path) -> None:
    renamed = Path(shutil.copy(good, tmp_path / "model.bin"))
    assert not torch_files.load_module(renamed).training


class Varied(nn.Module):
    """Sizes that are computed from sizes, two outputs by name, an inner graph, a constant and an option."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("factor", torch.tensor(2.0))

    def forward(self, x: Tensor, scale: Tensor, *, mode: str = "nearest") -> dict[str, object]:
        with torch.no_grad():
            y = self.conv(x)
        y = torch.nn.functional.interpolate(y, scale_factor=2, mode=mode) * scale * self.factor
        y = torch.nn.functional.gelu(y, approximate="tanh").reshape(x.shape[0], -1)
        y = y * (x.shape[2] // 2) * (x.shape[3] % 3) + torch.tensor(3.0)
        return {"out": y, "sizes": (y.shape[0], torch.einsum("ij,ij->i", y, y))}


@pytest.mark.parametrize("strict", [False, True])
def test_what_ordinary_modules_need_is_allowed(tmp_path: Path, strict: bool) -> None:
    auto = torch.export.Dim.AUTO
    sizes = {"x": {0: auto, 2: auto, 3: auto}, "scale": {0: auto}, "mode": None}
    x, scale = numbers(2, 3, 8, 8, dtype=torch.float32), torch.ones(4, 1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about itself
        program = torch.export.export(
            Varied().eval(), (x, scale), {"mode": "nearest"}, dynamic_shapes=sizes, strict=strict
        )
        torch.export.save(program, tmp_path / "varied.pt2")
    opened = torch_files.open_torch(tmp_path / "varied.pt2")
    assert opened.program is not None
    assert len(opened.program.graph.nodes) == len(program.graph.nodes)


@pytest.mark.parametrize("keep", [0.3, 0.9, -30])
def test_a_damaged_archive_is_one_sentence(good: Path, tmp_path: Path, keep: float) -> None:
    data = good.read_bytes()
    cut = data[: int(keep * len(data))] if keep > 0 else data[:keep]
    (tmp_path / "cut.pt2").write_bytes(cut)
    with pytest.raises(ModelError, match="damaged"):
        torch_files.load_module(tmp_path / "cut.pt2")


def test_an_archive_whose_weights_are_not_those_that_were_written_is_refused(good: Path, tmp_path: Path) -> None:
    data = bytearray(good.read_bytes())
    weight = torch.export.load(good).state_dict["conv.weight"].detach().numpy().tobytes()
    data[data.index(weight) + 5] ^= 1
    (tmp_path / "flipped.pt2").write_bytes(data)
    with pytest.raises(ModelError, match="checksum"):
        torch_files.load_module(tmp_path / "flipped.pt2")


def test_an_archive_of_another_layout_is_one_sentence(good: Path, tmp_path: Path) -> None:
    def without(entries: dict[str, bytes]) -> None:
        del entries["data/weights/model_weights_config.json"]

    path = archives.changed(Path(shutil.copy(good, tmp_path / "less.pt2")), without)
    with pytest.raises(ModelError, match="torch cannot read this archive"):
        torch_files.load_module(path)


def test_the_environment_is_as_it_was(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for before in (None, "0"):
        monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
        if before is not None:
            monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", before)
        torch_files.load_module(good)
        assert os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD") == before


# The texts, form by form


@pytest.mark.parametrize(
    "good_text",
    [
        "s0",
        "2*s0 + 1",
        "Mul(Integer(3), Symbol('s0', positive=True, integer=True))",
        "FloorDiv(s1, 2) - Max(1, s2)",
        "(s0 >= 2) & (s1 < 4)",
    ],
)
def test_sizes_are_arithmetic(good_text: str) -> None:
    assert text.is_expression(good_text)


@pytest.mark.parametrize(
    "bad_text",
    [
        "__import__('os')",
        "__import__",
        "().__class__",
        "s0.args",
        "open('x')",
        "eval(s0)",
        "Symbol('a b')",
        "[s0 for s0 in s1]",
        "(lambda: s0)()",
        "s0\n+ 1",
        "f'{s0}'",
        "Max(*s0)",
        "s0 if",
        "",
    ],
)
def test_sizes_that_are_more_are_refused(bad_text: str) -> None:
    assert not text.is_expression(bad_text)


@pytest.mark.parametrize(
    "good_text", ["L['x'].size()[0] >= 2", "((-2) + L['a.b'].size()[2]) != 1", "math.floor(L['x'].stride()[0]/2) < 4"]
)
def test_guards_compare_sizes(good_text: str) -> None:
    assert text.is_guard(good_text)


@pytest.mark.parametrize(
    "bad_text",
    [
        "__import__('os').system('x') == 0",
        "L['x'].apply_(print) == 0",
        "L['x']['\"+x+\"'] == 0",
        "torch.load('x') == 0",
        "math.__loader__ == 0",
        "open('x').size() == 0",
        "L['x'].size == (y := 0)",
        "L['x'].size()[0] > 0\n",
    ],
)
def test_guards_that_do_more_are_refused(bad_text: str) -> None:
    assert not text.is_guard(bad_text)


@pytest.mark.parametrize(
    "name",
    ["torch.ops.aten.conv2d.default", "_operator.getitem", "math.ceil", "torch.sym_max", "torch.ops.higher_order.cond"],
)
def test_operators_that_compute_are_known(name: str) -> None:
    assert text.is_known_operator(name)


@pytest.mark.parametrize(
    "name",
    [
        "torch.os.system",
        "torch.load",
        "torch.ops.load_library",
        "torch.ops.aten.save.default",
        "torch.ops.aten.from_file",
        "torch.ops.debugprims.load_tensor.default",
        "torch.ops.higher_order.triton_kernel_wrapper_mutation",
        "_operator.attrgetter",
        "_operator.methodcaller",
        "math.__loader__.x",
        "torch.sym_max.__globals__",
        "#executorch:x",
        "torch.ops.aten.add.Tensor\n",
    ],
)
def test_operators_that_reach_out_are_not(name: str) -> None:
    assert not text.is_known_operator(name)


def test_trees_hold_names_only() -> None:
    assert text.is_tree('[1, {"type": "builtins.dict", "context": "[\\"a\\"]", "children_spec": []}]')
    assert not text.is_tree('[1, {"type": "builtins.dict", "context": "[\\"a=f()\\"]", "children_spec": []}]')
    assert not text.is_tree('[1, {"type": "x", "context": "{\\"__enum__\\": true, \\"fqn\\": \\"os:x\\"}"}]')
    assert not text.is_tree("no json")


def test_an_archive_takes_no_factory(good: Path) -> None:
    with pytest.raises(BnfoldError, match="needs no --model"):
        torch_files.load_module(good, model="torch_file_models:net")
    assert live()(sample()).shape == (2, 4)
