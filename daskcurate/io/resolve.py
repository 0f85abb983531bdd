"""From what the user names as a source to a row source."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import dask.array as da
import numpy as np
import zarr

from daskcurate.arrays import to_host
from daskcurate.config import check_choice
from daskcurate.embeddings import IDS, Embeddings, open_embeddings
from daskcurate.io import npy, parquet, zarrs
from daskcurate.io.paths import as_url, exists, expand_glob, is_folder, is_glob, is_zarr, list_folder
from daskcurate.io.sources import ArrayRows, DaskRows, RowSource, open_all

FORMATS = ("array", "npy", "memmap", "parquet", "zarr", "pool")
SUFFIXES = {
    ".npy": "npy",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".dat": "memmap",
    ".bin": "memmap",
    ".raw": "memmap",
    ".memmap": "memmap",
}
SOURCES = "an array (NumPy, Dask or zarr), a pool, a path, a glob, a URL, or a list of paths"


@dataclass(frozen=True)
class Opened:
    """An open source: its rows, its format, the files that it consists of, and ids that came with it."""

    rows: RowSource
    format: str
    urls: tuple[str, ...] = ()
    ids: RowSource | None = None


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user said about the source besides its name."""

    format: str | None = None
    column: str | None = None
    shape: Any = None
    source_dtype: Any = None

    def __post_init__(self) -> None:
        if self.format is not None:
            check_choice("format", self.format, FORMATS)
        if self.column is not None and not isinstance(self.column, str):
            raise TypeError(f"column={self.column!r} is not allowed: give the name of a column or None")

    def require(self, found: str, name: str) -> None:
        """Raise unless ``found`` is the format that was asked for, and the other options suit it."""
        if self.format is not None and self.format != found:
            raise ValueError(f"format={self.format!r} is not allowed: {name} is of format {found!r}")
        if found != "memmap":
            for option in ("shape", "source_dtype"):
                if (given := getattr(self, option)) is not None:
                    raise ValueError(
                        f"{option}={given!r} is not allowed: it is for headerless files (format='memmap'), "
                        f"and {name} is of format {found!r}"
                    )
        if self.column is not None and found not in ("parquet", "zarr"):
            raise ValueError(
                f"column={self.column!r} is not allowed: it is for parquet files and zarr groups, "
                f"and {name} is of format {found!r}"
            )


def open_source(source: Any, options: Options) -> Opened:
    """Open whatever the user gave; headers and metadata are read, rows are not."""
    opened = _open_object(source, options)
    if opened is None and isinstance(source, list | tuple):
        opened = _open_list(source, options)
    if opened is None and isinstance(source, str | os.PathLike):
        opened = _open_path(as_url(source, "source"), options)
    if opened is None:
        raise TypeError(f"source of type {type(source).__name__} is not allowed: give {SOURCES}")
    _check_rows(opened.rows)
    return opened


def _open_object(source: Any, options: Options) -> Opened | None:
    if isinstance(source, Embeddings):
        return _open_pool(source.path, options)
    if isinstance(source, zarr.Array | zarr.Group):
        options.require("zarr", "the zarr source")
        return Opened(zarrs.rows_of(source, options.column, "the zarr source"), "zarr")
    if isinstance(source, da.Array):
        options.require("array", "the Dask array")
        if any(np.isnan(size) for size in source.shape):
            raise ValueError(
                "the Dask array has chunks of unknown size: call its compute_chunk_sizes() first"
            )
        return Opened(DaskRows(source), "array")
    if isinstance(source, str | os.PathLike | list | tuple) or not hasattr(source, "__array__"):
        return None
    options.require("array", "the array")
    return Opened(ArrayRows(to_host(source)), "array")


def _open_list(source: Sequence[Any], options: Options) -> Opened:
    if not source:
        raise ValueError("source=[] is not allowed: give at least one path")
    for item in source:
        if not isinstance(item, str | os.PathLike):
            raise TypeError(
                f"source holds {item!r}, which is not a path: give a list of paths, or rows as a NumPy array"
            )
    return _open_files([as_url(item, "source") for item in source], options, f"{len(source)} files")


def _open_path(url: str, options: Options) -> Opened:
    if is_glob(url):
        urls = expand_glob(url)
        if not urls:
            raise FileNotFoundError(f"no file matches {url}")
        return _open_files(urls, options, url)
    if not exists(url):
        raise FileNotFoundError(f"there is no file or folder at {url}")
    if not is_folder(url):
        return _open_files([url], options, url)
    if is_zarr(url):
        return _open_zarr(url, options)
    return _open_files(_files_of(url, options), options, url)


def _open_zarr(url: str, options: Options) -> Opened:
    node = zarrs.open_zarr(url)
    if zarrs.is_pool(node) and options.format != "zarr":
        return _open_pool(url, options)
    options.require("zarr", url)
    return Opened(zarrs.rows_of(node, options.column, url), "zarr", (url,))


def _open_pool(url: str, options: Options) -> Opened:
    options.require("pool", url)
    pool = open_embeddings(url)
    node = zarrs.open_zarr(url)
    ids = zarrs.ZarrRows(node[IDS], f"{url}/{IDS}") if pool.has_ids else None  # type: ignore[index, arg-type]
    return Opened(zarrs.rows_of(node, "embeddings", url), "pool", (url,), ids)


def _files_of(folder: str, options: Options) -> list[str]:
    """Return the files of the folder that are of one known format."""
    files = list_folder(folder)
    found: dict[str, list[str]] = {}
    for url in files:
        if (kind := SUFFIXES.get(_suffix(url))) in ("npy", "parquet"):
            found.setdefault(str(kind), []).append(url)
    if options.format in found:
        return found[str(options.format)]
    if not found:
        shown = ", ".join(os.path.basename(url) for url in files[:5]) or "nothing"
        raise ValueError(f"{folder} has no .npy or .parquet file (it holds {shown}), and is not a zarr store")
    if len(found) > 1:
        raise ValueError(f"{folder} has .npy and .parquet files: give format='npy' or format='parquet'")
    return next(iter(found.values()))


def _suffix(url: str) -> str:
    return os.path.splitext(url)[1].lower()


def _open_files(urls: list[str], options: Options, name: str) -> Opened:
    for url in urls:
        if not exists(url):
            raise FileNotFoundError(f"there is no file at {url}")
        if is_folder(url):
            raise ValueError(f"{url} is a folder: give files, or one folder by itself")
    kinds = {options.format if options.format in SUFFIXES.values() else _kind(url, options) for url in urls}
    if len(kinds) > 1:
        raise ValueError(f"{name}: files of several formats ({', '.join(sorted(map(str, kinds)))}): give one")
    kind = str(kinds.pop())
    options.require(kind, name)
    if kind == "npy":
        rows = open_all(npy.open_npy, urls, name)
    elif kind == "parquet":
        rows = parquet.open_parquet(urls, options.column, name)
    elif len(urls) == 1:
        rows = npy.open_memmap(urls[0], options.shape, options.source_dtype)
    else:
        raise ValueError(f"{name}: give one headerless file, since shape= describes one")
    return Opened(rows, kind, tuple(urls))


def _kind(url: str, options: Options) -> str:
    if kind := SUFFIXES.get(_suffix(url)):
        return kind
    if options.shape is not None:
        return "memmap"
    near = get_close_matches(_suffix(url), SUFFIXES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"{url} has no known suffix: allowed are {', '.join(SUFFIXES)}; or give format= (one of "
        f"{', '.join(map(repr, FORMATS))}){hint}"
    )


def _check_rows(rows: RowSource) -> None:
    if len(rows.shape) != 2:
        raise ValueError(f"{rows.name} has shape {rows.shape}: give a 2-D array, (rows, width)")
    if rows.dtype.kind != "f" or rows.dtype.itemsize > 8:
        raise TypeError(f"{rows.name} holds {rows.dtype}: allowed are float16, float32 and float64")
    if rows.shape[0] == 0:
        raise ValueError(f"{rows.name} is empty: it has 0 rows")
    if rows.shape[1] == 0:
        raise ValueError(f"{rows.name} has rows of width 0")
