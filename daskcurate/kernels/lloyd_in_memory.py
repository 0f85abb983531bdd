"""Lloyd's algorithm over row blocks in memory: the loop over :mod:`daskcurate.kernels.lloyd`, for one task.

To the bit it does what the distributed loop does, with threads in place of tasks, and remembers each block's last
pass.
"""

from collections.abc import Sequence
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np

from daskcurate.arrays import Array, namespace_of, to_host
from daskcurate.kernels.assign import Assignment, Scorer, assign
from daskcurate.kernels.bounded import reassign
from daskcurate.kernels.distances import own_distances
from daskcurate.kernels.lloyd import (
    Partial,
    farthest_rows,
    finalize,
    fits_tol,
    merge_farthest,
    moves_of,
    objective_of,
    reseed,
    segment_sums,
    sum_of_squares,
    tree_combine,
)
from daskcurate.kernels.threads import spread

SHARED_CLUSTERS = 128
"""Clusters whose sums one thread adds up over all blocks at a time."""
RUN_ROWS = 2048
"""Small blocks in memory are assigned together until they have so many rows."""


class Fit(NamedTuple):
    """Centroids found by Lloyd's algorithm."""

    centroids: Array
    n_updates: int
    objective: float
    labels: list[Array] | None
    """Of each block (m,) int32, by these centroids; None where the loop ended before they were known."""


def lloyd_in_memory(
    blocks: Sequence[Array],
    centroids: Array,
    metric: str,
    n_iters: int,
    tol: float | None = None,
    step: float = 1.0,
) -> Fit:
    """Run Lloyd's algorithm on row blocks in memory, exactly as the distributed loop does.

    Parameters
    ----------
    blocks
        Arrays (m_i, d) float32; a block may be empty.
    centroids
        (k, d) float32, the seeds.
    metric, n_iters, tol
        See :class:`daskcurate.config.KMeansConfig`. The loop ends early where an update changes nothing:
        all later ones would change nothing either.
    step
        How far all updates but the first and the last go, see :func:`finalize`.
    """
    previous: float | None = None
    first_rows = np.cumsum([0] + [block.shape[0] for block in blocks])
    runs = spread(_joined, _neighbours(blocks))
    last: list[_RunLast | None] = [None] * len(runs)
    moves = None
    total: Partial | None = None
    updates, objective, labels = 0, 0.0, None
    for number in range(n_iters):
        scorer = Scorer(centroids, metric)
        stepped = spread(_step_run, runs, repeat(scorer), last, repeat(moves))
        touched = None if total is None else _touched(stepped, last, len(centroids))
        last = list(stepped)
        passed = [item for found in stepped for item in found.blocks()]
        total = _combined([partial for _, partial in passed], total, touched)
        objective = objective_of(total, centroids)
        plain = number in (0, n_iters - 1)
        updated = finalize(total, centroids, metric, 1.0 if plain else step)
        empty = to_host(total.counts == 0).nonzero()[0]
        if empty.size:
            far = merge_farthest(
                [
                    farthest_rows(
                        own_distances(block, centroids, labels, metric),
                        _numbers(block, first),
                        block,
                        empty.size,
                    )
                    for block, first, (labels, _) in zip(blocks, first_rows[:-1], passed, strict=True)
                ],
                empty.size,
            )
            updated = reseed(updated, empty, far)
        updates += 1
        same = bool((updated == centroids).all())
        moves = moves_of(centroids, updated)
        centroids = updated
        if same:
            labels = [found for found, _ in passed]
        if same or fits_tol(previous, objective, tol):
            break
        previous = objective
    return Fit(centroids, updates, objective, labels)


def _touched(stepped: Sequence["_RunLast"], last: Sequence[Any], k: int) -> np.ndarray:
    """Return the clusters whose rows are not those of the pass before, ascending."""
    xp = namespace_of(stepped[0].assignment.labels)
    is_touched = xp.zeros(k, dtype=bool)
    for now, before in zip(stepped, last, strict=True):
        new, old = now.assignment.labels, before.assignment.labels
        moved = xp.nonzero(new != old)[0]
        is_touched[new[moved]] = True
        is_touched[old[moved]] = True
    return to_host(xp.nonzero(is_touched)[0])


def _combined(partials: list[Partial], before: Partial | None, touched: np.ndarray | None) -> Partial:
    """Return what :func:`tree_combine` does, some clusters at a time: these stay in cache, and threads share them.

    Parameters
    ----------
    before, touched
        What it returned for the pass before, which is overwritten, and the clusters that changed since; or None.
    """
    xp, k = namespace_of(partials[0].sums), len(partials[0].counts)
    own = np.arange(k) if touched is None else touched
    if before is None:
        squares = tree_combine([Partial(part.sums[:0], part.counts[:0], part.squares) for part in partials])
        before = Partial(xp.empty_like(partials[0].sums), xp.empty_like(partials[0].counts), squares.squares)
    sums, counts = before.sums, before.counts

    def some(start: int) -> None:
        part = own[start : start + SHARED_CLUSTERS]
        at = slice(start, start + len(part)) if len(own) == k else xp.asarray(part)
        found = tree_combine([Partial(each.sums[at], each.counts[at], 0.0) for each in partials])
        sums[at], counts[at] = found.sums, found.counts

    spread(some, range(0, len(own), SHARED_CLUSTERS))
    return before


class _Run(NamedTuple):
    """Neighbouring blocks in one piece: rows are assigned together, and added up block by block."""

    x: Array
    slices: list[slice]


class _RunLast(NamedTuple):
    """What a run remembers of a pass."""

    assignment: Assignment
    partials: list[Partial]
    slices: list[slice]

    def blocks(self) -> list[tuple[Array, Partial]]:
        """Return the labels and the sums of each block."""
        return [(self.assignment.labels[s], p) for s, p in zip(self.slices, self.partials, strict=True)]


def _neighbours(blocks: Sequence[Array]) -> list[list[Array]]:
    """Return the blocks, in lists of neighbours with some ``RUN_ROWS`` rows."""
    found: list[list[Array]] = [[]]
    for block in blocks:
        if sum(part.shape[0] for part in found[-1]) >= RUN_ROWS:
            found.append([])
        found[-1].append(block)
    return found


def _joined(blocks: list[Array]) -> _Run:
    ends = np.cumsum([block.shape[0] for block in blocks])
    slices = [slice(int(end) - block.shape[0], int(end)) for end, block in zip(ends, blocks, strict=True)]
    xp = namespace_of(blocks[0])
    return _Run(blocks[0] if len(blocks) == 1 else xp.concatenate(blocks), slices)


def _step_run(run: _Run, scorer: Scorer, last: _RunLast | None, moves: Array | None) -> _RunLast:
    """Return what :func:`step_chunk` does of each block of a run; the sums of ``last`` are overwritten."""
    before: Sequence[tuple[Array, Partial] | None] = [None] * len(run.slices)
    if last is None or moves is None:
        assignment = assign(run.x, scorer)
    else:
        assignment, before = reassign(run.x, scorer, last.assignment, moves), last.blocks()
    partials = []
    for rows, old in zip(run.slices, before, strict=True):
        x = run.x[rows]
        sums, counts = segment_sums(x, assignment.labels[rows], len(scorer.centroids), old, reuse=True)
        partials.append(Partial(sums, counts, sum_of_squares(x) if old is None else old[1].squares))
    return _RunLast(assignment, partials, run.slices)


def _numbers(block: Array, first: int) -> Array:
    return namespace_of(block).arange(first, first + block.shape[0], dtype=np.int64)
