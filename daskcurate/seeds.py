"""Seeding k-means over row blocks: each way ends in a scratch array of k centroids."""

from typing import Any

import numpy as np

from daskcurate.config import KMeansConfig
from daskcurate.device import on_device
from daskcurate.kernels import lloyd, oversampling, seeding
from daskcurate.kernels.assign import nearest, unit_rows
from daskcurate.kernels.draws import derive_seed, row_uniform
from daskcurate.kernels.lloyd_in_memory import lloyd_in_memory
from daskcurate.rows import BLOCKS, Block, RowBlocks, add, drawn_positions, drawn_rows, tree
from daskcurate.store import read_block, write_scratch
from daskcurate.two_level import seed_two_level

WHOLE_BYTES = 128 << 20
"""Rows (float32) that one seeding task takes; greedy k-means++ on more uses a uniform sample of this size."""
QUICK_OPERATIONS = 200_000_000_000
"""Distances (operations) of greedy k-means++ that are no reason to look at fewer rows: some seconds."""
SAMPLE_ROWS = 32
"""Rows for each seed in a sample that is taken because more would be slow."""
SAMPLE_UPDATES = 2
"""Updates on such a sample; more of them cost as much as the restricted passes over all rows that they save."""
ROWS_PER_SEED = 4
"""A sample for k-means++ has at least this many rows for each seed."""


def greedy_rows(n: int, dim: int, k: int) -> int:
    """Return how many of n rows of width ``dim`` greedy k-means++ looks at for k seeds.

    All of them where that is little work, else a sample: from 32 rows a seed on, more of them lowered the inertia
    after ten Lloyd updates by less than 0.05 % (200 000 embeddings of texts, k = 1000).
    """
    quick = int(QUICK_OPERATIONS / seeding.operations(n, dim, k) * n)
    fitting = max(WHOLE_BYTES // (4 * dim), ROWS_PER_SEED * k)
    return min(n, fitting, max(SAMPLE_ROWS * k, quick))


def seed_centroids(
    run: Any,
    blocks: RowBlocks,
    k: int,
    config: KMeansConfig,
    seed: int,
    name: str,
    given: np.ndarray | None,
    *,
    sampled: bool = False,
    at_once: bool = True,
) -> str:
    """Write k seeds to scratch array ``name`` and return the name.

    Parameters
    ----------
    given
        (k', d) centroids for ``init="array"``; the first k are used.
    sampled
        Whether ``k-means++`` runs on a sample only, and moves the seeds by a few updates on it.
    at_once
        Whether one task does so; else the sample is seeded in two levels (coarse clusters, then seeds within each).
    """
    url = run.scratch(name)
    if config.init == "array":
        assert given is not None
        write_scratch(url, unit_rows(given[:k]) if config.metric == "cosine" else given[:k])
    elif config.init == "random":
        picked = drawn_rows(run, blocks, k, seed, name)
        run.gather([run.task(_write_rows, picked, url, name="seed-random", key=name)], "seed")
    elif config.init == "k-means||":
        _scalable(run, blocks, k, seed, url, name)
    elif sampled and not at_once:
        seed_two_level(run, blocks, k, config, seed, name)
    elif sampled:
        count = min(len(blocks), SAMPLE_ROWS * k)
        parts = drawn_rows(run, blocks, count, seed, name)
        run.gather(
            [run.task_alone(_refined, parts, k, config, seed, url, name="seed-kmeans++", key=name)], "seed"
        )
    else:
        parts = list(blocks.blocks)
        count = greedy_rows(len(blocks), blocks.dim, k)
        if count < len(blocks):
            warn_of_sample(run, count, len(blocks))
            parts = drawn_rows(run, blocks, count, seed, name)
        run.gather([run.task_alone(_plusplus, parts, k, seed, url, name="seed-kmeans++", key=name)], "seed")
    return name


def seeds_at_once(n: int, dim: int, k: int) -> bool:
    """Return whether one task holds the sample of which the algorithms besides Lloyd's take their seeds."""
    return min(n, SAMPLE_ROWS * k) * 4 * dim <= WHOLE_BYTES


def warn_of_sample(run: Any, count: int, n: int) -> None:
    """Say that greedy k-means++ looked at a sample."""
    run.warn(
        f"init='k-means++' runs on a uniform sample of {count} of {n} rows, in one task; "
        "init='k-means||' reads every row"
    )


def greedy_seeds(rows: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Return k seeds (k, d) of rows (m, d) in memory: the same as :func:`seed_centroids` finds by k-means++."""
    count = greedy_rows(len(rows), rows.shape[1], k)
    if count < len(rows):
        rows = rows[drawn_positions(len(rows), count, seed)]
    return _plusplus_of(rows, k, seed)


def _plusplus_of(rows: np.ndarray, k: int, seed: int) -> np.ndarray:
    return rows[on_device(seeding.kmeans_plusplus)(rows, k, np.random.default_rng(seed))]


def _write_rows(blocks: list[Block], url: str) -> None:
    write_scratch(url, np.concatenate([block.rows for block in blocks]))


def _plusplus(blocks: list[Block], k: int, seed: int, url: str) -> None:
    rows = np.concatenate([block.rows for block in blocks])
    write_scratch(url, _plusplus_of(rows, k, seed))


def _refined(blocks: list[Block], k: int, config: KMeansConfig, seed: int, url: str) -> None:
    """Write greedy k-means++ seeds of a sample, moved by a few updates on it."""
    rows = np.concatenate([block.rows for block in blocks])
    seeds = _plusplus_of(rows, k, seed)
    step = -(-len(rows) // BLOCKS)
    pieces = [rows[i : i + step] for i in range(0, len(rows), step)]
    found = on_device(lloyd_in_memory)(
        pieces, seeds, config.metric, SAMPLE_UPDATES, step=lloyd.OVER_RELAXATION
    )
    write_scratch(url, found.centroids)


def _scalable(run: Any, blocks: RowBlocks, k: int, seed: int, url: str, key: str) -> None:
    """k-means||: rounds of oversampling over all rows, then weighted k-means++ on the candidates."""
    candidates = run.gather(drawn_rows(run, blocks, 1, seed, f"{key}-first"))[0].rows
    shift = candidates[0]
    near: list[Any] = [None] * len(blocks.blocks)
    added = candidates
    for number in range(oversampling.OVERSAMPLING_ROUNDS):
        tag = f"{key}-{number}"
        table = _candidates(run, added - shift, tag)
        near = run.persist(
            blocks.zip_map(run, _nearer, near, table, shift, name="seed-distances", key=tag), "seeding round"
        )
        sums = [run.task(_mass, item, name="seed-mass", key=f"{tag}-{i}") for i, item in enumerate(near)]
        total = float(np.sum(run.gather(sums)))
        if not total > 0:
            break
        draw = derive_seed(seed, "k-means||", number)
        picks = blocks.zip_map(run, _oversample, near, draw, total, 2.0 * k, name="seed-oversample", key=tag)
        added = np.concatenate(run.gather(picks, "seeding round"))
        if len(added):
            candidates = np.concatenate([candidates, added])
    if len(candidates) < k:  # fewer candidates than seeds: top up with rows drawn uniformly
        extra = run.gather(drawn_rows(run, blocks, k, derive_seed(seed, "top up"), f"{key}-extra"))
        candidates = np.concatenate([candidates, *(block.rows for block in extra)])
    table = _candidates(run, candidates, f"{key}-all")
    parts = blocks.map(run, _weights, table, name="seed-weights", key=key)
    weights = tree(run, add, parts, name="seed-weights-add", key=key)
    run.gather(
        [run.task_alone(_weighted, weights, table, k, seed, url, name="seed-kmeans++", key=key)], "seed"
    )


def _candidates(run: Any, vectors: np.ndarray, name: str) -> Any:
    """Return a task that yields ``vectors``, through a scratch array: they may be too many for a graph."""
    url = run.scratch(f"candidates-{name}")
    write_scratch(url, vectors)
    return run.task(read_block, url, 0, len(vectors), name="candidates", key=name)


@on_device
def _nearer(block: Block, near: np.ndarray | None, centers: np.ndarray, shift: np.ndarray) -> np.ndarray:
    return oversampling.nearer(block.rows - shift, near, centers)


def _mass(near: np.ndarray) -> float:
    return float(near.sum(dtype=np.float64))


def _oversample(block: Block, near: np.ndarray, seed: int, total: float, rate: float) -> np.ndarray:
    return block.rows[oversampling.oversample(near, row_uniform(seed, block.numbers), total, rate)]


def _weights(block: Block, candidates: np.ndarray) -> np.ndarray:
    labels = on_device(nearest)(block.rows, candidates, "l2")
    return np.bincount(labels, minlength=len(candidates)).astype(np.float64)


def _weighted(weights: np.ndarray, candidates: np.ndarray, k: int, seed: int, url: str) -> None:
    rng = np.random.default_rng(derive_seed(seed, "reduce"))
    write_scratch(url, candidates[on_device(seeding.kmeans_plusplus)(candidates, k, rng, weights)])
