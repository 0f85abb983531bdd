"""Results into the files that data loaders read."""

import os
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from functools import partial
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from daskcurate.config import check_choice
from daskcurate.io.paths import PathLike, as_url, exists, is_folder, make_parent, remove, replace_file
from daskcurate.runner import run_tasks

FORMATS = ("npy", "parquet", "ids", "removed-ids")
SUFFIXES = {".npy": "npy", ".parquet": "parquet", ".txt": "ids"}
PARTIAL = ".partial"
WINDOW_ROWS = 1 << 18


def export(result: Any, dest: PathLike, format: str | None = None, *, overwrite: bool = False) -> str:
    """Write a computed result to a file.

    Parameters
    ----------
    result
        A computed Selection; for ``"parquet"`` also a computed Clustering or Hierarchy.
    dest
        Path or URL of the file.
    format
        ``"npy"``: the selected row numbers, int64, ascending, a row repeated as often as it is selected.
        ``"parquet"``: the native table, a row for every row of the pool (row, id, keep, count, clusters,
        distance, max_similarity, duplicate_of, reason, as far as they exist).
        ``"ids"``: text, the id of every selected row once, one a line.
        ``"removed-ids"``: text, the id of every other row.
        None: by the name: ``.npy``, ``.parquet``, or ``.txt`` for ``"ids"``.
    overwrite
        Whether a file at ``dest`` may be replaced.

    Returns
    -------
    str
        The absolute path, or the URL, of the file.

    Raises
    ------
    FileExistsError
        If a file is at ``dest`` and ``overwrite`` is False.
    TypeError, ValueError
        If the result or the format is of another kind than allowed.
    """
    url = as_url(dest, "dest")
    kind = format_of(url, format)
    writer = _writer_for(result, kind)
    if exists(url):
        if is_folder(url):
            raise FileExistsError(f"{url} is a folder: give the name of a file")
        if not overwrite:
            raise FileExistsError(f"{url} exists already: give another dest, or overwrite=True")
    write = writer(result)
    partial_url = url + PARTIAL
    make_parent(url)
    try:
        with fsspec.open(partial_url, "wb") as file:
            write(file)
        replace_file(partial_url, url)
    except BaseException:
        remove(partial_url)
        raise
    return url


def format_of(url: str, format: str | None) -> str:
    """Return the format to write to ``url``: the one given, or by the name."""
    if format is not None:
        return check_choice("format", format, FORMATS)
    suffix = os.path.splitext(url)[1].lower()
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    near = get_close_matches(suffix, SUFFIXES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"dest={url!r} has the suffix {suffix!r}: allowed are {', '.join(map(repr, SUFFIXES))}, or give "
        f"format= (one of {', '.join(map(repr, FORMATS))}){hint}"
    )


Write = Callable[[Any], None]


def _writer_for(result: Any, kind: str) -> Callable[[Any], Write]:
    """Return the function that reads what it can of a result, and returns one that writes to a file."""
    name = type(result).__name__
    if not hasattr(result, "columns"):
        raise TypeError(
            f"result of type {name} is not allowed: give a computed Selection, Clustering or Hierarchy"
        )
    if kind == "parquet":
        return _table
    # hasattr() on the class: on a lazy result, the property itself would raise
    if not hasattr(type(result), "indices") and "indices" not in vars(result):
        raise ValueError(
            f"format={kind!r} is not allowed for a {name}, which selects no rows: give format='parquet'"
        )
    if kind == "npy":
        return _indices
    return partial(_ids, kept=kind == "ids")


def _indices(result: Any) -> Write:
    indices = np.asarray(result.indices, np.int64)
    return lambda file: np.lib.format.write_array(file, indices, allow_pickle=False)


def _ids(result: Any, *, kept: bool) -> Write:
    counts, ids = result.counts, result.ids
    return partial(_write_ids, {"count": counts, "id": ids.rechunk(counts.chunks)}, kept)


def _write_ids(columns: dict[str, Any], kept: bool, file: Any) -> None:
    row = 0
    for block in _windows(columns):
        wanted = (block["count"] > 0) == kept
        lines = [str(item) for item in block["id"][wanted]]
        for position, line in enumerate(lines):
            if "\n" in line or "\r" in line:
                bad = row + int(np.flatnonzero(wanted)[position])
                raise ValueError(
                    f"row {bad} has the id {line!r}, which is not one line: give format='parquet'"
                )
        file.write("".join(line + "\n" for line in lines).encode())
        row += len(wanted)


def _table(result: Any) -> Write:
    columns = result.columns()
    lengths = {name: column.shape for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"the columns of a {type(result).__name__} differ in length: {lengths}")
    return partial(_write_table, columns)


def _write_table(columns: dict[str, Any], file: Any) -> None:
    schema = pa.schema([(name, _arrow_type(column.dtype)) for name, column in columns.items()])
    with pq.ParquetWriter(file, schema) as writer:
        for block in _windows(columns):
            arrays = [
                _to_arrow(values, kind) for values, kind in zip(block.values(), schema.types, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _arrow_type(dtype: np.dtype) -> pa.DataType:
    return pa.string() if dtype.kind in "TUO" else pa.from_numpy_dtype(dtype)


def _to_arrow(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    return pa.array(values.astype(object) if values.dtype.kind in "TU" else values, type=kind)


def _windows(columns: dict[str, Any]) -> Iterator[dict[str, np.ndarray]]:
    """Yield all columns for some chunks at a time, computed together: a bounded number of rows."""
    sizes = next(iter(columns.values())).chunks[0]
    first = 0
    while first < len(sizes):
        last, rows = first, 0
        while last < len(sizes) and (last == first or rows + sizes[last] <= WINDOW_ROWS):
            rows += sizes[last]
            last += 1
        blocks = run_tasks([column.blocks[first:last] for column in columns.values()])
        yield dict(zip(columns, map(np.asarray, blocks), strict=True))
        first = last
