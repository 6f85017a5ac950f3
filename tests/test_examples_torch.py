"""The examples for PyTorch modules do what they say, and say what is wrong where something is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
needs_ultralytics = pytest.mark.skipif(
    find_spec("ultralytics") is None, reason="ultralytics is not installed (AGPL, so nothing here asks for it)"
)


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """An example, run in `folder`. ultralytics imports torchvision, whose operators may be those of another torch."""
    declared = "from tests.zoo.vision import _operators; _operators(); import sys, runpy; sys.argv = sys.argv[1:]; "
    code = f"{declared} runpy.run_path(sys.argv[0], run_name='__main__')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "YOLO_CONFIG_DIR": str(folder), "YOLO_OFFLINE": "true"}
    script, *arguments = command
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(ROOT / "examples" / script), *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip


def test_a_module_is_deployed_and_serves_a_prediction(tmp_path: Path) -> None:
    done = run(tmp_path, "deploy_torch.py", "digits.pt")
    assert done.returncode == 0, done.stderr
    assert "4 of 4 BatchNorms folded, largest error" in done.stdout
    loaded, folded = (int(n) for n in re.findall(r"(?:loaded|folded): (\d+) of 60 digits right", done.stdout))
    assert loaded == folded > 45
    assert "served: the last image is a" in done.stdout
    assert (tmp_path / "digits.pt").exists()


def test_a_checkpoint_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, "deploy_torch.py", "nowhere/digits.pt")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "nowhere" in done.stderr


def test_without_ultralytics_the_example_says_what_to_install() -> None:
    code = "import sys, runpy; sys.modules['ultralytics'] = None; runpy.run_path('examples/yolo_export.py')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.search(r"needs ultralytics, .*AGPL-3\.0: pip install ultralytics", done.stderr)
    assert "Traceback" not in done.stderr


@needs_ultralytics
def test_a_yolo_is_folded_exported_and_finds_the_same_boxes(tmp_path: Path) -> None:
    done = run(tmp_path, "yolo_export.py", "yolov8n.yaml", "yolov8n.onnx", "--size", "64")
    assert done.returncode == 0, done.stderr
    assert "57 of 57 BatchNorms folded and verified" in done.stdout
    same, total = re.search(r"(\d+) of (\d+) boxes are where they were", done.stdout).groups()  # type: ignore[union-attr]
    assert int(same) == int(total) > 3
    assert (tmp_path / "yolov8n.onnx").stat().st_size > 10**6


@pytest.fixture(scope="module")
def example() -> ModuleType:
    pytest.importorskip("ultralytics", reason="ultralytics is not installed (AGPL, so nothing here asks for it)")
    from tests.zoo.vision import _operators  # noqa: PLC0415

    _operators()
    spec = spec_from_file_location("yolo_export", ROOT / "examples" / "yolo_export.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def output(*anchors: tuple[float, float, float, float, float, float]) -> np.ndarray:
    """Centre, size and the scores of two classes of each anchor, as one image's output."""
    return np.array(anchors).T[None]


def test_of_boxes_that_overlap_the_better_one_stays_unless_the_class_differs(example: ModuleType) -> None:
    same = output((10, 10, 4, 4, 0.5, 0), (10, 11, 4, 4, 0.9, 0), (30, 10, 4, 4, 0.3, 0))
    ((corners, classes),) = example.boxes(same)
    assert corners.tolist() == [[8, 9, 12, 13], [28, 8, 32, 12]]
    assert classes.tolist() == [0, 0]
    ((corners, classes),) = example.boxes(output((10, 10, 4, 4, 0.5, 0), (10, 11, 4, 4, 0, 0.9)))
    assert classes.tolist() == [1, 0]


def test_a_box_that_moved_or_changed_its_class_is_not_the_same(example: ModuleType) -> None:
    before = output((10, 10, 4, 4, 0.5, 0), (30, 10, 4, 4, 0.3, 0))
    assert example.matched(before, before) == (2, 2, 1.0)
    moved = output((10, 10.5, 4, 4, 0.5, 0), (30, 10, 4, 4, 0.3, 0))
    total, same, worst = example.matched(before, moved)
    assert (total, same) == (2, 1)
    assert worst == pytest.approx(3.5 / 4.5)
    assert example.matched(before, output((10, 10, 4, 4, 0, 0.5), (30, 10, 4, 4, 0.3, 0)))[1] == 1
