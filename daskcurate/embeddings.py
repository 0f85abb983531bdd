"""A pool of embeddings: rows (and ids) in a zarr store that is never changed once written."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
import zarr

from daskcurate.io.paths import (
    PathLike,
    as_url,
    exists,
    is_folder,
    is_local,
    is_zarr,
    read_bytes,
    zarr_store,
)

ATTRIBUTE = "daskcurate"
FORMAT = "pool"
VERSION = 1
ROWS = "embeddings"
IDS = "ids"
SKIPPED = ("skipped_rows", "skipped_ids", "skipped_reasons")
DTYPES = ("float16", "float32")
REQUEST_BYTES = 128 << 10
"""Rows that the system is asked for at a time, where they are wanted later: what Linux reads ahead by default."""


class PoolRows:
    """The rows of a stored pool, sliced like an array; a pickle of it holds no data.

    Chunks are uncompressed files or objects, and are read directly: about as fast as the disk, only the rows
    that are asked for, and a missing chunk is an error instead of zeros.
    """

    ndim = 2

    def __init__(self, path: str, shape: tuple[int, int], dtype: Any, chunk_rows: int):
        self.path = path
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.chunk_rows = chunk_rows

    def __getitem__(self, key: Any) -> np.ndarray:
        rows, *columns = key if isinstance(key, tuple) else (key,)
        if isinstance(rows, slice):
            wanted = range(self.shape[0])[rows]
            if not wanted:
                return np.empty((0, self.shape[1]), self.dtype)[(slice(None), *columns)]
            first = min(wanted[0], wanted[-1])
            block = self.read(first, max(wanted[0], wanted[-1]) + 1)
            return block[(np.s_[wanted[0] - first :: wanted.step], *columns)]
        row = range(self.shape[0])[rows]
        return self.read(row, row + 1)[(0, *columns)]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows ``start`` to ``stop``."""
        out = np.empty((max(0, stop - start), self.shape[1]), self.dtype)
        self.read_into(start, out)
        return out

    def read_into(self, start: int, out: np.ndarray) -> None:
        """Fill ``out`` (m, d), of the pool's dtype and in C order, with the rows from ``start`` on."""
        for chunk, low, high in self._parts(start, start + len(out)):
            first = chunk * self.chunk_rows + low - start
            self._read_chunk(chunk, low, out[first : first + high - low])

    def expect(self, start: int, stop: int) -> None:
        """Have the system read rows ``start`` to ``stop`` from its disk, for a call that will want them soon.

        They come to be in the page cache, which is no process's memory. It returns at once, and is a hint: it
        never fails, and does nothing for a pool at a URL.
        """
        if self.is_local and hasattr(os, "posix_fadvise"):
            threading.Thread(target=self._ask_for, args=(start, stop), daemon=True).start()

    def _ask_for(self, start: int, stop: int) -> None:
        for chunk, low, high in self._parts(start, stop):
            with contextlib.suppress(OSError), open(self._name(chunk), "rb", buffering=0) as file:
                # Linux reads no more than its limit of one request, whatever length is asked for
                for offset in range(low * self._row_bytes, high * self._row_bytes, REQUEST_BYTES):
                    os.posix_fadvise(file.fileno(), offset, REQUEST_BYTES, os.POSIX_FADV_WILLNEED)

    @property
    def is_local(self) -> bool:
        """Whether the pool is a folder, of which any rows are read for what their bytes cost."""
        return is_local(self.path)

    @property
    def _row_bytes(self) -> int:
        return self.shape[1] * self.dtype.itemsize

    def _name(self, chunk: int) -> str:
        return "/".join((self.path, ROWS, "c", str(chunk), "0"))

    def _parts(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield the chunks of rows ``start`` to ``stop``, and which of a chunk's rows are among these."""
        for chunk in range(start // self.chunk_rows, -(-stop // self.chunk_rows)):
            origin = chunk * self.chunk_rows
            yield chunk, max(start, origin) - origin, min(stop, origin + self.chunk_rows) - origin

    def _read_chunk(self, chunk: int, low: int, out: np.ndarray) -> None:
        name = self._name(chunk)
        wanted = out.reshape(-1).view(np.uint8).data
        offset = low * self._row_bytes
        try:
            if self.is_local:
                # into the array itself: np.fromfile goes through the C library's buffer, at a fifth of the speed
                with open(name, "rb", buffering=0) as file:
                    file.seek(offset)
                    count = 0
                    while count < len(wanted) and (got := file.readinto(wanted[count:])):
                        count += got
            else:
                data = read_bytes(name, offset, offset + len(wanted))
                count = len(data)
                wanted[:count] = data
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{name} is missing: the pool {self.path} is damaged; ingest it again"
            ) from error
        if count != len(wanted):
            raise ValueError(f"{name} is cut short: the pool {self.path} is damaged; ingest it again")
        if sys.byteorder == "big":
            out.byteswap(inplace=True)


class SkippedSamples(NamedTuple):
    """The samples that :func:`daskcurate.embed` left out of a pool, in the dataset's order."""

    rows: np.ndarray
    """(m,) int64, their numbers in the dataset."""
    ids: np.ndarray
    """(m,) strings: their ids as text, empty where they are not known; their numbers if samples have no ids."""
    reasons: np.ndarray
    """(m,) strings: what was wrong with each."""


@dataclass(frozen=True, repr=False)
class Embeddings:
    """A stored pool of ``n`` embeddings; made by :func:`daskcurate.ingest` or :func:`open_embeddings`.

    An object of this class holds the path and the metadata only, so it is cheap to pickle and to pass on.
    """

    path: str
    """Where the pool is: an absolute path or a URL."""
    shape: tuple[int, int]
    """Rows and dimensions."""
    dtype: np.dtype
    """float16 or float32."""
    chunk_rows: int
    """Rows in a chunk; the last chunk may have fewer."""
    fingerprint: str
    """32 hexadecimal digits that differ for any other content or chunking."""
    normalized: bool
    """Whether every row is of unit length."""
    has_ids: bool
    """Whether ids are stored; otherwise a row's number is its id."""
    source: str
    """What the pool was ingested from."""

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return self.shape[1]

    @property
    def n_chunks(self) -> int:
        """Number of chunks."""
        return -(-self.shape[0] // self.chunk_rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    @property
    def rows(self) -> PoolRows:
        """The rows, to be sliced where they are needed."""
        return PoolRows(self.path, self.shape, self.dtype, self.chunk_rows)

    @property
    def array(self) -> da.Array:
        """The rows: a Dask array (n, dim), a Dask chunk for each stored one."""
        return da.from_array(
            self.rows,
            chunks=(self.chunk_rows, self.dim),
            name=f"embeddings-{self.fingerprint}",
            meta=np.empty((0, 0), self.dtype),
            inline_array=True,
            fancy=False,
        )

    @property
    def ids(self) -> da.Array:
        """The ids: a Dask array (n,) of int64 or strings, chunked as the rows; the row numbers if none."""
        if not self.has_ids:
            return da.arange(len(self), chunks=self.chunk_rows, dtype=np.int64)
        stored = _open_group(self.path)[IDS]
        return da.from_array(
            stored,
            chunks=(self.chunk_rows,),
            name=f"ids-{self.fingerprint}",
            meta=np.empty(0, stored.dtype),  # type: ignore[union-attr]
            inline_array=True,
        )

    @property
    def skipped(self) -> SkippedSamples:
        """The samples of the dataset that are not in the pool; none for pools that were ingested."""
        group = _open_group(self.path)
        if SKIPPED[0] not in group:
            text = np.empty(0, np.dtypes.StringDType())
            return SkippedSamples(np.empty(0, np.int64), text, text)
        return SkippedSamples(*(np.asarray(group[name][:]) for name in SKIPPED))  # type: ignore[index]

    def check_unchanged(self) -> None:
        """Raise ValueError if the pool at ``path`` is no longer the one that was opened."""
        found = open_embeddings(self.path).fingerprint
        if found != self.fingerprint:
            raise ValueError(
                f"the pool {self.path} was replaced after it was opened (fingerprint {self.fingerprint[:8]} then, "
                f"{found[:8]} now): open it again with daskcurate.open_embeddings"
            )

    def __dask_tokenize__(self) -> tuple[str, str, str]:
        return ("daskcurate.Embeddings", self.path, self.fingerprint)

    def __repr__(self) -> str:
        ids = "with ids" if self.has_ids else "no ids"
        unit = "unit length" if self.normalized else "not normalized"
        return (
            f"Embeddings({self.path!r}: {len(self):,} rows x {self.dim} {self.dtype}, {unit}, {ids}, "
            f"{self.nbytes / 2**20:,.1f} MiB in {self.n_chunks:,} chunks, fingerprint {self.fingerprint[:8]})"
        )


def open_embeddings(path: PathLike) -> Embeddings:
    """Open a pool that :func:`daskcurate.ingest` made.

    Parameters
    ----------
    path
        The pool's folder, or its URL.

    Returns
    -------
    Embeddings
        The pool; no row is read.

    Raises
    ------
    FileNotFoundError
        If nothing is at ``path``.
    ValueError
        If what is there is not a complete pool.
    """
    url = as_url(path)
    if not exists(url):
        raise FileNotFoundError(f"there is no pool at {url}: make one with daskcurate.ingest(source, dest)")
    if not is_folder(url):
        raise _not_a_pool(url, "a file")
    if not is_zarr(url):
        raise _not_a_pool(url, "a folder that is not a zarr store")
    group = _open_group(url)
    metadata = group.attrs.asdict().get(ATTRIBUTE)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise _not_a_pool(url, f"a zarr group of another kind (it holds {_members(group)})")
    if metadata.get("version") != VERSION:
        raise _not_a_pool(
            url, f"a pool of version {metadata.get('version')!r}, and this release reads {VERSION}"
        )
    if metadata.get("complete") is not True:
        raise _not_a_pool(url, "the remains of an ingestion that did not finish")
    return _from_group(url, group, metadata)


def _from_group(url: str, group: zarr.Group, metadata: dict[str, Any]) -> Embeddings:
    rows, ids = group.get(ROWS), group.get(IDS)
    if not isinstance(rows, zarr.Array) or rows.ndim != 2 or str(rows.dtype) not in DTYPES:
        raise _not_a_pool(url, f"a damaged pool: its array {ROWS!r} is missing or of another kind")
    if rows.chunks[1] != rows.shape[1] or rows.compressors:
        raise _not_a_pool(url, f"a damaged pool: its array {ROWS!r} is not in plain chunks of whole rows")
    if ids is not None and (not isinstance(ids, zarr.Array) or ids.shape != rows.shape[:1]):
        raise _not_a_pool(url, f"a damaged pool: its array {IDS!r} does not fit its rows")
    return Embeddings(
        path=url,
        shape=(rows.shape[0], rows.shape[1]),
        dtype=np.dtype(str(rows.dtype)),
        chunk_rows=rows.chunks[0],
        fingerprint=str(metadata["fingerprint"]),
        normalized=bool(metadata["normalized"]),
        has_ids=ids is not None,
        source=str(metadata.get("source", "")),
    )


def _open_group(url: str) -> zarr.Group:
    opened = zarr.open(zarr_store(url, read_only=True), mode="r")
    if not isinstance(opened, zarr.Group):
        raise _not_a_pool(url, f"a single zarr array of shape {opened.shape}")
    return opened


def _members(group: zarr.Group) -> str:
    return ", ".join(sorted(group.keys())) or "nothing"


def _not_a_pool(url: str, what: str) -> ValueError:
    return ValueError(f"{url} is not a pool but {what}: make a pool with daskcurate.ingest(source, dest)")
