"""`benchmarks/torch_folders.py`: nothing wrong, inexact or missing passes for right in its tables."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import torch_build, torch_folders, torch_judge, torch_legend, torch_nets, torch_speed, torch_table
from benchmarks.coverage_build import Facts
from benchmarks.coverage_judge import Outcome
from benchmarks.coverage_nets import NETS, Net
from benchmarks.coverage_run import Examined, Limits
from benchmarks.torch_by_inductor import by_inductor
from benchmarks.torch_by_torch import by_freeze
from benchmarks.torch_cases import CASES
from benchmarks.torch_made import Made, NothingToDoError, Tool, calls
from benchmarks.torch_tools import SMALL, WHOLE

UNET = next(net for net in NETS if net.name == "unet")
COLUMNS = {*WHOLE, *SMALL}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("unet")
    facts = torch_build.make(UNET, path)
    (path / "facts.json").write_text(json.dumps(asdict(facts)), encoding="utf-8")
    assert (facts.state, facts.batchnorms) == ("alive", 12)
    return path


def scaled(factor: float, *, only: torch.dtype | None = None) -> Tool:
    """A tool that folds nothing and multiplies every element of a weight."""

    def tool(module: nn.Module, x: Tensor, _pair: tuple[str, str]) -> Made:
        weight = next(module.parameters())
        if only in (None, weight.dtype):
            weight.mul_(factor)
        return Made(module, lambda x: calls(module, x))

    return tool


def judged(tool: Tool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    monkeypatch.setitem(torch_judge.WHOLE, "tool", tool)
    return torch_judge.judge(UNET, "tool", folder)[0]


def test_a_network_that_bnfold_folds_is_right(folder: Path) -> None:
    outcome, made = torch_judge.judge(UNET, "bnfold", folder)
    assert (outcome.kind, outcome.batchnorms) == ("right", 0)
    assert outcome.exact is not None
    assert 0 < outcome.exact < 1e-10
    assert made is not None
    assert made.report is not None
    assert torch_table.cell(outcome).startswith("0 (")


@pytest.mark.parametrize(
    ("factor", "only", "kind"),
    [
        (1.0, None, "right"),
        (1.1, None, "WRONG"),
        (float("nan"), None, "WRONG"),
        (1 + 1e-5, torch.float32, "INACCURATE"),
        (1 + 1e-8, torch.float64, "INEXACT"),
    ],
)
def test_a_wrong_weight_is_never_right(
    folder: Path, monkeypatch: pytest.MonkeyPatch, factor: float, only: torch.dtype | None, kind: str
) -> None:
    outcome = judged(scaled(factor, only=only), folder, monkeypatch)
    assert (outcome.kind, outcome.batchnorms) == (kind, 12)
    assert outcome.is_bad == (kind != "right")
    assert (f"**{kind}**" in torch_table.cell(outcome)) == (kind != "right")


def test_what_a_tool_raises_is_shown_and_what_it_does_not_claim_is_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(*_: object) -> Made:
        raise ValueError("no such thing")

    def nothing(*_: object) -> Made:
        raise NothingToDoError

    outcome = judged(raising, folder, monkeypatch)
    assert (outcome.kind, outcome.detail) == ("ERROR", "ValueError: no such thing")
    assert torch_table.cell(outcome) == "**ERROR**"
    assert judged(nothing, folder, monkeypatch).kind == torch_judge.NOTHING


def test_outputs_that_prove_nothing_are_not_called_right(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("state.pt", "truth.npz"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8")) | {"change": 1e-6}
    (tmp_path / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    outcome = judged(scaled(1.0), tmp_path, monkeypatch)
    assert (outcome.kind, outcome.detail) == ("UNPROVEN", "the outputs are dead")
    assert torch_table.cell(outcome).startswith("UNPROVEN 12 (")


@pytest.mark.filterwarnings("ignore")  # torch warns of itself
def test_batchnorms_are_counted_where_they_are_left_and_where_they_are_not() -> None:
    torch.manual_seed(0)
    both = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid(), nn.BatchNorm2d(4), nn.Tanh())
    both.eval().requires_grad_(False)
    x = torch.randn(2, 3, 9, 9)
    assert calls(both, x) == 2
    assert by_freeze(both, x).left(x) == 1
    assert by_inductor(both, x).left(x) == 1


def test_a_tool_that_dies_on_a_small_module_goes_on_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def process(command: list[str], _limits: Limits) -> tuple[str, float, str]:
        *_, target = command[:4]
        keys = command[4:]
        lines = [json.dumps([key, asdict(Outcome("right", 0))]) for key in keys[:2]]
        with Path(target).open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
        return ("CRASH" if len(keys) > 2 else "done"), 1.0, "Segmentation fault"

    monkeypatch.setattr(torch_folders, "process", process)
    found = torch_folders.small("bnfold", tmp_path, Limits())
    kinds = [found[case.key].kind for case in CASES]
    assert kinds[:6] == ["right", "right", "CRASH", "right", "right", "CRASH"]
    assert len(found) == len(CASES)
    monkeypatch.delattr(torch_folders, "process")
    assert torch_folders.small("bnfold", tmp_path, Limits()) == found  # read from what was kept


def test_a_process_that_leaves_nothing_is_a_crash_and_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_folders, "process", lambda command, limits: ("CRASH", 1.0, "Killed"))
    outcome = torch_folders._folded(UNET, "bnfold", tmp_path, tmp_path / "made.json", Limits())
    assert (outcome.kind, outcome.detail) == ("CRASH", "Killed")
    assert torch_folders.examine(UNET, tmp_path, Limits(), []).trouble == "not built: CRASH, Killed"
    monkeypatch.setattr(torch_folders, "find_spec", lambda package: None)
    row = torch_folders.examine(Net("yolov8n", "ultralytics"), tmp_path, Limits(), [])
    assert "**ultralytics is not installed**" in torch_table.networks([row], {})[1]


def test_the_page_counts_what_is_wrong_and_says_so() -> None:
    cases = {"one": {case.key: Outcome("right", 0) for case in CASES}}
    cases["other"] = cases["one"] | {"plain": Outcome("WRONG", 0, exact=0.25), "tied": Outcome("ERROR", detail="a\nb")}
    *_, wrong, fails = torch_table.small_modules(cases)
    assert wrong[1:] == [f"0 of {len(CASES)}", f"1 of {len(CASES)}"]
    assert fails[1:] == [f"0 of {len(CASES)}", f"1 of {len(CASES)}"]
    text = torch_table.page([Examined(UNET, trouble="not built: CRASH, Killed")], cases)
    assert "**WRONG (0.2)**" in text
    assert "ERROR, a b" in text
    assert "**not built: CRASH, Killed**" in text


ROW = Facts(12, 40, change=0.5, moved=0.0, error=0.0)


def test_a_row_counts_what_is_right_in_float64_and_in_float32() -> None:
    found = {
        "bnfold": Outcome("right", 0, ratio=4.0, exact=1e-10),
        "torch.fx fuse": Outcome("INEXACT", 0, ratio=1.0, exact=1.1e-10),
        "jit.freeze": Outcome("INACCURATE", 0, ratio=4.1, exact=1e-14),
        "own fuse": Outcome("right", 3, ratio=1.0, detail="in float64: TypeError: no such kernel"),
        "inductor freezing": Outcome("TIMEOUT", detail="no result after 900 seconds"),
    }
    text = torch_table.page([Examined(UNET, ROW, outcomes=found)], {})
    assert "| unet (own) | alive | 12 | 2 of 4 | 3 of 4 | 0 (1e-10; 4) |" in text
    assert "* own fuse: 1 right in float32 alone; within 1e-10 in float64 0 of 1, " in text
    assert "* own fuse, unet: right in float32 alone, in float64: TypeError: no such kernel" in text
    assert "3 of 12 BatchNorms left" in text
    assert "* inductor freezing, unet: TIMEOUT, no result after 900 seconds" in text
    dead = Examined(UNET, replace(ROW, change=0.0), outcomes={"bnfold": Outcome("UNPROVEN", 0, ratio=1.0, exact=0.0)})
    assert "| unet (own) | dead | 12 | 0 of 1 | 0 of 1 | UNPROVEN 0 (0e+00; 1) |" in torch_table.page([dead], {})


def test_what_small_modules_show_is_in_the_table_of_networks_too() -> None:
    right = {case.key: Outcome("right", 0) for case in CASES}
    wrong = right | {"plain": Outcome("WRONG", 0, exact=0.25), "tied": Outcome("ERROR"), "linear": Outcome("BROKEN", 0)}
    found = {tool: Outcome("right", 0, ratio=1.0, exact=0.0) for tool in ("bnfold", "torch.fx fuse", "own fuse")}
    rows = [Examined(UNET, ROW, outcomes=found), Examined(replace(UNET, name="other"), ROW)]
    text = torch_table.page(rows, {"bnfold": right, "torch.fx fuse": wrong})
    assert f"| {len(CASES)} small modules | see below |  |  |  | all right | **1 WRONG**, 2 fail | - |" in text
    assert "* own fuse: their package brings none for other." in text


def test_the_page_in_the_repository_is_whole_and_nothing_in_it_is_by_hand() -> None:
    text = (torch_folders._ROOT / "benchmarks" / "TORCH.md").read_text(encoding="utf-8")
    assert f"* {len(torch_nets.TORCH_NETS)} networks, {len(torch_nets.TORCH_NETS)} built, " in text
    assert "0 of their cells not measured." in text
    assert "| not measured" not in text
    assert all(f"| {net.name} (" in text for net in torch_nets.TORCH_NETS)
    assert all(f"| {case.title} |" in text for case in CASES)
    for prose in (torch_legend.LEGEND, torch_legend.LEGEND_SMALL, torch_legend.LUCK):
        assert prose in text
        text = text.replace(prose, "")
    known = ("| ", "|-", "* ", "# ", "## ", "What was said where a tool failed:", "None stays in", "Versions: ")
    assert [line for line in text.splitlines() if line and not line.startswith(known)] == []


def test_the_readme_says_what_the_page_says() -> None:
    page = (torch_folders._ROOT / "benchmarks" / "TORCH.md").read_text(encoding="utf-8")
    readme = " ".join((torch_folders._ROOT / "README.md").read_text(encoding="utf-8").split())
    sums = dict(re.findall(r"^\* ([^:\n]+): .* error; (\d+ of \d+) BatchNorms left", page, re.MULTILINE))
    left = {tool: text.split(" of ")[0] for tool, text in sums.items()}
    exact, ratio = zip(*re.findall(r"at most (\S+); right .*, at most (\S+) times", page), strict=True)
    assert left["jit.freeze"] == left["inductor freezing"]
    for claim in (
        f"{len(torch_nets.TORCH_NETS)} live networks ({sums['bnfold'].split(' of ')[1]} BatchNorms;",
        f"bnfold leaves {left['bnfold']} (",
        f"with `as_graph=True` {left['bnfold as_graph']}",
        f"`torch.jit.freeze` and inductor's freezing {left['jit.freeze']}",
        f"fails on the YOLOs, {sums['torch.fx fuse']}",
        f"exact to {max(map(float, exact)):.0e}",
        f"no channel errs more than {max(map(float, ratio)):.2g} times",
    ):
        assert claim in readme, claim


def test_what_is_not_measured_is_said_to_be_that_and_counts_for_nothing(folder: Path, tmp_path: Path) -> None:
    row = torch_folders.examine(UNET, tmp_path, None, ["bnfold"])
    assert (row.facts, row.trouble) == (None, "not measured")
    known = next(tmp_path.iterdir())
    (known / "facts.json").write_bytes((folder / "facts.json").read_bytes())
    row = torch_folders.examine(UNET, tmp_path, None, ["bnfold"])
    text = torch_table.page([row], {"bnfold": torch_folders.small("bnfold", tmp_path, None)})
    assert "| unet (own) | alive | 12 | 0 of 0 | 0 of 0 | not measured |" in text
    assert "| Conv → BN | not measured |" in text
    assert "bnfold, unet" not in text
    assert "* bnfold:" not in text


def test_a_run_that_is_interrupted_leaves_the_page_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def examine(net: Net, *_: object) -> Examined:
        if net.name == "resnet50":
            raise KeyboardInterrupt
        return Examined(net, trouble="not built: TIMEOUT, it takes too long")

    target = tmp_path / "torch.md"
    monkeypatch.setattr(torch_folders, "examine", examine)
    monkeypatch.setattr(torch_folders, "small", lambda *_: {})
    monkeypatch.setattr("sys.argv", ["torch_folders", "--markdown", str(target), "--cache", str(tmp_path / "cache")])
    with pytest.raises(KeyboardInterrupt):
        torch_folders.main()
    text = target.read_text(encoding="utf-8")
    assert "| resnet18 (timm) | **not built: TIMEOUT, it takes too long** |" in text
    assert "Not in this run: resnet50, " in text


def test_speed_is_a_ratio_within_a_round() -> None:
    class Steps(nn.Module):
        def __init__(self, ticks: int) -> None:
            super().__init__()
            self.ticks = ticks

        def forward(self, x: Tensor) -> Tensor:
            clock["now"] += self.ticks
            return x

    clock = {"now": 0.0}
    found = torch_speed.ratios((Steps(4), Steps(3)), torch.zeros(1), 5, [lambda: clock["now"]])
    assert found == [[0.75] * 5]


def test_what_is_known_of_a_tool_depends_on_its_file_and_on_the_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(torch_folders._ROOT / "benchmarks", tmp_path / "benchmarks")
    monkeypatch.setattr(torch_folders, "_ROOT", tmp_path)

    def changed(name: str) -> set[str]:
        before = {tool: torch_folders._version(tool) for tool in COLUMNS}
        with (tmp_path / "benchmarks" / f"{name}.py").open("a", encoding="utf-8") as file:
            file.write("# changed")
        return {tool for tool in COLUMNS if torch_folders._version(tool) != before[tool]}

    assert len({torch_folders._version(tool) for tool in COLUMNS}) == len(COLUMNS)
    assert changed("torch_tools") == changed("torch_nets") == set()
    assert changed("torch_by_bnfold") == {"bnfold", "bnfold as_graph"}
    assert changed("torch_by_inductor") == {"inductor freezing"}
    assert changed("torch_judge") == changed("torch_made") == COLUMNS


@pytest.mark.skipif(
    find_spec("ultralytics") is None, reason="ultralytics is not installed (AGPL, so nothing here asks for it)"
)
def test_a_yolo_folds_wholly_and_is_as_accurate_as_before(tmp_path: Path) -> None:
    """Exact in float64, and in float32 `error(folded) <= 4 * error(original) + 64u`, channel by channel."""
    examined = torch_folders.examine(torch_nets.BY_NAME["yolov8n"], tmp_path, Limits(), ["bnfold"])
    assert examined.facts is not None, examined.trouble
    assert (examined.facts.state, examined.facts.batchnorms) == ("alive", 57)
    outcome = examined.outcomes["bnfold"]
    assert (outcome.kind, outcome.batchnorms) == ("right", 0), outcome
    assert outcome.exact is not None
    assert outcome.ratio is not None
    assert 0 < outcome.exact < 1e-10
    assert 0 < outcome.ratio <= 4
