"""Ids: where they come from, their canonical form, and whether they repeat."""

import os
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import xxhash
import zarr

from daskcurate.io import npy, parquet, zarrs
from daskcurate.io.paths import as_url, exists, expand_glob, is_folder, is_glob, is_zarr, list_folder
from daskcurate.io.resolve import Opened, Options
from daskcurate.io.sniff import suffix_of
from daskcurate.io.sources import ArrayRows, BadRow, DaskRows, RowReader, describe_row, open_all
from daskcurate.io.text import TextRows

ALLOWED = (
    "None, an array or list of integers or strings, a path to .npy, .parquet (or 'file.parquet:column'), .txt or "
    "(with ids_dtype) a headerless file, the name of a column of the source, or False for row numbers"
)
INT64_MAX = np.iinfo(np.int64).max
TEXT = np.dtypes.StringDType()


def open_ids(ids: Any, opened: Opened, options: Options) -> RowReader | None:
    """Open the ids that the user gave, or those that came with the rows; check their kind and number."""
    if options.ids_dtype is not None and not isinstance(ids, str | os.PathLike):
        raise ValueError(
            f"ids_dtype={options.ids_dtype!r} is not allowed with ids={_shown(ids)}: it is for a headerless file"
        )
    if ids is False:
        return None
    source = opened.ids if ids is None else _open(ids, opened, options)
    if source is None:
        return None
    if len(source.shape) != 1:
        raise ValueError(f"{source.name}: ids have shape {source.shape}: give one id a row, shape (n,)")
    _require_as_many(source, opened.rows)
    is_text(source)
    return source


def _shown(ids: Any) -> str:
    return repr(ids) if ids is None or isinstance(ids, bool) else f"an object of type {type(ids).__name__}"


def _require_as_many(ids: RowReader, rows: RowReader) -> None:
    """Raise unless there are as many ids as rows; name the first files that differ, where they are paired."""
    if len(ids) == len(rows):
        return
    pairs = list(zip(ids.files, rows.files, strict=False)) if len(ids.files) == len(rows.files) > 1 else []
    where = next((f": {a} has {n:,}, and {b} {m:,}" for (a, n), (b, m) in pairs if n != m), "")
    raise ValueError(
        f"{ids.name} has {len(ids):,} ids, but {rows.name} has {len(rows):,} rows: give one id a row{where}"
    )


def _open(ids: Any, opened: Opened, options: Options) -> RowReader:
    if isinstance(ids, str | os.PathLike):
        return _open_path(ids, opened, options)
    if isinstance(ids, da.Array):
        return DaskRows(ids, "the Dask array of ids")
    if isinstance(ids, zarr.Array):
        return zarrs.ZarrRows(ids, "the zarr array of ids")
    if isinstance(ids, bytes | dict | set | bool) or not (
        isinstance(ids, Sequence) or hasattr(ids, "__array__")
    ):
        raise TypeError(f"ids of type {type(ids).__name__} is not allowed: give {ALLOWED}")
    if isinstance(ids, Sequence) and not hasattr(ids, "__array__"):
        ids = _from_sequence(ids)
    return ArrayRows(np.asarray(ids), "ids")


def _from_sequence(ids: Sequence[Any]) -> np.ndarray:
    """Return a list as an array, without the cast by which NumPy turns [1, "a"] into strings."""
    array = np.empty(len(ids), object)
    array[:] = ids
    if all(isinstance(item, int | np.integer) and not isinstance(item, bool) for item in ids):
        try:
            return _as_int64(array)
        except BadRow as bad:
            raise ValueError(f"ids: row {bad.row} {bad.reason}") from None
    return array


def _open_path(ids: Any, opened: Opened, options: Options) -> RowReader:
    text = os.fspath(ids)
    if options.ids_dtype is not None:
        url = as_url(ids, "ids")
        return open_all(partial(npy.open_memmap_ids, dtype=options.ids_dtype), _expand(url), url)
    if text in opened.columns and opened.open_column is not None:
        return opened.open_column(text)
    stem, colon, column = text.rpartition(":")
    if colon and suffix_of(stem) in (".parquet", ".pq"):
        urls = _expand(as_url(stem, "ids"))
        return parquet.open_parquet_ids(urls, column, stem)
    url = as_url(ids, "ids")
    if not exists(url) and not is_glob(url) and not os.path.splitext(text)[1]:
        known = f" (its columns are {', '.join(map(repr, opened.columns))})" if opened.columns else ""
        raise ValueError(
            f"ids={text!r} is neither a file nor a column of {opened.rows.name}{known}: give {ALLOWED}"
        )
    return _open_files(_expand(url), url, text)


def _expand(url: str) -> list[str]:
    if is_glob(url):
        urls = expand_glob(url)
        if not urls:
            raise FileNotFoundError(f"ids: no file matches {url}")
        return urls
    if not exists(url):
        raise FileNotFoundError(f"ids: there is no file at {url}")
    if is_folder(url) and not is_zarr(url):
        return list_folder(url)
    return [url]


def _open_files(urls: list[str], name: str, given: str) -> RowReader:
    suffixes = {suffix_of(url) for url in urls}
    if suffixes == {".npy"}:
        return open_all(npy.open_npy, urls, name)
    if suffixes and suffixes <= {".parquet", ".pq"}:
        return parquet.open_parquet_ids(urls, None, name)
    if suffixes == {".txt"}:
        return open_all(TextRows, urls, name)
    if len(urls) == 1 and is_zarr(urls[0]):
        node = zarrs.open_zarr(urls[0])
        if isinstance(node, zarr.Array):
            return zarrs.ZarrRows(node, name)
    raise ValueError(f"ids={given!r} is not of a known kind: give {ALLOWED}")


def is_text(source: RowReader) -> bool:
    """Tell whether ids are strings (or else integers); raise if they are neither."""
    kind = source.dtype.kind
    if kind == "O" and len(source) and not isinstance(source, DaskRows):
        try:
            first = source.read(0, 1)[0]
        except BadRow as bad:
            raise ValueError(f"{describe_row(source, bad.row)} {bad.reason}") from None
        kind = "U" if isinstance(first, str | bytes) else "i" if isinstance(first, int | np.integer) else "O"
        if isinstance(first, bool):
            kind = "b"
    elif kind == "O":
        kind = "U"
    if kind not in "iuUST":
        raise TypeError(f"{source.name}: ids of {source.dtype} are not allowed: give integers or strings")
    return kind in "UST"


def canonical_ids(block: np.ndarray, text: bool) -> np.ndarray:
    """Return ids as int64, or as variable-length strings; raise :class:`BadRow` for one that is neither."""
    if not text:
        return _as_int64(block)
    if block.dtype.kind == "S":
        return _decoded(block)
    if block.dtype.kind == "O":
        for row, item in enumerate(block):
            if not isinstance(item, str | bytes):
                raise BadRow(row, f"has the id {item!r}: ids must be all strings, or all integers")
        if any(isinstance(item, bytes) for item in block):
            block = np.array([_decode(row, item) for row, item in enumerate(block)], object)
    elif block.dtype.kind not in "UT":
        raise BadRow(0, f"has an id of {block.dtype}: ids must be all strings, or all integers")
    return block.astype(TEXT)


def _as_int64(block: np.ndarray) -> np.ndarray:
    if block.dtype.kind == "O":
        for row, item in enumerate(block):
            if isinstance(item, bool) or not isinstance(item, int | np.integer):
                raise BadRow(row, f"has the id {item!r}: ids must be all strings, or all integers")
    if block.dtype.kind in "Ou" and block.size and block.max() > INT64_MAX:
        row = int(np.flatnonzero(block > INT64_MAX)[0])
        raise BadRow(
            row, f"has the id {block[row]}, which is above the largest int64: give such ids as strings"
        )
    return block.astype(np.int64)


def _decoded(block: np.ndarray) -> np.ndarray:
    try:
        return np.char.decode(block, "utf-8").astype(TEXT)
    except UnicodeDecodeError:
        return np.array([_decode(row, item) for row, item in enumerate(block)], TEXT)


def _decode(row: int, item: str | bytes) -> str:
    if isinstance(item, str):
        return item
    try:
        return item.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRow(row, f"has the id {bytes(item)!r}, which is not UTF-8 text") from None


def hash_ids(block: np.ndarray) -> np.ndarray:
    """Return 64 bits for each canonical id: integers as they are, strings hashed."""
    if block.dtype.kind == "i":
        return block.view(np.uint64)
    return np.fromiter((xxhash.xxh3_64_intdigest(item.encode()) for item in block), np.uint64, len(block))


def find_repeat(hashes: np.ndarray, read: Any) -> tuple[Any, int, int] | None:
    """Return the first id that repeats and its first two rows, or None.

    Parameters
    ----------
    hashes
        (n,) uint64, equal for equal ids.
    read
        A function that returns the id of a row: ids of equal hashes are compared themselves.
    """
    ordered = np.sort(hashes)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    if not repeated.size:
        return None
    rows = np.flatnonzero(np.isin(hashes, repeated))
    by_hash = rows[np.argsort(hashes[rows], kind="stable")]
    starts = np.flatnonzero(np.r_[True, hashes[by_hash][1:] != hashes[by_hash][:-1]])
    ends = np.r_[starts[1:], len(by_hash)]
    for group in np.argsort(by_hash[starts + 1], kind="stable"):
        if (found := _repeat_among(by_hash[starts[group] : ends[group]], read)) is not None:
            return found
    return None


def _repeat_among(rows: Iterable[int], read: Any) -> tuple[Any, int, int] | None:
    seen: dict[Any, int] = {}
    for row in map(int, rows):
        value = read(row)
        if value in seen:
            return value, seen[value], row
        seen[value] = row
    return None


def require_unique(hashes: np.ndarray, source: RowReader, read: Any, hint: str = "") -> None:
    """Raise ``ValueError`` with the first repeated id and both of its rows, and a ``hint`` of what to do."""
    if (repeat := find_repeat(hashes, read)) is None:
        return
    value, first, second = repeat
    places = [describe_row(source, row) for row in (first, second)]
    raise ValueError(f"ids must not repeat, but {value!r} does: {places[0]}, and again {places[1]}{hint}")
