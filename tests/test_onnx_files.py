"""Files: bad ones are one clear sentence, good ones are written whole or not at all, and no input is ever touched."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_models import PARAMETERS, STATS, parse

import bnfold
from bnfold import drafts
from bnfold.frontends.onnx_files import check_target, load, save

TEXT = f"""(float[N,16,8,8] x) => (float[N,64,4,4] y) <float[4,16,3,3] w, float[64,4,3,3] v, {PARAMETERS}>
    {{ c = Conv(x, w) b = BatchNormalization(c, {STATS}) y = Conv(b, v) }}"""


@pytest.fixture
def model() -> onnx.ModelProto:
    return parse(TEXT)


@pytest.fixture
def file(tmp_path: Path, model: onnx.ModelProto) -> Path:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "model.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture
def external(tmp_path: Path, model: onnx.ModelProto) -> Path:
    (tmp_path / "ext").mkdir()
    path = tmp_path / "ext" / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_file_that_is_not_there_or_is_a_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(bnfold.UsageError, match="there is no such file"):
        load(tmp_path / "nothing.onnx")
    with pytest.raises(bnfold.UsageError, match="this is a folder"):
        load(tmp_path)


@pytest.mark.parametrize(
    "content", [b"not a model\n", b"\x00\x01\xff" * 100, np.random.default_rng(0).bytes(5000), b"{}"]
)
def test_a_file_that_is_no_model_is_a_model_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(bnfold.ModelError, match="not an ONNX model"):
        load(path)


def test_an_empty_file_is_said_to_be_empty(tmp_path: Path) -> None:
    path = tmp_path / "empty.onnx"
    path.touch()
    with pytest.raises(bnfold.ModelError, match="the file is empty"):
        load(path)


def test_a_file_cut_off_anywhere_is_a_model_error(tmp_path: Path, file: Path) -> None:
    whole, path = file.read_bytes(), tmp_path / "cut.onnx"
    for length in [*range(1, len(whole), 97), *range(len(whole) - 40, len(whole))]:
        path.write_bytes(whole[:length])
        with pytest.raises(bnfold.ModelError, match="cut off"):
            load(path)


def test_external_data_that_is_missing_or_cut_off_is_a_model_error(external: Path) -> None:
    data = external.with_name("weights.bin")
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    with pytest.raises(bnfold.ModelError, match=r"weights\.bin is cut off"):
        load(external)
    data.unlink()
    with pytest.raises(bnfold.ModelError, match=r"weights\.bin is missing"):
        load(external)


def test_a_model_with_external_data_is_folded_into_files_of_its_own(external: Path, tmp_path: Path) -> None:
    before = contents(external.parent)
    out = tmp_path / "out"
    out.mkdir()
    save(bnfold.fold(external).model, out / "fused.onnx")
    assert contents(external.parent) == before
    files = sorted(p.name for p in out.iterdir())
    assert len(files) == 2
    assert files[0] == "fused.onnx"
    assert files[1].startswith("fused.onnx.")
    assert files[1].endswith(".data")
    onnx.checker.check_model(str(out / "fused.onnx"), full_check=True)
    assert bnfold.verify(external, out / "fused.onnx").passed


def test_an_output_beside_its_input_touches_no_file_of_the_input(external: Path) -> None:
    before = contents(external.parent)
    save(bnfold.fold(external).model, external.with_name("fused.onnx"))
    assert before.items() <= contents(external.parent).items()
    save(bnfold.fold(external).model, external.with_name("fused.onnx"))
    assert before.items() <= contents(external.parent).items()
    assert len(contents(external.parent)) == 4


def test_overwriting_an_earlier_output_removes_its_data_and_nothing_else(external: Path, tmp_path: Path) -> None:
    target = tmp_path / "fused.onnx"
    save(load(external), target)
    stranger = tmp_path / f"{target.name}.0123456789ab.data"
    stranger.write_bytes(b"of somebody else")
    first = {p.name for p in tmp_path.glob("*.data")} - {stranger.name}
    save(bnfold.fold(external).model, target)
    second = {p.name for p in tmp_path.glob("*.data")} - {stranger.name}
    assert len(first) == len(second) == 1
    assert first != second
    assert stranger.read_bytes() == b"of somebody else"
    inline = parse(TEXT)
    save(ir.from_proto(inline), target)
    assert [p.name for p in tmp_path.glob("*.data")] == [stranger.name]


def test_a_model_saved_over_the_output_that_it_still_reads_stays_whole(external: Path, tmp_path: Path) -> None:
    target = tmp_path / "fused.onnx"
    save(load(external), target)
    again = load(target)
    save(bnfold.fold(again).model, target)
    assert bnfold.verify(external, target).passed
    weight = again.graph.initializers["w"].const_value
    assert weight is not None
    assert weight.numpy().shape == (4, 16, 3, 3)  # the data that is still mapped is still there


def test_the_same_model_gives_the_same_files(external: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save(bnfold.fold(external).model, tmp_path / name / "fused.onnx")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_an_output_in_no_folder_or_that_is_a_folder_is_a_usage_error(file: Path, tmp_path: Path) -> None:
    with pytest.raises(bnfold.UsageError, match=r"does not exist.*create it first"):
        save(load(file), tmp_path / "no" / "fused.onnx")
    with pytest.raises(bnfold.UsageError, match="the output is a folder"):
        save(load(file), tmp_path)


def test_an_output_that_is_the_input_is_a_usage_error_by_any_name(file: Path) -> None:
    link, hard = file.with_name("link.onnx"), file.with_name("hard.onnx")
    link.symlink_to(file)
    os.link(file, hard)
    for target in (file, link, hard, file.parent / ".." / "in" / "model.onnx"):
        with pytest.raises(bnfold.UsageError, match="the output is the input"):
            check_target(target, [file])
    check_target(file.with_name("other.onnx"), [file])


@pytest.mark.parametrize(
    "stop",
    [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EACCES, "Permission denied"), KeyboardInterrupt()],
)
@pytest.mark.parametrize(
    "call", ["fsync of the data", "fsync of the model", "rename of the data", "rename of the model", "ir.save"]
)
def test_whatever_stops_a_save_leaves_nothing_behind(
    call: str, stop: BaseException, external: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "fused.onnx").write_bytes(b"an earlier result")
    folded, before, count = bnfold.fold(external).model, contents(external.parent), iter(range(9))

    def fails(*args: object, **kwargs: object) -> object:
        if "model" not in call or next(count) == 1:
            raise stop
        return original(*args, **kwargs)

    where, name = {"f": (os, "fsync"), "r": (Path, "replace"), "i": (ir, "save")}[call[0]]
    original = getattr(where, name)
    monkeypatch.setattr(where, name, fails)
    expected = KeyboardInterrupt if isinstance(stop, KeyboardInterrupt) else bnfold.MachineError
    with pytest.raises(expected) as caught:
        save(folded, out / "fused.onnx")
    monkeypatch.undo()
    assert contents(out) == {"fused.onnx": b"an earlier result"}
    assert list(out.iterdir()) == [out / "fused.onnx"]
    assert contents(external.parent) == before
    if isinstance(stop, OSError) and stop.errno == errno.ENOSPC:
        assert "the disk is full; free some space" in str(caught.value)


def test_a_full_disk_is_said_and_leaves_nothing(file: Path, tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(mount)], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip("mounting a tmpfs is not permitted here; the case is simulated above")
    try:
        big = parse(TEXT.replace("[N,16,8", "[N,999,8").replace("[4,16,3", "[4,999,3"))
        with pytest.raises(bnfold.MachineError, match="the disk is full"):
            save(ir.from_proto(big), mount / "fused.onnx")
        assert list(mount.iterdir()) == []
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_folder_that_may_not_be_written_is_said(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object, **__: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(drafts.tempfile, "mkdtemp", refuses)
    with pytest.raises(bnfold.MachineError, match="cannot be written: Permission denied"):
        save(load(file), tmp_path / "fused.onnx")


def test_the_mode_of_a_file_that_is_replaced_is_kept(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "fused.onnx"
    target.touch(mode=0o640)
    target.chmod(0o640)
    save(load(file), target)
    assert target.stat().st_mode & 0o777 == 0o640
