"""Samples in `.npy` and `.npz` files, memory-mapped where the file allows it.

A `.npy` file feeds a model of one input; a `.npz` file has one array for each input, by name. Axis 0 is the samples. In
a folder, a file whose arrays have one axis less than the input is one sample. Members of an `.npz` that are stored
uncompressed (`numpy.savez`) are mapped like an `.npy`; compressed ones are decompressed whole, one file at a time.
"""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from bnfold.data_fit import check_names, shape_text
from bnfold.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from bnfold.data import InputSpec

    Arrays = dict[str, NDArray[Any]]

#: Size of the fixed part of a ZIP local file header; two lengths stand at its end.
_ZIP_HEADER = 30


@dataclass(frozen=True, eq=False)
class Table:
    """The samples of one or more files, in the order of the files.

    Attributes:
        name: What the data is called in reports.
        files: The files.
        starts: Number of the first sample of each file, and the number of all at the end.
        inputs: What the model takes.
        in_folder: Whether a file may be one sample.
    """

    name: str
    files: tuple[Path, ...]
    starts: NDArray[np.intp]
    inputs: tuple[InputSpec, ...]
    in_folder: bool
    _last: dict[int, Arrays] = field(default_factory=dict, repr=False)

    @property
    def count(self) -> int:
        """How many samples there are."""
        return int(self.starts[-1])

    def read(self, rows: NDArray[np.intp]) -> Arrays:
        """These samples on axis 0 of one array for each input; only their part of a mapped file is read."""
        owners = np.searchsorted(self.starts, rows, side="right") - 1
        pieces = [(int(i), rows[owners == i] - self.starts[i]) for i in np.unique(owners)]
        parts = [{name: array[inner] for name, array in self._open(i).items()} for i, inner in pieces]
        for (i, _), part in zip(pieces, parts, strict=True):
            self._check_alike(parts[0], part, i)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def place(self, row: int) -> str:
        """The file, and the sample in it if there are several."""
        owner = int(np.searchsorted(self.starts, row, side="right")) - 1
        several = self.starts[owner + 1] - self.starts[owner] > 1
        return f"{self.files[owner]}" + (f", sample {row - int(self.starts[owner])}" if several else "")

    def describe(self, chosen: int) -> str:
        """How many samples of what."""
        some = f"{chosen}" if chosen == self.count else f"{chosen} of {self.count}"
        files = f"{len(self.files)} files in " if self.in_folder else ""
        return f"{some} samples of {files}{self.name}"

    def _open(self, i: int) -> Arrays:
        """The arrays of a file; the last one stays open, because batches are read in order."""
        if i not in self._last:
            opened = _samples(self.files[i], self.inputs, self.in_folder)
            self._last.clear()
            self._last[i] = opened
        return self._last[i]

    def _check_alike(self, first: Arrays, part: Arrays, i: int) -> None:
        for name, array in part.items():
            if array.shape[1:] != first[name].shape[1:] or array.dtype != first[name].dtype:
                raise DataError(
                    f"samples of {shape_text(array.shape[1:])} {array.dtype} cannot share a batch with samples of "
                    f"{shape_text(first[name].shape[1:])} {first[name].dtype}",
                    where=str(self.files[i]),
                    remedy="give all samples one shape and type, or use --batch-size 1",
                )


def open_table(name: str, files: Sequence[Path], inputs: Sequence[InputSpec], *, in_folder: bool) -> Table:
    """The samples of these files.

    Raises:
        DataError: A file cannot be read, or its arrays are not one for each input with equally many samples.
    """
    counts = [len(next(iter(_samples(file, inputs, in_folder).values()))) for file in files]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.intp)
    return Table(name, tuple(files), starts, tuple(inputs), in_folder)


def _samples(file: Path, inputs: Sequence[InputSpec], in_folder: bool) -> Arrays:
    """The arrays of a file by input, samples on axis 0."""
    arrays = _read_npz(file) if file.suffix.lower() == ".npz" else {_only(inputs, file).name: _read_npy(file)}
    check_names(arrays, inputs, str(file))
    found = {spec.name: _with_samples(arrays[spec.name], spec, file, in_folder) for spec in inputs}
    counts = {name: len(array) for name, array in found.items()}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{number} of {name}" for name, number in counts.items())
        raise DataError(
            f"there are different numbers of samples ({shown})", where=str(file), remedy="axis 0 is the samples"
        )
    return found


def _only(inputs: Sequence[InputSpec], file: Path) -> InputSpec:
    if len(inputs) != 1:
        raise DataError(
            f"one array cannot feed {len(inputs)} inputs",
            where=str(file),
            remedy=f"give a .npz with {', '.join(spec.name for spec in inputs)}",
        )
    return inputs[0]


def _with_samples(array: NDArray[Any], spec: InputSpec, file: Path, in_folder: bool) -> NDArray[Any]:
    rank = None if spec.dims is None else len(spec.dims)
    if in_folder and rank is not None and array.ndim == rank - 1:
        return array[np.newaxis]
    if array.ndim != rank and (rank is not None or array.ndim == 0):
        one = "" if not in_folder else f", or {shape_text((spec.dims or ())[1:])} for one sample"
        raise DataError(
            f"the shape for the input {spec.name!r} is {shape_text(array.shape)}, the model takes "
            f"{shape_text(spec.dims or (None,))}{one}",
            where=str(file),
            remedy="axis 0 is the samples",
        )
    return array


def _read_npy(file: Path) -> NDArray[Any]:
    try:
        loaded = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(file, error) from error
    if not isinstance(loaded, np.ndarray):
        loaded.close()
        raise DataError("this is no .npy file but an archive", where=str(file), remedy="call it .npz")
    return loaded


def _read_npz(file: Path) -> Arrays:
    """The members by name without `.npy`."""
    try:
        with zipfile.ZipFile(file) as archive, file.open("rb") as stream:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            return {name: _member(archive, stream, info) for name, info in members.items()}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise _unreadable(file, error) from error


def _member(archive: zipfile.ZipFile, stream: BinaryIO, info: zipfile.ZipInfo) -> NDArray[Any]:
    """A member, mapped where it is stored as it is; its data begins behind its header in the archive and its own."""
    if info.compress_type != zipfile.ZIP_STORED or not info.file_size:
        with archive.open(info) as member:
            return np.asarray(np.lib.format.read_array(member, allow_pickle=False))
    stream.seek(info.header_offset)
    name, extra = struct.unpack("<HH", stream.read(_ZIP_HEADER)[-4:])
    stream.seek(name + extra, 1)
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(stream)
    if dtype.hasobject or 0 in shape:
        with archive.open(info) as member:
            return np.asarray(np.lib.format.read_array(member, allow_pickle=False))
    mapped: NDArray[Any] = np.memmap(
        stream, dtype=dtype, mode="r", offset=stream.tell(), shape=shape, order="F" if fortran else "C"
    )
    return mapped


def _unreadable(file: Path, error: Exception) -> DataError:
    if isinstance(error, OSError) and error.strerror:
        why = error.strerror
    elif "Python objects" in str(error) or "Object arrays" in str(error):
        why = "it holds Python objects, not numbers"
    else:
        why = "it is damaged, or no NumPy file"
    return DataError(f"the file cannot be read: {why}", where=str(file), remedy="write it with numpy.save or savez")
