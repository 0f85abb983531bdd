"""Regrouping rows by cluster, and back: one bounded-memory shuffle that all stages share.

Rows travel as data frames; an embedding is one binary cell, so that Arrow moves it as a buffer and makes
no Python object of it. What fits one task is concatenated and cut there; the rest goes through Dask's
peer-to-peer shuffle, which spills to the workers' disks.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from dask.delayed import Delayed

from daskcurate.kernels.draws import row_uniform
from daskcurate.planning import SORT_KEY_BYTES


def to_cells(rows: np.ndarray) -> Any:
    """Return rows (m, d) as a column of m binary cells, without a copy."""
    rows = np.ascontiguousarray(rows)
    m, width = len(rows), rows.shape[1] * rows.dtype.itemsize
    offsets = np.arange(0, (m + 1) * width, width, dtype=np.int64)[: m + 1]
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(rows)]
    return pd.array(
        pa.LargeBinaryArray.from_buffers(pa.large_binary(), m, buffers),
        dtype=pd.ArrowDtype(pa.large_binary()),
    )


def from_cells(cells: pd.Series, dim: int, dtype: Any) -> np.ndarray:
    """Return a column of binary cells as rows (m, d)."""
    found = pa.array(cells.array, type=pa.large_binary())
    if isinstance(found, pa.ChunkedArray):
        found = found.combine_chunks()
    if not len(found):
        return np.empty((0, dim), dtype=dtype)
    offsets = np.frombuffer(found.buffers()[1], dtype=np.int64)[found.offset : found.offset + len(found) + 1]
    content = np.frombuffer(found.buffers()[2], dtype=np.uint8)[offsets[0] : offsets[-1]]
    return content.view(dtype).reshape(-1, dim)


def regroup(
    run: Any, frames: Sequence[Delayed], meta: pd.DataFrame, n_partitions: int, nbytes: int, key: str
) -> list[Delayed]:
    """Return ``n_partitions`` lazy frames: the rows of ``frames`` by their column ``partition``.

    Parameters
    ----------
    frames
        Lazy frames with an int64 column ``partition`` in [0, n_partitions); the order of the rows that
        come out is not defined.
    meta
        An empty frame with the columns' dtypes.
    nbytes
        Size of all frames together.
    """
    if n_partitions == 1:
        return [run.task(_concat, list(frames), name="regroup", key=key)]
    if nbytes <= run.limits.small_regroup_bytes:
        split = run.task(_split, list(frames), n_partitions, name="regroup", key=key)
        return [run.task(_take, split, i, name="regroup-take", key=f"{key}-{i}") for i in range(n_partitions)]
    import dask.dataframe as dd

    frame = dd.from_delayed(list(frames), meta=meta, verify_meta=False)
    edges = list(range(n_partitions + 1))
    shuffled = frame.set_index("partition", divisions=edges, shuffle_method="p2p")
    return list(shuffled.to_delayed())


def _concat(frames: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(frames, ignore_index=True)


def _split(frames: list[pd.DataFrame], n_partitions: int) -> list[pd.DataFrame]:
    frame = pd.concat(frames, ignore_index=True)
    order = np.argsort(frame["partition"].to_numpy(), kind="stable")
    edges = np.searchsorted(frame["partition"].to_numpy()[order], np.arange(n_partitions + 1))
    return [frame.iloc[order[edges[i] : edges[i + 1]]] for i in range(n_partitions)]


def regrouped(rows: np.ndarray, partition: np.ndarray) -> list[pd.DataFrame]:
    """Return the rows (m, d) of each partition, as :func:`regroup` does in one task: what a plan goes by."""
    half = len(rows) // 2
    frames = [
        pd.DataFrame({"partition": partition[part].astype(np.int64), "cells": to_cells(rows[part])})
        for part in (slice(0, half), slice(half, None))
    ]
    return _split(frames, int(partition.max(initial=0)) + 1)


def _take(parts: list[Any], i: int) -> Any:
    return parts[i]


def contiguous_partitions(sizes: np.ndarray, limit: int) -> np.ndarray:
    """Return the partition of each cluster, (k,) int64: neighbours together while they hold <= ``limit`` rows.

    A cluster larger than ``limit`` has a partition of its own.
    """
    partition = np.empty(len(sizes), dtype=np.int64)
    ends = np.cumsum(sizes)
    first, current = 0, 0
    while first < len(sizes):
        before = ends[first - 1] if first else 0
        stop = max(first + 1, int(np.searchsorted(ends, before + limit, side="right")))
        partition[first:stop] = current
        first, current = stop, current + 1
    return partition


class Labelled(NamedTuple):
    """Cluster and sort key of the rows of one block, in ascending row order."""

    labels: np.ndarray
    """(m,) int32; -1 is ranked nowhere."""
    keys: np.ndarray
    """(m,) float64: ascending order within a cluster; ties by row."""


_KEYS = pd.DataFrame(
    {"partition": np.empty(0, "i8"), "block": np.empty(0, "i8"), "position": np.empty(0, "i8"),
     "label": np.empty(0, "i4"), "key": np.empty(0, "f8")}
)  # fmt: skip
_RANKS = pd.DataFrame(
    {"partition": np.empty(0, "i8"), "position": np.empty(0, "i8"), "rank": np.empty(0, "i8")}
)


def rank_in_cluster(
    run: Any, labelled: Sequence[Delayed], counts: Sequence[int], sizes: np.ndarray, key: str
) -> list[Delayed]:
    """Return each row's rank within its cluster by ascending sort key, per block (m,) int64; -1 outside.

    Parameters
    ----------
    labelled
        A :class:`Labelled` per block.
    counts
        Rows of each block.
    sizes
        (k,) rows of each cluster.
    """
    if sum(counts) <= run.limits.rank_rows:
        whole = run.task(ranks_of_blocks, list(labelled), name="rank", key=key)
        return [run.task(_take, whole, i, name="ranks", key=f"{key}-{i}") for i in range(len(labelled))]
    ranges = rank_ranges(run, labelled, sizes, key)
    table = run.task(_same, ranges, name="partition-map", key=key)
    nbytes = SORT_KEY_BYTES * sum(counts)
    frames = [
        run.task(_key_frame, item, i, table, name="rank-keys", key=f"{key}-{i}")
        for i, item in enumerate(labelled)
    ]
    grouped = regroup(run, frames, _KEYS, ranges.n_partitions, nbytes, f"{key}-by-cluster")
    ranked = [run.task(_rank_frame, frame, name="rank", key=f"{key}-{i}") for i, frame in enumerate(grouped)]
    if ranges.splitters:
        ranked = _after_lower_ranges(run, run.persist(ranked, "rank rows"), ranges, key)
    back = regroup(run, ranked, _RANKS, len(labelled), nbytes, f"{key}-by-block")
    return [
        run.task(_ranks_of, frame, count, name="ranks", key=f"{key}-{i}")
        for i, (frame, count) in enumerate(zip(back, counts, strict=True))
    ]


def ranks_of_blocks(labelled: list[Labelled]) -> list[np.ndarray]:
    """Return what :func:`rank_in_cluster` does, of blocks in memory."""
    labels = np.concatenate([item.labels for item in labelled])
    keys = np.concatenate([item.keys.astype(np.float64) for item in labelled])
    inside = np.flatnonzero(labels >= 0)
    ranks = np.full(len(labels), -1, dtype=np.int64)
    ranks[inside] = ranks_by_group(labels[inside], keys[inside])
    return np.split(ranks, np.cumsum([len(item.labels) for item in labelled[:-1]]))


class Ranges(NamedTuple):
    """Where rows go to be ranked: with their whole cluster, or with a range of a giant cluster's keys."""

    first: np.ndarray
    """(k,) first partition of each cluster."""
    splitters: dict[int, np.ndarray]
    """For each giant cluster (parts - 1, 3): the (key, block, position) at which its ranges begin."""
    n_partitions: int


SAMPLES_PER_RANGE = 64
"""Rows sampled for each range of a giant cluster: its ranges then differ in size by an eighth or so."""


def rank_ranges(run: Any, labelled: Sequence[Delayed], sizes: np.ndarray, key: str) -> Ranges:
    """Return partitions of about ``run.limits.rank_rows`` rows, giant clusters cut where a sample says.

    The cuts decide which task ranks a row, not its rank: rows that tie go by block and position.
    """
    limit = run.limits.rank_rows
    shared = contiguous_partitions(sizes, limit)
    if not len(sizes):
        return Ranges(shared, {}, 1)
    giants = np.flatnonzero(sizes > limit)
    pieces = np.ones(len(sizes), dtype=np.int64)
    splitters: dict[int, np.ndarray] = {}
    if len(giants):
        wanted = -(-sizes[giants] * 5 // (4 * limit))  # a fifth less than the limit on average
        rates = np.minimum(1.0, SAMPLES_PER_RANGE * wanted / sizes[giants])
        samples = [
            run.task(_sample, item, i, giants, rates, name="rank-sample", key=f"{key}-{i}")
            for i, item in enumerate(labelled)
        ]
        drawn = np.concatenate(run.gather(samples, "sample keys"))
        for cluster, parts in zip(giants, wanted, strict=True):
            own = drawn[drawn[:, 0] == cluster, 1:]
            own = own[np.lexsort((own[:, 2], own[:, 1], own[:, 0]))]
            cuts = np.unique(np.arange(1, parts) * len(own) // parts)
            splitters[int(cluster)] = own[cuts[cuts < len(own)]]
            pieces[cluster] = len(splitters[int(cluster)]) + 1
    extra = np.cumsum(pieces - 1) - (pieces - 1)
    first = shared + extra
    return Ranges(first, splitters, int(first[-1] + pieces[-1]))


def _same(item: Any) -> Any:
    return item


def _sample(item: Labelled, block: int, giants: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Return (cluster, key, block, position) of sampled rows of the giant clusters, (m, 4) float64."""
    found = [np.empty((0, 4))]
    for cluster, rate in zip(giants, rates, strict=True):
        position = np.flatnonzero(item.labels == cluster)
        position = position[row_uniform(block, position) < rate]
        columns = (
            np.full(len(position), cluster),
            item.keys[position],
            np.full(len(position), block),
            position,
        )
        found.append(np.stack(columns, axis=1).astype(np.float64))
    return np.concatenate(found)


def _key_frame(item: Labelled, block: int, ranges: Ranges) -> pd.DataFrame:
    position = np.flatnonzero(item.labels >= 0)
    labels, keys = item.labels[position], item.keys[position].astype(np.float64)
    partition = ranges.first[labels]
    for cluster, splitters in ranges.splitters.items():
        own = np.flatnonzero(labels == cluster)
        for at_key, at_block, at_position in splitters:
            tie = (block > at_block) | ((block == at_block) & (position[own] >= at_position))
            partition[own] += (keys[own] > at_key) | ((keys[own] == at_key) & tie)
    return pd.DataFrame(
        {"partition": partition, "block": block, "position": position, "label": labels, "key": keys}
    )


def _after_lower_ranges(run: Any, ranked: Sequence[Delayed], ranges: Ranges, key: str) -> list[Delayed]:
    """Add to the ranks within a range the rows of the ranges of its cluster below."""
    shifted = list(ranked)
    for cluster, splitters in ranges.splitters.items():
        first, last = int(ranges.first[cluster]), int(ranges.first[cluster]) + len(splitters)
        lengths = run.gather(
            [run.task(len, ranked[i], name="rank-count", key=f"{key}-{i}") for i in range(first, last + 1)]
        )
        for i, below in zip(range(first + 1, last + 1), np.cumsum(lengths), strict=False):
            shifted[i] = run.task(_shift, ranked[i], int(below), name="rank-shift", key=f"{key}-{i}")
    return shifted


def _shift(frame: pd.DataFrame, below: int) -> pd.DataFrame:
    return frame.assign(rank=frame["rank"] + below)


def ranks_by_group(labels: np.ndarray, *keys: np.ndarray) -> np.ndarray:
    """Return each row's rank within its label by ascending ``keys`` (the first counts most), ties in order."""
    order = np.lexsort((*reversed(keys), labels))
    ordered = labels[order]
    starts = (
        np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.empty(0, np.int64)
    )
    lengths = np.diff(np.r_[starts, len(ordered)])
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[order] = np.arange(len(ordered)) - np.repeat(starts, lengths)
    return ranks


def _rank_frame(frame: pd.DataFrame) -> pd.DataFrame:
    columns = {name: frame[name].to_numpy() for name in ("label", "key", "block", "position")}
    rank = ranks_by_group(columns["label"], columns["key"], columns["block"], columns["position"])
    return pd.DataFrame({"partition": columns["block"], "position": columns["position"], "rank": rank})


def _ranks_of(frame: pd.DataFrame, count: int) -> np.ndarray:
    ranks = np.full(count, -1, dtype=np.int64)
    ranks[frame["position"].to_numpy()] = frame["rank"].to_numpy()
    return ranks
