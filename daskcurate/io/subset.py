"""The selected rows of a pool as a pool of their own."""

import os
from collections.abc import Iterator
from typing import Any

import dask
import numpy as np

from daskcurate.config import check_flag, check_int, digest
from daskcurate.embeddings import IDS, Embeddings, open_embeddings
from daskcurate.io import npy, parquet, pool, zarrs
from daskcurate.io.layout import chunk_bounds, chunk_rows_for
from daskcurate.io.paths import PathLike, as_url, exists
from daskcurate.io.sniff import suffix_of
from daskcurate.io.sources import ArrayRows, CutRows, NumberRows, PoolReader, RowReader
from daskcurate.progress import job_progress
from daskcurate.reading import blocks_of
from daskcurate.runner import run_tasks
from daskcurate.selection import Selection
from daskcurate.store import open_array
from daskcurate.stored import StoredSelection

COUNT_TASKS = 4096
INDEX_BLOCK = 1 << 22


class SelectedRows(RowReader):
    """The rows (or ids) of a pool that are selected, in the pool's order.

    Parameters
    ----------
    values
        What is selected from, n rows.
    counts
        (n,) integers, how often each is selected.
    ends
        (m,) int64, the number of selected rows up to the end of each range of ``chunk_rows`` rows.
    repeats
        Whether a row comes as often as it is selected, or once.
    """

    def __init__(
        self, values: RowReader, counts: RowReader, chunk_rows: int, ends: np.ndarray, *, repeats: bool
    ):
        super().__init__(values.name, (int(ends[-1]), *values.shape[1:]), values.dtype)
        self.values, self.counts = values, counts
        self.chunk_rows, self.ends, self.repeats = chunk_rows, ends, repeats

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the selected rows ``start`` to ``stop``."""
        parts = []
        for chunk, low, high in self._spans(start, stop):
            origin = chunk * self.chunk_rows
            counts = self.counts.read(origin, min(origin + self.chunk_rows, len(self.counts)))
            numbers = selected_numbers(counts, self.repeats)[low:high]
            first, last = int(numbers[0]), int(numbers[-1])
            parts.append(self.values.read(origin + first, origin + last + 1)[numbers - first])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _spans(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield (chunk of the pool, first and last (exclusive) of the rows selected of it)."""
        chunk = int(np.searchsorted(self.ends, start, side="right"))
        while start < stop:
            end = int(self.ends[chunk])
            before = int(self.ends[chunk - 1]) if chunk else 0
            if end > start:
                yield chunk, start - before, min(stop, end) - before
                start = min(stop, end)
            chunk += 1

    def cut(self, start: int, stop: int) -> RowReader:
        """Return a source that holds only the counts of the chunks that are read."""
        chunks = [chunk for chunk, _, _ in self._spans(start, stop)]
        first, last = chunks[0], chunks[-1]
        rows = (first * self.chunk_rows, min((last + 1) * self.chunk_rows, len(self.counts)))
        before = int(self.ends[first - 1]) if first else 0
        part = SelectedRows(
            self.values.cut(*rows), self.counts.cut(*rows), self.chunk_rows,
            self.ends[first : last + 1] - before, repeats=self.repeats,
        )  # fmt: skip
        return CutRows(part, start - before, stop - before)


def selected_numbers(counts: np.ndarray, repeats: bool) -> np.ndarray:
    """Return the places of positive counts, ascending, each as often as it counts if ``repeats``."""
    kept = np.flatnonzero(counts > 0)
    return np.repeat(kept, counts[kept]) if repeats else kept


def subset(
    selection: Any,
    dest: PathLike,
    *,
    emb: Embeddings | None = None,
    repeats: bool = False,
    overwrite: bool = False,
    chunk_rows: int | None = None,
) -> Embeddings:
    """Write the selected rows of a pool, and their ids, as a new pool.

    Rows are copied a chunk at a time by tasks of the current Dask client, bit for bit and in the pool's order.
    Rows of a pool without ids get their numbers in it as ids, so that they can be told in the new one.

    Parameters
    ----------
    selection
        A computed Selection; or the path of one that was exported as ``.npy`` (row numbers) or ``.parquet`` (the
        native table), with ``emb``.
    dest
        Path or URL of the new pool.
    emb
        The pool; None: that of the selection.
    repeats
        False: a row that is selected several times is there once, since ids of a pool do not repeat and copies
        of a row would be duplicates to every stage that follows. True: as often as it is selected, with its
        id each time.
    overwrite
        Whether a pool at ``dest`` may be replaced.
    chunk_rows
        Rows in a chunk of the new pool; None: by its size.

    Returns
    -------
    Embeddings
        The new pool.

    Raises
    ------
    FileExistsError
        If something is at ``dest`` and ``overwrite`` is False.
    TypeError, ValueError
        If the selection is none, of another pool, or selects no row, or ``dest`` is the pool itself.
    """
    for name, value in (("repeats", repeats), ("overwrite", overwrite)):
        check_flag(name, value)
    url = as_url(dest, "dest")
    if chunk_rows is not None:
        chunk_rows = check_int("chunk_rows", chunk_rows, 1)
    emb, counts, label = _opened(selection, emb)
    emb.check_unchanged()
    if url == emb.path:
        raise ValueError(f"dest={url!r} is the pool that the rows come from: give another dest")
    pool.check_dest(url, overwrite)
    ends = _ends(counts, emb.chunk_rows, repeats)
    n = int(ends[-1])
    if n == 0:
        raise ValueError(f"{label} selects no row of {emb.path}: a pool has at least one")
    if chunk_rows is None:
        chunk_rows = chunk_rows_for(n, emb.dim, emb.dtype.itemsize)
    rows = SelectedRows(PoolReader(emb.rows, emb.path), counts, emb.chunk_rows, ends, repeats=repeats)
    ids = SelectedRows(_ids(emb), counts, emb.chunk_rows, ends, repeats=repeats)
    plan = pool.PoolPlan(
        dest=url, shape=(n, emb.dim), dtype=str(emb.dtype), chunk_rows=min(chunk_rows, n), normalize=False,
        text_ids=ids.dtype.kind not in "iu",
    )  # fmt: skip
    pool.recover(url)
    pool.check_dest(url, overwrite)
    try:
        with job_progress("subset") as report:
            pool.create(plan, True)
            ids_digest = pool.write_ids(plan, ids, unique=not repeats)
            digests, _, _ = pool.write_rows(plan, rows, report)
            fingerprint = digest(list(plan.shape), plan.dtype, plan.chunk_rows, digests, ids_digest)
            source = f"{emb.path}, rows of {label}"
            pool.commit(plan, {"normalized": emb.normalized, "fingerprint": fingerprint, "source": source})
    except BaseException:
        pool.give_up(plan)
        raise
    return open_embeddings(url)


def _opened(selection: Any, emb: Embeddings | None) -> tuple[Embeddings, RowReader, str]:
    """Return the pool, the counts, and what the selection is called."""
    if emb is not None and not isinstance(emb, Embeddings):
        raise TypeError(f"emb={emb!r} is not allowed: give what daskcurate.open_embeddings returns, or None")
    if isinstance(selection, Selection):
        emb, counts = _of_selection(selection, emb)
        return emb, counts, selection.name
    if isinstance(selection, str | os.PathLike | StoredSelection):
        if emb is None:
            raise ValueError(f"selection={str(selection)!r} needs the pool whose rows it selects: give emb=")
        if isinstance(selection, StoredSelection):
            selection.require_pool(emb)
            return emb, zarrs.ZarrRows(selection.counts, selection.name), selection.name
        url = as_url(selection, "selection")
        return emb, _of_file(url, emb), url
    raise TypeError(
        f"selection of type {type(selection).__name__} is not allowed: give a computed Selection, or the path of an "
        "exported .npy or .parquet"
    )


def _of_selection(selection: Selection, emb: Embeddings | None) -> tuple[Embeddings, RowReader]:
    own = selection.emb
    if own is None and emb is None:
        raise ValueError("the selection does not know its pool: give emb=")
    if own is not None and emb is not None and own.fingerprint != emb.fingerprint:
        raise ValueError(f"the selection is one of the pool {own.path}, not of {emb.path}")
    found = own if own is not None else emb
    assert found is not None
    if selection.n_rows != len(found):
        raise ValueError(
            f"the selection covers {selection.n_rows:,} rows, and {found.path} has {len(found):,}"
        )
    if selection.store is not None:
        return found, zarrs.ZarrRows(open_array(selection.url("counts")), selection.name)
    # not stored: a combination or the user's own mask, whose counts are put together here (4 bytes a row)
    counts = np.concatenate([np.empty(0, np.int32), *blocks_of(selection.counts)])
    return found, ArrayRows(counts, selection.name)


def _of_file(url: str, emb: Embeddings) -> RowReader:
    """Return the counts in an exported file."""
    suffix = suffix_of(url)
    if suffix not in (".npy", ".parquet"):
        raise ValueError(f"selection={url!r} has the suffix {suffix!r}: allowed are '.npy' and '.parquet'")
    if not exists(url):
        raise FileNotFoundError(f"there is no file at {url}")
    if suffix == ".parquet":
        counts = parquet.open_id_column(url, "count")
        if counts.dtype.kind not in "iu" or len(counts) != len(emb):
            raise ValueError(
                f"{url} has {len(counts):,} rows of counts ({counts.dtype}), and {emb.path} has {len(emb):,} rows"
            )
        return counts
    indices = npy.open_npy(url)
    if len(indices.shape) != 1 or indices.dtype.kind not in "iu":
        raise ValueError(
            f"{url} holds {indices.dtype} of shape {indices.shape}: give row numbers, integers of shape (m,)"
        )
    found = np.zeros(len(emb), np.int32)
    for start in range(0, len(indices), INDEX_BLOCK):
        block = indices.read(start, min(start + INDEX_BLOCK, len(indices))).astype(np.int64)
        if block.min() < 0 or block.max() >= len(emb):
            raise ValueError(
                f"{url} holds rows {block.min()} to {block.max()}: those of {emb.path} are 0 to {len(emb) - 1}"
            )
        np.add.at(found, block, 1)
    return ArrayRows(found, url)


def _ids(emb: Embeddings) -> RowReader:
    if not emb.has_ids:
        return NumberRows(emb.path, len(emb))
    return zarrs.ZarrRows(zarrs.open_zarr(emb.path)[IDS], f"{emb.path}/{IDS}")  # type: ignore[index, arg-type]


def _ends(counts: RowReader, chunk_rows: int, repeats: bool) -> np.ndarray:
    """Return (m,) int64: the number of selected rows up to the end of each range of ``chunk_rows`` rows."""
    bounds = chunk_bounds(len(counts), chunk_rows)
    found: list[int] = []
    for first in range(0, len(bounds), COUNT_TASKS):
        part = bounds[first : first + COUNT_TASKS]
        if isinstance(counts, ArrayRows):
            found += [_count(counts.cut(*item), repeats) for item in part]
        else:
            found += run_tasks(
                [dask.delayed(_count, pure=False)(counts.cut(*item), repeats) for item in part]
            )
    return np.cumsum(found, dtype=np.int64)


def _count(counts: RowReader, repeats: bool) -> int:
    block = counts.read(0, len(counts))
    return int(block.sum(dtype=np.int64)) if repeats else int(np.count_nonzero(block > 0))
