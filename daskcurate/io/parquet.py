"""Rows and ids of parquet files, read a batch at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from daskcurate.io.sources import BadRow, RowSource, open_all

BATCH_BYTES = 8 << 20
ID_BATCH_ROWS = 1 << 16


@contextmanager
def _opened(url: str) -> Iterator[pq.ParquetFile]:
    with fsspec.open(url, "rb") as file:
        try:
            parquet = pq.ParquetFile(file, pre_buffer=False)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{url} is not a parquet file that can be read: {error}") from error
        yield parquet


class ParquetRows(RowSource):
    """One column of a parquet file: (n, d) for a column of lists, (n,) for a column of ids.

    A batch is decoded at a time, from the start of the first row group that overlaps, so memory does not
    grow with the size of the row groups.
    """

    def __init__(self, url: str, column: str, shape: tuple[int, ...], dtype: Any, group_ends: np.ndarray):
        super().__init__(url, shape, dtype)
        self.url = url
        self.column = column
        self.group_ends = group_ends

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows ``start`` to ``stop``."""
        block = np.empty((stop - start, *self.shape[1:]), self.dtype)
        for row, values in self._batches(start, stop):
            low, high = max(start, row), min(stop, row + len(values))
            if low < high:
                try:
                    block[low - start : high - start] = self._convert(values[low - row : high - row])
                except BadRow as bad:
                    raise BadRow(low - start + bad.row, bad.reason) from None
        return block

    def _batches(self, start: int, stop: int) -> Iterator[tuple[int, Any]]:
        first = int(np.searchsorted(self.group_ends, start, side="right"))
        last = int(np.searchsorted(self.group_ends, stop, side="left"))
        row = int(self.group_ends[first - 1]) if first else 0
        size = ID_BATCH_ROWS if len(self.shape) == 1 else max(16, BATCH_BYTES // (8 * self.shape[1]))
        with _opened(self.url) as parquet:
            groups = list(range(first, last + 1))
            for batch in parquet.iter_batches(
                size, row_groups=groups, columns=[self.column], use_threads=False
            ):
                yield row, batch.column(0)
                row += batch.num_rows
                if row >= stop:
                    return

    def _convert(self, values: Any) -> np.ndarray:
        if values.null_count:
            raise BadRow(int(np.flatnonzero(values.is_null())[0]), f"is null in column {self.column!r}")
        if len(self.shape) == 1:
            return _id_values(values)
        width = self.shape[1]
        if not pa.types.is_fixed_size_list(values.type):
            widths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
            other = np.flatnonzero(widths != width)
            if other.size:
                raise BadRow(other[0], f"has width {widths[other[0]]}, but the rows before it {width}")
        return values.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)


def _id_values(values: Any) -> np.ndarray:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    return values.to_numpy(zero_copy_only=False)


def _is_vector(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and pa.types.is_floating(kind.value_type)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(check(kind) for check in (*checks, pa.types.is_binary, pa.types.is_large_binary))


def _is_id(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or _is_text(kind)


def column_names(url: str) -> list[str]:
    """Return the names of a file's columns."""
    with _opened(url) as parquet:
        return list(parquet.schema_arrow.names)


def choose_vector_column(url: str, column: str | None) -> str:
    """Return ``column`` if it holds lists of floats, or the only column that does."""
    with _opened(url) as parquet:
        schema = parquet.schema_arrow
    vectors = [field.name for field in schema if _is_vector(field.type)]
    name = os.path.basename(url)
    if column is None:
        if len(vectors) == 1:
            return vectors[0]
        if vectors:
            raise ValueError(f"{name} has several columns of embeddings ({_listed(vectors)}): give column=")
        raise ValueError(f"{name} has no column of lists of floats; its columns are {_listed(schema.names)}")
    _require_column(name, schema, column)
    if column not in vectors:
        kind = schema.field(column).type
        raise TypeError(f"column={column!r} of {name} holds {kind}: give a column of lists of floats")
    return column


def _require_column(name: str, schema: pa.Schema, column: str) -> None:
    if column not in schema.names:
        raise ValueError(f"column={column!r} is not in {name}: give one of {_listed(schema.names)}")


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "none"


def open_vectors(url: str, column: str) -> RowSource:
    """Open a column of lists of floats: the file's metadata and first row are read."""
    with _opened(url) as parquet:
        _require_column(url, parquet.schema_arrow, column)
        kind = parquet.schema_arrow.field(column).type
        if not _is_vector(kind):
            raise TypeError(f"column={column!r} of {url} holds {kind}: give a column of lists of floats")
        ends = _group_ends(parquet)
        if pa.types.is_fixed_size_list(kind):
            width = kind.list_size
        else:
            width = _first_width(url, parquet, column)
    dtype = np.dtype(kind.value_type.to_pandas_dtype())
    return ParquetRows(url, column, (int(ends[-1]), width), dtype, ends)


def _first_width(url: str, parquet: pq.ParquetFile, column: str) -> int:
    for batch in parquet.iter_batches(1, columns=[column], use_threads=False):
        first = batch.column(0)[0]
        if not first.is_valid:
            raise ValueError(f"{url}: row 0 is null in column {column!r}")
        return len(first)
    return 0


def _group_ends(parquet: pq.ParquetFile) -> np.ndarray:
    metadata = parquet.metadata
    sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    return np.cumsum(sizes or [0], dtype=np.int64)


def choose_id_column(url: str, column: str | None) -> str:
    """Return ``column`` if it holds integers or strings, or the first column that does."""
    with _opened(url) as parquet:
        schema = parquet.schema_arrow
    name = os.path.basename(url)
    if column is not None:
        _require_column(name, schema, column)
        return column
    suitable = [field.name for field in schema if _is_id(field.type)]
    if not suitable:
        raise ValueError(f"{name} has no column of integers or strings for ids")
    return suitable[0]


def open_id_column(url: str, column: str) -> RowSource:
    """Open a column of integers or strings."""
    with _opened(url) as parquet:
        _require_column(url, parquet.schema_arrow, column)
        kind = parquet.schema_arrow.field(column).type
        if not _is_id(kind):
            raise TypeError(f"ids: column {column!r} of {url} holds {kind}; allowed are integers and strings")
        ends = _group_ends(parquet)
    dtype = np.dtype(object) if _is_text(kind) else np.dtype(kind.to_pandas_dtype())
    return ParquetRows(url, column, (int(ends[-1]),), dtype, ends)


def open_parquet(urls: list[str], column: str | None, name: str) -> RowSource:
    """Open the embeddings of one or more parquet files."""
    chosen = choose_vector_column(urls[0], column)
    return open_all(partial(open_vectors, column=chosen), urls, name)


def open_parquet_ids(urls: list[str], column: str | None, name: str) -> RowSource:
    """Open the ids of one or more parquet files."""
    chosen = choose_id_column(urls[0], column)
    return open_all(partial(open_id_column, column=chosen), urls, name)
