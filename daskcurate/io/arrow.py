"""Rows and ids of Arrow IPC files and streams: feather files, and what Hugging Face `datasets` saves."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa

from daskcurate.io import columns
from daskcurate.io.paths import exists, is_local, list_folder
from daskcurate.io.sources import ArrayRows, BadRow, RowReader, SequentialRows, open_all

FILE_MAGIC = b"ARROW1"
SLICE_BYTES = 8 << 20


@contextmanager
def _opened(url: str) -> Iterator[Any]:
    """Yield the file as Arrow reads it: mapped where it is local, so only what is looked at is read."""
    if is_local(url):
        with pa.memory_map(url) as file:
            yield file
    else:
        with fsspec.open(url, "rb") as file:
            yield pa.PythonFile(file, mode="r")


class ArrowRows(SequentialRows):
    """One column of an Arrow file or stream: (n, d) for a column of lists, (n,) for a column of ids.

    Record batches are found by their place: the number in a file, the byte in a stream.
    """

    def __init__(self, url: str, column: str, shape: tuple[int, ...], dtype: Any, batches: "Batches"):
        super().__init__(url, shape, dtype)
        self.url = url
        self.column = column
        self.batches = batches

    def stream(self, ranges: Iterable[tuple[int, int]]) -> Iterator[np.ndarray]:
        """Yield the rows of ascending ranges."""
        ranges = list(ranges)
        width = self.shape[1] if len(self.shape) == 2 else None
        return self.assemble(
            ranges,
            self._slices(*ranges[0][:1], ranges[-1][1]),
            lambda values: columns.column_values(values, self.column, width),
        )

    def seek_point(self, row: int) -> int:
        """Return ``row``; what has to be read before it is headers, except at a URL."""
        return row

    def _slices(self, start: int, stop: int) -> Iterator[tuple[int, Any]]:
        """Yield slices of the column that are small enough to be converted at once, from ``start`` on."""
        items = 1 if len(self.shape) == 1 else self.shape[1]
        size = max(16, SLICE_BYTES // (8 * items))
        with _opened(self.url) as file:
            for row, batch in self.batches.read(file, self.column, start, stop):
                values = batch.column(0)
                for low in range(max(0, start - row), min(len(values), stop - row), size):
                    yield row + low, values[low : low + size]


class Batches:
    """Where the record batches of a file or stream are.

    Parameters
    ----------
    ends
        (m,) int64, the row after the last one of each batch.
    places
        (m,) int64, the byte at which each batch of a stream starts; None: a file, which knows by itself, or a
        stream with dictionaries, which is read from its start.
    """

    def __init__(self, schema: pa.Schema, ends: np.ndarray, places: np.ndarray | None, in_file: bool):
        self.schema = schema
        self.ends = ends
        self.places = places
        self.in_file = in_file

    def read(self, file: Any, column: str, start: int, stop: int) -> Iterator[tuple[int, Any]]:
        """Yield (first row, record batch of the one column) of all batches that hold rows of the range."""
        options = pa.ipc.IpcReadOptions(included_fields=[self.schema.get_field_index(column)])
        first = int(np.searchsorted(self.ends, start, side="right"))
        last = int(np.searchsorted(self.ends, stop, side="left"))
        found: Iterator[pa.RecordBatch]
        if self.in_file:
            reader = pa.ipc.open_file(file, options=options)
            found = (reader.get_batch(index) for index in range(first, last + 1))
        elif self.places is None:
            found = _skipped(pa.ipc.open_stream(file, options=options), first)
        else:
            found = self._from_places(file, column, first, last)
        for index, batch in zip(range(first, last + 1), found, strict=False):
            yield (int(self.ends[index - 1]) if index else 0), batch

    def _from_places(self, file: Any, column: str, first: int, last: int) -> Iterator[pa.RecordBatch]:
        assert self.places is not None
        for index in range(first, last + 1):
            file.seek(int(self.places[index]))
            yield pa.ipc.read_record_batch(pa.ipc.read_message(file), self.schema).select([column])


def _skipped(reader: Any, count: int) -> Iterator[pa.RecordBatch]:
    for index, batch in enumerate(reader):
        if index >= count:
            yield batch


def _index(url: str) -> Batches:
    """Find the record batches of a file or a stream; of a local one only headers are read."""
    with _opened(url) as file:
        is_file = file.read(len(FILE_MAGIC)) == FILE_MAGIC
        file.seek(0)
        try:
            if is_file:
                reader = pa.ipc.open_file(file)
                sizes = [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]
                return Batches(reader.schema, np.cumsum(sizes or [0], dtype=np.int64), None, True)
            return _stream_index(file)
        except (pa.ArrowInvalid, OSError, EOFError) as error:
            raise ValueError(f"{url} is not an Arrow file or stream that can be read: {error}") from error


def _stream_index(file: Any) -> Batches:
    stream = pa.ipc.open_stream(file)
    schema, places = stream.schema, None
    if any(pa.types.is_dictionary(field.type) for field in schema):
        sizes = [batch.num_rows for batch in stream]
    else:
        sizes, places = [], []
        file.seek(0)
        pa.ipc.read_message(file)  # the schema
        while True:
            place = file.tell()
            try:
                message = pa.ipc.read_message(file)
            except EOFError:
                break
            sizes.append(pa.ipc.read_record_batch(message, schema).num_rows)
            places.append(place)
    ends = np.cumsum(sizes or [0], dtype=np.int64)
    return Batches(schema, ends, None if places is None else np.array(places, np.int64), False)


def schema_of(url: str) -> pa.Schema:
    """Return the schema of a file or stream."""
    with _opened(url) as file:
        is_file = file.read(len(FILE_MAGIC)) == FILE_MAGIC
        file.seek(0)
        try:
            return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(file).schema
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{url} is not an Arrow file or stream that can be read: {error}") from error


def _open_vectors(url: str, column: str) -> RowReader:
    batches = _index(url)
    kind = columns.vector_type(url, batches.schema, column)
    n = int(batches.ends[-1])
    if pa.types.is_fixed_size_list(kind):
        width = kind.list_size
    else:
        with _opened(url) as file:
            width = _first_width(batches.read(file, column, 0, 1), url, column) if n else 0
    return ArrowRows(url, column, (n, width), columns.vector_dtype(kind), batches)


def _first_width(found: Iterator[tuple[int, Any]], url: str, column: str) -> int:
    for _, batch in found:
        if len(batch):
            if not batch.column(0)[0].is_valid:
                raise ValueError(f"{url}: row 0 is null in column {column!r}")
            return len(batch.column(0)[0])
    return 0


def _open_ids(url: str, column: str) -> RowReader:
    batches = _index(url)
    dtype = columns.id_dtype(url, batches.schema, column)
    return ArrowRows(url, column, (int(batches.ends[-1]),), dtype, batches)


def open_arrow(urls: list[str], column: str | None, name: str) -> RowReader:
    """Open the embeddings of one or more Arrow files."""
    chosen = columns.choose_vector_column(os.path.basename(urls[0]), schema_of(urls[0]), column)
    return open_all(partial(_open_vectors, column=chosen), urls, name)


def open_arrow_ids(urls: list[str], column: str, name: str) -> RowReader:
    """Open the ids of one or more Arrow files."""
    return open_all(partial(_open_ids, column=column), urls, name)


def saved_dataset(folder: str) -> list[str] | None:
    """Return the files of a folder that ``Dataset.save_to_disk`` wrote, in their order; None if it is none."""
    if exists(f"{folder}/dataset_dict.json"):
        splits = _json(f"{folder}/dataset_dict.json").get("splits", [])
        raise ValueError(
            f"{folder} is a saved DatasetDict of the splits {columns.listed(splits)}: give one split's folder, "
            f"such as {folder}/{splits[0] if splits else 'train'}"
        )
    if not exists(f"{folder}/state.json"):
        return None
    state = _json(f"{folder}/state.json")
    files = state.get("_data_files")
    if not isinstance(files, list):
        return None
    if state.get("_indices_data_files"):
        raise ValueError(f"{folder} selects rows by a file of indices: save it after flatten_indices()")
    there = {os.path.basename(url) for url in list_folder(folder)}
    names = [str(item["filename"]) for item in files]
    if not names:
        raise ValueError(f"{folder} is a saved Dataset without any file of rows")
    for name in names:
        if name not in there:
            raise FileNotFoundError(f"{folder} lacks {name}, which its state.json names")
    return [f"{folder}/{name}" for name in names]


def _json(url: str) -> dict[str, Any]:
    with fsspec.open(url, "rb") as file:
        found = json.load(file)
    return found if isinstance(found, dict) else {}


class TableRows(RowReader):
    """One column of an Arrow table in this process's memory (or mapped into it)."""

    in_process = True

    def __init__(self, table: pa.Table, column: str, width: int | None, dtype: Any, name: str):
        shape = (table.num_rows,) if width is None else (table.num_rows, width)
        super().__init__(name, shape, dtype)
        self.table, self.column, self.width = table, column, width

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows ``start`` to ``stop``."""
        parts, row = [], start
        for values in self.table.column(self.column).slice(start, stop - start).chunks:
            try:
                parts.append(columns.column_values(values, self.column, self.width))
            except BadRow as bad:
                raise BadRow(row - start + bad.row, bad.reason) from None
            row += len(values)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def table_of(source: Any) -> pa.Table | None:
    """Return the Arrow table of a table or of a Hugging Face Dataset; None for anything else."""
    if isinstance(source, pa.Table):
        return source
    if type(source).__module__.partition(".")[0] != "datasets" or not hasattr(source, "flatten_indices"):
        return None
    if getattr(source, "_indices", None) is not None:
        raise ValueError("the dataset selects or shuffles rows by indices: call its flatten_indices() first")
    return source.data.table


def open_table(
    table: pa.Table, column: str | None, name: str
) -> tuple[RowReader, Callable[[str], RowReader]]:
    """Return the embeddings of a table, and a function that opens a column of ids."""
    chosen = columns.choose_vector_column(name, table.schema, column)
    kind = columns.vector_type(name, table.schema, chosen)
    if pa.types.is_fixed_size_list(kind):
        width = kind.list_size
    else:
        first = table.column(chosen)[0] if len(table) else None
        if first is not None and not first.is_valid:
            raise ValueError(f"{name}: row 0 is null in column {chosen!r}")
        width = 0 if first is None else len(first)

    def ids(wanted: str) -> RowReader:
        return TableRows(table, wanted, None, columns.id_dtype(name, table.schema, wanted), name)

    if not len(table):
        return ArrayRows(np.empty((0, width), columns.vector_dtype(kind)), name), ids
    return TableRows(table, chosen, width, columns.vector_dtype(kind), name), ids
