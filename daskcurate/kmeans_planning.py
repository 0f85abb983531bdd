"""What a level of k-means takes, before it runs: memory, operations, tasks, and how the work grows.

How much of a Lloyd pass the bounds skip depends on the data; here it follows from the rows for each cluster, by a
fit to runs on embeddings of texts (``benchmarks/plan_seconds.py``): nothing at first, then ever more.
"""

import math
from typing import Any

from daskcurate.fitting import is_lloyds, lloyd_fits_one_task, one_task_bytes
from daskcurate.kernels.restricted import list_size
from daskcurate.kernels.seeding import operations, trials
from daskcurate.planning import PROCESS_BYTES, SHUFFLE_BYTES, Limits, StagePlan, tree_tasks
from daskcurate.remembering import LIMIT_BYTES, PARTIAL_SHARE
from daskcurate.rows import BLOCKS, chunks_per_block
from daskcurate.seeds import SAMPLE_ROWS, SAMPLE_UPDATES, greedy_rows, seeds_at_once
from daskcurate.two_level import COARSE_ROWS, PARTITIONS, SEED_ROWS, UPDATES

PASSES = 9
"""Restricted passes that the algorithms besides Lloyd's make, about."""
EXACT_PASSES = 2
"""Passes over all centroids of the algorithm ``fast``, the last assignment with them."""
ROUNDS = 2.5
"""Rounds of a trivial step that a pass costs besides its work: centroids and checkpoint are written and read."""


def seed_memory(config: Any, n: int, d: int, k: int, block: int) -> int:
    """Return the bytes of the largest seeding task, for k seeds of n rows of width d in blocks of ``block`` items."""
    if config.init == "k-means++":
        lloyds = is_lloyds(config.algorithm, n, d, k)
        if not lloyds and seeds_at_once(n, d, k):
            return 3 * min(n, SAMPLE_ROWS * k) * d * 4 + 2 * BLOCKS * k * d * 8
        if not lloyds:
            return 3 * min(n, SEED_ROWS * k) * d * 4 // max(1, min(PARTITIONS, math.isqrt(k))) + k * d * 8
        return 3 * greedy_rows(n, d, k) * d * 4
    if config.init == "k-means||":  # five rounds of 2k candidates, made ready to score a block with
        return 4 * block + 7 * min(n, 10 * k) * d * 4
    return k * d * 8  # drawn in parts, then put together


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
) -> StagePlan:
    """Return the plan of one k-means level over n rows of width d (``config``: a KMeansConfig)."""
    k = min(config.n_clusters, n)
    fast = not is_lloyds(config.algorithm, n, d, k)
    block_rows = min(n, chunk_rows * chunks_per_block(n, chunk_rows, d, limits.on_gpu))
    blocks = -(-n // block_rows)
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
    passes, whole = 2.0 + config.resamples, 0
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
            local = lloyd_fits_one_task(limits, rows, d, k, min(blocks, rows))
            work["alone-assign" if local else "assign"] += (
                2 * rows * k * d * lloyd_passes(config.n_iters, rows / k)
            )
            work["stream"] += 4 * rows * d * 1.7 * config.n_iters
            passes += 1 if local else config.n_iters
            whole = max(whole, one_task_bytes(rows, d, k, min(blocks, rows)) if local else 0)
    if config.algorithm == "two-level" and fast:
        work["listed"] += 2 * n * d * (4 * list_size(k) + 4 * math.sqrt(k)) * (1 + config.resamples)
    elif not fast:
        work["assign"] += 2 * n * k * d * (1 + config.resamples)
    work["stream"] += 4 * n * d * (3 + config.resamples)
    kept, held = 0, False
    if limits.total_memory is None or n * d * 4 <= limits.total_memory // 2:
        kept, held = n * d * 4 // limits.n_workers, True
    items, partial = block_rows * d, k * d * 8
    sums = partial * blocks if partial * PARTIAL_SHARE <= items * 4 else 0
    kept += min(LIMIT_BYTES, (n * 8 + sums) // limits.n_workers)  # labels, bounds and sums of the last pass
    tasks_memory = {
        "step": items * (itemsize + 4) + 4 * k * d * 4 + partial + (16 << 20),
        "combine": 9 * k * (d + 1) * 8,
        "seed": seed_memory(config, n, d, k, items),
        "whole": whole,
        "split": 5 * min(n * d * 4, split_bytes) + SHUFFLE_BYTES if config.n_splits > 1 else 0,
    }
    worst = max(tasks_memory, key=lambda name: tasks_memory[name])
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
        bytes_read=int(n * d * itemsize * (1 if held else passes)),
        flops=int(
            sum(
                work[name]
                for name in ("assign", "listed", "seed", "alone-seed", "alone-assign", "serial-assign")
            )
        ),
        tasks=int(passes * (blocks + tree_tasks(blocks) + 2)),
        peak_memory=PROCESS_BYTES + limits.threads_per_worker * tasks_memory[worst] + kept,
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
