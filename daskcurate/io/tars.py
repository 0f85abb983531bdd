"""Rows of webdataset tars: a .npy file for each sample, its key the id. Tars are read as streams.

Of a tar that is not compressed the place of every 1024th row is kept, so a task reads from near its first
row; of a compressed one it reads from the start.
"""

import posixpath
import tarfile
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from typing import Any, NamedTuple

import dask
import fsspec
import numpy as np

from daskcurate.io.columns import listed
from daskcurate.io.npy import read_header
from daskcurate.io.sources import BadRow, ConcatRows, RowReader, SequentialRows
from daskcurate.runner import run_tasks

STRIDE = 1024
PROBED_MEMBERS = 256
COMPRESSED = (".gz", ".tgz")


class Index(NamedTuple):
    """What a scan of a tar's headers tells."""

    n: int
    marks: np.ndarray
    """Bytes at which the member of every STRIDE-th row starts."""
    shape: tuple[int, ...]
    """Of the first row's array."""
    dtype: Any


def split_name(name: str) -> tuple[str, str]:
    """Return a member's key and extension, as webdataset splits them: at the first dot of the file's name."""
    folder, base = posixpath.split(name)
    stem, _, extension = base.partition(".")
    return posixpath.join(folder, stem), extension.lower()


def _members(url: str, offset: int = 0) -> Iterator[tuple[tarfile.TarInfo, Callable[[], bytes]]]:
    """Yield the regular files of a tar, from the header at ``offset`` on, and a function to read each."""
    packed = url.endswith(COMPRESSED)
    with fsspec.open(url, "rb") as file:
        file.seek(offset)
        try:
            with tarfile.open(fileobj=file, mode="r|gz" if packed else "r:") as tar:
                while (member := tar.next()) is not None:
                    if member.isreg() and split_name(member.name)[0][-1:] not in ("", "/"):
                        yield member, _reader(tar, file, member, packed)
                    tar.members = []  # type: ignore[attr-defined]  # else tarfile keeps an object for every member
        except (tarfile.TarError, EOFError, OSError) as error:
            if isinstance(error, FileNotFoundError | PermissionError):
                raise
            raise ValueError(f"{url} is not a tar file that can be read: {error}") from error


def _reader(tar: tarfile.TarFile, file: Any, member: tarfile.TarInfo, packed: bool) -> Callable[[], bytes]:
    def read() -> bytes:
        if packed or member.issparse():
            found = tar.extractfile(member)
            return b"" if found is None else found.read()
        file.seek(member.offset_data)
        return file.read(member.size)

    return read


def _rows_of(url: str, field: str, offset: int = 0) -> Iterator[tuple[str, tarfile.TarInfo, Any]]:
    for member, read in _members(url, offset):
        key, extension = split_name(member.name)
        if extension == field:
            yield key, member, read


def scan(url: str, field: str) -> Index:
    """Find the rows of a tar: the files whose extension is ``field``."""
    n, marks, dtype = 0, [], np.dtype(np.float32)
    shape: tuple[int, ...] = ()
    for n, (_, member, read) in enumerate(_rows_of(url, field), 1):
        if n == 1:
            shape, _, dtype, _ = read_header(BytesIO(read()), f"{url} ({member.name})")
        if n % STRIDE == 1:
            marks.append(member.offset)
    return Index(n, np.array(marks, np.int64), shape, dtype)


class TarRows(SequentialRows):
    """Rows of a tar, or (``keys``) their keys."""

    def __init__(self, url: str, field: str, index: Index, *, keys: bool):
        shape: tuple[int, ...] = (index.n,)
        if not keys:
            shape = (index.n, int(np.prod(index.shape, dtype=np.int64)))
        super().__init__(url, shape, object if keys else index.dtype)
        self.url = url
        self.field = field
        self.marks = None if url.endswith(COMPRESSED) else index.marks
        self.keys = keys

    def seek_point(self, row: int) -> int:
        """Return the nearest row before ``row`` whose place is known."""
        return 0 if self.marks is None else row - row % STRIDE

    def stream(self, ranges: Iterable[tuple[int, int]]) -> Iterator[np.ndarray]:
        """Yield the rows of ascending ranges."""
        ranges = list(ranges)
        convert = _key if self.keys else _Decoder(self.dtype, self.shape[1])
        return self.assemble(ranges, self._batches(ranges[0][0]), convert)

    def _batches(self, start: int) -> Iterator[tuple[int, list[Any]]]:
        row = self.seek_point(start)
        offset = int(self.marks[row // STRIDE]) if self.marks is not None and len(self.marks) else 0
        for key, member, read in _rows_of(self.url, self.field, offset):
            if row >= start:
                yield row, [key if self.keys else (member.name, read())]
            row += 1


def _key(values: list[Any]) -> np.ndarray:
    found = np.empty(1, object)
    found[:] = values
    return found


class _Decoder:
    """Decodes .npy files of one dtype and width; the header, the same in nearly all, is parsed once."""

    def __init__(self, dtype: np.dtype, width: int):
        self.dtype = dtype
        self.width = width
        self.header = b""

    def __call__(self, values: list[Any]) -> np.ndarray:
        ((name, data),) = values
        size = self.width * self.dtype.itemsize
        if not (self.header and data.startswith(self.header) and len(data) == len(self.header) + size):
            self.header = data[: self._check(name, data)]
        return np.frombuffer(data, self.dtype, self.width, len(self.header))[None]

    def _check(self, name: str, data: bytes) -> int:
        """Return the length of the header of an array that is as the others."""
        try:
            shape, _, dtype, offset = read_header(BytesIO(data), name)
        except ValueError as error:
            raise BadRow(0, f"cannot be used: {error}") from None
        width = int(np.prod(shape, dtype=np.int64))
        if dtype != self.dtype:
            raise BadRow(0, f"({name}) holds {dtype}, but the rows before it {self.dtype}")
        if width != self.width or max(shape, default=0) != width:
            raise BadRow(0, f"({name}) has shape {shape}, but the rows before it width {self.width}")
        if len(data) < offset + width * dtype.itemsize:
            raise BadRow(0, f"({name}) is cut short")
        return offset


def _choose_field(url: str, field: str | None) -> str:
    """Return the extension of the embeddings: ``field``, or the only one of .npy files."""
    found: list[str] = []
    for count, (member, _) in enumerate(_members(url)):
        extension = split_name(member.name)[1]
        if extension not in found:
            found.append(extension)
        if count >= PROBED_MEMBERS or extension == field:
            break
    if field is not None:
        field = field.lower().lstrip(".")
        if field not in found:
            raise ValueError(f"column={field!r} is not in {url}, which holds files of {listed(found)}")
        return field
    suitable = [item for item in found if item == "npy" or item.endswith(".npy")]
    if len(suitable) == 1:
        return suitable[0]
    if suitable:
        raise ValueError(
            f"{url} holds several kinds of .npy files ({listed(suitable)}): give one of them as column="
        )
    raise ValueError(f"{url} holds no .npy files; it holds files of {listed(found)}")


def open_tars(urls: list[str], field: str | None, name: str) -> tuple[RowReader, RowReader]:
    """Return the rows of one or more tars, and their keys; the headers of all members are read, by tasks."""
    chosen = _choose_field(urls[0], field)
    found = run_tasks([dask.delayed(scan, pure=False)(url, chosen) for url in urls])
    for url, index in zip(urls, found, strict=True):
        if not index.n:
            raise ValueError(f"{url} holds no file with the extension {chosen!r}")
        if index.dtype.hasobject:
            raise TypeError(f"{url} holds Python objects: save numbers")
        if max(index.shape, default=0) != np.prod(index.shape, dtype=np.int64):
            raise ValueError(f"{url} holds arrays of shape {index.shape}: give one vector a file")
    readers = [
        [TarRows(url, chosen, index, keys=keys) for url, index in zip(urls, found, strict=True)]
        for keys in (False, True)
    ]
    rows, keys = (parts[0] if len(parts) == 1 else ConcatRows(parts, name) for parts in readers)
    return rows, keys
