"""Seeds in two levels, for many clusters: coarse clusters first, then seeds within each.

Greedy k-means++ costs k n d log k operations, ten passes' worth over the rows that it reads. Here sqrt(k)
coarse clusters share the seeds out by their sums of squared distances, and each has its share drawn by
greedy k-means++ from its own rows and moved by a few Lloyd updates. That is sqrt(k) times less work, and
in parallel.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from daskcurate.config import KMeansConfig
from daskcurate.device import on_device
from daskcurate.kernels import lloyd, seeding
from daskcurate.kernels.allocation import bounded_allocation
from daskcurate.kernels.assign import nearest
from daskcurate.kernels.distances import own_distances, squared
from daskcurate.kernels.draws import derive_seed
from daskcurate.kernels.lloyd_in_memory import lloyd_in_memory
from daskcurate.regroup import from_cells, regroup, to_cells
from daskcurate.rows import Block, RowBlocks, add, drawn_rows, tree
from daskcurate.store import read_block, write_scratch

SEED_ROWS = 48
"""Rows of the sample for each seed."""
COARSE_ROWS = 64
"""Rows of the sample for each coarse cluster."""
UPDATES = 6
"""Lloyd updates within each coarse cluster."""
PARTITIONS = 16
"""Tasks that share the coarse clusters among them, at most."""

_ROWS = pd.DataFrame(
    {"partition": np.empty(0, "i8"), "group": np.empty(0, "i4"), "row": np.empty(0, "i8"),
     "cells": to_cells(np.empty((0, 1), "f4"))}
)  # fmt: skip


class Coarse(NamedTuple):
    """Rows and spread of the coarse clusters."""

    sizes: np.ndarray
    spread: np.ndarray
    """(h,) float64: sum of squared distances to the coarse centroid."""


def seed_two_level(run: Any, blocks: RowBlocks, k: int, config: KMeansConfig, seed: int, name: str) -> str:
    """Write k seeds to scratch array ``name`` and return the name."""
    h = max(1, round(math.sqrt(k)))
    coarse = f"{name}-coarse"
    few = drawn_rows(run, blocks, min(len(blocks), COARSE_ROWS * h), derive_seed(seed, "coarse"), coarse)
    run.gather(
        [
            run.task_alone(
                _coarse, few, h, config.metric, seed, run.scratch(coarse), name="seed-coarse", key=name
            )
        ],
        "seed",
    )
    table = run.task(read_block, run.scratch(coarse), 0, h, name="seed-coarse-centroids", key=name)
    count = min(len(blocks), SEED_ROWS * k)
    sample = run.persist(drawn_rows(run, blocks, count, derive_seed(seed, "sample"), name), "seed")
    labels = run.persist(
        [
            run.task(_labels, b, table, config.metric, name="seed-labels", key=f"{name}-{i}")
            for i, b in enumerate(sample)
        ]
    )
    parts = [
        run.task(_spread, b, found, table, config.metric, name="seed-spread", key=f"{name}-{i}")
        for i, (b, found) in enumerate(zip(sample, labels, strict=True))
    ]
    found = run.gather([tree(run, _add_coarse, parts, name="seed-spread-add", key=name)], "seed")[0]
    spread = found.spread if found.spread.sum() > 0 else found.sizes.astype(np.float64)
    shares = bounded_allocation(spread / spread.sum(), k, found.sizes, np.minimum(found.sizes, 1))
    work = found.sizes * np.maximum(shares, 1)
    partition = np.minimum(np.cumsum(work) * PARTITIONS // max(1, int(work.sum())), PARTITIONS - 1)
    partition = np.unique(partition, return_inverse=True)[1]
    n_partitions = int(partition[-1]) + 1
    frames = [
        run.task(_frame, b, item, partition, name="seed-frame", key=f"{name}-{i}")
        for i, (b, item) in enumerate(zip(sample, labels, strict=True))
    ]
    grouped = regroup(run, frames, _ROWS, n_partitions, count * (4 * blocks.dim + 20), f"{name}-seed")
    lazy = [
        run.task(
            _seed_partition,
            frame,
            shares,
            blocks.dim,
            config.metric,
            seed,
            name="seed-within",
            key=f"{name}-{i}",
        )
        for i, frame in enumerate(grouped)
    ]
    run.gather([run.task(_write, lazy, run.scratch(name), name="seed-write", key=name)], "seed")
    return name


def _coarse(blocks: list[Block], h: int, metric: str, seed: int, url: str) -> None:
    rows = np.concatenate([block.rows for block in blocks])
    seeds = on_device(seeding.kmeans_plusplus)(rows, h, np.random.default_rng(derive_seed(seed, "coarse")))
    write_scratch(url, on_device(lloyd_in_memory)([rows], rows[seeds], metric, UPDATES).centroids)


@on_device
def _labels(block: Block, coarse: np.ndarray, metric: str) -> np.ndarray:
    return nearest(block.rows, coarse, metric)


def _spread(block: Block, labels: np.ndarray, coarse: np.ndarray, metric: str) -> Coarse:
    distance = own_distances(block.rows, coarse, labels, metric)
    square = squared(distance, metric)
    h = len(coarse)
    return Coarse(np.bincount(labels, minlength=h).astype(np.int64), np.bincount(labels, square, minlength=h))


def _add_coarse(parts: list[Coarse]) -> Coarse:
    return Coarse(*(add(column) for column in zip(*parts, strict=True)))


def _frame(block: Block, labels: np.ndarray, partition: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        {"partition": partition[labels], "group": labels, "row": block.numbers, "cells": to_cells(block.rows)}
    )


def _seed_partition(frame: pd.DataFrame, shares: np.ndarray, dim: int, metric: str, seed: int) -> np.ndarray:
    """Return the seeds of a partition's coarse clusters, (sum of their shares, d), in their order."""
    rows, numbers = from_cells(frame["cells"], dim, np.float32), frame["row"].to_numpy()
    groups = frame["group"].to_numpy()
    order = np.lexsort((numbers, groups))
    found = [np.empty((0, dim), dtype=np.float32)]
    for group in np.unique(groups):
        start, stop = np.searchsorted(groups[order], [group, group + 1])
        members = rows[order[start:stop]]
        rng = np.random.default_rng(derive_seed(seed, "within", int(group)))
        seeds = members[on_device(seeding.kmeans_plusplus)(members, int(shares[group]), rng)]
        fitted = on_device(lloyd_in_memory)([members], seeds, metric, UPDATES, step=lloyd.OVER_RELAXATION)
        found.append(fitted.centroids)
    return np.concatenate(found)


def _write(parts: list[np.ndarray], url: str) -> None:
    write_scratch(url, np.concatenate(parts))
