"""One Lloyd step of k-means as a (chunk, combine, finalize) triple, and the loop over it in memory.

The objective is the sum over rows of the squared L2 distance to the nearest centroid. Spherical k-means
(metric ``cosine``) is the same on unit rows with centroids re-normalised after every update. Sums are
accumulated in float64 whatever the dtype of the rows.
"""

from collections.abc import Sequence
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sparse

from daskcurate.arrays import Array, launch, namespace_of, row_dots, row_squares, to_host
from daskcurate.kernels.assign import Assignment, Scorer, assign, unit_rows
from daskcurate.kernels.bounded import reassign
from daskcurate.kernels.distances import own_distances, squared
from daskcurate.kernels.threads import spread

SHARED_CLUSTERS = 128
"""Clusters whose sums one thread adds up over all blocks at a time."""
RUN_ROWS = 2048
"""Small blocks in memory are assigned together until they have so many rows."""
OVER_RELAXATION = 1.7
"""How far updates go that are not to be Lloyd's: 1 is to the mean, further converges in fewer passes; below 2 the
objective of the given assignment falls all the same."""

MOMENTUM = 0.8
"""Share of its last move that a centroid goes on, where updates are accelerated."""


class Partial(NamedTuple):
    """What one chunk contributes to a Lloyd update."""

    sums: Array
    """(k, d) float64: sum of the rows of each cluster."""
    counts: Array
    """(k,) int64: rows of each cluster."""
    squares: float
    """Sum of the squared lengths of the rows."""


class Last(NamedTuple):
    """What a chunk remembers of a pass, to do less in the next."""

    assignment: Assignment
    partial: Partial | None
    """None where the sums were not worth remembering."""


def segment_sums(
    x: Array,
    labels: Array,
    n_clusters: int,
    before: tuple[Array, Partial] | None = None,
    dtype: Any = np.float64,
    *,
    reuse: bool = False,
) -> tuple[Array, Array]:
    """Return (sums (k, d) float64, counts (k,) int64) of the rows of each cluster; label -1 is left out.

    A product with the sparse (k, m) indicator matrix whose rows list their members in ascending order; on a GPU
    a kernel of our own, because that of cuSPARSE does not promise an order. So the order of every sum is fixed.

    Parameters
    ----------
    before
        Other labels of the same rows with their sums: only clusters whose members changed are added up
        again, to the same bits.
    dtype
        What the rows of a cluster are added up in; float32 is enough for a pass that is not exact anyhow,
        where a block has some tens of rows a cluster.
    reuse
        Whether the sums of ``before`` are overwritten, not copied.
    """
    xp = namespace_of(x)
    order = xp.argsort(labels, kind="stable")
    order = order[int((labels < 0).sum()) :]
    counts = xp.bincount(labels[order], minlength=n_clusters).astype(np.int64)
    if xp is not np:
        return _device_sums(x, order, counts), counts
    if before is None:
        sums = xp.zeros((n_clusters, x.shape[1]))
        touched = slice(None)
        ends = xp.cumsum(counts)
    else:
        old_labels, old = before
        sums = old.sums if reuse else old.sums.copy()
        moved = xp.nonzero(labels != old_labels)[0]
        touched = xp.unique(xp.concatenate([labels[moved], old_labels[moved]]))
        touched = touched[touched >= 0]
        if not len(touched):
            return sums, counts
        is_touched = xp.zeros(n_clusters + 1, dtype=bool)
        is_touched[touched] = True
        order = order[is_touched[labels[order]]]
        ends = xp.cumsum(counts[touched])
    starts = xp.concatenate([xp.zeros(1, dtype=np.int64), ends])
    if 2 * len(order) < x.shape[0]:  # few rows: those alone are widened
        x, order = x[order], xp.arange(len(order))
    shape = (len(starts) - 1, x.shape[0])
    members = sparse.csr_matrix((xp.ones(order.shape[0], dtype=dtype), order, starts), shape=shape)
    width = max(1, (1 << 22) // max(1, x.shape[0]))  # float64 copies of a few columns at a time
    width = x.shape[1] if x.dtype == dtype else width
    for start in range(0, x.shape[1], width):
        columns = slice(start, start + width)
        sums[touched, columns] = members @ x[:, columns].astype(dtype, copy=False)
    return sums, counts


def _device_sums(x: Array, order: Array, counts: Array) -> Array:
    """Return the sums (k, d) float64 of the rows that ``order`` lists, ``counts`` (k,) of them a cluster."""
    xp = namespace_of(x)
    rows = xp.ascontiguousarray(x, dtype=np.float32)
    starts = xp.concatenate([xp.zeros(1, dtype=np.int64), xp.cumsum(counts)])
    k, d = len(counts), rows.shape[1]
    sums = xp.zeros((k, d))
    if k and d:
        launch(xp, "segment_sums", (k, -(-d // 128)), 128, rows, order, starts, np.int64(d), sums)
    return sums


def step_chunk(
    x: Array,
    scorer: Scorer,
    last: Last | None = None,
    moves: Array | None = None,
) -> Last:
    """Return what the rows ``x`` (m, d) contribute to the update of the scorer's centroids.

    Parameters
    ----------
    last
        What the call of the last pass returned for the same rows; None: everything is computed anew. The
        result is the same to the bit.
    moves
        (k,) float64: how far each centroid has moved since.
    """
    k = scorer.centroids.shape[0]
    if last is None or moves is None:
        assignment = assign(x, scorer)
        sums, counts = segment_sums(x, assignment.labels, k)
        return Last(assignment, Partial(sums, counts, sum_of_squares(x)))
    assignment = reassign(x, scorer, last.assignment, moves)
    if last.partial is None:
        sums, counts = segment_sums(x, assignment.labels, k)
        return Last(assignment, Partial(sums, counts, sum_of_squares(x)))
    sums, counts = segment_sums(x, assignment.labels, k, (last.assignment.labels, last.partial))
    return Last(assignment, Partial(sums, counts, last.partial.squares))


def sum_of_squares(x: Array) -> float:
    """Return the sum of the squared lengths of rows, in float64."""
    total = 0.0
    for start in range(0, x.shape[0], 4096):
        wide = x[start : start + 4096].astype(np.float64).ravel()
        total += float(wide @ wide)
    return total


def combine(partials: Sequence[Partial]) -> Partial:
    """Add partials up, in the order given."""
    sums, counts, squares = partials[0].sums.copy(), partials[0].counts.copy(), partials[0].squares
    for part in partials[1:]:
        sums += part.sums
        counts += part.counts
        squares += part.squares
    return Partial(sums, counts, squares)


def objective_of(total: Partial, centroids: Array) -> float:
    """Return the sum of squared L2 distances of rows to ``centroids`` (k, d), from the sums of the rows."""
    objective = total.squares
    for start in range(0, centroids.shape[0], 4096):
        wide = centroids[start : start + 4096].astype(np.float64)
        lengths = row_dots(wide, wide)
        cross = row_dots(wide, total.sums[start : start + 4096])
        objective += float((total.counts[start : start + 4096] * lengths - 2 * cross).sum())
    return max(objective, 0.0)


def moves_of(before: Array, after: Array) -> Array:
    """Return how far each centroid has moved, (k,) float64."""
    xp = namespace_of(after)
    out = xp.empty(after.shape[0])
    for start in range(0, after.shape[0], 4096):
        stop = start + 4096
        gap = after[start:stop].astype(np.float64) - before[start:stop].astype(np.float64)
        out[start:stop] = xp.sqrt(row_dots(gap, gap))
    return out


def finalize(total: Partial, centroids: Array, metric: str, step: float = 1.0) -> Array:
    """Return the updated centroids (k, d) float32; those of empty clusters are left as they were.

    Parameters
    ----------
    step
        1: the means. In (1, 2): as many times as far (over-relaxation); for L2 the objective of the
        given assignment falls all the same.
    """
    xp = namespace_of(centroids)
    weight = total.counts
    if metric == "cosine":
        weight = xp.sqrt(row_squares(total.sums))
    alive = (total.counts > 0) & (weight > 0)
    updated = total.sums / xp.where(alive, weight, 1)[:, None]
    if step != 1:
        updated = centroids + step * (updated - centroids)
        if metric == "cosine":
            length = xp.sqrt(row_squares(updated))
            alive &= length > 0
            updated /= xp.where(alive, length, 1)[:, None]
    return xp.where(alive[:, None], updated, centroids).astype(np.float32)


def accelerated(total: Partial, centroids: Array, before: Array, metric: str) -> Array:
    """Return centroids (k, d) float32 that moved beyond the means of their rows, with a share of their last move.

    That is the heavy-ball method (Polyak 1964). In passes over embeddings it does not only converge faster, it gets
    past poor solutions as well.

    Parameters
    ----------
    before
        (k, d) float32: the centroids of the last pass.
    """
    updated = finalize(total, centroids, metric, OVER_RELAXATION)
    alive = (total.counts > 0)[:, None]
    updated += namespace_of(centroids).where(
        alive, np.float32(MOMENTUM) * (centroids - before), np.float32(0)
    )
    return unit_rows(updated) if metric == "cosine" else updated


class Farthest(NamedTuple):
    """The rows of a chunk (or of all) that lie farthest from their centroids, farthest first."""

    distance: Array
    row: Array
    vectors: Array


def merge_farthest(parts: Sequence[Farthest], count: int) -> Farthest:
    """Return the ``count`` farthest of several, ties by row, each distinct vector once and none at distance 0.

    A row at distance 0, or a second copy of a row, would make a centroid that wins no row of its own.
    """
    xp = namespace_of(parts[0].vectors)
    distance = xp.concatenate([part.distance for part in parts])
    row = xp.concatenate([part.row for part in parts])
    vectors = xp.concatenate([part.vectors for part in parts])
    order = xp.lexsort(xp.stack([row, -distance]))
    order = to_host(order)[to_host(distance[order]) > 0]
    seen: set[bytes] = set()
    chosen: list[int] = []
    for i in order:
        if len(chosen) == count:
            break
        key = to_host(vectors[i]).tobytes()
        if key not in seen:
            seen.add(key)
            chosen.append(int(i))
    picked = xp.asarray(chosen, dtype=np.int64)
    return Farthest(distance[picked], row[picked], vectors[picked])


def reseed(centroids: Array, empty: Array, far: Farthest) -> Array:
    """Return the centroids with the empty clusters, in order, moved to the farthest rows."""
    moved = centroids.copy()
    used = namespace_of(centroids).asarray(empty[: far.vectors.shape[0]])
    moved[used] = far.vectors[: used.shape[0]]
    return moved


class Fit(NamedTuple):
    """Centroids found by Lloyd's algorithm."""

    centroids: Array
    n_updates: int
    objective: float
    labels: list[Array] | None
    """Of each block (m,) int32, by these centroids; None where the loop ended before they were known."""


def fits_tol(previous: float | None, objective: float, tol: float | None) -> bool:
    """Return whether the relative fall of the objective is within ``tol``."""
    if tol is None or previous is None:
        return False
    return previous - objective <= tol * previous


def tree_combine(parts: Sequence[Partial], fan_in: int = 8) -> Partial:
    """Combine partials in the tree that the chunk numbers fix: groups of ``fan_in`` neighbours."""
    parts = list(parts)
    while len(parts) > 1:
        parts = [combine(parts[i : i + fan_in]) for i in range(0, len(parts), fan_in)]
    return parts[0]


def lloyd(
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
                    Farthest(own_distances(block, centroids, labels, metric), _numbers(block, first), block)
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


def inertia_of(x: Array, centroids: Array, labels: Array, metric: str) -> float:
    """Return the sum of squared L2 distances to the own centroid, in float64 without cancellation."""
    distance = own_distances(x, centroids, labels, metric)
    return float(squared(distance[labels >= 0], metric).sum())
