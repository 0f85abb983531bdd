"""Splits (Vo et al. 2024): each cluster of a level is cut into parts by a k-means of its own.

Clusters are regrouped so that a task holds whole ones; a cluster too large for a task runs through the
distributed loop, on its rows alone. Parts that win no row are dropped, and the parts are the level's
clusters, those of cluster 0 first.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from dask.delayed import Delayed

from daskcurate.config import KMeansConfig
from daskcurate.device import on_device
from daskcurate.fitting import fit
from daskcurate.kernels import lloyd, seeding
from daskcurate.kernels.assign import nearest
from daskcurate.kernels.distances import own_distances, squared
from daskcurate.kernels.draws import derive_seed
from daskcurate.kernels.lloyd_in_memory import lloyd_in_memory
from daskcurate.lloyd_loop import Assigned, assign_blocks
from daskcurate.regroup import contiguous_partitions, from_cells, regroup, to_cells
from daskcurate.remembering import read_centroids
from daskcurate.rows import Block, RowBlocks, RowSource, made_of
from daskcurate.store import write_block

PART_BYTES = 128 << 20
"""Rows (float32) of the clusters that one task splits."""

_ROWS = pd.DataFrame(
    {"partition": np.empty(0, "i8"), "label": np.empty(0, "i4"), "row": np.empty(0, "i8"),
     "cells": to_cells(np.empty((0, 1), "f4"))}
)  # fmt: skip
_LABELS = pd.DataFrame(
    {"partition": np.empty(0, "i8"), "row": np.empty(0, "i8"), "label": np.empty(0, "i4"),
     "distance": np.empty(0, "f8")}
)  # fmt: skip


class Parts(NamedTuple):
    """The parts of the clusters of one partition, and where their rows went."""

    centroids: np.ndarray
    sizes: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    distances: np.ndarray


def split_clusters(
    run: Any, blocks: RowBlocks, centroids: str, k: int, config: KMeansConfig, source: RowSource, chunk: int
) -> dict[str, Any]:
    """Split each of the k clusters into ``config.n_splits`` parts; write the result; return its figures."""
    assigned, _, sizes = assign_blocks(run, blocks, centroids, k, config.metric, "before-split")
    limit = max(1, PART_BYTES // (4 * source.dim))
    partition = contiguous_partitions(sizes, limit)
    n_partitions = int(partition[-1]) + 1
    table = run.task(np.asarray, partition, name="partition-map", key="split")
    giant = np.flatnonzero(sizes > limit)
    frames = blocks.zip_map(run, _row_frame, assigned, table, giant, name="split-rows", key="split")
    grouped = regroup(run, frames, _ROWS, n_partitions, blocks.nbytes, "split")
    lazy = [
        run.task(_split_partition, frame, config, source.dim, name="split-clusters", key=i)
        for i, frame in enumerate(grouped)
    ]
    for cluster in giant:
        lazy[partition[cluster]] = _split_giant(run, blocks, assigned, centroids, int(cluster), config)
    run.note(0.96, "split clusters")
    parts = run.persist(lazy, "split clusters")
    part_sizes = run.gather(
        [run.task(_part_sizes, part, name="part-sizes", key=i) for i, part in enumerate(parts)]
    )
    starts = np.cumsum([0, *(len(item) for item in part_sizes)])
    total = int(starts[-1])
    _write_centroids(run, parts, starts, source.dim, chunk)
    write_block(run.declare("sizes", (total,), chunk), 0, np.concatenate(part_sizes).astype(np.int64))
    inertia = _write_labels(run, parts, starts, source, len(blocks), config.metric)
    return {"n_clusters": total, "rows_in": len(blocks), "inertia": inertia, "n_empty": 0}


def _row_frame(block: Block, found: Assigned, partition: np.ndarray, giant: np.ndarray) -> pd.DataFrame:
    keep = ~np.isin(found.labels, giant)
    labels = found.labels[keep]
    return pd.DataFrame(
        {
            "partition": partition[labels],
            "label": labels,
            "row": block.numbers[keep],
            "cells": to_cells(block.rows[keep]),
        }
    )


def _split_partition(frame: pd.DataFrame, config: KMeansConfig, dim: int) -> Parts:
    """Split every cluster of a partition; labels count the partition's parts."""
    rows, numbers = from_cells(frame["cells"], dim, np.float32), frame["row"].to_numpy()
    order = np.lexsort((numbers, frame["label"].to_numpy()))
    labels = frame["label"].to_numpy()[order]
    bounds = (
        np.flatnonzero(np.r_[True, labels[1:] != labels[:-1], True]) if len(labels) else np.zeros(1, np.int64)
    )
    found, first = [], 0
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        members = order[start:stop]  # only one cluster's rows are copied at a time
        piece = _split_cluster(rows[members], numbers[members], int(labels[start]), config)
        found.append(piece._replace(labels=piece.labels + first))
        first += len(piece.sizes)
    if not found:
        none = np.empty(0, np.int64)
        return Parts(np.empty((0, dim), np.float32), none, none, none, np.empty(0))
    return Parts(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _split_cluster(rows: np.ndarray, numbers: np.ndarray, cluster: int, config: KMeansConfig) -> Parts:
    """Split one cluster in memory, keeping the best of ``n_init`` runs."""
    parts = min(config.n_splits, len(rows))
    best: Parts | None = None
    best_inertia = math.inf
    for restart in range(config.n_init):
        rng = np.random.default_rng(derive_seed(config.seed, "split", cluster, restart))
        if config.init == "random":
            seeds = rng.permutation(len(rows))[:parts]
        else:
            seeds = on_device(seeding.kmeans_plusplus)(rows, parts, rng)
        fitted = on_device(lloyd_in_memory)([rows], rows[seeds], config.metric, config.n_iters, config.tol)
        labels = on_device(nearest)(rows, fitted.centroids, config.metric)
        inertia = lloyd.inertia_of(rows, fitted.centroids, labels, config.metric)
        if inertia < best_inertia:
            distances = own_distances(rows, fitted.centroids, labels, config.metric)
            best_inertia = inertia
            best = _without_empty(fitted.centroids, numbers, labels, distances)
    assert best is not None
    return best


def _without_empty(
    centroids: np.ndarray, rows: np.ndarray, labels: np.ndarray, distances: np.ndarray
) -> Parts:
    sizes = np.bincount(labels, minlength=len(centroids))
    alive = sizes > 0
    renumbered = (np.cumsum(alive) - 1)[labels]
    return Parts(centroids[alive], sizes[alive], rows, renumbered, distances)


def _split_giant(
    run: Any, blocks: RowBlocks, assigned: Sequence[Delayed], base: str, cluster: int, config: KMeansConfig
) -> Delayed:
    """Split a cluster that no single task holds, through the distributed loop on its rows."""
    key = f"giant-{cluster}"
    taken = blocks.zip_map(run, _rows_of, assigned, cluster, name="split-giant-rows", key=key)
    counts = run.gather(
        [
            run.task(_n_rows, block, name="split-giant-count", key=f"{key}-{i}")
            for i, block in enumerate(taken)
        ]
    )
    rows = made_of(run, blocks, taken, counts, key)
    # a step number of its own keeps its seeds and scratch arrays apart from the level's, and being beyond
    # the last resampling step it tells a resumed run that the level itself is fitted
    centroids = fit(
        run, rows, config.n_splits, config, 10**6 + cluster, base, None, (0.95, 0.01), f"giant {cluster}: "
    )
    found, name, _ = assign_blocks(run, rows, centroids, config.n_splits, config.metric, key)
    # block by block first: a task that took the blocks for their numbers would hold the whole cluster
    numbers = [
        rows.numbers_task(run, i, np.asarray, name="split-giant-numbers", key=f"{key}-{i}")
        for i in range(len(rows.blocks))
    ]
    return run.task(_gather_giant, numbers, found, run.scratch(name), name="split-giant", key=key)


def _rows_of(block: Block, found: Assigned, cluster: int) -> Block:
    keep = found.labels == cluster
    return Block(block.numbers[keep], block.rows[keep])


def _n_rows(block: Block) -> int:
    return len(block.numbers)


def _gather_giant(numbers: list[np.ndarray], found: list[Assigned], url: str) -> Parts:
    return _without_empty(
        read_centroids(url),
        np.concatenate(numbers),
        np.concatenate([item.labels for item in found]),
        np.concatenate([item.distances for item in found]),
    )


def _part_sizes(parts: Parts) -> np.ndarray:
    return parts.sizes


def _write_centroids(run: Any, parts: Sequence[Delayed], starts: np.ndarray, dim: int, chunk: int) -> None:
    total = int(starts[-1])
    url = run.declare("centroids", (total, dim), chunk)
    writes = []
    for start in range(0, total, chunk):
        stop = min(start + chunk, total)
        first = int(np.searchsorted(starts, start, side="right")) - 1
        last = int(np.searchsorted(starts, stop, side="left"))
        writes.append(
            run.task(
                _write_slice, list(parts[first:last]), start - int(starts[first]), stop - start, url, start,
                name="write-centroids", key=start,
            )
        )  # fmt: skip
    run.gather(writes, "write centroids")


def _write_slice(parts: list[Parts], skip: int, count: int, url: str, start: int) -> None:
    write_block(url, start, np.concatenate([part.centroids for part in parts])[skip : skip + count])


def _write_labels(
    run: Any, parts: Sequence[Delayed], starts: np.ndarray, source: RowSource, n_rows: int, metric: str
) -> float:
    """Send labels and distances back to row order and write them; return the inertia."""
    frames = [
        run.task(_label_frame, part, int(starts[i]), source.chunk_rows, name="split-labels", key=i)
        for i, part in enumerate(parts)
    ]
    back = regroup(run, frames, _LABELS, len(source.ranges), 28 * n_rows, "split-back")
    urls = [run.declare(name, (source.n_rows,), source.chunk_rows) for name in ("labels", "distances")]
    writes = [
        run.task(_write_chunk, frame, bounds, urls, metric, name="write-labels", key=bounds[0])
        for frame, bounds in zip(back, source.ranges, strict=True)
    ]
    return math.fsum(run.gather(writes, "write labels"))


def _label_frame(parts: Parts, first: int, chunk_rows: int) -> pd.DataFrame:
    return pd.DataFrame(
        {"partition": parts.rows // chunk_rows, "row": parts.rows, "label": (parts.labels + first).astype(np.int32),
         "distance": parts.distances}
    )  # fmt: skip


def _write_chunk(frame: pd.DataFrame, bounds: tuple[int, int], urls: list[str], metric: str) -> float:
    frame = frame.sort_values("row")  # the order of a shuffle's rows is not defined, that of a sum must be
    start, stop = bounds
    at = frame["row"].to_numpy() - start
    distance = frame["distance"].to_numpy()
    labels, distances = np.full(stop - start, -1, np.int32), np.full(stop - start, np.nan, np.float32)
    labels[at], distances[at] = frame["label"].to_numpy(), distance
    write_block(urls[0], start, labels)
    write_block(urls[1], start, distances)
    return float(squared(distance, metric).sum())
