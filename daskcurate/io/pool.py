"""Write a pool: whole chunks by tasks, beside its final place, then moved there at once."""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
from daskcurate.io.sources import ArrayRows, BadRow, DaskRows, RowSource, describe_row
from daskcurate.io.zarrs import is_pool, open_zarr
from daskcurate.runner import current_client, run_tasks

PARTIAL = ".partial"
REPLACED = ".replaced"
MIN_BATCH = 64


@dataclass(frozen=True)
class PoolPlan:
    """What is written where; sent to every task."""

    dest: str
    shape: tuple[int, int]
    dtype: str
    chunk_rows: int
    normalize: bool
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
        raise FileExistsError(f"{dest} exists already: give another dest, or overwrite=True")
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


def write_ids(plan: PoolPlan, source: RowSource) -> str:
    """Write all ids, check that none repeats, and return their digest."""
    written = _run("ids", _write_ids, plan, source)
    parts = [item.hashes for item in written if item.hashes is not None]
    stored = open_zarr(plan.partial)[IDS]  # type: ignore[index]
    id_tools.require_unique(np.concatenate(parts), source, lambda row: _item(stored[row]))  # type: ignore[index]
    return digest([item.digest for item in written])


def write_rows(plan: PoolPlan, source: RowSource) -> tuple[list[str], float, float]:
    """Write all rows; return the digest of every chunk, and the least and greatest norm."""
    written = _run("ingest", _write_rows, plan, source)
    low, high = min(item.low for item in written), max(item.high for item in written)
    return [item.digest for item in written], low, high


def _item(value: Any) -> int | str:
    value = np.asarray(value)[()]
    return int(value) if isinstance(value, np.integer) else str(value)


def _write_rows(plan: PoolPlan, start: int, rows: RowSource) -> Written:
    block, low, high = convert_rows(rows.read(0, len(rows)), plan.dtype, plan.normalize)
    _store(plan, ROWS, start, block)
    return Written(xxhash.xxh3_128_hexdigest(block.data), low, high)


def _write_ids(plan: PoolPlan, start: int, rows: RowSource) -> Written:
    block = id_tools.canonical_ids(rows.read(0, len(rows)), plan.text_ids)
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


Writer = Callable[[PoolPlan, int, RowSource], Written]


def _attempt(writer: Writer, plan: PoolPlan, start: int, rows: RowSource | np.ndarray, name: str) -> Any:
    """Write one chunk; return what went wrong instead of raising it.

    So a batch always runs to its end: no task still writes while the client clears up.
    """
    source = rows if isinstance(rows, RowSource) else ArrayRows(rows, name)
    try:
        return writer(plan, start, source)
    except BadRow as bad:
        own = isinstance(rows, RowSource)
        place = describe_row(source, bad.row, start) if own else f"{name}: row {start + bad.row}"
        return ValueError(f"{place} {bad.reason}")
    except Exception as error:  # whatever it is, the client raises it
        return error


def _run(label: str, writer: Writer, plan: PoolPlan, source: RowSource) -> list[Written]:
    """Write every chunk, by tasks in bounded batches, or in this process if the rows are in its memory."""
    done: list[Written] = []
    bounds = plan.bounds
    if source.in_process:
        for start, stop in bounds:
            done += _checked([_attempt(writer, plan, start, source.cut(start, stop), source.name)])
        return done
    blocks = source.blocks(plan.chunk_rows) if isinstance(source, DaskRows) else None
    size = _batch_size()
    for first in range(0, len(bounds), size):
        tasks = []
        for index in range(first, min(first + size, len(bounds))):
            start, stop = bounds[index]
            rows = source.cut(start, stop) if blocks is None else blocks[index]
            task = dask.delayed(_attempt, pure=False)
            tasks.append(
                task(writer, plan, start, rows, source.name, dask_key_name=f"{label}-{index}-{plan.token}")
            )
        done += _checked(run_tasks(tasks))
    return done


def _batch_size() -> int:
    client = current_client()
    threads = sum(client.nthreads().values()) if client is not None else 0
    return max(MIN_BATCH, 4 * threads)


def _checked(results: Sequence[Any]) -> list[Written]:
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return list(results)
