"""Resampling (Vo et al. 2024): a level is fitted again on a few rows of each of its clusters."""

from itertools import repeat
from typing import Any

import numpy as np

from daskcurate.arrays import namespace_of
from daskcurate.config import KMeansConfig
from daskcurate.device import on_device
from daskcurate.kernels.assign import Scorer, assign
from daskcurate.kernels.draws import derive_seed, row_uniform
from daskcurate.kernels.threads import spread
from daskcurate.lloyd_loop import Assigned, assign_blocks, assigned_rows
from daskcurate.regroup import Labelled, rank_in_cluster, ranks_of_blocks
from daskcurate.rows import Block, RowBlocks, made_of


def resample(
    run: Any, blocks: RowBlocks, centroids: str, k: int, config: KMeansConfig, step: int
) -> RowBlocks:
    """Return the min(r, size) rows of each cluster closest to its centroid, or random ones."""
    key = f"resample-{step}"
    assigned, _, sizes = assign_blocks(run, blocks, centroids, k, config.metric, key)
    seed = _draw_seed(config, step)
    labelled = [
        blocks.numbers_task(run, i, _labelled, found, seed, name="resample-keys", key=f"{key}-{i}")
        for i, found in enumerate(assigned)
    ]
    ranks = run.persist(rank_in_cluster(run, labelled, blocks.counts, sizes, key), "rank rows")
    taken = blocks.zip_map(run, _take, ranks, config.sample_size, name="resample-take", key=key)
    counts = run.gather(
        [
            run.task(_count, rank, config.sample_size, name="resample-count", key=f"{key}-{i}")
            for i, rank in enumerate(ranks)
        ]
    )
    return made_of(run, blocks, taken, counts, key)


def resample_in_memory(
    blocks: list[Block],
    centroids: np.ndarray,
    config: KMeansConfig,
    step: int,
    known: np.ndarray | None = None,
) -> list[Block]:
    """Return what :func:`resample` does, of blocks in memory.

    Parameters
    ----------
    known
        (n,) int32 labels of the blocks' rows by ``centroids``, -1 where they are not known yet.
    """
    scorer, seed = Scorer(centroids, config.metric), _draw_seed(config, step)
    ends = np.cumsum([len(block.numbers) for block in blocks])
    parts = np.split(known, ends[:-1]) if known is not None else [None] * len(blocks)
    labelled = spread(_labelled_block, blocks, parts, repeat(scorer), repeat(seed))
    ranks = ranks_of_blocks(labelled)
    taken = [_take(block, rank, config.sample_size) for block, rank in zip(blocks, ranks, strict=True)]
    return [block for block in taken if len(block.numbers)]


def _draw_seed(config: KMeansConfig, step: int) -> int | None:
    """Return what random draws of a step are keyed by; None where the closest rows are taken."""
    return derive_seed(config.seed, "resample", step) if config.sample_strategy == "random" else None


def _labelled_block(block: Block, known: np.ndarray | None, scorer: Scorer, seed: int | None) -> Labelled:
    return _labelled(block.numbers, _assigned(block, known, scorer), seed)


@on_device
def _assigned(block: Block, known: np.ndarray | None, scorer: Scorer) -> Assigned:
    if known is None:
        return assigned_rows(block, assign(block.rows, scorer).labels, scorer)
    xp = namespace_of(block.rows)
    labels = xp.asarray(known)  # in its place
    new = xp.nonzero(labels < 0)[0]
    labels[new] = assign(block.rows[new], scorer).labels
    return assigned_rows(block, labels, scorer)


def _labelled(numbers: np.ndarray, found: Assigned, seed: int | None) -> Labelled:
    return Labelled(found.labels, found.distances if seed is None else row_uniform(seed, numbers))


def _take(block: Block, ranks: np.ndarray, count: int) -> Block:
    keep = ranks < count
    return Block(block.numbers[keep], block.rows[keep])


def _count(ranks: np.ndarray, count: int) -> int:
    return int((ranks < count).sum())
