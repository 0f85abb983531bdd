"""From what the user names as a source to a row reader."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import zarr

from daskcurate.arrays import to_host
from daskcurate.config import check_choice
from daskcurate.embeddings import IDS, Embeddings, open_embeddings
from daskcurate.io import arrow, npy, npz, paired, parquet, tars, zarrs
from daskcurate.io.paths import (
    as_url,
    exists,
    expand_glob,
    is_folder,
    is_glob,
    is_zarr,
    list_folder,
    subfolders,
)
from daskcurate.io.sniff import FOLDER_KINDS, kind_by_name, kinds_of, stem_of
from daskcurate.io.sources import ArrayRows, ConcatRows, DaskRows, PoolReader, RowReader, open_all

FILE_FORMATS = ("npy", "npz", "memmap", "parquet", "arrow", "webdataset", "datacomp")
FORMATS = ("array", *FILE_FORMATS, "clip-retrieval", "zarr", "anndata", "pool")
WITH_COLUMN = ("parquet", "arrow", "npz", "datacomp", "webdataset", "clip-retrieval", "zarr", "anndata")
SOURCES = (
    "an array (NumPy, Dask or zarr), an Arrow table, a Hugging Face Dataset, a pool, a path, a glob, a URL, or "
    "a list of paths"
)


@dataclass(frozen=True)
class Opened:
    """An open source."""

    rows: RowReader
    format: str
    urls: tuple[str, ...] = ()
    """The files that it consists of."""
    ids: RowReader | None = None
    """Ids that came with the rows."""
    columns: tuple[str, ...] = ()
    """What may be taken as ids by name."""
    open_column: Callable[[str], RowReader] | None = None
    """Opens one of them."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user said about the source besides its name."""

    format: str | None = None
    column: str | None = None
    shape: Any = None
    source_dtype: Any = None
    ids_dtype: Any = None

    def __post_init__(self) -> None:
        if self.format is not None:
            check_choice("format", self.format, FORMATS)
        if self.column is not None and not isinstance(self.column, str):
            raise TypeError(f"column={self.column!r} is not allowed: give the name of a column or None")
        if self.ids_dtype is not None:
            self._check_ids_dtype()

    def _check_ids_dtype(self) -> None:
        allowed = "give a fixed width of bytes or characters such as 'S24' or 'U24', or an integer type"
        try:
            dtype = np.dtype(self.ids_dtype)
        except TypeError:
            raise TypeError(f"ids_dtype={self.ids_dtype!r} is not allowed: {allowed}") from None
        if dtype.kind not in "SUiu" or not dtype.itemsize:
            raise ValueError(f"ids_dtype={self.ids_dtype!r} is not allowed: {allowed}")

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
        if self.column is not None and found not in WITH_COLUMN:
            raise ValueError(
                f"column={self.column!r} is not allowed: it is for parquet and Arrow files, .npz files, tars, zarr "
                f"groups and clip-retrieval folders, and {name} is of format {found!r}"
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
    if (table := arrow.table_of(source)) is not None:
        options.require("arrow", "the table")
        rows, open_column = arrow.open_table(table, options.column, "the table")
        return Opened(rows, "arrow", columns=tuple(table.column_names), open_column=open_column)
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
    urls, has_folder = [], False
    for item in source:
        url = as_url(item, "source")
        has_folder = has_folder or is_folder(url)
        urls += _expand_glob(url) if is_glob(url) else [url]
    if not has_folder:
        return _open_files(urls, options, f"{len(source)} files")
    return _joined([_open_path(url, options) for url in urls], f"{len(source)} sources")


def _joined(parts: list[Opened], name: str) -> Opened:
    """Return several sources of one format as one."""
    formats = sorted({part.format for part in parts})
    if len(formats) > 1:
        raise ValueError(f"{name}: sources of several formats ({', '.join(formats)}): give one")
    ids = [part.ids for part in parts if part.ids is not None]
    if ids and len(ids) < len(parts):
        raise ValueError(f"{name}: some have ids and others have none: give ids=")

    def open_column(column: str) -> RowReader:
        return ConcatRows([part.open_column(column) for part in parts if part.open_column is not None], name)

    return Opened(
        ConcatRows([part.rows for part in parts], name),
        formats[0],
        tuple(url for part in parts for url in part.urls),
        ConcatRows(ids, name) if ids else None,
        tuple(item for item in parts[0].columns if all(item in part.columns for part in parts)),
        open_column,
    )


def _expand_glob(url: str) -> list[str]:
    urls = expand_glob(url)
    if not urls:
        raise FileNotFoundError(f"no file matches {url}")
    return urls


def _open_path(url: str, options: Options) -> Opened:
    if is_glob(url):
        return _open_files(_expand_glob(url), options, url)
    if not exists(url):
        raise FileNotFoundError(f"there is no file or folder at {url}")
    if not is_folder(url):
        return _open_files([url], options, url)
    if is_zarr(url):
        return _open_zarr(url, options)
    if options.format in (None, "arrow") and (files := arrow.saved_dataset(url)) is not None:
        return _open_files(files, replace(options, format="arrow"), url)
    if options.format == "clip-retrieval" or (options.format is None and paired.is_clip_folder(url)):
        return _open_clip(url, options)
    return _open_files(_files_of(url, options), options, url)


def _open_zarr(url: str, options: Options) -> Opened:
    node = zarrs.open_zarr(url)
    if zarrs.is_pool(node) and options.format != "zarr":
        return _open_pool(url, options)
    if isinstance(node, zarr.Group) and options.format != "zarr" and zarrs.is_anndata(node):
        options.require("anndata", url)
        rows, ids = zarrs.anndata_rows(node, options.column, url), zarrs.anndata_ids(node, None, url)
        open_column = partial(_anndata_column, node, url)
        return Opened(rows, "anndata", (url,), ids, zarrs.anndata_columns(node), open_column)
    options.require("zarr", url)
    return Opened(zarrs.rows_of(node, options.column, url), "zarr", (url,))


def _anndata_column(node: zarr.Group, url: str, column: str) -> RowReader:
    found = zarrs.anndata_ids(node, column, url)
    assert found is not None
    return found


def _open_pool(url: str, options: Options) -> Opened:
    options.require("pool", url)
    pool = open_embeddings(url)
    node = zarrs.open_zarr(url)
    ids = zarrs.ZarrRows(node[IDS], f"{url}/{IDS}") if pool.has_ids else None  # type: ignore[index, arg-type]
    return Opened(PoolReader(pool.rows, url), "pool", (url,), ids)


def _open_clip(folder: str, options: Options) -> Opened:
    options.require("clip-retrieval", folder)
    rows, metadata = paired.open_clip(folder, options.column)
    return _with_metadata(
        rows, "clip-retrieval", metadata, paired.clip_id_column(metadata) if metadata else None
    )


def _with_metadata(rows: RowReader, format: str, metadata: list[str], id_column: str | None) -> Opened:
    """Return rows whose ids are in a metadata file for each file of rows; the numbers of rows are compared."""
    urls = tuple(name for name, _ in rows.files)
    if not metadata:
        return Opened(rows, format, urls)

    def open_column(column: str) -> RowReader:
        found = parquet.open_parquet_ids(metadata, column, "the metadata")
        paired.require_aligned(rows, found)
        return found

    ids = None if id_column is None else open_column(id_column)
    return Opened(rows, format, urls, ids, parquet.column_names(metadata[0]), open_column)


def _files_of(folder: str, options: Options) -> list[str]:
    """Return the files of the folder that are of one known format."""
    files = list_folder(folder)
    if options.format == "memmap" and files:
        return files  # of any name
    found: dict[str, list[str]] = {}
    for url in files:
        if (kind := kind_by_name(url)) in FOLDER_KINDS:
            found.setdefault(str(kind), []).append(url)
    wanted = "npz" if options.format == "datacomp" else options.format
    if wanted in found:
        return found[wanted]
    if not found:
        names = [*(os.path.basename(url) for url in files), *(f"{name}/" for name in subfolders(folder))]
        raise ValueError(
            f"{folder} has no file of a known format (it holds {', '.join(names[:5]) or 'nothing'}), and is not a "
            f"zarr store: files of a folder are {', '.join(FOLDER_KINDS)}"
        )
    for kind in ("npz", "webdataset"):  # the parquet files beside them are metadata
        if set(found) == {kind, "parquet"} and {stem_of(url) for url in found["parquet"]} <= {
            stem_of(url) for url in found[kind]
        }:
            return found[kind]
    if len(found) > 1:
        given = " or ".join(f"format={kind!r}" for kind in found)
        raise ValueError(f"{folder} has files of several formats: give {given}")
    return next(iter(found.values()))


def _open_files(urls: list[str], options: Options, name: str) -> Opened:
    for url in urls:
        if not exists(url):
            raise FileNotFoundError(f"there is no file at {url}")
        if is_folder(url):
            raise ValueError(f"{url} is a folder, which a pattern of files must not match")
    if options.format in FILE_FORMATS:
        kinds = {str(options.format)}
    else:
        kinds = kinds_of(urls, options.shape is not None, FORMATS)
    if len(kinds) > 1:
        raise ValueError(f"{name}: files of several formats ({', '.join(sorted(kinds))}): give one")
    (kind,) = kinds
    if kind == "npz" and options.format is None and paired.is_datacomp(urls):
        kind = "datacomp"
    options.require(kind, name)
    return _OPENERS[kind](urls, options, name)


def _open_npy(urls: list[str], options: Options, name: str) -> Opened:
    return Opened(open_all(npy.open_npy, urls, name), "npy", tuple(urls))


def _open_npz(urls: list[str], options: Options, name: str) -> Opened:
    return Opened(npz.open_npz(urls, options.column, name), "npz", tuple(urls))


def _open_memmap(urls: list[str], options: Options, name: str) -> Opened:
    shape, dtype = options.shape, options.source_dtype
    if len(urls) > 1 and shape is not None and npy.memmap_shape(shape)[0] != -1:
        raise ValueError(
            f"{name}: shape={shape!r} describes one headerless file: give shape=(-1, width) for several"
        )
    return Opened(
        open_all(partial(npy.open_memmap, shape=shape, dtype=dtype), urls, name), "memmap", tuple(urls)
    )


def _open_parquet(urls: list[str], options: Options, name: str) -> Opened:
    rows = parquet.open_parquet(urls, options.column, name)
    columns = parquet.column_names(urls[0])
    return Opened(
        rows,
        "parquet",
        tuple(urls),
        None,
        columns,
        lambda column: parquet.open_parquet_ids(urls, column, name),
    )


def _open_arrow(urls: list[str], options: Options, name: str) -> Opened:
    rows = arrow.open_arrow(urls, options.column, name)
    columns = tuple(arrow.schema_of(urls[0]).names)
    return Opened(
        rows, "arrow", tuple(urls), None, columns, lambda column: arrow.open_arrow_ids(urls, column, name)
    )


def _open_tars(urls: list[str], options: Options, name: str) -> Opened:
    rows, keys = tars.open_tars(urls, options.column, name)
    return Opened(rows, "webdataset", tuple(urls), keys)


def _open_datacomp(urls: list[str], options: Options, name: str) -> Opened:
    rows, metadata = paired.open_datacomp(urls, options.column, name)
    return _with_metadata(rows, "datacomp", metadata, paired.UID)


_OPENERS: dict[str, Callable[[list[str], Options, str], Opened]] = {
    "npy": _open_npy,
    "npz": _open_npz,
    "memmap": _open_memmap,
    "parquet": _open_parquet,
    "arrow": _open_arrow,
    "webdataset": _open_tars,
    "datacomp": _open_datacomp,
}


def _check_rows(rows: RowReader) -> None:
    if len(rows.shape) != 2:
        raise ValueError(f"{rows.name} has shape {rows.shape}: give a 2-D array, (rows, width)")
    if rows.dtype.kind != "f" or rows.dtype.itemsize > 8:
        raise TypeError(f"{rows.name} holds {rows.dtype}: allowed are float16, float32 and float64")
    if rows.shape[0] == 0:
        raise ValueError(f"{rows.name} is empty: it has 0 rows")
    if rows.shape[1] == 0:
        raise ValueError(f"{rows.name} has rows of width 0")
