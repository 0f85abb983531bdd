"""Rows of .npy files and of headerless binary files."""

import os
from typing import Any

import fsspec
import numpy as np

from daskcurate.io.paths import filesystem, is_local
from daskcurate.io.sources import RowReader


class BinaryRows(RowReader):
    """Rows of C order in a file of plain numbers, from ``offset`` bytes on; read by range."""

    def __init__(self, url: str, shape: tuple[int, ...], dtype: Any, offset: int = 0):
        super().__init__(url, shape, dtype)
        self.url = url
        self.offset = offset

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows ``start`` to ``stop``."""
        block = np.empty((stop - start, *self.shape[1:]), self.dtype)
        row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        view = block.reshape(-1).view(np.uint8).data
        with fsspec.open(self.url, "rb") as file:
            file.seek(self.offset + start * row_bytes)
            done = 0
            while done < len(view):
                step = file.readinto(view[done:])
                if not step:
                    raise ValueError(f"{self.url} became shorter while it was read")
                done += step
        return block


class FortranRows(RowReader):
    """Rows of a local .npy file in Fortran order, memory-mapped."""

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows ``start`` to ``stop``, copied from the map."""
        return np.ascontiguousarray(np.load(self.name, mmap_mode="r", allow_pickle=False)[start:stop])


def file_size(url: str) -> int:
    """Return the size of a file in bytes."""
    fs, path = filesystem(url)
    return int(fs.size(path))


def open_npy(url: str) -> RowReader:
    """Open the .npy file at ``url``: only its header is read."""
    with fsspec.open(url, "rb") as file:
        shape, fortran, dtype, offset = read_header(file, url)
    needed = offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    size = file_size(url)
    if dtype.hasobject:
        raise TypeError(f"{url} holds Python objects: save it as numbers or as fixed-width strings")
    if size < needed:
        raise ValueError(f"{url} is cut short: its header asks for {needed} bytes, and it has {size}")
    if fortran and len(shape) > 1:
        if not is_local(url):
            raise ValueError(f"{url} is in Fortran order, which is read from local files only")
        return FortranRows(url, shape, dtype)
    return BinaryRows(url, shape, dtype, offset)


def read_header(file: Any, name: str) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Return shape, whether in Fortran order, dtype, and the header's length, of .npy data."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    start = file.tell()
    try:
        version = np.lib.format.read_magic(file)
        shape, fortran, dtype = readers[version](file)
    except (ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{name} is not a .npy file that can be read: {error}") from error
    return shape, fortran, dtype, file.tell() - start


def open_memmap_ids(url: str, dtype: Any) -> RowReader:
    """Open a headerless file of ids of the given fixed width, such as ``S24``."""
    dtype = np.dtype(dtype)
    size = file_size(url)
    if size % dtype.itemsize:
        raise ValueError(
            f"{url} has {size} bytes, which is no multiple of the {dtype.itemsize} of ids_dtype={dtype.str[1:]!r}"
        )
    return BinaryRows(url, (size // dtype.itemsize,), dtype)


def open_memmap(url: str, shape: Any, dtype: Any) -> RowReader:
    """Open a headerless file of the given ``shape`` ((n, d); n may be -1) and ``dtype``."""
    name = os.path.basename(url)
    if shape is None or dtype is None:
        raise ValueError(
            f"{name} has no header: give shape=(rows, width) and source_dtype=, as in shape=(1000000, 768), "
            "source_dtype='float32'"
        )
    dtype = _memmap_dtype(dtype)
    rows, width = memmap_shape(shape)
    size = file_size(url)
    if rows == -1:
        rows = size // (width * dtype.itemsize)
    needed = rows * width * dtype.itemsize
    if needed != size:
        raise ValueError(
            f"{url} has {size} bytes, but shape=({rows}, {width}) of {dtype} is {needed} bytes: "
            "shape and source_dtype must match the file"
        )
    return BinaryRows(url, (rows, width), dtype)


def _memmap_dtype(dtype: Any) -> np.dtype:
    try:
        return np.dtype(dtype)
    except TypeError:
        raise TypeError(
            f"source_dtype={dtype!r} is not allowed: give one of 'float16', 'float32', 'float64'"
        ) from None


def memmap_shape(shape: Any) -> tuple[int, int]:
    """Return the given (rows, width) of a headerless file, checked; rows may be -1."""
    try:
        rows, width = (int(size) for size in shape)
    except (TypeError, ValueError):
        raise TypeError(f"shape={shape!r} is not allowed: give (rows, width)") from None
    if rows < -1 or rows == 0 or width < 1:
        raise ValueError(f"shape={shape!r} is not allowed: give (rows, width), both at least 1")
    return rows, width
