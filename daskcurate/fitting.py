"""One fit of k-means: seeding, restarts and the loop that the size and the algorithm call for."""

from dataclasses import replace
from typing import Any

import numpy as np

from daskcurate.config import KMeansConfig
from daskcurate.device import on_device
from daskcurate.fast_loop import iterate_fast
from daskcurate.kernels.draws import derive_seed
from daskcurate.kernels.lloyd_in_memory import lloyd_in_memory
from daskcurate.lloyd_loop import assigned_block, iterate_lloyd, table_of
from daskcurate.planning import Limits
from daskcurate.remembering import Table, read_centroids
from daskcurate.resampling import resample_in_memory
from daskcurate.rows import Block, NarrowBlock, RowBlocks
from daskcurate.seeds import greedy_rows, greedy_seeds, seed_centroids, seeds_at_once, warn_of_sample
from daskcurate.store import read_block, write_scratch

LOCAL_BYTES = 128 << 20
"""Rows (float32), and sums of clusters, that one task may hold to cluster the rows whole ..."""
LOCAL_OPERATIONS = 40_000_000_000
"""... if one of its threads has no more work than this in an iteration: some tenths of a second."""
SMALL_BYTES, SMALL_OPERATIONS = 64 << 20, 40_000_000_000
"""Rows and work of an iteration so small that there is nothing to gain by any other algorithm than Lloyd's."""


def is_lloyds(algorithm: str, n: int, d: int, k: int) -> bool:
    """Return whether Lloyd's algorithm clusters n rows of width d: by configuration, or because they are few."""
    small = n * d * 4 <= min(SMALL_BYTES, LOCAL_BYTES) and 2 * n * k * (d + 8) <= SMALL_OPERATIONS
    return algorithm == "lloyd" or small


def one_task_bytes(n: int, d: int, k: int, blocks: int) -> int:
    """Return the memory of one task that clusters n rows of width d whole: copies of them, sums of each block."""
    return 4 * n * d * 4 + 2 * blocks * k * d * 8


def lloyd_fits_one_task(limits: Limits, n: int, d: int, k: int, blocks: int) -> bool:
    """Return whether one task, with the cores of its host, takes the place of Lloyd's rounds over the cluster.

    The result is the same to the bit; the rounds cost more than the work where that is little.
    """
    return (
        n * d * 4 <= LOCAL_BYTES
        and one_task_bytes(n, d, k, blocks) <= min(8 * LOCAL_BYTES, limits.thread_memory)
        and 2 * n * k * (d + 8) <= LOCAL_OPERATIONS * limits.host_threads
    )


def _in_one_task(run: Any, blocks: RowBlocks, k: int) -> bool:
    return lloyd_fits_one_task(run.limits, len(blocks), blocks.dim, k, len(blocks.blocks))


def fit(
    run: Any,
    blocks: RowBlocks,
    k: int,
    config: KMeansConfig,
    step: int,
    base: str | None,
    given: np.ndarray | None,
    share: tuple[float, float],
    what: str,
    width: int = 0,
) -> str:
    """Run k-means from scratch on ``blocks``; return the name of the scratch array of the best centroids.

    Parameters
    ----------
    step
        0 for the initial k-means, then the number of the resampling step.
    base
        Scratch array of the last finished step: kept in the checkpoint, so that a resumed run has it.
    share
        Start and length of this fit in the stage's progress, as fractions.
    what
        What the progress display says before "iteration".
    width
        How many leading directions the stage's rows have: kept in the checkpoint.
    """
    best, best_inertia = "", np.inf
    saved = run.checkpoint
    resumed = saved if saved.get("step") == step and "restart" in saved else {}
    if resumed:
        best, best_inertia = resumed["best"], resumed["best_inertia"] if resumed["best"] else np.inf
    lloyds = is_lloyds(config.algorithm, len(blocks), blocks.dim, k)
    local = lloyds and _in_one_task(run, blocks, k)
    for restart in range(int(resumed.get("restart", 0)), config.n_init):
        name = f"s{step}-r{restart}"
        state = {
            "step": step,
            "base": base,
            "restart": restart,
            "best": best,
            "best_inertia": _json(best_inertia),
            "width": width,
        }
        seed = derive_seed(config.seed, "kmeans", k, step, restart)
        progress = (share[0] + share[1] * restart / config.n_init, share[1] / config.n_init)
        again = resumed if resumed.get("restart") == restart and "iteration" in resumed else {}
        start = again
        if not again:
            run.note(progress[0], f"{what}seeding")
            seeds = _seeded(run, blocks, k, config, seed, f"{name}-seeds", given, not lloyds)
            start = {"iteration": 0, "current": seeds, "previous": None}
        if local and not again:
            found = _fit_local(run, blocks, config, start["current"], name)
        else:
            found = _iterate(run, blocks, config, lloyds, name, state, start, seed, progress, what)
        if config.n_init == 1:
            return found
        inertia = _inertia(run, blocks, found, config.metric)
        if inertia < best_inertia:
            best, best_inertia = found, inertia
        run.save(**state | {"restart": restart + 1, "best": best, "best_inertia": _json(best_inertia)})
    return best


def _seeded(
    run: Any,
    blocks: RowBlocks,
    k: int,
    config: KMeansConfig,
    seed: int,
    name: str,
    given: np.ndarray | None,
    sampled: bool,
) -> str:
    """Write seeds, in the leading directions where the blocks have these; return their scratch array's name."""
    at_once = seeds_at_once(len(blocks), blocks.dim, k)
    if blocks.narrow is not None:
        blocks, config = blocks.narrow.blocks, replace(config, metric="l2")
    return seed_centroids(run, blocks, k, config, seed, name, given, sampled=sampled, at_once=at_once)


def _iterate(
    run: Any,
    blocks: RowBlocks,
    config: KMeansConfig,
    lloyds: bool,
    name: str,
    state: dict[str, Any],
    start: dict[str, Any],
    seed: int,
    progress: tuple[float, float],
    what: str,
) -> str:
    """Run the algorithm's loop over the cluster (``lloyds``: Lloyd's); return the last centroids' scratch name."""

    def note(fraction: float, text: str) -> None:
        run.note(progress[0] + progress[1] * fraction, f"{what}{text}")

    if lloyds:
        return iterate_lloyd(run, blocks, config, name, state, start, note)
    return iterate_fast(run, blocks, config, name, state, start, seed, note)


def _json(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _fit_local(run: Any, blocks: RowBlocks, config: KMeansConfig, seeds: str, name: str) -> str:
    """Run Lloyd's whole loop in one task."""
    fitted = run.task_alone(
        _lloyd_whole, list(blocks.blocks), run.scratch(seeds), config.metric, config.n_iters, config.tol,
        run.scratch(name), name="kmeans-whole", key=name,
    )  # fmt: skip
    run.gather([fitted], "k-means in one task")
    return name


def _lloyd_whole(blocks: list[Block], seeds: str, metric: str, n_iters: int, tol: Any, url: str) -> int:
    found = on_device(lloyd_in_memory)(
        [block.rows for block in blocks], read_centroids(seeds), metric, n_iters, tol
    )
    write_scratch(url, found.centroids)
    return found.n_updates


def resamples_whole(run: Any, blocks: RowBlocks, k: int, config: KMeansConfig) -> bool:
    """Return whether :func:`fit_resampled` does a resampling step of these rows, rather than tasks for each part."""
    lloyds = is_lloyds(config.algorithm, len(blocks), blocks.dim, k)
    simple = config.init == "k-means++" and config.n_init == 1
    return lloyds and simple and _in_one_task(run, blocks, k)


def fit_resampled(
    run: Any, blocks: RowBlocks, k: int, config: KMeansConfig, step: int, base: str, known: str | None
) -> tuple[str, int, str | None]:
    """Do a whole resampling step in one task; return scratch names of the centroids and known labels, and a count.

    The count is of the subset's rows; nothing is fitted where they are fewer than the clusters.

    Parameters
    ----------
    base
        Scratch name of the last step's centroids.
    known
        Scratch name of the labels that the last step knows; None: every row is assigned anew, to the same labels.
    """
    name = f"s{step}-r0"
    urls = run.scratch(name), run.scratch(f"{name}-known")
    count, is_known = run.gather(
        [
            run.task_alone(
                _resampled_whole, list(blocks.blocks), run.scratch(base), known and run.scratch(known),
                k, config, step, urls, name="kmeans-resampled", key=name,
            )
        ],
        "resample and fit",
    )[0]  # fmt: skip
    if count >= k and (looked_at := greedy_rows(count, blocks.dim, k)) < count:
        warn_of_sample(run, looked_at, count)
    return name, count, f"{name}-known" if is_known else None


def _resampled_whole(
    blocks: list[Block],
    base: str,
    known: str | None,
    k: int,
    config: KMeansConfig,
    step: int,
    urls: tuple[str, str],
) -> tuple[int, bool]:
    """Write the centroids to the first URL, to the second the labels that Lloyd's last pass found; say whether."""
    labels = None if known is None else read_block(known, 0, 2**62)
    subset = resample_in_memory(blocks, read_centroids(base), config, step, labels)
    rows = np.concatenate([np.empty((0, blocks[0].rows.shape[1]), np.float32), *(b.rows for b in subset)])
    if len(rows) < k:
        return len(rows), False
    seeds = greedy_seeds(rows, k, derive_seed(config.seed, "kmeans", k, step, 0))
    found = on_device(lloyd_in_memory)(
        [b.rows for b in subset], seeds, config.metric, config.n_iters, config.tol
    )
    write_scratch(urls[0], found.centroids)
    if found.labels is None:
        return len(rows), False
    numbers = np.concatenate([block.numbers for block in blocks])
    labels = np.full(len(numbers), -1, dtype=np.int32)
    at = np.searchsorted(numbers, np.concatenate([block.numbers for block in subset]))
    labels[at] = np.concatenate(found.labels)
    write_scratch(urls[1], labels)
    return len(rows), True


def _inertia(run: Any, blocks: RowBlocks, name: str, metric: str) -> float:
    """Return the inertia of ``blocks`` with the centroids of scratch array ``name``."""
    table = table_of(run, name, metric, blocks.narrow)
    parts = blocks.map_both(run, _block_inertia, table, blocks.name, name="kmeans-inertia", key=name)
    return float(np.sum(run.gather(parts, "inertia")))


def _block_inertia(block: Block, narrow: NarrowBlock | None, table: Table, rows_name: str) -> float:
    return assigned_block(block, narrow, table, rows_name).inertia
