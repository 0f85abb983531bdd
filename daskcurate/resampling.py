"""Resampling (Vo et al. 2024): a level is fitted again on a few rows of each of its clusters."""

from typing import Any

import numpy as np

from daskcurate.config import KMeansConfig
from daskcurate.kernels.draws import derive_seed, row_uniform
from daskcurate.lloyd_loop import Assigned, assign_blocks
from daskcurate.regroup import Labelled, rank_in_cluster
from daskcurate.rows import Block, RowBlocks, keep_if_small


def resample(
    run: Any, blocks: RowBlocks, centroids: str, k: int, config: KMeansConfig, step: int
) -> RowBlocks:
    """Return the min(r, size) rows of each cluster closest to its centroid, or random ones."""
    key = f"resample-{step}"
    assigned, _, sizes = assign_blocks(run, blocks, centroids, k, config.metric, key)
    seed = derive_seed(config.seed, "resample", step) if config.sample_strategy == "random" else None
    labelled = [
        run.task(_labelled, block, found, seed, name="resample-keys", key=f"{key}-{i}")
        for i, (block, found) in enumerate(zip(blocks.blocks, assigned, strict=True))
    ]
    ranks = run.persist(rank_in_cluster(run, labelled, blocks.counts, sizes, key), "rank rows")
    taken = [
        run.task(_take, block, rank, config.sample_size, name="resample-take", key=f"{key}-{i}")
        for i, (block, rank) in enumerate(zip(blocks.blocks, ranks, strict=True))
    ]
    counts = run.gather(
        [
            run.task(_count, rank, config.sample_size, name="resample-count", key=f"{key}-{i}")
            for i, rank in enumerate(ranks)
        ]
    )
    kept = [(block, count) for block, count in zip(taken, counts, strict=True) if count]
    return keep_if_small(
        run, RowBlocks([b for b, _ in kept], [n for _, n in kept], blocks.dim, run.scratch(key))
    )


def _labelled(block: Block, found: Assigned, seed: int | None) -> Labelled:
    return Labelled(found.labels, found.distances if seed is None else row_uniform(seed, block.numbers))


def _take(block: Block, ranks: np.ndarray, count: int) -> Block:
    keep = ranks < count
    return Block(block.numbers[keep], block.rows[keep])


def _count(ranks: np.ndarray, count: int) -> int:
    return int((ranks < count).sum())
