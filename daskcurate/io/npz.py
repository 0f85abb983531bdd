"""Rows of arrays in .npz archives."""

import os
import zipfile
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import fsspec
import numpy as np

from daskcurate.io.columns import listed
from daskcurate.io.npy import BinaryRows, read_header
from daskcurate.io.sources import RowReader, SequentialRows, open_all

LOCAL_HEADER = 30
BATCH_BYTES = 4 << 20


class DeflatedRows(SequentialRows):
    """Rows of a compressed array of an archive: inflated from its start, a piece at a time."""

    def __init__(self, url: str, member: str, shape: tuple[int, ...], dtype: Any, offset: int):
        super().__init__(url, shape, dtype)
        self.url = url
        self.member = member
        self.offset = offset

    def seek_point(self, row: int) -> int:
        """Return 0: there is no way to skip."""
        return 0

    def stream(self, ranges: Iterable[tuple[int, int]]) -> Iterator[np.ndarray]:
        """Yield the rows of ascending ranges."""
        return self.assemble(ranges, self._batches(), lambda values: values)

    def _batches(self) -> Iterator[tuple[int, np.ndarray]]:
        width = int(np.prod(self.shape[1:], dtype=np.int64))
        row_bytes = width * self.dtype.itemsize
        step = max(1, BATCH_BYTES // max(1, row_bytes))
        with fsspec.open(self.url, "rb") as file, zipfile.ZipFile(file) as archive:
            with archive.open(self.member) as member:
                member.read(self.offset)
                for row in range(0, len(self), step):
                    size = min(step, len(self) - row)
                    data = member.read(size * row_bytes)
                    if len(data) < size * row_bytes:
                        raise ValueError(f"{self.url} is cut short: {self.member} ends early")
                    yield row, np.frombuffer(data, self.dtype).reshape(size, *self.shape[1:])


def open_npz(urls: list[str], key: str | None, name: str) -> RowReader:
    """Open the array ``key`` (None: the only 2-D array of floats) of one or more archives."""
    chosen = _choose_key(urls[0], key)
    return open_all(partial(_open_member, key=chosen), urls, name)


def _choose_key(url: str, key: str | None) -> str:
    name = os.path.basename(url)
    found = {}
    with fsspec.open(url, "rb") as file, _archive(file, url) as archive:
        keys = [item.removesuffix(".npy") for item in archive.namelist() if item.endswith(".npy")]
        if key is None:
            for item in keys:
                with archive.open(f"{item}.npy") as member:
                    found[item] = read_header(member, f"{url} ({item})")
    if key is not None:
        _require_key(name, keys, key)
        return key
    suitable = [item for item, (shape, _, dtype, _) in found.items() if len(shape) == 2 and dtype.kind == "f"]
    if len(suitable) == 1:
        return suitable[0]
    if suitable:
        raise ValueError(f"{name} has several 2-D arrays of floats ({listed(suitable)}): give column=")
    shown = ", ".join(f"{item!r} {shape} {dtype}" for item, (shape, _, dtype, _) in found.items()) or "none"
    raise ValueError(f"{name} has no 2-D array of floats; its arrays are {shown}")


def _require_key(name: str, keys: list[str], key: str) -> None:
    if key not in keys:
        raise ValueError(f"column={key!r} is not an array of {name}; its arrays are {listed(keys)}")


def _archive(file: Any, url: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{url} is not a .npz file that can be read: {error}") from error


def _open_member(url: str, key: str) -> RowReader:
    with fsspec.open(url, "rb") as file, _archive(file, url) as archive:
        keys = [item.removesuffix(".npy") for item in archive.namelist()]
        _require_key(url, keys, key)
        info = archive.getinfo(f"{key}.npy")
        with archive.open(info) as member:
            shape, fortran, dtype, offset = read_header(member, f"{url} ({key})")
        stored = info.compress_type == zipfile.ZIP_STORED
        if stored:
            file.seek(info.header_offset)
            header = file.read(LOCAL_HEADER)
    if dtype.hasobject:
        raise TypeError(f"{url} ({key}) holds Python objects: save it as numbers or as fixed-width strings")
    if fortran and len(shape) > 1:
        raise ValueError(f"{url} ({key}) is in Fortran order: save it in C order")
    needed = offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if info.file_size < needed:
        raise ValueError(
            f"{url} ({key}) is cut short: its header asks for {needed} bytes, and it has {info.file_size}"
        )
    if not stored:
        return DeflatedRows(url, info.filename, shape, dtype, offset)
    # the lengths of the name and of the extra field are those of this header, not of the directory's
    extra = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return BinaryRows(url, shape, dtype, info.header_offset + LOCAL_HEADER + extra + offset)
