"""The k-means map-reduce: seeding, Lloyd's loop with a checkpoint an iteration, and assignment.

Centroids never pass through the client: an update task writes them to the stage's scratch arrays, and
the next iteration's first task reads them back. So a lost worker costs one iteration at most, a killed
client resumes at the last one, and no large object rides in a graph.

A scratch name stands for one content, for ever: a task that runs twice (its worker was lost, or its dead
client's tasks are still at work) writes again what is there. The last iteration's array is kept only.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from dask.delayed import Delayed

from daskcurate.config import KMeansConfig
from daskcurate.device import on_device
from daskcurate.kernels import lloyd
from daskcurate.kernels.assign import Scorer, own_distances
from daskcurate.remembering import assign_block, step_block
from daskcurate.rows import Block, RowBlocks, add, tree
from daskcurate.store import read_block, write_scratch


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


def iterate_lloyd(
    run: Any,
    blocks: RowBlocks,
    config: KMeansConfig,
    name: str,
    state: dict[str, Any],
    start: dict[str, Any],
    note: Callable[[float, str], None],
) -> str:
    """Run Lloyd's loop over the cluster from a saved iteration; return the last centroids' scratch name.

    Parameters
    ----------
    state
        What the checkpoint keeps besides.
    start
        Where to go on: iteration, current (a scratch array of centroids), previous (objective or None).
    note
        Called with the fraction done and a text.
    """
    current, previous = start["current"], start["previous"]
    for iteration in range(int(start["iteration"]), config.n_iters):
        note(iteration / config.n_iters, f"iteration {iteration + 1}/{config.n_iters}")
        before = current
        current, update = update_once(run, blocks, config.metric, before, f"{name}-{iteration}")
        done = update.same or lloyd.fits_tol(previous, update.objective, config.tol)
        previous = update.objective
        reached = config.n_iters if done else iteration + 1
        run.save(**state, iteration=reached, current=current, previous=previous)
        run.discard(before)
        if done:
            break
    return current


def update_once(
    run: Any, blocks: RowBlocks, metric: str, current: str, key: str, step: float = 1.0
) -> tuple[str, Update]:
    """Do one Lloyd update over all blocks; return the name of the scratch array of the new centroids."""
    scorer = scorer_task(run, current, metric)
    partials = blocks.map(run, step_block, scorer, blocks.name, name="kmeans-step", key=key)
    total = tree(run, lloyd.combine, partials, name="kmeans-combine", key=key)
    url = run.scratch(key)
    update = run.gather(
        [run.task(_finalize, total, scorer, url, step, name="kmeans-update", key=key)], "iteration"
    )[0]
    if not update.empty.size:
        return key, update
    reseeded = f"{key}-reseeded"
    moved = _reseed(run, blocks, metric, current, key, reseeded, update.empty, key)
    run.discard(key)
    return reseeded, update._replace(same=update.same and not moved)


def _finalize(total: lloyd.Partial, scorer: Scorer, url: str, step: float) -> Update:
    centroids = scorer.centroids
    updated = lloyd.finalize(total, centroids, scorer.metric, step)
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
    far = blocks.map(run, _farthest, scorer, blocks.name, int(empty.size), name="kmeans-farthest", key=key)
    merged = tree(
        run, partial(_merge_farthest, limit=int(empty.size)), far, name="kmeans-farthest-merge", key=key
    )
    urls = run.scratch(source), run.scratch(target)
    return run.gather([run.task(_move, *urls, empty, merged, name="kmeans-reseed", key=key)], "re-seed")[0]


@on_device
def _farthest(block: Block, scorer: Scorer, rows_name: str, count: int) -> lloyd.Farthest:
    found = assign_block(block, scorer, rows_name)
    distances = own_distances(block.rows, scorer.centroids, found.labels, scorer.metric)
    return lloyd.merge_farthest([lloyd.Farthest(distances, block.numbers, block.rows)], count)


def _merge_farthest(parts: list[lloyd.Farthest], *, limit: int) -> lloyd.Farthest:
    return lloyd.merge_farthest(parts, limit)


def _move(source: str, target: str, empty: np.ndarray, far: lloyd.Farthest) -> int:
    write_scratch(target, lloyd.reseed(read_centroids(source), empty, far))
    return len(far.row)


@on_device
def assigned_block(block: Block, scorer: Scorer, rows_name: str) -> Assigned:
    """Assign the rows of a block to their nearest centroids."""
    return assigned_rows(block, assign_block(block, scorer, rows_name).labels, scorer)


def assigned_rows(block: Block, labels: np.ndarray, scorer: Scorer) -> Assigned:
    """Return labels with the distances to the centroids that they name."""
    distances = own_distances(block.rows, scorer.centroids, labels, scorer.metric)
    square = 2 * distances if scorer.metric == "cosine" else distances * distances
    return Assigned(labels, distances, float(square.sum()))


def count_sizes(run: Any, assigned: Sequence[Delayed], k: int, key: str) -> np.ndarray:
    """Return the rows of each cluster, (k,) int64."""
    counts = [
        run.task(_sizes, item, k, name="cluster-sizes", key=f"{key}-{i}") for i, item in enumerate(assigned)
    ]
    return run.gather([tree(run, add, counts, name="cluster-sizes-add", key=key)])[0]


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
            blocks.map(run, assigned_block, scorer, blocks.name, name="kmeans-assign", key=tag), "assign"
        )
        sizes = count_sizes(run, assigned, k, tag)
        empty = np.flatnonzero(sizes == 0)
        if not reseed or not empty.size or turn == RESEED_ROUNDS - 1:
            break
        moved = f"{key}-moved-{turn}"
        if not _reseed(run, blocks, metric, centroids, centroids, moved, empty, tag):
            break
        centroids = moved
    return assigned, centroids, sizes
