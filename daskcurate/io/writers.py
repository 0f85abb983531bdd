"""The files of an export, each written in windows: a bounded number of rows at a time.

A writer takes a computed result, reads what it can of it at once (so that a lazy result is refused before
anything is written), and returns a function that writes to an open file.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from daskcurate.runner import run_tasks

WINDOW_ROWS = 1 << 18
SAMPLER_ROWS = 1 << 24
"""Weights that torch.multinomial, and so WeightedRandomSampler, takes at most."""
UID_DIGITS = 32
UID_DTYPE = np.dtype("u8,u8")
"""DataComp's: the upper and the lower 64 bits of a uid."""

Write = Callable[[Any], None]


def write_indices(result: Any) -> Write:
    """Return row numbers, int64, ascending, repeats kept."""
    return partial(_indices, {"count": result.counts}, len(result))


def _indices(columns: dict[str, Any], total: int, file: Any) -> None:
    _npy_header(file, np.dtype(np.int64), total)
    row = written = 0
    for block in windows(columns):
        counts = block["count"]
        rows = np.repeat(np.arange(row, row + len(counts), dtype=np.int64), counts)
        file.write(rows.astype("<i8", copy=False).tobytes())
        row, written = row + len(counts), written + len(rows)
    if written != total:
        raise ValueError(f"the selection has {written:,} rows where its store says {total:,}: run it again")


def write_weights(result: Any) -> Write:
    """Return how often each row is selected, float64, one value a row of the pool."""
    counts = result.counts
    if counts.shape[0] > SAMPLER_ROWS:
        warnings.warn(
            f"{counts.shape[0]:,} weights are more than the {SAMPLER_ROWS:,} that torch's WeightedRandomSampler "
            "takes: for it, export the row numbers (format='npy') and sample among them",
            UserWarning,
            stacklevel=3,
        )
    return partial(_weights, {"count": counts}, counts.shape[0])


def _weights(columns: dict[str, Any], n: int, file: Any) -> None:
    _npy_header(file, np.dtype(np.float64), n)
    for block in windows(columns):
        file.write(block["count"].astype("<f8").tobytes())


def _npy_header(file: Any, dtype: np.dtype, n: int) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (n,)}
    np.lib.format.write_array_header_1_0(file, header)


def _counts_and_ids(result: Any) -> dict[str, Any]:
    counts, ids = result.counts, result.ids
    return {"count": counts, "id": ids.rechunk(counts.chunks)}


def write_ids(result: Any, *, kept: bool) -> Write:
    """Return text, an id a line: of the selected rows, each once, or of all others."""
    return partial(_ids, _counts_and_ids(result), kept)


def _ids(columns: dict[str, Any], kept: bool, file: Any) -> None:
    row = 0
    for block in windows(columns):
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


def trie_library() -> Any:
    """Return the module marisa_trie; an ImportError names the extra that brings it."""
    try:
        import marisa_trie
    except ImportError as error:
        raise ImportError(
            "format='trie' needs the package marisa-trie: pip install 'daskcurate[export]'"
        ) from error
    return marisa_trie


def write_trie(result: Any) -> Write:
    """Return a trie of the ids of the selected rows, as ``marisa_trie.Trie().load`` reads it."""
    return partial(_trie, _counts_and_ids(result))


def _trie(columns: dict[str, Any], file: Any) -> None:
    keys = (str(item) for block in windows(columns) for item in block["id"][block["count"] > 0])
    file.write(trie_library().Trie(keys).tobytes())


def write_datacomp(result: Any) -> Write:
    """Return DataComp's subset file: the uids of the selected rows, sorted, repeats kept."""
    return partial(_datacomp, _counts_and_ids(result))


def _datacomp(columns: dict[str, Any], file: Any) -> None:
    parts, row = [np.empty((0, 2), np.uint64)], 0
    for block in windows(columns):
        kept = np.flatnonzero(block["count"] > 0)
        halves = _uid_halves(block["id"][kept], row + kept)
        parts.append(np.repeat(halves, block["count"][kept], axis=0))
        row += len(block["count"])
    halves = np.concatenate(parts)
    halves = halves[np.lexsort((halves[:, 1], halves[:, 0]))]
    np.lib.format.write_array(file, halves.view(UID_DTYPE).reshape(-1), allow_pickle=False)


def _uid_halves(ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return (m, 2) uint64, the halves of uids of 32 hexadecimal digits."""
    for row, uid in zip(rows, ids.tolist(), strict=True):
        if (
            not isinstance(uid, str)
            or len(uid) != UID_DIGITS
            or not set(uid) <= set("0123456789abcdefABCDEF")
        ):
            raise ValueError(
                f"row {row} has the id {uid!r}, which is not a uid of DataComp, {UID_DIGITS} hexadecimal digits: "
                "give another format"
            )
    return np.frombuffer(bytes.fromhex("".join(ids)), ">u8").astype(np.uint64).reshape(-1, 2)


def write_curator(result: Any) -> Write:
    """Return parquet with the column ``id``: the ids of all other rows, as NeMo Curator removes them."""
    return partial(_curator, _counts_and_ids(result))


def _curator(columns: dict[str, Any], file: Any) -> None:
    schema = pa.schema([("id", _arrow_type(columns["id"].dtype))])
    with pq.ParquetWriter(file, schema) as writer:
        for block in windows(columns):
            removed = block["id"][block["count"] == 0]
            if len(removed):
                writer.write_table(pa.Table.from_arrays([_to_arrow(removed, schema.types[0])], schema=schema))


def write_table(result: Any) -> Write:
    """Return the native table: every column that the result has, a row for every row of the pool."""
    columns = result.columns()
    lengths = {name: column.shape for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"the columns of a {type(result).__name__} differ in length: {lengths}")
    return partial(_table, columns)


def _table(columns: dict[str, Any], file: Any) -> None:
    schema = pa.schema([(name, _arrow_type(column.dtype)) for name, column in columns.items()])
    with pq.ParquetWriter(file, schema) as writer:
        for block in windows(columns):
            arrays = [
                _to_arrow(values, kind) for values, kind in zip(block.values(), schema.types, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _arrow_type(dtype: np.dtype) -> pa.DataType:
    return pa.string() if dtype.kind in "TUO" else pa.from_numpy_dtype(dtype)


def _to_arrow(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    return pa.array(values.astype(object) if values.dtype.kind in "TU" else values, type=kind)


def windows(columns: dict[str, Any]) -> Iterator[dict[str, np.ndarray]]:
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
