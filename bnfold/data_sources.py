"""Where batches come from: `.npy`, `.npz`, a folder of those, images, or a function; every pass gives the same batches.

`--samples N` takes a random subset of N samples, drawn with the seed, in the order of the files; from a function, which
cannot be asked for a sample by number, it takes the first N.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from bnfold.data_callable import Stream, load_callable
from bnfold.data_files import open_table
from bnfold.data_fit import fit_batch, fixed_batch
from bnfold.data_images import SUFFIXES, ImageOptions, Images, plan_images
from bnfold.data_pixels import require_pillow
from bnfold.data_rows import Rows, Sampled, check_fills, choose
from bnfold.errors import DataError, UsageError
from bnfold.importing import PATTERN

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bnfold.data import InputSpec
    from bnfold.data_rows import Numbered

    Batch = dict[str, NDArray[np.generic]]

#: Samples in a batch, where neither the model nor the caller says.
BATCH_SIZE = 8

#: What a caller may pass as data; iterables must give the same batches each time.
DataLike: TypeAlias = "Source | DataRequest | str | os.PathLike[str] | Iterable[Any]"


class Feed(Protocol):
    """Batches by number, as they were found."""

    @property
    def samples(self) -> int | None:
        """How many samples a pass yields, if that is known."""

    def describe(self) -> str:
        """One line for reports."""

    def numbered(self, rank: int, world: int) -> Iterator[Numbered]:
        """Batches rank, rank + world, ..., each with its number."""


@dataclass(frozen=True, eq=False)
class Source:
    """Batches that fit a model: dicts of one array for each input, the same ones in the same order in every pass.

    Attributes:
        inputs: What the model takes.
        feed: Where the batches come from.
    """

    inputs: tuple[InputSpec, ...]
    feed: Feed

    @property
    def samples(self) -> int | None:
        """How many samples a pass yields, if that is known before."""
        return self.feed.samples

    def describe(self) -> str:
        """One line for reports, without an absolute path."""
        return self.feed.describe()

    def __iter__(self) -> Iterator[Batch]:
        """A new pass; raises DataError where the data does not fit the model."""
        return (batch for _, batch in self.shard(0, 1))

    def shard(self, rank: int, world: int) -> Shard:
        """Every `world`-th batch from `rank` on, with its number in the whole."""
        return Shard(self, rank, world)


@dataclass(frozen=True, eq=False)
class Shard:
    """The batches of one of several processes, each with its number in the whole; may be empty, and iterated again."""

    source: Source
    rank: int
    world: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise UsageError(f"there is no rank {self.rank} among {self.world}", where="shard")

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        """A new pass."""
        for number, batch, where in self.source.feed.numbered(self.rank, self.world):
            yield number, fit_batch(batch, self.source.inputs, where)


@dataclass(frozen=True)
class DataRequest:
    """Data that the caller names, to be opened once the model's inputs are known.

    Attributes:
        text: A `.npy` or `.npz` file, an image, a folder of one kind of them, or `package.module:callable`.
        batch_size: Samples in a batch; by default what the model fixes, or 8. A callable makes its own batches.
        samples: How many samples to take; None for all.
        seed: Seed of the choice of samples.
        image: How images become numbers.
    """

    text: str
    batch_size: int | None = None
    samples: int | None = None
    seed: int = 0
    image: ImageOptions | None = None

    def __post_init__(self) -> None:
        for name, number in (("batch size", self.batch_size), ("number of samples", self.samples)):
            if number is not None and number < 1:
                raise UsageError(f"the {name} is {number}", where=self.text, remedy="give at least 1")

    def open(self, inputs: Sequence[InputSpec]) -> Source:
        """As `open_source`."""
        path = Path(self.text)
        if not path.exists():
            return Source(tuple(inputs), self._stream(inputs))
        source = Source(tuple(inputs), self._sampled(path, inputs))
        next(iter(source))  # what does not fit is said now, not after minutes of other work
        return source

    def _stream(self, inputs: Sequence[InputSpec]) -> Stream:
        if not PATTERN.fullmatch(self.text):
            raise UsageError(
                "there is no such file or folder",
                where=self.text,
                remedy="a function is written package.module:callable",
            )
        self._refuse_image_options("a function")
        if self.batch_size is not None:
            raise UsageError("a function makes its own batches", where=self.text, remedy="leave out --batch-size")
        if self.samples is not None:
            check_fills(self.samples, fixed_batch(inputs), self.text)
        return Stream(self.text, load_callable(self.text), tuple(inputs), self.samples)

    def _sampled(self, path: Path, inputs: Sequence[InputSpec]) -> Sampled:
        fixed = fixed_batch(inputs)
        if fixed is not None and self.batch_size not in (None, fixed):
            raise UsageError(
                f"the model takes batches of exactly {fixed}, not {self.batch_size}",
                where=self.text,
                remedy="leave out --batch-size, or export the model with a free batch axis",
            )
        rows = self._rows(path, inputs)
        chosen = choose(rows.count, self.samples, self.seed, self.text)
        check_fills(len(chosen), fixed, self.text)
        size = fixed or self.batch_size or BATCH_SIZE
        drawn = f"drawn with seed {self.seed}, " if len(chosen) < rows.count else ""
        return Sampled(rows, chosen, size, f"{drawn}batches of {size}")

    def _rows(self, path: Path, inputs: Sequence[InputSpec]) -> Rows:
        name = path.name or path.resolve().name
        kind, files = _found(path)
        if kind == "images":
            require_pillow()
            return Images(name, files, plan_images(inputs, self.image or ImageOptions(), self.text))
        self._refuse_image_options(f"{kind} files")
        return open_table(name, files, inputs, in_folder=path.is_dir())

    def _refuse_image_options(self, kind: str) -> None:
        if self.image not in (None, ImageOptions()):
            raise UsageError(
                f"sizes, colours and presets of images mean nothing for {kind}",
                where=self.text,
                remedy="leave out --preset and --image-...",
            )


def open_source(  # noqa: PLR0913
    text: str,
    inputs: Sequence[InputSpec],
    *,
    batch_size: int | None = None,
    samples: int | None = None,
    seed: int = 0,
    image: ImageOptions | None = None,
) -> Source:
    """The data that `text` names, as batches for a model with these inputs.

    Args:
        text: As `DataRequest`, and so are the others.
        inputs: What the model takes.
        batch_size: Samples in a batch.
        samples: How many samples to take.
        seed: Seed of the choice.
        image: How images become numbers.

    Raises:
        UsageError: There is no such file, folder, module or function; the options contradict the model or the data.
        DataError: The data cannot be read, or does not fit the model.
        MissingPackageError: Images need Pillow, and it is not installed.
    """
    return DataRequest(text, batch_size, samples, seed, image).open(inputs)


def as_source(data: DataLike, inputs: Sequence[InputSpec]) -> Source:
    """What a caller of the library passes as data, as batches for a model with these inputs.

    Raises:
        UsageError: It is an iterator, which runs once, or a single batch; and as `open_source`.
        DataError, MissingPackageError: As `open_source`.
    """
    if isinstance(data, str | os.PathLike):
        data = DataRequest(os.fspath(data))
    if isinstance(data, DataRequest):
        return data.open(inputs)
    if isinstance(data, Source):
        return Source(tuple(inputs), data.feed)
    if isinstance(data, Iterator):
        raise UsageError(
            f"an iterator ({type(data).__name__}) runs once, and data is read several times",
            where="data",
            remedy="give a list, or an object whose __iter__ starts anew",
        )
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise UsageError(
            f"a {type(data).__name__} is no iterable of batches", where="data", remedy="give a list of dicts"
        )
    return Source(tuple(inputs), Stream(f"the given {type(data).__name__}", lambda: data, tuple(inputs), None))


def _found(path: Path) -> tuple[str, tuple[Path, ...]]:
    """The kind of data, and its files in order."""
    kinds: dict[str, list[Path]] = {}
    for file in _walk(path) if path.is_dir() else [path]:
        suffix = file.suffix.lower()
        kind = suffix if suffix in (".npy", ".npz") else "images" if suffix in SUFFIXES else ""
        if kind:
            kinds.setdefault(kind, []).append(file)
    known = f".npy, .npz or an image ({', '.join(sorted(SUFFIXES))})"
    if not kinds:
        what = "there is none in this folder" if path.is_dir() else "this is none"
        raise DataError(
            f"data is {known}, and {what}", where=str(path), remedy="or a function, package.module:callable"
        )
    if len(kinds) > 1:
        shown = " and ".join(sorted(kinds))
        raise DataError(f"the folder holds {shown}", where=str(path), remedy="give a folder of one kind")
    kind, files = kinds.popitem()
    return kind, tuple(sorted(files, key=lambda file: file.relative_to(path).parts))


def _walk(folder: Path) -> Iterator[Path]:
    """All files below, through links too (each folder once), but none whose name begins with a dot."""
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        raise DataError(f"the folder cannot be read: {error.strerror}", where=str(error.filename)) from error

    for here, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here, name) for name in files if not name.startswith("."))
