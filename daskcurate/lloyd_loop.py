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

from daskcurate.arrays import namespace_of, to_host
from daskcurate.config import KMeansConfig
from daskcurate.device import left_on_device, on_device
from daskcurate.kernels import lloyd
from daskcurate.kernels.assign import Assignment, Scorer, nearest_by_leading
from daskcurate.kernels.bounded import reassign
from daskcurate.kernels.distances import own_distances, squared
from daskcurate.remembering import Table, assign_block, read_centroids, step_block
from daskcurate.rows import Block, Narrow, NarrowBlock, RowBlocks, add, tree
from daskcurate.store import write_scratch


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


def table_of(run: Any, name: str, metric: str, narrow: Narrow | None = None) -> Table:
    """Return the centroids of scratch array ``name``, for tasks: each worker reads them once."""
    return Table(run.scratch(name), metric, run.token, None if narrow is None else narrow.directions)


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
    first = int(start["iteration"])
    under_way = None
    if first < config.n_iters:
        under_way = start_update(run, blocks, config.metric, current, f"{name}-{first}")
    for iteration in range(first, config.n_iters):
        note(iteration / config.n_iters, f"iteration {iteration + 1}/{config.n_iters}")
        before = current
        assert under_way is not None
        current, update = under_way.finish()
        done = update.same or lloyd.fits_tol(previous, update.objective, config.tol)
        previous = update.objective
        reached = config.n_iters if done else iteration + 1
        if reached < config.n_iters:  # the workers go on while this process keeps the books
            under_way = start_update(run, blocks, config.metric, current, f"{name}-{iteration + 1}")
        run.save(**state, iteration=reached, current=current, previous=previous)
        run.discard(before)
        if done:
            break
    return current


class UpdateUnderWay(NamedTuple):
    """A Lloyd update that the workers are at."""

    run: Any
    blocks: RowBlocks
    metric: str
    current: str
    key: str
    futures: list[Any]

    def finish(self) -> tuple[str, Update]:
        """Wait for it; return the name of the scratch array of the new centroids, and what is known of it."""
        run, key = self.run, self.key
        update = run.finish(self.futures, "iteration")[0]
        if not update.empty.size:
            return key, update
        reseeded = f"{key}-reseeded"
        table, count = table_of(run, self.current, self.metric), int(update.empty.size)
        far = self.blocks.map(run, _farthest, table, self.blocks.name, count, name="kmeans-farthest", key=key)
        moved = _reseed(run, far, key, reseeded, update.empty, key)
        run.discard(key)
        return reseeded, update._replace(same=update.same and not moved)


def start_update(run: Any, blocks: RowBlocks, metric: str, current: str, key: str) -> UpdateUnderWay:
    """Start one Lloyd update of the centroids ``current`` over all blocks; they go to scratch array ``key``."""
    table = table_of(run, current, metric)
    partials = blocks.map(run, _step, table, blocks.name, name="kmeans-step", key=key)
    total = tree(run, _combine, partials, name="kmeans-combine", key=key)
    last = run.task(_finalize, total, table, run.scratch(key), name="kmeans-update", key=key)
    return UpdateUnderWay(run, blocks, metric, current, key, run.start([last]))


def _step(block: Block, table: Table, rows_name: str) -> lloyd.Partial:
    return step_block(block, table.scorer(), rows_name)


@left_on_device
def _combine(parts: list[lloyd.Partial]) -> lloyd.Partial:
    return lloyd.combine(parts)


@on_device
def _finalize(total: lloyd.Partial, table: Table, url: str) -> Update:
    centroids = table.scorer().centroids
    updated = lloyd.finalize(total, centroids, table.metric)
    write_scratch(url, to_host(updated))
    objective = lloyd.objective_of(total, centroids)
    empty = np.flatnonzero(to_host(total.counts) == 0)
    return Update(objective, empty, bool((updated == centroids).all()))


def _reseed(run: Any, far: list[Delayed], source: str, target: str, empty: np.ndarray, key: str) -> int:
    """Write ``source`` to ``target`` with its empty clusters moved to the rows farthest from their centroids.

    ``far`` are the farthest rows of each block. Returns how many were moved: no more than there are rows away from
    their centroid.
    """
    merged = tree(
        run, partial(_merge_farthest, limit=int(empty.size)), far, name="kmeans-farthest-merge", key=key
    )
    urls = run.scratch(source), run.scratch(target)
    return run.gather([run.task(_move, *urls, empty, merged, name="kmeans-reseed", key=key)], "re-seed")[0]


@on_device
def _farthest(block: Block, table: Table, rows_name: str, count: int) -> lloyd.Farthest:
    scorer = table.scorer()
    labels = assign_block(block, scorer, rows_name).labels
    distances = own_distances(block.rows, scorer.centroids, labels, scorer.metric)
    return lloyd.farthest_rows(distances, block.numbers, block.rows, count)


@on_device
def _farthest_assigned(block: Block, found: Assigned, count: int) -> lloyd.Farthest:
    return lloyd.farthest_rows(found.distances, block.numbers, block.rows, count)


def _merge_farthest(parts: list[lloyd.Farthest], *, limit: int) -> lloyd.Farthest:
    return lloyd.merge_farthest(parts, limit)


def _move(source: str, target: str, empty: np.ndarray, far: lloyd.Farthest) -> int:
    write_scratch(target, lloyd.reseed(read_centroids(source), empty, far))
    return len(far.row)


@on_device
def assigned_block(block: Block, narrow: NarrowBlock | None, table: Table, rows_name: str) -> Assigned:
    """Assign the rows of a block to their nearest centroids."""
    scorer = table.scorer()
    if narrow is None:
        labels = assign_block(block, scorer, rows_name).labels
    else:
        labels = nearest_by_leading(block.rows, scorer, narrow.leading)
    return assigned_rows(block, labels, scorer)


def assigned_rows(block: Block, labels: np.ndarray, scorer: Scorer) -> Assigned:
    """Return labels with the distances to the centroids that they name."""
    distances = own_distances(block.rows, scorer.centroids, labels, scorer.metric)
    return Assigned(labels, distances, float(squared(distances, scorer.metric).sum()))


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
    table = table_of(run, centroids, metric, blocks.narrow)
    lazy = blocks.map_both(run, assigned_block, table, blocks.name, name="kmeans-assign", key=f"{key}-0")
    for turn in range(RESEED_ROUNDS):
        tag = f"{key}-{turn}"
        assigned = run.persist(lazy, "assign")
        sizes = count_sizes(run, assigned, k, tag)
        empty = np.flatnonzero(sizes == 0)
        if not reseed or not empty.size or turn == RESEED_ROUNDS - 1:
            break
        far = blocks.zip_map(
            run, _farthest_assigned, assigned, int(empty.size), name="kmeans-farthest", key=tag
        )
        moved = f"{key}-moved-{turn}"
        if not _reseed(run, far, centroids, moved, empty, tag):
            break
        centroids, table = moved, table_of(run, moved, metric)
        lazy = blocks.zip_map(
            run, _assigned_again, assigned, table, empty, name="kmeans-assign", key=f"{key}-{turn + 1}"
        )
    return assigned, centroids, sizes


@on_device
def _assigned_again(block: Block, found: Assigned, table: Table, moved: np.ndarray) -> Assigned:
    """Assign rows again after centroids moved that were nearest to none: the others are as near as they were."""
    scorer = table.scorer()
    xp = namespace_of(block.rows)
    moves = xp.zeros(len(scorer.centroids))
    moves[xp.asarray(moved)] = np.inf  # so that these are compared with every row
    others = xp.full(len(block.rows), np.inf, dtype=np.float32)
    labels = reassign(block.rows, scorer, Assignment(found.labels, others), moves).labels
    return assigned_rows(block, labels, scorer)
