"""Rows and ids of parquet files, read a batch at a time."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from daskcurate.io import columns
from daskcurate.io.sources import RowReader, SequentialRows, open_all

BATCH_BYTES = 8 << 20
READ_BYTES = 4 << 20
ID_BATCH_ROWS = 1 << 16


@contextmanager
def _opened(url: str) -> Iterator[pq.ParquetFile]:
    with fsspec.open(url, "rb") as file:
        try:
            # without a buffer, a column's part of a row group is read whole before it is decoded
            parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=READ_BYTES)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{url} is not a parquet file that can be read: {error}") from error
        yield parquet


class ParquetRows(SequentialRows):
    """One column of a parquet file: (n, d) for a column of lists, (n,) for a column of ids.

    A batch is decoded at a time, from the start of the first row group that overlaps, so memory does not
    grow with the size of the row groups.
    """

    def __init__(self, url: str, column: str, shape: tuple[int, ...], dtype: Any, group_ends: np.ndarray):
        super().__init__(url, shape, dtype)
        self.url = url
        self.column = column
        self.group_ends = group_ends

    def stream(self, ranges: Iterable[tuple[int, int]]) -> Iterator[np.ndarray]:
        """Yield the rows of ascending ranges; a row group is decoded once."""
        ranges = list(ranges)
        width = self.shape[1] if len(self.shape) == 2 else None
        batches = self._batches(ranges[0][0], ranges[-1][1])
        return self.assemble(
            ranges, batches, lambda values: columns.column_values(values, self.column, width)
        )

    def seek_point(self, row: int) -> int:
        """Return the first row of the row group that holds ``row``."""
        group = int(np.searchsorted(self.group_ends, row, side="right"))
        return int(self.group_ends[group - 1]) if group else 0

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


def schema_of(url: str) -> pa.Schema:
    """Return a file's schema."""
    with _opened(url) as parquet:
        return parquet.schema_arrow


def column_names(url: str) -> tuple[str, ...]:
    """Return the names of a file's columns."""
    return tuple(schema_of(url).names)


def open_vectors(url: str, column: str) -> RowReader:
    """Open a column of lists of floats: the file's metadata and first row are read."""
    with _opened(url) as parquet:
        kind = columns.vector_type(url, parquet.schema_arrow, column)
        ends = _group_ends(parquet)
        if pa.types.is_fixed_size_list(kind):
            width = kind.list_size
        else:
            width = _first_width(url, parquet, column)
    return ParquetRows(url, column, (int(ends[-1]), width), columns.vector_dtype(kind), ends)


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


def open_id_column(url: str, column: str) -> RowReader:
    """Open a column of integers or strings."""
    with _opened(url) as parquet:
        dtype = columns.id_dtype(url, parquet.schema_arrow, column)
        ends = _group_ends(parquet)
    return ParquetRows(url, column, (int(ends[-1]),), dtype, ends)


def open_parquet(urls: list[str], column: str | None, name: str) -> RowReader:
    """Open the embeddings of one or more parquet files."""
    chosen = columns.choose_vector_column(os.path.basename(urls[0]), schema_of(urls[0]), column)
    return open_all(partial(open_vectors, column=chosen), urls, name)


def open_parquet_ids(urls: list[str], column: str | None, name: str) -> RowReader:
    """Open the ids of one or more parquet files."""
    chosen = columns.choose_id_column(os.path.basename(urls[0]), schema_of(urls[0]), column)
    return open_all(partial(open_id_column, column=chosen), urls, name)
