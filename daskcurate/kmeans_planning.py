"""What a level of k-means takes, before it runs: memory, operations, tasks, and how the work grows.

How much of a Lloyd pass the bounds skip depends on the data; here it follows from the rows for each cluster, by a
fit to runs on embeddings of texts (``benchmarks/plan_seconds.py``): nothing at first, then ever more.
"""

import math
from typing import Any

from daskcurate.fitting import is_lloyds, lloyd_fits_one_task, one_task_bytes
from daskcurate.kernels.leading import LEAST_WIDTH, MOST
from daskcurate.kernels.restricted import list_size
from daskcurate.kernels.seeding import operations, trials
from daskcurate.planning import Limits, StagePlan, tree_tasks
from daskcurate.remembering import LIMIT_BYTES, PARTIAL_SHARE
from daskcurate.rows import BLOCKS, PIECE_BYTES, chunks_per_block
from daskcurate.seeds import SAMPLE_ROWS, SAMPLE_UPDATES, greedy_rows, seeds_at_once
from daskcurate.two_level import COARSE_ROWS, PARTITIONS, SEED_ROWS, UPDATES

PASSES = 9
"""Restricted passes that the algorithms besides Lloyd's make, about."""
EXACT_PASSES = 2
"""Passes over all centroids of the algorithm ``fast``, about: two in the leading directions, and the assignment."""
SUMS_BYTES = 48 << 20
"""What adding up the rows of a block takes besides: float64 copies of a few columns (32 MiB), their sums, scores."""
ROUNDS = 2.5
"""Rounds of a trivial step that a pass costs besides its work: centroids and checkpoint are written and read."""


def narrow_bytes(n: int, d: int) -> int:
    """Return the bytes of n rows of width d in their leading directions, at most."""
    return int(n * (MOST * d + 4) * 4) if d >= LEAST_WIDTH else 0


def seed_memory(config: Any, n: int, d: int, k: int, block: int, limits: Limits) -> int:
    """Return the bytes of the largest seeding task, for k seeds of n rows of width d in blocks of ``block`` items."""
    if config.init == "k-means++":
        lloyds = is_lloyds(config.algorithm, n, d, k)
        if not lloyds and seeds_at_once(n, d, k):
            return 3 * min(n, SAMPLE_ROWS * k) * d * 4 + 2 * BLOCKS * k * d * 8
        if not lloyds:
            sample = min(n, SEED_ROWS * k) * d * 4
            return (
                3 * sample // max(1, min(PARTITIONS, math.isqrt(k)))
                + k * d * 8
                + limits.shuffle_memory(sample)
            )
        return 3 * greedy_rows(n, d, k) * d * 4
    if config.init == "k-means||":  # five rounds of 2k candidates, made ready to score a block with
        return 4 * block + 7 * min(n, 10 * k) * d * 4
    return k * d * 8  # drawn in parts, then put together


def _blocks(n: int, chunk_rows: int, d: int, limits: Limits) -> tuple[int, int]:
    """Return the rows of a block of n rows of width d, and how many blocks there are."""
    rows = min(n, chunk_rows * chunks_per_block(n, chunk_rows, d, limits.on_gpu))
    return rows, -(-n // rows)


def tasks_memory(
    *,
    n: int,
    d: int,
    itemsize: int,
    chunk_rows: int,
    config: Any,
    limits: Limits,
    split_bytes: int,
    local: bool,
) -> dict[str, int]:
    """Return the bytes of the largest task of each kind; arguments as of :func:`kmeans_plan`."""
    k = min(config.n_clusters, n)
    block_rows, blocks = _blocks(n, chunk_rows, d, limits)
    items = block_rows * d
    whole = 0
    for rows in {n, *([min(n, config.sample_size * k)] if config.resamples else [])}:
        parts = min(blocks, rows)
        if is_lloyds(config.algorithm, rows, d, k) and lloyd_fits_one_task(limits, rows, d, k, parts):
            whole = max(whole, one_task_bytes(rows, d, k, parts))
    reading = 2 * PIECE_BYTES if local else items * itemsize
    return {
        "step": items * 4 + reading + 4 * k * d * 4 + k * d * 8 + SUMS_BYTES + 32 * block_rows,
        "combine": 9 * k * (d + 1) * 8,
        "seed": seed_memory(config, n, d, k, items, limits),
        "whole": whole,
        "split": 5 * min(n * d * 4, split_bytes) + limits.shuffle_memory(n * d * 4)
        if config.n_splits > 1
        else 0,
    }


def working_memory(*, n: int, d: int, chunk_rows: int, config: Any, limits: Limits, **more: Any) -> int:
    """Return what a worker needs at the worst moment, besides blocks that it holds; arguments as below."""
    tasks = tasks_memory(n=n, d=d, chunk_rows=chunk_rows, config=config, limits=limits, **more)
    k = min(config.n_clusters, n)
    block_rows, blocks = _blocks(n, chunk_rows, d, limits)
    partial = k * d * 8
    sums = partial * blocks if partial * PARTIAL_SHARE <= block_rows * d * 4 else 0
    # labels, bounds and sums of the last pass; labels and distances until they are written
    remembered = min(LIMIT_BYTES, (n * 8 + sums) // limits.n_workers)
    return limits.peak(max(tasks.values()), remembered + n * 12 // limits.n_workers)


def lloyd_passes(n_iters: int, rows_per_cluster: float) -> float:
    """Return the work of ``n_iters`` bounded passes, in passes without bounds."""
    plateau, decay = 1 + 0.04 * rows_per_cluster, 0.5 + 0.15 * rows_per_cluster
    return sum(min(1.0, math.exp((plateau - t) / decay)) for t in range(n_iters))


def kmeans_plan(
    title: str,
    *,
    n: int,
    d: int,
    itemsize: int,
    chunk_rows: int,
    config: Any,
    limits: Limits,
    split_bytes: int,
    local: bool = True,
) -> StagePlan:
    """Return the plan of one k-means level over n rows of width d (``config``: a KMeansConfig).

    ``local``: whether the rows are read piece by piece, as those of a pool in a folder are.
    """
    k = min(config.n_clusters, n)
    fast = not is_lloyds(config.algorithm, n, d, k)
    block_rows, blocks = _blocks(n, chunk_rows, d, limits)
    subset = min(n, config.sample_size * k)
    fits = [n] * config.n_init + [subset] * (config.resamples * config.n_init)
    work = {
        "assign": 0.0,
        "listed": 0.0,
        "seed": 0.0,
        "alone-seed": 0.0,
        "alone-assign": 0.0,
        "serial-assign": 0.0,
        "stream": 0.0,
    }
    passes = 2.0 + config.resamples
    for rows in fits:
        _add_seeding(work, config, rows, d, k)
        if not is_lloyds(config.algorithm, rows, d, k):
            listed = PASSES * list_size(k) + 4 * math.sqrt(k)
            work["listed"] += 2 * rows * d * listed
            work["serial-assign"] += PASSES * 6 * k * d * min(k / 4, 4 * math.sqrt(k))
            exact = EXACT_PASSES if config.algorithm == "fast" else 0.0
            work["assign"] += 2 * rows * k * d * exact
            work["stream"] += 4 * rows * d * (0.3 * PASSES + 1.5 * exact)
            passes += PASSES + math.ceil(exact)
        else:
            alone = lloyd_fits_one_task(limits, rows, d, k, min(blocks, rows))
            work["alone-assign" if alone else "assign"] += (
                2 * rows * k * d * lloyd_passes(config.n_iters, rows / k)
            )
            work["stream"] += 4 * rows * d * 1.7 * config.n_iters
            passes += 1 if alone else config.n_iters
    if config.algorithm == "two-level" and fast:
        work["listed"] += 2 * n * d * (4 * list_size(k) + 4 * math.sqrt(k)) * (1 + config.resamples)
    elif not fast:
        work["assign"] += 2 * n * k * d * (1 + config.resamples)
    work["stream"] += 4 * n * d * (3 + config.resamples)
    sizes = {"n": n, "d": d, "itemsize": itemsize, "chunk_rows": chunk_rows, "config": config}
    tasks = tasks_memory(**sizes, limits=limits, split_bytes=split_bytes, local=local)
    working = working_memory(**sizes, limits=limits, split_bytes=split_bytes, local=local)
    rows_held = limits.holds(n * d * 4, block_rows * d * 4, working)
    held = n * d * 4 if rows_held else 0
    if fast and limits.holds(held + narrow_bytes(n, d), block_rows * d * 4, working):
        held += narrow_bytes(n, d)
    worst = max(tasks, key=lambda name: tasks[name])
    advice = {
        "step": "lower n_clusters, or give the workers more memory or fewer threads each",
        "combine": "lower n_clusters, or give the workers more memory or fewer threads each",
        "seed": "use init='random', or give the workers more memory",
        "whole": "give the workers more memory or fewer threads each",
        "split": "give the workers more memory or fewer threads each",
    }[worst]
    made = k * config.n_splits
    return StagePlan(
        stage=title,
        rows=n,
        bytes_read=int(n * d * itemsize * (1 if rows_held else passes)),
        flops=int(
            sum(
                work[name]
                for name in ("assign", "listed", "seed", "alone-seed", "alone-assign", "serial-assign")
            )
        ),
        tasks=int(passes * (blocks + tree_tasks(blocks) + 2)),
        peak_memory=working + held // limits.n_workers,
        disk=n * 8 + made * (d * 4 + 8),
        advice=advice,
        work={**work, "rounds": ROUNDS * passes + 6 * len(fits)},
        parts=blocks,
    )


def _add_seeding(work: dict[str, float], config: Any, n: int, d: int, k: int) -> None:
    """Add what seeding k clusters among n rows takes."""
    lloyds = is_lloyds(config.algorithm, n, d, k)
    if config.init == "k-means||":
        work["assign"] += 2 * n * d * 20 * k
        work["alone-seed"] += operations(min(n, 10 * k), d, k)
    elif config.init == "k-means++" and not lloyds and seeds_at_once(n, d, k):
        rows = min(n, SAMPLE_ROWS * k)
        work["alone-seed"] += operations(rows, d, k)
        work["assign"] += 2 * rows * d * k * SAMPLE_UPDATES
    elif config.init == "k-means++" and not lloyds:
        h = max(1, round(math.sqrt(k)))
        rows, coarse = min(n, SEED_ROWS * k), min(n, COARSE_ROWS * h)
        work["alone-seed"] += operations(coarse, d, h)
        work["seed"] += 2 * rows * d * (k / h) * trials(k // h)
        work["assign"] += 2 * rows * d * ((k / h) * UPDATES + h)
        work["serial-stream"] = work.get("serial-stream", 0.0) + 2 * rows * d * 4
    elif config.init == "k-means++":
        work["alone-seed"] += operations(greedy_rows(n, d, k), d, k)
