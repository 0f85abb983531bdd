"""The k-means map-reduce: seeding, Lloyd's loop with a checkpoint an iteration, and assignment.

Centroids never pass through the client: an update task writes them to the stage's scratch arrays, and
the next iteration's first task reads them back. So a lost worker costs one iteration at most, a killed
client resumes at the last one, and no large object rides in a graph.

A scratch name stands for one content, for ever: a task that runs twice (its worker was lost, or its dead
client's tasks are still at work) writes again what is there. The last iteration's array is kept only.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from dask.delayed import Delayed

from daskcurate.config import KMeansConfig
from daskcurate.kernels import lloyd
from daskcurate.kernels.assign import Scorer, own_distances
from daskcurate.kernels.draws import derive_seed
from daskcurate.remembering import assign_block, step_block
from daskcurate.rows import Block, RowBlocks, add, tree
from daskcurate.seeds import seed_centroids
from daskcurate.store import read_block, write_scratch

LOCAL_BYTES = 32 << 20
"""Rows up to this size (float32) may be clustered whole in one task ..."""
LOCAL_OPERATIONS = 4_000_000_000
"""... if one iteration is also no more work than this: rounds over the cluster would take longer."""


class Assigned(NamedTuple):
    """The rows of a block assigned to centroids."""

    labels: np.ndarray
    """(m,) int32."""
    distances: np.ndarray
    """(m,) float64 to the own centroid, in the metric."""
    inertia: float


class Update(NamedTuple):
    """What the client learns of an iteration."""

    objective: float
    empty: np.ndarray
    same: bool


def read_centroids(url: str) -> np.ndarray:
    """Read all centroids of a scratch array."""
    return read_block(url, 0, 2**62)


def _read_scorer(url: str, metric: str) -> Scorer:
    return Scorer(read_centroids(url), metric)


def scorer_task(run: Any, name: str, metric: str) -> Delayed:
    """Return the task that makes the scorer of scratch array ``name``: once, shared by all blocks."""
    return run.task(_read_scorer, run.scratch(name), metric, name="centroids", key=name)


def fits_one_task(blocks: RowBlocks, k: int) -> bool:
    """Return whether one task clusters the rows faster than rounds over the cluster would."""
    return blocks.nbytes <= LOCAL_BYTES and 2 * len(blocks) * k * (blocks.dim + 8) <= LOCAL_OPERATIONS


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
    """
    best, best_inertia = "", np.inf
    saved = run.checkpoint
    resumed = saved if saved.get("step") == step and "restart" in saved else {}
    if resumed:
        best, best_inertia = resumed["best"], resumed["best_inertia"] if resumed["best"] else np.inf
    local = fits_one_task(blocks, k)
    for restart in range(int(resumed.get("restart", 0)), config.n_init):
        name = f"s{step}-r{restart}"
        state = {
            "step": step,
            "base": base,
            "restart": restart,
            "best": best,
            "best_inertia": _json(best_inertia),
        }
        seed = derive_seed(config.seed, "kmeans", k, step, restart)
        progress = (share[0] + share[1] * restart / config.n_init, share[1] / config.n_init)
        if resumed.get("restart") == restart and "iteration" in resumed:
            found = _iterate(run, blocks, config, name, state, resumed, progress, what)
        else:
            run.note(progress[0], f"{what}seeding")
            seeds = seed_centroids(run, blocks, k, config, seed, f"{name}-seeds", given)
            if local:
                found = _fit_local(run, blocks, config, seeds, name)
            else:
                start = {"iteration": 0, "current": seeds, "previous": None}
                found = _iterate(run, blocks, config, name, state, start, progress, what)
        if config.n_init == 1:
            return found
        inertia = _inertia(run, blocks, found, config.metric)
        if inertia < best_inertia:
            best, best_inertia = found, inertia
        run.save(step=step, base=base, restart=restart + 1, best=best, best_inertia=_json(best_inertia))
    return best


def _json(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _fit_local(run: Any, blocks: RowBlocks, config: KMeansConfig, seeds: str, name: str) -> str:
    """Run Lloyd's whole loop in one task."""
    fitted = run.task(
        _lloyd_whole, list(blocks.blocks), run.scratch(seeds), config.metric, config.n_iters, config.tol,
        run.scratch(name), name="kmeans-whole", key=name,
    )  # fmt: skip
    run.gather([fitted], "k-means in one task")
    return name


def _lloyd_whole(
    blocks: list[Block], seeds: str, metric: str, n_iters: int, tol: Any, url: str
) -> int:
    found = lloyd.lloyd([block.rows for block in blocks], read_centroids(seeds), metric, n_iters, tol)
    write_scratch(url, found.centroids)
    return found.n_updates


def _iterate(
    run: Any,
    blocks: RowBlocks,
    config: KMeansConfig,
    name: str,
    state: dict[str, Any],
    start: dict[str, Any],
    progress: tuple[float, float],
    what: str,
) -> str:
    """Run Lloyd's loop over the cluster from a saved iteration; return the last centroids' scratch name."""
    current, previous = start["current"], start["previous"]
    for iteration in range(int(start["iteration"]), config.n_iters):
        run.note(
            progress[0] + progress[1] * iteration / config.n_iters,
            f"{what}iteration {iteration + 1}/{config.n_iters}",
        )
        before = current
        current, update = _update(run, blocks, config.metric, before, f"{name}-{iteration}")
        done = update.same or lloyd.fits_tol(previous, update.objective, config.tol)
        previous = update.objective
        reached = config.n_iters if done else iteration + 1
        run.save(**state, iteration=reached, current=current, previous=previous)
        run.discard(before)
        if done:
            break
    return current


def _update(run: Any, blocks: RowBlocks, metric: str, current: str, key: str) -> tuple[str, Update]:
    """Do one Lloyd update over all blocks; return the name of the scratch array of the new centroids."""
    scorer = scorer_task(run, current, metric)
    partials = blocks.map(run, step_block, scorer, blocks.name, name="kmeans-step", key=key)
    total = tree(run, lloyd.combine, partials, name="kmeans-combine", key=key)
    url = run.scratch(key)
    update = run.gather(
        [run.task(_finalize, total, scorer, url, name="kmeans-update", key=key)], "iteration"
    )[0]
    if not update.empty.size:
        return key, update
    reseeded = f"{key}-reseeded"
    moved = _reseed(run, blocks, metric, current, key, reseeded, update.empty, key)
    run.discard(key)
    return reseeded, update._replace(same=update.same and not moved)


def _finalize(total: lloyd.Partial, scorer: Scorer, url: str) -> Update:
    centroids = scorer.centroids
    updated = lloyd.finalize(total, centroids, scorer.metric)
    write_scratch(url, updated)
    objective = lloyd.objective_of(total, centroids)
    return Update(objective, np.flatnonzero(total.counts == 0), bool((updated == centroids).all()))


def _reseed(
    run: Any,
    blocks: RowBlocks,
    metric: str,
    current: str,
    source: str,
    target: str,
    empty: np.ndarray,
    key: str,
) -> int:
    """Write ``source`` to ``target`` with its empty clusters moved to the rows farthest from ``current``.

    Returns how many were moved: no more than there are rows away from their centroid.
    """
    scorer = scorer_task(run, current, metric)
    far = blocks.map(
        run, _farthest, scorer, blocks.name, int(empty.size), name="kmeans-farthest", key=key
    )
    merged = tree(
        run, partial(_merge_farthest, limit=int(empty.size)), far, name="kmeans-farthest-merge", key=key
    )
    urls = run.scratch(source), run.scratch(target)
    return run.gather([run.task(_move, *urls, empty, merged, name="kmeans-reseed", key=key)], "re-seed")[0]


def _farthest(block: Block, scorer: Scorer, rows_name: str, count: int) -> lloyd.Farthest:
    found = assign_block(block, scorer, rows_name)
    distances = own_distances(block.rows, scorer.centroids, found.labels, scorer.metric)
    return lloyd.merge_farthest([lloyd.Farthest(distances, block.numbers, block.rows)], count)


def _merge_farthest(parts: list[lloyd.Farthest], *, limit: int) -> lloyd.Farthest:
    return lloyd.merge_farthest(parts, limit)


def _move(source: str, target: str, empty: np.ndarray, far: lloyd.Farthest) -> int:
    write_scratch(target, lloyd.reseed(read_centroids(source), empty, far))
    return len(far.row)


def _inertia(run: Any, blocks: RowBlocks, name: str, metric: str) -> float:
    """Return the inertia of ``blocks`` with the centroids of scratch array ``name``."""
    scorer = scorer_task(run, name, metric)
    parts = blocks.map(run, _block_inertia, scorer, blocks.name, name="kmeans-inertia", key=name)
    return float(np.sum(run.gather(parts, "inertia")))


def _assigned(block: Block, scorer: Scorer, rows_name: str) -> Assigned:
    labels = assign_block(block, scorer, rows_name).labels
    distances = own_distances(block.rows, scorer.centroids, labels, scorer.metric)
    square = 2 * distances if scorer.metric == "cosine" else distances * distances
    return Assigned(labels, distances, float(square.sum()))


def _block_inertia(block: Block, scorer: Scorer, rows_name: str) -> float:
    return _assigned(block, scorer, rows_name).inertia


def _sizes(found: Assigned, k: int) -> np.ndarray:
    return np.bincount(found.labels, minlength=k).astype(np.int64)


RESEED_ROUNDS = 20
"""Rounds in which clusters that end up empty are moved; each lowers the objective, few are ever needed."""


def assign_blocks(
    run: Any, blocks: RowBlocks, centroids: str, k: int, metric: str, key: str, *, reseed: bool = False
) -> tuple[list[Delayed], str, np.ndarray]:
    """Assign all rows; return (an :class:`Assigned` a block on the workers, scratch name, sizes (k,)).

    With ``reseed`` clusters that win no row are moved to the rows farthest from their centroids until
    none is empty, or no row lies away from its centroid: then there are fewer distinct rows than clusters.
    """
    for turn in range(RESEED_ROUNDS):
        tag = f"{key}-{turn}"
        scorer = scorer_task(run, centroids, metric)
        assigned = run.persist(
            blocks.map(run, _assigned, scorer, blocks.name, name="kmeans-assign", key=tag), "assign"
        )
        counts = [
            run.task(_sizes, item, k, name="cluster-sizes", key=f"{tag}-{i}")
            for i, item in enumerate(assigned)
        ]
        sizes = run.gather([tree(run, add, counts, name="cluster-sizes-add", key=tag)])[0]
        empty = np.flatnonzero(sizes == 0)
        if not reseed or not empty.size or turn == RESEED_ROUNDS - 1:
            break
        moved = f"{key}-moved-{turn}"
        if not _reseed(run, blocks, metric, centroids, centroids, moved, empty, tag):
            break
        centroids = moved
    return assigned, centroids, sizes
