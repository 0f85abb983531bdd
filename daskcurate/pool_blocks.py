"""The rows of a pool as blocks of neighbouring clusters, each of which is compared with each.

Every block is read by many tasks. So blocks are scratch arrays of the run store and not results held by
workers: what does not fit in memory would be spilled to disk anyway, and a lost worker costs no second
shuffle. A task holds two blocks at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from dask.delayed import Delayed

from daskcurate.device import place
from daskcurate.kernels.draws import row_uniform
from daskcurate.kernels.pool_pairs import Bound, PoolBlock, row_norms, sketch_basis
from daskcurate.matching import cut
from daskcurate.members import Members, load_labels, read_small, write_small
from daskcurate.planning import REGROUPED_ROW_BYTES, Limits, bound_pays
from daskcurate.regroup import from_cells, regroup, to_cells
from daskcurate.store import read_block, write_scratch

LEAST_ROWS = 1024
"""Rows of a block where workers are small or many: enough for products at full speed."""
SAMPLE_RUNS, SAMPLE_ROWS = 16, 128
"""Places in the pool that a sample is taken from, and rows read at each."""


class Survey(NamedTuple):
    """What a sample of rows says of a pool."""

    pairs: int
    """Pairs that will be compared, about."""
    bound: bool
    """Whether the bound is used; otherwise all pairs are compared."""
    basis: np.ndarray | None
    """(d, r) float32: see :func:`daskcurate.kernels.pool_pairs.sketch_basis`."""


def take_survey(members: Members, sizes: np.ndarray, eps: float) -> Survey:
    """Return how many pairs the bound asks for, by a sample of rows, and whether that is worth it.

    A function of the data and eps alone: rows at fixed places, and no random draw.
    """
    rows, labels = _sample(members)
    n = int(sizes.sum())
    every = n * (n - 1) // 2
    if not len(rows):  # the rows that a selection leaves lie elsewhere
        return Survey(every, True, None)
    bound = Bound.of(read_block(members.centroids_url, 0, 2**62), eps)
    order = np.argsort(labels, kind="stable")
    number = np.arange(len(rows))
    block = PoolBlock.of(rows[order], row_norms(rows[order]), labels[order], number, number)
    pairs = min(every, int(n * bound.pairs_of_sample(block, sizes)))
    if not bound_pays(pairs, n, members.n_clusters):
        return Survey(every, False, sketch_basis(rows))
    return Survey(pairs, True, sketch_basis(rows))


def _sample(members: Members) -> tuple[np.ndarray, np.ndarray]:
    """Return rows (m, d) at fixed places of the pool, those that have a cluster, and their labels (m,)."""
    assert members.source is not None
    n = members.n_rows
    step = max(SAMPLE_ROWS, -(-n // SAMPLE_RUNS))
    rows, labels = [], []
    for start in range(0, n, step):
        stop = min(start + SAMPLE_ROWS, n)
        own = load_labels(members, start, stop)
        rows.append(members.source.read(start, stop)[own >= 0])
        labels.append(own[own >= 0])
    return np.concatenate(rows), np.concatenate(labels)


ROWS = pd.DataFrame(
    {"partition": np.empty(0, "i8"), "label": np.empty(0, "i4"), "rank": np.empty(0, "i8"), "row": np.empty(0, "i8"),
     "cells": to_cells(np.empty((0, 1), "f4"))}
)  # fmt: skip


@dataclass(frozen=True)
class PoolBlocks:
    """Blocks of rows in scratch arrays: what tasks need to read them, which is the same however many there are."""

    url: str
    """What the arrays' URLs begin with."""
    centroids_url: str
    eps: float
    chunk_rows: int
    n_rows: int

    def load(self, i: int, basis: np.ndarray | None) -> PoolBlock:
        """Read a block."""
        rows, norms, index = (read_small(f"{self.url}-{i}-{name}") for name in ("rows", "norms", "index"))
        on = None if basis is None else place(basis)
        return PoolBlock.of(place(rows), place(norms), index[0].astype(np.int32), index[1], index[2], on)

    def index(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Read the places in the pool's order, and the row numbers, of a block."""
        found = read_small(f"{self.url}-{i}-index")
        return found[1], found[2]

    def bound(self, survey: Survey) -> Bound | None:
        """Return the bound to compare with, if any."""
        return Bound.of(place(read_small(self.centroids_url)), self.eps) if survey.bound else None


@dataclass(frozen=True)
class Layout:
    """The blocks, and how many rows each has: what the client knows to make tasks with."""

    blocks: PoolBlocks
    lengths: dict[int, int]
    """Rows by block number; blocks without rows are left out."""

    def groups(self, n_threads: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Yield (p, (q, ...)): every pair of blocks p <= q once, a few for each task, the largest tasks first."""
        numbers = sorted(self.lengths)
        count = len(numbers)
        width = max(1, min(16, count * count // (4 * n_threads)))
        found = [
            (p, tuple(numbers[first : min(first + width, count)]))
            for i, p in enumerate(numbers)
            for first in range(i, count, width)
        ]
        yield from sorted(
            found, key=lambda group: -self.lengths[group[0]] * sum(self.lengths[q] for q in group[1])
        )


def scatter(
    run: Any,
    members: Members,
    ranks: Sequence[Delayed],
    sizes: np.ndarray,
    dim: int,
    dtype: str,
    eps: float,
) -> Layout:
    """Regroup the rows by cluster and write them block by block; ``ranks`` are places in the pool's order."""
    total = int(sizes.sum())
    row_bytes = dim * np.dtype(dtype).itemsize
    limit = block_limit(total, row_bytes, run.limits)
    cuts = cut(sizes, limit)
    pieces = np.where(cuts.giant, -(-sizes // limit), 1)
    urls = (
        write_small(run, f"pool-first-{limit}", cuts.first),
        write_small(run, f"pool-pieces-{limit}", pieces),
    )
    frames = [
        run.task(_row_frame, members, rank, urls, *r, name="dedup-rows", key=r[0])
        for rank, r in zip(ranks, members.ranges, strict=True)
    ]
    nbytes = (row_bytes + REGROUPED_ROW_BYTES) * total
    grouped = regroup(run, frames, ROWS, cuts.n_partitions, nbytes, "blocks")
    # of this limit: what a task of an earlier attempt, with other workers, still writes is no other content
    url = run.scratch(f"pool-{limit}")
    writes = [
        run.task(_write_block, frame, dim, dtype, f"{url}-{i}", name="dedup-block", key=i)
        for i, frame in enumerate(grouped)
    ]
    lengths = run.gather(writes, "regroup rows")
    blocks = PoolBlocks(url, members.centroids_url, eps, members.chunk_rows, total)
    return Layout(blocks, {i: length for i, length in enumerate(lengths) if length})


def block_limit(n_rows: int, row_bytes: int, limits: Limits) -> int:
    """Return the rows of a block: bounded in bytes, and two for each thread, which makes many pairs."""
    return max(LEAST_ROWS, min(limits.part_bytes // row_bytes, n_rows // (2 * limits.n_threads)))


def _row_frame(
    members: Members, ranks: np.ndarray, urls: tuple[str, str], start: int, stop: int
) -> pd.DataFrame:
    labels = load_labels(members, start, stop)
    at = np.flatnonzero(labels >= 0)
    label = labels[at]
    first, pieces = (read_small(url) for url in urls)
    # rows of a giant cluster go anywhere in it: its blocks are then alike in size
    piece = (row_uniform(0, at + start) * pieces[label]).astype(np.int64)
    assert members.source is not None
    columns = {"partition": first[label] + piece, "label": label, "rank": ranks[at], "row": at + start}
    return pd.DataFrame({**columns, "cells": to_cells(members.source.read(start, stop)[at])})


def _write_block(frame: pd.DataFrame, dim: int, dtype: str, url: str) -> int:
    index = np.stack([frame[name].to_numpy(dtype=np.int64) for name in ("label", "rank", "row")])
    order = np.lexsort((index[1], index[0]))
    if not len(order):
        return 0
    rows = from_cells(frame["cells"], dim, np.dtype(dtype))[order]
    write_scratch(f"{url}-rows", rows)
    write_scratch(f"{url}-norms", row_norms(rows))
    write_scratch(f"{url}-index", index[:, order])
    return len(order)
