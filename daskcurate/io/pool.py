"""Write a pool: whole chunks by tasks, beside its final place, then moved there at once."""

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import dask
import numpy as np
import xxhash
import zarr

from daskcurate.config import digest
from daskcurate.embeddings import ATTRIBUTE, FORMAT, IDS, ROWS, VERSION
from daskcurate.io import ids as id_tools
from daskcurate.io.layout import chunk_bounds
from daskcurate.io.paths import (
    discard,
    exists,
    is_local,
    is_zarr,
    make_parent,
    move_store,
    remove,
    zarr_store,
)
from daskcurate.io.rows import convert_rows
from daskcurate.io.sources import ArrayRows, BadRow, DaskRows, RowReader, describe_row
from daskcurate.io.zarrs import is_pool, open_zarr
from daskcurate.runner import current_client, run_tasks

Report = Callable[[float, str], None]
"""Takes the fraction of the chunks that are written, and a text to show."""

PARTIAL = ".partial"
REPLACED = ".replaced"
MIN_BATCH = 64


def no_report(fraction: float, text: str) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class PoolPlan:
    """What is written where; sent to every task."""

    dest: str
    shape: tuple[int, int]
    dtype: str
    chunk_rows: int
    normalize: bool
    near_unit: bool = False
    """Whether rows of unit length up to the rounding of float16 are made so, and the others left."""
    text_ids: bool = False
    token: str = field(default_factory=lambda: os.urandom(4).hex())
    """Unique for each attempt: tasks that an earlier one left behind share no key and no place with it."""

    @property
    def partial(self) -> str:
        """Where the pool is until it is whole."""
        return f"{self.dest}{PARTIAL}/{self.token}"

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """The (start, stop) rows of every chunk."""
        return chunk_bounds(self.shape[0], self.chunk_rows)


@dataclass(frozen=True)
class Written:
    """What a task tells of the chunk that it wrote."""

    digest: str
    low: float = np.inf
    high: float = 0.0
    hashes: np.ndarray | None = None


def check_dest(dest: str, overwrite: bool) -> None:
    """Raise unless a pool may be written to ``dest``."""
    if not exists(dest):
        return
    if not overwrite:
        raise FileExistsError(f"{dest} exists already: give another dest, or overwrite=True (--overwrite)")
    if not (is_zarr(dest) and is_pool(open_zarr(dest))):
        raise ValueError(f"{dest} is not a pool, so overwrite=True does not replace it: give another dest")


def recover(dest: str) -> None:
    """Clear up after an ingestion to ``dest`` that was killed, keeping the pool that was there before."""
    if exists(dest + REPLACED):
        if exists(dest):
            remove(dest + REPLACED)
        else:
            move_store(dest + REPLACED, dest)
    discard(dest + PARTIAL)


def create(plan: PoolPlan, with_ids: bool) -> None:
    """Make the empty arrays of a pool at its temporary place."""
    make_parent(plan.partial)
    unfinished = {"format": FORMAT, "version": VERSION, "complete": False}
    group = zarr.create_group(zarr_store(plan.partial, read_only=False), attributes={ATTRIBUTE: unfinished})
    group.create_array(
        ROWS,
        shape=plan.shape,
        chunks=(plan.chunk_rows, plan.shape[1]),
        dtype=plan.dtype,
        compressors=None,
        dimension_names=("row", "dim"),
    )
    if with_ids:
        group.create_array(
            IDS,
            shape=plan.shape[:1],
            chunks=(plan.chunk_rows,),
            dtype=str if plan.text_ids else np.int64,
            dimension_names=("row",),
        )


def give_up(plan: PoolPlan) -> None:
    """Remove what there is of the pool."""
    discard(plan.dest + PARTIAL)


def commit(plan: PoolPlan, metadata: dict[str, Any]) -> None:
    """Mark the pool as complete and move it to its place, over the pool that is there."""
    group = zarr.open_group(zarr_store(plan.partial, read_only=False), mode="r+")
    complete = {"format": FORMAT, "version": VERSION} | metadata | {"complete": True}
    group.update_attributes({ATTRIBUTE: complete})
    if not exists(plan.dest):
        move_store(plan.partial, plan.dest)
    elif is_local(plan.dest):
        _swap(plan)
    else:  # no rename there: without its marker, what is left at dest is no pool
        remove(f"{plan.dest}/zarr.json")
        remove(plan.dest)
        move_store(plan.partial, plan.dest)
    discard(plan.dest + PARTIAL)


def _swap(plan: PoolPlan) -> None:
    os.rename(plan.dest, plan.dest + REPLACED)
    try:
        os.rename(plan.partial, plan.dest)
    except BaseException:
        os.rename(plan.dest + REPLACED, plan.dest)
        raise
    remove(plan.dest + REPLACED)


def write_ids(
    plan: PoolPlan, source: RowReader, report: Report = no_report, *, unique: bool = True, hint: str = ""
) -> str:
    """Write all ids and return their digest; check that none repeats (or ``unique`` is False)."""
    written = _run("ids", _write_ids, plan, source, report)
    if unique:
        parts = [item.hashes for item in written if item.hashes is not None]
        stored = open_zarr(plan.partial)[IDS]  # type: ignore[index]

        def read(row: int) -> int | str:
            return _item(stored[row])  # type: ignore[index]

        id_tools.require_unique(np.concatenate(parts), source, read, hint)
    return digest([item.digest for item in written])


def write_rows(
    plan: PoolPlan, source: RowReader, report: Report = no_report
) -> tuple[list[str], float, float]:
    """Write all rows; return the digest of every chunk, and the least and greatest norm."""
    written = _run("ingest", _write_rows, plan, source, report)
    low, high = min(item.low for item in written), max(item.high for item in written)
    return [item.digest for item in written], low, high


def _item(value: Any) -> int | str:
    value = np.asarray(value)[()]
    return int(value) if isinstance(value, np.integer) else str(value)


def _write_rows(plan: PoolPlan, start: int, rows: np.ndarray) -> Written:
    block, low, high = convert_rows(rows, plan.dtype, plan.normalize, near_unit=plan.near_unit)
    _store(plan, ROWS, start, block)
    return Written(xxhash.xxh3_128_hexdigest(block.data), low, high)


def _write_ids(plan: PoolPlan, start: int, ids: np.ndarray) -> Written:
    block = id_tools.canonical_ids(ids, plan.text_ids)
    _store(plan, IDS, start, block)
    hashes = id_tools.hash_ids(block)
    return Written(xxhash.xxh3_128_hexdigest(hashes.data), hashes=hashes)


def _store(plan: PoolPlan, name: str, start: int, block: np.ndarray) -> None:
    """Write one whole chunk; leave nothing behind if the ingestion was given up in the meantime."""
    try:
        array = zarr.open_array(zarr_store(plan.partial, read_only=False), path=name, mode="r+")
        array[start : start + len(block)] = block
    finally:
        if not exists(f"{plan.partial}/zarr.json"):
            discard(plan.partial)
            with contextlib.suppress(OSError):  # another attempt may be in it
                os.rmdir(plan.dest + PARTIAL)


Writer = Callable[[PoolPlan, int, np.ndarray], Written]
Bounds = list[tuple[int, int]]


def _attempt(
    writer: Writer, plan: PoolPlan, bounds: Bounds, rows: RowReader | np.ndarray, name: str
) -> list[Any]:
    """Write neighbouring chunks; return what went wrong instead of raising it.

    So a batch always runs to its end: no task still writes while the client clears up.
    """
    source = rows if isinstance(rows, RowReader) else ArrayRows(rows, name)
    origin = bounds[0][0]
    done: list[Any] = []
    try:
        blocks = source.stream([(start - origin, stop - origin) for start, stop in bounds])
        for (start, _), block in zip(bounds, blocks, strict=True):
            done.append(writer(plan, start, block))
    except BadRow as bad:
        row = bounds[len(done)][0] - origin + bad.row
        own = isinstance(rows, RowReader)
        place = describe_row(source, row, origin) if own else f"{name}: row {origin + row}"
        return [ValueError(f"{place} {bad.reason}")]
    except Exception as error:  # whatever it is, the client raises it
        return [error]
    return done


def chunk_runs(source: RowReader, bounds: Bounds, chunk_rows: int) -> list[Bounds]:
    """Return the chunks that one task writes.

    One each, unless the source cannot be read from near the chunk's first row on (a large row group of a
    parquet file, a compressed file): then the chunks that are decoded together, since every task on its own
    would decode all that comes before.
    """
    runs: list[Bounds] = []
    for start, stop in bounds:
        if runs and start - source.seek_point(start) > chunk_rows:
            runs[-1].append((start, stop))
        else:
            runs.append([(start, stop)])
    return runs


def _run(label: str, writer: Writer, plan: PoolPlan, source: RowReader, report: Report) -> list[Written]:
    """Write every chunk, by tasks in bounded batches, or in this process if the rows are in its memory."""
    done: list[Written] = []
    bounds = plan.bounds
    count, lock = 0, threading.Lock()

    def advance(chunks: int) -> None:
        nonlocal count
        with lock:
            count += chunks
            report(count / len(bounds), f"{label}: {count:,} of {len(bounds):,} chunks")

    if source.in_process:
        for start, stop in bounds:
            done += _checked([_attempt(writer, plan, [(start, stop)], source.cut(start, stop), source.name)])
            advance(1)
        return done
    blocks = source.blocks(plan.chunk_rows) if isinstance(source, DaskRows) else None
    runs = chunk_runs(source, bounds, plan.chunk_rows)
    size = _batch_size()
    for first in range(0, len(runs), size):
        tasks, sizes = [], []
        for index in range(first, min(first + size, len(runs))):
            found = runs[index]
            rows = source.cut(found[0][0], found[-1][1]) if blocks is None else blocks[index]
            task = dask.delayed(_attempt, pure=False)
            key = f"{label}-{index}-{plan.token}"
            tasks.append(task(writer, plan, found, rows, source.name, dask_key_name=key))
            sizes.append(len(found))
        done += _checked(run_tasks(tasks, partial(_advance, advance, sizes)))
    return done


def _advance(advance: Callable[[int], None], sizes: list[int], task: int) -> None:
    advance(sizes[task])


def _batch_size() -> int:
    client = current_client()
    threads = sum(client.nthreads().values()) if client is not None else 0
    return max(MIN_BATCH, 4 * threads)


def _checked(results: Sequence[list[Any]]) -> list[Written]:
    written = [item for found in results for item in found]
    for item in written:
        if isinstance(item, BaseException):
            raise item
    return written
