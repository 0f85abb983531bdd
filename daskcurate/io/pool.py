"""A pool on its way: made beside its final place, filled chunk by chunk, then moved there at once."""

import contextlib
import os
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import xxhash
import zarr

from daskcurate.config import digest
from daskcurate.embeddings import ATTRIBUTE, FORMAT, IDS, ROWS, VERSION
from daskcurate.io import ids as id_tools
from daskcurate.io.chunkwise import ChunkJob, Markers, Report, Written, no_report, write_chunks
from daskcurate.io.layout import chunk_bounds
from daskcurate.io.paths import (
    discard,
    exists,
    is_local,
    is_zarr,
    list_names,
    make_folder,
    make_parent,
    move_store,
    remove,
    zarr_store,
)
from daskcurate.io.rows import convert_rows
from daskcurate.io.sources import RowReader
from daskcurate.io.zarrs import is_pool, open_zarr

PARTIAL = ".partial"
REPLACED = ".replaced"


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
    run: str | None = None
    """A digest of all that decides the content: an attempt of the same digest goes on with the chunks of an
    earlier one. None: nobody can tell, so every attempt starts anew."""
    token: str = field(default_factory=lambda: os.urandom(4).hex())
    """Unique for each attempt: tasks that an earlier one left behind share no key with it, and its place only
    where they write the same."""

    @property
    def place(self) -> str:
        """The name under which the pool is made."""
        return self.run or self.token

    @property
    def partial(self) -> str:
        """Where the pool is until it is whole."""
        return f"{self.dest}{PARTIAL}/{self.place}"

    @property
    def markers(self) -> Markers | None:
        """The markers of the chunks that are written, beside the pool."""
        return None if self.run is None else Markers(f"{self.partial}.done")

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """The (start, stop) rows of every chunk."""
        return chunk_bounds(self.shape[0], self.chunk_rows)


def check_dest(dest: str, overwrite: bool) -> None:
    """Raise unless a pool may be written to ``dest``."""
    if not exists(dest):
        return
    if not overwrite:
        raise FileExistsError(f"{dest} exists already: give another dest, or overwrite=True (--overwrite)")
    if not (is_zarr(dest) and is_pool(open_zarr(dest))):
        raise ValueError(f"{dest} is not a pool, so overwrite=True does not replace it: give another dest")


def recover(dest: str, keep: tuple[str, ...] = ()) -> None:
    """Clear up after a run to ``dest`` that was killed, keeping the pool that was there before.

    Of what the run left beside ``dest``, all stays whose name starts with one of ``keep``.
    """
    if exists(dest + REPLACED):
        if exists(dest):
            remove(dest + REPLACED)
        else:
            move_store(dest + REPLACED, dest)
    left = list_names(dest + PARTIAL)
    kept = {name for name in left if name.startswith(keep)}
    if not kept:
        discard(dest + PARTIAL)
    for name in left - kept if kept else ():
        discard(f"{dest}{PARTIAL}/{name}")


def create(plan: PoolPlan, with_ids: bool, *, keep_ids: bool = False) -> None:
    """Make the empty arrays of a pool at its temporary place, or take those of an earlier attempt.

    The ids of that are made anew unless ``keep_ids``: they are cheap to write, and are not marked.
    """
    group = _resumed(plan)
    if group is None:
        discard(plan.partial)
        make_parent(plan.partial)
        group = zarr.create_group(zarr_store(plan.partial, read_only=False), attributes=_unfinished())
        group.create_array(
            ROWS,
            shape=plan.shape,
            chunks=(plan.chunk_rows, plan.shape[1]),
            dtype=plan.dtype,
            compressors=None,
            dimension_names=("row", "dim"),
        )
    if plan.markers is not None:
        make_folder(plan.markers.folder)
    if with_ids and not (keep_ids and IDS in group):
        group.create_array(
            IDS,
            shape=plan.shape[:1],
            chunks=(plan.chunk_rows,),
            dtype=str if plan.text_ids else np.int64,
            dimension_names=("row",),
            overwrite=True,
        )


def _unfinished() -> dict[str, Any]:
    return {ATTRIBUTE: {"format": FORMAT, "version": VERSION, "complete": False}}


def _resumed(plan: PoolPlan) -> zarr.Group | None:
    """Return what an earlier attempt at the same made, no longer marked as complete; None if there is nothing."""
    if plan.run is None or not exists(f"{plan.partial}/zarr.json"):
        return None
    try:
        group = zarr.open_group(zarr_store(plan.partial, read_only=False), mode="r+")
        rows = group[ROWS]
    except (KeyError, ValueError, FileNotFoundError):  # killed while it was made
        return None
    if rows.shape != plan.shape or rows.chunks[0] != plan.chunk_rows:  # type: ignore[union-attr]
        return None
    group.update_attributes(_unfinished())
    return group


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
    job = ChunkJob("ids", plan.shape[0], plan.chunk_rows, plan.token)
    written = write_chunks(job, partial(_write_ids, plan), source, report)
    if unique:
        parts = [item.hashes for item in written if item.hashes is not None]
        stored = open_zarr(plan.partial)[IDS]  # type: ignore[index]

        def read(row: int) -> int | str:
            return _item(stored[row])  # type: ignore[index]

        id_tools.require_unique(np.concatenate(parts), source, read, hint)
    return digest([item.digest for item in written])


def write_rows(
    plan: PoolPlan, source: RowReader, report: Report = no_report, *, label: str = "ingest"
) -> tuple[list[str], float, float]:
    """Write the rows that are not there yet; return every chunk's digest, and the least and greatest norm."""
    job = ChunkJob(label, plan.shape[0], plan.chunk_rows, plan.token, plan.markers)
    written = write_chunks(job, partial(_write_rows, plan), source, report, partial(_recall_rows, plan))
    low, high = min(item.low for item in written), max(item.high for item in written)
    return [item.digest for item in written], low, high


def _item(value: Any) -> int | str:
    value = np.asarray(value)[()]
    return int(value) if isinstance(value, np.integer) else str(value)


def _write_rows(plan: PoolPlan, start: int, rows: np.ndarray) -> Written:
    block, low, high = convert_rows(rows, plan.dtype, plan.normalize, near_unit=plan.near_unit)
    return store_rows(plan, start, block, low, high)


def store_rows(plan: PoolPlan, start: int, block: np.ndarray, low: float, high: float) -> Written:
    """Write a chunk of checked rows whose norms were from ``low`` to ``high``."""
    _store(plan, ROWS, start, block)
    return Written(xxhash.xxh3_128_hexdigest(block.data), low, high)


def _recall_rows(plan: PoolPlan, start: int, stop: int, marker: Written) -> Written | None:
    """Return the marker if what is stored is what it says."""
    stored = read_stored(plan, ROWS, start, stop)
    same = stored is not None and xxhash.xxh3_128_hexdigest(stored.data) == marker.digest
    return marker if same else None


def read_stored(plan: PoolPlan, name: str, start: int, stop: int) -> np.ndarray | None:
    """Return a chunk as it is stored; None if it cannot be read."""
    try:
        return np.ascontiguousarray(open_zarr(plan.partial)[name][start:stop])  # type: ignore[index]
    except (OSError, KeyError, ValueError, RuntimeError):  # missing or cut short
        return None


def _write_ids(plan: PoolPlan, start: int, ids: np.ndarray) -> Written:
    return store_ids(plan, start, id_tools.canonical_ids(ids, plan.text_ids))


def store_ids(plan: PoolPlan, start: int, block: np.ndarray) -> Written:
    """Write a chunk of canonical ids."""
    _store(plan, IDS, start, block)
    hashes = id_tools.hash_ids(block)
    return Written(xxhash.xxh3_128_hexdigest(hashes.data), hashes=hashes)


def _store(plan: PoolPlan, name: str, start: int, block: np.ndarray) -> None:
    """Write one whole chunk; leave nothing behind if the run was given up in the meantime."""
    try:
        array = zarr.open_array(zarr_store(plan.partial, read_only=False), path=name, mode="r+")
        array[start : start + len(block)] = block
    finally:
        if not exists(f"{plan.partial}/zarr.json"):
            discard(plan.partial)
            with contextlib.suppress(OSError):  # another attempt may be in it
                os.rmdir(plan.dest + PARTIAL)
